"""Expression from the codes of a fusion method: neighbours across views, or a translation."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from anndata import AnnData

from stfuse import _keys
from stfuse._log import logger
from stfuse._read import container, listing, read_coordinates, warn_if_stacked
from stfuse._views import Views, read_views
from stfuse.pp._default_views import make_view
from stfuse.tl._predictors_neighbors import average_neighbors, check_enough
from stfuse.tl._predictors_task import Prediction, Task, check_same_encoder, read_images

if TYPE_CHECKING:
    from stfuse.model._base import Codes, FusionModel

# Arguments of a fusion method that predict_expression gives itself.
GIVEN = {
    *("data", "image_key", "rna_key", "tokens_key", "batch_key", "library_key", "table_key", "key_added"),
    *("seed", "device", "progress", "copy", "return_model"),
    *("image_encoder", "gene_encoder"),  # train with them first, and pass model=
}


def fusion_options(method: str) -> list[str]:
    """Arguments of a fusion method that may be given as ``method_params``."""
    return [name for name in inspect.signature(_function(method)).parameters if name not in GIVEN]


def _function(method: str) -> Any:
    from stfuse import tl

    return getattr(tl, method)


def fused_neighbors(task: Task, method: str, **params: Any) -> Prediction:
    """Train a fusion method on the reference; nearest are its codes to the image code of the query."""
    check_enough(task.neighbors.n_neighbors, int(task.expression.has.sum()))
    model, _ = _trained(task, method, params)
    codes = model.codes()
    which = task.neighbors.reference_view
    reference = searched({view: _shared(model, codes, view) for view in _keys.VIEWS}, which)
    prediction = average_neighbors(task, _query_codes(task, model), reference)
    prediction.note |= _found(model) | {"reference_view": which}
    return prediction


def model_neighbors(task: Task, model: FusionModel) -> Prediction:
    """Neighbours in the codes of a model that was trained before, of a reference that it need not have seen."""
    check_same_encoder(task.query, task.reference, model.setup_keys()["image_key"], task.table_key)
    which = task.neighbors.reference_view
    views = ["rna", "image"] if which == "both" else [which]
    codes = {}
    for view in views:
        if view == which or view == "rna" or _has_image(task.reference, model, task.table_key):
            codes[view] = model_codes(model, task.reference, view, "reference", task.table_key)
    prediction = average_neighbors(task, _query_codes(task, model), searched(codes, which))
    prediction.note["reference_view"] = "both" if len(codes) == len(_keys.VIEWS) else next(iter(codes))
    return prediction


def searched(codes: dict[str, np.ndarray], which: str) -> np.ndarray:
    """Codes of the reference that are searched: of one view, or the sum of both at unit length.

    An observation without an image has its RNA code alone.
    """
    if which != "both":
        return codes[which]
    unit = {view: code / np.linalg.norm(code, axis=1, keepdims=True).clip(1e-12) for view, code in codes.items()}
    return unit["rna"] + np.nan_to_num(unit["image"]) if "image" in unit else unit["rna"]


def _has_image(data: Any, model: FusionModel, table_key: str | None) -> bool:
    keys = model.setup_keys() | {"paired_key": None}
    return bool(read_views(data, **keys, table_key=table_key, crops=model.takes_crops, min_views=1).has_image.any())


def translated(task: Task, method: str, **params: Any) -> Prediction:
    """Translate the image into RNA features and these into expression, by least squares on the reference.

    Of principal components that least-squares map are their loadings.
    """
    model, adata = _trained(task, method, params)
    rna: np.ndarray = np.asarray(adata.obsm[task.keys.rna_key], np.float64)
    rows = np.flatnonzero(np.isfinite(rna).all(axis=1) & task.expression.has)
    x, y = rna[rows], task.expression.rows(rows)
    center, mean = x.mean(axis=0), np.asarray(y.mean(axis=0)).ravel()
    # centred x is orthogonal to a constant, so that y stays sparse
    weights = np.asarray(y.T @ np.linalg.pinv(x - center).T).T
    views, query = _coding_adata(task.query, model, "image", "query", task.table_key)
    task.keep(views)
    features = model.translate(query, source="image", target="rna")
    note = {"n_reference": int(rows.size)} | _found(model)
    return Prediction(((features - center) @ weights + mean).astype(np.float32), note=note)


def _found(model: FusionModel) -> dict[str, Any]:
    """What the training on the reference found and chose, for the record."""
    chosen = {"library_key": model.setup_keys()["library_key"], "report": dict(model.report_)}
    return chosen | ({"context": model.params_["context"]} if "context" in model.params_ else {})


def model_codes(model: FusionModel, data: Any, view: str, who: str, table_key: str | None) -> np.ndarray:
    """Shared code of one view of new data, n x width; NaN where the view is missing. The other view is not looked at."""
    return _shared(model, model.codes(_coding_adata(data, model, view, who, table_key)[1]), view)


def _query_codes(task: Task, model: FusionModel) -> np.ndarray:
    views, query = _coding_adata(task.query, model, "image", "query", task.table_key)
    task.keep(views)
    return _shared(model, model.codes(query), "image")


def _shared(model: FusionModel, codes: Codes, view: str) -> np.ndarray:
    found: np.ndarray | None = getattr(codes, view)
    if found is None:
        raise ValueError(
            f"{type(model).__name__} has no codes that both views share: train another method, or name codes with use_rep=."
        )
    return found


def _trained(task: Task, method: str, params: dict[str, Any]) -> tuple[FusionModel, AnnData]:
    """Train on a private copy of the reference's views."""
    from stfuse.tl._fuse import private_adata

    check_same_encoder(task.query, task.reference, task.keys.image_key, task.table_key)
    keys = vars(task.keys) | {"paired_key": params.get("paired_key")}
    views = read_views(task.reference, **keys, table_key=task.table_key, recipe=make_view)
    keys["library_key"] = views.library_key
    adata = private_adata(views, keys)
    function = _function(method)
    common = {name: getattr(task, name) for name in ("seed", "device", "progress")}
    common |= _without_context(function, params, task)
    common = {name: value for name, value in common.items() if name in inspect.signature(function).parameters}
    model: FusionModel = function(adata, **keys, **common, **_without(params, "paired_key"), return_model=True)
    return model, adata


