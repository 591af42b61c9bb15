"""Clusters that a spatial code is to keep apart, and how much the image has to say.

Expression of the neighbours is the judge: it was measured apart from an observation's own, so that noise that a clustering
follows does not help it. A grouping is as good as the groups around an observation predict its expression.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from stfuse import _cluster

EQUAL = 1.5  # weight of the image where both views count alike
STARTS = 10  # of each mixture
FEW = 20  # rows with both views from which a joint clustering can be judged


class ViewFeatures(NamedTuple):
    """Components of a view (n x d) as they are and reduced to what neighbours share, and the rows that have it."""

    raw: np.ndarray
    smooth: np.ndarray
    has: np.ndarray


def predicted_share(
    labels: np.ndarray, values: np.ndarray, neighbors: np.ndarray, section: np.ndarray | None = None
) -> float:
    """How well the groups around an observation predict its values: squared correlation in sections, mean over the columns.

    ``labels`` are 0..k-1 or -1 (no group, left out), ``values`` n x d, ``neighbors`` n x m rows (-1 = none, and never the row
    itself). A group predicts its mean. Values and predictions are taken from the mean of their section, so that groups that are sections
    tell nothing.
    """
    labelled = labels >= 0
    n_groups = int(labels.max()) + 1
    member = np.zeros((len(labels), n_groups))
    member[np.flatnonzero(labelled), labels[labelled]] = 1
    around = np.zeros_like(member)
    for column in neighbors.T:
        there = column >= 0
        around[there] += member[column[there]]
    known = labelled & (around.sum(1) > 0)
    if known.sum() < 3:
        return 0.0
    means = member[labelled].T @ values[labelled] / np.maximum(member.sum(0), 1)[:, None]
    predicted = around[known] @ means / around[known].sum(1, keepdims=True)
    where = np.zeros(known.sum(), np.int64) if section is None else np.unique(section[known], return_inverse=True)[1]
    a, b = _centred(predicted, where), _centred(values[known], where)
    scale = np.sqrt((a**2).sum(0) * (b**2).sum(0))
    # where all around are of one group, the prediction varies by rounding alone
    varies = a.std(0) > 1e-9 * b.std(0)
    correlation = np.divide((a * b).sum(0), scale, out=np.zeros(len(scale)), where=varies & (scale > 0))
    return float((np.clip(correlation, 0, None) ** 2).mean())


def _centred(values: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Values around the mean of their group."""
    member = np.zeros((int(groups.max()) + 1, len(groups)))
    member[groups, np.arange(len(groups))] = 1
    return values - (member @ values / member.sum(1, keepdims=True))[groups]


def judged_clusters(
    rna: ViewFeatures,
    image: ViewFeatures,
    neighbors: np.ndarray,
    n_clusters: int,
    seed: int,
    section: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray, float, dict[str, float]]:
    """Clusters for the RNA's and for the image's triplets, the image's weight in the loss (of 3), and what was found.

    The image's are those of its smoothed features. The RNA's are of its own smoothed features, or of both views together, smoothed or
    as they are, whichever predict the neighbours' expression best. The weight is that of equal views times the share of this
    prediction that the image's clusters reach, where both views are. What clusters predict counts the less the more they tell
    the sections apart. An observation without an image gets the joint cluster that
    its RNA is nearest to.
    """
    both = rna.has & image.has
    expression = np.nan_to_num(rna.raw)

    def share(labels: np.ndarray, rows: np.ndarray) -> float:
        labels = np.where(rows, labels, -1)
        return predicted_share(labels, expression, neighbors, section) * (1 - section_told(labels, section))

    labels = _clusters(rna.smooth, rna.has, n_clusters, seed, STARTS)
    best = share(labels, rna.has)
    report = {"predicted_rna": best}
    if both.sum() >= max(FEW, 0.5 * rna.has.sum(), n_clusters):
        pairs = {
            "both": _beside(rna.raw, image.raw, rna, image),
            "both_smooth": _beside(rna.smooth, image.smooth, rna, image),
        }
        for name, values in pairs.items():
            # their likelihood counts what the image's features say as much as expression: each start is judged
            starts = np.random.SeedSequence(seed).generate_state(STARTS)
            found = [_clusters(values, both, n_clusters, int(start), 1) for start in starts]
            found = [_extended(each, rna.smooth, rna.has) for each in found]
            told = [share(each, rna.has) for each in found]
            report[f"predicted_{name}"] = max(told)
            if max(told) > best:
                best, labels = max(told), found[int(np.argmax(told))]
    of_image = _clusters(image.smooth, image.has, n_clusters, seed, STARTS)
    told_by_rna = share(labels, both)
    if both.sum() < FEW or told_by_rna == 0:
        return labels, of_image, EQUAL, report if best > 0 else {}
    report["predicted_image"] = share(of_image, both)
    return labels, of_image, EQUAL * min(1.0, report["predicted_image"] / told_by_rna), report


