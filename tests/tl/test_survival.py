"""Survival from a frozen code."""

import sys

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch

import stfuse
from stfuse._survival import bin_edges, bins_of, outcome
from stfuse.module.hazards import hazard_nll, risk_of
from stfuse.tl._survival_heads import PENALTIES, Patients, SurvivalHead, choose_penalty, cox_quickly, fit_head

sksurv = pytest.importorskip("sksurv")
CALL = {"time_key": "months", "event_key": "died", "use_rep": "X_code"}


def cohort(n=240, strength=2.0, seed=0, ties=False):
    """Patients whose hazard doubles and more along one direction of the code; beside it a code that knows nothing."""
    rng = np.random.default_rng(seed)
    code = rng.normal(size=(n, 6))
    hidden = rng.exponential(20 * np.exp(-strength * code[:, 0])) + 0.1
    end = rng.uniform(5, 60, n)
    time = np.minimum(hidden, end)
    obs = {
        "months": np.ceil(time) if ties else time,
        "died": hidden < end,
        "patient": [f"p{i // 2}" for i in range(n)],
        "age": rng.normal(60, 9, n),
    }
    data = ad.AnnData(obs=pd.DataFrame(obs, index=[f"s{i}" for i in range(n)]))
    data.obsm["X_code"] = code * [3, 1, 0.1, 1, 1, 1] + 5
    data.obsm["X_noise"] = rng.normal(size=(n, 6))
    return data


@pytest.fixture
def slides():
    return cohort()


def patients(data):
    x = data.obsm["X_code"]
    x = (x - x.mean(0)) / x.std(0)
    return Patients(x, data.obs["months"].to_numpy(), data.obs["died"].to_numpy(), np.arange(data.n_obs))


@pytest.mark.parametrize("model", ["discrete", "cox"])
def test_a_code_that_knows_and_one_that_does_not(slides, model):
    scores = stfuse.tl.survival(slides, model=model, **CALL).set_index("fold")["c_index"]
    assert list(scores.index) == ["0", "1", "2", "3", "4", "mean", "pooled"]
    truth = outcome(slides.obs["months"].to_numpy(), slides.obs["died"].to_numpy())
    best = sksurv.metrics.concordance_index_censored(truth["event"], truth["time"], slides.obsm["X_code"][:, 0])[0]
    assert scores["pooled"] == pytest.approx(best, abs=0.03) and best > 0.8
    assert scores["mean"] == pytest.approx(scores.iloc[:5].mean())
    chance = [
        stfuse.tl.survival(slides, model=model, seed=s, **CALL | {"use_rep": "X_noise"})["c_index"].iloc[-1]
        for s in range(3)
    ]
    assert abs(np.mean(chance) - 0.5) < 0.08
    risk, group = slides.obs["code_survival_risk"], slides.obs["code_survival_group"]
    assert list(group.cat.categories) == ["low", "high"] and risk[group == "high"].mean() > risk[group == "low"].mean()
    assert 0.35 < (group == "high").mean() < 0.65


def test_hazards_are_at_the_bottom_of_the_loss_of_networks(slides):
    known = patients(slides)
    edges = bin_edges(known.time, known.event, 4)
    fitted = fit_head(SurvivalHead("discrete", 3.0, 0, 0), known, edges)
    w = torch.tensor(fitted.weights, requires_grad=True)
    base = torch.tensor(fitted.base, requires_grad=True)
    logits = (torch.tensor(known.x) @ w)[:, None] + base
    loss = hazard_nll(logits, torch.tensor(bins_of(known.time, edges)), torch.tensor(known.event)).sum()
    (loss + 1.5 * w.square().sum() + 0.005 * base.square().sum()).backward()
    assert w.grad.abs().max() < 1e-3 and base.grad.abs().max() < 1e-3
    np.testing.assert_allclose(fitted.risk(known.x), risk_of(logits).detach(), rtol=1e-6)


@pytest.mark.parametrize("ties", [False, True])
def test_quick_cox_is_scikit_survivals(ties):
    known = patients(cohort(ties=ties))
    for penalty in (np.full(6, 0.5), np.array([1.0, 1, 1, 50, 50, 50])):
        model = sksurv.linear_model.CoxPHSurvivalAnalysis(alpha=penalty, ties="breslow")
        expected = model.fit(known.x, outcome(known.time, known.event)).coef_
        np.testing.assert_allclose(cox_quickly(known, penalty), expected, atol=1e-5)


