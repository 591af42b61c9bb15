"""The one reader: AnnData, MuData or SpatialData in, arrays and masks out."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from anndata import AnnData

from stfuse import _keys
from stfuse._log import logger

if TYPE_CHECKING:
    from mudata import MuData
    from typing_extensions import TypeIs

type Container = AnnData | MuData

ROUNDING = 1e-6  # float32 values that differ by less, relative to their size, may be the same number


def is_mudata(data: Any) -> TypeIs[MuData]:
    """Tell a MuData without importing mudata: an object of it exists only where it is loaded."""
    module = sys.modules.get("mudata")
    return module is not None and isinstance(data, module.MuData)


def is_spatialdata(data: Any) -> bool:
    """Tell a SpatialData without importing spatialdata."""
    module = sys.modules.get("spatialdata")
    return module is not None and isinstance(data, module.SpatialData)


def container(data: Any, table_key: str | None = None) -> Container:
    """Return the AnnData or MuData in which results of ``data`` are kept.

    An AnnData and a MuData are their own container; of a SpatialData it is the table ``table_key``
    (or the only one).
    """
    if isinstance(data, AnnData):
        if data.is_view:
            logger.debug("the AnnData is a view: writing results makes it a copy, as in scanpy")
        return data
    if is_mudata(data):
        return data
    if is_spatialdata(data):
        tables = list(data.tables)
        if table_key is None:
            if len(tables) != 1:
                raise ValueError(
                    f"The SpatialData has {len(tables)} tables ({', '.join(tables) or 'none'}): name one with table_key=."
                )
            table_key = tables[0]
        if table_key not in tables:
            raise KeyError(f"No table {table_key!r} in the SpatialData. Tables there: {', '.join(tables) or 'none'}.")
        return data.tables[table_key]
    raise TypeError(f"Expected AnnData, MuData or SpatialData, got {type(data).__name__}.")


def _listing(names: Any) -> str:
    return ", ".join(repr(str(n)) for n in names) or "nothing"


def check_names(names: pd.Index, where: str) -> None:
    """Refuse duplicated observation names: rows could not be told apart."""
    if not names.is_unique:
        example = names[names.duplicated()][0]
        raise ValueError(
            f"obs_names of {where} are not unique (for example {example!r} occurs more than once): "
            "call .obs_names_make_unique() first."
        )


def as_matrix(values: Any, what: str) -> np.ndarray:
    """Turn an ``obsm`` entry into a 2-d float array."""
    if isinstance(values, pd.DataFrame):
        values = values.to_numpy()
    if hasattr(values, "toarray"):
        values = values.toarray()
    if hasattr(values, "compute"):
        values = values.compute()
    array = np.asarray(values)
    if array.ndim != 2:
        raise ValueError(f"{what} must be two-dimensional (observations x features), its shape is {array.shape}.")
    if not np.issubdtype(array.dtype, np.number) and array.dtype != bool:
        raise ValueError(f"{what} must hold numbers, its dtype is {array.dtype}.")
    return array if array.dtype in (np.float32, np.float64) else array.astype(np.float32)


def check_values(array: np.ndarray, what: str) -> np.ndarray:
    """Return which rows are there; refuse infinities and rows with some NaN but not all."""
    nan = np.empty(array.shape[0], dtype=np.int64)
    step = max(1, 8_000_000 // max(1, array.shape[1]))
    for start in range(0, array.shape[0], step):
        block = array[start : start + step]
        if np.isinf(block).any():
            row, column = np.argwhere(np.isinf(block))[0]
            raise ValueError(
                f"{what} holds infinite values (first in row {start + row}, column {column}): clean them, or set the "
                "whole row to NaN to mark the view as missing there."
            )
        nan[start : start + step] = np.isnan(block).sum(1)
    partly = np.flatnonzero((nan > 0) & (nan < array.shape[1]))
    if partly.size:
        raise ValueError(
            f"{what} has NaN inside {partly.size} row(s) (first: row {partly[0]}). Only a whole row of NaN is "
            "allowed and means that the view is missing there: impute the values, or set the whole row to NaN."
        )
    return (nan == 0) & (array.shape[1] > 0)


def read_rep(data: Any, use_rep: str, table_key: str | None = None) -> np.ndarray:
    """Read ``obsm[use_rep]`` as an n x d float array; NaN rows stay."""
    box = container(data, table_key)
    if use_rep in box.obsm:
        return as_matrix(box.obsm[use_rep], f"obsm[{use_rep!r}]")
    if is_mudata(box):
        holders = [m for m in box.mod if use_rep in box.mod[m].obsm]
        if len(holders) == 1:
            return _spread(box, holders[0], as_matrix(box.mod[holders[0]].obsm[use_rep], f"obsm[{use_rep!r}]"))
        if holders:
            raise KeyError(f"obsm[{use_rep!r}] is in several modalities ({_listing(holders)}): copy the one you want.")
    raise KeyError(
        f"No obsm[{use_rep!r}]. There is {_listing(box.obsm.keys())}. "
        f"Codes are written by stfuse.tl (for example stfuse.tl.cameo writes 'X_cameo')."
    )


def _spread(mdata: MuData, modality: str, values: np.ndarray) -> np.ndarray:
    """Lay the rows of one modality out in the order of all observations, NaN where it has none."""
    rows = mdata.obs_names.get_indexer(mdata.mod[modality].obs_names)
    out = np.full((mdata.n_obs, values.shape[1]), np.nan, dtype=values.dtype)
    out[rows] = values
    return out


def find_column(data: Any, key: str, table_key: str | None = None) -> pd.Series | None:
    """Read an ``obs`` column in observation order, None where there is none."""
    box = container(data, table_key)
    if key in box.obs:
        return box.obs[key]
    if is_mudata(box):
        parts = [m.obs[key] for m in box.mod.values() if key in m.obs]
        if parts:
            merged = parts[0].astype(object).reindex(box.obs_names)
            for part in parts[1:]:
                merged = merged.where(merged.notna(), part.astype(object).reindex(box.obs_names))
            return merged.infer_objects()
    return None


def read_column(data: Any, key: str, table_key: str | None = None) -> pd.Series:
    """Read an ``obs`` column in observation order."""
    column = find_column(data, key, table_key)
    if column is None:
        box = container(data, table_key)
        there = list(box.obs.columns)
        if is_mudata(box):
            there += [f"{name}:{c}" for name, m in box.mod.items() for c in m.obs.columns]
        raise KeyError(f"No obs column {key!r}. There is {_listing(there)}.")
    return column


def read_coordinates(data: Any, spatial_key: str = _keys.SPATIAL, table_key: str | None = None) -> np.ndarray | None:
    """Read ``obsm[spatial_key]`` as n x 2 floats, None where there is none."""
    box = container(data, table_key)
    found = None
    if spatial_key in box.obsm:
        found = as_matrix(box.obsm[spatial_key], f"obsm[{spatial_key!r}]").astype(np.float64)
    elif is_mudata(box):
        for name, modality in box.mod.items():
            if spatial_key in modality.obsm:
                part = as_matrix(modality.obsm[spatial_key], f"obsm[{spatial_key!r}]").astype(np.float64)
                part = _spread(box, name, part[:, :2])
                found = part if found is None else np.where(np.isnan(found), part, found)
    if found is None:
        return None
    if found.shape[1] < 2:
        raise ValueError(f"obsm[{spatial_key!r}] must have at least two columns (x, y), its shape is {found.shape}.")
    return found[:, :2]


def _libraries(box: Container) -> list[str]:
    found = [box.uns.get("spatial")]
    if is_mudata(box):
        found += [modality.uns.get("spatial") for modality in box.mod.values()]
    return list(dict.fromkeys(name for spatial in found if isinstance(spatial, Mapping) for name in spatial))


def _is_library_column(column: pd.Series, libraries: set[str]) -> bool:
    text = isinstance(column.dtype, pd.CategoricalDtype | pd.StringDtype) or column.dtype == object
    return text and set(column.astype(object).astype(str)) <= libraries


def find_library_key(data: Any, table_key: str | None = None) -> str | None:
    """Find the column that tells sections apart when ``uns["spatial"]`` holds several and the user named none."""
    box = container(data, table_key)
    libraries = _libraries(box)
    if len(libraries) < 2:
        return None
    names = set(libraries)
    columns = list(box.obs.columns)
    if is_mudata(box):
        columns = list(dict.fromkeys([*columns, *(c for m in box.mod.values() for c in m.obs.columns)]))
    fits = [c for c in columns if _is_library_column(read_column(box, c), names)]
    if len(fits) == 1:
        logger.info("library_key=%r is used: its values are the %d sections of uns['spatial']", fits[0], len(names))
        return fits[0]
    raise ValueError(
        f"uns['spatial'] holds {len(libraries)} sections ({_listing(libraries)}): say with library_key= which obs "
        f"column tells them apart. Columns there: {_listing(columns)}."
    )


def _codes(column: pd.Series, key: str, role: str) -> tuple[np.ndarray, list[str]]:
    if column.isna().any():
        raise ValueError(f"obs[{key!r}] ({role}) has {int(column.isna().sum())} missing value(s): fill them first.")
    categories = pd.Categorical(column.astype(str))
    return categories.codes.astype(np.int64), [str(c) for c in categories.categories]


def read_sections(data: Any, library_key: str | None, table_key: str | None = None) -> tuple[np.ndarray, list[str]]:
    """Read which section each observation lies in: codes 0..s-1 and the names."""
    box = container(data, table_key)
    if library_key is None:
        library_key = find_library_key(data, table_key)
    if library_key is None:
        return np.zeros(box.n_obs, dtype=np.int64), [(_libraries(box) or ["section"])[0]]
    return _codes(read_column(data, library_key, table_key), library_key, "library_key")


@dataclass
class Views:
    """Two views of the same observations, and all that a method may use beside them.

    ``image`` is n x d_image and ``rna`` n x d_rna (float32, rows of NaN where missing), ``paired`` marks rows whose
    two views may be used as a pair in training, ``section`` and ``batch`` are codes 0..s-1, ``spatial`` is n x 2 or None.
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
    made: dict[str, np.ndarray] = field(default_factory=dict)

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
                f"The MuData has no modality {role!r}; it has {_listing(box.mod)}. Name its modalities 'image' and 'rna'."
            )
        source = box.mod[role]
    where = f"mdata[{role!r}].obsm" if is_mudata(box) else "obsm"
    if key in source.obsm:
        array = as_matrix(source.obsm[key], f"{where}[{key!r}]")
        array = _spread(box, role, array) if is_mudata(box) else array
        # torch warns of memory that may not be written to, though nobody writes there
        return np.require(array, np.float32, "W")
    if key == default:
        return None
    raise KeyError(
        f"No {where}[{key!r}] for the {role} view. There is {_listing(source.obsm.keys())}. "
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
    low, high = np.nanmin(array, 0), np.nanmax(array, 0)
    if bool((high - low <= ROUNDING * np.maximum(np.abs(low), np.abs(high))).all()):
        raise ValueError(f"Every feature of {what} is constant: there is nothing to learn from it.")
    return present


def _read_paired(data: Any, both: np.ndarray, paired_key: str | None, table_key: str | None) -> np.ndarray:
    if paired_key is None:
        column = find_column(data, _keys.PAIRED, table_key)
        if column is not None and column.dtype == bool and not column.to_numpy()[both].all():
            warnings.warn(
                f"obs[{_keys.PAIRED!r}] marks some observations as not paired, but paired_key was not given: every "
                f"observation with both views is used as a pair. Pass paired_key={_keys.PAIRED!r} to honour it.",
                UserWarning,
                skip_file_prefixes=(str(Path(__file__).parent),),
            )
        return both.copy()
    column = read_column(data, paired_key, table_key)
    if not set(column.dropna().unique()) <= {True, False}:
        raise ValueError(f"obs[{paired_key!r}] (paired_key) must be boolean, its dtype is {column.dtype}.")
    # a missing value is no; a categorical without False would not take it as a filling
    return column.astype(object).eq(True).to_numpy(dtype=bool) & both


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
    make_missing: bool = True,
    min_views: int = 2,
) -> Views:
    """Read both views of ``data`` with their masks; nothing is written into ``data``.

    A view whose key is the default one and that is not there is computed with the default recipe when
    ``make_missing``; it is returned in ``made`` for the writer. With ``min_views=1`` (coding new data with a trained
    model) one of the views may be absent altogether.
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
        batch, batches = _codes(read_column(data, batch_key, table_key), batch_key, "batch_key")

    arrays: dict[str, np.ndarray] = {}
    made: dict[str, np.ndarray] = {}
    for role, key, default in (("image", image_key, _keys.IMAGE), ("rna", rna_key, _keys.RNA)):
        array = _absent_or(box, role, key, default, min_views)
        if array is None and make_missing:
            from stfuse.pp._default_views import make_view

            array = make_view(box, role, key, library_key)
            made[key] = array
        if array is not None:
            arrays[role] = array
        elif min_views == 2:
            raise KeyError(f"No obsm[{key!r}] for the {role} view. There is {_listing(box.obsm.keys())}.")
    if len(arrays) < min_views:
        raise KeyError(f"Neither obsm[{image_key!r}] nor obsm[{rna_key!r}] is there: {_listing(box.obsm.keys())}.")

    n = box.n_obs
    has = {}
    for role, key in (("image", image_key), ("rna", rna_key)):
        if role in arrays:
            what = f"obsm[{key!r}] (the {role} view)"
            has[role] = _check_view(arrays[role], role, key) if min_views == 2 else check_values(arrays[role], what)
        else:
            arrays[role], has[role] = np.full((n, 0), np.nan, np.float32), np.zeros(n, bool)
    both = has["image"] & has["rna"]
    spatial = read_coordinates(data, spatial_key, table_key)
    if spatial is not None and not np.isfinite(spatial).all():
        logger.info("obsm[%r] has missing coordinates: positions are not used", spatial_key)
        spatial = None
    return Views(
        obs_names=box.obs_names,
        image=arrays["image"],
        rna=arrays["rna"],
        has_image=has["image"],
        has_rna=has["rna"],
        paired=_read_paired(data, both, paired_key, table_key),
        section=section,
        sections=sections,
        library_key=library_key,
        batch=batch,
        batches=batches,
        spatial=spatial,
        made=made,
    )


def _absent_or(box: Container, role: str, key: str, default: str, min_views: int) -> np.ndarray | None:
    """Like `_view_array`, but a view may be absent when one view is enough."""
    if min_views == 2:
        return _view_array(box, role, key, default)
    try:
        return _view_array(box, role, key, default)
    except KeyError:
        return None
