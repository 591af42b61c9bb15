"""Kaplan-Meier curves."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from matplotlib import pyplot as plt

import stfuse
from stfuse.pl._survival import _Group, log_rank

pytest.importorskip("sksurv")
CALL = {"time_key": "months", "event_key": "dead", "group_key": "arm"}


@pytest.fixture
def slides():
    rng = np.random.default_rng(0)
    arm = np.repeat(["drug", "placebo", "neither"], 40)
    time = np.ceil(rng.exponential(np.where(arm == "drug", 40, 15))) + 1
    obs = {"months": time, "dead": rng.random(120) < 0.6, "arm": arm, "risk": "unassigned"}
    data = ad.AnnData(obs=pd.DataFrame(obs, index=[f"s{i}" for i in range(120)]))
    data.obsm["X_code"] = rng.normal(size=(120, 3))
    yield data
    plt.close("all")


def literal(time, event, at):
    """Kaplan and Meier: of those still there, the share that gets past each event."""
    share = 1.0
    for t in sorted(set(time[event])):
        if t <= at:
            share *= 1 - (event & (time == t)).sum() / (time >= t).sum()
    return share


def texts(ax):
    return [text.get_text() for text in ax.texts]


def test_curves_numbers_at_risk_and_censoring(slides, assert_not_clipped):
    ax = stfuse.pl.survival(slides, **CALL)
    assert_not_clipped(ax.figure)
    curves = {line.get_label(): line for line in ax.lines if line.get_drawstyle() == "steps-post"}
    assert set(curves) == {"drug", "placebo", "neither"}
    ticks = [tick for tick in ax.get_xticks() if 0 <= tick <= ax.get_xlim()[1]]
    written = texts(ax)
    for name, line in curves.items():
        rows = slides.obs["arm"] == name
        time, event = slides.obs["months"][rows].to_numpy(), slides.obs["dead"][rows].to_numpy()
        x, y = line.get_data()
        assert (x[0], y[0]) == (0, 1)
        for at in (3, 10.5, 30):
            assert y[x <= at][-1] == pytest.approx(literal(time, event, at))
        start = written.index(name) + 1
        assert written[start : start + len(ticks)] == [str((time >= tick).sum()) for tick in ticks]
    marks = [line for line in ax.lines if line.get_marker() == "|"]
    assert sum(len(line.get_xdata()) for line in marks) == sum(
        slides.obs["months"][(slides.obs["arm"] == a) & ~slides.obs["dead"]].nunique() for a in curves
    )
    assert len(ax.collections) == 3 and ax.get_title("left").startswith("log-rank p")
    assert [t.get_text().split(", ")[0] for t in ax.get_legend().get_texts()] == ["drug", "neither", "placebo"]


def test_log_rank_by_hand():
    # Two groups: the score is the surplus of events in one over its share of those at risk.
    rng = np.random.default_rng(1)
    time, event, one = rng.integers(1, 15, 60) * 1.0, rng.random(60) < 0.7, rng.random(60) < 0.5
    surplus = variance = 0.0
    for t in np.unique(time[event]):
        there, died = time >= t, event & (time == t)
        n, d, share = there.sum(), died.sum(), one[there].mean()
        surplus += (died & one).sum() - d * share
        if n > 1:
            variance += d * share * (1 - share) * (n - d) / (n - 1)
    from scipy.stats import chi2

    groups = [_Group("a", time[one], event[one], "k"), _Group("b", time[~one], event[~one], "k")]
    assert log_rank(groups) == pytest.approx(chi2.sf(surplus**2 / variance, 1))
    assert np.isnan(log_rank(groups[:1]))


def test_a_group_that_left_before_the_first_event_has_no_p():
    early = _Group("a", np.array([1.0, 2.0]), np.array([False, False]), "k")
    late = _Group("b", np.array([3.0, 4.0]), np.array([True, True]), "k")
    assert np.isnan(log_rank([early, late]))


def test_groups_that_tl_survival_wrote(slides, assert_not_clipped):
    slides.obs["alive"] = (~slides.obs["dead"]).astype(int)
    slides.obsm["X_code"][:5] = np.nan
    stfuse.tl.survival(slides, time_key="months", event_key="alive", event_value=0, use_rep="X_code", penalty=1.0)
    ax = stfuse.pl.survival(slides, "code_survival")
    assert_not_clipped(ax.figure)
    assert "unassigned" not in texts(ax)
    lines = [line for line in ax.lines if line.get_drawstyle() == "steps-post"]
    assert [(line.get_label(), line.get_color()) for line in lines] == [("low", "#0072b2"), ("high", "#d55e00")]
    events = sum(int(t.get_text().split()[1]) for t in ax.get_legend().get_texts())
    assert events == slides.obs["dead"][5:].sum()
    # other groups with the time and event of the record
    assert "drug" in texts(stfuse.pl.survival(slides, "code_survival", group_key="arm"))


def test_choices(slides, tmp_path):
    figure, axes = plt.subplots()
    ax = stfuse.pl.survival(
        slides, ax=axes, conf_int=False, at_risk=False, max_time=24, palette=["r", "g", "b"], **CALL
    )
    assert ax is axes and not ax.collections and not ax.texts and ax.get_xlim() == (0, 24)
    assert ax.lines[0].get_color() == "#ff0000"
    drawn = stfuse.pl.survival(slides, figsize=(5, 4), save=tmp_path / "a.png", **CALL)
    assert tuple(drawn.figure.get_size_inches()) == (5, 4) and (tmp_path / "a.png").stat().st_size > 1000
    slides.obs["one"] = "all"
    assert stfuse.pl.survival(slides, **CALL | {"group_key": "one"}).get_title("left") == ""


@pytest.mark.parametrize(
    ("kwargs", "error", "match"),
    [
        ({"group_key": None}, KeyError, "No record of stfuse.tl.survival in uns"),
        ({"time_key": None}, KeyError, "name time_key="),
        ({"group_key": "arms"}, KeyError, "Did you mean 'arm'"),
        ({"event_key": "never"}, ValueError, "No events"),
        ({"group_key": "risk"}, ValueError, "no time and event"),
        ({"group_key": "rare"}, ValueError, "have no event"),
        ({"event_value": None}, TypeError, "event_value"),
        ({"max_time": 0}, ValueError, "max_time"),
        ({"conf_int": "yes"}, TypeError, "conf_int"),
        ({"palette": ["r"]}, ValueError, "1 colours for 3"),
        ({"figsize": 3}, TypeError, "figsize"),
        ({"save": "nowhere/a.png"}, FileNotFoundError, "nowhere"),
    ],
)
def test_errors_draw_nothing(slides, kwargs, error, match):
    slides.obs["never"] = False
    slides.obs["rare"] = pd.Series(np.where(slides.obs["dead"], None, "a"), index=slides.obs_names, dtype=object)
    before = len(plt.get_fignums())
    with pytest.raises(error, match=match):
        stfuse.pl.survival(slides, **CALL | kwargs)
    assert len(plt.get_fignums()) == before