def _without_context(function: Any, params: dict[str, Any], task: Task) -> dict[str, bool]:
    """Leave neighbours out where nothing says which those of the query are."""
    where = read_coordinates(task.query, table_key=task.table_key)
    placed = where is not None and bool(np.isfinite(where).all())
    if placed or "context" in params or "context" not in inspect.signature(function).parameters:
        return {}
    logger.info("the query has no coordinates in obsm['spatial']: trained without neighbour context")
    return {"context": False}


def _coding_adata(data: Any, model: FusionModel, view: str, who: str, table_key: str | None) -> tuple[Views, AnnData]:
    """One view of new data, and the small AnnData with it that the model codes."""
    from stfuse.tl._fuse import private_adata

    keys = model.setup_keys() | {"paired_key": None}
    if view == "image":
        views = read_images(data, keys, who, table_key=table_key, crops=model.takes_crops)
    else:
        views = _read_rna(data, keys, who, table_key, model.takes_crops)
    adata = private_adata(views, keys)
    if keys["library_key"] and keys["library_key"] not in adata.obs:
        adata.obs[keys["library_key"]] = pd.Categorical.from_codes(views.section, views.sections)
    if views.library_key and not keys["library_key"]:
        # a model of one section finds those of new data as it does in an object of the user's
        adata.uns[_keys.SPATIAL] = {name: {} for name in views.sections}
    if getattr(model, "context_", False) and views.spatial is not None:
        warn_if_stacked(views.spatial, len(views.sections), views.library_key)
    other = [keys["image_key"]] if view == "rna" else [keys["rna_key"], keys.get("tokens_key")]
    for key in set(other) & set(adata.obsm):
        del adata.obsm[key]
    return views, adata


def _read_rna(data: Any, keys: dict[str, Any], who: str, table_key: str | None, crops: bool) -> Views:
    """Read the RNA view a model was trained on: another one that is made anew would have other axes."""
    key = keys.get("tokens_key") or keys["rna_key"]
    views = read_views(data, **keys, table_key=table_key, crops=crops, min_views=1)
    if not views.has_rna.any():
        raise KeyError(
            f"The {who} has no obsm[{key!r}] with the RNA view the model was trained on; it has "
            f"{listing(container(data, table_key).obsm.keys())}. For data that were not trained on, components are made by "
            "stfuse.pp.rna_features(data, reference=training_data)."
        )
    return views


def _without(params: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in params.items() if key != name}
