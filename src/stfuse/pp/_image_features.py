"""Features of the image around each observation."""

from typing import TYPE_CHECKING, Any

import numpy as np
from anndata import AnnData

from stfuse import _keys, _read, _record
from stfuse._check import check_flag, check_number, check_target, check_text, did_you_mean
from stfuse._log import warn
from stfuse._progress import progress as progress_bar
from stfuse.pp._crops import LibraryImage, gather_crops, library_image
from stfuse.pp._encoders import Encoder, get_encoder

if TYPE_CHECKING:
    from spatialdata import SpatialData
    from torch import nn

_MIN_SIDE = 4  # pixels; below, a crop holds no texture
_PIXELS = 1_000_000  # of crops encoded at once: small enough for the processor's cache, large enough for speed


def image_features(
    data: "AnnData | SpatialData",
    encoder: "str | Encoder | nn.Module" = "texture",
    *,
    library_key: str | None = None,
    spatial_key: str = _keys.SPATIAL,
    table_key: str | None = None,
    key_added: str = _keys.IMAGE,
    crop_scale: float = 3.0,
    batch_size: int | None = None,
    progress: bool | None = None,
    copy: bool = False,
) -> "AnnData | SpatialData | None":
    """Describe the tissue image around each observation: the image view.

    A square crop is cut around each observation and an encoder turns it into numbers. The size of the
    crop is physical, so many spot diameters, and therefore the same tissue area in sections that were
    photographed at different resolutions. The default encoder, `"texture"`, needs no weights and no
    network: 95 statistics of haematoxylin, eosin and optical density and of their texture at three
    scales, each with a name (see `uns`).

    Features are not standardised, and differences in staining between sections stay in them.

    Parameters
    ----------
    data
        AnnData with `uns["spatial"]` as squidpy and spatialdata-io write it: per section `images`
        (`"hires"`, or else `"lowres"`; gray, RGB or RGBA; uint8, or floats in [0, 1]) and `scalefactors`
        (`tissue_hires_scalef` or `tissue_lowres_scalef`, and `spot_diameter_fullres`). Of a SpatialData the
        table is taken, which must have `uns["spatial"]`: images kept as elements are not read yet.
    encoder
        `"texture"`; or an object with `name`, `n_features` and a call that turns crops (b x h x w x 3,
        uint8) into features (b x n_features, float32); or a `torch.nn.Module`, which gets b x 3 x h x w
        floats in [0, 1] and must resize and normalise as it needs.
    library_key
        Column of `obs` that names the section, hence the image, of each observation. None = found when one
        column fits `uns["spatial"]`.
    spatial_key
        Key of the coordinates in `obsm`: x and y in pixels of the full image.
    table_key
        SpatialData: which table.
    key_added
        Key of the result in `obsm` and of its record in `uns`. An earlier result under this name is replaced; what
        else there is under a name of your own is not.
    crop_scale
        Side of a crop in spot diameters. 3 includes the nearest surroundings of a Visium spot (165 µm).
        Crops have at least 4 pixels, and no more than the image.
    batch_size
        Number of crops that are encoded at once. None = as many as have a million pixels together.
    progress
        Whether to show a progress bar. None = where a person looks on and it takes more than 2 seconds.
    copy
        Whether to return a changed copy instead of changing `data`.

    Returns
    -------
    None, or the changed copy. Written are

    - `obsm[key_added]`: n x n_features, float32. A row of NaN = no image there: the centre lies outside of
      the image, the coordinates are missing, or the section has no image
    - `uns[key_added]`: encoder, `crop_scale`, per section the side of the crops in pixels and the image
      that was used, and the names of the features where the encoder tells them

    Raises
    ------
    KeyError
        If there is no image, no coordinates, or a scale factor is missing.
    ValueError
        If the encoder's name is unknown, a section's observations can't be told apart, the sections' names
        and the images' don't match, all observations lie outside of their images, crops are larger than an image,
        `key_added` is the name of something else, or a number is out of range.
    TypeError
        If the encoder is no encoder, the data no AnnData or SpatialData, or an argument of the wrong type.

    Warns
    -----
    UserWarning
        If some observations have no image, with their number, or if crops had to be enlarged to 4 pixels.

    Notes
    -----
    Beyond its border the image is mirrored, so that all crops have the same shape. Crops are cut at the
    image's own resolution by one vectorised look-up for each batch. Stains are separated as by Ruifrok and Johnston
    (2001), local binary patterns are those of Ojala et al. (2002).

    Examples
    --------
    >>> import stfuse
    >>> adata = stfuse.datasets.mob()
    >>> adata = adata[adata.obs["section"] == "MOB1"].copy()
    >>> stfuse.pp.image_features(adata)
    >>> adata.obsm["X_image"].shape
    (379, 95)
    >>> [str(name) for name in adata.uns["X_image"]["feature_names"][:2]]
    ['hematoxylin_mean', 'hematoxylin_sd']
    """
    check_flag("copy", copy)
    table = _table(data, table_key)
    inputs, slots = {"spatial_key": spatial_key}, ("obsm", "uns")
    check_target(table, "key_added", key_added, slots=slots, mark="crop_scale", inputs=inputs, default=_keys.IMAGE)
    features, record = _compute(table, encoder, library_key, spatial_key, crop_scale, batch_size, progress)
    target: Any = _record.copy_of(data, table_key) if copy else data
    _record.write(target, obsm={key_added: features}, uns={key_added: record}, table_key=table_key)
    return target if copy else None


