"""What ``color=`` means: values of observations and the colours they are drawn in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize, is_color_like, to_hex, to_rgba_array

from stfuse import _keys, _read

# Okabe and Ito's colours, which people with any colour vision can tell apart, and four more for the way up to twelve.
PALETTE = (
    *("#0072B2", "#E69F00", "#009E73", "#D55E00", "#56B4E9", "#CC79A7", "#F0E442", "#4D4D4D"),
    *("#882255", "#999933", "#332288", "#44AA99"),
)
MISSING, UNASSIGNED = "#D3D3D3", "#9E9E9E"

Palette = str | Sequence[str] | Mapping[str, str] | None


class Color(NamedTuple):
    """Values to draw: numbers, or categories with a colour each."""

    name: str
    values: np.ndarray | pd.Categorical
    colors: dict[str, str]

    @property
    def categorical(self) -> bool:
        """Whether the values are categories."""
        return isinstance(self.values, pd.Categorical)


def read_color(
    data: Any, key: str, *, palette: Palette = None, layer: str | None = None, table_key: str | None
) -> Color:
    """Look ``key`` up: a column of ``obs``, then a gene, then ``"<obsm key>:<column>"``."""
    box: Any = _read.container(data, table_key)
    column = _read.find_column(data, key, table_key)
    if column is None:
        values = _gene(box, key, layer)
        values = _obsm_column(data, key, table_key) if values is None else values
        if values is None:
            raise KeyError(_not_found(box, key))
        return Color(key, values, {})
    if pd.api.types.is_numeric_dtype(column.dtype) and not pd.api.types.is_bool_dtype(column.dtype):
        return Color(key, column.to_numpy(dtype=float, na_value=np.nan), {})
    categories = pd.Categorical(column)
    names = [str(c) for c in categories.categories]
    categories = pd.Categorical.from_codes(categories.codes, names)
    return Color(key, categories, _category_colors(box, key, names, palette))


def _gene(box: Any, key: str, layer: str | None) -> np.ndarray | None:
    if _read.is_mudata(box):
        holders = [m for m in box.mod.values() if key in m.var_names]
        if not holders:
            return None
        part = pd.Series(_gene(holders[0], key, layer), index=holders[0].obs_names)
        return part.reindex(box.obs_names).to_numpy(dtype=float)
    if key not in box.var_names:
        return None
    if layer is not None and layer not in box.layers:
        there = ", ".join(repr(name) for name in box.layers if name is not None)
        raise KeyError(f"No layer {layer!r}. There is {there or 'nothing'}.")
    matrix = box.X if layer is None else box.layers[layer]
    values = matrix[:, box.var_names.get_loc(key)]
    return np.asarray(values.toarray() if hasattr(values, "toarray") else values, dtype=float).ravel()


def _obsm_column(data: Any, key: str, table_key: str | None) -> np.ndarray | None:
    rep, colon, column = key.rpartition(":")
    if not colon:
        return None
    box: Any = _read.container(data, table_key)
    table = box.obsm[rep] if rep in box.obsm else None
    if isinstance(table, pd.DataFrame):
        if column not in table.columns:
            raise KeyError(f"obsm[{rep!r}] has no column {column!r}. There is {', '.join(map(str, table.columns))}.")
        return table[column].to_numpy(dtype=float)
    values = _read.read_rep(data, rep, table_key)
    if not column.isdigit() or int(column) >= values.shape[1]:
        raise KeyError(f"obsm[{rep!r}] has the columns 0 to {values.shape[1] - 1}, not {column!r}.")
    return values[:, int(column)].astype(float)


def _not_found(box: Any, key: str) -> str:
    return (
        f"{key!r} is neither a column of obs ({', '.join(map(str, box.obs.columns)) or 'none'}), nor a gene, nor a column "
        f"of obsm written as 'key:column', for example 'X_pca:0' (obsm has {', '.join(box.obsm.keys()) or 'nothing'})."
    )


def _category_colors(box: Any, key: str, names: list[str], palette: Palette) -> dict[str, str]:
    """Use the palette given, or the colours kept in ``uns``, or make some."""
    if palette is not None:
        return _from_palette(palette, names)
    kept = _kept_colors(box, key)
    if len(kept) >= len(names):
        return dict(zip(names, kept, strict=False))
    return default_colors(names)


def _kept_colors(box: Any, key: str) -> list[str]:
    kept = [str(c) for c in np.atleast_1d(box.uns.get(f"{key}_colors", []))]
    return [to_hex(c) for c in kept] if all(map(is_color_like, kept)) else []


def keep_colors(data: Any, colors: Sequence[Color | None], table_key: str | None) -> None:
    """Keep the colours of categories in ``uns``, as scanpy does; a view is left a view."""
    box: Any = _read.container(data, table_key)
    if getattr(box, "is_view", False):
        return
    for color in colors:
        if color is None or color.name not in box.obs:
            continue
        if isinstance(box.obs[color.name].dtype, pd.CategoricalDtype):
            used = [color.colors[str(c)] for c in box.obs[color.name].cat.categories]
            if _kept_colors(box, color.name)[: len(used)] != used:
                box.uns[f"{color.name}_colors"] = used


def default_colors(names: Sequence[str]) -> dict[str, str]:
    """Give names colours in their order; ``"unassigned"`` is grey."""
    named = [name for name in names if name != _keys.UNASSIGNED]
    if len(named) <= len(PALETTE):
        colors: Sequence[str] = PALETTE
    else:
        from scanpy.plotting.palettes import default_28, default_102

        colors = default_28 if len(named) <= 28 else default_102
    if len(named) > len(colors):
        colors = [to_hex(c) for c in colormaps["gist_rainbow"](np.linspace(0, 1, len(named)))]
    return {_keys.UNASSIGNED: to_hex(UNASSIGNED), **dict(zip(named, map(to_hex, colors), strict=False))}


def _from_palette(palette: Palette, names: list[str]) -> dict[str, str]:
    if isinstance(palette, str):
        try:
            cmap: Any = colormaps[palette]
        except KeyError:
            raise ValueError(f"palette={palette!r} is not a colour map of matplotlib.") from None
        palette = cmap.colors if cmap.N < 64 else cmap(np.linspace(0, 1, len(names)))
    if isinstance(palette, Mapping):
        missing = [name for name in names if name not in palette and name != _keys.UNASSIGNED]
        if missing:
            raise ValueError(f"palette has no colour for {', '.join(missing)}.")
        return {name: to_hex(palette.get(name, UNASSIGNED)) for name in names}
    if palette is None or len(palette) < len(names):
        raise ValueError(f"palette has {len(palette or ())} colours for {len(names)} categories.")
    return {name: to_hex(color) for name, color in zip(names, palette, strict=False)}


def number_scale(
    color: Color | None, rows: np.ndarray, cmap: str, vmin: float | None, vmax: float | None
) -> ScalarMappable | None:
    """Make the colour scale of numbers over the observations in ``rows``; None for categories."""
    if color is None or color.categorical:
        return None
    values = np.asarray(color.values)[rows]
    values = values[np.isfinite(values)]
    low = vmin if vmin is not None else values.min() if values.size else 0.0
    high = vmax if vmax is not None else values.max() if values.size else 1.0
    return ScalarMappable(Normalize(low, high), colormaps[cmap])


def face_colors(color: Color, rows: np.ndarray, mappable: ScalarMappable | None) -> tuple[np.ndarray, np.ndarray]:
    """RGBA of the observations in ``rows``, and which of them have a value; those without are light grey."""
    if mappable is not None:
        values = np.asarray(color.values)[rows]
        known = np.isfinite(values)
        rgba = mappable.to_rgba(np.where(known, values, 0.0))
    else:
        categories: Any = color.values
        codes = categories.codes[rows]
        known = codes >= 0
        rgba = to_rgba_array([color.colors[c] for c in categories.categories] + [MISSING])[codes]
    rgba = np.array(rgba)
    rgba[~known] = to_rgba_array(MISSING)[0]
    return rgba, known
