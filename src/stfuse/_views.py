"""The one reader of views: whatever the container, both views, their masks and all that goes with them."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from stfuse import _keys
from stfuse._check import did_you_mean
from stfuse._log import logger, warn
from stfuse._raw import RawView, no_tokens, read_crops, read_token_view
from stfuse._read import (
    Container,
    as_flags,
    as_matrix,
    check_names,
    check_values,
    container,
    find_column,
    find_library_key,
    is_mudata,
    listing,
    read_array,
    read_codes,
    read_column,
    read_coordinates,
    read_sections,
    spread,
)
from stfuse._tokens import Vocabulary

SPARSE = 0.05  # share of zeros in features of which a row of zeros is nothing unusual
ROUNDING = 1e-6  # float32 values that differ by less, relative to their size, may be the same number

type Recipe = Callable[[Any, str, str, str | None, str | None], tuple[np.ndarray, dict[str, Any] | None]]


@dataclass
class Views:
    """Two views of the same observations, and all that a method may use beside them.

    ``image`` is n x d_image and ``rna`` n x d_rna (float32, rows of NaN where missing), ``paired`` marks rows whose
    two views may be used as a pair in training, ``section`` and ``batch`` are codes 0..s-1. ``places`` are coordinates, n x 2 with
    NaN where there are none, or None; ``spatial`` is the same where none are missing, else None. ``array`` (n x 2 or None) are the
    places on the array's lattice. ``raw`` are views that are no matrices (crops, tokens); what stands for them above only says in
    which rows they are there. ``vocabulary`` says what tokens stand for, where the object tells.
    """

    obs_names: pd.Index
    image: np.ndarray
    rna: np.ndarray
    has_image: np.ndarray
    has_rna: np.ndarray
    paired: np.ndarray
    section: np.ndarray
    sections: list[str]
    library_key: str | None
    batch: np.ndarray | None
    batches: list[str]
    spatial: np.ndarray | None
    places: np.ndarray | None = None
    array: np.ndarray | None = None
    made: dict[str, np.ndarray] = field(default_factory=dict)
    records: dict[str, dict[str, Any]] = field(default_factory=dict)
    raw: dict[str, np.ndarray] = field(default_factory=dict)
    vocabulary: Vocabulary | None = None

    @property
    def n_obs(self) -> int:
        """Number of observations."""
        return len(self.obs_names)

    def counts(self) -> dict[str, int]:
        """Count observations by what is known of them."""
        both = self.has_image & self.has_rna
        return {
            "total": self.n_obs,
            "image": int(self.has_image.sum()),
            "rna": int(self.has_rna.sum()),
            "both": int(both.sum()),
            "paired": int(self.paired.sum()),
        }


def _view_array(box: Container, role: str, key: str, default: str) -> np.ndarray | None:
    """Find the features of one view, None where a default key is not there yet."""
    source: Any = box
    if is_mudata(box):
        if role not in box.mod:
            raise KeyError(
                f"The MuData has no modality {role!r}; it has {listing(box.mod)}. Name its modalities 'image' and 'rna'."
            )
        source = box.mod[role]
    where = f"mdata[{role!r}].obsm" if is_mudata(box) else "obsm"
    if key in source.obsm:
        array = as_matrix(source.obsm[key], f"{where}[{key!r}]")
        array = spread(box, role, array) if is_mudata(box) else array
        # torch warns of memory that may not be written to, though nobody writes there
        return np.require(array, np.float32, "W")
    if is_mudata(box) and key in box.obsm:
        # where views made by the default recipe are written
        return np.require(as_matrix(box.obsm[key], f"mdata.obsm[{key!r}]"), np.float32, "W")
    if key == default:
        return None
    raise KeyError(
        f"No {where}[{key!r}] for the {role} view.{did_you_mean(key, source.obsm)} There is {listing(source.obsm.keys())}. "
        + (
            "stfuse.pp.image_features(adata) makes image features."
            if role == "image"
            else "scanpy.pp.pca, scvi-tools or any n x d array in obsm gives expression features."
        )
    )


def _check_view(array: np.ndarray, role: str, key: str) -> np.ndarray:
    what = f"obsm[{key!r}] (the {role} view)"
    if array.shape[1] == 0:
        raise ValueError(f"{what} has no columns.")
    present = check_values(array, what)
    if not present.any():
        raise ValueError(
            f"The {role} view is missing in every observation: all rows of {what} are NaN. "
            "A fusion needs both views in some observations."
        )
    if present.sum() == 1:
        raise ValueError(f"The {role} view is there in one observation only: nothing can be learnt from a single row.")
    empty = present & ~array.any(axis=1)
    if array.shape[1] > 1 and empty.any() and (array[present & ~empty] == 0).mean() < SPARSE:
        warn(
            f"{int(empty.sum())} rows of {what} are all zeros: if the view is missing there, make them NaN, for zeros are learnt from."
        )
    low, high = np.nanmin(array, 0), np.nanmax(array, 0)
    if bool((high - low <= ROUNDING * np.maximum(np.abs(low), np.abs(high))).all()):
        raise ValueError(f"Every feature of {what} is constant: there is nothing to learn from it.")
    return present


def _read_paired(
    data: Any, both: np.ndarray, paired_key: str | None, table_key: str | None, training: bool
) -> np.ndarray:
    if paired_key is None:
        # pairs are for training only: coding uses every view
        column = find_column(data, _keys.PAIRED, table_key) if training else None
        if column is not None and column.dtype == bool and not column.to_numpy()[both].all():
            warnings.warn(
                f"obs[{_keys.PAIRED!r}] marks some observations as not paired, but paired_key was not given: every "
                f"observation with both views is used as a pair. Pass paired_key={_keys.PAIRED!r} to honour it.",
                UserWarning,
                skip_file_prefixes=(str(Path(__file__).parent),),
            )
        return both.copy()
    return as_flags(read_column(data, paired_key, table_key), f"obs[{paired_key!r}] (paired_key)") & both


def read_views(
    data: Any,
    *,
    image_key: str = _keys.IMAGE,
    rna_key: str = _keys.RNA,
    batch_key: str | None = None,
    library_key: str | None = None,
    paired_key: str | None = None,
    table_key: str | None = None,
    spatial_key: str = _keys.SPATIAL,
    tokens_key: str | None = None,
    crops: bool = False,
    recipe: Recipe | None = None,
    min_views: int = 2,
) -> Views:
    """Read both views of ``data`` with their masks; nothing is written into ``data``.

    A view whose key is the default one and that is not there is made by ``recipe``, if one is given, from (data, view,
    key, library key, table key); it is returned in ``made`` for the writer, and its record, if it has one, in ``records``. With ``min_views=1`` (coding new data with a trained
    model) one of the views may be absent altogether. With ``crops`` the image view may hold crops; with a ``tokens_key`` the RNA
    view are the tokens there.
    """
    box = container(data, table_key)
    if box.n_obs == 0:
        raise ValueError("There are no observations.")
    check_names(box.obs_names, "the data")
    if is_mudata(box):
        for name, modality in box.mod.items():
            check_names(modality.obs_names, f"modality {name!r}")
    library_key = library_key or find_library_key(data, table_key)
    section, sections = read_sections(data, library_key, table_key)
    batch: np.ndarray | None = None
    batches: list[str] = []
    if batch_key is not None:
        batch, batches = read_codes(read_column(data, batch_key, table_key), batch_key, "batch_key")

    arrays: dict[str, np.ndarray] = {}
    made: dict[str, np.ndarray] = {}
    records: dict[str, dict[str, Any]] = {}
    raw = _raw_views(box, image_key if crops else None, tokens_key, min_views)
    for role, key, default in (("image", image_key, _keys.IMAGE), ("rna", tokens_key or rna_key, _keys.RNA)):
        array = raw[role].stand_in() if role in raw else _absent_or(box, role, key, default, min_views)
        if array is None and recipe is not None:
            array, record = recipe(data, role, key, library_key, table_key)
            made[key] = array
            if record is not None:
                records[key] = record
        if array is not None:
            arrays[role] = array
        elif min_views == 2:
            raise KeyError(f"No obsm[{key!r}] for the {role} view. There is {listing(box.obsm.keys())}.")
    if len(arrays) < min_views:
        raise KeyError(f"Neither obsm[{image_key!r}] nor obsm[{rna_key!r}] is there: {listing(box.obsm.keys())}.")

    n = box.n_obs
    has = {}
    for role, key in (("image", image_key), ("rna", tokens_key or rna_key)):
        if role in arrays:
            what = f"obsm[{key!r}] (the {role} view)"
            has[role] = _check_view(arrays[role], role, key) if min_views == 2 else check_values(arrays[role], what)
        else:
            arrays[role], has[role] = np.full((n, 0), np.nan, np.float32), np.zeros(n, bool)
    both = has["image"] & has["rna"]
    places = spatial = read_coordinates(data, spatial_key, table_key)
    if places is not None and not (placed := np.isfinite(places).all(axis=1)).all():
        logger.info("obsm[%r] has missing coordinates: the others are used for windows only", spatial_key)
        places, spatial = places if placed.any() else None, None
    return Views(
        obs_names=box.obs_names,
        image=arrays["image"],
        rna=arrays["rna"],
        has_image=has["image"],
        has_rna=has["rna"],
        paired=_read_paired(data, both, paired_key, table_key, training=min_views == 2),
        section=section,
        sections=sections,
        library_key=library_key,
        batch=batch,
        batches=batches,
        spatial=spatial,
        places=places,
        array=read_array(data, table_key),
        made=made,
        records=records,
        raw={role: view.values for role, view in raw.items()},
        vocabulary=raw["rna"].vocabulary if "rna" in raw else None,
    )


def _raw_views(box: Container, crops_key: str | None, tokens_key: str | None, min_views: int) -> dict[str, RawView]:
    """Find crops and tokens; tokens that are named have to be there unless one view is enough."""
    found = {
        "image": None if crops_key is None else read_crops(box, crops_key),
        "rna": None if tokens_key is None else read_token_view(box, tokens_key),
    }
    if tokens_key is not None and found["rna"] is None and min_views == 2:
        raise KeyError(no_tokens(box, tokens_key))
    return {role: view for role, view in found.items() if view is not None}


def _absent_or(box: Container, role: str, key: str, default: str, min_views: int) -> np.ndarray | None:
    """Like `_view_array`, but a view may be absent when one view is enough."""
    if min_views == 2:
        return _view_array(box, role, key, default)
    try:
        return _view_array(box, role, key, default)
    except KeyError:
        return None
