"""Results of methods on two objects: into both of them, or into both tables of one, all at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from stfuse import _read, _record


@dataclass
class Written:
    """What goes into one table, by slot; ``stale`` names what goes where this run does not write it; ``name`` is the table's in ``data``."""

    table: Any
    entries: dict[str, Any]
    stale: Mapping[str, Sequence[str]] = field(default_factory=dict)
    name: str | None = None


def write_both(data: Any, written: Sequence[Written], copy: bool, model: Any) -> Any:
    """Write into the tables, or into copies, and give back what was asked for: copies, the model, a tuple of all, or nothing.

    ``data`` is what the user passed: the first of the two, or the SpatialData or MuData that holds both.
    """
    inside = _read.is_spatialdata(data) or _read.is_mudata(data)
    targets: list[Any]
    if inside:
        targets = [_copy_of(data, written) if copy else data]
        tables = [_table(targets[0], part.name) for part in written]
    else:
        targets = tables = [part.table.copy() if copy else part.table for part in written]
    for table, part in zip(tables, written, strict=True):
        for slot, keys in part.stale.items():
            for key in keys:
                if key in getattr(table, slot) and key not in part.entries.get(slot, {}):
                    del getattr(table, slot)[key]
        _record.write(table, **part.entries)
    given = [*(targets if copy else []), *([model] if model is not None else [])]
    return None if not given else given[0] if len(given) == 1 else tuple(given)


def _copy_of(data: Any, written: Sequence[Written]) -> Any:
    if _read.is_mudata(data):
        return data.copy()
    for part in written:
        data = _record.copy_of(data, part.name)
    return data


def _table(data: Any, name: str | None) -> Any:
    return data.mod[name] if _read.is_mudata(data) else data.tables[name]