def compute_image_features(
    adata: AnnData,
    encoder: Any = "texture",
    *,
    library_key: str | None = None,
    spatial_key: str = _keys.SPATIAL,
    crop_scale: float = 3.0,
    batch_size: int | None = None,
    progress: bool | None = None,
) -> np.ndarray:
    """Compute what `image_features` writes into `obsm` and change nothing."""
    return _compute(adata, encoder, library_key, spatial_key, crop_scale, batch_size, progress)[0]


def _table(data: Any, table_key: str | None) -> AnnData:
    if _read.is_mudata(data):
        raise TypeError('image_features takes AnnData or SpatialData: pass the modality, for example mdata["image"].')
    table: Any = _read.container(data, table_key)
    if not isinstance(table, AnnData):
        raise TypeError(f"image_features takes AnnData or SpatialData, not {type(data).__name__}.")
    spatial = table.uns.get("spatial")
    if not isinstance(spatial, dict) or not spatial:
        mend = (
            "Images kept as SpatialData elements are read by a later release: for now put image and scale factors "
            "into the table's uns['spatial'] (spatialdata_io.experimental.to_legacy_anndata)."
            if _read.is_spatialdata(data)
            else "squidpy.read.visium(path) loads a section together with its image."
        )
        raise KeyError(f"uns['spatial'] has no image. uns has: {', '.join(map(str, table.uns)) or 'nothing'}. {mend}")
    return table


