import warnings

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import accuracy_score, f1_score

from stfuse.metrics import balanced_accuracy, domain_scores, macro_f1, micro_f1, r2, weighted_f1

LABELS = [balanced_accuracy, macro_f1, micro_f1, weighted_f1]


def test_f1_by_hand():
    true, predicted = list("aaaabbc"), list("aaabbba")
    # a: tp 3, fp 1, fn 1; b: tp 2, fp 1, fn 0; c: never found
    assert macro_f1(true, predicted) == pytest.approx((0.75 + 0.8 + 0) / 3)
    assert micro_f1(true, predicted) == pytest.approx(5 / 7)
    assert weighted_f1(true, predicted) == pytest.approx((4 * 0.75 + 2 * 0.8 + 0) / 7)
    # found: 3 of 4, 2 of 2, 0 of 1
    assert balanced_accuracy(true, predicted) == pytest.approx((0.75 + 1 + 0) / 3)


def test_a_class_that_is_only_predicted_counts():
    assert macro_f1(["a", "a"], ["a", "b"]) == pytest.approx((2 / 3 + 0) / 2)


@pytest.mark.parametrize("score", LABELS)
def test_names_of_labels_do_not_matter(score):
    rng = np.random.default_rng(0)
    true, predicted = rng.integers(0, 4, 200), rng.integers(0, 5, 200)
    names = np.array(["e", "a", "d", "b", "c"])
    reference = {
        weighted_f1: lambda t, p: f1_score(t, p, average="weighted"),
        macro_f1: lambda t, p: f1_score(t, p, average="macro"),
        micro_f1: accuracy_score,
        balanced_accuracy: lambda t, p: np.mean([(p[t == c] == c).mean() for c in range(4)]),
    }[score]
    assert score(true, predicted) == pytest.approx(reference(true, predicted))
    assert score(pd.Categorical(names[true]), list(names[predicted])) == pytest.approx(reference(true, predicted))


def test_a_class_that_is_only_predicted_is_not_one_to_find():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert balanced_accuracy(["a", "a", "b"], ["a", "z", "b"]) == pytest.approx(0.75)
        assert weighted_f1(["a", "a"], ["a", "b"]) == pytest.approx(2 / 3)


@pytest.mark.parametrize("score", LABELS)
@pytest.mark.parametrize(
    ("true", "predicted", "match"),
    [
        (["a"], ["a", "b"], "labels_true has 1 entries, labels_pred 2"),
        ([], [], "labels_true has 0 entries"),
        (["a", None], ["a", "b"], r"labels_true has 1 missing value\(s\)"),
        ([1.0, 2.0], [1.0, np.nan], r"labels_pred has 1 missing value\(s\)"),
        (["1", "2"], [1, 2], "labels_true holds text and labels_pred holds no text"),
    ],
)
def test_labels_that_cannot_be_compared(score, true, predicted, match):
    with pytest.raises(ValueError, match=match):
        score(true, predicted)


def test_r2_is_the_mean_over_targets():
    true = np.array([[0.0, 0.0], [1.0, 2.0], [2.0, 4.0]])
    assert r2(true, true) == 1
    assert r2(true, np.column_stack([true[:, 0], np.full(3, 2.0)])) == pytest.approx(0.5)
    assert np.isnan(r2(true[:1], true[:1]))


def test_domain_scores():
    true = np.repeat(["x", "y", "z"], 20)
    renamed = pd.Categorical(np.repeat(["2", "0", "1"], 20))
    assert domain_scores(true, renamed) == {"ari": 1.0, "nmi": 1.0, "n_obs": 60}
    shuffled = np.random.default_rng(0).permutation(true)
    assert abs(domain_scores(true, shuffled)["ari"]) < 0.1


def test_missing_labels_are_left_out():
    scores = domain_scores([np.nan, "a", "b", None, "a"], pd.Series(["0", "1", "0", "1", None]))
    assert scores["n_obs"] == 2
    with pytest.raises(ValueError, match="both labels"):
        domain_scores([None, "a"], ["a", None])
    with pytest.raises(ValueError, match="entries"):
        domain_scores(["a"], ["a", "b"])
