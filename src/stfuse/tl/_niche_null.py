"""What chance does to a table of domains by cell types: labels of domains shuffled among the cells of each section."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from scipy.stats import false_discovery_control, random_table

BLOCK = 2_000_000  # entries of the random tables that are held at once
HALF = 0.5  # of a cell, added to both sides of a fold: a type that is absent has a finite one


class Enrichment(NamedTuple):
    """Domains x types: log2 of observed over expected cells, standard deviations from the expected, p, adjusted p."""

    fold: np.ndarray
    z: np.ndarray
    p: np.ndarray
    padj: np.ndarray


def count_cells(section: np.ndarray, domain: np.ndarray, cell_type: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Count the cells of each section, domain and type, given as codes."""
    cell = np.ravel_multi_index((section, domain, cell_type), shape)
    return np.bincount(cell, minlength=int(np.prod(shape))).reshape(shape)


def enrichment(counts: np.ndarray, n_perms: int, rng: np.random.Generator) -> Enrichment:
    """Compare counts (sections x domains x types) with what shuffling within sections gives."""
    observed = counts.sum(axis=0)
    expected, variance = moments(counts)
    fold = np.log2((observed + HALF) / (expected + HALF))
    varies = variance > 0
    z = np.divide(observed - expected, np.sqrt(variance), out=np.zeros(observed.shape), where=varies)
    p = p_values(observed, shuffled_counts(counts, n_perms, rng), n_perms)
    return Enrichment(fold, z, p, false_discovery_control(p.ravel()).reshape(p.shape))


def moments(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and variance of the counts of shuffled labels, exactly: sums of hypergeometric ones over sections."""
    domain, cell_type = counts.sum(axis=2, dtype=float), counts.sum(axis=1, dtype=float)
    n = domain.sum(axis=1)[:, None, None]
    in_domain, of_type = domain[:, :, None], cell_type[:, None, :]
    expected = in_domain * of_type / np.maximum(n, 1)
    variance = expected * (n - in_domain) * (n - of_type) / np.maximum(n * (n - 1), 1)
    return expected.sum(axis=0), variance.sum(axis=0)


def shuffled_counts(counts: np.ndarray, n_perms: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Draw counts (draws x domains x types) of shuffled labels, summed over sections, some draws at a time.

    Tables with the margins of each section are drawn, which takes no longer for more cells.
    """
    step = max(1, BLOCK // counts[0].size)
    for start in range(0, n_perms, step):
        n = min(step, n_perms - start)
        total = np.zeros((n, *counts.shape[1:]), dtype=np.int64)
        for table in counts:
            total += _draw(table, n, rng)
        yield total


def _draw(table: np.ndarray, n: int, rng: np.random.Generator) -> np.ndarray:
    domains, types = np.flatnonzero(table.sum(axis=1)), np.flatnonzero(table.sum(axis=0))
    drawn = np.broadcast_to(table, (n, *table.shape))
    # with one domain or one type there is one table only, and scipy's draws of such are wrong
    if min(domains.size, types.size) < 2:
        return drawn
    drawn = drawn.copy()
    part = table[np.ix_(domains, types)]
    drawn[:, domains[:, None], types] = random_table.rvs(
        part.sum(axis=1), part.sum(axis=0), size=n, method="patefield", random_state=rng
    )
    return drawn


def p_values(observed: np.ndarray, draws: Iterator[np.ndarray], n_perms: int) -> np.ndarray:
    """Two-sided p: twice the smaller tail, with the observed table counted as one of the draws."""
    above, below = np.ones(observed.shape), np.ones(observed.shape)
    for drawn in draws:
        above += (drawn >= observed).sum(axis=0)
        below += (drawn <= observed).sum(axis=0)
    return np.minimum(2 * np.minimum(above, below) / (n_perms + 1), 1.0)