def _compute(
    adata: AnnData,
    encoder: Any,
    library_key: str | None,
    spatial_key: str,
    crop_scale: float,
    batch_size: int | None,
    progress: bool | None,
) -> tuple[np.ndarray, dict[str, Any]]:
    encode = get_encoder(encoder)
    check_number("crop_scale", crop_scale, above=0)
    check_number("batch_size", batch_size, least=1, whole=True, optional=True)
    check_flag("progress", progress, optional=True)
    check_text("spatial_key", spatial_key)
    coordinates = _read.read_coordinates(adata, spatial_key)
    if coordinates is None:
        there = f"{did_you_mean(spatial_key, adata.obsm)} There is: {', '.join(adata.obsm) or 'nothing'}."
        raise KeyError(f"No obsm[{spatial_key!r}].{there} Name it: spatial_key=.")

    images, rows = _assign(adata, library_key)
    centers, inside = _locate(coordinates, images, rows)
    sides = _sides(images, crop_scale)
    batches = []
    for name in images:
        here = rows[name][inside[rows[name]]]
        step = batch_size or max(1, _PIXELS // sides[name] ** 2)
        batches += [(name, here[start : start + step]) for start in range(0, len(here), step)]

    features: np.ndarray | None = None
    for name, batch in progress_bar(batches, total=len(batches), desc="image features", show=progress):
        encoded = _checked(encode(gather_crops(images[name].pixels, centers[batch], sides[name])), encode, len(batch))
        if features is None:
            features = np.full((adata.n_obs, encoded.shape[1]), np.nan, dtype=np.float32)
        if encoded.shape[1] != features.shape[1]:
            raise ValueError(
                f"Encoder {encode.name!r} gave {encoded.shape[1]} features for section {name!r} and "
                f"{features.shape[1]} before: it must give the same number whatever the crop size ({sides})."
            )
        features[batch] = encoded
    if features is None:
        raise ValueError("There are no observations to compute image features of.")
    _warn(int((~inside).sum()), adata.n_obs, images, sides, crop_scale)
    record: dict[str, Any] = {
        "encoder": str(encode.name),
        "crop_scale": float(crop_scale),
        "crop_pixels": {name: sides[name] for name in images},
        "image": {name: image.kind for name, image in images.items()},
    }
    names = getattr(encode, "feature_names", None)
    if names is not None:
        record["feature_names"] = np.asarray(names, dtype=object)
    return features, record


def _assign(adata: AnnData, library_key: str | None) -> tuple[dict[str, LibraryImage], dict[str, np.ndarray]]:
    """Read the image of each section that has one, and the rows of the observations that lie on it."""
    spatial = {str(name): entry for name, entry in adata.uns["spatial"].items()}
    section, names = _read.read_sections(adata, library_key)
    with_image = [name for name in names if name in spatial]
    if not with_image:
        where = "" if library_key is None else f" in obs[{library_key!r}]"
        raise ValueError(
            f"None of the sections{where} ({', '.join(names)}) has an image in uns['spatial'] "
            f"({', '.join(spatial)}): rename one or the other, or name another column with library_key=."
        )
    images = {name: library_image(spatial, name) for name in with_image}
    return images, {name: np.flatnonzero(section == names.index(name)) for name in with_image}


def _sides(images: dict[str, LibraryImage], crop_scale: float) -> dict[str, int]:
    """Sides of the crops in pixels of each image."""
    sides = {name: max(_MIN_SIDE, round(crop_scale * i.spot_diameter * i.scale)) for name, i in images.items()}
    for name, image in images.items():
        height, width = image.pixels.shape[:2]
        if sides[name] > max(min(height, width), _MIN_SIDE):
            raise ValueError(
                f"crop_scale={crop_scale!r} makes crops of {sides[name]} x {sides[name]} pixels in section {name!r}, "
                f"more than its image of {width} x {height} pixels has: use a smaller one, or check "
                f"uns['spatial'][{name!r}]['scalefactors'] (spot_diameter_fullres, tissue_{image.kind}_scalef)."
            )
    return sides


def _locate(
    coordinates: np.ndarray, images: dict[str, LibraryImage], rows: dict[str, np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """Scale coordinates to image pixels (x, y) and tell which observations lie on their image."""
    centers = np.full(coordinates.shape, np.nan)
    inside = np.zeros(len(coordinates), dtype=bool)
    for name, image in images.items():
        here = coordinates[rows[name]] * image.scale
        centers[rows[name]] = here
        height, width = image.pixels.shape[:2]
        inside[rows[name]] = ((here >= 0) & (here < (width, height))).all(axis=1)
    if len(coordinates) and not inside.any():
        raise ValueError("No observation lies on its image. " + " ".join(_extents(centers, images, rows)))
    return centers, inside


def _extents(centers: np.ndarray, images: dict[str, LibraryImage], rows: dict[str, np.ndarray]) -> list[str]:
    lines = []
    for name, image in images.items():
        here = centers[rows[name]]
        here = here[np.isfinite(here).all(axis=1)]
        height, width = image.pixels.shape[:2]
        if len(here):
            (x0, y0), (x1, y1) = here.min(axis=0), here.max(axis=0)
            span = f"x {x0:.4g} to {x1:.4g}, y {y0:.4g} to {y1:.4g} after scaling by {image.scale:.4g}"
        else:
            span = "no finite coordinates"
        lines.append(f"Section {name!r}: image of {width} x {height} pixels (width x height), {span}.")
    return lines + ["Coordinates are x, then y, in pixels of the full image; check them and the scale factor."]


def _checked(encoded: Any, encode: Any, n: int) -> np.ndarray:
    encoded = np.asarray(encoded)
    if encoded.ndim != 2 or len(encoded) != n:
        raise ValueError(
            f"Encoder {encode.name!r} must give one row of features for each of the {n} crops, but its result has the "
            f"shape {encoded.shape}."
        )
    if not np.isfinite(encoded).all():
        raise ValueError(f"Encoder {encode.name!r} gave values that are not finite.")
    return encoded


def _warn(n_missing: int, n: int, images: dict[str, LibraryImage], sides: dict[str, int], crop_scale: float) -> None:
    if n_missing:
        warn(
            f"{n_missing} of {n} observations have no image (their centre lies outside of it, or their section has "
            "none): their features are NaN."
        )
    small = [name for name, i in images.items() if round(crop_scale * i.spot_diameter * i.scale) < _MIN_SIDE]
    if small:
        warn(
            f"Crops of {crop_scale:g} spot diameters have fewer than {_MIN_SIDE} pixels in {', '.join(small)}: "
            f"{_MIN_SIDE} pixels are used. A larger crop_scale or a sharper image shows more."
        )
