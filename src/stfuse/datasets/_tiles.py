"""Tiles as a data set on disk that others can load, and back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import pandas as pd
from anndata import AnnData

from stfuse import _keys, _read
from stfuse._check import check_flag, check_number, check_seed, check_text
from stfuse._image._section import Choice, Section
from stfuse._image._sections import find_sections
from stfuse._log import warn
from stfuse._progress import progress as progress_bar
from stfuse.datasets._split import read_split
from stfuse.datasets._tile_columns import (
    IMAGE,
    IMAGES_KEY,
    INDEX,
    Columns,
    check_columns,
    describe,
    from_arrow,
    to_arrow,
)
from stfuse.datasets._tile_folder import (
    DESCRIPTION,
    PartWriter,
    image_array,
    iterate_images,
    parquet_files,
    read_description,
    read_genes,
    read_parts,
    read_schema,
    write_card,
    write_description,
    write_genes,
)
from stfuse.datasets._tile_foreign import read_foreign
from stfuse.datasets._tile_images import Images, Stored, as_stored, cut, read_images, stored
from stfuse.datasets._tile_place import check_folder, fresh
from stfuse.pp._tile_elements import is_tile_table
from stfuse.pp._tile_table import read_matrix

if TYPE_CHECKING:
    from spatialdata import SpatialData


def export_tiles(
    data: AnnData | SpatialData,
    path: str | Path,
    *,
    format: Literal["huggingface", "parquet"] = "huggingface",
    images: bool = True,
    tile_px: int = 224,
    split_key: str = "split",
    patient_key: str | None = None,
    fractions: Mapping[str, float] | None = None,
    seed: int = 0,
    obsm_keys: Sequence[str] | None = None,
    image: str | Path | np.ndarray | Mapping[str, Any] | None = None,
    library_key: str | None = None,
    spatial_key: str | tuple[str, str] = _keys.SPATIAL,
    coordinate_system: str | None = None,
    table_key: str | None = None,
    license: str = "unknown",
    title: str = "Tissue tiles",
    tiles_per_file: int = 4096,
    overwrite: bool = False,
    progress: bool | None = None,
) -> None:
    """Write tiles with their images, expression, composition, labels and patient split as a data set.

    `"huggingface"` is a folder that `datasets.load_dataset(folder)` opens as it is and that can be uploaded to the hub;
    `"parquet"` the same columns as plain Parquet files. `read_tiles` brings both back. Images are read and written in
    portions, so memory does not grow with the number of tiles.

    Parameters
    ----------
    data
        Table of tiles that `pp.tessellate` made, or the SpatialData that holds it.
    path
        Folder to write.
    format
        `"huggingface"` or `"parquet"`.
    images
        Whether to write the images. Tiles without one (outside of the image, or a section without) have none in the file.
    tile_px
        Side of the images in pixels; they are resampled with antialiasing from the pyramid level that is sharp enough.
    split_key
        Column of `obs` with the part each tile belongs to ("train", "test"...). Where there is none it is made, see
        `patient_key`, and written under this name.
    patient_key
        Column of `obs` with the patient. No patient is in two parts: a split that is there is checked, a new one deals whole
        patients out at random. None = where there is no split either, all is "train".
    fractions
        Fractions of the tiles for each part. None = 0.7 train, 0.15 validation, 0.15 test. Whole patients rarely meet them
        exactly; every part gets one at least.
    seed
        Seed of the split.
    obsm_keys
        Entries of `obsm` to write. None = all that are numbers (`spatial`, `composition`, `X_image`...).
    image, library_key, spatial_key, coordinate_system
        Where the images are, as in `pp.tessellate`; needed again where they were given there.
    table_key
        SpatialData: the table of tiles. None = the only one.
    license, title
        For the card of the data set (`README.md`); the license as the hub names it, for example `"cc-by-4.0"`.
    tiles_per_file
        Number of tiles in one file.
    overwrite
        Whether to replace a data set that this function wrote to the same folder: its Parquet files (`*-of-*.parquet` there
        and in `data`, `genes.parquet`), `stfuse.json` and the card. Other files there (`.git`, notes) stay.
    progress
        Whether to show a progress bar. None = where a person looks on and it takes more than 2 seconds.

    Raises
    ------
    FileExistsError
        If the folder is not empty, unless it is a data set of this function and `overwrite` is True.
    KeyError
        If an image, a column, a table or an entry of `obsm` is not there.
    ValueError
        If a patient is in two parts, there are fewer patients than parts, the table has no tiles, or a number is out of range.
    TypeError
        If an argument is of the wrong type.

    Warns
    -----
    UserWarning
        If entries of `obsm` are no numbers and stay behind, or tiles have no image.

    Notes
    -----
    Columns are `image` (PNG), `gene_indices` and `gene_counts` (the genes above zero, as rows of `genes.parquet`), the columns
    of `obs` under their names, entries of `obsm` as lists, `tile` (name) and `index` (place in the table). `stfuse.json` says
    what they hold. `uns` is not written.

    Examples
    --------
    >>> import stfuse, tempfile
    >>> spots = stfuse.datasets.mob()
    >>> tiles = stfuse.pp.tessellate(spots, tile_um=800, label_key="layer", library_key="section")
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     stfuse.datasets.export_tiles(
    ...         tiles, folder, tile_px=32, patient_key="individual", fractions={"train": 0.5, "test": 0.5}
    ...     )
    ...     back = stfuse.datasets.read_tiles(folder, images=True)
    >>> back.shape == tiles.shape, back.obsm["tile_image"].shape[1:]
    (True, (32, 32, 3))
    """
    for name, flag in (("images", images), ("overwrite", overwrite)):
        check_flag(name, flag)
    check_flag("progress", progress, optional=True)
    for name, number in (("tile_px", tile_px), ("tiles_per_file", tiles_per_file)):
        check_number(name, number, least=1, whole=True)
    for name, text in (("split_key", split_key), ("license", license), ("title", title)):
        check_text(name, text)
    check_text("patient_key", patient_key, optional=True)
    check_seed(seed)
    if format not in ("huggingface", "parquet"):
        raise ValueError(f"format must be 'huggingface' or 'parquet', got {format!r}.")
    folder = check_folder(path, overwrite, format == "huggingface")
    choice = Choice(image, library_key, spatial_key, table_key, None, coordinate_system, None)
    tiles, choice = _tile_table(data, choice)
    split = read_split(tiles, split_key, patient_key, fractions, seed)
    source = _images(data, tiles, choice) if images else None
    if split_key not in tiles.obs:
        obs: Any = tiles.obs
        tiles = AnnData(tiles.X, obs=obs.assign(**{split_key: split}), var=tiles.var, obsm=dict(tiles.obsm))
    columns, left = describe(tiles, obsm_keys)
    if left:
        warn(f"Entries of obsm that are no arrays of numbers are not written: {', '.join(left)}.")

    form = _Form(format == "huggingface", tile_px, tiles_per_file, license, title)
    with fresh(folder) as new:
        missing = _write(new, tiles, columns, split, source, form, progress)
        write_genes(new, tiles.var)
        write_description(new, tiles.n_obs, columns, tile_px if images else None)
    if missing:
        warn(f"{missing} of {tiles.n_obs} tiles have no image: they are written without.")


class _Form(NamedTuple):
    """How a data set is written."""

    huggingface: bool
    pixels: int
    tiles_per_file: int
    license: str
    title: str


def _tile_table(data: Any, choice: Choice) -> tuple[AnnData, Choice]:
    if _read.is_spatialdata(data) and choice.table_key is None:
        fits = [name for name, table in data.tables.items() if is_tile_table(table)]
        if len(fits) != 1:
            raise ValueError(
                f"The SpatialData has {len(fits) or 'no'} table(s) of tiles ({', '.join(fits or data.tables) or 'none'}): "
                "make one with stfuse.pp.tessellate, or name one with table_key=."
            )
        choice = Choice(choice.image, choice.library_key, choice.spatial_key, fits[0], None, choice.coordinate_system)
    tiles: Any = _read.container(data, choice.table_key)
    if not isinstance(tiles, AnnData):
        raise TypeError(f"export_tiles takes AnnData or SpatialData, got {type(data).__name__}.")
    if "tile_size" not in tiles.obs:
        raise ValueError("obs has no 'tile_size', so this is no table of tiles: make one with stfuse.pp.tessellate.")
    if not tiles.n_obs:
        raise ValueError("The table has no tiles.")
    _read.check_names(tiles.obs_names, "the table of tiles")
    return tiles, choice


def _images(data: Any, tiles: AnnData, choice: Choice) -> list[Section] | Stored:
    if IMAGES_KEY in tiles.obsm and choice.image is None:
        return as_stored(np.asarray(tiles.obsm[IMAGES_KEY]), f"obsm[{IMAGES_KEY!r}]")
    return find_sections(data, choice)


def _write(
    folder: Path,
    tiles: AnnData,
    columns: Columns,
    split: pd.Categorical,
    source: list[Section] | Stored | None,
    form: _Form,
    progress: bool | None,
) -> int:
    """Write all parts; return how many tiles have no image."""
    matrix = None
    if columns.x is not None:
        matrix = read_matrix(tiles, None).astype(columns.x)
        matrix.sum_duplicates()
        matrix.eliminate_zeros()
    place = folder / "data" if form.huggingface else folder
    place.mkdir(exist_ok=True)
    parts = {str(name): np.flatnonzero(split == name) for name in split.categories}
    parts = {name: rows for name, rows in parts.items() if len(rows)}
    files = parts if form.huggingface else {"tiles": np.arange(tiles.n_obs)}
    missing, schema = 0, None
    for stem, rows in progress_bar(list(files.items()), total=len(files), desc="tiles", show=progress):
        writer = PartWriter(place, stem, len(rows), form.tiles_per_file, form.huggingface)
        try:
            for here, found in _batches(source, rows, form.pixels):
                table = to_arrow(tiles, here, columns, matrix)
                if source is not None:
                    table = {IMAGE: image_array(found), **table}
                    missing += sum(image is None for image in found)
                writer.add(table)
            writer.close()
        finally:
            writer.abandon()
        schema = writer.schema
    if form.huggingface and schema is not None:
        sizes = {name: len(rows) for name, rows in parts.items()}
        write_card(folder, schema, sizes, form.license, form.title, tiles.n_vars)
    return missing


def _batches(source: list[Section] | Stored | None, rows: np.ndarray, pixels: int) -> Iterator[Images]:
    if source is None:
        for start in range(0, len(rows), 1024):
            yield rows[start : start + 1024], []
    elif isinstance(source, Stored):
        yield from stored(source, rows, pixels)
    else:
        yield from cut(source, rows, pixels)


def read_tiles(path: str | Path, *, images: bool = False, expression: str | None = None) -> AnnData:
    """Read a data set of tiles that `export_tiles` wrote, or one of another origin in the form of Hugging Face.

    Parameters
    ----------
    path
        Folder with Parquet files, or one such file.
    images
        Whether to read the images too, all into memory.
    expression
        Data set of another origin: column with the expression, lists of one length or named numbers.

    Returns
    -------
    AnnData
        Of a data set of `export_tiles` the table as it was: order, `X` (CSR), `var`, `obs` with its types, `obsm`; and the
        split, if it was made for the export. `uns` is empty. Of another origin

        - `X`: the column `expression`; no genes where none is named
        - `obs`: columns of text and numbers; names of classes become categories; `obs["split"]` from the names of the files
        - `obsm`: lists of numbers of one length as arrays, named numbers as a DataFrame

        With `images`, `obsm["tile_image"]` holds them (n x side x side x 3, uint8), black where a tile has none.

    Raises
    ------
    FileNotFoundError
        If there is no such folder, or no Parquet file in it.
    ValueError
        If a file is damaged or missing, or the images have several sizes.
    KeyError
        If there is no column `expression`, or no images.

    Warns
    -----
    UserWarning
        If columns of a data set of another origin fit nowhere.

    Examples
    --------
    >>> import stfuse, tempfile
    >>> tiles = stfuse.pp.tessellate(stfuse.datasets.mob(), tile_um=800, library_key="section")
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     stfuse.datasets.export_tiles(tiles, folder, format="parquet", images=False)
    ...     back = stfuse.datasets.read_tiles(folder)
    >>> bool((back.X != tiles.X).nnz == 0)
    True
    """
    check_flag("images", images)
    check_text("expression", expression, optional=True)
    folder = Path(path).expanduser()
    if not folder.exists():
        raise FileNotFoundError(f"There is no {str(folder)!r} (current folder: {Path.cwd()}).")
    files = parquet_files(folder)
    if not files:
        raise FileNotFoundError(f"{str(folder)!r} has no Parquet file, so it is no data set of tiles.")
    if not (folder / DESCRIPTION).is_file():
        tiles, column = read_foreign(files, expression)
        return _with_images(tiles, files, column, None) if images else tiles
    if expression is not None:
        raise ValueError(
            "expression= is for data sets of another origin; this one says itself where its expression is."
        )
    tiles, places, pixels = _read_own(folder, files)
    if not images:
        return tiles
    return _with_images(tiles, files, IMAGE if pixels is not None else None, places)


def _read_own(folder: Path, files: list[Path]) -> tuple[AnnData, np.ndarray, int | None]:
    n_tiles, pixels, columns = read_description(folder)
    for file in files:
        check_columns(read_schema(file).names, columns, f"{str(file)!r}")
    table = read_parts(files, columns.names())
    index = table[INDEX].to_numpy()
    if len(index) != n_tiles or not np.array_equal(np.sort(index), np.arange(n_tiles)):
        raise ValueError(
            f"{str(folder)!r} should hold {n_tiles} tiles, but its files hold {len(np.unique(index))} of them: a file is "
            "missing, or belongs to another data set."
        )
    order = np.argsort(index)
    return from_arrow(table.take(order), columns, read_genes(folder)), index, pixels


def _with_images(tiles: AnnData, files: list[Path], column: str | None, places: np.ndarray | None) -> AnnData:
    if column is None:
        raise KeyError("The data set has no images: read it without images=True.")
    places = np.arange(tiles.n_obs) if places is None else places
    tiles.obsm[IMAGES_KEY] = read_images(iterate_images(files, column), places)
    return tiles
