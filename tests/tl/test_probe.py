import warnings

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score, f1_score, r2_score
from sklearn.model_selection import GroupKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import stfuse
from stfuse._folds import group_folds, random_folds, spatial_folds
from stfuse._shots import draw_shots


@pytest.fixture
def tissue():
    return stfuse.datasets.synthetic_tissue(450, 3, n_classes=(3, 1, 2), n_genes=80, domain_strength=2.0, seed=1)


def test_logistic_is_scikit_learns(tissue):
    scores = stfuse.tl.probe(tissue, use_rep="X_pca", label_key="domain", groups="section", n_splits=3)
    x, y, groups = tissue.obsm["X_pca"], tissue.obs["domain"].astype(str), tissue.obs["section"].astype(str)
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))
    expected = cross_val_predict(model, x, y, groups=groups, cv=GroupKFold(3))
    assert (tissue.obs["pca_probe_domain"].astype(str) == expected).mean() > 0.995
    pooled = scores.set_index("fold").loc["pooled"]
    assert pooled["macro_f1"] == pytest.approx(f1_score(y, tissue.obs["pca_probe_domain"], average="macro"))
    assert pooled["micro_f1"] == pytest.approx((y == tissue.obs["pca_probe_domain"].astype(str)).mean())
    assert pooled["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(y, tissue.obs["pca_probe_domain"]))
    assert pooled["n_obs"] == 450 and list(scores["fold"]) == ["0", "1", "2", "pooled"]


def test_linear_trains_long_enough_to_reach_the_same(tissue):
    call = {"use_rep": "X_pca", "label_key": "class_shared", "groups": "section", "n_splits": 3}
    logistic = stfuse.tl.probe(tissue, **call)["macro_f1"].iloc[-1]
    paper = stfuse.tl.probe(tissue, model="linear", key_added="a", **call)["macro_f1"].iloc[-1]
    longer = stfuse.tl.probe(tissue, model="linear", max_epochs=200, lr=1e-2, key_added="b", **call)["macro_f1"].iloc[
        -1
    ]
    converged = stfuse.tl.probe(tissue, model="linear", converged=True, lr=1e-2, key_added="c", **call)
    assert paper < longer
    assert longer == pytest.approx(logistic, abs=0.05)
    assert converged["macro_f1"].iloc[-1] == pytest.approx(logistic, abs=0.05)


def test_shots_are_few_of_each_class_from_the_training_fold(tissue):
    call = {"use_rep": "X_pca", "label_key": "domain", "seed": 3}
    one = stfuse.tl.probe(tissue, shots=4, n_draws=1, **call)
    first = tissue.obs["pca_probe_domain"].copy()
    many = stfuse.tl.probe(tissue, shots=4, n_draws=6, **call)
    assert (tissue.obs["pca_probe_domain"] == first).all() and not np.allclose(one["macro_f1"], many["macro_f1"])
    full = stfuse.tl.probe(tissue, **call)
    columns = ["macro_f1", "micro_f1", "balanced_accuracy"]
    assert (many[columns].iloc[-1] < full[columns].iloc[-1]).all() and many["micro_f1"].iloc[-1] > 2 / 6
    # by hand: a head trained on the shots of the first fold
    codes, x = tissue.obs["domain"].cat.codes.to_numpy(), tissue.obsm["X_pca"]
    fold = random_folds(codes.astype(int), 450, 5, 3)
    train = np.flatnonzero(fold != 0)
    rows = train[draw_shots(codes[train], 4, np.random.default_rng([3, 0]))]
    assert len(rows) == len(set(rows)) == 24 and (fold[rows] != 0).all()
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000)).fit(x[rows], codes[rows])
    assert (first.cat.codes.to_numpy()[fold == 0] == model.predict(x[fold == 0])).mean() > 0.98


def test_shots_of_values_and_of_groups(tissue):
    call = {"use_rep": "X_pca", "groups": "section", "n_splits": 3}
    few = stfuse.tl.probe(tissue, target_obsm="shared", shots=15, **call)["r2"].iloc[-1]
    assert few < stfuse.tl.probe(tissue, target_obsm="shared", **call)["r2"].iloc[-1]
    scores = stfuse.tl.probe(tissue, label_key="domain", shots=2, model="linear", **call)
    assert list(scores["fold"]) == ["0", "1", "2", "pooled"]


def test_same_seed_same_predictions_and_the_global_generator_is_left_alone(tissue):
    import torch

    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    call = {"use_rep": "X_pca", "label_key": "domain", "model": "linear", "seed": 4}
    stfuse.tl.probe(tissue, key_added="a", **call)
    assert torch.equal(torch.rand(3), expected)
    stfuse.tl.probe(tissue, key_added="b", **call)
    assert (tissue.obs["a"] == tissue.obs["b"]).all()


