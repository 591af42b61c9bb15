"""Methods on slides side by side: the same folds and draws, and nothing learnt from those held out."""

import warnings

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from sklearn.decomposition import PCA
from sklearn.metrics import accuracy_score, balanced_accuracy_score, f1_score, roc_auc_score
from sksurv.metrics import concordance_index_censored

import stfuse
from stfuse._survival import bin_edges
from stfuse.tl import _compare_folds, _slide_heads, _slide_methods
from stfuse.tl._slide_heads import logistic
from stfuse.tl._survival_heads import Patients, SurvivalHead, fit_head

NET = {"n_hidden": 8, "n_attention": 4, "max_epochs": 2, "lr": 1e-2, "batch_size": 16}
SMALL = {
    "mirror": {"dim": 16, "max_epochs": 2, "n_prototypes": 10},
    "tangle": {"dim": 16, "n_attention": 4, "max_epochs": 2, "batch_size": 16},
    "concat": {"n_components": 4, "max_features": 4},
    "abmil": NET,
    "bilinear": NET | {"n_gated": 3},
}
ALL = ("mirror", "tangle", "concat", "rna", "image", "abmil", "bilinear")
QUICK = ("concat", "rna", "image")
KEYS = {"slide_key": "slide", "label_key": "subtype", "groups": "patient"}
AS_SURVIVAL = {"time_key": "months", "event_key": "event", "label_key": None}


def cohort(n=48, paired=1.0, seed=1, n_genes=12):
    """Two slides a patient."""
    slides, tiles = stfuse.datasets.synthetic_slides(
        n, n_genes=n_genes, n_tiles=(3, 6), n_image_features=6, paired=paired, seed=seed
    )
    slides.obs["patient"] = [f"p{i // 2}" for i in range(n)]
    return slides, tiles


@pytest.fixture(scope="module")
def data():
    return cohort()


def compare(data, methods=QUICK, n_splits=3, **kwargs):
    params = {name: SMALL[name] for name in methods if name in SMALL}
    options = KEYS | {"n_splits": n_splits, "params": params, "progress": False} | kwargs
    with warnings.catch_warnings():
        # two epochs are too few for pairs to find each other
        warnings.filterwarnings("ignore", message="Held-out slides found their partners no better")
        return stfuse.tl.compare_slides(*data, methods=methods, **options)


class Spy:
    """Notes what heads and networks are trained on, and what is said of which slides."""

    def __init__(self, monkeypatch):
        self.trained, self.told = [], []
        for kind in (_slide_heads.ClassTarget, _slide_heads.SurvivalTarget):
            self._wrap(monkeypatch, kind, "score", lambda of, rows, told: self.told.append((rows, told)))
            self._wrap(monkeypatch, kind, "head", lambda of, code, train, test, fold, seed: self.trained.append(("head", fold, train)))  # fmt: skip
        self._wrap(
            monkeypatch, _slide_methods.Network, "predict",
            lambda of, data, target, fold, train, test, watch: self.trained.append((type(of.settings).__name__, fold, train)),
        )  # fmt: skip

    @staticmethod
    def _wrap(monkeypatch, kind, name, note):
        original = getattr(kind, name)

        def noted(of, *args, **kwargs):
            note(of, *args, **kwargs)
            return original(of, *args, **kwargs)

        monkeypatch.setattr(kind, name, noted)


@pytest.fixture
def spy(monkeypatch):
    return Spy(monkeypatch)


# -- the table


