"""The place of a tile data set: written beside it first, then moved in; files of others stay as they are."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from stfuse.datasets._tile_folder import CARD, DESCRIPTION, GENE_TABLE, is_card, own_parts


def check_folder(path: str | Path, overwrite: bool, card: bool) -> Path:
    """Find the real folder, through links, and refuse one that can't be written or holds what is not ours."""
    folder = Path(path).expanduser().resolve()
    if folder.exists() and not folder.is_dir():
        raise FileExistsError(f"{str(folder)!r} is a file; a tile data set is a folder.")
    if not folder.exists() or not any(folder.iterdir()):
        return _writable(folder)
    if not (folder / DESCRIPTION).is_file():
        raise FileExistsError(f"{str(folder)!r} holds other files: choose an empty or a new folder.")
    if not overwrite:
        raise FileExistsError(f"{str(folder)!r} holds a tile data set already: replace it with overwrite=True.")
    if card and (folder / CARD).exists() and not is_card(folder / CARD):
        raise FileExistsError(
            f"{str(folder / CARD)!r} is no card of this function: move it away, or choose a new folder."
        )
    return _writable(folder)


def _writable(folder: Path) -> Path:
    there = next(place for place in (folder, *folder.parents) if place.exists())
    if not os.access(there, os.W_OK):
        raise PermissionError(f"{str(there)!r} can't be written to: choose another folder.")
    return folder


@contextmanager
def fresh(folder: Path) -> Iterator[Path]:
    """Give a new folder to write into; what is in it moves to its place at the end, unless something failed."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    new = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        yield new
        _move_in(new, folder)
    finally:
        shutil.rmtree(new, ignore_errors=True)


def _move_in(new: Path, folder: Path) -> None:
    files = [file.relative_to(new) for file in new.rglob("*") if file.is_file()]
    stale = {file.relative_to(folder) for file in _own_files(folder)} - set(files)
    for file in files:
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.move(new / file, folder / file)
    for file in stale:
        (folder / file).unlink()
    data = folder / "data"
    if data.is_dir() and not any(data.iterdir()):
        data.rmdir()


def _own_files(folder: Path) -> list[Path]:
    """Find what an earlier call has written."""
    if not (folder / DESCRIPTION).is_file():
        return []
    named = [folder / name for name in (DESCRIPTION, GENE_TABLE) if (folder / name).is_file()]
    return [*own_parts(folder), *named, *([folder / CARD] if is_card(folder / CARD) else [])]
