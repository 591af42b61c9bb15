"""What all corrections share: missing rows, batches that are too small, and the record."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import numpy as np
import pandas as pd
from scipy.sparse import csr_matrix

from stfuse import _read, _record
from stfuse._log import warn
from stfuse.pp._correct._parameters import PACKAGES, TITLES


@dataclass(frozen=True)
class Batches:
    """Which batch each of n observations belongs to: codes of names, from the column ``key``."""

    key: str
    codes: np.ndarray
    names: list[str]

    def of(self, rows: np.ndarray) -> Batches:
        """Keep the marked observations, and the batches that these belong to."""
        used, codes = np.unique(self.codes[rows], return_inverse=True)
        return Batches(self.key, codes.reshape(-1), [self.names[i] for i in used])

    @property
    def sizes(self) -> np.ndarray:
        """Observations of each batch."""
        return np.bincount(self.codes, minlength=len(self.names))


@dataclass(frozen=True)
class Correction:
    """A method with all its parameters."""

    method: str
    params: dict[str, Any]
    seed: int
    device: str = "auto"
    progress: bool | None = None

    @property
    def versions(self) -> dict[str, str]:
        """Versions of the packages that decide the result."""
        package = PACKAGES[self.method]
        return _record.versions() | {package: version(package)}

    def record(self, corrected: str, batches: Batches, n_obs: int, **more: Any) -> dict[str, Any]:
        """Describe a result of this correction for ``uns``; ``batches`` are those that it saw."""
        sizes = pd.DataFrame({"n_obs": batches.sizes}, index=pd.Index(batches.names, name="batch"))
        return {
            "corrected": corrected,
            "method": self.method,
            "batch_key": batches.key,
            "params": self.params,
            "seed": self.seed,
            "versions": self.versions,
            "n_obs": {"total": n_obs, "corrected": len(batches.codes)},
            "batches": sizes,
            **more,
        }


def correct_features(
    values: np.ndarray, batches: Batches, correction: Correction, key: str
) -> tuple[np.ndarray, dict[str, Any]]:
    """Correct the features ``obsm[key]`` (n x d, rows of NaN stay); return them (float32) and their record."""
    what = f"obsm[{key!r}]"
    present = _read.check_values(values, what)
    if not present.any():
        raise ValueError(f"All rows of {what} are NaN: there is nothing to correct.")
    seen = batches.of(present)
    rows = values[present]
    if check_sizes(seen, what):
        rows = _corrected(rows, seen, correction)
    out = np.full(values.shape, np.nan, dtype=np.float32)
    out[present] = rows
    return out, correction.record(key, seen, len(values))


def _corrected(rows: np.ndarray, batches: Batches, correction: Correction) -> np.ndarray:
    if correction.method == "harmony":
        from stfuse.pp._correct._harmony import harmony

        return harmony(rows, batches.codes, seed=correction.seed, **correction.params)
    from stfuse.pp._correct._scanorama import scanorama

    return scanorama(rows, batches.codes, batches.names, **correction.params)


def correct_counts(
    counts: csr_matrix, rows: np.ndarray, batches: Batches, correction: Correction, key: str
) -> tuple[np.ndarray, dict[str, Any]]:
    """Represent counts (those of the observations ``rows`` of n) by scVI; return n x n_latent, and the record."""
    from stfuse.pp._correct._scvi import scvi_latent

    seen = batches.of(rows)
    check_sizes(seen, "the counts", scvi=True)
    params = {name: value for name, value in correction.params.items() if name != "layer"}
    latent, history = scvi_latent(
        counts, seen.codes, seed=correction.seed, device=correction.device, progress=correction.progress, **params
    )
    out = np.full((len(rows), latent.shape[1]), np.nan, dtype=np.float32)
    out[rows] = latent
    record = correction.record(key, seen, len(rows), history=history)
    record["params"] = correction.params | {"max_epochs": len(history)}
    return out, record


def check_sizes(batches: Batches, what: str, *, scvi: bool = False) -> bool:
    """Warn of batches that can't be corrected; tell whether there is anything to correct."""
    sizes, n = batches.sizes, len(batches.codes)
    column = f"obs[{batches.key!r}] (batch_key)"
    if len(sizes) == 1:
        rest = f"{TITLES['scvi']} describes this batch alone" if scvi else "the features stay as they are"
        warn(f"All observations that have {what} belong to one batch of {column}, {batches.names[0]!r}: {rest}.")
        return False
    if len(sizes) == n:
        raise ValueError(
            f"Each of the {n} observations that have {what} is a batch of its own in {column}: name the column that says "
            "which sample, section or donor an observation comes from."
        )
    single = np.flatnonzero(sizes == 1)
    if single.size:
        warn(
            f"{single.size} of {len(sizes)} batches of {column} have one observation ({_some(batches.names, single)}): what "
            "is special about it can't be told from what its batch does to it, and is taken for the latter."
        )
    return True


def _some(names: Sequence[str], which: np.ndarray) -> str:
    return ", ".join(repr(names[i]) for i in which[:5]) + (", ..." if len(which) > 5 else "")
