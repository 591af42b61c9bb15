"""Tiles of an AnnData as columns of a Parquet table, and back with the same types."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy.sparse import csr_matrix

from stfuse._check import did_you_mean

if TYPE_CHECKING:
    import pyarrow as pa

INDEX, TILE, IMAGE, GENES, COUNTS = "index", "tile", "image", "gene_indices", "gene_counts"
IMAGES_KEY = "tile_image"
_OWN = (INDEX, TILE, IMAGE, GENES, COUNTS)


@dataclass
class Columns:
    """Which column of the table holds what, in words that JSON can keep."""

    x: str | None  # type of the counts
    obs: list[dict[str, Any]] = field(default_factory=list)
    obsm: list[dict[str, Any]] = field(default_factory=list)

    def names(self) -> list[str]:
        """All columns but the image."""
        expression = [GENES, COUNTS] if self.x is not None else []
        return [INDEX, TILE, *expression, *(entry["column"] for entry in [*self.obs, *self.obsm])]


def describe(tiles: AnnData, obsm_keys: Sequence[str] | None) -> tuple[Columns, list[str]]:
    """Choose what is written; also name the entries of ``obsm`` that are no numbers and stay behind."""
    values: Any = tiles.X
    # sparse matrices hold no half precision
    kind = None if values is None else np.dtype(np.float32) if values.dtype == np.float16 else values.dtype
    columns, taken = Columns(None if kind is None else str(kind)), set(_OWN)
    for name in tiles.obs.columns:
        column = _free(str(name), "obs", taken)
        columns.obs.append({"name": str(name), "column": column, **_type_of(tiles.obs[name])})
    if obsm_keys is not None:
        missing = [key for key in obsm_keys if key not in tiles.obsm]
        if missing:
            there = ", ".join(tiles.obsm) or "nothing"
            raise KeyError(f"No obsm[{missing[0]!r}].{did_you_mean(missing[0], tiles.obsm)} There is: {there}.")
    left = []
    for key in tiles.obsm if obsm_keys is None else obsm_keys:
        if key == IMAGES_KEY:
            continue
        held: Any = tiles.obsm[key]
        array = _numbers(held)
        if array is None:
            left.append(key)
            continue
        entry: dict[str, Any] = {
            "key": key,
            "column": _free(key, "obsm", taken),
            "dtype": str(array.dtype),
            "shape": array.shape[1:],
        }
        framed = isinstance(held, pd.DataFrame)
        entry["names"] = _plain_names(held.columns) if framed else None
        entry["dtypes"] = [str(kind) for kind in held.dtypes] if framed else None
        columns.obsm.append(entry)
    return columns, left


def _plain_names(names: pd.Index) -> list[Any]:
    """Keep names that are whole numbers; JSON knows nothing else but text."""
    return names.tolist() if pd.api.types.is_integer_dtype(names.dtype) else [str(name) for name in names]


def _free(name: str, slot: str, taken: set[str]) -> str:
    while name in taken:
        name = f"{slot}_{name}"
    taken.add(name)
    return name


def _type_of(column: pd.Series) -> dict[str, Any]:
    if not isinstance(column.dtype, pd.CategoricalDtype):
        return {"dtype": str(column.dtype)}
    categories = column.cat.categories
    return {
        "dtype": "category",
        "categories": categories.tolist(),
        "of": str(categories.dtype),
        "ordered": bool(column.cat.ordered),
    }


def _numbers(values: Any) -> np.ndarray | None:
    if isinstance(values, pd.DataFrame):
        kinds = list(values.dtypes)
        # a list holds numbers of one type, and booleans beside numbers would make it objects
        plain = kinds and all(isinstance(kind, np.dtype) and kind.kind in "iufb" for kind in kinds)
        values = values.to_numpy(dtype=np.result_type(*kinds) if plain else None)
    if not isinstance(values, np.ndarray) or values.ndim < 2 or values.dtype.kind not in "iufb":
        return None
    return values


def to_arrow(tiles: AnnData, rows: np.ndarray, columns: Columns, matrix: csr_matrix | None) -> dict[str, pa.Array]:
    """Make the columns of some tiles."""
    import pyarrow as pa

    table = {INDEX: pa.array(rows), TILE: pa.array(tiles.obs_names[rows].astype(str).to_numpy(dtype=object))}
    if matrix is not None:
        part = matrix[rows]
        table[GENES] = _lists(part.indptr, part.indices.astype(np.int32))
        table[COUNTS] = _lists(part.indptr, part.data)
    for entry in columns.obs:
        column = tiles.obs[entry["name"]].iloc[rows]
        if entry["dtype"] == "category":
            column = column.astype(column.cat.categories.dtype if not column.isna().any() else object)
        try:
            values = pa.Array.from_pandas(column)
        except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
            raise ValueError(
                f"obs[{entry['name']!r}] can't be written as one column of a table ({error}): make it text or numbers, or "
                "drop it."
            ) from None
        table[entry["column"]] = values.cast(pa.string()) if pa.types.is_large_string(values.type) else values
    for entry in columns.obsm:
        values = _numbers(tiles.obsm[entry["key"]])
        flat = np.zeros((len(rows), 0)) if values is None else values[rows].reshape(len(rows), -1)
        table[entry["column"]] = _lists(np.arange(len(rows) + 1) * flat.shape[1], flat.reshape(-1))
    return table


def _lists(borders: np.ndarray, values: np.ndarray) -> pa.Array:
    import pyarrow as pa

    return pa.ListArray.from_arrays(pa.array(borders.astype(np.int32)), pa.array(np.ascontiguousarray(values)))


def from_arrow(table: pa.Table, columns: Columns, var: pd.DataFrame) -> AnnData:
    """Put an AnnData together as it was."""
    names = pd.Index(table[TILE].to_pylist())
    obs = pd.DataFrame(index=names)
    for entry in columns.obs:
        obs[entry["name"]] = _restore(table[entry["column"]], entry).set_axis(names)
    x = None
    if columns.x is not None:
        lists = table[GENES].combine_chunks(), table[COUNTS].combine_chunks()
        borders = _borders(lists[0])
        indices, data = (part.flatten().to_numpy(zero_copy_only=False) for part in lists)
        if len(indices) and indices.max() >= len(var):
            raise ValueError(f"Tiles name gene {indices.max()}, but the table of genes has {len(var)}.")
        x = csr_matrix((data.astype(columns.x), indices, borders), shape=(len(obs), len(var)))
    tiles = AnnData(x, obs=obs, var=var) if x is not None else AnnData(obs=obs, var=var)
    for entry in columns.obsm:
        values = table[entry["column"]].combine_chunks().flatten().to_numpy(zero_copy_only=False)
        array = values.astype(entry["dtype"]).reshape(len(obs), *entry["shape"])
        tiles.obsm[entry["key"]] = array if entry["names"] is None else _frame(array, names, entry)
    return tiles


def _frame(array: np.ndarray, index: pd.Index, entry: dict[str, Any]) -> pd.DataFrame:
    columns = [
        pd.Series(column, index=index).astype(kind) for column, kind in zip(array.T, entry["dtypes"], strict=True)
    ]
    frame = pd.concat(columns, axis=1) if columns else pd.DataFrame(index=index)
    return frame.set_axis(pd.Index(entry["names"]), axis=1) if columns else frame


def _borders(lists: Any) -> np.ndarray:
    offsets = lists.offsets.to_numpy()
    return offsets - offsets[0]


def _restore(column: pa.ChunkedArray, entry: dict[str, Any]) -> pd.Series:
    if entry["dtype"] != "category":
        kind: Any = pd.api.types.pandas_dtype(entry["dtype"])
        if pd.api.types.is_integer_dtype(kind) and column.null_count:  # pandas would go through float64
            return pd.Series(kind.__from_arrow__(column))
        return column.to_pandas().astype(kind)
    categories = pd.Index(entry["categories"], dtype=entry["of"])
    values = column.to_pandas(integer_object_nulls=True).astype(object)
    codes = np.where(values.isna(), -1, categories.get_indexer(values))
    if ((codes < 0) & values.notna()).any():
        raise ValueError(f"The column {entry['column']!r} holds values that are none of its categories.")
    return pd.Series(pd.Categorical.from_codes(codes, categories, ordered=entry["ordered"]))


def check_columns(there: Iterable[str], columns: Columns, where: str) -> None:
    """Refuse a file that lacks what the description promises."""
    missing = [name for name in columns.names() if name not in set(there)]
    if missing:
        raise ValueError(
            f"{where} has no column {missing[0]!r}, which its stfuse.json names: it is damaged or incomplete."
        )
