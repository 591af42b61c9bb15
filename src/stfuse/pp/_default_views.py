"""The recipes that stand in for a view the user did not make."""

from __future__ import annotations

from typing import Any

import numpy as np
from anndata import AnnData

from stfuse import _read
from stfuse._log import logger


def make_view(
    data: Any, role: str, key: str, library_key: str | None, table_key: str | None
) -> tuple[np.ndarray, dict[str, Any] | None]:
    """Compute the default features of one view, and for components the record that carries them over to new data.

    Rows follow the observations; nothing is written.
    """
    box = _read.container(data, table_key)
    source: AnnData = box.mod[role] if _read.is_mudata(box) else box
    record = None
    if role == "rna":
        array, record = _rna(source, key)
    else:
        array = _image(data if _read.is_spatialdata(data) else source, source, key, library_key, table_key)
    if _read.is_mudata(box):
        out = np.full((box.n_obs, array.shape[1]), np.nan, np.float32)
        out[box.obs_names.get_indexer(source.obs_names)] = array
        array = out
    return array.astype(np.float32, copy=False), record


def _rna(source: AnnData, key: str) -> tuple[np.ndarray, dict[str, Any]]:
    from stfuse.pp._recipe import pca_record, rna_pca

    if source.X is None or source.n_vars == 0:
        raise KeyError(
            f"There is no obsm[{key!r}] and no counts in X to make it from: name expression features with rna_key=, "
            "or put raw counts into X."
        )
    logger.info("obsm[%r] is made from the counts in X: scanpy.pp.normalize_total, log1p, pca", key)
    scores, loadings = rna_pca(source)
    return scores, pca_record(scores, loadings)


def _image(data: Any, table: AnnData, key: str, library_key: str | None, table_key: str | None) -> np.ndarray:
    from stfuse.pp._image_features import compute_image_features

    elements = _read.is_spatialdata(data) and len(data.images) > 0
    if not elements and not table.uns.get("spatial"):
        raise KeyError(
            f"There is no obsm[{key!r}] and no image in uns['spatial'] to make it from: name image features with "
            "image_key=, load the section with its image (squidpy.read.visium), or give the image's file to "
            "stfuse.pp.image_features(adata, image=)."
        )
    logger.info("obsm[%r] is made by stfuse.pp.image_features", key)
    return compute_image_features(data, table, library_key=library_key, table_key=table_key)
