"""One runner for every fusion method: read the views, train a model on private data, write the codes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd
from anndata import AnnData

from stfuse import _keys, _record, _registry
from stfuse._check import check_number, check_seed, check_text
from stfuse._log import logger
from stfuse._read import Container, container, warn_if_stacked
from stfuse._views import Views, read_views
from stfuse.pp._default_views import make_view


def private_adata(views: Views, keys: dict[str, Any]) -> AnnData:
    """A small AnnData under the user's key names: scvi-tools leaves its bookkeeping there and not in the user's object."""
    obs = pd.DataFrame(index=views.obs_names)
    if views.batch is not None and keys["batch_key"]:
        obs[keys["batch_key"]] = pd.Categorical.from_codes(views.batch, views.batches)
    if views.library_key:
        obs[views.library_key] = pd.Categorical.from_codes(views.section, views.sections)
    if keys["paired_key"]:
        obs[keys["paired_key"]] = views.paired
    adata = AnnData(obs=obs)
    adata.obsm[keys["image_key"]] = views.raw.get("image", views.image)
    if "rna" in views.raw:
        adata.obsm[keys["tokens_key"]] = views.raw["rna"]
        if views.vocabulary is not None:
            adata.uns[keys["tokens_key"]] = views.vocabulary.record()
    else:
        adata.obsm[keys["rna_key"]] = views.rna
    if views.places is not None:
        adata.obsm[_keys.SPATIAL] = views.places
    if views.array is not None:
        adata.obs[list(_keys.ARRAY[0])] = views.array
    return adata


def _check_common(keys: dict[str, Any], run: dict[str, Any]) -> None:
    for name, key in keys.items():
        check_text(name, key, optional=name not in {"image_key", "rna_key"})
    if keys["image_key"] == keys["rna_key"]:
        raise ValueError(f"image_key and rna_key are both {keys['image_key']!r}: the two views must be different.")
    for name, least in (("batch_size", 2), ("max_epochs", 0)):
        check_number(name, run.get(name), least=least, whole=True, optional=True)
    check_seed(run["seed"])


def _check_free(box: Container, slots: _keys.Slots, keys: dict[str, Any], method: str) -> None:
    """Refuse a name under which results would overwrite the views or what somebody else keeps in ``uns`` or ``obsm``."""
    taken = {keys["image_key"], keys["rna_key"], _keys.SPATIAL} & set(slots)
    there = box.uns.get(slots.record)
    own = isinstance(there, Mapping) and "method" in there and "n_obs" in there
    foreign = [key for key in _codes_of(slots) if key in box.obsm and not own and slots.record != method]
    if taken:
        what = f"{sorted(taken)[0]!r}, which is an input"
    elif there is not None and not own:
        what = f"uns[{slots.record!r}], which is not the record of such a method"
    elif foreign:
        what = f"obsm[{foreign[0]!r}], of which uns[{slots.record!r}] has no record"
    else:
        return
    raise ValueError(f"key_added={slots.record!r} would overwrite {what}: choose another name, or delete it first.")


def _codes_of(slots: _keys.Slots) -> tuple[str, ...]:
    return slots.fused, slots.image, slots.rna, slots.private_image, slots.private_rna


def run(
    method: str,
    data: Any,
    *,
    keys: dict[str, Any],
    model_params: dict[str, Any],
    train_params: dict[str, Any],
    table_key: str | None,
    key_added: str,
    copy: bool,
    return_model: bool,
) -> Any:
    """Run a method; nothing is written before everything is computed."""
    row = _registry.get(method)
    slots = _keys.slots(key_added)
    _check_common(keys, train_params)
    if "device" in train_params:
        from stfuse.train._fit import resolve_device

        resolve_device(train_params["device"])
    _check_free(container(data, table_key), slots, keys, method)
    model_class: Any = row.model_class()
    views = read_views(data, **keys, table_key=table_key, crops=model_class.takes_crops, recipe=make_view)
    if views.spatial is not None and model_params.get("context"):
        # of one view: the other one may lie on the same places in a section of its own
        warn_if_stacked(views.spatial[views.has_image], len(views.sections), views.library_key)
    adata = private_adata(views, keys)
    keys = keys | {"library_key": views.library_key}  # the one that was found, where none was named
    model_class.setup_anndata(adata, **keys)
    model = model_class(adata, **model_params)
    model.train(**train_params)
    codes = model.codes()
    obsm = dict(views.made)
    found = (codes.fused, codes.image, codes.rna, codes.private_image, codes.private_rna)
    obsm |= {name: code for name, code in zip(_codes_of(slots), found, strict=True) if code is not None}
    record = {
        "method": method,
        "params": keys
        | {k: _told(v) for k, v in model_params.items()}
        | {k: v for k, v in train_params.items() if k not in {"progress", "seed"}},
        "seed": train_params["seed"],
        "versions": _record.versions(),
        "n_obs": views.counts(),
        "report": dict(model.report_),
        "history": pd.concat(list(model.history_.values()), axis=1) if model.history_ else None,
    }
    logger.info("%s: %s", row.title, ", ".join(f"{v} {k}" for k, v in views.counts().items()))
    target = _record.copy_of(data, table_key) if copy else data
    # with components their loadings, by which new data get the same ones
    uns = {key: made for key, made in views.records.items() if key not in container(data, table_key).uns}
    _record.write(target, obsm=obsm, uns=uns | {slots.record: record}, drop_obsm=_codes_of(slots), table_key=table_key)
    return _returned(target if copy else None, model if return_model else None)


def _told(value: Any) -> Any:
    """A network in a record is the name of its kind: its text is as long as it is deep."""
    return type(value).__name__ if hasattr(value, "parameters") or hasattr(value, "module") else value


def _returned(data: Any, model: Any) -> Any:
    if data is not None and model is not None:
        return data, model
    return data if data is not None else model
