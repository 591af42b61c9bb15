"""Finished features on disk, so that hours of work on a slide survive an interruption."""

from __future__ import annotations

import hashlib
import os
import re
import time
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import numpy as np

from stfuse._log import warn

_EVERY = 30.0  # seconds between two files


class FeatureStore:
    """A folder of files, each with some crops and their features; without a folder it keeps nothing."""

    def __init__(self, folder: Any, token: str, encoder: str, *, fresh: bool = False) -> None:
        self.folder: Path | None = None
        self._slots: list[np.ndarray] = []
        self._features: list[np.ndarray] = []
        self._last = time.monotonic()
        if folder is None:
            return
        if not token:
            raise ValueError(
                f"store= knows work again by the name of its encoder, and {encoder!r} is an object of your own: leave store= "
                "out, or name an encoder."
            )
        # one folder for each kind of work: another crop size or image never mixes with it
        self.folder = (
            Path(folder).expanduser()
            / f"{re.sub(r'[^A-Za-z0-9.-]', '-', encoder)}-{hashlib.sha256(token.encode()).hexdigest()[:16]}"
        )
        self.folder.mkdir(parents=True, exist_ok=True)
        for file in self.folder.glob("*.npz") if fresh else ():
            file.unlink()

    def read(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Give what is there, file by file; a file that can't be read is computed again."""
        for file in sorted(self.folder.glob("*.npz")) if self.folder is not None else ():
            try:
                with np.load(file) as content:
                    slots, features = content["slots"], content["features"]
                if slots.shape != features.shape[:1] or features.ndim != 2 or slots.dtype.kind != "i":
                    raise ValueError("its arrays have another form")
            except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
                warn(f"{str(file)!r} can't be read ({error}): its features are computed again.")
                continue
            yield slots, features

    def add(self, slots: np.ndarray, features: np.ndarray) -> None:
        """Keep finished features; written out now and then."""
        if self.folder is None:
            return
        self._slots.append(slots)
        self._features.append(features)
        if time.monotonic() - self._last > _EVERY:
            self.flush()

    def flush(self) -> None:
        """Write what is waiting, under another name first: a file with its right name is whole."""
        if self.folder is None or not self._slots:
            return
        name = f"{time.time_ns()}-{os.getpid()}"
        part = self.folder / f"{name}.part"
        with part.open("wb") as file:
            np.savez(file, slots=np.concatenate(self._slots), features=np.concatenate(self._features))
        part.replace(self.folder / f"{name}.npz")
        self._slots, self._features, self._last = [], [], time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.flush()  # also after an error or an interruption
