"""Neighbours beside each observation."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from stfuse._neighbors import neighborhood_mean
from stfuse._views import Views
from stfuse.module.anchor import N_NEIGHBORS


def with_neighbors(views: Views) -> Views:
    """Features of each view followed by their mean over the observation and its six nearest in the section."""
    if views.spatial is None:
        raise ValueError(
            "The model was trained with neighbour context, so it needs obsm['spatial'] of the data to code, without missing "
            "coordinates. Add them, or train with context=False."
        )

    def wide(x: np.ndarray, has: np.ndarray, spatial: np.ndarray) -> np.ndarray:
        near = neighborhood_mean(x, has, spatial, views.section, N_NEIGHBORS)
        near[~has] = np.nan
        return np.hstack([x, near])

    image = wide(views.image, views.has_image, views.spatial)
    return replace(views, image=image, rna=wide(views.rna, views.has_rna, views.spatial))
