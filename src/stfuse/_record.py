"""The one writer: codes and provenance into the object, all at once or not at all."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np
import pandas as pd

from stfuse import _read


def h5ad_safe(value: Any) -> Any:
    """Turn parameters into what h5ad and zarr can hold.

    Tuples and sets become lists, keys strings without slashes, None stays, objects become their text.
    """
    if value is None or isinstance(value, bool | str | np.ndarray | pd.DataFrame):
        return value
    if isinstance(value, int | float | np.number | np.bool_):
        return value.item() if isinstance(value, np.generic) else value
    if isinstance(value, Mapping):
        return {str(k).replace("/", "_"): h5ad_safe(v) for k, v in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        items = [h5ad_safe(v) for v in value]
        if all(isinstance(v, int | float) for v in items) or all(isinstance(v, str) for v in items):
            return items
        return [str(v) for v in items]
    return str(value)


def versions() -> dict[str, str]:
    """Versions of the packages that decide the numbers."""
    found = {}
    for name in ("stfuse", "torch", "numpy", "anndata", "scanpy", "scvi-tools"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "unknown"
    return found


def check_copy(data: Any) -> None:
    """Refuse to copy what lies on disk, before anything is computed: anndata can only copy it into another file."""
    if getattr(data, "isbacked", False):
        raise ValueError("A backed AnnData can't be copied in memory: call .to_memory() first, or leave copy=False.")
    for key, values in getattr(data, "obsm", {}).items():
        if type(values).__module__.startswith("zarr"):
            raise ValueError(
                f"obsm[{key!r}] is an array of zarr, with which an AnnData can't be copied: leave copy=False."
            )


def copy_of(data: Any, table_key: str | None) -> Any:
    """Copy what results are written into; the elements of a SpatialData other than the table are shared."""
    if not _read.is_spatialdata(data):
        return data.copy()
    table = _read.container(data, table_key)
    elements = {name: element for _, name, element in data.gen_elements()}
    for name, element in elements.items():
        if element is table:
            elements[name] = table.copy()
    return type(data).init_from_elements(elements, attrs=dict(data.attrs))


def write(
    data: Any,
    *,
    obsm: Mapping[str, np.ndarray] | None = None,
    obs: Mapping[str, Any] | None = None,
    obsp: Mapping[str, Any] | None = None,
    uns: Mapping[str, Any] | None = None,
    drop_obsm: tuple[str, ...] = (),
    table_key: str | None = None,
) -> None:
    """Write finished results; every value is made safe first, so that nothing is half written.

    ``drop_obsm`` names entries of an earlier run under the same key that this one does not have.
    """
    box = _read.container(data, table_key)
    obsm, obs, obsp = dict(obsm or {}), dict(obs or {}), dict(obsp or {})
    safe = {key: h5ad_safe(value) for key, value in (uns or {}).items()}
    for key, value in [*obsm.items(), *obs.items(), *obsp.items()]:
        if "/" in key:
            raise ValueError(f"The key {key!r} holds a slash, which h5ad cannot store.")
        if value.shape[0] != box.n_obs:
            raise ValueError(f"{key!r} has {value.shape[0]} rows, the object {box.n_obs} observations.")
    for key in drop_obsm:
        if key in box.obsm and key not in obsm:
            del box.obsm[key]
    for name, column in obs.items():
        box.obs[name] = column if isinstance(column, pd.Categorical) else np.asarray(column)
    for slot, values in ((box.obsm, obsm), (box.obsp, obsp), (box.uns, safe)):
        for key, value in values.items():
            slot[key] = value


def params_of(local: Mapping[str, Any], *drop: str) -> dict[str, Any]:
    """Pick the arguments of a call for the record."""
    skip = {"data", "copy", "return_model", "progress", *drop}
    return {k: v for k, v in local.items() if k not in skip}
