import numpy as np
import pytest
from sklearn.metrics import davies_bouldin_score, silhouette_score

from stfuse.metrics import _separation, davies_bouldin, silhouette

SCORES = [davies_bouldin, silhouette]


def case(n=90, seed=0):
    rng = np.random.default_rng(seed)
    labels = np.array(list("abc"))[np.arange(n) % 3]
    return rng.normal(size=(n, 4)) + np.eye(3, 4)[np.arange(n) % 3] * 2, labels


def slow_davies_bouldin(codes, labels):
    names = np.unique(labels)
    centres = np.array([codes[labels == name].mean(0) for name in names])
    widths = [
        np.linalg.norm(codes[labels == name] - centre, axis=1).mean()
        for name, centre in zip(names, centres, strict=True)
    ]
    worst = [
        max((widths[i] + widths[j]) / np.linalg.norm(centres[i] - centres[j]) for j in range(len(names)) if j != i)
        for i in range(len(names))
    ]
    return np.mean(worst)


def slow_silhouette(codes, labels):
    apart = np.linalg.norm(codes[:, None] - codes[None], axis=2)
    widths = []
    for i, own in enumerate(labels):
        same = (labels == own) & (np.arange(len(labels)) != i)
        a = apart[i][same].mean() if same.any() else 0
        b = min(apart[i][labels == name].mean() for name in set(labels) - {own})
        widths.append((b - a) / max(a, b) if same.any() else 0)
    return np.mean(widths)


def test_against_the_literal_versions():
    codes, labels = case()
    labels = labels.copy()
    labels[0] = "alone"
    assert davies_bouldin(codes, labels) == pytest.approx(slow_davies_bouldin(codes, labels))
    assert silhouette(codes, labels) == pytest.approx(slow_silhouette(codes, labels))


@pytest.mark.parametrize(
    ("score", "reference"), [(davies_bouldin, davies_bouldin_score), (silhouette, silhouette_score)]
)
def test_what_is_missing_is_left_out(score, reference):
    codes, labels = case()
    some = labels.astype(object)
    codes[:5], some[5:10] = np.nan, None
    assert score(codes, some) == pytest.approx(reference(codes[10:], labels[10:]))


def test_groups_that_lie_apart_score_better():
    codes, labels = case()
    wide = codes + 20 * np.eye(3, 4)[np.arange(90) % 3]
    assert davies_bouldin(wide, labels) < davies_bouldin(codes, labels)
    assert 0.9 < silhouette(wide, labels) > silhouette(codes, labels)


def test_many_observations_are_sampled(monkeypatch):
    codes, labels = case()
    whole = silhouette(codes, labels)
    monkeypatch.setattr(_separation, "SAMPLE", 60)
    found = silhouette(codes, labels)
    assert found == silhouette(codes, labels) != whole
    assert found == pytest.approx(whole, abs=0.05)
    assert found != silhouette(codes, labels, seed=1)


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"labels": ["a"] * 90}, r"90 observation\(s\) .* make 1 group"),
        ({"labels": np.arange(90)}, "fewer groups than observations"),
        ({"labels": [None] * 90}, r"0 observation\(s\)"),
        ({"labels": ["a", "b"]}, "labels has 2 entries, codes has 90 rows"),
        ({"codes": np.zeros(90)}, "codes must be a matrix"),
        ({"codes": np.where(np.eye(90, 2), np.nan, 1)}, "NaN in part"),
        ({"codes": np.full((90, 2), np.inf)}, "infinite"),
    ],
)
def test_bad_input(score, change, match):
    with pytest.raises(ValueError, match=match):
        score(**dict(zip(("codes", "labels"), case(), strict=True)) | change)
