"""Recursive feature elimination with a linear support vector machine, for few samples of very many genes.

The machine is trained on the kernel matrix (samples x samples), which does not grow with the genes: those that are eliminated
are subtracted from it. Genes are read in blocks, so that nothing of the size of the matrix is made.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from stfuse._progress import progress
from stfuse.pp._gene_blocks import Genes


class Elimination(NamedTuple):
    """Rank of each gene (1 = kept to the end), and the accuracy on held-out samples with so many genes."""

    ranking: np.ndarray
    sizes: np.ndarray
    accuracy: np.ndarray


def gram(genes: Genes, chosen: np.ndarray) -> np.ndarray:
    """Inner products of samples over some genes."""
    found = np.zeros((genes.n_rows, genes.n_rows))
    for _, block in genes.blocks(chosen):
        found += block @ block.T
    return found


def eliminate(
    genes: Genes, kernel: np.ndarray, labels: np.ndarray, train: np.ndarray, *, n_keep: int, step: int
) -> Elimination:
    """Take the ``step`` genes with the smallest squared weights away, again and again, until ``n_keep`` are left.

    ``kernel`` is `gram` over all genes; ``labels`` of samples that are not in ``train`` are only predicted.
    """
    from sklearn.svm import SVC

    kernel, kept = kernel.copy(), np.arange(genes.n_genes)
    ranking = np.zeros(len(kept), dtype=np.int64)
    test = np.setdiff1d(np.arange(genes.n_rows), train)
    sizes, accuracy = [], []
    while True:
        last = len(kept) <= n_keep
        if last and not len(test):
            break
        machine = SVC(kernel="precomputed").fit(kernel[np.ix_(train, train)], labels[train])
        if len(test):
            sizes.append(len(kept))
            accuracy.append(float(np.mean(machine.predict(kernel[np.ix_(test, train)]) == labels[test])))
        if last:
            break
        coefficients = np.zeros((genes.n_rows, len(machine.classes_) * (len(machine.classes_) - 1) // 2))
        coefficients[train[machine.support_]] = pair_coefficients(machine.dual_coef_, machine.n_support_)
        order = np.argsort(_importance(genes, kept, coefficients), kind="stable")
        n_drop = min(step, len(kept) - n_keep)
        dropped, kept = np.sort(kept[order[:n_drop]]), np.sort(kept[order[n_drop:]])
        ranking += 1
        ranking[kept] = 0
        # the smaller part is read
        kernel = gram(genes, kept) if len(kept) <= len(dropped) else kernel - gram(genes, dropped)
    return Elimination(ranking + 1, np.array(sizes, dtype=np.int64), np.array(accuracy))


def pair_coefficients(dual: np.ndarray, n_support: np.ndarray) -> np.ndarray:
    """Weights of the support vectors in each pair of classes, support vectors x pairs.

    libsvm trains one machine a pair. Row ``b - 1`` of its coefficients holds those of class ``a`` against ``b`` where
    ``a < b``, row ``a`` those of ``b`` against ``a``; support vectors stand in the order of classes.
    """
    ends = np.cumsum(n_support)
    of = [slice(end - n, end) for end, n in zip(ends, n_support, strict=True)]
    pairs = [(a, b) for a in range(len(of)) for b in range(a + 1, len(of))]
    found = np.zeros((dual.shape[1], len(pairs)))
    for i, (a, b) in enumerate(pairs):
        found[of[a], i] = dual[b - 1, of[a]]
        found[of[b], i] = dual[a, of[b]]
    return found


def _importance(genes: Genes, chosen: np.ndarray, coefficients: np.ndarray) -> np.ndarray:
    """Squared weight of each gene, summed over pairs of classes."""
    found = np.empty(len(chosen))
    for part, block in genes.blocks(chosen):
        found[part] = ((coefficients.T @ block) ** 2).sum(axis=0)
    return found


def cross_validate(
    genes: Genes, kernel: np.ndarray, labels: np.ndarray, fold: np.ndarray, *, step: int
) -> tuple[np.ndarray, np.ndarray]:
    """Eliminate down to one gene with each fold held out: numbers of genes (ascending), accuracy (folds x numbers)."""
    found = [
        eliminate(genes, kernel, labels, np.flatnonzero(fold != i), n_keep=1, step=step)
        for i in progress(range(int(fold.max()) + 1), desc="select_genes")
    ]
    return found[0].sizes[::-1], np.array([each.accuracy[::-1] for each in found])
