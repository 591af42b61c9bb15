"""What ``color=`` means: values of observations and the colours they are drawn in."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize, is_color_like, to_hex, to_rgba_array

from stfuse import _keys, _read
from stfuse._check import check_number, check_text, did_you_mean
from stfuse._labels import read_classes

# Okabe and Ito's colours, which people with any colour vision can tell apart, and four more for the way up to twelve.
PALETTE = (
    *("#0072B2", "#E69F00", "#009E73", "#D55E00", "#56B4E9", "#CC79A7", "#F0E442", "#4D4D4D"),
    *("#882255", "#999933", "#332288", "#44AA99"),
)
MISSING, UNASSIGNED = "#D3D3D3", "#9E9E9E"

Limit = float | str | None
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


def color_keys(color: Any) -> list[Any]:
    """Turn ``color=`` into a list; [None] draws no colour."""
    if color is None or isinstance(color, str) or not hasattr(color, "__iter__"):
        return [color]
    return list(color)


def read_color(
    data: Any, key: str, *, palette: Palette = None, layer: str | None = None, table_key: str | None
) -> Color:
    """Look ``key`` up: a column of ``obs``, then a gene, then ``"<obsm key>:<column>"``."""
    check_text("color", key)
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
    categories = _categories(column)
    return Color(key, categories, _category_colors(box, key, list(categories.categories), palette))


def read_groups(data: Any, key: str, *, palette: Palette = None, table_key: str | None) -> Color:
    """Read a column of `obs` that holds groups, also where these are whole numbers."""
    column = _read.read_column(data, key, table_key)
    color = read_color(data, key, palette=palette, table_key=table_key)
    if color.categorical:
        return color
    codes, names = read_classes(column, key)
    return Color(key, pd.Categorical.from_codes(codes, names), named_colors(names, palette))


def _categories(column: pd.Series) -> pd.Categorical:
    """Categories as text: in their own order where the column has one, else "type 2" before "type 10", as anndata."""
    if isinstance(column.dtype, pd.CategoricalDtype):
        names = [str(c) for c in column.cat.categories]
        if len(set(names)) == len(names):
            return pd.Categorical.from_codes(column.cat.codes.to_numpy(), names)
    text = column.astype(object).map(str, na_action="ignore")
    parts = {name: re.split(r"(\d+)", name) for name in text.dropna().unique()}
    return pd.Categorical(
        text, sorted(parts, key=lambda n: [(int(p), "") if p.isdecimal() else (-1, p) for p in parts[n]])
    )


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
    columns = _read.columns_of(box)
    genes = [g for m in box.mod.values() for g in m.var_names] if _read.is_mudata(box) else list(box.var_names)
    return (
        f"{key!r} is neither a column of obs ({', '.join(columns) or 'none'}), nor a gene, nor a column "
        f"of obsm written as 'key:column', for example 'X_pca:0' (obsm has {', '.join(box.obsm.keys()) or 'nothing'})."
        f"{did_you_mean(key, [*columns, *genes])}"
    )


def _category_colors(box: Any, key: str, names: list[str], palette: Palette) -> dict[str, str]:
    """Use the palette given, or the colours kept in ``uns``, or make some."""
    kept = _kept_colors(box, key) if palette is None else []
    if kept and len(kept) >= len(names):
        return dict(zip(names, kept, strict=False))
    return named_colors(names, palette)


def named_colors(names: list[str], palette: Palette) -> dict[str, str]:
    """Give names the colours of a palette, or colours of our own."""
    return default_colors(names) if palette is None else _from_palette(palette, names)


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
    if not isinstance(palette, str | Mapping | Sequence | np.ndarray):
        raise TypeError(f"palette must be the name of a colour map, a list or a dict of colours, got {palette!r}.")
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
        return {name: _hex(palette.get(name, UNASSIGNED)) for name in names}
    if palette is None or len(palette) < len(names):
        raise ValueError(f"palette has {len(palette or ())} colours for {len(names)} categories.")
    return {name: _hex(color) for name, color in zip(names, palette, strict=False)}


def _hex(color: Any) -> str:
    if not is_color_like(color):
        raise ValueError(f"palette has {color!r}, which is no colour that matplotlib knows.")
    return to_hex(color)


def number_scale(color: Color | None, rows: np.ndarray, cmap: str, vmin: Limit, vmax: Limit) -> ScalarMappable | None:
    """Make the colour scale of numbers over the observations in ``rows``; None for categories.

    Its array holds the values, so that a legend knows whether some are missing.
    """
    ends = [_limit(name, value) for name, value in (("vmin", vmin), ("vmax", vmax))]
    if color is None or color.categorical:
        return None
    values = np.ma.masked_invalid(np.asarray(color.values, dtype=float)[rows])
    known = values.compressed()
    if not known.size:
        known = np.array([0.0, 1.0])
    low, high = (
        float(np.percentile(known, percent)) if end is None else end
        for end, percent in ((ends[0][0], ends[0][1] or 0), (ends[1][0], 100 if ends[1][1] is None else ends[1][1]))
    )
    if low > high and (vmin is None or vmax is None):  # an end that was given beyond all values
        low, high = (high, high) if vmin is None else (low, low)
    if low > high:
        raise ValueError(f"vmin={vmin!r} lies above vmax={vmax!r} for {color.name!r} (from {low:g} to {high:g}).")
    mappable = ScalarMappable(Normalize(low, high), colormaps[cmap])
    mappable.set_array(values)
    return mappable


def _limit(name: str, value: Limit) -> tuple[float | None, float | None]:
    """Read an end of the scale: a number, or the percentile that "p5" stands for."""
    if isinstance(value, str):
        match = re.fullmatch(r"p(\d+(?:\.\d*)?)", value)
        if not match or float(match[1]) > 100:
            raise ValueError(f"{name} must be a number, a percentile such as 'p99', or None, got {value!r}.")
        return None, float(match[1])
    check_number(name, value, optional=True)
    return value, None


def n_missing(mappable: ScalarMappable | None) -> int:
    """Count observations without a value on a colour scale."""
    return 0 if mappable is None else int(np.ma.count_masked(np.ma.asarray(mappable.get_array())))


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
