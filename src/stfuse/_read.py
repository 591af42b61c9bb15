"""Where things lie in an AnnData, MuData or SpatialData: arrays, columns, coordinates, sections."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from anndata import AnnData

from stfuse import _keys
from stfuse._check import did_you_mean
from stfuse._log import logger, warn
from stfuse._places import places_of_table

if TYPE_CHECKING:
    from mudata import MuData
    from typing_extensions import TypeIs

type Container = AnnData | MuData

# Of the observations of one section, so many may lie exactly where another lies before it looks like several sections.
STACKED = 0.01


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


def listing(names: Any) -> str:
    """Name what is there, for a message."""
    return ", ".join(repr(str(n)) for n in names) or "nothing"


def check_names(names: pd.Index, where: str) -> None:
    """Refuse duplicated observation names: rows could not be told apart."""
    if not names.is_unique:
        example = names[names.duplicated()][0]
        raise ValueError(
            f"obs_names of {where} are not unique (for example {example!r} occurs more than once): "
            "call .obs_names_make_unique() first."
        )


def check_genes(names: pd.Index, where: str) -> None:
    """Refuse duplicated gene names: columns could not be told apart."""
    if not names.is_unique:
        example = str(names[names.duplicated()][0])
        raise ValueError(
            f"var_names of {where} are not unique (for example {example!r}): call .var_names_make_unique() first."
        )


def as_matrix(values: Any, what: str) -> np.ndarray:
    """Turn an ``obsm`` entry into a 2-d float array."""
    if isinstance(values, pd.DataFrame):
        values = values.to_numpy()
    if hasattr(values, "to_memory"):  # a sparse matrix on disk
        values = values.to_memory()
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


def check_values(array: np.ndarray, what: str, first: int = 0) -> np.ndarray:
    """Return which rows are there; refuse infinities and rows with some NaN but not all. ``first`` is the number of row 0."""
    nan = np.empty(array.shape[0], dtype=np.int64)
    step = max(1, 8_000_000 // max(1, array.shape[1]))
    for start in range(0, array.shape[0], step):
        block = array[start : start + step]
        if np.isinf(block).any():
            row, column = np.argwhere(np.isinf(block))[0]
            raise ValueError(
                f"{what} holds infinite values (first in row {first + start + row}, column {column}): clean them, or set the "
                "whole row to NaN to mark the view as missing there."
            )
        nan[start : start + step] = np.isnan(block).sum(1)
    partly = np.flatnonzero((nan > 0) & (nan < array.shape[1]))
    if partly.size:
        raise ValueError(
            f"{what} has NaN inside {partly.size} row(s) (first: row {first + partly[0]}). Only a whole row of NaN is "
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
            return spread(box, holders[0], as_matrix(box.mod[holders[0]].obsm[use_rep], f"obsm[{use_rep!r}]"))
        if holders:
            raise KeyError(f"obsm[{use_rep!r}] is in several modalities ({listing(holders)}): copy the one you want.")
    raise KeyError(
        f"No obsm[{use_rep!r}].{did_you_mean(use_rep, box.obsm.keys())} There is {listing(box.obsm.keys())}. "
        f"Codes are written by stfuse.tl (for example stfuse.tl.cameo writes 'X_cameo')."
    )


def spread(mdata: MuData, modality: str, values: np.ndarray) -> np.ndarray:
    """Lay the rows of one modality out in the order of all observations, NaN where it has none."""
    rows = mdata.obs_names.get_indexer(mdata.mod[modality].obs_names)
    out = np.full((mdata.n_obs, values.shape[1]), np.nan, dtype=values.dtype)
    out[rows] = values
    return out


def find_column(data: Any, key: str, table_key: str | None = None) -> pd.Series | None:
    """Read an ``obs`` column in observation order, None where there is none.

    In a MuData ``"rna:domain"`` is the column ``domain`` of the modality ``rna``; ``domain`` alone may be in several
    modalities that say the same.
    """
    box = container(data, table_key)
    if key in box.obs:
        return box.obs[key]
    if not is_mudata(box):
        return None
    name, _, bare = str(key).partition(":")
    if name in box.mod and bare in box.mod[name].obs:
        return box.mod[name].obs[bare].reindex(box.obs_names)
    parts = {name: m.obs[key].astype(object).reindex(box.obs_names) for name, m in box.mod.items() if key in m.obs}
    return _merged(parts, key).infer_objects() if parts else None


def _merged(parts: Mapping[str, pd.Series], key: str) -> pd.Series:
    """Fill the gaps of one modality's column from the others', which must not contradict it."""
    names = list(parts)
    merged = parts[names[0]]
    for name in names[1:]:
        part = parts[name]
        differ = merged.notna() & part.notna() & (merged != part) & (merged.astype(str) != part.astype(str))
        if differ.any():
            raise ValueError(
                f"The obs column {key!r} differs between modalities in {int(differ.sum())} observation(s) (for example "
                f"{differ.index[differ][0]!r}): name the one you mean, {listing(f'{n}:{key}' for n in names)}."
            )
        merged = merged.where(merged.notna(), part)
    return merged


def columns_of(box: Container) -> list[str]:
    """Names under which `find_column` finds something."""
    columns = [str(c) for c in box.obs.columns]
    if is_mudata(box):
        columns += [f"{name}:{c}" for name, m in box.mod.items() for c in m.obs.columns]
    return list(dict.fromkeys(columns))


def read_column(data: Any, key: str, table_key: str | None = None) -> pd.Series:
    """Read an ``obs`` column in observation order."""
    column = find_column(data, key, table_key)
    if column is None:
        there = columns_of(container(data, table_key))
        raise KeyError(f"No obs column {key!r}.{did_you_mean(key, there)} There is {listing(there)}.")
    return column


def as_flags(column: pd.Series, what: str) -> np.ndarray:
    """Turn a column of yes and no into booleans; a missing value is no."""
    if not set(column.dropna().unique()) <= {True, False}:
        raise ValueError(f"{what} must be boolean, its dtype is {column.dtype}.")
    # a categorical without False would not take it as a filling
    return column.astype(object).eq(True).to_numpy(dtype=bool)


def read_coordinates(data: Any, spatial_key: str = _keys.SPATIAL, table_key: str | None = None) -> np.ndarray | None:
    """Read ``obsm[spatial_key]`` as n x 2 floats, or where a SpatialData has its instances; None where nothing tells."""
    box = container(data, table_key)
    found = None
    if spatial_key in box.obsm:
        found = _exact(box.obsm[spatial_key], spatial_key)
    elif is_mudata(box):
        for name, modality in box.mod.items():
            if spatial_key in modality.obsm:
                part = _exact(modality.obsm[spatial_key], spatial_key)
                part = spread(box, name, part[:, :2])
                found = part if found is None else np.where(np.isnan(found), part, found)
    if found is None and is_spatialdata(data):
        found = places_of_table(data, box)
    if found is None:
        return None
    if found.shape[1] < 2:
        raise ValueError(f"obsm[{spatial_key!r}] must have at least two columns (x, y), its shape is {found.shape}.")
    return found[:, :2]


def read_array(data: Any, table_key: str | None = None) -> np.ndarray | None:
    """Read the places on the array (n x 2) that loaders of Visium and Spatial Transcriptomics leave in `obs`, if they do."""
    for names in _keys.ARRAY:
        try:
            columns = [find_column(data, name, table_key) for name in names]
        except ValueError:  # modalities contradict each other
            continue
        if all(column is not None and pd.api.types.is_numeric_dtype(column) for column in columns):
            return np.column_stack([np.asarray(column, dtype=np.float64) for column in columns])
    return None


def _exact(values: Any, key: str) -> np.ndarray:
    """Coordinates in double precision: whole numbers of nanometres don't fit single precision."""
    if isinstance(values, np.ndarray) and values.dtype.kind in "iu":
        values = values.astype(np.float64)
    return as_matrix(values, f"obsm[{key!r}]").astype(np.float64)


