"""Linear heads on codes of slides, beside scikit-learn."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.preprocessing import StandardScaler

from stfuse._folds import stratified_group_folds
from stfuse.tl._slide_heads import C_GRID, UNCHOSEN, ClassTarget, SurvivalTarget, logistic


def data(n=60, d=10, n_classes=2, seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(n) % n_classes)
    x = rng.normal(size=(n, d)) * rng.uniform(1, 9, d) + 5
    x[:, 0] += 6 * labels
    return x, labels, np.arange(n) // 2


@pytest.mark.parametrize("n_classes", [2, 3])
def test_penalty_is_that_of_the_likeliest_held_out_groups(n_classes):
    x, labels, groups = data(n_classes=n_classes)
    part = stratified_group_folds(labels, groups, 5, 3)
    z = StandardScaler().fit_transform(x)
    loss = []
    for c in C_GRID:
        told = np.empty((60, n_classes))
        for i in range(5):
            model = LogisticRegression(C=c, max_iter=2000).fit(z[part != i], labels[part != i])
            told[part == i] = model.predict_proba(z[part == i])
        loss.append(log_loss(labels, told))
    best = C_GRID[int(np.argmin(loss))]
    asked = data(7, n_classes=n_classes, seed=1)[0]
    scaler = StandardScaler().fit(x)
    literal = LogisticRegression(C=best, max_iter=2000).fit(scaler.transform(x), labels)
    found = logistic(x, labels, groups, asked, n_classes, 3)
    np.testing.assert_allclose(found, literal.predict_proba(scaler.transform(asked)), atol=1e-6)


def test_few_slides_with_wide_codes_get_the_same_head():
    """Turned into the space of the slides, nothing changes but the number of columns."""
    x, labels, groups = data(20, 50)
    asked = data(5, 50, seed=1)[0]
    scaler = StandardScaler().fit(x)
    found = logistic(x, labels, groups, asked, 2, 0)
    apart = [
        np.abs(found - LogisticRegression(C=c, max_iter=2000, tol=1e-8).fit(scaler.transform(x), labels).predict_proba(scaler.transform(asked))).max()
        for c in C_GRID
    ]  # fmt: skip
    # as far as the solver goes; of one penalty alone
    assert min(apart) < 0.01 and sorted(apart)[1] > 0.1


def test_one_slide_a_class_and_classes_that_are_not_seen():
    x, labels, groups = data(4)
    scaler = StandardScaler().fit(x[:2])
    labels = np.array([0, 2])
    found = logistic(x[:2], labels, groups[:2], x[2:], 3, 0)
    literal = LogisticRegression(C=UNCHOSEN).fit(scaler.transform(x[:2]), labels).predict_proba(scaler.transform(x[2:]))
    np.testing.assert_allclose(found[:, [0, 2]], literal, atol=1e-6)
    np.testing.assert_array_equal(found[:, 1], 0)


def test_scores_of_classes_with_one_class_only():
    target = ClassTarget(np.array([0, 1, 1]), np.arange(3), ["a", "b"])
    scores = target.score(np.array([1, 2]), np.array([[0.3, 0.7], [0.6, 0.4]]))
    assert scores["accuracy"] == 0.5 and np.isnan(scores["auroc"])


def test_risk_of_a_network_is_that_of_its_hazards():
    target = SurvivalTarget(np.array([True, False]), np.arange(2), np.array([1.0, 5.0]), [np.array([2.0])])
    logits = np.array([[0.0, 0.0], [2.0, -1.0]], np.float32)
    hazard = 1 / (1 + np.exp(-logits.astype(float)))
    np.testing.assert_allclose(target.of_logits(logits), -np.cumprod(1 - hazard, 1).sum(1), rtol=1e-6)
    assert target.score(np.arange(2), np.array([0.2, 0.1])) == {"c_index": 1.0}
    assert target.count(np.arange(2)) == {"n_events": 1}
