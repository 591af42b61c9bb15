import sys

import numpy as np
import pandas as pd
import pytest
from scipy.stats import chi2
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score, silhouette_score

import stfuse
from stfuse.metrics import _integration, integration_scores

N = 200  # of all cases here: each new number of observations is compiled anew


@pytest.fixture
def without_scib(monkeypatch):
    monkeypatch.setitem(sys.modules, "scib_metrics", None)


def case(seed=0, shift=1.0):
    """Two groups, two batches that are partly apart, and domains with some errors."""
    rng = np.random.default_rng(seed)
    labels, batch = np.repeat(["a", "b"], N // 2), np.array(["x", "y"])[rng.integers(0, 2, N)]
    codes = rng.normal(size=(N, 4)) + 3 * (labels == "b")[:, None]
    codes[:, 0] += shift * (batch == "y")
    domains = np.where(rng.random(N) < 0.1, rng.integers(0, 2, N), labels == "b").astype(int)
    return codes, batch, labels, domains


def nearest(codes, k):
    """Nearest neighbours, the slow way, each observation first of its own."""
    distances = np.linalg.norm(codes[:, None] - codes[None], axis=2)
    order = np.argsort(distances, axis=1, kind="stable")[:, :k]
    return order, np.take_along_axis(distances, order, axis=1)


def lisi(codes, batch, k):
    """Inverse Simpson index of each neighbourhood, weights by bisection to a perplexity of a third of it."""
    found = []
    indices, distances = nearest(codes, k)
    for near, apart in zip(indices[:, 1:], distances[:, 1:], strict=True):
        low, high = 0.0, 1e3
        for _ in range(200):
            beta = (low + high) / 2
            p = np.exp(-beta * (apart - apart.min()))
            p /= p.sum()
            entropy = -(p * np.log(np.maximum(p, 1e-300))).sum()
            low, high = (beta, high) if entropy > np.log(k // 3) else (low, beta)
        found.append(1 / sum(p[batch[near] == b].sum() ** 2 for b in np.unique(batch)))
    return np.array(found)


def kbet(codes, batch, k):
    """Share of neighbourhoods that a chi-squared test of the batches' proportions does not reject."""
    names, whole = np.unique(batch, return_counts=True)
    expected = k * whole / len(batch)
    observed = np.array([[(batch[near] == name).sum() for name in names] for near in nearest(codes, k)[0]])
    statistic = ((observed - expected) ** 2 / expected).sum(axis=1)
    return (chi2.sf(statistic, len(names) - 1) >= 0.05).mean()


def test_parts_are_those_of_the_references():
    codes, batch, labels, domains = case()
    found = integration_scores(codes, batch, labels, domains, bio_weight=0.7)
    assert list(found) == ["ari", "nmi", "silhouette", "ilisi", "kbet", "score"]
    assert found["ari"] == pytest.approx(adjusted_rand_score(labels, domains))
    assert found["nmi"] == pytest.approx(normalized_mutual_info_score(labels, domains))
    assert found["silhouette"] == pytest.approx((silhouette_score(codes, labels) + 1) / 2)
    assert found["ilisi"] == pytest.approx(np.median(lisi(codes, batch, 90)) - 1, abs=2e-3)
    assert found["kbet"] == pytest.approx(kbet(codes, batch, 50), abs=0.011)
    assert 0.2 < found["kbet"] < 0.9 and 0.2 < found["ilisi"] < 0.9
    bio, mixing = [found[k] for k in ("ari", "nmi", "silhouette")], [found["ilisi"], found["kbet"]]
    assert found["score"] == pytest.approx(0.7 * np.mean(bio) + 0.3 * np.mean(mixing))


def test_mixing_is_scib_metrics():
    import scib_metrics
    from scib_metrics.nearest_neighbors import NeighborsResults

    codes, batch, *_ = case(seed=1)
    indices, distances = nearest(codes, 90)
    near = NeighborsResults(indices=indices, distances=distances)
    found = integration_scores(codes, batch, bio_weight=0)
    assert found["ilisi"] == pytest.approx(float(scib_metrics.ilisi_knn(near, batch)), abs=1e-5)
    assert found["kbet"] == pytest.approx(float(scib_metrics.kbet(near.subset_neighbors(50), batch)[0]))
    assert found["score"] == pytest.approx((found["ilisi"] + found["kbet"]) / 2)
    assert np.isnan(found["ari"]) and np.isnan(found["silhouette"])


def test_separated_and_mixed_batches():
    codes, batch, labels, _ = case()
    apart = integration_scores(codes + 100 * (batch == "y")[:, None], batch, labels, labels)
    assert apart["ilisi"] == pytest.approx(0, abs=1e-6) and apart["kbet"] == 0
    assert apart["ari"] == apart["nmi"] == 1
    # everything in one place: a neighbourhood is any part of the whole
    alternate = np.arange(N) % 2
    codes = np.random.default_rng(0).normal(size=(N, 4))
    mixed = integration_scores(codes, alternate, labels, labels)
    assert mixed["ilisi"] > 0.9 and mixed["kbet"] > 0.9
    assert mixed["score"] > apart["score"]


def test_a_batch_of_one_observation_is_left_out():
    codes, batch, labels, domains = case()
    with pytest.warns(UserWarning, match="1 batch.* single observation") as caught:
        found = integration_scores(
            np.vstack([codes, codes[:1]]), [*batch, "z"], [*labels, None], [*domains, 0], bio_weight=0.5
        )
    assert caught[0].filename == __file__
    expected = integration_scores(codes, batch, labels, domains, bio_weight=0.5)
    assert found == pytest.approx(expected)


def test_the_score_is_that_of_what_is_there(without_scib):
    codes, batch, labels, domains = case()
    with pytest.warns(UserWarning, match=r"scib-metrics.*stfuse\[scores\]") as caught:
        found = integration_scores(codes, batch, labels, domains)
    assert caught[0].filename == __file__
    assert np.isnan(found["ilisi"]) and np.isnan(found["kbet"])
    assert found["score"] == pytest.approx(np.mean([found[k] for k in ("ari", "nmi", "silhouette")]))
    assert integration_scores(codes, None, labels, domains) == pytest.approx(found, nan_ok=True)
    assert integration_scores(codes, ["x"] * N, labels, domains) == pytest.approx(found, nan_ok=True)
    by_domain = integration_scores(codes, None, domains=domains)
    assert by_domain["silhouette"] == by_domain["score"] == pytest.approx((silhouette_score(codes, domains) + 1) / 2)
    assert integration_scores(codes, None, domains=np.zeros(N))["score"] == 0


def test_missing_codes_and_labels_are_left_out():
    codes, _, labels, domains = case()
    codes[:5], some = np.nan, labels.astype(object)
    some[5:30] = None
    known = np.arange(N) >= 30
    found = integration_scores(codes, None, pd.Categorical(some), domains)
    expected = integration_scores(codes[known], None, labels[known], domains[known])
    assert found == pytest.approx(expected, nan_ok=True)


def test_large_data_are_sampled(monkeypatch):
    codes, _, labels, domains = case()
    whole = integration_scores(codes, None, labels, domains)
    monkeypatch.setattr(_integration, "SAMPLE", 120)
    found = integration_scores(codes, None, labels, domains)
    assert found["ari"] == whole["ari"]
    assert found["silhouette"] != whole["silhouette"]
    assert found["silhouette"] == pytest.approx(whole["silhouette"], abs=0.05)
    assert integration_scores(codes, None, labels, domains) == pytest.approx(found, nan_ok=True)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"bio_weight": 1.5}, "bio_weight must be a number between 0 and 1"),
        ({"codes": np.zeros(N)}, "matrix"),
        ({"codes": np.full((N, 2), np.nan)}, "Every row"),
        ({"codes": np.full((N, 2), np.inf)}, "infinite"),
        ({"codes": np.where(np.eye(N, 3), np.nan, 1)}, r"3 row\(s\) of codes have NaN in part \(first: row 0\)"),
        ({"batch": ["x"]}, "batch has 1 entries, codes has 200 rows"),
        ({"batch": [None] * N}, "batch has 200 missing"),
        ({"labels": [np.nan] * N}, "labels: all missing"),
        ({"labels": ["a"] * N}, "labels: only one class"),
        ({"domains": [np.nan] * N}, "domains has 200 missing"),
        ({"batch": None, "bio_weight": 0}, "Nothing is left to score with bio_weight=0"),
        ({"batch": None, "labels": None, "domains": None}, "Nothing is left"),
    ],
)
def test_bad_input(change, match, without_scib):
    arguments = dict(zip(("codes", "batch", "labels", "domains"), case(), strict=True)) | change
    with pytest.raises(ValueError, match=match):
        stfuse.metrics.integration_scores(**arguments)


def test_too_few_observations_are_not_scored_for_mixing():
    found = integration_scores(np.arange(8.0)[:, None], [0, 1] * 4, [0] * 4 + [1] * 4)
    assert np.isnan(found["ilisi"]) and np.isnan(found["kbet"])
    assert found["score"] == found["silhouette"]