def section_told(labels: np.ndarray, section: np.ndarray | None) -> float:
    """Share of the section's entropy that the groups tell: 0 if all sections have them alike, 1 if each is of one section."""
    known = labels >= 0
    if section is None or len(np.unique(section[known])) < 2:
        return 0.0
    joint = np.zeros((int(labels.max()) + 1, int(section.max()) + 1))
    np.add.at(joint, (labels[known], section[known]), 1)
    joint /= joint.sum()
    alone, groups, together = (_entropy(p) for p in (joint.sum(axis=0), joint.sum(axis=1), joint.ravel()))
    return float(np.clip((alone + groups - together) / alone, 0, 1))


def _entropy(p: np.ndarray) -> float:
    there = p[p > 0]
    return float(-(there * np.log(there)).sum())


def _extended(labels: np.ndarray, values: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Give rows without a cluster the one whose mean is nearest in ``values``, in units of the spread within clusters."""
    open_rows = np.flatnonzero(rows & (labels < 0))
    if not open_rows.size:
        return labels
    known = np.flatnonzero(rows & (labels >= 0))
    member = np.eye(int(labels.max()) + 1)[labels[known]]
    x = values.astype(np.float64)
    means = member.T @ x[known] / member.sum(0)[:, None]
    within = np.cov((x[known] - means[labels[known]]).T, bias=True).reshape(x.shape[1], x.shape[1])
    ridge = 1e-3 * max(float(np.trace(within)) / len(within), np.finfo(float).tiny)
    to_means = np.linalg.solve(within + ridge * np.eye(len(within)), means.T)
    score = x[open_rows] @ to_means - 0.5 * (means * to_means.T).sum(1)
    out = labels.copy()
    out[open_rows] = score.argmax(1)
    return out


def _beside(a: np.ndarray, b: np.ndarray, rna: ViewFeatures, image: ViewFeatures) -> np.ndarray:
    """Both views side by side, in units of the standard deviation before smoothing."""
    parts = []
    for values, view in ((a, rna), (b, image)):
        sd = view.raw[view.has].std(0)
        parts.append(values / np.where(sd > 0, sd, 1))
    return np.hstack(parts)


def _clusters(values: np.ndarray, rows: np.ndarray, n_clusters: int, seed: int, n_init: int) -> np.ndarray:
    """Mixture clusters of some rows, the likeliest of several starts."""
    return grouped(
        values, rows, lambda there: _cluster.gmm(there, n_clusters, seed, n_init) if n_clusters > 1 else None
    )


def grouped(values: np.ndarray, rows: np.ndarray, find: Callable[[np.ndarray], np.ndarray | None]) -> np.ndarray:
    """Clusters of some rows, numbered without gaps; -1 elsewhere. Rows that are all alike are one cluster."""
    out = np.full(len(values), -1)
    there = values[rows]
    found = find(there) if np.ptp(there, axis=0).any() else None
    out[rows] = 0 if found is None else np.unique(found, return_inverse=True)[1]
    return out
