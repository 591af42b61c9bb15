"""Crops out of an image that need not fit memory: its chunks are visited once, in order, and forgotten."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from stfuse._image._crops import gather, needed
from stfuse._image._lazy import compute_all
from stfuse._image._pyramid import Pyramid

_BUFFER = 128 * 2**20  # bytes of pixels held at once; a wider image is read in several strips
_TOGETHER = 8  # chunks decoded at once
_AHEAD = 2  # batches that wait while one is encoded


@dataclass(frozen=True)
class Group:
    """Crops of one size on one level: n x 2 upper left pixels (x, y), and width and height, in pixels of the level."""

    first: np.ndarray
    size: tuple[int, int]

    def subset(self, rows: np.ndarray) -> Group:
        """Take some of the crops."""
        return Group(self.first[rows], self.size)


type Batch = tuple[int, np.ndarray, np.ndarray]  # which group, which of its crops, b x h x w x 3 of uint8


def read_crops(image: Pyramid, level: int, groups: Sequence[Group], steps: Sequence[int]) -> Iterator[Batch]:
    """Cut the crops of one level, for each group at most so many at a time; beyond its border the image is mirrored.

    Crops of a lazy image come in the order of its chunks, each of which is read once (an image so wide that a row of
    chunks passes 128 MB is read in strips, and what lies under two strips twice).
    """
    if image.levels[level].lazy:
        yield from _from_chunks(image, level, groups, steps)
        return
    pixels = image.read(level)
    for index, group in enumerate(groups):
        for start in range(0, len(group.first), steps[index]):
            which = np.arange(start, min(start + steps[index], len(group.first)))
            yield index, which, gather(pixels, group.first[which], group.size, image.levels[level].size, (0, 0))


class _Grid:
    """The chunks of a lazy level: their borders, and which of them each crop needs."""

    def __init__(self, image: Pyramid, level: int, groups: Sequence[Group]) -> None:
        self.image, self.level = image, level
        array = image.levels[level].pixels
        self.rows, self.columns = (np.concatenate([[0], np.cumsum(c)]) for c in array.chunks[:2])
        width, height = image.levels[level].size
        self.group = np.repeat(np.arange(len(groups)), [len(g.first) for g in groups])
        self.position = np.concatenate([np.arange(len(g.first)) for g in groups])
        x = [needed(g.first[:, 0], g.size[0], width) for g in groups]
        y = [needed(g.first[:, 1], g.size[1], height) for g in groups]
        self.top = np.concatenate([low for low, _ in y])
        self.row0, self.row1 = (self._chunk(self.rows, np.concatenate([part[i] for part in y])) for i in (0, 1))
        self.column0, self.column1 = (
            self._chunk(self.columns, np.concatenate([part[i] for part in x])) for i in (0, 1)
        )

    @staticmethod
    def _chunk(borders: np.ndarray, pixels: np.ndarray) -> np.ndarray:
        return np.searchsorted(borders, pixels, side="right") - 1

    def strips(self) -> list[np.ndarray]:
        """Part the crops into vertical strips whose rows of chunks fit the buffer."""
        height = int(np.diff(self.rows).max() + (self.rows[self.row1 + 1] - self.top).max())
        strip = self.columns[self.column0] // max(1, _BUFFER // (3 * height))
        return [np.flatnonzero(strip == s) for s in np.unique(strip)]


def _from_chunks(image: Pyramid, level: int, groups: Sequence[Group], steps: Sequence[int]) -> Iterator[Batch]:
    if not any(len(group.first) for group in groups):
        return
    grid = _Grid(image, level, groups)
    for members in grid.strips():
        yield from _strip(grid, members, groups, steps)


def _strip(grid: _Grid, members: np.ndarray, groups: Sequence[Group], steps: Sequence[int]) -> Iterator[Batch]:
    """Go down a strip, one row of chunks after the other, keeping of the rows above what open crops still need."""
    row0, row1 = grid.row0[members], grid.row1[members]
    window = _Window(grid, members)
    by_end = members[np.argsort(row1, kind="stable")]
    ends = np.searchsorted(np.sort(row1), np.arange(row0.min(), row1.max() + 2))
    shape = grid.image.levels[grid.level].size
    for i in range(len(ends) - 1):
        window.advance(i)
        done = by_end[ends[i] : ends[i + 1]]
        for index in np.unique(grid.group[done]):
            which, group = grid.position[done[grid.group[done] == index]], groups[index]
            for start in range(0, len(which), steps[index]):
                part = which[start : start + steps[index]]
                yield int(index), part, gather(window.pixels, group.first[part], group.size, shape, window.origin)


class _Window:
    """The pixels of a strip that are in memory: one row of chunks, and under its upper border what open crops need."""

    def __init__(self, grid: _Grid, members: np.ndarray) -> None:
        self.grid = grid
        self.first_row = int(grid.row0[members].min())
        self.left = int(grid.columns[grid.column0[members].min()])
        right = int(grid.columns[grid.column1[members].max() + 1])
        self.touched, keep = _schedule(grid, members)
        tops = grid.rows[self.first_row : self.first_row + len(keep)]
        heights = np.diff(grid.rows)[self.first_row : self.first_row + len(keep)]
        self.above = np.maximum(tops - keep, 0)  # rows that are kept of what lies above each row of chunks
        self.buffer = np.empty((int((self.above + heights).max()), right - self.left, 3), dtype=np.uint8)
        self.used = 0

    @property
    def pixels(self) -> np.ndarray:
        """What is in memory."""
        return self.buffer[: self.used]

    @property
    def origin(self) -> tuple[int, int]:
        """Place of its upper left pixel (x, y) in the level."""
        return self.left, self.bottom - self.used

    def advance(self, i: int) -> None:
        """Put a row of chunks under the pixel rows that are kept; only chunks that crops touch are read."""
        row, grid = self.first_row + i, self.grid
        height, above = int(grid.rows[row + 1] - grid.rows[row]), int(self.above[i])
        self.bottom = int(grid.rows[row + 1])
        self.buffer[:above] = self.buffer[self.used - above : self.used]
        self.used = above + height
        blocks = grid.image.levels[grid.level].pixels.blocks
        columns = np.flatnonzero(self.touched[i])
        for start in range(0, len(columns), _TOGETHER):
            some = columns[start : start + _TOGETHER]
            read = compute_all([blocks[row, int(column)] for column in some])
            for column, pixels in zip(some, read, strict=True):
                place = slice(grid.columns[column] - self.left, grid.columns[column + 1] - self.left)
                self.buffer[above : self.used, place] = grid.image.color.to_rgb(np.asarray(pixels))


def _schedule(grid: _Grid, members: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Tell for each row of chunks which of them are needed, and from which pixel row on what lies above is."""
    row0, row1 = grid.row0[members], grid.row1[members]
    offset, n_rows = row0.min(), row1.max() - row0.min() + 1
    change = np.zeros((n_rows, len(grid.columns)), dtype=np.int64)
    keep = np.full(n_rows, np.iinfo(np.int64).max)
    for step in range(int((row1 - row0).max()) + 1):
        open_ = row0 + step <= row1
        row = row0[open_] + step - offset
        np.add.at(change, (row, grid.column0[members][open_]), 1)
        np.add.at(change, (row, grid.column1[members][open_] + 1), -1)
        if step:
            np.minimum.at(keep, row, grid.top[members][open_])
    return change.cumsum(axis=1)[:, :-1] > 0, keep


def in_background[T](items: Iterator[T], ahead: int = _AHEAD) -> Iterator[T]:
    """Go through an iterator in a thread of its own, some items ahead, so that reading and encoding overlap."""
    waiting: queue.Queue[Any] = queue.Queue(maxsize=ahead)
    stop = threading.Event()
    end = object()

    def put(item: Any) -> None:
        while not stop.is_set():
            try:
                waiting.put(item, timeout=0.1)
                return
            except queue.Full:
                continue

    def work() -> None:
        try:
            for item in items:
                put((item, None))
                if stop.is_set():
                    return
            put((end, None))
        except BaseException as error:  # noqa: BLE001  it is raised again where the items are used
            put((end, error))

    thread = threading.Thread(target=work, name="stfuse-reader", daemon=True)
    thread.start()
    try:
        while True:
            item, error = waiting.get()
            if error is not None:
                raise error
            if item is end:
                return
            yield item
    finally:
        stop.set()
        thread.join()
