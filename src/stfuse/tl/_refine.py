"""Smooth domains in space without wearing thin layers away."""

from __future__ import annotations

import numpy as np

from stfuse._neighbors import section_neighbors

# Sizes a neighbourhood can grow through: four and eight are the rings of a square lattice, six and 18 of a hexagonal one.
RINGS = (4, 6, 8, 12, 18)
# A ring belongs to the neighbourhood while its labels agree this much as well as those of the innermost ring.
AGREEMENT = 0.8
# The observation's own label counts as this many neighbours.
OWN_VOTES = 2.0


def choose_n_neighbors(labels: np.ndarray, neighbors: np.ndarray) -> int:
    """Find how far a neighbour still tells something about an observation's label.

    The chance-corrected agreement of labels falls with distance as fast as the domains are narrow: noise lowers it in
    all rings alike, so the ratio to the innermost ring measures their width.
    """
    share = np.bincount(labels) / len(labels)
    chance = float((share**2).sum())
    real = neighbors != np.arange(len(labels))[:, None]
    same = (labels[neighbors] == labels[:, None]) & real
    chosen, inner, first = RINGS[0], 0, None
    for outer in RINGS:
        n = real[:, inner:outer].sum()
        if not n:
            break
        agreement = same[:, inner:outer].sum() / n - chance
        if first is None:
            first = agreement
        if agreement < AGREEMENT * first:
            break
        chosen, inner = outer, outer
    return chosen


def _vote(labels: np.ndarray, neighbors: np.ndarray) -> np.ndarray:
    n, n_labels = len(labels), int(labels.max()) + 1
    rows = np.arange(n)
    real = neighbors != rows[:, None]
    cell = rows[:, None] * n_labels + labels[neighbors]
    votes = np.bincount(cell[real], minlength=n * n_labels).reshape(n, n_labels).astype(float)
    # the small extra lets the observation keep its label in a tie
    votes[rows, labels] += OWN_VOTES + 0.5
    return votes.argmax(1)


def refine_labels(
    labels: np.ndarray, spatial: np.ndarray, section: np.ndarray, n_neighbors: int | None
) -> tuple[np.ndarray, int]:
    """Give every observation the majority label of its surroundings, inside its section.

    ``labels`` are codes 0..k-1; ``n_neighbors=None`` lets the labels say how wide the neighbourhood may be.
    Returns the new labels and the number of neighbours used.
    """
    table = section_neighbors(spatial, section, RINGS[-1] if n_neighbors is None else n_neighbors)
    if n_neighbors is None:
        n_neighbors = choose_n_neighbors(labels, table)
    return _vote(labels, table[:, :n_neighbors]), n_neighbors
