"""Scanorama on a low-dimensional representation, on complete rows."""

from __future__ import annotations

import contextlib
import io
import random
from collections.abc import Sequence
from types import ModuleType

import numpy as np

from stfuse._log import warn

EXACT = 10_000  # observations, up to which neighbours are searched exactly
ENTRIES = 20_000_000  # of a block of kernel weights that is held at once


def require_scanorama() -> ModuleType:
    """Import Scanorama, or say how to get it."""
    before, state = np.random.get_state(), random.getstate()
    try:
        import scanorama
    except ImportError as error:
        raise ImportError(
            "method='scanorama' needs the package scanorama: install it with `pip install 'stfuse[correction]'`."
        ) from error
    finally:
        # its import seeds numpy
        np.random.set_state(before)
        random.setstate(state)
    return scanorama


def batch_order(sizes: np.ndarray) -> list[int]:
    """Give the order in which batches are handed over: largest first, second largest last.

    Neighbours are searched among all batches before and among all batches after, so that the ends bound how many there are.
    """
    order = [int(i) for i in np.argsort(-sizes, kind="stable")]
    return [order[0], *order[2:], order[1]]


def scanorama(values: np.ndarray, batch: np.ndarray, names: Sequence[str], *, sigma: float, knn: int) -> np.ndarray:
    """Correct n x d features for ``batch`` (codes of ``names``, two or more, none empty); float64, n x d."""
    package = require_scanorama()
    centre = values.mean(axis=0)
    centred = (values - centre).astype(np.float64)
    # sigma is the inverse width of a kernel, chosen by its authors for rows of length one
    unit = float(np.sqrt((centred**2).sum(axis=1).mean())) or 1.0
    sizes = np.bincount(batch, minlength=len(names))
    order = batch_order(sizes)
    if knn > sizes[order[-1]]:
        knn = int(sizes[order[-1]])
        warn(f"The second largest batch has {knn} observation(s): Scanorama compares knn={knn} neighbours.")
    rows = [np.flatnonzero(batch == code) for code in order]
    parts = [centred[where] / unit for where in rows]
    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
        alignments, matches = package.find_alignments(parts, knn=knn, approx=len(values) > EXACT, verbose=0)
        block = max(1, ENTRIES // int(sizes.max()))
        found = package.assemble(
            list(parts), sigma=sigma, alignments=alignments, matches=matches, batch_size=block, verbose=0
        )
    _tell(said.getvalue(), [names[code] for code in order], alignments)
    corrected = np.empty_like(centred)
    for where, part in zip(rows, found, strict=True):
        corrected[where] = np.asarray(part) * unit + centre
    return corrected


def _tell(said: str, names: list[str], alignments: list[tuple[int, int]]) -> None:
    if said.strip():
        warn(f"Scanorama says: {said.strip()}")
    alone = [name for i, name in enumerate(names) if not any(i in pair for pair in alignments)]
    if alone:
        warn(
            f"{len(alone)} of {len(names)} batches match no other one in a tenth of their observations and stay as they "
            f"are: {', '.join(map(repr, alone[:5]))}{', ...' if len(alone) > 5 else ''}."
        )
