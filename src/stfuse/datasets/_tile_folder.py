"""The folder of a tile data set: Parquet files in parts, the table of genes, the description, the card."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from stfuse.datasets._tile_columns import IMAGE, Columns

if TYPE_CHECKING:
    import pyarrow as pa

DESCRIPTION, GENE_TABLE, CARD = "stfuse.json", "genes.parquet", "README.md"
_SIGN = f"described in `{DESCRIPTION}`"  # by which our card is told
VERSION = 1
_PART = re.compile(r".-\d{5}-of-\d{5}\.parquet$")
_GROUP = 100  # rows that are written at once; readers hold so many images


class PartWriter:
    """Write rows into files of a known number of rows, in groups, so that only one group is held."""

    def __init__(self, folder: Path, stem: str, n_rows: int, rows_a_file: int, huggingface: bool) -> None:
        self.folder, self.stem, self.limit = folder, stem, rows_a_file
        self.n_files = max(1, -(-n_rows // rows_a_file))
        self.huggingface = huggingface
        self.index, self.written = 0, 0
        self.waiting: list[pa.Table] = []
        self._writer: Any = None
        self.schema: pa.Schema | None = None

    def add(self, columns: dict[str, pa.Array]) -> None:
        """Take some rows."""
        import pyarrow as pa

        table = pa.table(columns)
        if self.schema is None:
            self.schema = _with_features(table.schema) if self.huggingface else table.schema
        self.waiting.append(table.cast(self.schema))
        while (held := sum(map(len, self.waiting))) >= (room := min(_GROUP, self.limit - self.written)):
            table = pa.concat_tables(self.waiting)
            self._write(table[:room])
            self.waiting = [table[room:]] if held > room else []

    def close(self) -> None:
        """Write what waits."""
        import pyarrow as pa

        if self.waiting:
            self._write(pa.concat_tables(self.waiting))
        self.abandon()

    def abandon(self) -> None:
        """Close the file that is open."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _write(self, rows: pa.Table) -> None:
        import pyarrow.parquet as pq

        if self._writer is None:
            path = self.folder / f"{self.stem}-{self.index:05d}-of-{self.n_files:05d}.parquet"
            self._writer = pq.ParquetWriter(path, self.schema)
        self._writer.write_table(rows)
        self.written += len(rows)
        if self.written == self.limit:
            self.abandon()
            self.index, self.written = self.index + 1, 0


def image_array(images: list[bytes | None]) -> pa.Array:
    """Make the column of images as the Hugging Face datasets do: the bytes of files, and a path that stays empty."""
    import pyarrow as pa

    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    return pa.array([None if image is None else {"bytes": image, "path": None} for image in images], type=kind)


def features_of(schema: pa.Schema) -> dict[str, Any]:
    """Describe columns in the words of Hugging Face."""
    import pyarrow as pa

    found: dict[str, Any] = {}
    for column in schema:
        if column.name == IMAGE:
            found[column.name] = {"_type": "Image"}
        elif pa.types.is_list(column.type):
            found[column.name] = {"feature": _value(column.type.value_type), "_type": "Sequence"}
        else:
            found[column.name] = _value(column.type)
    return found


def _value(kind: pa.DataType) -> dict[str, str]:
    names = {"double": "float64", "float": "float32", "halffloat": "float16"}
    return {"dtype": names.get(str(kind), str(kind)), "_type": "Value"}


def _with_features(schema: pa.Schema) -> pa.Schema:
    info = json.dumps({"info": {"features": features_of(schema)}})
    return schema.with_metadata({"huggingface": info})


