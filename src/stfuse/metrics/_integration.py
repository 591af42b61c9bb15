"""How well a code of several batches keeps the biology and mixes the batches."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pandas as pd

from stfuse._check import check_number
from stfuse._log import warn
from stfuse.metrics._domains import domain_scores

BIO = ("ari", "nmi", "silhouette")
BATCH = ("ilisi", "kbet")
# What scib-metrics takes in its own benchmark; LISI and kBET are different numbers for other sizes.
LISI_NEIGHBORS = 90
KBET_NEIGHBORS = 50
# Below, a neighbourhood is nearly the whole data and its perplexity, a third of it, means nothing.
FEWEST = 10
# in fewer, kBET's neighbourhoods are too small to tell a mixture from its absence
KBET_FEWEST = 40
# Silhouettes and exact neighbours cost the square of the observations: of more than this a random part is scored.
SAMPLE = 20_000


def integration_scores(
    codes: np.ndarray,
    batch: np.ndarray | None,
    labels: np.ndarray | None = None,
    domains: np.ndarray | None = None,
    bio_weight: float = 0.6,
) -> dict[str, float]:
    r"""Score a code of several batches: biology that is kept, batches that are mixed, and both in one number.

    .. math::

        \text{score} = \lambda\, \overline{(\text{ARI}, \text{NMI}, \text{silhouette})} +
        (1 - \lambda)\, \overline{(\text{iLISI}, \text{kBET})}

    All parts are larger for a better code. A part that can't be computed is NaN and left out of its mean; where one of the
    two means has no part at all, the score is the other one.

    Parameters
    ----------
    codes
        Code of n observations, n x d. Rows of NaN are left out of everything.
    batch
        Batch (section, sample) of each observation. None, or a single batch: iLISI and kBET are left out.
    labels
        Known label of each observation; missing ones (NaN, None) are left out of the scores that need them.
    domains
        Domain that was found for each observation.
    bio_weight
        :math:`\lambda`, the weight of the biology, between 0 and 1.

    Returns
    -------
    dict
        - `ari`, `nmi`: agreement of `domains` with `labels`; NaN unless both are given. ARI is 0 for chance, and may be
          slightly negative
        - `silhouette`: mean silhouette width :math:`s` of the code by `labels`, by `domains` where there are no labels, as
          :math:`(s + 1) / 2`, so that 0.5 means no separation. 0 where all is one domain
        - `ilisi`: median number of batches among an observation's 90 nearest, scaled to 0 (its own only) to 1 (all alike)
        - `kbet`: share of the observations whose 50 nearest (a quarter of all where there are fewer than 200; NaN below 40) have the batches in the proportions of the whole, by a
          :math:`\chi^2` test at the level 0.05
        - `score`

    Raises
    ------
    ValueError
        If lengths differ, a row of the code has NaN in part, the labels are all missing or of a single class, `bio_weight` is
        not between 0 and 1, or nothing is left that carries weight.

    Warns
    -----
    UserWarning
        If scib-metrics is not installed, so that iLISI and kBET are left out (`pip install 'stfuse[scores]'`); if a batch
        has a single observation, which can't be mixed and is left out of both.

    Notes
    -----
    The score of Luecken et al. (2022), Benchmarking atlas-level data integration in single-cell genomics, with the metrics
    that the cross-sample study of AESTETIK names. iLISI and kBET are those of scib-metrics, on exact neighbours. Its kBET looks at all
    observations together, not at each label by itself. Both fall where batches differ in composition, however well they are
    corrected: compare codes of the same data, not data sets.

    Of more than 20,000 observations a random 20,000 decide silhouette, iLISI and kBET. The first call takes some seconds in
    which jax is loaded, and each new number of observations some more in which it compiles.

    Examples
    --------
    >>> import stfuse
    >>> adata = stfuse.datasets.synthetic_tissue(300, 2)
    >>> scores = stfuse.metrics.integration_scores(adata.obsm["X_pca"], None, labels=adata.obs["domain"])
    >>> 0.5 < scores["silhouette"] == scores["score"]
    True
    """
    check_number("bio_weight", bio_weight, least=0, most=1)
    codes = complete_codes(codes)
    kept = ~np.isnan(codes).any(axis=1)
    columns = {"batch": batch, "labels": labels, "domains": domains}
    groups = {
        name: group_codes(values, name, len(codes))[kept] for name, values in columns.items() if values is not None
    }
    _check_labels(groups.get("labels"))
    batches = groups.get("batch")
    if batches is not None and len(np.unique(batches)) > 1:
        if scib_metrics() is None:
            warn(WITHOUT_SCIB)
        single = int((np.bincount(batches) == 1).sum())
        if single:
            warn(
                f"{single} batch(es) have a single observation, which can't be mixed: these observations are left out of "
                "iLISI and kBET."
            )
    return score_parts(codes[kept], batches, groups.get("labels"), groups.get("domains"), bio_weight)


WITHOUT_SCIB = (
    "iLISI and kBET are left out, so that nothing tells how well batches are mixed: they need the package scib-metrics, "
    "pip install 'stfuse[scores]'."
)


def scib_metrics() -> Any:
    """Import scib-metrics, None where it is not installed."""
    # its import draws from the global random states
    states = random.getstate(), np.random.get_state()
    try:
        import scib_metrics
    except ImportError:
        return None
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
    return scib_metrics


def score_parts(
    codes: np.ndarray,
    batch: np.ndarray | None,
    labels: np.ndarray | None,
    domains: np.ndarray | None,
    bio_weight: float,
) -> dict[str, float]:
    """Compute all parts and the score from complete codes (n x d) and integer groups; a label of -1 is missing."""
    scores = dict.fromkeys((*BIO, *BATCH), float("nan"))
    if labels is not None and domains is not None:
        known = labels >= 0
        found = domain_scores(labels[known], domains[known])
        scores |= {"ari": found["ari"], "nmi": found["nmi"]}
    rows = np.arange(len(codes))
    if len(rows) > SAMPLE:
        rows = np.sort(np.random.default_rng(0).choice(len(codes), SAMPLE, replace=False))
    by = labels if labels is not None else domains
    if by is not None:
        scores["silhouette"] = _silhouette(codes[rows], by[rows])
    if batch is not None:
        scores |= _mixing(codes[rows], batch[rows])
    return scores | {"score": _composite(scores, bio_weight)}


def _composite(scores: dict[str, float], bio_weight: float) -> float:
    weighted = [(BIO, bio_weight), (BATCH, 1 - bio_weight)]
    total, weights = 0.0, 0.0
    for names, weight in weighted:
        parts = [scores[name] for name in names if not np.isnan(scores[name])]
        if parts and weight:
            total, weights = total + weight * float(np.mean(parts)), weights + weight
    if not weights:
        raise ValueError(
            f"Nothing is left to score with bio_weight={bio_weight}: the biology needs labels or domains, the mixing two or "
            f"more batches, {FEWEST} observations and scib-metrics (pip install 'stfuse[scores]')."
        )
    return total / weights


def _silhouette(codes: np.ndarray, groups: np.ndarray) -> float:
    from sklearn.metrics import silhouette_score

    known = groups >= 0
    codes, groups = codes[known], groups[known]
    # one group, or one for each observation, separates nothing
    if not 2 <= len(np.unique(groups)) < len(groups):
        return 0.0
    return (float(silhouette_score(codes, groups)) + 1) / 2


def _mixing(codes: np.ndarray, batch: np.ndarray) -> dict[str, float]:
    """Compute iLISI and kBET, nothing where they are not defined or scib-metrics is not there."""
    from sklearn.neighbors import NearestNeighbors

    often = np.bincount(batch)[batch] > 1
    codes, batch = codes[often], np.unique(batch[often], return_inverse=True)[1].reshape(-1)
    package = scib_metrics() if len(codes) >= FEWEST and batch.max() > 0 else None
    if package is None:
        return {}
    from scib_metrics.nearest_neighbors import NeighborsResults

    n_neighbors = min(LISI_NEIGHBORS, len(codes) - 1)
    distances, indices = NearestNeighbors(n_neighbors=n_neighbors).fit(codes).kneighbors(codes)
    near = NeighborsResults(indices=indices, distances=distances)
    # an observation alone among copies of itself has an index below 1
    ilisi = np.clip(package.ilisi_knn(near, batch), 0, 1)
    scores = {"ilisi": float(ilisi)}
    if len(codes) >= KBET_FEWEST:
        # a neighbourhood that is most of the data holds all batches in their proportions, whatever the codes
        nearest = near.subset_neighbors(min(KBET_NEIGHBORS, len(codes) // 4))
        scores["kbet"] = float(package.kbet(nearest, batch)[0])
    return scores


def complete_codes(codes: np.ndarray) -> np.ndarray:
    """Check codes (n x d): finite, or NaN for the whole of a row, and not in every row."""
    codes = np.asarray(codes)
    if codes.ndim != 2 or not codes.size:
        raise ValueError(f"codes must be a matrix of observations x dimensions, its shape is {codes.shape}.")
    if np.isinf(codes).any():
        raise ValueError("The codes hold infinite values.")
    missing = np.isnan(codes)
    partly = missing.any(axis=1) & ~missing.all(axis=1)
    if partly.any():
        raise ValueError(
            f"{int(partly.sum())} row(s) of codes have NaN in part (first: row {np.flatnonzero(partly)[0]})."
        )
    if missing.all():
        raise ValueError("Every row of codes is NaN: there is nothing to score.")
    return codes


def group_codes(values: Any, name: str, n: int, of: str = "codes") -> np.ndarray:
    """Number the groups that a column of n entries names; -1 for a missing label, refused in other columns."""
    column = pd.Series(np.asarray(values, dtype=object))
    if len(column) != n:
        raise ValueError(f"{name} has {len(column)} entries, {of} has {n} rows.")
    if name != "labels" and column.isna().any():
        raise ValueError(f"{name} has {int(column.isna().sum())} missing value(s): fill them first.")
    return pd.factorize(column)[0]


def _check_labels(labels: np.ndarray | None) -> None:
    if labels is None:
        return
    n_classes = len(np.unique(labels[labels >= 0]))
    if n_classes < 2:
        what = "only one class" if n_classes else "all missing"
        raise ValueError(f"labels: {what} among the observations with a code, there is nothing to tell apart.")
