"""From a request for image features to their array and record; nothing is written into the user's object."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from stfuse import _keys
from stfuse._check import check_flag, check_number
from stfuse._image._crop_size import CropSize
from stfuse._image._plan import MIN_SIDE, Part, plan_section
from stfuse._image._section import Choice, Section
from stfuse._image._sections import find_sections
from stfuse._image._stain import check_method, section_transforms
from stfuse._image._tissue import find_tissue
from stfuse._log import logger, warn
from stfuse._progress import counting
from stfuse.pp._encode import EncoderCall, Work, encode
from stfuse.pp._feature_store import FeatureStore

_CHEAP = 4096  # pixels a side of the coarsest level, up to which it is looked at for tissue
_LOOK = 1024
_BLUR = 4  # times that crops may be enlarged
_FEW = 20  # observations, below which their share on tissue says little


@dataclass(frozen=True)
class Request:
    """What the user asks of :func:`stfuse.pp.image_features`."""

    call: EncoderCall = field(default_factory=lambda: EncoderCall("texture"))
    choice: Choice = field(default_factory=Choice)
    size: CropSize = field(default_factory=CropSize)
    scale: str | int = "auto"
    grid: int | Sequence[int] = 1
    stain: str | None = None
    stain_target: Any = None
    batch_size: int | None = None
    store: Any = None
    overwrite: bool = False
    progress: bool | None = None

    @property
    def cells(self) -> list[int]:
        """Cells a side, for each scale of the grid."""
        return [int(self.grid)] if np.ndim(self.grid) == 0 else [int(g) for g in self.grid]  # type: ignore[arg-type, union-attr]

    @property
    def is_grid(self) -> bool:
        """Whether there are several vectors for an observation."""
        return not (np.ndim(self.grid) == 0 and self.grid == 1)

    @property
    def restricted(self) -> bool:
        """Whether some sections alone are asked for, so that others keep what they have."""
        return self.choice.shapes is not None or isinstance(self.choice.image, Mapping)

    @property
    def key(self) -> str:
        """Key of the result where the user names none."""
        return f"{_keys.IMAGE}_grid" if self.is_grid else _keys.IMAGE

    def check(self) -> None:
        """Refuse arguments that are wrong whatever the data."""
        self.size.check()
        grid = [self.grid] if np.ndim(self.grid) == 0 else list(self.grid)  # type: ignore[arg-type]
        if not grid:
            raise ValueError("grid must be a number of cells a side, or several, got none.")
        for cells in grid:
            check_number("grid", cells, least=1, most=64, whole=True)
        if isinstance(self.scale, str):
            if self.scale not in {"auto", "full"}:
                raise ValueError(
                    f"scale must be 'auto', 'full' or the number of a level (0 = sharpest), got {self.scale!r}."
                )
        else:
            check_number("scale", self.scale, least=0, whole=True)
        if self.stain is not None:
            check_method(self.stain, "stain")
        elif self.stain_target is not None:
            raise ValueError("stain_target= goes with stain=: say which method, 'macenko' or 'reinhard'.")
        check_number("batch_size", self.batch_size, least=1, whole=True, optional=True)
        check_flag("progress", self.progress, optional=True)


@dataclass(frozen=True)
class Plan:
    """What will be computed: the sections, their crops, and a mark by which the same work is known again."""

    sections: list[Section]
    sides: dict[str, tuple[float, float]]
    parts: dict[str, list[Part]]
    works: dict[str, Work]
    n_obs: int
    record: dict[str, Any]
    tokens: dict[str, str]  # by section; empty where the encoder can't be known again


def make_plan(data: Any, n_obs: int, request: Request, encoder: Any) -> Plan:
    """Find images and observations, decide on levels and sizes, and check that all of it fits."""
    sections = find_sections(data, request.choice)
    if n_obs == 0:
        raise ValueError("There are no observations to compute image features of.")
    if not any(section.inside.any() for section in sections):
        raise ValueError("No observation lies on its image. " + " ".join(_extents(sections)))
    sides = {section.name: _sides(section, request.size) for section in sections}
    wanted = encoder.input_size or getattr(encoder, "preferred_size", None)
    parts = {
        s.name: plan_section(s, sides[s.name], request.cells, wanted, _level_of(s, request.scale)) for s in sections
    }
    stains: Mapping[str, Any] = {}
    record: dict[str, Any] = {"encoder": encoder.name, **{k: v for k, v in encoder.record.items() if k != "encoder"}}
    if request.stain is not None:
        stains, record["stain"] = section_transforms(sections, request.stain, request.stain_target)
    works = {s.name: Work(s.image, tuple(parts[s.name]), stains.get(s.name), request.batch_size) for s in sections}
    record |= _describe(sections, sides, parts, request)
    if encoder.feature_names is not None:
        record["feature_names"] = np.asarray(encoder.feature_names, dtype=object)
    tokens = (
        {}
        if encoder.token is None
        else {s.name: _token(s, parts[s.name], record, encoder.token, n_obs) for s in sections}
    )
    if tokens:
        record["token"] = tokens
    return Plan(sections, sides, parts, works, n_obs, record, tokens)


def run_plan(
    plan: Plan, request: Request, encoder: Any, earlier: np.ndarray | None = None, kept: Collection[str] = ()
) -> np.ndarray:
    """Encode the crops of a plan: n x d, or n x cells x d; rows without image are NaN.

    ``earlier`` are features of which those of the ``kept`` sections, and of observations that the plan leaves alone, stay.
    """
    n_cells = sum(g * g for g in request.cells)
    total = plan.n_obs * n_cells
    works = [work for name, work in plan.works.items() if name not in kept]
    features = None if earlier is None else earlier.reshape(total, -1).astype(np.float32)
    store = FeatureStore(request.store, " ".join(plan.tokens.values()), encoder.name, fresh=request.overwrite)
    done = np.zeros(total, dtype=bool)
    for slots, found in store.read():
        if slots.max(initial=0) < total:
            features = _put(features, slots, found, total, encoder.name)
            done[slots] = True
    if done.any():
        logger.info("%d of %d crops are in %s already", int(done.sum()), sum(map(len, works)), request.store)
        works = [work.without(done) for work in works]
    with counting(sum(map(len, works)), desc="image features", show=request.progress) as advance, store:
        for slots, found in encode([work for work in works if len(work)], encoder, request.call):
            features = _put(features, slots, found, total, encoder.name)
            store.add(slots, found)
            advance(len(slots))
    if features is None:
        raise ValueError("There are no observations to compute image features of.")
    return features.reshape(plan.n_obs, n_cells, -1) if request.is_grid else features


def warn_of(plan: Plan, encoder: Any, *, restricted: bool = False) -> None:
    """Warn of observations without image, of crops that were too small, and of coordinates that miss the tissue."""
    on_image = sum(int(section.inside.sum()) for section in plan.sections)
    asked = sum(len(section.rows) for section in plan.sections) if restricted else plan.n_obs
    if on_image < asked:
        warn(
            f"{asked - on_image} of {asked} observations have no image (their centre lies outside of it or is not known, or "
            "their section has none): their features are NaN."
        )
    small = [name for name, parts in plan.parts.items() if any(part.enlarged for part in parts)]
    if small:
        warn(
            f"Crops have fewer than {MIN_SIDE} pixels in {', '.join(small)}: {MIN_SIDE} pixels are used. Larger crops or "
            "a sharper image show more."
        )
    _warn_of_blur(plan, encoder)
    for section in plan.sections:
        _warn_of_background(section)


def _warn_of_blur(plan: Plan, encoder: Any) -> None:
    """A network that was trained on sharp tissue says little about a few pixels that were blown up."""
    if encoder.input_size is None:
        return
    sizes = {name: min(min(part.group.size) for part in parts) for name, parts in plan.parts.items()}
    blurred = [name for name, size in sizes.items() if size * _BLUR < encoder.input_size]
    if blurred:
        warn(
            f"Encoder {encoder.name!r} takes {encoder.input_size} pixels, and crops have {sizes[blurred[0]]} in section "
            f"{blurred[0]!r}{f' and {len(blurred) - 1} more' if blurred[1:] else ''}: it sees a blur. Give the image of full "
            "resolution with image=, or larger crops."
        )


def _warn_of_background(section: Section) -> None:
    """Coordinates with x and y exchanged, or of another image, mostly hit glass."""
    inside = section.inside
    if inside.sum() < _FEW or max(section.image.levels[-1].size) > _CHEAP:
        return
    tissue = find_tissue(section.image, _LOOK)
    share, swapped = tissue.at(section.centers).mean(), tissue.at(section.centers[:, ::-1]).mean()
    if share >= 0.5 or not tissue.mask.any():
        return
    mend = (
        f"with x and y exchanged it is {swapped:.0%}: give them the other way round (spatial_key=(x column, y column), "
        'or adata.obsm["spatial"][:, ::-1])'
        if swapped > share + 0.2
        else "check that coordinates and image belong together, and the scale factor"
    )
    warn(f"Only {share:.0%} of the observations of section {section.name!r} lie on tissue; {mend}.")


def _sides(section: Section, size: CropSize) -> tuple[float, float]:
    sides = size.sides(section)
    for side, there in zip(sides, section.image.size, strict=True):
        step = section.image.levels[0].downsample[0]
        if round(side / step) > max(round(there / step), MIN_SIDE):
            width, height = section.image.levels[0].size
            pixels = " x ".join(f"{s / d:.0f}" for s, d in zip(sides, section.image.levels[0].downsample, strict=True))
            raise ValueError(
                f"Crops have {pixels} pixels in section {section.name!r}, more than its image of {width} x {height} "
                "pixels has: use smaller ones (crop_um=, crop_px= or crop_scale=), or check the scale factors "
                "(spot_diameter_fullres, tissue_hires_scalef) or the transformation."
            )
    return sides


def _level_of(section: Section, scale: str | int) -> int | None:
    if scale == "auto":
        return None
    level = 0 if scale == "full" else int(scale)
    n = len(section.image.levels)
    if level >= n:
        raise ValueError(f"scale={scale!r}: the image of section {section.name!r} has {n} level(s), 0 to {n - 1}.")
    return level


def _describe(
    sections: list[Section], sides: dict[str, tuple[float, float]], parts: dict[str, list[Part]], request: Request
) -> dict[str, Any]:
    """Sizes and images of the sections, for the record."""
    default = request.size.um is None and request.size.px is None
    scale = next(
        (side[0] / s.spot / s.unit[0] for s, side in zip(sections, sides.values(), strict=True) if s.spot), None
    )
    seen = {}  # what crops show, which is more than was asked for where they had to be enlarged
    for s in sections:
        part = parts[s.name][0]
        least = part.group.size[0] * request.cells[0] * s.image.levels[part.level].downsample[0]
        seen[s.name] = round(max(sides[s.name][0], least) if part.enlarged else sides[s.name][0], 6)
    return {
        "crop_um": {s.name: round(seen[s.name] * s.mpp[0], 6) for s in sections if s.mpp is not None},
        "crop_px": seen,
        "crop_scale": round(scale, 6) if default and scale is not None else None,
        "crop_pixels": {name: part[0].group.size[0] for name, part in parts.items()},
        "mpp": {s.name: round(s.mpp[0], 6) for s in sections if s.mpp is not None},
        "level": {name: [part.level for part in all_] for name, all_ in parts.items()},
        "image": {s.name: s.image.kind for s in sections},
        "grid": request.cells,
    }


def _token(section: Section, parts: list[Part], record: Mapping[str, Any], encoder: str, n_obs: int) -> str:
    """Digest of all that decides the features of a section."""
    stain = record.get("stain", {})
    fits = [stain.get("target_fit"), stain.get("fits", {}).get(section.name)]
    start = f"{encoder} {n_obs} {section.name} {section.image.token} {section.image.color} {fits}"
    digest = hashlib.sha256(start.encode())
    for part in parts:
        digest.update(f"{part.level} {part.group.size}".encode())
        digest.update(np.ascontiguousarray(part.group.first).tobytes())
        digest.update(np.ascontiguousarray(part.slots).tobytes())
    return digest.hexdigest()


def _put(features: np.ndarray | None, slots: np.ndarray, found: np.ndarray, total: int, name: str) -> np.ndarray:
    if features is None:
        features = np.full((total, found.shape[1]), np.nan, dtype=np.float32)
    if found.shape[1] != features.shape[1]:
        raise ValueError(
            f"Encoder {name!r} gave {found.shape[1]} features for some crops and {features.shape[1]} for others: it must "
            "give the same number whatever their size."
        )
    features[slots] = found
    return features


def _extents(sections: list[Section]) -> list[str]:
    lines = []
    for section in sections:
        here = section.centers[np.isfinite(section.centers).all(axis=1)]
        width, height = section.image.size
        if len(here):
            (x0, y0), (x1, y1) = here.min(axis=0), here.max(axis=0)
            span = f"x {x0:.4g} to {x1:.4g}, y {y0:.4g} to {y1:.4g}"
        else:
            span = "no finite coordinates"
        lines.append(f"Section {section.name!r}: image of {width:.0f} x {height:.0f} full-resolution pixels, {span}.")
    return lines + ["Coordinates are x, then y, in pixels of the full image; check them and the scale factor."]