def test_cox_is_scikit_survivals_on_a_fold(slides):
    slides.obs["months"] = np.ceil(slides.obs["months"])
    stfuse.tl.survival(slides, model="cox", penalty=7.0, groups="patient", **CALL)
    fold = slides.obs["code_survival_fold"].to_numpy()
    x, y = slides.obsm["X_code"], outcome(slides.obs["months"].to_numpy(), slides.obs["died"].to_numpy())
    train, test = fold != 2, fold == 2
    z = (x - x[train].mean(0)) / x[train].std(0)
    model = sksurv.linear_model.CoxPHSurvivalAnalysis(alpha=7.0, ties="efron").fit(z[train], y[train])
    of_train, of_test = model.predict(z[train]), model.predict(z[test])
    expected = (of_test - of_train.mean()) / of_train.std()
    np.testing.assert_allclose(slides.obs["code_survival_risk"][test], expected, atol=1e-6)
    high = slides.obs["code_survival_group"][test] == "high"
    np.testing.assert_array_equal(high, of_test > np.median(of_train))


@pytest.mark.parametrize("model", ["discrete", "cox"])
def test_the_penalty_fits_what_the_code_knows(model):
    mean = []
    for strength in (1.0, 0.0):
        chosen = []
        for seed in range(4):
            known = patients(cohort(strength=strength, seed=seed))
            edges = bin_edges(known.time, known.event, 4)
            chosen.append(choose_penalty(SurvivalHead(model, None, 0, 0), known, edges))
        assert set(chosen) <= set(PENALTIES)
        mean.append(np.log10(chosen).mean())
    assert mean[0] < 1 and mean[1] > 2


@pytest.mark.parametrize("options", [{}, {"model": "cox"}, {"shots": 4, "n_draws": 2}, {"penalty": 10.0}])
def test_held_out_times_do_not_leak(slides, options):
    """Bins, penalty, shots, scale and cut come from the training fold: other times of a fold change nothing of its own."""
    stfuse.tl.survival(slides, **options, **CALL)
    before = slides.obs.copy()
    test = slides.obs["code_survival_fold"] == 1
    slides.obs.loc[test, "months"] = np.random.default_rng(1).uniform(1, 500, test.sum())
    stfuse.tl.survival(slides, **options, **CALL)
    for column in ("risk", "group", "fold"):
        after = slides.obs[f"code_survival_{column}"]
        np.testing.assert_array_equal(after[test], before[f"code_survival_{column}"][test])
    assert (slides.obs["code_survival_risk"] != before["code_survival_risk"])[~test].any()


def test_groups_stay_together_and_each_fold_has_its_share_of_events(slides):
    scores = stfuse.tl.survival(slides, groups="patient", **CALL)
    fold = slides.obs["code_survival_fold"]
    assert fold.groupby(slides.obs["patient"]).nunique().max() == 1
    events = scores["n_events"].iloc[:5]
    assert events.max() - events.min() <= 6 and events.sum() == slides.obs["died"].sum() == scores["n_events"].iloc[-1]


def test_covariates_stand_beside_a_wide_code(slides):
    slides.obs["stage"] = slides.obsm["X_code"][:, 0]
    call = CALL | {"use_rep": "X_noise"}
    without = stfuse.tl.survival(slides, **call)["c_index"].iloc[-1]
    beside = stfuse.tl.survival(slides, covariates=["stage", "age"], **call)["c_index"].iloc[-1]
    assert without < 0.6 and beside > 0.8


@pytest.mark.parametrize("model", ["discrete", "cox"])
def test_shots(slides, model):
    call = {"model": model, "shots": 3, "penalty": 1.0, **CALL}
    one = stfuse.tl.survival(slides, n_draws=1, **call)
    risk = slides.obs["code_survival_risk"].copy()
    many = stfuse.tl.survival(slides, n_draws=8, **call)
    # the first draw is the same whatever follows, and scores are means
    np.testing.assert_array_equal(slides.obs["code_survival_risk"], risk)
    assert not np.allclose(one["c_index"], many["c_index"])
    full = stfuse.tl.survival(slides, model=model, penalty=1.0, **CALL)
    assert 0.5 < many["c_index"].iloc[-1] < full["c_index"].iloc[-1]
    with pytest.raises(ValueError, match=r"Where fold 0 is held out, bin \d of time has \d+ .*fewer than shots=100"):
        stfuse.tl.survival(slides, **call | {"shots": 100})


