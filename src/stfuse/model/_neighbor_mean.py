"""Means over neighbours in space: the baseline that knows where observations lie."""

from __future__ import annotations

from typing import Any

import numpy as np
from anndata import AnnData

from stfuse import _keys
from stfuse._check import check_number
from stfuse._neighbors import neighborhood_mean, warn_if_small
from stfuse._read import warn_if_stacked
from stfuse._views import Views
from stfuse.model._components import ComponentModel, both
from stfuse.model._pcca import check_flags, check_widths


class NeighborMean(ComponentModel):
    """Principal components of both views side by side, each view averaged over neighbours in space.

    The components are those of :class:`stfuse.model.Concat`. Each view is then averaged over the observation and its nearest
    neighbours in the section that have the view, which removes noise and blurs borders; a missing view is the mean of its
    neighbours. It is made within a second and what any method for spatial domains should be compared with.

    Parameters
    ----------
    adata
        Data registered with `setup_anndata`, with coordinates in `obsm["spatial"]`.
    registry
        Record of a set-up, in place of data (`load` passes it).
    n_components
        Principal components of each view.
    scale
        Whether features are standardised first. None = yes, unless they are uncorrelated already.
    n_neighbors
        Neighbours that are averaged with the observation itself.

    Notes
    -----
    Views have one size before they are averaged; afterwards the one that varies more smoothly in space is the larger.
    Neighbours of new data are looked for among the new data.

    Examples
    --------
    >>> import stfuse
    >>> adata = stfuse.datasets.synthetic_tissue(200)
    >>> stfuse.model.NeighborMean.setup_anndata(adata)
    >>> model = stfuse.model.NeighborMean(adata, n_components=10)
    >>> model.train()
    >>> model.get_latent_representation().shape
    (200, 20)
    """

    _method = "neighbor_mean"

    def __init__(
        self,
        adata: AnnData | None = None,
        registry: dict[str, Any] | None = None,
        *,
        n_components: int = 30,
        scale: bool | None = None,
        n_neighbors: int = 10,
    ) -> None:
        check_widths(n_components, None)
        check_flags(scale)
        check_number("n_neighbors", n_neighbors, least=1, whole=True)
        super().__init__(adata, registry, n_components=n_components, scale=scale, n_neighbors=n_neighbors)

    def train(self, *, seed: int = 0) -> None:
        """Fit the components.

        Parameters
        ----------
        seed
            Kept for the record; nothing here is random.

        Raises
        ------
        ValueError
            If there are no coordinates in `obsm["spatial"]`, or not for every observation.
        """
        views = self._begin(seed)
        _places(views)
        self._fit_components(views)

    def _blocks(self, views: Views) -> list[np.ndarray]:
        spatial, n_neighbors = _places(views), self.params_["n_neighbors"]
        blocks = super()._blocks(views)
        has = max(views.has_image, views.has_rna, key=np.count_nonzero)
        # of one view: the other one may have been measured on the same places as observations of its own
        warn_if_stacked(spatial[has], len(views.sections), views.library_key)
        warn_if_small(views.section[has], views.sections, n_neighbors)
        for i, (_, _, there) in enumerate(both(views)):
            mean = neighborhood_mean(blocks[i], there, spatial, views.section, n_neighbors)
            # a section without the view gets the mean of all
            blocks[i] = np.nan_to_num(mean, copy=False)
        return blocks


def _places(views: Views) -> np.ndarray:
    if views.spatial is None:
        raise ValueError(
            f"There are no coordinates in obsm[{_keys.SPATIAL!r}], or not for every observation: NeighborMean averages over what "
            "lies around each one. Add them, drop observations that have none, or use stfuse.tl.concat, which needs none."
        )
    return views.spatial
