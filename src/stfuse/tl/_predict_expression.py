"""Expression that a piece of tissue would have, from its image and a reference."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
from anndata import AnnData

from stfuse import _keys, _record
from stfuse._check import check_flag, check_number, check_seed, check_target, check_text
from stfuse._log import logger, warn
from stfuse._read import check_genes, check_names, container, is_mudata, read_coordinates

if TYPE_CHECKING:
    from stfuse.model._base import FusionModel
    from stfuse.tl._predictors_task import Prediction, Task

FEW_SHARED = 0.1  # of the genes that query and reference could have in common
UNCERTAINTY, UNMATCHED = "uncertainty", "unmatched"


def predict_expression(
    query: Any,
    reference: Any,
    *,
    method: str | None = None,
    model: FusionModel | None = None,
    use_rep: str | tuple[str, str] | None = None,
    n_neighbors: int = 50,
    weights: Literal["cosine", "softmax", "uniform"] = "cosine",
    temperature: float = 0.1,
    reference_view: Literal["both", "rna", "image"] = "both",
    genes: Sequence[str] | None = None,
    layer: str | None = None,
    image_key: str = _keys.IMAGE,
    rna_key: str = _keys.RNA,
    batch_key: str | None = None,
    library_key: str | None = None,
    table_key: str | None = None,
    method_params: Mapping[str, Any] | None = None,
    approximate: bool | None = None,
    return_std: bool = False,
    key_added: str | None = None,
    seed: int = 0,
    device: str = "auto",
    progress: bool | None = None,
    copy: bool = False,
) -> AnnData | tuple[AnnData, Any]:
    r"""Predict expression from histology: what a piece of tissue would express, going by a reference that was measured.

    The query needs an image only; the reference has image and expression. By default a fusion method is trained on the reference, the
    image codes of the query are compared with the codes of the reference, and the expression of the nearest is averaged:

    .. math:: \hat x_i = \sum_{j \in N(i)} w_{ij} x_j, \qquad w_{ij} = \frac{\max(s_{ij}, 0)}{\sum_{l \in N(i)} \max(s_{il}, 0)},

    with :math:`s` the cosine similarity and :math:`N(i)` the `n_neighbors` most similar observations of the reference. The query's
    own expression, if it has any, is never looked at.

    Parameters
    ----------
    query
        AnnData, MuData or SpatialData to predict for.
    reference
        AnnData, MuData (modalities `image` and `rna`) or SpatialData with expression, and image features where the method asks for
        them. It is not changed.
    method
        How to predict, where neither `model` nor `use_rep` is given; None = `"umpire"`. Trained on the reference and averaging neighbours across views: every
        fusion method with shared codes (`"umpire"`, `"clip"`, `"pcca"`, `"cameo"`). Translating the image into RNA features and these,
        by least squares, into genes: `"cameo-translate"`, `"pcca-translate"`. And what these have to beat: `"ridge"` (linear
        regression on the image features), `"image-knn"` (neighbours among the image features themselves), `"mean"`.
    model
        A trained model with shared codes (`stfuse.tl.clip(..., return_model=True)`), whose codes are used. It reads both objects under
        the keys it was trained with; the key arguments here are not used then.
    use_rep
        Key of codes in `obsm` of both objects, or a pair, the query's and the reference's: for example
        `("X_clip_image", "X_clip_rna")`.
    n_neighbors
        Observations of the reference that are averaged.
    weights
        `"cosine"`: the similarity, clipped at 0. `"softmax"`: :math:`\exp(s / t)`, normalised, :math:`t` = `temperature`. `"uniform"`:
        the plain mean.
    temperature
        Of `"softmax"`: at 0.1 a neighbour whose similarity is 0.1 lower counts 1/e.
    reference_view
        Which codes of the reference are compared with the query's image code, of methods with shared codes: `"rna"`, as published,
        `"image"`, or `"both"`, the sum of the two at unit length (an observation without an image has its RNA code alone).
    genes
        Names of the genes to predict. None = all of the reference.
    layer
        Layer of the reference with the expression. None = `X`.
    image_key, rna_key
        Keys of the views in `obsm`. Where `image_key` is left at its default and not there, image features are made by
        :func:`stfuse.pp.image_features` (and written into the query); so are the reference's RNA features where a method needs them.
    batch_key
        Column of `obs`, of both: features are centred within each batch. A batch that the reference lacks is centred on its own mean.
    library_key
        Column of `obs` that tells sections apart; a query without it is one section.
    table_key
        SpatialData: which table.
    method_params
        Options of the method: the arguments of its function (`stfuse.tl.umpire`, ...) beside those that are given here. Of `"ridge"`:
        `alpha` (`"cv"`, the default: of 28 penalties the one with the least squared error on held-out sections of `library_key`, or blocks of
        the tissue where there is one section; `"hest"`: 100 / (features x genes) as the HEST benchmark has it; or a number), `n_comps`
        (None, the default: all image features, standardised; HEST: 256 principal components of them) and `fit_intercept`. Of
        `"image-knn"`: `n_comps` (default 50; None = all features, standardised).
    approximate
        Whether to find neighbours by an index that may miss a few. None = with more than a million references and no GPU.
    return_std
        Whether to give the standard deviation over neighbours as well.
    key_added
        Name under which everything is written. None = `"predicted"`.
    seed
        Seed: the same data, arguments and machine give the same prediction.
    device
        `"auto"`, `"cpu"`, `"cuda"`, `"cuda:<index>"` or `"mps"`.
    progress
        Whether to show a bar while a method is trained. None = in a terminal or notebook.
    copy
        Whether to leave `query` alone and return a changed copy beside the prediction.

    Returns
    -------
    AnnData, or (AnnData, copy of `query`)
        The observations of the query (`obs`, `obsm["spatial"]`) x the genes of the reference (`var`).

        - `X`: predicted expression, float32; NaN where the query has no image. In the unit of the reference: where that holds
          counts (whole numbers), log1p of counts scaled to 10,000 an observation over all its genes; any other values as they are
        - `layers["std"]`, with `return_std`: weighted standard deviation over the neighbours, of each gene
        - `uns[key_added]`: the record, and `uns["spatial"]` with the query's images

        Written into the query are

        - `layers[key_added]`: the prediction of the genes in its `var_names`, NaN for those that the reference lacks. Not where no name is
          shared, nor in a MuData, which has no layers
        - `obs["<key_added>_uncertainty"]`: root mean square over genes of that standard deviation; not by regression and translation
        - `obs["<key_added>_unmatched"]`: True where no neighbour has a positive similarity; only of methods with neighbours
        - `obsm["X_image"]`, where it had to be made
        - `uns[key_added]`: method, parameters, unit, seed, versions and what the method found (the penalty, for example)

    Raises
    ------
    KeyError
        If a key, layer or gene is not there, if the query has no image, or if the reference has no RNA view of a `model`.
    ValueError
        If the method is unknown, if the reference has no expression, negative or missing counts, or fewer observations than
        `n_neighbors`, if image features of both were made by different encoders, if names are not unique, or if an argument is out of
        range. The query is as it was then.
    TypeError
        If `model` is not a model of this package, or an argument is of the wrong type.

    Warns
    -----
    UserWarning
        If observations have no image or no neighbour with a positive similarity, if no gene has the same name, or if the reference's
        values look neither like counts nor like logarithms.

    Notes
    -----
    UMPIRE and BLEEP predict in this way. Published weights are the similarity over its sum, which is no mean any more where similarities
    are negative; they are clipped here.

    Examples
    --------
    >>> import stfuse
    >>> adata = stfuse.datasets.synthetic_tissue(400, n_sections=2, seed=1)
    >>> first = adata.obs["section"] == adata.obs["section"].iloc[0]
    >>> query, reference = adata[first].copy(), adata[~first].copy()
    >>> predicted = stfuse.tl.predict_expression(query, reference, method="pcca")
    >>> predicted.shape, "predicted" in query.layers
    ((200, 200), True)
    """
    from stfuse.tl._predictors_expression import read_expression
    from stfuse.tl._predictors_neighbors import WEIGHTS
    from stfuse.tl._predictors_task import Keys, Neighbors, Task, warn_of_copies

    key = _keys_checked(key_added, image_key, rna_key, batch_key, library_key)
    check_number("n_neighbors", n_neighbors, least=1, whole=True)
    check_number("temperature", temperature, above=0)
    check_seed(seed)
    for name, flag in (("return_std", return_std), ("copy", copy)):
        check_flag(name, flag)
    check_flag("approximate", approximate, optional=True)
    params = dict(method_params or {})
    how, run = _road(method, model, use_rep, params, return_std)
    _check_choice("weights", weights, WEIGHTS)
    _check_choice("reference_view", reference_view, ("both", *_keys.VIEWS))
    box = container(query, table_key)
    _check_query(box, key, image_key, layer_of_query=None if is_mudata(box) else key)
    check_names(container(reference, table_key).obs_names, "the reference")
    task = Task(
        query,
        reference,
        read_expression(reference, layer, genes, table_key=table_key),
        Keys(image_key, rna_key, batch_key, library_key),
        Neighbors(n_neighbors, weights, temperature, approximate, reference_view),
        return_std,
        seed,
        device,
        progress,
        table_key,
    )
    warn_of_copies(query, reference, image_key, table_key)
    prediction = run(task)
    given = {
        "n_neighbors": n_neighbors,
        "weights": weights,
        "temperature": temperature,
        "layer": layer,
        "approximate": approximate,
    }
    if "reference_view" in prediction.note:
        given["reference_view"] = prediction.note.pop("reference_view")
    record = {
        "method": how,
        "params": vars(task.keys) | given | {"method_params": params, "use_rep": use_rep},
        "unit": task.expression.unit,
        "n_genes": len(task.expression.var),
        "found": prediction.note,
        "seed": seed,
        "versions": _record.versions(),
    }
    result = _result(task, prediction, key, record)
    logger.info("%s: %d genes of %d observations predicted", how, result.n_vars, result.n_obs)
    target = _record.copy_of(query, table_key) if copy else query
    _write(target, result, prediction, task, key, record)
    return (result, target) if copy else result


def _keys_checked(key_added: str | None, *keys: str | None) -> str:
    for name, key in zip(("image_key", "rna_key", "batch_key", "library_key"), keys, strict=True):
        check_text(name, key, optional=name in {"batch_key", "library_key"})
    return "predicted" if key_added is None else key_added


def _check_choice(name: str, value: Any, there: Sequence[str]) -> None:
    if value not in there:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, there))}, got {value!r}.")


def _road(method: str | None, model: Any, use_rep: Any, params: dict[str, Any], std: bool) -> tuple[str, Any]:
    """What is done, in a word and as a function of the task."""
    from stfuse.model._base import FusionModel
    from stfuse.tl import _predictors
    from stfuse.tl._predictors_fused import model_neighbors
    from stfuse.tl._predictors_neighbors import named_codes

    if model is not None and use_rep is not None:
        raise ValueError("Give model= or use_rep=, not both: each says which codes are compared.")
    if method is not None and (model is not None or use_rep is not None):
        raise ValueError(
            f"method={method!r} is trained here: leave it out with model= or use_rep=, which say what is compared."
        )
    if model is None and use_rep is None:
        method = "umpire" if method is None else method
        predictor = _predictors.get(method)
        predictor.check_options(params)
        if std and not predictor.spread:
            raise ValueError(
                f"return_std=True needs neighbours, and method={method!r} has none: leave it out, or choose another."
            )
        return method, lambda task: predictor.predict(task, **params)
    if params:
        raise ValueError(
            "method_params belong to a method that is trained here: leave them out with model= or use_rep=."
        )
    if model is None:
        return "use_rep", lambda task: named_codes(task, use_rep)
    if not isinstance(model, FusionModel):
        raise TypeError(
            f"model must be a trained stfuse model (stfuse.tl.clip(..., return_model=True)), got {type(model).__name__}."
            ' Of tl.sigmma, which reads two objects, name the codes it has written: use_rep=("X_sigmma_image", "X_sigmma_rna").'
        )
    return type(model).__name__, lambda task: model_neighbors(task, model)


def _check_query(box: Any, key: str, image_key: str, layer_of_query: str | None) -> None:
    check_names(box.obs_names, "the query")
    slots = ("uns",) if layer_of_query is None else ("layers", "uns")
    check_target(box, "key_added", key, slots=slots, mark="unit", inputs={"image_key": image_key})
    for column in _columns(key):
        if column in box.obs and key not in box.uns:
            raise ValueError(
                f"key_added={key!r} would overwrite obs[{column!r}], which this function did not write: choose another name, or "
                "delete it first."
            )
    if layer_of_query is not None:
        check_genes(box.var_names, "the query")


def _columns(key: str) -> tuple[str, str]:
    return f"{key}_{UNCERTAINTY}", f"{key}_{UNMATCHED}"


def _result(task: Task, prediction: Prediction, key: str, record: dict[str, Any]) -> AnnData:
    box = container(task.query, task.table_key)
    # without what an earlier run left under this name
    obs = pd.DataFrame(box.obs).drop(columns=list(_columns(key)), errors="ignore")
    result = AnnData(prediction.mean, obs=obs.copy(), var=task.expression.var)
    if prediction.std is not None:
        result.layers["std"] = prediction.std
    if not is_mudata(box) and isinstance(box.uns.get(_keys.SPATIAL), Mapping):
        result.uns[_keys.SPATIAL] = dict(box.uns[_keys.SPATIAL])  # the images, so that it can be drawn on the tissue
    if (xy := read_coordinates(task.query, table_key=task.table_key)) is not None:
        result.obsm[_keys.SPATIAL] = xy
    _record.write(result, obs=_obs(prediction, key), uns={key: record})
    return result


def _obs(prediction: Prediction, key: str) -> dict[str, np.ndarray]:
    found = zip(_columns(key), (prediction.uncertainty, prediction.unmatched), strict=True)
    return {name: values for name, values in found if values is not None}


def _write(target: Any, result: AnnData, prediction: Prediction, task: Task, key: str, record: dict[str, Any]) -> None:
    """Write into the query, and take away what an earlier run under the same name left."""
    box: Any = container(target, task.table_key)
    for column in _columns(key):
        if column in box.obs:
            del box.obs[column]
    _record.write(target, obs=_obs(prediction, key), obsm=task.made, uns={key: record}, table_key=task.table_key)
    if is_mudata(box):
        return
    where = result.var_names.get_indexer(box.var_names)
    if (where >= 0).any():
        # gathered first, so that no more than this layer is added
        values = prediction.mean[:, np.maximum(where, 0)]
        values[:, where < 0] = np.nan
        box.layers[key] = values
        if (known := int((where >= 0).sum())) < FEW_SHARED * min(len(where), result.n_vars):
            warn(
                f"Only {known} of the query's {len(where)} var_names are predicted genes: the others are NaN in layer {key!r}. Do both name "
                "genes in the same way, also in upper and lower case?"
            )
        return
    if key in box.layers:
        del box.layers[key]
    if box.n_vars:
        warn(
            f"None of the query's {box.n_vars} var_names (for example {str(box.var_names[0])!r}) is a predicted gene (for example "
            f"{str(result.var_names[0])!r}): there is no layer {key!r} in the query. Do both name genes in the same way?"
        )