def test_rows_without_code_or_outcome(slides, tmp_path):
    slides.obsm["X_code"][:10] = np.nan
    slides.obs.loc[slides.obs_names[5:25], "months"] = np.nan
    slides.obs["died"] = slides.obs["died"].astype("boolean")
    slides.obs.loc[slides.obs_names[25:30], "died"] = pd.NA
    scores = stfuse.tl.survival(slides, **CALL)
    risk, group, fold = (slides.obs[f"code_survival_{name}"].to_numpy() for name in ("risk", "group", "fold"))
    rows = np.arange(240)
    np.testing.assert_array_equal(np.isnan(risk), rows < 10)
    np.testing.assert_array_equal(group == "unassigned", rows < 10)
    np.testing.assert_array_equal(fold == -1, rows < 30)
    assert scores["n_slides"].iloc[-1] == 210
    predicted = (rows >= 10) & (rows < 30)  # nothing is known of them, but the code tells
    assert np.corrcoef(risk[predicted], slides.obsm["X_code"][predicted, 0])[0, 1] > 0.9
    slides.write_h5ad(tmp_path / "a.h5ad")
    record = ad.read_h5ad(tmp_path / "a.h5ad").uns["code_survival"]
    assert record["n_events"] == scores["n_events"].iloc[-1]
    assert "obs['died'] = True is read as an event" in record["convention"]
    assert len(record["edges"]["0"]) == 3 and len(record["penalties"]) == 5


def test_fewer_bins_are_told(slides):
    slides.obs["months"] = np.where(slides.obs["months"] < 10, 1.0, 2.0)
    with pytest.warns(UserWarning, match="n_bins=4: in some folds time has 2"):
        scores = stfuse.tl.survival(slides, **CALL)
    assert scores["c_index"].iloc[-1] > 0.6


def test_a_column_that_says_who_was_censored_is_warned_of(slides):
    slides.obs["censored"] = np.arange(240) >= 8
    with pytest.warns(UserWarning, match="232 of 240 observations have the event.*event_value="):
        stfuse.tl.survival(slides, **CALL | {"event_key": "censored"})


def test_copy_and_containers(slides, assert_same):
    import mudata
    import spatialdata

    before = slides.copy()
    call = CALL | {"penalty": 1.0}
    changed, scores = stfuse.tl.survival(slides, copy=True, **call)
    assert_same(slides, before)
    risk = changed.obs["code_survival_risk"].to_numpy()
    mdata = mudata.MuData({"slides": slides.copy()})
    pd.testing.assert_frame_equal(stfuse.tl.survival(mdata, **call), scores)
    np.testing.assert_array_equal(mdata.obs["code_survival_risk"], risk)
    sdata = spatialdata.SpatialData(tables={"slides": slides.copy(), "other": slides[:5].copy()})
    stfuse.tl.survival(sdata, table_key="slides", **call)
    np.testing.assert_array_equal(sdata.tables["slides"].obs["code_survival_risk"], risk)


def test_a_second_run_replaces_the_first(slides):
    stfuse.tl.survival(slides, key_added="mine", penalty=1.0, **CALL)
    stfuse.tl.survival(slides, key_added="mine", penalty=1.0, model="cox", **CALL)
    assert slides.uns["mine"]["params"]["model"] == "cox"


