import numpy as np
import pandas as pd
import pytest

from stfuse.metrics import domain_scores, macro_f1, micro_f1, r2


def test_f1_by_hand():
    true, predicted = list("aaaabbc"), list("aaabbba")
    # a: tp 3, fp 1, fn 1; b: tp 2, fp 1, fn 0; c: never found
    assert macro_f1(true, predicted) == pytest.approx((0.75 + 0.8 + 0) / 3)
    assert micro_f1(true, predicted) == pytest.approx(5 / 7)


def test_a_class_that_is_only_predicted_counts():
    assert macro_f1(["a", "a"], ["a", "b"]) == pytest.approx((2 / 3 + 0) / 2)


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
