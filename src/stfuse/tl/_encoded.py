"""What encoders of expression share: whose names they may write over, and what they write and return."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from importlib.metadata import version
from typing import Any

import numpy as np
import pandas as pd

from stfuse import _keys, _read, _record
from stfuse._check import check_flag, check_seed, check_text


def open_table(
    data: Any, method: str, key_added: str, *, table_key: str | None, copy: bool, inputs: Iterable[str] = ()
) -> Any:
    """Give the AnnData that is read and written, and refuse a name under which results would replace something else.

    ``inputs`` are keys of `obsm` that are read.
    """
    slots, taken = _keys.slots(key_added), {_keys.SPATIAL, *inputs}
    table: Any = _read.container(data, table_key)
    if _read.is_mudata(table):
        raise TypeError(f'{method} takes AnnData or SpatialData: pass the modality, for example mdata["rna"].')
    there = table.uns.get(slots.record)
    own = isinstance(there, Mapping) and there.get("method") == method
    what = None
    if {slots.record, slots.fused} & taken:
        what = "an input"
    elif there is not None and not own:
        what = f"uns[{slots.record!r}], which is no record of this function"
    elif slots.fused in table.obsm and not own:
        what = f"obsm[{slots.fused!r}], of which uns[{slots.record!r}] has no record"
    if what:
        raise ValueError(f"key_added={key_added!r} would overwrite {what}: choose another name, or delete it first.")
    if copy:
        _record.check_copy(data)
    return table


def check_common(*, seed: int, device: str, progress: bool | None, **flags: bool) -> None:
    """Check what all encoders take."""
    check_seed(seed)
    check_text("device", device)
    check_flag("progress", progress, optional=True)
    for name, flag in flags.items():
        check_flag(name, flag)
    from stfuse.train._fit import resolve_device

    resolve_device(device)


def write_codes(
    data: Any,
    codes: np.ndarray,
    *,
    method: str,
    key_added: str,
    table_key: str | None,
    copy: bool,
    model: Any,
    params: dict[str, Any],
    seed: int,
    history: pd.DataFrame,
    packages: Iterable[str] = (),
    **more: Any,
) -> Any:
    """Write codes and their record; return what was asked for. ``model`` is None where it was not.

    ``packages`` are those whose versions matter beside the usual ones.
    """
    slots = _keys.slots(key_added)
    record = {
        "method": method,
        "params": params,
        "seed": seed,
        "versions": _record.versions() | {name: version(name) for name in packages},
        "n_obs": {"total": len(codes), "rna": int((~np.isnan(codes[:, 0])).sum())},
        "history": history,
        **more,
    }
    target = _record.copy_of(data, table_key) if copy else data
    _record.write(target, obsm={slots.fused: codes}, uns={slots.record: record}, table_key=table_key)
    if copy and model is not None:
        return target, model
    return target if copy else model
