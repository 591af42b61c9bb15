"""The recipes that stand in for a view the user did not make."""

from __future__ import annotations

from typing import Any

import numpy as np
from anndata import AnnData

from stfuse import _read
from stfuse._log import logger


def make_view(box: Any, role: str, key: str, library_key: str | None) -> np.ndarray:
    """Compute the default features of one view; rows follow ``box.obs_names``, nothing is written."""
    source: AnnData = box.mod[role] if _read.is_mudata(box) else box
    array = _image(source, key, library_key) if role == "image" else _rna(source, key)
    if _read.is_mudata(box):
        out = np.full((box.n_obs, array.shape[1]), np.nan, np.float32)
        out[box.obs_names.get_indexer(source.obs_names)] = array
        array = out
    return array.astype(np.float32, copy=False)


def _rna(source: AnnData, key: str) -> np.ndarray:
    from stfuse.pp._recipe import rna_pca

    if source.X is None or source.n_vars == 0:
        raise KeyError(
            f"There is no obsm[{key!r}] and no counts in X to make it from: name expression features with rna_key=, "
            "or put raw counts into X."
        )
    logger.info("obsm[%r] is made from the counts in X: scanpy.pp.normalize_total, log1p, pca", key)
    return rna_pca(source)[0]


def _image(source: AnnData, key: str, library_key: str | None) -> np.ndarray:
    from stfuse.pp._image_features import compute_image_features

    if not source.uns.get("spatial"):
        raise KeyError(
            f"There is no obsm[{key!r}] and no image in uns['spatial'] to make it from: name image features with "
            "image_key=, or load the section with its image (squidpy.read.visium)."
        )
    logger.info("obsm[%r] is made by stfuse.pp.image_features(adata)", key)
    return compute_image_features(source, library_key=library_key)
