"""Images of tiles: cut section by section, resampled to one size, as PNG and back."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from stfuse._image._bands import Group, read_crops
from stfuse._image._color import ColorFormat, check_shape, color_format
from stfuse._image._crops import first_pixels
from stfuse._image._section import Section

_AT_ONCE = 64  # tiles

type Images = tuple[np.ndarray, list[bytes | None]]  # rows of the table and their PNGs


def cut(sections: Sequence[Section], rows: np.ndarray, pixels: int) -> Iterator[Images]:
    """Cut the images of some tiles, in the order in which they lie in the files; None of those that have none."""
    left = np.asarray(rows)
    for section in sections:
        here = np.flatnonzero(section.inside & np.isin(section.rows, rows))
        if not len(here):
            continue
        left = np.setdiff1d(left, section.rows[here], assume_unique=True)
        side = _side(section)
        level = _level(section, side, pixels)
        step = np.asarray(section.image.levels[level].downsample)
        size = tuple(max(1, round(float(n))) for n in side / step)
        group = Group(first_pixels(section.centers[here] / step, (size[0], size[1])), (size[0], size[1]))
        for _, which, crops in read_crops(section.image, level, [group], [_AT_ONCE]):
            yield section.rows[here[which]], [to_png(crop, pixels) for crop in crops]
    for start in range(0, len(left), _AT_ONCE):
        part = left[start : start + _AT_ONCE]
        yield part, [None] * len(part)


class Stored(NamedTuple):
    """Images that are there already, and how their values become colours."""

    pixels: np.ndarray  # n x h x w x channels
    form: ColorFormat


def as_stored(images: np.ndarray, name: str) -> Stored:
    """Read images that are there already; all of them together tell of what depth they are."""
    check_shape(images.shape[1:], f"{name} of a tile")
    return Stored(images, color_format(images.reshape(-1, *images.shape[2:]), name))


def stored(images: Stored, rows: np.ndarray, pixels: int) -> Iterator[Images]:
    """Take images that are there already."""
    for start in range(0, len(rows), _AT_ONCE):
        part = rows[start : start + _AT_ONCE]
        yield part, [to_png(images.form.to_rgb(image), pixels) for image in images.pixels[part]]


def _side(section: Section) -> np.ndarray:
    if section.spot is None:
        raise ValueError(
            f"The tiles of section {section.name!r} are no squares of one size, so their images have no common one: write "
            "them without, images=False, or lay a grid with stfuse.pp.tessellate."
        )
    return section.spot * np.asarray(section.unit)


def _level(section: Section, side: np.ndarray, pixels: int) -> int:
    """Find the coarsest level that is still as sharp as what is written."""
    enough = [i for i, level in enumerate(section.image.levels) if (side / level.downsample >= pixels * 0.999).all()]
    return enough[-1] if enough else 0


def to_png(image: np.ndarray, pixels: int) -> bytes:
    """Resample a h x w x 3 image with antialiasing and compress it without loss."""
    from PIL import Image

    picture = Image.fromarray(image)
    if picture.size != (pixels, pixels):
        picture = picture.resize((pixels, pixels), Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG")
    return buffer.getvalue()


def read_images(batches: Iterator[list[bytes | None]], places: np.ndarray) -> np.ndarray:
    """Read images of one size to their places in n x side x side x 3 of uint8; black where there is none."""
    out: np.ndarray | None = None
    start = 0
    for batch in batches:
        for place, value in zip(places[start : start + len(batch)], batch, strict=True):
            if value is None:
                continue
            image = _from_bytes(value)
            out = np.zeros((len(places), *image.shape), dtype=np.uint8) if out is None else out
            if image.shape != out.shape[1:]:
                sizes = " and ".join(f"{shape[1]} x {shape[0]}" for shape in (out.shape[1:], image.shape))
                raise ValueError(
                    f"The images have several sizes (for example {sizes}), so they make no array: read the data set without "
                    "images=True."
                )
            out[place] = image
        start += len(batch)
    return np.zeros((len(places), 0, 0, 3), dtype=np.uint8) if out is None else out


def _from_bytes(value: bytes) -> np.ndarray:
    """Read a PNG, JPEG or another image file as h x w x 3 of uint8."""
    from PIL import Image

    try:
        with Image.open(io.BytesIO(value)) as picture:
            return np.asarray(picture.convert("RGB"))
    except (OSError, SyntaxError, ValueError) as error:
        raise ValueError(f"An image of the data set is damaged: {error}.") from error
