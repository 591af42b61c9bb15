"""Images with the staining of a reference, beside the originals."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from anndata import AnnData

from stfuse import _read, _record
from stfuse._check import check_flag, check_target, check_text, did_you_mean
from stfuse._image._legacy import stored_images
from stfuse._image._pyramid import Pyramid
from stfuse._image._stain import check_method, section_transforms

if TYPE_CHECKING:
    from spatialdata import SpatialData

_MARK = "target_fit"  # an entry of every record of this function


def normalize_stain(
    data: AnnData | SpatialData,
    *,
    method: str = "macenko",
    target: Any = None,
    image: str | list[str] | None = None,
    table_key: str | None = None,
    key_added: str | None = None,
    copy: bool = False,
) -> AnnData | SpatialData | None:
    """Give the images of all sections the same staining.

    Hematoxylin and eosin differ in hue and strength from laboratory to laboratory and from day to day, and
    so do features of the images. Here each image is described by what is fitted to its tissue, and its pixels are
    mapped to the description of a target. The result lies beside the original.

    `"macenko"` separates the two stains: in optical density each is a direction and their amounts add up. Directions
    and 99th percentiles of the amounts become those of the target; what is neither stain is dropped.
    `"reinhard"` gives the colours of the tissue the means and standard deviations of the target, in a space
    where they are nearly independent. It needs no two stains.

    Parameters
    ----------
    data
        AnnData with images in `uns["spatial"]`, or SpatialData with image elements (bright-field; red, green and blue).
        Coordinates are not needed.
    method
        `"macenko"` or `"reinhard"`.
    target
        What staining to give:

        - None: a published reference, the same for every data set. Glass becomes white
        - the name of a section (in a SpatialData, of an image): the others become like it
        - an image: a path, or an array of height x width x colours
        - a fit: one of the dicts in the record of an earlier call
    image
        AnnData: key of the image in `uns["spatial"][section]["images"]`. None = `"hires"`, or else `"lowres"`.
        SpatialData: name of one image or a list of names. None = all but results of this function.
    table_key
        SpatialData: the table that gets the record. None = the only one, or `attrs` of the SpatialData where there
        are none or several.
    key_added
        What is appended to the names of the images, after an underscore. None = `method`. An earlier result
        under this name is replaced; an image that this function did not write is not.
    copy
        Whether to return a changed copy instead of changing `data`.

    Returns
    -------
    None, or the changed copy. With `key_added="macenko"` are written

    - AnnData: `uns["spatial"][section]["images"]["hires_macenko"]`, height x width x 3, uint8, and
      `scalefactors["tissue_hires_macenko_scalef"]`: for `stfuse.pp.image_features(image="hires_macenko")` and
      `squidpy.pl.spatial_scatter(img_res_key="hires_macenko")`
    - SpatialData: `images["<image>_macenko"]`, lazy, uint8, with the scales, transformations and channels of the
      image
    - `uns["stain_macenko"]`: `method`, `target`, the `target_fit`, and per section the `fits`: `"stains"` (2 x 3,
      hematoxylin and eosin in optical density of red, green, blue), `"maxima"` of their amounts, and the
      `"white"` of the glass; with `"reinhard"` `"means"` and `"sds"` of l, alpha and beta, and `"white"`

    Raises
    ------
    ValueError
        If the method is unknown, an image shows no tissue, is gray or (`"macenko"`) has one stain only, a fit is none of
        the method, or a name is that of something else.
    KeyError
        If there is no image, or the target is no section.
    TypeError
        If the data are no AnnData or SpatialData, or an argument is of the wrong type.
    FileNotFoundError
        If the file of the target does not exist.

    Notes
    -----
    Fits use tissue alone, found by Otsu's threshold, and up to 200,000 of its pixels at the sharpest resolution.
    Optical density is measured against the glass of each image: the median of what is bright and no tissue, and 240
    where an image is full of tissue. Glass therefore becomes the glass of the target, whatever its tint. Fits of images
    of very different resolution differ a little, as large pixels mix stains. What is no tissue (a black frame, printed
    marks, bubbles) is mapped like tissue and may change its colour.

    `"macenko"` follows Macenko et al. (2009) as published by Veta (natural logarithm, optical densities from 0.15, 1st
    and 99th percentile of the angle), and its reference is that of this implementation. `"reinhard"` follows Reinhard et
    al. (2001) on tissue pixels; its reference is a breast carcinoma of TCGA (Amgad et al. 2019), the one HistomicsTK
    uses. Between glass and tissue (mean optical density of 0.03 to 0.15) it changes smoothly, so that no edge arises.

    Examples
    --------
    >>> import stfuse
    >>> adata = stfuse.datasets.mob()
    >>> stfuse.pp.normalize_stain(adata, target="MOB1")
    >>> list(adata.uns["spatial"]["MOB2"]["images"])
    ['hires', 'hires_macenko']
    >>> adata.uns["stain_macenko"]["fits"]["MOB2"]["stains"].round(1).tolist()
    [[0.8, 0.6, 0.3], [0.5, 0.7, 0.4]]
    """
    check_flag("copy", copy)
    check_method(method)
    check_text("key_added", key_added, optional=True)
    check_text("table_key", table_key, optional=True)
    key = method if key_added is None else key_added
    whole: Any = data
    if _read.is_spatialdata(whole) and len(whole.images):
        return _in_elements(whole, method, target, image, table_key, key, copy)
    if not isinstance(data, AnnData) and not _read.is_spatialdata(data):
        mend = ': pass the modality, for example mdata["image"]' if _read.is_mudata(data) else ""
        raise TypeError(f"normalize_stain takes AnnData or SpatialData, not {type(data).__name__}{mend}.")
    return _in_table(data, method, target, image, table_key, key, copy)


class _Picture(NamedTuple):
    name: str
    image: Pyramid


def _in_table(data: Any, method: str, target: Any, image: Any, table_key: str | None, key: str, copy: bool) -> Any:
    """Normalise images in ``uns["spatial"]``."""
    table: Any = _read.container(data, table_key)
    check_text("image", image, optional=True)
    pictures = _stored_images(table, image)
    record_key = f"stain_{key}"
    check_target(table, "key_added", record_key, slots=("uns",), mark=_MARK, inputs={})
    kinds = {picture.name: picture.image.kind for picture in pictures}
    made = {name: f"{kind}_{key}" for name, kind in kinds.items()}
    own = _written(table.uns.get(record_key))
    for name, new in made.items():
        _refuse(new, table.uns["spatial"][name]["images"], own, f"uns['spatial'][{name!r}]['images']")
    transforms, record = section_transforms(pictures, method, target)
    pixels = {name: transforms[name](picture.read(0)) for name, picture in pictures}
    record |= {"image": kinds, "written": sorted(own | set(made.values()))}

    changed: Any = _record.copy_of(data, table_key) if copy else data
    spatial = dict(_read.container(changed, table_key).uns["spatial"])
    for name, new in made.items():
        entry = spatial[name]
        factors = dict(entry["scalefactors"])
        factors[f"tissue_{new}_scalef"] = factors[f"tissue_{kinds[name]}_scalef"]
        spatial[name] = {**entry, "images": {**entry["images"], new: pixels[name]}, "scalefactors": factors}
    _read.container(changed, table_key).uns["spatial"] = spatial
    _record.write(changed, uns={record_key: record}, table_key=table_key)
    return changed if copy else None


def _stored_images(table: AnnData, kind: str | None) -> list[_Picture]:
    stored = stored_images(table, kind)
    if not stored:
        there = _read.listing(table.uns)
        raise KeyError(
            f"uns['spatial'] has no image. uns has: {there}. squidpy.read.visium(path) loads a section with its image."
        )
    return [_Picture(name, image) for name, image in stored.items()]


def _in_elements(sdata: Any, method: str, target: Any, image: Any, table_key: str | None, key: str, copy: bool) -> Any:
    """Normalise image elements."""
    from stfuse._image._elements import element_pyramid
    from stfuse._image._stain_elements import recolored

    has_table = table_key is not None or len(sdata.tables) == 1
    table: Any = _read.container(sdata, table_key) if has_table else None
    records = sdata.attrs if table is None else table.uns
    record_key = f"stain_{key}"
    if table is not None:
        check_target(table, "key_added", record_key, slots=("uns",), mark=_MARK, inputs={})
    elif record_key in sdata.attrs and not _written(sdata.attrs[record_key]):
        raise ValueError(f"key_added={key!r} would overwrite attrs[{record_key!r}]: choose another name.")
    own = _written(records.get(record_key))
    names = _names(sdata, image, {name for record in records.values() for name in _written(record)})
    made = {name: f"{name}_{key}" for name in names}
    for new in made.values():
        _refuse(new, {name for _, name, _ in sdata.gen_elements()}, own, "The SpatialData")
    pictures = [_Picture(name, element_pyramid(sdata, name)) for name in names]
    if isinstance(target, str) and target in sdata.images and target not in names:
        target = element_pyramid(sdata, target)
    transforms, record = section_transforms(pictures, method, target)
    elements = {made[n]: recolored(sdata.images[n], picture.color, transforms[n]) for n, picture in pictures}
    record |= {"written": sorted(own | set(made.values()))}

    changed = _copy(sdata, table_key, table) if copy else sdata
    for name, element in elements.items():
        if name in changed.images:
            del changed.images[name]
        changed.images[name] = element
    if table is None:
        changed.attrs = {**changed.attrs, record_key: _plain(record)}
    else:
        _record.write(changed, uns={record_key: record}, table_key=table_key)
    return changed if copy else None


def _copy(sdata: Any, table_key: str | None, table: AnnData | None) -> Any:
    if table is not None:
        return _record.copy_of(sdata, table_key)
    elements = {name: element for _, name, element in sdata.gen_elements()}
    return type(sdata).init_from_elements(elements, attrs=dict(sdata.attrs))


def _names(sdata: Any, image: Any, results: set[str]) -> list[str]:
    """Names of the images to normalise."""
    if image is None:
        names = [name for name in sdata.images if name not in results]
        if not names:
            raise KeyError("The SpatialData has no images but results of this function: name one with image=.")
        return names
    names = [image] if isinstance(image, str) else image
    if not isinstance(names, list | tuple) or not names or not all(isinstance(name, str) for name in names):
        raise TypeError(f"image must be the name of an image, a list of names or None, got {image!r}.")
    for name in names:
        if name not in sdata.images:
            raise KeyError(
                f"No image {name!r} in the SpatialData.{did_you_mean(name, sdata.images)} Images there: "
                f"{_read.listing(sdata.images)}."
            )
    return list(dict.fromkeys(names))


def _written(record: Any) -> set[str]:
    """Names of the images that a record says were written by this function."""
    if not isinstance(record, Mapping) or _MARK not in record:
        return set()
    return set(map(str, record.get("written", ())))


def _refuse(name: str, there: Iterable[str], own: set[str], where: str) -> None:
    if name in there and name not in own:
        raise ValueError(
            f"{where} has {name!r} already, which this function did not write: choose another name with key_added=, or "
            "delete it first."
        )


def _plain(value: Any) -> Any:
    """Turn arrays into lists: the attributes of a SpatialData are stored as JSON."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    return value.tolist() if isinstance(value, np.ndarray) else value
