"""Slides from their tiles: few tiles decide, patients stay whole, and what does not join up is told."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import balanced_accuracy_score, f1_score, roc_auc_score

import stfuse
from stfuse.tl._mil_folds import auroc

KEYS = {"slide_key": "slide", "label_key": "mutation"}
FAST = {"n_hidden": 16, "n_attention": 8, "n_splits": 2, "max_epochs": 30, "lr": 1e-2, "dropout": 0.0, "n_tiles": 40}
QUICK = FAST | {"max_epochs": 1}


def cohort(n_slides=40, n_features=8, seed=0):
    """Mutated slides have a few tiles (3 of about 35) that show something; two slides a patient."""
    rng = np.random.default_rng(seed)
    sizes = rng.integers(20, 50, n_slides)
    mutated = np.arange(n_slides) // 2 % 2 == 1
    slide = np.repeat(np.arange(n_slides), sizes)
    order = rng.permutation(slide.size)
    rank = np.arange(slide.size) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    witness = ((rank < 3) & mutated[slide])[order]
    x = rng.normal(size=(slide.size, n_features)).astype(np.float32)
    x[witness, :2] += 4
    names = np.array([f"S{i}" for i in range(n_slides)])
    tiles = ad.AnnData(
        obs=pd.DataFrame({"slide": names[slide[order]], "witness": witness}, [f"t{i}" for i in range(slide.size)]),
        obsm={"X_image": x},
    )
    table = {"mutation": np.where(mutated, "TP53/mut", "wild"), "patient": [f"P{i // 2}" for i in range(n_slides)]}
    return ad.AnnData(obs=pd.DataFrame(table, names)), tiles


@pytest.fixture(scope="module")
def trained():
    slides, tiles = cohort()
    scores, model = stfuse.tl.mil(slides, tiles, **KEYS, groups="patient", return_model=True, **FAST)
    return slides, tiles, scores, model


def test_few_tiles_decide_and_attention_finds_them(trained):
    slides, tiles, scores, _ = trained
    assert scores.set_index("fold")["auroc"]["pooled"] > 0.9
    of_mutated = tiles.obs["slide"].isin(slides.obs_names[slides.obs["mutation"] != "wild"])
    found = tiles.obs[of_mutated]
    assert roc_auc_score(found["witness"], found["mil_attention"]) > 0.95


def test_scores_are_scikit_learns(trained):
    slides, _, scores, _ = trained
    true, told = slides.obs["mutation"], slides.obsm["mil_proba"]
    assert list(told.columns) == ["TP53_mut", "wild"] and list(scores["fold"]) == ["0", "1", "pooled"]
    predicted = slides.obs["mil_predicted"].astype(str)
    assert (predicted == np.where(told["wild"] > 0.5, "wild", "TP53/mut")).all()
    for fold, row in scores.set_index("fold").iterrows():
        rows = np.full(40, True) if fold == "pooled" else slides.obs["mil_fold"] == int(fold)
        assert row["n_slides"] == rows.sum()
        assert row["auroc"] == pytest.approx(roc_auc_score(true[rows] == "wild", told["wild"][rows]))
        assert row["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(true[rows], predicted[rows]))
        assert row["macro_f1"] == pytest.approx(f1_score(true[rows], predicted[rows], average="macro"))


def test_what_is_written(trained, tmp_path):
    slides, tiles, scores, model = trained
    assert set(slides.obs) == {"mutation", "patient", "mil_predicted", "mil_fold"}
    assert set(slides.obsm) == {"mil_proba", "X_mil"} and set(slides.uns) == {"mil"}
    assert (
        set(tiles.obs) == {"slide", "witness", "mil_attention"}
        and set(tiles.uns) == {"mil"}
        and set(tiles.obsm) == {"X_image"}
    )
    np.testing.assert_allclose(slides.obsm["mil_proba"].sum(axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(tiles.obs.groupby("slide", observed=True)["mil_attention"].sum(), 1, rtol=1e-5)
    assert tiles.obs["mil_attention"].dtype == np.float32 and slides.obsm["X_mil"].shape == (40, 16)
    # all embeddings lie in the space of one model
    coded = model.get_latent_representation().loc[slides.obs_names]
    np.testing.assert_array_equal(slides.obsm["X_mil"], coded)
    for adata, name in ((slides, "slides"), (tiles, "tiles")):
        adata.write_h5ad(tmp_path / f"{name}.h5ad")
    read = ad.read_h5ad(tmp_path / "slides.h5ad")
    assert read.uns["mil"]["n_obs"]["slides_labelled"] == 40
    pd.testing.assert_frame_equal(read.uns["mil"]["scores"], scores, check_index_type=False)
    assert list(read.uns["mil"]["classes"]) == ["TP53/mut", "wild"]


def test_patients_stay_whole_and_classes_are_shared_out(trained):
    slides = trained[0]
    assert (slides.obs.groupby("patient")["mil_fold"].nunique() == 1).all()
    counts = pd.crosstab(slides.obs["mil_fold"], slides.obs["mutation"]).to_numpy()
    assert counts.min() >= 8


def test_permuted_labels_give_chance():
    slides, tiles = cohort()
    slides.obs["mutation"] = np.random.default_rng(3).permutation(slides.obs["mutation"].to_numpy())
    scores = stfuse.tl.mil(slides, tiles, **KEYS, **FAST)
    assert 0.2 < scores["auroc"].iloc[-1] < 0.75


def test_what_tells_the_patient_does_not_tell_the_label():
    """Each patient's tiles carry a mark of their own: torn apart it gives the label away, kept whole it does not."""
    slides, tiles = cohort(n_features=40)
    rng = np.random.default_rng(1)
    label = rng.permutation(20) % 2
    patient = np.arange(40) // 2
    slides.obs["mutation"] = np.where(label[patient], "yes", "no")
    of_tile = patient[slides.obs_names.get_indexer(tiles.obs["slide"])]
    tiles.obsm["X_image"] = (rng.normal(size=(tiles.n_obs, 40)) * 0.3 + 3 * rng.normal(size=(20, 40))[of_tile]).astype(
        "f4"
    )
    # one slide of each patient in each fold, as a careless split would have it
    torn = stfuse.tl.mil(slides, tiles, **KEYS, seed=4, **FAST)
    whole = stfuse.tl.mil(slides, tiles, **KEYS, groups="patient", seed=4, **FAST)
    assert torn["auroc"].iloc[-1] > 0.8 > 0.75 > whole["auroc"].iloc[-1]