def no_coordinates(data: Any, spatial_key: str, table_key: str | None = None) -> str:
    """Say that there are no coordinates under a key, and what there is instead."""
    box = container(data, table_key)
    there = list(box.obsm)
    if is_mudata(box):
        there += [key for modality in box.mod.values() for key in modality.obsm]
    there = list(dict.fromkeys(there))
    return f"No obsm[{spatial_key!r}] with coordinates.{did_you_mean(spatial_key, there)} There is {listing(there)}."


def _libraries(box: Container) -> list[str]:
    found = [box.uns.get("spatial")]
    if is_mudata(box):
        found += [modality.uns.get("spatial") for modality in box.mod.values()]
    return list(dict.fromkeys(name for spatial in found if isinstance(spatial, Mapping) for name in spatial))


def _consistent_column(box: Container, key: str) -> pd.Series | None:
    try:
        return find_column(box, key)
    except ValueError:  # modalities contradict each other: no column that one would guess
        return None


def _is_library_column(column: pd.Series | None, libraries: set[str]) -> bool:
    if column is None:
        return False
    text = isinstance(column.dtype, pd.CategoricalDtype | pd.StringDtype) or column.dtype == object
    return text and set(column.astype(object).astype(str)) <= libraries


def find_library_key(data: Any, table_key: str | None = None) -> str | None:
    """Find the column that tells sections apart when ``uns["spatial"]`` holds several and the user named none."""
    box = container(data, table_key)
    libraries = _libraries(box)
    if len(libraries) < 2:
        return None if libraries else _region_column(box)
    names = set(libraries)
    columns = list(box.obs.columns)
    if is_mudata(box):
        columns = list(dict.fromkeys([*columns, *(c for m in box.mod.values() for c in m.obs.columns)]))
    fits = [c for c in columns if _is_library_column(_consistent_column(box, c), names)]
    if len(fits) == 1:
        logger.info("library_key=%r is used: its values are the %d sections of uns['spatial']", fits[0], len(names))
        return fits[0]
    raise ValueError(
        f"uns['spatial'] holds {len(libraries)} sections ({listing(libraries)}): say with library_key= which obs "
        f"column tells them apart. Columns there: {listing(columns)}."
    )


