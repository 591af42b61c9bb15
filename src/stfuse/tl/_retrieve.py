"""The nearest partners of every observation in the other view."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd

from stfuse import _keys
from stfuse._check import check_flag, check_number, check_text, did_you_mean
from stfuse._read import check_names, check_values, container, listing, read_rep
from stfuse._topk import top_k

if TYPE_CHECKING:
    from stfuse.model._base import FusionModel


def retrieve(
    data: Any,
    reference: Any = None,
    *,
    query: Literal["image", "rna"] = "image",
    target: Literal["image", "rna"] = "rna",
    k: int = 10,
    use_rep: str = "umpire",
    model: FusionModel | None = None,
    table_key: str | None = None,
    approximate: bool | None = None,
    device: str = "auto",
    seed: int = 0,
) -> pd.DataFrame:
    """Find the nearest partners of every observation in the other view: the molecular neighbours of a patch, or the reverse.

    Codes of the two views are compared by cosine similarity; within one object, an observation's own partner is among the candidates.

    Parameters
    ----------
    data
        AnnData, MuData or SpatialData with the observations that are looked up.
    reference
        The object with the candidates. None = `data`.
    query
        View by which the observations of `data` are looked up.
    target
        View in which their partners are looked for.
    k
        Number of partners.
    use_rep
        Method whose codes are compared: the `key_added` it was called with, so that they lie in `obsm["X_<use_rep>_image"]` and
        `obsm["X_<use_rep>_rna"]`.
    model
        A trained model (`stfuse.tl.cameo(..., return_model=True)`) that codes both objects anew, for data that it has not seen;
        `use_rep` is not used then.
    table_key
        SpatialData: which table.
    approximate
        Whether to use an index that may miss a few. None = with more than a million candidates and no GPU.
    device
        `"auto"`, `"cpu"`, `"cuda"`, `"cuda:<index>"` or `"mps"`.
    seed
        Seed of the index.

    Returns
    -------
    pandas.DataFrame
        `k` rows for every observation of `data` that has the view, in its order: `query` (name), `rank` (1 = most similar), `target`
        (name in `reference`), `similarity` (cosine). Nothing is written.

    Raises
    ------
    KeyError
        If there are no such codes.
    ValueError
        If a view is neither `"image"` nor `"rna"`, if no observation has it, or if there are fewer than `k` candidates.
    TypeError
        If `model` is not a model of this package.

    Examples
    --------
    >>> import stfuse
    >>> adata = stfuse.datasets.synthetic_tissue(300, seed=1)
    >>> stfuse.tl.pcca(adata)
    >>> found = stfuse.tl.retrieve(adata, use_rep="pcca", k=5)
    >>> found.shape, list(found.columns)
    ((1500, 4), ['query', 'rank', 'target', 'similarity'])
    """
    from stfuse.tl._predictors_neighbors import torch_device

    for name, view in (("query", query), ("target", target)):
        if view not in _keys.VIEWS:
            raise ValueError(f"{name} must be one of {', '.join(map(repr, _keys.VIEWS))}, got {view!r}.")
    check_number("k", k, least=1, whole=True)
    check_text("use_rep", use_rep)
    check_flag("approximate", approximate, optional=True)
    reference = data if reference is None else reference
    codes = []
    for who, which, view in (("data", data, query), ("reference", reference, target)):
        check_names(container(which, table_key).obs_names, f"the {who}")
        found = (
            _stored(which, use_rep, view, who, table_key)
            if model is None
            else _coded(which, model, view, who, table_key)
        )
        codes.append((container(which, table_key).obs_names, *found))
    (names, rows, values), (others, candidates, targets) = codes
    if values.shape[1] != targets.shape[1]:
        raise ValueError(
            f"The codes of data have {values.shape[1]} columns, those of the reference {targets.shape[1]}: they are not of one training."
        )
    if k > len(targets):
        raise ValueError(f"k={k} is more than the {len(targets)} observations that have a {target} code.")
    near = top_k(values, targets, k, device=torch_device(device), approximate=approximate, seed=seed)
    return pd.DataFrame(
        {
            "query": np.repeat(names[rows].to_numpy(), k),
            "rank": np.tile(np.arange(1, k + 1), len(rows)),
            "target": others[candidates].to_numpy()[near.index.ravel()],
            "similarity": near.similarity.ravel(),
        }
    )


def _stored(data: Any, use_rep: str, view: str, who: str, table_key: str | None) -> tuple[np.ndarray, np.ndarray]:
    """Rows with a code in `obsm`, and the codes."""
    key = f"X_{use_rep.removeprefix('X_')}_{view}"
    box = container(data, table_key)
    if key not in box.obsm:
        there = [name for name in box.obsm if str(name).endswith(("_image", "_rna"))]
        raise KeyError(
            f"The {who} has no obsm[{key!r}] with codes of the {view} view.{did_you_mean(key, there)} There is {listing(there)}. "
            f"stfuse.tl.{use_rep.removeprefix('X_')} writes such codes if it has shared ones; new data are coded by model=."
        )
    values = read_rep(data, key, table_key)
    return _present(values, check_values(values, f"obsm[{key!r}]"), view, who)


def _coded(data: Any, model: Any, view: str, who: str, table_key: str | None) -> tuple[np.ndarray, np.ndarray]:
    from stfuse.model._base import FusionModel
    from stfuse.tl._predictors_fused import model_codes

    if not isinstance(model, FusionModel):
        raise TypeError(
            f"model must be a trained stfuse model (stfuse.tl.cameo(..., return_model=True)), got {type(model).__name__}."
            ' Of tl.sigmma, which reads two objects, name the codes it has written: use_rep="sigmma".'
        )
    values = model_codes(model, data, view, who, table_key)
    return _present(values, np.isfinite(values).all(axis=1), view, who)


def _present(values: np.ndarray, has: np.ndarray, view: str, who: str) -> tuple[np.ndarray, np.ndarray]:
    if not has.any():
        raise ValueError(f"No observation of the {who} has a code of the {view} view.")
    return np.flatnonzero(has), values[has]
