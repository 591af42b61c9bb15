"""Views that are no matrices: image crops and gene tokens, for encoders that are trained end to end."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from stfuse._check import did_you_mean
from stfuse._read import Container, check_values, is_mudata, listing
from stfuse._tokens import Vocabulary, tokens_under

CROPS = "observations x channels x height x width"


@dataclass(frozen=True)
class RawView:
    """Crops or tokens of all observations, and which of them have any; the others' rows are NaN (crops) or 0 (tokens).

    ``vocabulary`` says what tokens stand for, where the object tells.
    """

    values: np.ndarray
    has: np.ndarray
    vocabulary: Vocabulary | None = None

    def stand_in(self) -> np.ndarray:
        """A matrix that is missing where the view is: n x 1, the numbers of the rows."""
        return np.where(self.has, np.arange(self.has.size), np.nan).astype(np.float32)[:, None]


def read_crops(box: Container, key: str) -> RawView | None:
    """Read crops under a key, n x c x h x w, bytes or floats; None where the key holds features, or nothing."""
    holder, rows = _find(box, "image", key)
    if holder is None or np.ndim(holder.obsm[key]) < 3:
        return None
    values = np.asarray(holder.obsm[key])
    what = f"obsm[{key!r}] (the image view)"
    if values.ndim != 4:
        raise ValueError(
            f"{what} must be two-dimensional (observations x features), or hold crops ({CROPS}); its shape is {values.shape}."
        )
    channels = values.shape[1]
    if channels not in (1, 3, 4) and values.shape[3] in (1, 3, 4):
        raise ValueError(
            f"{what} must hold crops as {CROPS}, its shape is {values.shape}: channels come first, so use np.moveaxis(crops, -1, 1)."
        )
    if 0 in values.shape:
        raise ValueError(f"{what} holds empty crops, its shape is {values.shape}.")
    if values.dtype != np.uint8 and not np.issubdtype(values.dtype, np.floating):
        raise ValueError(f"{what} must hold crops of bytes (uint8) or floats, its dtype is {values.dtype}.")
    if values.dtype != np.uint8 or rows is not None:
        # bytes have no NaN with which to say that a crop is missing
        values = _laid_out(
            np.asarray(values, np.float32) / (255 if values.dtype == np.uint8 else 1), rows, box.n_obs, np.nan
        )
        has = check_values(values.reshape(box.n_obs, -1), what)
    else:
        has = np.ones(box.n_obs, bool)
    return RawView(np.require(values, None, ["C", "W"]), has)


def read_token_view(box: Container, key: str) -> RawView | None:
    """Read tokens under a key, n x length whole numbers of which 0 fills up; None where the key is not there."""
    holder, rows = _find(box, "rna", key)
    if holder is None:
        return None
    tokens, vocabulary = tokens_under(holder, key, f"obsm[{key!r}] (tokens_key)", "stfuse.pp.rank_tokens makes them.")
    values = _laid_out(tokens, rows, box.n_obs, 0)
    return RawView(np.require(values, None, ["C", "W"]), (values != 0).any(axis=1), vocabulary)


def check_crops(box: Container, key: str) -> None:
    """Refuse an object without crops under a key, before anything else is made of its images."""
    if _find(box, "image", key)[0] is None:
        there = list((box.mod["image"] if is_mudata(box) and "image" in box.mod else box).obsm)
        raise KeyError(
            f"No obsm[{key!r}] with crops ({CROPS}) for the image_encoder.{did_you_mean(key, there)} There is {listing(there)}."
        )


def no_tokens(box: Container, key: str) -> str:
    """Say that there are no tokens under a key, and what makes them."""
    source = box.mod["rna"] if is_mudata(box) and "rna" in box.mod else box
    there = list(source.obsm)
    return (
        f"No obsm[{key!r}] with gene tokens.{did_you_mean(key, there)} There is {listing(there)}. Call "
        "stfuse.pp.rank_tokens(data) first."
    )


def _find(box: Container, role: str, key: str) -> tuple[Container | None, np.ndarray | None]:
    """What holds values under a key, and in which rows of all observations they stand, where those are others."""
    if is_mudata(box) and role in box.mod and key in box.mod[role].obsm:
        modality = box.mod[role]
        rows = box.obs_names.get_indexer(modality.obs_names)
        same = np.array_equal(rows, np.arange(box.n_obs))
        return modality, None if same else rows
    return (box if key in box.obsm else None), None


def _laid_out(values: np.ndarray, rows: np.ndarray | None, n_obs: int, missing: float) -> np.ndarray:
    if rows is None:
        return values
    out = np.full((n_obs, *values.shape[1:]), missing, dtype=values.dtype)
    out[rows] = values
    return out