def test_the_label_of_a_held_out_slide_has_no_part_in_its_prediction(monkeypatch):
    """Turn the labels of one fold around: what its own model says of it stays to the last digit."""
    slides, tiles = cohort(12)
    fold = np.where(np.arange(12) < 4, 0, 1)
    monkeypatch.setattr("stfuse.tl._mil.assign_folds", lambda *_: fold)
    turned = slides.copy()
    labels = slides.obs["mutation"].to_numpy()
    turned.obs["mutation"] = np.where(fold == 0, np.where(labels == "wild", "TP53/mut", "wild"), labels)
    for adata in (slides, turned):
        stfuse.tl.mil(adata, tiles, **KEYS, **QUICK)
    as_it_is, after = (adata.obsm["mil_proba"].to_numpy() for adata in (slides, turned))
    np.testing.assert_array_equal(after[fold == 0], as_it_is[fold == 0])
    assert (after[fold == 1] != as_it_is[fold == 1]).any()


def test_gaps_are_counted_and_left_out():
    slides, tiles = cohort(14)
    slides.obs.loc[["S0", "S7"], "mutation"] = None
    in_s3, in_s4 = (np.flatnonzero(tiles.obs["slide"] == name) for name in ("S3", "S4"))
    tiles.obsm["X_image"][in_s3[1:]] = np.nan  # one tile is left
    tiles.obs["slide"] = tiles.obs["slide"].astype(str).replace({"S4": "elsewhere"})
    slides.obs["patient"] = slides.obs["patient"].where(slides.obs_names != "S0")  # of no matter without a label
    tiles.obs.loc[tiles.obs_names[:2], "slide"] = None
    lost = int(tiles.obs["slide"].isna().sum() + (tiles.obs["slide"] == "elsewhere").sum())
    with pytest.warns(UserWarning) as said:
        scores = stfuse.tl.mil(slides, tiles, **KEYS, groups="patient", **QUICK)
    text = " ".join(str(w.message) for w in said)
    assert "1 of 14 slide(s) have no tile with features (for example 'S4')" in text
    assert f"{lost} of {tiles.n_obs} tile(s) are of slides that are not in slides.obs_names" in text
    counts = slides.uns["mil"]["n_obs"]
    assert (counts["slides"], counts["slides_without_tiles"], counts["slides_labelled"]) == (14, 1, 11)
    assert counts["tiles_of_unknown_slides"] == lost and counts["tiles_without_features"] >= len(in_s3) - 3
    assert scores["n_slides"].iloc[-1] == 11
    told = slides.obsm["mil_proba"]
    assert told.loc["S4"].isna().all() and told.drop("S4").notna().all(axis=None)
    assert np.isnan(slides.obsm["X_mil"][4]).all() and np.isfinite(np.delete(slides.obsm["X_mil"], 4, 0)).all()
    assert (
        slides.obs["mil_predicted"]["S4"] == "unassigned" and (slides.obs["mil_predicted"] == "unassigned").sum() == 1
    )
    assert (slides.obs["mil_fold"] == -1).sum() == 3 and slides.obs["mil_fold"]["S0"] == -1
    attention = tiles.obs["mil_attention"]
    assert attention.iloc[in_s4].isna().all() and attention.iloc[in_s3[0]] in (1, pytest.approx(1)) or in_s3[0] < 2