@pytest.mark.parametrize(
    ("kwargs", "error", "match"),
    [
        ({"time_key": "zero"}, ValueError, r"2 time\(s\) that are not finite and above 0, for example 0 of 's3'"),
        ({"time_key": "patient"}, ValueError, "must hold numbers.*months"),
        ({"time_key": "month"}, KeyError, "Did you mean 'months'"),
        ({"event_key": "dead"}, KeyError, "No obs column 'dead'"),
        ({"event_value": "dead"}, ValueError, "No events: none of the 240.*True.*False.*event_value="),
        ({"event_value": None}, TypeError, "event_value must be the value"),
        ({"event_key": "never"}, ValueError, "No events"),
        ({"event_key": "unknown"}, ValueError, "No observation has both a time"),
        ({"event_key": "three"}, ValueError, r"3 slide\(s\) with an event and a code, fewer than n_splits=5"),
        ({"groups": "half"}, ValueError, "2 group of 'half'.* fewer than n_splits=5: use n_splits=2"),
        ({"groups": "few", "event_key": "first", "n_splits": 2}, ValueError, "1 group of 'few'.*with an event"),
        ({"groups": "holes"}, ValueError, "missing"),
        ({"n_splits": 241}, ValueError, "fewer than n_splits=241"),
        ({"n_splits": 1}, ValueError, "n_splits"),
        ({"use_rep": "X_holes"}, ValueError, "NaN inside 1 row"),
        ({"use_rep": "X_mirror"}, KeyError, "X_code"),
        ({"covariates": "patient"}, ValueError, "get_dummies"),
        ({"covariates": ["age", "gaps"]}, ValueError, "gaps.*missing or infinite in 1 row"),
        ({"covariates": "stage"}, KeyError, "No obs column 'stage'"),
        ({"model": "forest"}, ValueError, "discrete, cox"),
        ({"n_bins": 1}, ValueError, "n_bins"),
        ({"penalty": 0}, ValueError, "penalty must be a number above 0"),
        ({"shots": 0}, ValueError, "shots"),
        ({"n_draws": 0}, ValueError, "n_draws"),
        ({"seed": -1}, ValueError, "seed"),
        ({"key_added": "taken"}, ValueError, r"would overwrite obs\['taken_risk'\], which this function did not write"),
        ({"key_added": "a", "covariates": "a_risk"}, ValueError, "a_risk.*is read"),
        ({"key_added": "other"}, ValueError, "would overwrite uns"),
        ({"key_added": "a/b"}, ValueError, "slash"),
    ],
)
@pytest.mark.filterwarnings("error")
def test_errors_leave_the_object_alone(slides, kwargs, error, match, assert_same):
    i = np.arange(240)
    slides.obs["zero"] = slides.obs["months"].where((i != 3) & (i != 7), 0.0)
    slides.obs["never"], slides.obs["three"], slides.obs["first"] = False, i < 3, i < 100
    slides.obs["unknown"] = np.full(240, np.nan)
    slides.obs["half"], slides.obs["few"] = np.where(i % 2, "a", "b"), np.where(i < 100, "a", "b")
    slides.obs["holes"] = pd.Series(["a", None, "b"] * 80, index=slides.obs_names, dtype=object)
    slides.obs["gaps"] = slides.obs["age"].where(i != 5)
    slides.obs["taken_risk"], slides.obs["a_risk"] = 1.0, slides.obs["age"]
    slides.obsm["X_holes"] = slides.obsm["X_code"].copy()
    slides.obsm["X_holes"][4, 1] = np.nan
    slides.uns["other"] = {"mine": 1}
    before = slides.copy()
    with pytest.raises(error, match=match):
        stfuse.tl.survival(slides, **CALL | kwargs)
    assert_same(slides, before)


def test_the_extra_is_named_where_it_is_missing(slides, monkeypatch):
    monkeypatch.setitem(sys.modules, "sksurv", None)
    with pytest.raises(ImportError, match=r"pip install 'stfuse\[survival\]'"):
        stfuse.tl.survival(slides, **CALL)


def test_tcga(shared_data):
    table = pd.read_csv(shared_data / "tcga" / "tcga_brca_all_clean.csv.zip", low_memory=False)
    rna = table[[c for c in table if c.endswith("_rnaseq")]].to_numpy(float)
    rna = (rna - rna.mean(0)) / (rna.std(0) + 1e-9)
    obs = table[["case_id", "age", "survival_months", "censorship"]].set_index(table["slide_id"].astype(str))
    slides = ad.AnnData(obs=obs)
    left, size, _ = np.linalg.svd(rna - rna.mean(0), full_matrices=False)
    slides.obsm["X_pca"] = left[:, :32] * size[:32]
    call = {"time_key": "survival_months", "event_key": "censorship", "event_value": 0, "groups": "case_id"}
    alone = stfuse.tl.survival(slides, use_rep="X_pca", penalty=100.0, **call).set_index("fold")
    with_age = stfuse.tl.survival(slides, use_rep="X_pca", penalty=100.0, covariates="age", **call).set_index("fold")
    assert alone.loc["pooled", "n_events"] == 134  # slides of 130 patients
    assert 0.57 < alone.loc["mean", "c_index"] < 0.65
    assert 0.61 < with_age.loc["mean", "c_index"] < 0.70
    counts = slides.obs.groupby("case_id")["pca_survival_fold"].nunique()
    assert counts.max() == 1
