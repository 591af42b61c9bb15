"""Time and event, bins of time, and the C-index."""

import logging
from itertools import permutations

import anndata as ad
import numpy as np
import pandas as pd
import pytest

from stfuse._survival import bin_edges, bins_of, concordance, read_survival

pytest.importorskip("sksurv")


def brute_force(time, event, risk):
    """Count pairs: i had the event, and j was still there then."""
    good = pairs = 0
    for i, j in permutations(range(len(time)), 2):
        if event[i] and (time[i] < time[j] or (time[i] == time[j] and not event[j])):
            pairs += 1
            good += 1 if risk[i] > risk[j] else 0.5 if risk[i] == risk[j] else 0
    return good / pairs if pairs else np.nan


@pytest.mark.parametrize("seed", range(8))
def test_c_index_counts_pairs(seed):
    rng = np.random.default_rng(seed)
    n = int(rng.integers(5, 60))
    time, event, risk = rng.integers(1, 12, n) * 1.0, rng.random(n) < 0.5, rng.integers(0, 6, n) * 0.5
    event[0] = True
    assert concordance(time, event, risk) == pytest.approx(brute_force(time, event, risk), nan_ok=True)


def test_c_index_is_nan_without_a_pair():
    two = np.array([1.0, 2.0])
    assert np.isnan(concordance(two, np.array([False, False]), two))
    assert np.isnan(concordance(two, np.array([False, True]), two))
    assert np.isnan(concordance(np.array([3.0]), np.array([True]), np.array([1.0])))
    assert concordance(two, np.array([True, False]), -two) == 1


def test_bins_hold_equally_many_events_and_censored_times_do_not_matter():
    rng = np.random.default_rng(0)
    time, event = rng.exponential(10, 400), np.arange(400) < 100
    edges = bin_edges(time, event, 4)
    np.testing.assert_array_equal(np.bincount(bins_of(time[event], edges)), 25)
    np.testing.assert_array_equal(edges, bin_edges(np.where(event, time, rng.exponential(99, 400)), event, 4))
    np.testing.assert_array_equal(bins_of(np.array([1e-9, 1e9]), edges), [0, 3])


def test_fewer_bins_where_events_share_times():
    for times in ([1, 1, 1, 10], [1, 1, 1, 1], [5, 10, 10, 10, 10], [1, 2], [3]):
        time = np.array(times, float)
        edges = bin_edges(time, np.ones(len(time), bool), 4)
        assert len(edges) < min(4, len(set(times)) + 1)
        assert (np.bincount(bins_of(time, edges), minlength=len(edges) + 1) > 0).all()


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ([True, False, True, False], True),
        ([1, 0, 1, 0], True),
        ([1.0, 0.0, 1.0, 0.0], True),
        ([0, 1, 0, 1], 0),
        (["dead", "alive", "dead", "alive"], "dead"),
        (pd.Categorical(["dead", "alive", "dead", "lost"]), "dead"),
        (pd.array([1, 0, 1, 0], dtype="Int64"), True),
        (pd.array([True, False, True, False], dtype="boolean"), 1),
    ],
)
def test_conventions(column, value, caplog):
    data = ad.AnnData(obs=pd.DataFrame({"time": [1, 2, 3, 4], "event": column}, index=list("abcd")))
    with caplog.at_level(logging.INFO, "stfuse"):
        found = read_survival(data, "time", "event", value, None)
    np.testing.assert_array_equal(found.event, [True, False, True, False])
    assert found.known.all() and found.n_events == 2
    assert f"obs['event'] = {value!r} is read as an event (2)" in caplog.text


def test_missing_values_are_not_known():
    obs = {"time": [1, np.nan, 3, 4], "event": pd.array([True, True, None, False], dtype="boolean")}
    found = read_survival(ad.AnnData(obs=pd.DataFrame(obs, index=list("abcd"))), "time", "event", True, None)
    np.testing.assert_array_equal(found.known, [True, False, False, True])
    np.testing.assert_array_equal(found.event, [True, False, False, False])
