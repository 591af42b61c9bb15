"""Stain normalisation: what is fitted to an image, the targets, and the maps from one to the other."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple, Protocol

import numpy as np

from stfuse._check import did_you_mean
from stfuse._image._files import names_file, open_image
from stfuse._image._lazy import compute_all
from stfuse._image._pyramid import Pyramid, pyramid
from stfuse._image._stain_macenko import REFERENCE as MACENKO_REFERENCE
from stfuse._image._stain_macenko import MacenkoFit, fit_macenko, macenko_transform
from stfuse._image._stain_reinhard import REFERENCE as REINHARD_REFERENCE
from stfuse._image._stain_reinhard import ReinhardFit, fit_reinhard, reinhard_transform
from stfuse._image._tissue import MASK_SIDE, density, tissue_of

type Fit = MacenkoFit | ReinhardFit
type Transform = Callable[[np.ndarray], np.ndarray]

_MOST_PIXELS = 200_000
_N_PARTS, _PART = 256, 28  # parts of the sharpest level that are read, and their side in pixels: 200,000 pixels
# Glass is looked for among what is brighter than this (optical density, base 10), and must fill this share of an image.
_DARK, _LEAST_GLASS = 0.2, 0.01
_WHITE = np.full(3, 240.0)  # taken for glass where an image shows none, as the published implementation of Macenko does


class _Method(NamedTuple):
    fit: Callable[[np.ndarray, np.ndarray, str], Any]
    kind: type
    shapes: dict[str, tuple[int, ...]]
    positive: tuple[str, ...]
    reference: Any
    transform: Callable[[Any, Any], Transform]


_METHODS = {
    "macenko": _Method(
        fit_macenko,
        MacenkoFit,
        {"stains": (2, 3), "maxima": (2,), "white": (3,)},
        ("maxima", "white"),
        MACENKO_REFERENCE,
        macenko_transform,
    ),
    "reinhard": _Method(
        fit_reinhard,
        ReinhardFit,
        {"means": (3,), "sds": (3,), "white": (3,)},
        ("sds", "white"),
        REINHARD_REFERENCE,
        reinhard_transform,
    ),
}


class Pictured(Protocol):
    """A section with its image."""

    @property
    def name(self) -> str: ...

    @property
    def image(self) -> Pyramid: ...


def check_method(method: Any, argument: str = "method") -> None:
    """Refuse what is no method of stain normalisation."""
    if not isinstance(method, str) or method not in _METHODS:
        there = " or ".join(map(repr, _METHODS))
        raise ValueError(f"{argument} must be {there}, got {method!r}.{did_you_mean(method, _METHODS)}")


def section_transforms(
    sections: Iterable[Pictured], method: str, target: Any = None
) -> tuple[dict[str, Transform], dict[str, Any]]:
    """Give per section the map of its pixels to the target's staining, and a record of all that was fitted.

    A target is None (a published reference), the name of a section, an image (a file, an array, a pyramid), or a fit.
    """
    check_method(method)
    images = {section.name: section.image for section in sections}
    named, wanted = _find_target(target, method, images)
    fits: dict[str, Any] = {}
    for name, image in images.items():  # sections may share an image
        same = next((other for other in fits if images[other] is image or images[other].token == image.token), None)
        fits[name] = fit_image(image, method) if same is None else fits[same]
    goal: Any = wanted if not isinstance(wanted, Pyramid) else None
    if goal is None:
        goal = next((fits[n] for n, image in images.items() if image is wanted), None) or fit_image(wanted, method)
    record = {
        "method": method,
        "target": named,
        "target_fit": goal.to_dict(),
        "fits": {name: fit.to_dict() for name, fit in fits.items()},
    }
    return {name: stain_transform(fit, goal) for name, fit in fits.items()}, record


def stain_transform(source: Fit, target: Fit) -> Transform:
    """Give the map of ... x 3 of uint8 from the staining of one fit to that of another; it can be pickled."""
    method = source.to_dict()["method"]
    if not isinstance(target, _METHODS[method].kind):
        raise ValueError(f"The target is a fit of {target.to_dict()['method']!r}, but the method is {method!r}.")
    return _METHODS[method].transform(source, target)


def fit_stain(rgb: np.ndarray, method: str, *, white: np.ndarray = _WHITE, name: str = "The image") -> Any:
    """Fit the staining of n x 3 tissue pixels of uint8; ``white`` is the colour of glass there.

    Of more than 200,000 pixels every k-th is used. Pixels as clear as glass are left out.
    """
    check_method(method)
    return _METHODS[method].fit(rgb[:: max(1, -(-len(rgb) // _MOST_PIXELS))], white, name)


def fit_image(image: Pyramid, method: str) -> Any:
    """Fit the staining of an image to its tissue, as sharp as there is, and to the colour of its glass."""
    small, step = image.thumbnail(MASK_SIDE)
    mask = tissue_of(small, step).mask
    clear = small[~mask & (density(small) < _DARK)]
    white = np.median(clear, axis=0) if len(clear) >= _LEAST_GLASS * mask.size else _WHITE
    name = f"The{image.name[3:]}" if image.name.startswith("the ") else image.name
    if not mask.any():
        raise ValueError(f"{name} shows no tissue, so no staining can be fitted to it.")
    sharpest = step == image.levels[0].downsample
    return fit_stain(small[mask] if sharpest else _sharp_pixels(image, mask, step), method, white=white, name=name)


def _sharp_pixels(image: Pyramid, mask: np.ndarray, step: tuple[float, float]) -> np.ndarray:
    """Read tissue pixels of parts of the sharpest level: means of many pixels have paler stains than the pixels."""
    level = image.levels[0]
    rows, columns = np.nonzero(mask)
    chosen = np.linspace(0, len(rows) - 1, min(_N_PARTS, len(rows))).round().astype(np.int64)
    ratio = np.array(level.downsample) / step  # mask pixels per pixel of the level, x and y
    parts, masks = [], []
    for row, column in zip(rows[chosen], columns[chosen], strict=True):
        left, top = np.maximum(((np.array([column, row]) + 0.5) / ratio).astype(np.int64) - _PART // 2, 0)
        parts.append(level.pixels[top : top + _PART, left : left + _PART])
        high, wide = parts[-1].shape[:2]
        y = np.minimum(((np.arange(top, top + high) + 0.5) * ratio[1]).astype(np.int64), mask.shape[0] - 1)
        x = np.minimum(((np.arange(left, left + wide) + 0.5) * ratio[0]).astype(np.int64), mask.shape[1] - 1)
        masks.append(mask[np.ix_(y, x)])
    if level.lazy:
        parts = compute_all(parts)
    return np.concatenate([image.color.to_rgb(np.asarray(p))[m] for p, m in zip(parts, masks, strict=True)])


def _find_target(target: Any, method: str, images: Mapping[str, Pyramid]) -> tuple[str, Any]:
    """Name the target for the record, and give its fit, or the image to fit."""
    if target is None:
        return "reference", _METHODS[method].reference
    if isinstance(target, Mapping):
        return "fit", read_fit(target, method)
    if isinstance(target, Pyramid):
        return target.kind, target
    if isinstance(target, str) and target in images:
        return target, images[target]
    if names_file(target):
        opened = open_image(target)
        return opened.kind, opened
    if isinstance(target, str):
        there = ", ".join(map(repr, images))
        raise KeyError(
            f"The target {target!r} is no section and no image file.{did_you_mean(target, images)} Sections: {there}."
        )
    if not hasattr(target, "shape") or not hasattr(target, "dtype"):
        raise TypeError(
            "The target must be None, the name of a section, an image (a path or an array of height x width x colours) or "
            f"a fit recorded before (a dict), got {type(target).__name__}."
        )
    return "array", pyramid([target], name="the target image", kind="array")


def read_fit(fit: Mapping[str, Any], method: str) -> Any:
    """Read a fit back from its record."""
    form = _METHODS[method]
    if fit.get("method") != method or not set(form.shapes) <= set(fit):
        there = ", ".join(map(str, fit)) or "nothing"
        raise ValueError(
            f"A target for {method!r} must have method={method!r} and {', '.join(form.shapes)}, but has {there}"
            f"{'' if 'method' not in fit else f' and is of {fit["method"]!r}'}: pass one fit of a record, for example "
            f'adata.uns["stain_{method}"]["target_fit"].'
        )
    values = {}
    for name, shape in form.shapes.items():
        try:
            value = np.asarray(fit[name], dtype=np.float64)
        except (TypeError, ValueError):
            raise ValueError(f"{name} of the target must hold numbers, got {fit[name]!r}.") from None
        if value.shape != shape or not np.isfinite(value).all() or name in form.positive and (value <= 0).any():
            kind = "positive numbers" if name in form.positive else "finite numbers"
            raise ValueError(f"{name} of the target must be {kind} of the shape {shape}, got {fit[name]!r}.")
        values[name] = value
    return form.kind(**values)
