"""Concatenation of balanced components: the baseline without alignment."""

from __future__ import annotations

from typing import Any

from anndata import AnnData

from stfuse.model._components import ComponentModel
from stfuse.model._pcca import check_flags, check_widths


class Concat(ComponentModel):
    """Principal components of both views side by side, each view divided by its size.

    Nothing is aligned and nothing is shared, which is hard to beat when every observation has both views. A missing view is
    replaced by its mean.

    Parameters
    ----------
    adata
        Data registered with `setup_anndata`.
    registry
        Record of a set-up, in place of data (`load` passes it).
    n_components
        Principal components of each view.
    scale
        Whether features are standardised first. None = yes, unless they are uncorrelated already.

    Notes
    -----
    The baseline "Concat" of the CAMEO paper (appendix E.2.1) concatenates raw embeddings; components and balance keep a view
    with more or larger features from drowning the other one.

    Examples
    --------
    >>> import stfuse
    >>> adata = stfuse.datasets.synthetic_tissue(200)
    >>> stfuse.model.Concat.setup_anndata(adata)
    >>> model = stfuse.model.Concat(adata, n_components=10)
    >>> model.train()
    >>> model.get_latent_representation().shape
    (200, 20)
    """

    _method = "concat"

    def __init__(
        self,
        adata: AnnData | None = None,
        registry: dict[str, Any] | None = None,
        *,
        n_components: int = 30,
        scale: bool | None = None,
    ) -> None:
        check_widths(n_components, None)
        check_flags(scale)
        super().__init__(adata, registry, n_components=n_components, scale=scale)

    def train(self, *, seed: int = 0) -> None:
        """Fit the components.

        Parameters
        ----------
        seed
            Kept for the record; nothing here is random.
        """
        self._fit_components(self._begin(seed))
