"""Tile data sets of others: images, labels and lists of numbers under names that are not ours."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy.sparse import csr_matrix

from stfuse._check import did_you_mean
from stfuse._log import warn
from stfuse.datasets._tile_folder import read_parts, read_schema

if TYPE_CHECKING:
    import pyarrow as pa

_PART = re.compile(r"^(.+?)-\d+-of-\d+")


def is_image(kind: pa.DataType) -> bool:
    """Tell a column of images: bytes, or bytes with a path."""
    import pyarrow as pa

    if pa.types.is_struct(kind):
        return {field.name for field in kind} == {"bytes", "path"}
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def read_foreign(files: list[Path], expression: str | None) -> tuple[AnnData, str | None]:
    """Read what can be read as an AnnData, and name the column of images."""
    schema = read_schema(files[0])
    images = [column.name for column in schema if is_image(column.type)]
    names = [column.name for column in schema if column.name not in images]
    if expression is not None and expression not in names:
        raise KeyError(
            f"The data set has no column {expression!r}.{did_you_mean(expression, names)} It has: {', '.join(names)}."
        )
    table = read_parts(files, names)
    labels = _class_labels(schema)
    obs = pd.DataFrame(index=pd.RangeIndex(len(table)).astype(str).astype(object))
    numbers: dict[str, tuple[np.ndarray, list[str] | None]] = {}
    left = []
    for name in names:
        found = _numbers(table[name].combine_chunks())
        if found is not None:
            numbers[name] = found
        elif _is_nested(table[name].type):
            left.append(name)
        else:
            obs[name] = _column(table[name], labels.get(name)).set_axis(obs.index)
    if "split" not in obs and (parts := _parts(files)) is not None:
        obs["split"] = pd.Categorical(parts)
    tiles = _with_expression(obs, numbers, expression)
    for name, (values, columns) in numbers.items():
        if name != expression:
            framed = columns is not None
            tiles.obsm[name] = pd.DataFrame(values, index=obs.index, columns=columns) if framed else values
    if left:
        warn(f"Columns of lists of several lengths or of text are left out: {', '.join(left)}.")
    return tiles, images[0] if images else None


def _with_expression(
    obs: pd.DataFrame, numbers: dict[str, tuple[np.ndarray, list[str] | None]], expression: str | None
) -> AnnData:
    if expression is None:
        return AnnData(csr_matrix((len(obs), 0), dtype=np.float32), obs=obs)
    if expression not in numbers:
        raise ValueError(
            f"The column {expression!r} is no expression: it must hold one number for each gene, as lists of one length or as "
            f"named numbers. Such columns are: {', '.join(numbers) or 'none'}."
        )
    values, columns = numbers[expression]
    genes = columns if columns is not None else [str(i) for i in range(values.shape[1])]
    return AnnData(csr_matrix(values), obs=obs, var=pd.DataFrame(index=pd.Index(genes, dtype=object)))


def _is_nested(kind: Any) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_nested(kind))


def _numbers(column: Any) -> tuple[np.ndarray, list[str] | None] | None:
    """Read lists of one length, or named numbers, as n x d; None of what is neither."""
    import pyarrow as pa

    def numeric(kind: Any) -> bool:
        return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind))

    if pa.types.is_struct(column.type) and all(numeric(field.type) for field in column.type):
        parts = [part.to_numpy(zero_copy_only=False) for part in column.flatten()]
        return np.column_stack(parts), [field.name for field in column.type]
    lists = pa.types.is_list(column.type) or pa.types.is_large_list(column.type)
    if not (lists or pa.types.is_fixed_size_list(column.type)) or not numeric(column.type.value_type):
        return None
    values = column.flatten().to_numpy(zero_copy_only=False)
    lengths = column.value_lengths().to_numpy(zero_copy_only=False)
    if column.null_count or len(np.unique(lengths)) != 1 or not lengths[0]:
        return None
    return values.reshape(len(column), -1), None


def _class_labels(schema: pa.Schema) -> dict[str, list[str]]:
    """Read the names of classes from what Hugging Face keeps beside the columns."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
    except (KeyError, TypeError, json.JSONDecodeError):
        return {}
    return {n: f["names"] for n, f in features.items() if isinstance(f, dict) and f.get("_type") == "ClassLabel"}


def _column(column: Any, classes: list[str] | None) -> pd.Series:
    values = column.to_pandas()
    if classes is None:
        return values
    codes = values.fillna(-1).to_numpy(dtype=np.int64)
    return pd.Series(pd.Categorical.from_codes(codes, classes))


def _parts(files: list[Path]) -> list[str] | None:
    """Tell the parts of a split from the names of the files."""
    import pyarrow.parquet as pq

    found = [_PART.match(file.name) for file in files]
    if not all(found):
        return None
    counts = [pq.ParquetFile(file).metadata.num_rows for file in files]
    return [m.group(1) for m, n in zip(found, counts, strict=True) if m is not None for _ in range(n)]