@pytest.mark.parametrize("model", ["logistic", "linear"])
def test_regression(tissue, model):
    kwargs = {"model": model, "converged": True, "lr": 1e-2}
    scores = stfuse.tl.probe(tissue, use_rep="X_pca", target_obsm="shared", **kwargs)
    assert scores["r2"].iloc[-1] > 0.7
    predicted = tissue.obsm["pca_probe_shared"]
    assert scores["r2"].iloc[-1] == pytest.approx(r2_score(tissue.obsm["shared"], predicted), abs=1e-4)


def test_regression_scale_does_not_matter_and_tables_stay_tables(tissue):
    shared = tissue.obsm["shared"]
    tissue.obsm["small"] = pd.DataFrame(
        shared * 1e-3 + 100, tissue.obs_names, [f"f{i}" for i in range(shared.shape[1])]
    )
    a = stfuse.tl.probe(tissue, use_rep="X_pca", target_obsm="shared", model="linear")
    b = stfuse.tl.probe(tissue, use_rep="X_pca", target_obsm="small", model="linear")
    np.testing.assert_allclose(a["r2"], b["r2"], atol=0.01)
    assert list(tissue.obsm["pca_probe_small"].columns[:2]) == ["f0", "f1"]


def test_nothing_is_learnt_from_noise(tissue):
    rng = np.random.default_rng(0)
    tissue.obsm["X_noise"] = rng.normal(size=(450, 20))
    tissue.obs["coin"] = rng.choice(["a", "b"], 450)
    scores = stfuse.tl.probe(tissue, use_rep="X_noise", label_key="coin")
    assert scores["macro_f1"].iloc[-1] < 0.6


def test_whole_numbers_with_gaps_are_classes(tissue):
    number = tissue.obs["domain"].astype("category").cat.codes.astype(float)
    tissue.obs["number"] = number.where(np.arange(450) % 7 != 0)
    scores = stfuse.tl.probe(tissue, use_rep="X_pca", label_key="number", n_splits=2)
    out = tissue.obs["pca_probe_number"]
    assert list(out.cat.categories) == ["0", "1", "2", "3", "4", "5", "unassigned"]
    np.testing.assert_array_equal(out == "unassigned", tissue.obs["number"].isna())
    assert scores["micro_f1"].iloc[-1] > 0.5


def test_as_many_folds_as_groups(tissue):
    scores = stfuse.tl.probe(tissue, use_rep="X_pca", label_key="domain", groups="section")
    assert list(scores["fold"]) == ["0", "1", "2", "pooled"]
    assert tissue.uns["pca_probe_domain"]["params"]["n_splits"] == 3


def test_a_label_that_goes_along_with_groups_is_warned_of(tissue):
    with pytest.warns(UserWarning, match="In 3 of 3 folds no class of the held-out"):
        stfuse.tl.probe(tissue, use_rep="X_pca", label_key="section", groups="section")


def test_sections_in_the_same_place_are_warned_of(tissue):
    call = {"use_rep": "X_pca", "label_key": "domain", "splits": "spatial", "n_splits": 2}
    with pytest.warns(UserWarning, match="450 of 450 observations lie exactly.*library_key="):
        stfuse.tl.probe(tissue, **call)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        stfuse.tl.probe(tissue, library_key="section", **call)


def test_missing_codes_and_labels(tissue, tmp_path):
    tissue.obsm["X_pca"][:20] = np.nan
    tissue.obs["label"] = tissue.obs["domain"].astype(object).where(np.arange(450) % 7 != 0)
    scores = stfuse.tl.probe(tissue, use_rep="X_pca", label_key="label")
    out = tissue.obs["pca_probe_label"]
    known = (np.arange(450) >= 20) & tissue.obs["label"].notna()
    np.testing.assert_array_equal(out == "unassigned", ~known)
    assert scores["n_obs"].iloc[-1] == known.sum() == scores["n_obs"].iloc[:-1].sum()
    stfuse.tl.probe(tissue, use_rep="X_pca", target_obsm="shared")
    np.testing.assert_array_equal(np.isnan(tissue.obsm["pca_probe_shared"]).all(1), np.arange(450) < 20)
    tissue.write_h5ad(tmp_path / "a.h5ad")
    back = ad.read_h5ad(tmp_path / "a.h5ad")
    pd.testing.assert_frame_equal(
        back.uns["pca_probe_label"]["scores"], scores, check_index_type=False, check_dtype=False
    )


