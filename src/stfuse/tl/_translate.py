"""Predict one view from the other with a trained model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from stfuse import _keys, _record
from stfuse._check import check_target
from stfuse._read import container, is_mudata, read_coordinates
from stfuse._views import read_views

if TYPE_CHECKING:
    from stfuse.model._base import FusionModel


def translate(
    data: Any,
    model: FusionModel,
    *,
    source: Literal["image", "rna"] = "image",
    target: Literal["image", "rna"] = "rna",
    key_added: str | None = None,
    table_key: str | None = None,
    copy: bool = False,
) -> Any:
    """Predict the features of one view from the other, with a model trained before.

    Use it to fill in a view that was not measured: what expression (as components, or whatever features the model was trained
    on) a tile of histology would have, or the other way round.

    Parameters
    ----------
    data
        AnnData, MuData or SpatialData under the keys the model was trained with. Needed are the source view, the columns
        `batch_key` and `library_key` if the model was trained with them, and `obsm["spatial"]` where it uses neighbours.
    model
        A trained model that translates (:class:`stfuse.model.CAMEO`, :class:`stfuse.model.PCCA`).
    source, target
        `"image"` and `"rna"`, one each.
    key_added
        Key in `obsm`. None = `"translated_<target>"`.
    table_key
        SpatialData: which table.
    copy
        Whether to return a changed copy instead of changing `data`.

    Returns
    -------
    None, or the copy. Written is

    - `obsm[key_added]`: n x d, float32, in the units of the target view's features; NaN where the source view is missing. With a
      `batch_key` they are centred as the batch is; of a batch that training did not see, as all of the training data are

    Raises
    ------
    TypeError
        If `model` is not a model of this package.
    ValueError
        If source and target are not the two views, if the features have another width than in training, or if `key_added` is
        the key of a view or of the coordinates.

    Examples
    --------
    >>> import stfuse
    >>> adata = stfuse.datasets.synthetic_tissue(300, missing_rna=0.3, seed=1)
    >>> model = stfuse.tl.pcca(adata, return_model=True)
    >>> stfuse.tl.translate(adata, model, source="image", target="rna")
    >>> adata.obsm["translated_rna"].shape
    (300, 30)
    """
    from stfuse.model._base import FusionModel
    from stfuse.tl._fuse import private_adata

    if not isinstance(model, FusionModel):
        raise TypeError(
            f"model must be a trained stfuse model (stfuse.tl.cameo(..., return_model=True)), got {type(model).__name__}."
        )
    key = key_added or f"translated_{target}"
    keys = model.setup_keys()
    box = container(data, table_key)
    inputs = {name: keys[name] for name in ("image_key", "rna_key")} | {"coordinates": _keys.SPATIAL}
    check_target(box, "key_added", key, slots=(), mark="", inputs=inputs)
    if is_mudata(box) or box is not data:
        keys = keys | {"paired_key": None}
        adata = private_adata(read_views(data, **keys, table_key=table_key, min_views=1), keys)
        if (xy := read_coordinates(data, table_key=table_key)) is not None:
            adata.obsm[_keys.SPATIAL] = xy
    else:
        adata = box
    predicted = model.translate(adata, source=source, target=target)
    result = _record.copy_of(data, table_key) if copy else data
    _record.write(result, obsm={key: np.asarray(predicted)}, table_key=table_key)
    return result if copy else None