def _region_column(box: Container) -> str | None:
    """Column that says which element of a SpatialData each row of its table lies in, where there are several.

    Each has coordinates of its own.
    """
    attributes = box.uns.get("spatialdata_attrs")
    key = attributes.get("region_key") if isinstance(attributes, Mapping) else None
    if key is None or key not in box.obs or box.obs[key].nunique() < 2:
        return None
    logger.info("library_key=%r is used: its values are the %d regions of the table", key, box.obs[key].nunique())
    return str(key)


def read_codes(column: pd.Series, key: str, role: str) -> tuple[np.ndarray, list[str]]:
    """Read a column of groups as codes 0..s-1 and their names; a missing value is refused."""
    if column.isna().any():
        raise ValueError(f"obs[{key!r}] ({role}) has {int(column.isna().sum())} missing value(s): fill them first.")
    if pd.api.types.is_float_dtype(column.dtype) and (column == column.round()).all():
        column = column.astype("Int64")  # whole numbers that were stored with a point are the same groups
    categories = pd.Categorical(column.astype(str))
    return categories.codes.astype(np.int64), [str(c) for c in categories.categories]


def read_sections(data: Any, library_key: str | None, table_key: str | None = None) -> tuple[np.ndarray, list[str]]:
    """Read which section each observation lies in: codes 0..s-1 and the names."""
    box = container(data, table_key)
    if library_key is None:
        library_key = find_library_key(data, table_key)
    if library_key is None:
        return np.zeros(box.n_obs, dtype=np.int64), [(_libraries(box) or ["section"])[0]]
    return read_codes(read_column(data, library_key, table_key), library_key, "library_key")


def warn_if_stacked(coordinates: np.ndarray, n_sections: int, library_key: str | None) -> None:
    """Warn where what counts as one section looks like several that share an origin: places that occur again."""
    if library_key is not None or n_sections > 1:
        return
    placed = coordinates[np.isfinite(coordinates).all(1)]
    _, counts = np.unique(placed[:, 0] + 1j * placed[:, 1], return_counts=True)
    stacked = int(counts[counts > 1].sum())
    if stacked > STACKED * len(placed):
        warn(
            f"{stacked} of {len(placed)} observations lie exactly where another one lies, though all count as one "
            "section: if there are several, say with library_key= which obs column tells them apart."
        )
