"""Elimination by the kernel matrix against scikit-learn's, which trains on the genes."""

import numpy as np
import pytest
from scipy.sparse import csc_matrix
from sklearn.feature_selection import RFE, RFECV
from sklearn.model_selection import PredefinedSplit
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

from stfuse._folds import random_folds
from stfuse.pp import _gene_blocks
from stfuse.pp._gene_blocks import Genes, in_memory, moments
from stfuse.pp._rfe import cross_validate, eliminate, gram, pair_coefficients


def expression(n=60, p=83, classes=2, seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, n)
    x = rng.gamma(2, rng.uniform(0.2, 5, p), (n, p))
    x[:, :8] += labels[:, None] * rng.uniform(0.5, 2, 8)
    return x, labels


def standardised(x, rows=None):
    genes = Genes.of(x, np.arange(x.shape[0]) if rows is None else rows)
    return genes.standardised(moments(genes, "X"), scale=True)


def whole_kernel(genes):
    return gram(genes, np.arange(genes.n_genes))


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Blocks of some genes, so that their borders are met."""
    monkeypatch.setattr(_gene_blocks, "BLOCK", 700)


@pytest.mark.parametrize("classes", [2, 3, 4])
@pytest.mark.parametrize(("n_keep", "step"), [(10, 4), (1, 7), (80, 30)])
def test_ranks_are_those_of_scikit_learn(classes, n_keep, step):
    x, labels = expression(classes=classes, seed=classes)
    genes = standardised(x)
    found = eliminate(genes, whole_kernel(genes), labels, np.arange(len(x)), n_keep=n_keep, step=step)
    expected = RFE(SVC(kernel="linear"), n_features_to_select=n_keep, step=step)
    expected.fit(StandardScaler().fit_transform(x), labels)
    np.testing.assert_array_equal(found.ranking, expected.ranking_)


@pytest.mark.parametrize("classes", [2, 3])
def test_cross_validation_is_that_of_scikit_learn(classes):
    x, labels = expression(70, classes=classes, seed=3)
    fold = random_folds(labels, len(x), 5, 0)
    genes = standardised(x)
    sizes, accuracy = cross_validate(genes, whole_kernel(genes), labels, fold, step=int(0.05 * x.shape[1]))
    expected = RFECV(SVC(kernel="linear"), step=0.05, cv=PredefinedSplit(fold), scoring="accuracy")
    expected.fit(StandardScaler().fit_transform(x), labels)
    np.testing.assert_array_equal(sizes, expected.cv_results_["n_features"])
    np.testing.assert_allclose(accuracy.mean(axis=0), expected.cv_results_["mean_test_score"], atol=1e-12)
    assert sizes[np.argmax(accuracy.sum(axis=0))] == expected.n_features_


def test_weights_of_pairs_are_those_of_the_genes():
    x, labels = expression(classes=4)
    machine = SVC(kernel="linear").fit(x, labels)
    weights = pair_coefficients(machine.dual_coef_, machine.n_support_).T @ machine.support_vectors_
    np.testing.assert_allclose(weights**2, machine.coef_**2, rtol=1e-9)


@pytest.mark.parametrize("layout", [np.asfortranarray, csc_matrix, np.float32])
def test_layout_does_not_matter(layout):
    x, labels = expression()
    x = x.astype(np.float32).astype(np.float64)
    call = {"labels": labels[10:], "train": np.arange(50), "n_keep": 5, "step": 4}
    rows = np.arange(10, 60)
    plain, other = standardised(x, rows), standardised(layout(x), rows)
    expected = eliminate(standardised(x[10:]), whole_kernel(standardised(x[10:])), **call)
    for genes in (plain, other):
        found = eliminate(genes, whole_kernel(genes), **call)
        np.testing.assert_array_equal(found.ranking, expected.ranking)


def test_kernel_stays_exact_where_genes_are_subtracted(monkeypatch):
    """The kernel of the last machine is the one that the genes left would give."""
    import sklearn.svm

    x, labels = expression(40, 200)
    seen = []

    class Spy(SVC):
        def fit(self, kernel, y):
            seen.append(kernel)
            return super().fit(kernel, y)

    monkeypatch.setattr(sklearn.svm, "SVC", Spy)
    genes = standardised(x)
    ranking = eliminate(genes, whole_kernel(genes), labels, np.arange(40), n_keep=3, step=10).ranking
    z = StandardScaler().fit_transform(x)[:, ranking <= 2]  # before the last round
    np.testing.assert_allclose(seen[-1], z @ z.T, atol=1e-10)
    assert len(seen) == 20


def test_labels_that_are_held_out_do_not_matter():
    x, labels = expression()
    genes, train = standardised(x), np.arange(40)
    first = eliminate(genes, whole_kernel(genes), labels, train, n_keep=5, step=4)
    labels = labels.copy()
    labels[40:] = 1 - labels[40:]
    second = eliminate(genes, whole_kernel(genes), labels, train, n_keep=5, step=4)
    np.testing.assert_array_equal(first.ranking, second.ranking)
    np.testing.assert_allclose(first.accuracy, 1 - second.accuracy)


def test_moments():
    x, _ = expression()
    x[:, 5] = 3.3
    genes = Genes.of(x.astype(np.float32), np.arange(3, 50))
    found = moments(genes, "X")
    np.testing.assert_allclose(found.mean, x[3:50].mean(0), rtol=1e-6)
    assert not found.varies[5] and found.varies.sum() == x.shape[1] - 1 and not found.counts
    np.testing.assert_allclose(found.sd[found.varies], x[3:50].std(0)[found.varies], rtol=1e-5)
    read = np.hstack([block for _, block in genes.standardised(found, True).blocks(np.arange(82))])
    np.testing.assert_allclose(read.mean(0), 0, atol=1e-12)
    np.testing.assert_allclose(read.std(0), 1)
    assert moments(Genes.of(np.rint(x), np.arange(9)), "X").counts


def test_dense_matrices_are_not_copied():
    x = np.zeros((3, 4), np.float32)
    assert np.shares_memory(in_memory(x), x)