def test_table_of_classes_is_scikit_learns(data, spy):
    table = compare(data)
    assert list(table.columns) == ["method", "fold", "n_slides", "accuracy", "balanced_accuracy", "macro_f1", "auroc"]
    assert list(table["method"]) == [m for m in QUICK for _ in range(5)]
    assert list(table["fold"]) == ["0", "1", "2", "mean", "sd"] * 3
    true = (data[0].obs["subtype"] == "B").to_numpy(int)
    # folds run one after another, all methods in each
    for number, (rows, told) in enumerate(spy.told):
        row = table[(table["method"] == QUICK[number % 3]) & (table["fold"] == str(number // 3))].iloc[0]
        y, p = true[rows], told.argmax(1)
        assert row["n_slides"] == rows.size
        assert row["accuracy"] == pytest.approx(accuracy_score(y, p))
        assert row["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(y, p))
        assert row["macro_f1"] == pytest.approx(f1_score(y, p, average="macro"))
        assert row["auroc"] == pytest.approx(roc_auc_score(y, told[:, 1]))
    folds = table[table["method"] == "rna"].set_index("fold")["auroc"]
    assert folds["mean"] == pytest.approx(folds[:3].mean()) and folds["sd"] == pytest.approx(np.std(folds[:3], ddof=1))
    assert (table.loc[table["fold"] == "mean", "n_slides"] == 48).all()


def test_every_patient_is_held_out_once_as_a_whole(data, spy):
    compare(data, ["rna"])
    patient = data[0].obs["patient"].to_numpy()
    tests = [rows for rows, _ in spy.told]
    assert sorted(np.concatenate(tests)) == list(range(48))
    for (_, _, train), test in zip(spy.trained, tests, strict=True):
        assert not set(patient[train]) & set(patient[test]) and train.size + test.size == 48
    share = [(data[0].obs["subtype"] == "A").to_numpy()[rows].mean() for rows in tests]
    assert np.ptp(share) < 0.2


def test_all_methods_run_and_one_alone_says_the_same(data):
    table = compare(data, ALL, n_splits=2)
    assert table.notna().all(axis=None) and list(table["method"].unique()) == list(ALL)
    for method in ("mirror", "bilinear", "concat"):
        alone = compare(data, [method], n_splits=2)
        among = table[table["method"] == method].reset_index(drop=True)
        pd.testing.assert_frame_equal(alone, among)


def test_survival_of_all_methods(data, spy):
    table = compare(data, ALL, n_splits=2, **AS_SURVIVAL)
    assert list(table.columns) == ["method", "fold", "n_slides", "n_events", "c_index"]
    assert table["c_index"].notna().all()
    time, event = data[0].obs["months"].to_numpy(), data[0].obs["event"].to_numpy()
    for number, (rows, risk) in enumerate(spy.told):
        row = table[(table["method"] == ALL[number % 7]) & (table["fold"] == str(number // 7))].iloc[0]
        assert row["n_events"] == event[rows].sum()
        assert row["c_index"] == pytest.approx(concordance_index_censored(event[rows], time[rows], risk)[0])


def test_both_views_tell_more_than_one():
    """The truth of the data: either view tells a part."""
    data = stfuse.datasets.synthetic_slides(200, n_genes=60, n_tiles=(20, 40), n_image_features=16, seed=1)
    table = compare(data, groups=None, params={"concat": {"n_components": 16, "max_features": 16}})
    mean = table[table["fold"] == "mean"].set_index("method")["auroc"]
    assert mean["concat"] > mean["rna"] + 0.03 and mean["concat"] > mean["image"] + 0.03


# -- by hand


def by_hand(data, n_splits=3, **kwargs):
    """Training and test slides of the first fold, as the comparison has them."""
    with pytest.MonkeyPatch.context() as patch:
        spy = Spy(patch)
        table = compare(data, ["rna"], n_splits, **kwargs)
    return table, spy.trained[0][2], spy.told[0][0]


def test_mean_tiles_and_components_by_hand(data):
    slides, tiles = data
    _, train, test = by_hand(data)
    table = compare(data, ["concat", "image"])
    mean = pd.DataFrame(tiles.obsm["X_image"]).groupby(tiles.obs["slide"].to_numpy(), observed=True).mean()
    mean = mean.loc[slides.obs_names].to_numpy()
    labels, groups = slides.obs["subtype"].cat.codes.to_numpy(int), pd.factorize(slides.obs["patient"], sort=True)[0]

    def code(x):
        z = (x - x[train].mean(0)) / x[train].std(0)
        return PCA(4).fit(z[train]).transform(z)

    for method, x in (("image", mean), ("concat", np.hstack([code(mean), code(slides.X)]))):
        told = logistic(x[train], labels[train], groups[train], x[test], 2, 0)
        row = table[(table["method"] == method) & (table["fold"] == "0")].iloc[0]
        assert row["auroc"] == pytest.approx(roc_auc_score(labels[test], told[:, 1]))
        assert row["accuracy"] == pytest.approx(accuracy_score(labels[test], told.argmax(1)))


def test_survival_by_hand(data):
    slides = data[0]
    table, train, test = by_hand(data, **AS_SURVIVAL)
    time, event = slides.obs["months"].to_numpy(), slides.obs["event"].to_numpy()
    groups = pd.factorize(slides.obs["patient"], sort=True)[0]
    known = Patients(slides.X.astype(float)[train], time[train], event[train], groups[train])
    edges = bin_edges(time[train], event[train], 4)
    risk = fit_head(SurvivalHead("discrete", None, 0, 0), known, edges).risk(slides.X[test])
    assert table["c_index"][0] == pytest.approx(concordance_index_censored(event[test], time[test], risk)[0])


def test_mirror_by_hand_from_objects_without_the_slides_held_out(data):
    """Trained on what is left when the slides held out and their tiles are taken away, the model gives the same codes of them."""
    slides, tiles = data
    _, train, test = by_hand(data)
    table = compare(data, ["mirror"])
    some = slides[train].copy()
    of_some = tiles[tiles.obs["slide"].isin(some.obs_names)].copy()
    stfuse.model.MIRROR.setup_anndata(some, slide_key="slide", groups="patient")
    model = stfuse.model.MIRROR(some, of_some, dim=16, n_prototypes=10)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.train(max_epochs=2, progress=False)
    known, asked = model.codes().fused, model.codes(slides[test].copy(), tiles).fused
    labels, groups = slides.obs["subtype"].cat.codes.to_numpy(int), pd.factorize(slides.obs["patient"], sort=True)[0]
    told = logistic(known, labels[train], groups[train], asked, 2, 0)
    assert table["auroc"][0] == pytest.approx(roc_auc_score(labels[test], told[:, 1]))


# -- nothing leaks


def poisoned(data, rows):
    """Other labels, times, RNA and tiles of some slides."""
    slides, tiles = (each.copy() for each in data)
    rng = np.random.default_rng(9)
    slides.X[rows] = rng.normal(size=(rows.size, slides.n_vars)) * 50
    of_rows = tiles.obs["slide"].isin(slides.obs_names[rows]).to_numpy()
    tiles.obsm["X_image"][of_rows] = rng.normal(size=(of_rows.sum(), 6)) * 50
    label = slides.obs["subtype"].to_numpy(object)
    label[rows] = np.where(label[rows] == "A", "B", "A")
    slides.obs["subtype"] = pd.Categorical(label)
    slides.obs.iloc[rows, slides.obs.columns.get_loc("months")] = rng.uniform(1, 500, rows.size)
    event = slides.obs["event"].to_numpy(copy=True)
    event[rows] = ~event[rows]
    slides.obs["event"] = event
    return slides, tiles


@pytest.mark.parametrize("kind", ["class", "survival", "shots", "genes"])
def test_slides_held_out_have_no_part_in_what_is_said_of_others(data, monkeypatch, kind):
    """Half of a fold's slides are made something else altogether: what is said of the other half stays."""
    fold = np.arange(48) // 2 % 2
    monkeypatch.setattr(_compare_folds, "folds_of_classes", lambda *_: fold)
    monkeypatch.setattr(_compare_folds, "folds_of_events", lambda *_: fold)
    options = {
        "class": {},
        "survival": AS_SURVIVAL,
        "shots": {"shots": 4, "n_draws": 1},
        "genes": {"select_genes": {"n_genes": 5}},
    }
    some = {
        "genes": ["rna", "concat"],
        "survival": ["mirror", "rna", "bilinear"],
        "shots": ["tangle", "concat", "abmil"],
    }
    methods = some.get(kind, ALL)
    test = np.flatnonzero(fold == 0)
    other = test[: test.size // 2]
    said = []
    for each in (data, poisoned(data, test[test.size // 2 :])):
        with monkeypatch.context() as patch:
            spy = Spy(patch)
            compare(each, methods, n_splits=2, **options[kind])
        said.append(spy.told)
    for number, ((rows, before), (_, after)) in enumerate(zip(*said, strict=True)):
        kept = np.isin(rows, other)
        if number < len(methods):
            assert kept.sum() == other.size
            np.testing.assert_allclose(after[kept], before[kept], rtol=1e-4, atol=1e-6)
            assert not np.allclose(after[~kept], before[~kept], rtol=1e-4, atol=1e-6)
        elif kind != "shots":
            # where they are trained on it makes a difference
            assert not np.allclose(after, before, rtol=1e-4, atol=1e-6)


def test_genes_selected_inside_give_chance_and_outside_do_not():
    """Labels that nothing tells: chosen on all slides, some of a thousand genes tell them all the same."""
    rng = np.random.default_rng(0)
    slides, tiles = cohort(60, n_genes=10)
    noise = ad.AnnData(rng.normal(size=(60, 1000)).astype(np.float32), obs=slides.obs)
    noise.obs["subtype"] = pd.Categorical(rng.permutation(np.repeat(["A", "B"], 30)))
    inside = compare((noise, tiles), ["rna"], select_genes={"n_genes": 15})
    stfuse.pp.select_genes(noise, "subtype", n_genes=15)
    outside = compare((noise, tiles), ["rna"], mask_var="selected")
    mean = [table.loc[table["fold"] == "mean", "auroc"].item() for table in (inside, outside)]
    assert mean[0] < 0.65 and mean[1] > 0.9


def test_genes_by_another_label_and_from_a_list(data):
    given = {"method": "curated", "curated": list(data[0].var_names[[2, 5, 7]])}
    by_list = compare(data, ["rna"], select_genes=given, **AS_SURVIVAL)
    few = data[0][:, [2, 5, 7]].copy(), data[1]
    pd.testing.assert_frame_equal(by_list, compare(few, ["rna"], **AS_SURVIVAL))
    compare(data, ["rna"], select_genes={"label_key": "subtype", "n_genes": 3}, **AS_SURVIVAL)
    assert "selected" not in data[0].var


# -- shots


def test_shots_are_the_same_of_all_methods(data, spy):
    table = compare(data, ALL, n_splits=2, shots=3, n_draws=2)
    label, patient = data[0].obs["subtype"].to_numpy(), data[0].obs["patient"].to_numpy()
    assert len(table) == 7 * 4 and len(spy.trained) == 7 * 2 * 2
    for fold in range(2):
        draws = [train for _, i, train in spy.trained if i == fold]
        assert not np.array_equal(draws[0], draws[1])
        for number, train in enumerate(draws):
            np.testing.assert_array_equal(train, draws[number % 2])
            assert list(np.unique(label[train], return_counts=True)[1]) == [3, 3]
            assert np.unique(patient[train][label[train] == "A"]).size == 3
    # a fold's score is the mean over draws
    first = [
        (data[0].obs["subtype"].cat.codes.to_numpy()[rows] == told.argmax(1)).mean() for rows, told in spy.told[:2]
    ]
    assert table["accuracy"][0] == pytest.approx(np.mean(first))


def test_several_shots_at_once_are_those_one_by_one(data, monkeypatch):
    learnt = []
    code = _slide_methods.Mirror.code
    monkeypatch.setattr(_slide_methods.Mirror, "code", lambda self, of: learnt.append(1) or code(self, of))
    methods = ["mirror", "concat", "abmil"]
    table = compare(data, methods, n_splits=2, shots=[None, 3], n_draws=2)
    assert len(learnt) == 2  # once a fold
    for k, number in ((None, 0), (3, 3)):
        alone = compare(data, methods, n_splits=2, shots=k, n_draws=2)
        part = table[table["shots"] == number].drop(columns="shots").reset_index(drop=True)
        pd.testing.assert_frame_equal(part, alone)


def test_shots_of_survival_are_of_each_bin_and_hold_an_event(data, spy):
    compare(data, ["rna"], shots=2, n_bins=3, n_draws=3, **AS_SURVIVAL)
    event = data[0].obs["event"].to_numpy()
    assert all(train.size == 6 and event[train].any() for _, _, train in spy.trained)


def test_codes_are_learnt_from_all_and_networks_from_shots_alone(data, monkeypatch):
    learnt = []
    original = _slide_methods.train_network
    monkeypatch.setattr(_slide_methods, "train_network", lambda net, views, rows, watched, *rest: (learnt.append((rows, watched)), original(net, views, rows, watched, *rest)))  # fmt: skip
    compare(data, ["abmil"], n_splits=2, shots=3, n_draws=1)
    assert all(rows.size == 6 and watched.size == 0 for rows, watched in learnt)
    learnt.clear()
    compare(data, ["abmil"], n_splits=2)
    patient = data[0].obs["patient"].to_numpy()
    for rows, watched in learnt:
        assert 3 <= watched.size <= 7 and not set(patient[rows]) & set(patient[watched])


# -- what is not there


def test_slides_with_one_view_are_learnt_from_where_their_group_is_not_held_out(monkeypatch):
    slides, tiles = cohort(paired=0.75)
    slides.obs["subtype"] = slides.obs["subtype"].where(np.arange(48) != 5)
    single = np.isnan(slides.X).any(1) | ~slides.obs_names.isin(tiles.obs["slide"])
    tables = []
    original = _slide_methods._table
    monkeypatch.setattr(_slide_methods, "_table", lambda data, rows: (tables.append(rows), original(data, rows))[1])
    with pytest.warns(UserWarning, match="12 of 48 slide.* have tiles or RNA only .* not compared"):
        table = compare((slides, tiles), ["mirror"])
    assert (table.loc[table["fold"] == "mean", "n_slides"] == 36 - (not single[5])).all()
    patient = slides.obs["patient"].to_numpy()
    compared = tables[1]
    assert not single[compared].any() and 5 not in compared
    seen = np.zeros(48, int)
    for learn in tables[::2]:
        held_out = np.setdiff1d(compared, learn)
        np.testing.assert_array_equal(learn, np.flatnonzero(~np.isin(patient, patient[held_out])))
        seen[learn] += 1
    assert (seen[single] >= 2).all() and seen[5] >= 2


def test_times_that_are_missing_are_left_out(data):
    slides, tiles = data[0].copy(), data[1]
    slides.obs.loc[slides.obs_names[:4], "months"] = np.nan
    table = compare((slides, tiles), ["rna"], **AS_SURVIVAL)
    assert table["n_slides"].iloc[-1] == 44


def test_a_code_of_ones_own(data):
    slides, tiles = data[0].copy(), data[1]
    slides.obsm["X_mine"] = slides.X * 3 + 1
    slides.obsm["X_gap"] = np.where(np.arange(48)[:, None] == 7, np.nan, slides.X)
    table = compare((slides, tiles), ["rna", "obsm:X_mine"])
    np.testing.assert_allclose(*(table.loc[table["method"] == m, "auroc"] for m in ("rna", "obsm:X_mine")), rtol=1e-6)
    with pytest.raises(ValueError, match=r"X_gap.* is NaN in 1 of the 48 slides .*'slide7'"):
        compare((slides, tiles), ["obsm:X_gap"])
    with pytest.raises(KeyError, match="X_nine.*X_mine"):
        compare((slides, tiles), ["obsm:X_nine"])


# -- objects


def test_objects_stay_and_a_record_is_kept_where_asked_for(data, tmp_path):
    slides, tiles = (each.copy() for each in data)
    before = [each.copy() for each in (slides, tiles)]
    table = compare((slides, tiles), ["mirror", "rna"], 2, select_genes={"n_genes": 6})
    for now, then in zip((slides, tiles), before, strict=True):
        pd.testing.assert_frame_equal(now.obs, then.obs)
        pd.testing.assert_frame_equal(now.var, then.var)
        assert not now.uns and set(now.obsm) == set(then.obsm)
    np.testing.assert_array_equal(slides.X, before[0].X)
    np.testing.assert_array_equal(tiles.obsm["X_image"], before[1].obsm["X_image"])
    slides.uns["mine"] = 1
    with pytest.raises(ValueError, match="did not write"):
        compare((slides, tiles), ["rna"], key_added="mine")
    for _ in range(2):
        table = compare((slides, tiles), QUICK, key_added="comparison")
    slides.write_h5ad(tmp_path / "slides.h5ad")
    read = ad.read_h5ad(tmp_path / "slides.h5ad").uns["comparison"]
    pd.testing.assert_frame_equal(read["comparison"], table, check_index_type=False)
    assert read["n_obs"]["compared"] == 48 and list(read["params"]["methods"]) == list(QUICK)


def test_rna_in_obsm_and_tables_of_larger_objects(data):
    mudata = pytest.importorskip("mudata")
    slides, tiles = data
    expected = compare(data, ["concat"])
    elsewhere = ad.AnnData(obs=slides.obs, obsm={"X_bulk": slides.X})
    pd.testing.assert_frame_equal(compare((elsewhere, tiles), ["concat"], rna_key="X_bulk"), expected)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        both = mudata.MuData({"patients": slides.copy(), "patches": tiles.copy()})
    pd.testing.assert_frame_equal(compare((both,), ["concat"], key_added="cmp"), expected)
    assert "cmp" in both.mod["patients"].uns


# -- bad input


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"methods": ["miror"]}, "No method 'miror'. Did you mean 'mirror'"),
        ({"methods": ["rna", "rna"]}, "different names"),
        ({"methods": []}, "one at least"),
        ({"time_key": "months", "event_key": "event"}, "either label_key"),
        ({"label_key": None}, "either label_key"),
        ({"label_key": None, "time_key": "months"}, "either label_key"),
        ({"params": {"tangle": {}}}, "none of the methods compared"),
        ({"methods": ["mirror"], "params": {"mirror": {"dim": 12}}}, "multiple of 8"),
        ({"methods": ["abmil"], "params": {"abmil": {"dropout": 1.0}}}, "dropout"),
        ({"methods": ["abmil"], "params": {"abmil": {"max_epochs": 0}}}, "max_epochs"),
        ({"n_splits": 25}, "24 group.*fewer than n_splits=25"),
        ({"shots": 40}, "fewer than shots=40"),
        ({"shots": [3, 3]}, "shots must be different"),
        ({"shots": []}, "shots must be different"),
        ({"shots": 3, "select_genes": {}}, "known of these alone"),
        ({"label_key": None, "time_key": "months", "event_key": "event", "select_genes": {}}, "survival has none"),
        ({"mask_var": "age", "rna_key": "shared"}, "leave one of them out"),
        ({"event_value": "yes", "label_key": None, "time_key": "months", "event_key": "event"}, "No events"),
    ],
)
def test_what_is_refused(data, options, message):
    with pytest.raises(ValueError, match=message):
        compare(data, **({"methods": ["rna"], "params": None} | options))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"methods": ["mirror"], "params": {"mirror": {"epochs": 3}}}, "has 'epochs'.*Did you mean 'max_epochs'"),
        ({"methods": ["bilinear"], "params": {"bilinear": {"dim": 3}}}, "has 'dim'"),
        ({"params": {"rna": 3}}, "must be a dict"),
        ({"select_genes": {"groups": "patient"}}, "select_genes has 'groups'"),
        ({"select_genes": True}, "select_genes must be a dict"),
        ({"methods": [3]}, "methods must be a string"),
    ],
)
def test_wrong_types_are_refused(data, options, message):
    with pytest.raises(TypeError, match=message):
        compare(data, **({"methods": ["rna"], "params": None} | options))


def test_data_that_cannot_be_compared(data):
    slides, tiles = (each.copy() for each in data)
    slides.obs["one"] = "A"
    with pytest.raises(ValueError, match="one class"):
        compare((slides, tiles), label_key="one")
    slides.obs["of_patient"] = pd.Categorical(np.where(slides.obs["patient"] == "p0", "rare", "A"))
    with pytest.raises(ValueError, match=r"1 class\(es\) to train on"):
        compare((slides, tiles), label_key="of_patient")
    slides.obs["died"] = slides.obs["patient"].isin(["p0", "p1"])
    with pytest.raises(ValueError, match="2 group.*with an event"):
        compare((slides, tiles), **AS_SURVIVAL | {"event_key": "died"})
    slides.obs["months"] = slides.obs["months"].where(np.arange(48) != 3, 0)
    with pytest.raises(ValueError, match="above 0"):
        compare((slides, tiles), **AS_SURVIVAL)
    slides.obs["gap"] = slides.obs["patient"].where(np.arange(48) != 3)
    with pytest.raises(ValueError, match=r"gap.*1 missing"):
        compare((slides, tiles), groups="gap")
    tiles.obsm["X_image"][2, 3] = np.nan
    with pytest.raises(ValueError, match="NaN inside"):
        compare((slides, tiles))
    slides.X[2, 3] = np.inf
    with pytest.raises(ValueError, match="infinite"):
        compare((slides, data[1]))
    with pytest.raises(KeyError, match="subtyp.*subtype"):
        compare(data, label_key="subtyp")
    assert not slides.uns and not tiles.uns