def test_a_label_called_unassigned(tissue):
    tissue.obs["label"] = np.where(np.arange(450) % 5 == 0, "unassigned", "a")
    tissue.obsm["X_pca"][:10] = np.nan
    stfuse.tl.probe(tissue, use_rep="X_pca", label_key="label")
    assert set(tissue.obs["pca_probe_label"].cat.categories) == {"a", "unassigned"}


def test_rare_classes_and_one_class_folds(tissue):
    label = np.where(tissue.obs["section"] == "section1", "x", "y").astype(object)
    label[:2] = "rare"
    tissue.obs["label"] = label
    assert len(stfuse.tl.probe(tissue, use_rep="X_pca", label_key="label")) == 6
    tissue.obs["label"] = np.where(tissue.obs["section"] == "section1", "x", "y")
    tissue.obs["half"] = tissue.obs["label"]
    for model in ("logistic", "linear"):  # each head has seen one class and can say nothing else
        with pytest.warns(UserWarning, match="2 of 2 folds"):
            scores = stfuse.tl.probe(tissue, use_rep="X_pca", label_key="label", groups="half", n_splits=2, model=model)
        assert scores["micro_f1"].iloc[-1] == 0


def test_whole_numbers_and_booleans_are_classes(tissue):
    tissue.obs["number"] = tissue.obs["domain"].cat.codes.astype(int)
    tissue.obs["flag"] = tissue.obs["number"] > 2
    stfuse.tl.probe(tissue, use_rep="X_pca", label_key="number")
    stfuse.tl.probe(tissue, use_rep="X_pca", label_key="flag")
    assert set(tissue.obs["pca_probe_flag"].cat.categories) == {"False", "True"}


def test_copy(tissue, assert_same):
    before = tissue.copy()
    out, scores = stfuse.tl.probe(tissue, use_rep="X_pca", label_key="domain", copy=True)
    assert_same(tissue, before)
    assert "pca_probe_domain" in out.obs and len(scores) == 6


def test_predictions_are_drawable(tissue):
    stfuse.tl.probe(tissue, use_rep="X_pca", label_key="domain")
    assert list(tissue.obs["pca_probe_domain"].cat.categories) == list(tissue.obs["domain"].cat.categories)


# folds


def test_groups_stay_together():
    groups = np.repeat(np.arange(7), 11)
    fold = group_folds(groups, 3)
    assert all(len(np.unique(fold[groups == g])) == 1 for g in range(7)) and set(fold) == {0, 1, 2}


def test_random_folds_are_stratified_where_possible():
    labels = np.repeat([0, 1], [80, 20])
    fold = random_folds(labels, 100, 5, 0)
    np.testing.assert_array_equal(np.bincount(fold[labels == 1]), 4)
    assert len(np.unique(random_folds(np.arange(10), 10, 3, 0))) == 3  # every class has one member
    np.testing.assert_array_equal(np.bincount(random_folds(None, 10, 5, 0)), 2)


def test_spatial_folds_are_compact_and_in_every_section():
    y, x = np.divmod(np.arange(400), 20)
    spatial = np.vstack([np.column_stack([x, y])] * 2).astype(float)
    section = np.repeat([0, 1], 400)
    fold = spatial_folds(spatial, section, 4, 0)
    for s in (0, 1):
        assert np.bincount(fold[section == s]).min() > 60
        grid = fold[section == s].reshape(20, 20)
        assert (grid[:, 1:] == grid[:, :-1]).mean() > 0.9 and (grid[1:] == grid[:-1]).mean() > 0.9
    np.testing.assert_array_equal(fold[:400], fold[400:])


def test_spatial_split_is_harder_than_random_where_neighbours_are_alike(tissue):
    tissue.obsm["X_place"] = tissue.obsm["spatial"] / 100  # a "code" that only knows where it is
    tissue.obsm["X_place"] = np.hstack([np.cos(tissue.obsm["X_place"] * f) for f in (0.1, 0.2, 0.4)])
    random = stfuse.tl.probe(tissue, use_rep="X_place", label_key="domain", key_added="a")
    spatial = stfuse.tl.probe(
        tissue, use_rep="X_place", label_key="domain", splits="spatial", library_key="section", key_added="b"
    )
    assert spatial["macro_f1"].iloc[-1] < random["macro_f1"].iloc[-1]