def test_several_classes_numbers_as_names_and_early_stopping():
    slides, tiles = cohort(30)
    slides.obs["grade"] = [1.0, 2.0, 3.0] * 10
    slides.obs_names = [name[1:] for name in slides.obs_names]
    tiles.obs["number"] = pd.Series(tiles.obs["slide"]).str[1:].astype(int)
    settings = {"slide_key": "number", "label_key": "grade"} | QUICK | {"n_tiles": None, "patience": 1}
    scores, model = stfuse.tl.mil(slides, tiles, return_model=True, class_weight=None, **settings)
    assert list(slides.obsm["mil_proba"]) == ["1", "2", "3"] and scores["n_slides"].iloc[-1] == 30
    assert model.report_["n_held_out"] == 6 and "held_out_loss" in model.history


def test_auroc_of_several_classes_is_the_mean_against_the_rest():
    rng = np.random.default_rng(0)
    true, told = rng.integers(0, 3, 50), rng.dirichlet(np.ones(3), 50)
    assert auroc(true, told) == pytest.approx(roc_auc_score(true, told, multi_class="ovr"))
    assert np.isnan(auroc(np.zeros(4, int), told[:4]))


def test_copies_and_the_seed():
    slides, tiles = cohort(12)
    new_slides, new_tiles, scores = stfuse.tl.mil(slides, tiles, **KEYS, copy=True, **QUICK)
    assert not slides.obsm and not slides.uns and "mil_attention" not in tiles.obs
    again = stfuse.tl.mil(slides, tiles, **KEYS, **QUICK)
    pd.testing.assert_frame_equal(again, scores)
    np.testing.assert_array_equal(slides.obsm["mil_proba"], new_slides.obsm["mil_proba"])
    np.testing.assert_array_equal(tiles.obs["mil_attention"], new_tiles.obs["mil_attention"])
    stfuse.tl.mil(slides, tiles, **KEYS, seed=1, **QUICK)  # over its own earlier result
    assert (slides.obsm["mil_proba"].to_numpy() != new_slides.obsm["mil_proba"].to_numpy()).any()


def one_class(slides, tiles):
    slides.obs["mutation"] = "wild"


def infinite(slides, tiles):
    tiles.obsm["X_image"][3, 1] = np.inf


def strangers(slides, tiles):
    slides.obs_names = [f"slide {i}" for i in range(slides.n_obs)]


def twins(slides, tiles):
    slides.obs_names = ["S0", *slides.obs_names[:-1]]


def lonely_class(slides, tiles):
    slides.obs["mutation"] = ["TP53/mut", *["wild"] * 11]


