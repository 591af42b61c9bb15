"""Slides with their tiles and their RNA, as a model reads them."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from anndata import AnnData

from stfuse import _read
from stfuse._check import did_you_mean
from stfuse._disk import lies_on_disk
from stfuse._slides import column_of, read_cohort, slide_names
from stfuse.train._bags import Bags
from stfuse.train._disk_tiles import DiskTiles


@dataclass(frozen=True)
class SlideViews:
    """Both views of s slides: bags of tiles, and genes (s x g; NaN rows = none). ``slide`` is the slide of each tile (-1 = none)."""

    names: pd.Index
    bags: Bags
    slide: np.ndarray
    genes: np.ndarray
    has_rna: np.ndarray
    paired: np.ndarray
    tiles_without_features: int = 0

    @property
    def has_image(self) -> np.ndarray:
        """Which slides have tiles."""
        return self.bags.sizes.numpy() > 0

    @property
    def widths(self) -> dict[str, int]:
        """Number of features of each view, 0 where it is absent."""
        return {"image": self.bags.features.shape[1], "rna": self.genes.shape[1]}

    def counts(self) -> dict[str, int]:
        """How many there are of what, for the record."""
        sizes = self.bags.sizes.numpy()
        return {
            "total": len(self.names),
            "image": int(self.has_image.sum()),
            "rna": int(self.has_rna.sum()),
            "both": int((self.has_image & self.has_rna).sum()),
            "paired": int(self.paired.sum()),
            "neither": int((~self.has_image & ~self.has_rna).sum()),
            "tiles": int(sizes.sum()),
            "slides_with_one_tile": int((sizes == 1).sum()),
            "tiles_without_features": self.tiles_without_features,
            "tiles_of_unknown_slides": int((self.slide < 0).sum()),
        }


def read_slides(
    slides: AnnData | None,
    tiles: AnnData | None,
    *,
    slide_key: str,
    image_key: str,
    rna_key: str | None = None,
    mask_var: str | None = None,
    paired_key: str | None = None,
    names: Sequence[str] | None = None,
) -> SlideViews:
    """Read both views; new data may lack one of the objects, and have genes in another order than ``names``."""
    if slides is None and tiles is None:
        raise ValueError("Neither slides nor tiles are given: pass one at least.")
    if slides is None:
        slides = _named_by(tiles, slide_key)
        genes, has_rna = np.empty((slides.n_obs, 0), np.float32), np.zeros(slides.n_obs, bool)
    else:
        _read.check_names(slides.obs_names, "slides")
        genes, has_rna = read_genes(slides, rna_key, mask_var, names)
    if tiles is None:
        nothing = np.empty(0, np.int64)
        bags, slide, lost = Bags.make(torch.empty(0, 0), nothing, slides.n_obs), nothing, 0
    else:
        cohort = read_cohort(slides, tiles, slide_key, image_key, stream=True)
        slide = cohort.slide
        lost = int((~cohort.has & (slide >= 0)).sum())
        bags = Bags.make(_tensor(cohort.features), np.where(cohort.has, slide, -1), slides.n_obs)
    paired = has_rna & (bags.sizes.numpy() > 0)
    if paired_key is not None:
        paired &= _read.as_flags(
            column_of(slides, "slides", "paired_key", paired_key), f"slides.obs[{paired_key!r}] (paired_key)"
        )
    return SlideViews(pd.Index(slides.obs_names), bags, slide, genes, has_rna, paired, lost)


def _tensor(features: Any) -> torch.Tensor | DiskTiles:
    if lies_on_disk(features):
        return DiskTiles(features)
    with warnings.catch_warnings():
        # an array that may not be written to, such as a file in memory: it is only read
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(features)


def _named_by(tiles: Any, slide_key: str) -> AnnData:
    """Slides that nothing tells of but their tiles."""
    _, names = slide_names(tiles, slide_key)
    return AnnData(obs=pd.DataFrame(index=pd.Index(names, dtype=object)))


def gene_names(slides: AnnData, rna_key: str | None, mask_var: str | None) -> list[str] | None:
    """Names of the genes that are read; None where RNA lies in obsm and has no names."""
    if rna_key is not None:
        return None
    names = slides.var_names if mask_var is None else slides.var_names[read_mask(slides, mask_var)]
    return [str(name) for name in names]


def _like_trained(slides: AnnData, names: Sequence[str]) -> Any:
    """X of new slides with the genes of the training, in their order."""
    if len(names) == slides.n_vars and (slides.var_names == np.asarray(names, object)).all():
        return slides.X
    if not slides.var_names.is_unique:
        raise ValueError(
            "slides.var_names has duplicates, so that genes cannot be found by name: call .var_names_make_unique()."
        )
    place = slides.var_names.get_indexer(pd.Index(names, dtype=object))
    missing = np.flatnonzero(place < 0)
    if missing.size:
        raise ValueError(
            f"{missing.size} of the {len(names)} genes that the model was trained on are not in slides.var_names, for example "
            f"{names[missing[0]]!r}: the slides have other genes, or other names for them."
        )
    return slides[:, place].X


def read_genes(
    slides: AnnData, rna_key: str | None, mask_var: str | None, names: Sequence[str] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Expression of each slide, s x g float32, and which slides have any: of the genes in a mask, or of those named."""
    if rna_key is not None:
        if mask_var is not None:
            raise ValueError(
                f"mask_var={mask_var!r} picks genes of X, and rna_key={rna_key!r} takes the RNA from obsm: leave one of them out."
            )
        if rna_key not in slides.obsm:
            raise KeyError(
                f"No slides.obsm[{rna_key!r}] (rna_key).{did_you_mean(rna_key, slides.obsm.keys())} There is "
                f"{_read.listing(slides.obsm.keys())}; rna_key=None takes X."
            )
        what, values = f"slides.obsm[{rna_key!r}] (rna_key)", slides.obsm[rna_key]
    else:
        if slides.X is None or slides.n_vars == 0:
            raise ValueError(
                "slides has no X, and no rna_key= says where else the RNA is: give slides an X of log expression (rows of NaN = no "
                "RNA), or name an entry of slides.obsm."
            )
        what, values = "slides.X", slides.X
        if names is not None:
            values = _like_trained(slides, names)
        elif mask_var is not None:
            values = slides[:, read_mask(slides, mask_var)].X
    # torch complains of an array that may not be written to, such as that of a table
    genes = np.require(_read.as_matrix(values, what), np.float32, "W")
    return genes, _read.check_values(genes, what)


def read_mask(slides: AnnData, mask_var: str) -> np.ndarray:
    """Which genes are picked."""
    if mask_var not in slides.var:
        raise KeyError(
            f"No column {mask_var!r} (mask_var) in slides.var.{did_you_mean(mask_var, slides.var.columns)} There is "
            f"{_read.listing(slides.var.columns)}. stfuse.pp.select_genes makes one."
        )
    mask = _read.as_flags(slides.var[mask_var], f"slides.var[{mask_var!r}] (mask_var)")
    if not mask.any():
        raise ValueError(f"slides.var[{mask_var!r}] (mask_var) picks no gene.")
    return mask