def write_genes(folder: Path, var: pd.DataFrame) -> None:
    """Write the names of the genes and what else is known of them."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        pq.write_table(pa.Table.from_pandas(var), folder / GENE_TABLE)
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise ValueError(f"A column of var can't be written as a table: {error}.") from None


def read_genes(folder: Path) -> pd.DataFrame:
    """Read the table of genes."""
    if not (folder / GENE_TABLE).is_file():
        raise ValueError(f"{str(folder)!r} has no {GENE_TABLE}, which names its genes: it is incomplete.")
    var: pd.DataFrame = _read(folder / GENE_TABLE, None).to_pandas()
    return var


def write_description(folder: Path, n_tiles: int, columns: Columns, pixels: int | None) -> None:
    """Write what the columns hold."""
    content = {"format": "stfuse tiles", "version": VERSION, "n_tiles": n_tiles, "tile_px": pixels, **asdict(columns)}
    (folder / DESCRIPTION).write_text(json.dumps(content, indent=1, default=_plain) + "\n")


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else str(value)


def read_description(folder: Path) -> tuple[int, int | None, Columns]:
    """Read the number of tiles, the side of their images, and what the columns hold."""
    path = folder / DESCRIPTION
    try:
        content = json.loads(path.read_text())
        version = content["version"]
        if version != VERSION:
            raise ValueError(
                f"{str(path)!r} has the version {version}, and this release reads {VERSION}: update stfuse."
            )
        columns = Columns(content["x"], content["obs"], content["obsm"])
        return int(content["n_tiles"]), content["tile_px"], columns
    except (json.JSONDecodeError, KeyError, TypeError, UnicodeDecodeError) as error:
        raise ValueError(f"{str(path)!r} is damaged: {error or type(error).__name__}.") from error


def parquet_files(path: Path) -> list[Path]:
    """Find the files with tiles; in a folder of ours those of ours."""
    if path.is_file():
        return [path]
    if (path / DESCRIPTION).is_file():
        return own_parts(path)
    return [file for file in sorted(path.rglob("*.parquet")) if file.name != GENE_TABLE]


def own_parts(folder: Path) -> list[Path]:
    """Find the files with tiles that we have written, by their names."""
    found = [*folder.glob("*.parquet"), *folder.glob("data/*.parquet")]
    return sorted(file for file in found if _PART.search(file.name))


def is_card(path: Path) -> bool:
    """Tell a card that we have written."""
    return path.is_file() and _SIGN in path.read_text(encoding="utf-8", errors="replace")


def read_parts(files: list[Path], columns: list[str]) -> pa.Table:
    """Read some columns of all files."""
    import pyarrow as pa

    return pa.concat_tables([_read(file, columns) for file in files], promote_options="permissive")


def _read(file: Path, columns: list[str] | None) -> pa.Table:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.read_table(file, columns=columns, partitioning=None)
    except (pa.ArrowInvalid, OSError) as error:
        raise ValueError(f"{str(file)!r} is damaged or no Parquet file: {error}.") from error


def read_schema(file: Path) -> pa.Schema:
    """Read what columns a file has."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.read_schema(file)
    except (pa.ArrowInvalid, OSError) as error:
        raise ValueError(f"{str(file)!r} is damaged or no Parquet file: {error}.") from error


def iterate_images(files: list[Path], column: str) -> Iterator[list[bytes | None]]:
    """Read the bytes of images, some at a time."""
    import pyarrow.parquet as pq

    for file in files:
        for batch in pq.ParquetFile(file).iter_batches(batch_size=_GROUP, columns=[column]):
            found = batch.column(0).to_pylist()
            yield [value.get("bytes") if isinstance(value, dict) else value for value in found]


def write_card(folder: Path, schema: pa.Schema, parts: dict[str, int], license: str, title: str, n_genes: int) -> None:
    """Write the card from which the Hugging Face hub and its library learn what is where."""
    import yaml

    features = []
    for name, feature in features_of(schema).items():
        if feature["_type"] == "Image":
            features.append({"name": name, "dtype": "image"})
        elif feature["_type"] == "Sequence":
            features.append({"name": name, "sequence": feature["feature"]["dtype"]})
        else:
            features.append({"name": name, "dtype": feature["dtype"]})
    head = {
        "license": license,
        "pretty_name": title,
        "tags": ["histology", "spatial-transcriptomics", "biology"],
        "configs": [
            {
                "config_name": "default",
                "data_files": [{"split": part, "path": f"data/{part}-*.parquet"} for part in parts],
            }
        ],
        "dataset_info": {
            "features": features,
        },
    }
    counts = "\n".join(f"- `{part}`: {n} tiles" for part, n in parts.items())
    image = "- `image`: the tissue below the tile (PNG)\n" if IMAGE in schema.names else ""
    (folder / CARD).write_text(
        f"---\n{yaml.safe_dump(head, sort_keys=False, allow_unicode=True)}---\n\n# {title}\n\n"
        "Square tiles of tissue, each with the expression of the cells inside.\n\n"
        f"{counts}\n\n{image}"
        f"- `gene_indices`, `gene_counts`: the genes that were found in a tile, as rows of `{GENE_TABLE}` ({n_genes} genes), "
        "and their counts\n"
        "- `tile`: name of the tile; `index`: its place in the table that was exported\n"
        f"- the other columns: what is known of a tile (`obs`) and numbers of it (`obsm`, as lists), {_SIGN}\n\n"
        "```python\nimport datasets, stfuse\n\n"
        'datasets.load_dataset("this folder")\n'
        'tiles = stfuse.datasets.read_tiles("this folder", images=True)  # AnnData\n```\n',
        encoding="utf-8",
    )