def no_patient(slides, tiles):
    slides.obs.loc["S3", "patient"] = None


def foreign(slides, tiles):
    tiles.obs["mil_attention"] = 1.0


def decimals(slides, tiles):
    slides.obs["mutation"] = np.linspace(0, 1, 12)


@pytest.mark.filterwarnings("ignore:Observation names are not unique")
@pytest.mark.parametrize(
    ("spoil", "arguments", "message"),
    [
        (one_class, {}, "has one class \\('wild'\\).* at least two are needed"),
        (lonely_class, {}, "a class has too few .*Use fewer folds, or add slides"),
        (infinite, {}, "infinite values"),
        (strangers, {}, "such as 'S0'.* is a name of slides.obs_names, such as 'slide 0'"),
        (twins, {}, "obs_names of slides are not unique"),
        (no_patient, {}, "1 missing value\\(s\\) among labelled slides"),
        (foreign, {}, "would overwrite tiles's 'mil_attention', which this function did not write"),
        (decimals, {}, "decimal numbers"),
        (None, {"n_splits": 7}, "There are 6 group in 'patient'\\(s\\).*use n_splits=6 or fewer"),
        (None, {"n_splits": 7, "groups": None}, "6 slides of the commonest class.*use n_splits=6 or fewer"),
        (
            None,
            {"label_key": "mutations"},
            "No column 'mutations' \\(label_key\\) in slides.obs. Did you mean 'mutation'",
        ),
        (None, {"slide_key": "slides"}, "\\(slide_key\\) in tiles.obs. Did you mean 'slide'"),
        (None, {"groups": "person"}, "\\(groups\\) in slides.obs"),
        (None, {"image_key": "X_uni"}, "No tiles.obsm\\['X_uni'\\].* There is 'X_image'"),
        (None, {"key_added": "a/b"}, "slash"),
        (None, {"n_splits": 1}, "n_splits"),
        (None, {"n_tiles": 0}, "n_tiles"),
        (None, {"device": "gpus"}, "device"),
        (None, {"class_weight": "even"}, "class_weight"),
        (None, {"copy": "no"}, "copy"),
        (None, {"patience": 2}, "leave patience=None"),
        (None, {"n_hidden": -1}, "n_hidden"),
        (None, {"lr": 0}, "lr"),
    ],
)
def test_bad_input_changes_nothing(spoil, arguments, message, contents):
    slides, tiles = cohort(12)
    if spoil:
        spoil(slides, tiles)
    before = contents(slides), contents(tiles)
    call = KEYS | {"groups": "patient"} | QUICK | arguments
    with pytest.raises((ValueError, KeyError, TypeError), match=message):
        stfuse.tl.mil(slides, tiles, **call)
    for old, new in zip(before, (contents(slides), contents(tiles)), strict=True):
        np.testing.assert_equal(new, old)


def test_an_interrupted_training_changes_nothing(monkeypatch, contents):
    slides, tiles = cohort(12)
    before = contents(slides), contents(tiles)

    def stop(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(stfuse.model.ABMIL, "codes", stop)
    with pytest.raises(KeyboardInterrupt):
        stfuse.tl.mil(slides, tiles, **KEYS, **QUICK)
    np.testing.assert_equal((contents(slides), contents(tiles)), before)


def test_other_objects_are_refused():
    slides, tiles = cohort(12)
    with pytest.raises(TypeError, match="tiles must be an AnnData, got DataFrame"):
        stfuse.tl.mil(slides, tiles.obs, **KEYS)


def test_a_class_of_one_patient_is_warned_of():
    slides, tiles = cohort(16)
    slides.obs["mutation"] = ["rare", "rare", *slides.obs["mutation"][2:]]
    with pytest.warns(UserWarning, match="1 class\\(es\\), for example 'rare', occur in one fold only"):
        scores = stfuse.tl.mil(slides, tiles, **KEYS, groups="patient", **QUICK)
    fold = slides.obs["mil_fold"]["S0"]
    assert (slides.obsm["mil_proba"]["rare"][slides.obs["mil_fold"] == fold] == 0).all()
    assert scores["auroc"].notna().all()
