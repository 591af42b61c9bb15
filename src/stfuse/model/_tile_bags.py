"""Tiles in an AnnData as bags: which slide each belongs to, what the slide is labelled, and codes of all of its tiles."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from anndata import AnnData

from stfuse import _read
from stfuse._check import did_you_mean
from stfuse._labels import read_classes
from stfuse.module.abmil import SlideEncoder
from stfuse.train._bags import Bags
from stfuse.train._fit import resolve_device

PART = 65_536  # tiles coded at once
MOMENT_TILES = 32_768  # mean and spread of a feature are as good from so many as from millions


@dataclass(frozen=True)
class TileBags:
    """Tiles of s slides: ``slide`` is the slide of each tile (-1 = none), ``labels`` the class of each slide (-1 = not known)."""

    names: pd.Index
    slide: np.ndarray
    bags: Bags
    labels: np.ndarray
    classes: list[str]

    @property
    def n_features(self) -> int:
        """Width of a tile's features."""
        return self.bags.features.shape[1]

    def find(self, slides: Sequence[str] | pd.Index, argument: str) -> np.ndarray:
        """Positions of slides by name."""
        found = self.names.get_indexer(pd.Index(slides, dtype=object))
        if (found < 0).any():
            absent = slides[int(np.flatnonzero(found < 0)[0])]
            raise KeyError(
                f"{argument} names {absent!r}, but no tile is of that slide.{did_you_mean(absent, self.names)}"
            )
        return np.unique(found)


def read_tile_bags(adata: AnnData, slide_key: str, label_key: str | None, image_key: str) -> TileBags:
    """Read tiles; those without features are in no bag, a slide whose tiles have no label has none."""
    features = _read.read_rep(adata, image_key)
    has = _read.check_values(features, f"obsm[{image_key!r}]")
    column = pd.Categorical(_read.read_column(adata, slide_key))
    names = pd.Index([str(name) for name in column.categories])
    _check_distinct(names, slide_key)
    slide = column.codes.astype(np.int64)
    if not (has & (slide >= 0)).any():
        raise ValueError(f"No tile has both features in obsm[{image_key!r}] and a slide in obs[{slide_key!r}].")
    labels = np.full(len(names), -1)
    classes: list[str] = []
    if label_key is not None:
        of_tiles, classes = read_classes(_read.read_column(adata, label_key), label_key)
        labels = _of_slides(of_tiles, slide, names, label_key)
    with warnings.catch_warnings():
        # an array that may not be written to, such as a file in memory: it is only read
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        tensor = torch.from_numpy(features)
    bags = Bags.make(tensor, np.where(has, slide, -1), len(names))
    return TileBags(names, slide, bags, labels, classes)


def _check_distinct(names: pd.Index, slide_key: str) -> None:
    if not names.is_unique:
        raise ValueError(
            f"obs[{slide_key!r}] has several slides that read {names[names.duplicated()][0]!r}, such as a number and its text."
        )


def _of_slides(of_tiles: np.ndarray, slide: np.ndarray, names: pd.Index, key: str) -> np.ndarray:
    """Label of each slide, on which all of its tiles have to agree."""
    labels = np.full(len(names), -1)
    in_slide = slide >= 0
    labels[slide[in_slide]] = of_tiles[in_slide]
    differ = np.flatnonzero(in_slide & (of_tiles != labels[slide]))
    if differ.size:
        raise ValueError(
            f"obs[{key!r}] (label_key) has several values in slide {names[slide[differ[0]]]!r}: a label is one of the whole "
            "slide, the same for all of its tiles."
        )
    return labels


def moment_tiles(bags: Bags, slides: torch.Tensor, seed: int) -> torch.Tensor:
    """Some tiles of each of the slides, from which to take mean and spread."""
    each = max(1, MOMENT_TILES // slides.numel())
    rows, _ = bags.draw(slides, each, torch.Generator().manual_seed(seed))
    return bags.take(rows)


def encode_bags(encoder: SlideEncoder, bags: Bags, device: str) -> tuple[torch.Tensor, np.ndarray]:
    """Embedding of each bag (s x hidden) and attention of each of its tiles, which sums to one in double precision."""
    kind, index = resolve_device(device)
    kind = {"gpu": "cuda"}.get(kind, kind)
    place = torch.device(f"{kind}:{index[0]}" if isinstance(index, list) else kind)
    try:
        embedding, attention = encoder.to(place).in_parts(
            lambda start, stop: bags.take(bags.rows[start:stop]), bags.offsets, PART
        )
    finally:
        encoder.to("cpu")
    raw = attention.cpu().double().numpy()
    sizes = bags.sizes.numpy()
    bag = np.repeat(np.arange(sizes.size), sizes)
    return embedding.cpu(), raw / np.bincount(bag, raw, minlength=sizes.size)[bag]