@pytest.mark.parametrize(
    ("kwargs", "error", "match"),
    [
        ({}, ValueError, "exactly one"),
        ({"label_key": "domain", "target_obsm": "shared"}, ValueError, "exactly one"),
        ({"label_key": "layer"}, KeyError, "domain"),
        ({"target_obsm": "layer"}, KeyError, "shared"),
        ({"label_key": "domain", "use_rep": "X_cameo"}, KeyError, "X_pca"),
        ({"label_key": "same"}, ValueError, "only one category"),
        ({"label_key": "decimal"}, ValueError, "decimal"),
        ({"label_key": "empty"}, ValueError, "No observation"),
        ({"label_key": "domain", "model": "svm"}, ValueError, "linear, logistic"),
        ({"label_key": "domain", "splits": "time"}, ValueError, "random, groups, spatial"),
        ({"label_key": "domain", "splits": "groups"}, ValueError, "groups="),
        ({"label_key": "domain", "splits": "random", "groups": "section"}, ValueError, "groups="),
        ({"label_key": "domain", "groups": "section", "n_splits": 4}, ValueError, "3 groups, fewer than n_splits=4"),
        ({"label_key": "domain", "groups": "same"}, ValueError, 'leave groups= away and use splits="spatial"'),
        ({"label_key": "domain", "n_splits": "5"}, TypeError, "n_splits must be a whole number.*'5'"),
        ({"label_key": "domain", "lr": "0.1"}, TypeError, "lr must be a number above 0, got '0.1'"),
        ({"label_key": "domain", "max_epochs": 0}, ValueError, "max_epochs must be"),
        ({"label_key": "domain", "converged": "no"}, TypeError, "converged must be True or False"),
        ({"label_key": "domain", "shots": 0}, ValueError, "shots must be a whole number of at least 1 or None, got 0"),
        ({"label_key": "domain", "shots": 2.0}, TypeError, "shots must be"),
        ({"label_key": "domain", "n_draws": 0}, ValueError, "n_draws must be"),
        (
            {"label_key": "domain", "shots": 200},
            ValueError,
            r"Where fold 0 is held out, class '.*' has \d+ obs.*shots=200",
        ),
        ({"target_obsm": "shared", "shots": 1}, ValueError, "shots must be a whole number of at least 2"),
        ({"target_obsm": "shared", "shots": 361}, ValueError, "fold 0 is held out, the target has 360 obs"),
        ({"label_key": "domain", "seed": "a"}, TypeError, "seed must be"),
        ({"label_key": 5}, TypeError, "label_key must be a string"),
        ({"label_key": "names"}, ValueError, "450 different values in 450 observations.*target_obsm="),
        ({"label_key": "twice"}, ValueError, "several categories that read '1'"),
        ({"label_key": "domain", "groups": "holes", "n_splits": 2}, ValueError, "missing"),
        ({"label_key": "domain", "n_splits": 1}, ValueError, "n_splits"),
        ({"label_key": "domain", "n_splits": 451}, ValueError, "n_splits"),
        ({"label_key": "domain", "splits": "spatial", "spatial_key": "xy"}, KeyError, "No obsm.'xy'. with coordinates"),
        ({"label_key": "domain", "key_added": "pca"}, ValueError, "record"),
        ({"label_key": "domain", "key_added": "domain"}, ValueError, "would overwrite what is read as label_key"),
        ({"label_key": "domain", "key_added": "class_rna"}, ValueError, "would overwrite obs.'class_rna'"),
        ({"target_obsm": "shared", "key_added": "X_image"}, ValueError, "would overwrite obsm.'X_image'"),
    ],
)
@pytest.mark.filterwarnings("error")
def test_errors_leave_the_object_alone(tissue, kwargs, error, match, assert_same):
    tissue.obs["same"], tissue.obs["decimal"] = "a", np.linspace(0, 1, 450)
    tissue.obs["names"] = np.arange(450.0)
    tissue.obs["twice"] = pd.Series([1, "1", 2] * 150, index=tissue.obs_names, dtype=object)
    tissue.obs["empty"] = pd.Categorical([None] * 450, categories=["a", "b"])
    tissue.obs["holes"] = pd.Series(["a", None, "b"] * 150, index=tissue.obs_names, dtype=object)
    before = tissue.copy()
    with pytest.raises(error, match=match):
        stfuse.tl.probe(tissue, **{"use_rep": "X_pca", **kwargs})
    assert_same(tissue, before)


def test_layers_of_the_olfactory_bulb_are_read_off_the_expression():
    import scanpy as sc

    adata = stfuse.datasets.mob()
    small = adata.copy()
    sc.pp.normalize_total(small)
    sc.pp.log1p(small)
    sc.pp.pca(small, n_comps=30)
    adata.obsm["X_pca"] = small.obsm["X_pca"]
    scores = stfuse.tl.probe(adata, use_rep="X_pca", label_key="layer", groups="section", n_splits=4)
    assert scores["macro_f1"].iloc[-1] > 0.9
