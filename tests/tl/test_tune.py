import functools
import itertools
import sys

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from mudata import MuData
from sklearn.metrics import adjusted_rand_score

import stfuse
from stfuse import _registry
from stfuse.metrics import integration_scores
from stfuse.tl import _tune, _tune_cohort
from stfuse.tl._tune_grid import read_grid

WITHOUT = "ignore:iLISI and kBET are left out"
GRID = {"n_components": [3, 8], "domains.refine": [True, False]}
CALL = {"groups": "donor", "label_key": "domain", "library_key": "section", "grid": GRID}


def cohort():
    """Three donors of two sections, 40 spots each."""
    adata = stfuse.datasets.synthetic_tissue(
        240, 6, n_classes=(3, 1, 1), n_genes=60, n_image_features=12, domain_strength=2.0, batch_effect=1.0, seed=3
    )
    adata.obs["donor"] = pd.Categorical(np.array(["A", "B", "C"])[adata.obs["section"].cat.codes.to_numpy() // 2])
    adata.obs["domain"] = adata.obs["domain"].astype(str).astype("category")
    return adata


@pytest.fixture(scope="module")
def prepared():
    return cohort()


@pytest.fixture
def adata(prepared):
    return prepared.copy()


@pytest.fixture
def alone(monkeypatch):
    """Without scib-metrics, which takes seconds to compile."""
    monkeypatch.setitem(sys.modules, "scib_metrics", None)


pytestmark = pytest.mark.filterwarnings(WITHOUT)


def results(data):
    """Table without what a clock decides."""
    return data.uns["tune"].drop(columns="seconds")


# what is written


@pytest.mark.usefixtures("alone")
def test_writes_a_table_and_nothing_else(adata, assert_same, tmp_path):
    before = adata.copy()
    assert stfuse.tl.tune(adata, "concat", **CALL) is None
    table, record = adata.uns["tune"], adata.uns["tune_params"]
    assert list(table.columns) == [
        *("fold", "stage", "donors", "n_components", "domains.refine", "n_clusters"),
        *("ari", "nmi", "silhouette", "ilisi", "kbet", "score", "donor_ari", "seconds"),
    ]
    assert table["stage"].tolist() == (["tune"] * 4 + ["test"]) * 3
    assert table["donors"].unique().tolist() == ["B, C", "A", "A, C", "B", "A, B", "C"]
    tried = table.loc[table["stage"] == "tune", list(GRID)]
    assert list(tried.itertuples(index=False, name=None)) == list(itertools.product(*GRID.values())) * 3
    assert (table["seconds"] > 0).all() and table["score"].between(0, 1).all()
    assert set(record["best"]) == {"concat", "domains", "correct_batch"} and record["n_folds"] == 3
    assert record["scores"] == ["ari", "nmi", "silhouette"] and record["batch_column"] == "section"

    adata.write_h5ad(tmp_path / "a.h5ad")
    back = ad.read_h5ad(tmp_path / "a.h5ad")
    pd.testing.assert_frame_equal(back.uns["tune"], table)
    best = back.uns["tune_params"]["best"]
    stfuse.tl.concat(back, **best["concat"])
    stfuse.tl.domains(back, use_rep="X_concat", n_clusters=3, library_key="section", neighbors=False, **best["domains"])
    del adata.uns["tune"], adata.uns["tune_params"]
    assert_same(adata, before)


@pytest.mark.usefixtures("alone")
def test_copy_names_and_own_results(adata, assert_same):
    before = adata.copy()
    out = stfuse.tl.tune(adata, "concat", copy=True, key_added="mine", **CALL)
    assert_same(adata, before)
    assert {"mine", "mine_params"} <= set(out.uns) and "tune" not in out.uns
    stfuse.tl.tune(out, "concat", key_added="mine", **CALL | {"grid": {"n_components": [4]}})
    assert len(out.uns["mine"]) == 6
    adata.uns["notes"] = {"a": 1}
    with pytest.raises(ValueError, match="key_added='notes' would overwrite"):
        stfuse.tl.tune(adata, "concat", key_added="notes", **CALL)
    with pytest.raises(ValueError, match="slash"):
        stfuse.tl.tune(adata, "concat", key_added="a/b", **CALL)


def test_columns_hold_numbers_booleans_or_text():
    grid = read_grid({"rna_key": ["X_pca"], "scale": [None, True], "domains.n_neighbors_refine": [4, 6]}, "concat", {})
    columns = pd.DataFrame(grid.columns(grid.combinations()))
    assert columns.dtypes["domains.n_neighbors_refine"] == np.int64
    assert columns["scale"].tolist() == ["None", "None", "True", "True"]
    numbers = read_grid({"image_weight": [0, 1.5], "reference": [True, False]}, "aestetik", {})
    assert pd.DataFrame(numbers.columns(numbers.combinations())).dtypes.tolist() == [np.float64, bool]


# what is computed


def by_hand(adata, donors, n_components, refine, theta=None, n_clusters=3):
    """One row of the table, with the public functions."""
    part = adata[adata.obs["donor"].isin(donors)].copy()
    keys = {"image_key": "X_image", "rna_key": "X_pca"}
    if theta is not None:
        for name, key in keys.items():
            stfuse.pp.correct_batch(part, key, batch_key="section", theta=theta, key_added=f"{key}_c")
            keys[name] = f"{key}_c"
    stfuse.tl.concat(part, library_key="section", n_components=n_components, **keys)
    stfuse.tl.domains(
        part, use_rep="X_concat", n_clusters=n_clusters, refine=refine, library_key="section", neighbors=False
    )
    found = part.obs["concat_domain"]
    scores = integration_scores(part.obsm["X_concat"], part.obs["section"], part.obs["domain"], found)
    donor = adjusted_rand_score(part.obs["donor"], found) if len(donors) > 1 else np.nan
    return scores | {"donor_ari": donor}


@pytest.mark.usefixtures("alone")
def test_every_row_is_a_run_on_these_donors_alone(adata):
    grid = {"domains.refine": [True, False], "n_components": [3, 8], "correct_batch.theta": [0.5, 4]}
    stfuse.tl.tune(adata, "concat", **CALL | {"grid": grid})
    table = adata.uns["tune"]
    for row in table.iloc[[0, 3, 6, 8, 9, 26]].to_dict("records"):
        expected = by_hand(
            adata,
            row["donors"].split(", "),
            row["n_components"],
            row["domains.refine"],
            row["correct_batch.theta"],
        )
        assert {name: row[name] for name in expected} == pytest.approx(expected, nan_ok=True)
    for _, fold in table.groupby("fold"):
        best = fold[fold["stage"] == "tune"].sort_values("score", ascending=False, kind="stable").iloc[0]
        test = fold[fold["stage"] == "test"].iloc[0]
        assert best[list(grid)].tolist() == test[list(grid)].tolist()
        assert not set(best["donors"].split(", ")) & set(test["donors"].split(", "))


def test_mixing_enters_the_score(adata):
    adata.obs["donor"] = adata.obs["section"]  # two sets of equal size, compiled once
    stfuse.tl.tune(adata, "concat", **CALL | {"grid": {"n_components": [3]}}, bio_weight=0.25, n_splits=2)
    table, record = adata.uns["tune"], adata.uns["tune_params"]
    assert record["scores"] == ["ari", "nmi", "silhouette", "ilisi", "kbet"] and "scib-metrics" in record["versions"]
    row = table.iloc[0].to_dict()
    expected = by_hand(adata, row["donors"].split(", "), 3, True)
    assert row["ilisi"] == pytest.approx(expected["ilisi"]) and row["kbet"] == pytest.approx(expected["kbet"])
    bio = np.mean([row[name] for name in ("ari", "nmi", "silhouette")])
    assert row["score"] == pytest.approx(0.25 * bio + 0.75 * (row["ilisi"] + row["kbet"]) / 2)


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("method", ["concat", "pcca"])
def test_test_donors_have_no_part_in_the_choice(adata, method):
    call = CALL | {"grid": GRID | {"correct_batch.theta": [1, 4]}, "n_clusters": 3}
    stfuse.tl.tune(adata, method, **call)
    poisoned, rows = adata.copy(), (adata.obs["donor"] == "A").to_numpy()
    rng = np.random.default_rng(0)
    poisoned.obs.loc[rows, "domain"] = None
    for key in ("X_image", "X_pca"):
        poisoned.obsm[key][rows] = rng.normal(size=(rows.sum(), poisoned.obsm[key].shape[1])) * 100 + 7
        poisoned.obsm[key][np.flatnonzero(rows)[:20]] = np.nan
    poisoned.obsm["spatial"][rows] = np.nan
    with pytest.warns(UserWarning, match="no two different labels in donor"):
        stfuse.tl.tune(poisoned, method, **call)
    clean, dirty = (results(a).query("fold == '0'") for a in (adata, poisoned))
    names = list(call["grid"])
    pd.testing.assert_frame_equal(clean.query("stage == 'tune'"), dirty.query("stage == 'tune'"))
    pd.testing.assert_frame_equal(clean.query("stage == 'test'")[names], dirty.query("stage == 'test'")[names])
    assert clean["silhouette"].iloc[-1] != dirty["silhouette"].iloc[-1]
    # where the same donor is one to choose on, the poison shows
    assert not results(adata).query("fold == '1'").equals(results(poisoned).query("fold == '1'"))


@pytest.mark.usefixtures("alone")
def test_work_is_not_repeated(adata, monkeypatch):
    calls = {"correct": 0, "method": 0}

    def counted(name, function):
        @functools.wraps(function)
        def wrapper(*args, **kwargs):
            calls[name] += 1
            return function(*args, **kwargs)

        return wrapper

    monkeypatch.setattr(stfuse.tl, "concat", counted("method", stfuse.tl.concat))
    monkeypatch.setattr(_tune_cohort, "correct_batch", counted("correct", _tune_cohort.correct_batch))
    stfuse.tl.tune(adata, "concat", **CALL | {"grid": GRID | {"correct_batch.theta": [1, 2, 4]}})
    # three folds: two codes for each of three corrections and one test, each correction of two views
    assert calls == {"method": 3 * (6 + 1), "correct": 3 * 2 * (3 + 1)}


@pytest.mark.usefixtures("alone")
def test_methods_see_no_labels_and_get_the_number_of_domains(adata, monkeypatch):
    seen = []

    def fake(
        data,
        *,
        image_key="X_image",
        rna_key="X_pca",
        batch_key=None,
        library_key=None,
        n_clusters,
        a=0,
        key_added="fake",
    ):
        seen.append((n_clusters, batch_key, sorted(data.obs), data.n_obs, a))
        data.obsm["X_fake"] = data.obsm[rna_key]

    monkeypatch.setitem(_registry.METHODS, "fake", _registry.METHODS["concat"])
    monkeypatch.setattr(stfuse.tl, "fake", fake, raising=False)
    adata.obs.loc[adata.obs["donor"] == "A", "domain"] = [adata.obs["domain"].cat.categories[i % 2] for i in range(80)]
    call = CALL | {"grid": {"domains.method": ["kmeans", "gmm"]}}
    stfuse.tl.tune(adata, "fake", a=5, **call)
    columns = ["section"]
    assert seen[:2] == [(3, None, columns, 160, 5), (2, None, columns, 80, 5)]
    assert adata.uns["tune"]["n_clusters"].tolist()[:3] == [3, 3, 2]
    seen.clear()
    stfuse.tl.tune(adata, "fake", n_clusters=4, batch_key="donor", **call)
    assert seen[0] == (4, "donor", ["donor", "section"], 160, 0)
    seen.clear()
    # what is corrected before is not corrected again
    stfuse.tl.tune(adata, "fake", correct="harmony", batch_key="section", **call)
    assert seen[0][1] is None


@pytest.mark.usefixtures("alone")
def test_views_may_be_in_the_grid(adata):
    adata.obsm["X_noise"] = np.random.default_rng(0).normal(size=(240, 12))
    grid = {"rna_key": ["X_noise", "X_pca"], "n_components": [5]}
    stfuse.tl.tune(adata, "concat", batch_key="section", **CALL | {"grid": grid})
    assert adata.uns["tune_params"]["best"]["concat"] == {"rna_key": "X_pca", "n_components": 5}
    assert adata.uns["tune_params"]["n_chosen"] == 3


@pytest.mark.usefixtures("alone")
def test_one_donor_to_choose_on_and_each_other_by_itself(adata):
    stfuse.tl.tune(adata, "concat", task="single-donor", **CALL | {"grid": {"n_components": [3, 8]}})
    table = adata.uns["tune"]
    assert table.loc[table["stage"] == "tune", "donors"].tolist() == list("AABBCC")
    assert table.loc[table["stage"] == "test", "donors"].tolist() == list("BCACAB")
    assert table["donor_ari"].isna().all()


@pytest.mark.usefixtures("alone")
def test_folds_of_several_donors(adata):
    adata.obs["donor"] = adata.obs["section"]
    stfuse.tl.tune(adata, "concat", n_splits=2, **CALL)
    test = adata.uns["tune"].query("stage == 'test'")
    donors = [set(names.split(", ")) for names in test["donors"]]
    assert len(donors) == 2 and not donors[0] & donors[1] and len(donors[0] | donors[1]) == 6
    assert test["donor_ari"].notna().all()


@pytest.mark.usefixtures("alone")
def test_without_labels_the_domains_that_were_found_are_scored(adata):
    stfuse.tl.tune(adata, "concat", groups="donor", grid=GRID, n_clusters=3, library_key="section")
    table = adata.uns["tune"]
    assert table["ari"].isna().all() and (table["score"] == table["silhouette"]).all()


def test_the_choice_of_most_folds_and_of_equals_the_better():
    means = np.array([0.5, 0.9, 0.6])
    assert _tune._most_chosen([0, 0, 1], means) == (0, 2)
    assert _tune._most_chosen([0, 2], means) == (2, 1)


def test_the_published_grid():
    grid = read_grid(None, "aestetik", {})
    assert len(grid.combinations()) == 5 * 2 * 2
    assert grid.values["image_weight"] == [0, 1, 1.5, 2, 3] and grid.values["window_size"] == [5, 7]
    assert "window_size" not in read_grid(None, "aestetik", {"window_size": 3}).values


@pytest.mark.usefixtures("alone")
def test_mudata_and_spatialdata(adata):
    spatialdata = pytest.importorskip("spatialdata")
    stfuse.tl.tune(adata, "concat", **CALL)
    expected = results(adata)
    del adata.uns["tune"], adata.uns["tune_params"]
    parts = {}
    for name, key in (("image", "X_image"), ("rna", "X_pca")):
        parts[name] = ad.AnnData(obs=adata.obs[["donor", "domain", "section"]].copy())
        parts[name].obsm[key], parts[name].obsm["spatial"] = adata.obsm[key], adata.obsm["spatial"]
    mdata = MuData(parts)
    stfuse.tl.tune(mdata, "concat", **CALL)
    pd.testing.assert_frame_equal(results(mdata), expected)
    sdata = spatialdata.SpatialData(tables={"spots": adata})
    out = stfuse.tl.tune(sdata, "concat", copy=True, **CALL)
    pd.testing.assert_frame_equal(results(out.tables["spots"]), expected)
    assert "tune" not in adata.uns
    with pytest.raises(ValueError, match="not from a MuData"):
        stfuse.tl.tune(mdata, "concat", correct="scvi", **CALL)


@pytest.mark.slow  # trains networks
@pytest.mark.usefixtures("alone")
def test_scvi_corrects_the_counts_of_each_set(adata):
    grid = {"correct_batch.n_layers": [1, 2], "correct_batch.max_epochs": [2]}
    stfuse.tl.tune(adata, "concat", correct="scvi", n_components=5, **CALL | {"grid": grid})
    table = adata.uns["tune"]
    assert len(table) == 9 and table["score"].between(0, 1).all()
    assert table["silhouette"].iloc[0] != table["silhouette"].iloc[1]


@pytest.mark.slow  # image features
def test_two_individuals_of_the_olfactory_bulb():
    adata = stfuse.datasets.mob()
    stfuse.pp.rna_features(adata, n_comps=20)
    stfuse.pp.image_features(adata, library_key="section")
    call = {"groups": "individual", "label_key": "layer", "library_key": "section"}
    stfuse.tl.tune(adata, "concat", grid={"n_components": [5, 20]}, **call)
    plain = adata.uns["tune"].query("stage == 'test'")
    stfuse.tl.tune(adata, "concat", grid={"n_components": [5, 20]}, correct="harmony", **call)
    corrected = adata.uns["tune"].query("stage == 'test'")
    assert (corrected["ari"] > 0.2).all() and (plain["ari"] > 0.2).all()
    for score in ("ilisi", "kbet"):
        assert (corrected[score].to_numpy() > plain[score].to_numpy() + 0.03).all()


# warnings


def test_tuning_sets_of_one_batch_are_told(adata):
    two = adata[adata.obs["donor"] != "C"].copy()
    with pytest.warns(
        UserWarning, match=r"In 2 of 2 folds the tuning set has a single batch of obs\['donor'\]"
    ) as caught:
        stfuse.tl.tune(two, "concat", **CALL | {"library_key": None, "grid": {"domains.refine": [False]}})
    assert [w.filename for w in caught if "single batch" in str(w.message)] == [__file__]
    assert two.uns["tune"]["ilisi"].isna().all()


def test_a_batch_of_one_observation_is_told(adata, alone):
    adata.obs["batch"] = adata.obs["section"].astype(str)
    adata.obs.iloc[0, adata.obs.columns.get_loc("batch")] = "lonely"
    with pytest.warns(UserWarning, match=r"1 batch\(es\) of obs\['batch'\] have a single observation"):
        stfuse.tl.tune(adata, "concat", batch_key="batch", **CALL | {"grid": {"n_components": [3]}})


def test_missing_scores_are_told_once(adata, alone):
    with pytest.warns(UserWarning) as caught:
        stfuse.tl.tune(adata, "concat", **CALL)
    told = [str(w.message) for w in caught if "scib-metrics" in str(w.message)]
    assert len(told) == 1 and "stfuse[scores]" in told[0]


# bad input


BAD = {
    "unknown method": ({"method": "concatt"}, ValueError, "Unknown method 'concatt'. Did you mean 'concat'"),
    "method type": ({"method": 3}, TypeError, "method must be a string"),
    "no grid": ({"grid": None}, ValueError, "no published grid for method='concat'"),
    "grid type": ({"grid": [1]}, TypeError, "grid must be a dict of lists"),
    "empty grid": ({"grid": {}}, ValueError, "grid is empty"),
    "empty list": ({"grid": {"n_components": []}}, ValueError, r"grid\['n_components'\] is empty"),
    "no list": ({"grid": {"n_components": 3}}, TypeError, r"grid\['n_components'\] must be a list.*got 3"),
    "text": ({"grid": {"domains.method": "gmm"}}, TypeError, "must be a list"),
    "twice": ({"grid": {"n_components": [3, 5, 3]}}, ValueError, "has 3 twice"),
    "misspelt": ({"grid": {"n_component": [3]}}, ValueError, "'n_component', which can't.*Did you mean 'n_components'"),
    "no prefix": ({"grid": {"refine": [True]}}, ValueError, r"Did you mean 'domains\.refine'"),
    "wrong step": ({"grid": {"domains.theta": [1]}}, ValueError, "'domains.theta', which can't be tuned"),
    "own": ({"grid": {"seed": [1, 2]}}, ValueError, "'seed' can't be in the grid"),
    "both": ({"n_components": 3}, ValueError, "'n_components' is in the grid and given as an argument"),
    "fixed unknown": ({"n_component": 3}, TypeError, "'n_component' is no argument.*Did you mean 'n_components'"),
    "fixed own": ({"return_model": True}, ValueError, "return_model= is given to stfuse.tl.concat by tune itself"),
    "correct": ({"correct": "combat"}, ValueError, "method must be one of 'harmony'"),
    "theta": ({"grid": {"correct_batch.theta": [1, -1]}}, ValueError, "theta must be a number of at least 0"),
    "parameter of another": (
        {"correct": "scanorama", "grid": {"correct_batch.theta": [1]}},
        ValueError,
        "belongs to method='harmony'",
    ),
    "corrected twice": (
        {"correct": "harmony", "grid": {"correct_batch.method": ["harmony"]}},
        ValueError,
        "leave one out",
    ),
    "task": ({"task": "all"}, ValueError, "task must be one of 'multi-donor', 'single-donor'"),
    "bio_weight": ({"bio_weight": 1.1}, ValueError, "bio_weight must be a number between 0 and 1"),
    "n_splits": ({"n_splits": 4}, ValueError, "n_splits=4 is more than the 3 donors"),
    "one split": ({"n_splits": 1}, ValueError, "n_splits must be a whole number of at least 2"),
    "splits of one": ({"n_splits": 2, "task": "single-donor"}, ValueError, "n_splits belongs to"),
    "seed": ({"seed": -1}, ValueError, "seed must be"),
    "copy": ({"copy": "no"}, TypeError, "copy must be True or False"),
    "groups": ({"groups": "donors"}, KeyError, "Did you mean 'donor'"),
    "label": ({"label_key": "layers"}, KeyError, "layers"),
    "no number": ({"label_key": None}, ValueError, "give n_clusters="),
    "many": ({"n_clusters": 100}, ValueError, r"80 observation\(s\) of donor\(s\) A can't be put into 100 domains"),
    "one domain": ({"n_clusters": 1}, ValueError, "n_clusters must be a whole number of at least 2"),
    "view": ({"image_key": "X_uni"}, KeyError, "X_uni.*Tuning makes no views"),
    "late": ({"grid": {"n_components": [3, 0]}}, ValueError, "n_components must be"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_arguments(case, adata, assert_same, alone):
    change, error, match = BAD[case]
    call = {"method": "concat"} | CALL | change
    before = adata.copy()
    with pytest.raises(error, match=match):
        stfuse.tl.tune(adata, **call)
    assert_same(adata, before)


def test_bad_columns(adata, assert_same, alone):
    adata.obs["one"], adata.obs["nothing"] = "A", np.nan
    adata.obs["gap"] = adata.obs["donor"].where(np.arange(240) > 2)
    adata.obs["half"] = adata.obs["domain"].where(adata.obs["donor"] != "B")
    before = adata.copy()
    for change, match in (
        ({"groups": "one"}, "one donor only, 'A'"),
        ({"groups": "gap"}, r"obs\['gap'\] \(groups\) has 3 missing"),
        ({"batch_key": "gap"}, r"obs\['gap'\] \(batch_key\) has 3 missing"),
        ({"label_key": "nothing"}, r"Every value of obs\['nothing'\] \(label_key\) is missing"),
        ({"label_key": "half"}, r"has 0 label\(s\) among the 80 observation\(s\) of donor\(s\) B.*n_clusters="),
        ({"bio_weight": 0}, "bio_weight=0 scores nothing but mixing, and scib-metrics is not installed"),
    ):
        with pytest.raises(ValueError, match=match):
            stfuse.tl.tune(adata, "concat", **CALL | change)
    del adata.obsm["X_pca"], before.obsm["X_pca"]
    with pytest.raises(KeyError, match="X_pca.*rna_features"):
        stfuse.tl.tune(adata, "concat", **CALL)
    assert_same(adata, before)
