"""Features of the image around each observation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from os import PathLike
from typing import TYPE_CHECKING, Any

import numpy as np
from anndata import AnnData

from stfuse import _keys, _read, _record
from stfuse._check import check_flag, check_target
from stfuse._image._crop_size import CropSize
from stfuse._image._elements import annotating_table, table_name
from stfuse._image._section import Choice
from stfuse.pp._earlier import earlier_features
from stfuse.pp._encode import EncoderCall
from stfuse.pp._feature_job import Request, make_plan, run_plan, warn_of

if TYPE_CHECKING:
    from spatialdata import SpatialData
    from torch import nn


def image_features(
    data: AnnData | SpatialData,
    encoder: str | nn.Module | Callable[..., Any] = "texture",
    *,
    crop_um: float | None = None,
    crop_px: float | None = None,
    crop_scale: float | None = None,
    image: Any = None,
    shapes: str | None = None,
    table_key: str | None = None,
    library_key: str | None = None,
    spatial_key: str | Sequence[str] = _keys.SPATIAL,
    coordinate_system: str | None = None,
    mpp: float | Mapping[str, float] | None = None,
    scale: str | int = "auto",
    grid: int | Sequence[int] = 1,
    stain: str | None = None,
    stain_target: Any = None,
    checkpoint: str | PathLike[str] | None = None,
    allow_pickle: bool = False,
    batch_size: int | None = None,
    device: str = "auto",
    key_added: str | None = None,
    overwrite: bool = False,
    store: str | PathLike[str] | None = None,
    progress: bool | None = None,
    copy: bool = False,
) -> AnnData | SpatialData | None:
    """Describe the tissue image around each observation: the image view.

    A square crop is cut around each observation and an encoder turns it into numbers. The size of the crop is
    physical (microns, or spot diameters), and therefore shows the same tissue area in sections that were photographed
    at different resolutions. Images may be stored in the object, lie in a file or be elements of a SpatialData; they
    need not fit memory.

    The default encoder, `"texture"`, needs no weights and no network: 95 statistics of haematoxylin, eosin and
    optical density and of their texture at three scales, each with a name (see `uns`). The pathology models by their
    usual names are in the table :func:`stfuse.pp.encoders`.

    Features are not standardised, and differences in staining between sections stay in them unless `stain` is set.

    Parameters
    ----------
    data
        AnnData with `uns["spatial"]` as squidpy and spatialdata-io write it: per section `images`
        (`"hires"`, or else `"lowres"`; gray, RGB or RGBA; uint8, 16 bits, or floats in [0, 1]) and `scalefactors`
        (`tissue_hires_scalef` or `tissue_lowres_scalef`, and `spot_diameter_fullres`); or with an `image` file. Or a
        SpatialData with image elements and a table that annotates spots, cells, tiles or labels; one whose table
        has `uns["spatial"]` and that has no image elements is read as the AnnData is.
    encoder
        A name of :func:`stfuse.pp.encoders`, any model name of timm, a `torch.nn.Module` or a function. The last two
        get a float tensor of b x 3 x h x w, RGB in [0, 1], and return b x d; crops have the image's resolution, or
        the side `encoder.input_size` if there is such an attribute.
    crop_um
        Side of a crop in microns.
    crop_px
        Side of a crop in pixels of the full-resolution image.
    crop_scale
        Side of a crop in spot diameters. Where no size is given it is 3, a Visium spot and its nearest
        surroundings, and 1 for tiles. Crops have at least 4 pixels, and no more than the image.
    image
        AnnData: key of the stored image (`"hires"`); or a file of full resolution, whose pixels the coordinates count
        (PNG, JPEG, TIFF, OME-TIFF, SVS), or an array of height x width x colours; or these by section. SpatialData: name
        of the image element, or names by annotated element. None = hires, else lowres; the image that shares a
        coordinate system with the observations.
    shapes
        SpatialData: which annotated element (spots, cells, tiles or labels); observations of others keep the features of
        this encoder that they have. None = all that the table annotates.
    table_key
        SpatialData: which table.
    library_key
        AnnData: column of `obs` that names the section, hence the image, of each observation. None = found when one
        column fits `uns["spatial"]`.
    spatial_key
        AnnData: key of the coordinates in `obsm`, x and y in pixels of the full image; or the names of two columns of
        `obs`, x first.
    coordinate_system
        SpatialData: the one in which observations and image are brought together. None = one that they share.
    mpp
        Microns per full-resolution pixel, for all sections or by section. None = as the scale factors
        (`microns_per_pixel`), the file, or a coordinate system called "microns" say, or from the 100 µm between
        the spots of Visium, told by their hexagonal lattice.
    scale
        Level of a pyramid: `"auto"` = the one on which a crop has most nearly the size that the encoder takes,
        `"full"` = the sharpest, or its number.
    grid
        Cells a side into which each crop is cut, every cell being encoded alone. A list gives several scales at once:
        `[1, 2, 4]` are SIGMMA's macro, meso and micro environments, 1 + 4 + 16 cells, row by row.
    stain
        Normalise the staining of crops before they are encoded: `"macenko"` or `"reinhard"`, fitted for each section;
        see :func:`stfuse.pp.normalize_stain`.
    stain_target
        What staining to normalise to, as `target` of :func:`stfuse.pp.normalize_stain`.
    checkpoint
        Local file with the weights of a named encoder, instead of those of the hub: safetensors, or with
        `allow_pickle` a pickle of tensors.
    allow_pickle
        Whether `checkpoint` may be a pickle.
    batch_size
        Number of crops that are encoded at once. None = as many as have a million pixels together, or as the
        encoder likes.
    device
        Where networks run: `"auto"` (a GPU where there is one), `"cpu"`, `"cuda"`, `"cuda:1"`, `"mps"`.
    key_added
        Key of the result in `obsm` and of its record in `uns`. None = `"X_image"`, or `"X_image_grid"` with a `grid`. An
        earlier result under this name is replaced; what else there is under a name of your own is not.
    overwrite
        Whether to compute features again that are there already, section by section, of the same encoder, image, places
        and sizes. Those of your own modules and functions always are. Of images that are read piece by piece a regular set of
        pixels is compared, of files their date.
    store
        Folder in which finished features of a named encoder are kept twice a minute. The same call after an
        interruption, in this or another process, goes on from there. Delete it when the result is saved.
    progress
        Whether to show a progress bar. None = where a person looks on and it takes more than 2 seconds.
    copy
        Whether to return a changed copy instead of changing `data`.

    Returns
    -------
    None, or the changed copy. Written are

    - `obsm[key_added]`: n x d, float32; with a `grid` n x cells x d. A row of NaN = no image there: the centre lies
      outside of the image, the coordinates are missing, or the section has no image
    - `uns[key_added]`: encoder and where its weights come from; per section the side of the crops in microns
      (`crop_um`), in full-resolution pixels (`crop_px`) and in pixels of the level (`crop_pixels`), microns per
      full-resolution pixel (`mpp`), the level and the image that were used; the stain fits; and the names of the features
      where the encoder tells them

    Raises
    ------
    KeyError
        If there is no image, no coordinates, a scale factor is missing, or a name is none of the object.
    ValueError
        If the encoder's name is unknown, a section's observations can't be told apart, the sections' names
        and the images' don't match, all observations lie outside of their images, crops are larger than an image or
        their size can't be known, the image shows no three colours or is damaged, `key_added` is the name of something
        else, or a number is out of range.
    TypeError
        If the encoder is no encoder, the data no AnnData or SpatialData, or an argument of the wrong type.
    FileNotFoundError
        If a file is not there.

    Warns
    -----
    UserWarning
        If some observations have no image, with their number, if crops had to be enlarged to 4 pixels or have less than a
        quarter of the pixels that the encoder takes, or if most observations of a section lie on the background.

    Notes
    -----
    Crops are squares along the axes of the image, of the size that the affine map between observations and image
    gives them there; pixels are never turned or resampled before the encoder's own resize. Beyond its border the
    image is mirrored, so that all crops have the same shape. The chunks of a lazy image are visited once, in order,
    and read in the background while crops are encoded. Where a `dask.distributed` client is connected its workers do
    all of it.

    References: CAMEO and SIGMMA (tile sizes, scales); Ruifrok and Johnston (2001) and Ojala et al. (2002) for the
    stains and patterns of `"texture"`.

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

    Crops of 400 µm, in one and in four cells:

    >>> stfuse.pp.image_features(adata, crop_um=400, grid=[1, 2])
    >>> adata.obsm["X_image_grid"].shape
    (379, 5, 95)
    """
    check_flag("copy", copy)
    check_flag("overwrite", overwrite)
    request = Request(
        call=EncoderCall(encoder, checkpoint, allow_pickle, device),
        choice=Choice(image, library_key, spatial_key, table_key, shapes, coordinate_system, mpp),
        size=CropSize(crop_um, crop_px, crop_scale),
        scale=scale,
        grid=grid,
        stain=stain,
        stain_target=stain_target,
        batch_size=batch_size,
        store=store,
        overwrite=overwrite,
        progress=progress,
    )
    request.check()
    table, table_key = _table(data, request.choice)
    key = request.key if key_added is None else key_added
    inputs = {"spatial_key": spatial_key if isinstance(spatial_key, str) else None}
    check_target(table, "key_added", key, slots=("obsm", "uns"), mark="crop_pixels", inputs=inputs, default=request.key)
    if copy:
        _record.check_copy(data)
    features, record = _compute(data, table, request, key)
    target: Any = _record.copy_of(data, table_key) if copy else data
    _record.write(target, obsm={key: features}, uns={key: record}, table_key=table_key)
    return target if copy else None


def compute_image_features(data: Any, table: AnnData, *, library_key: str | None, table_key: str | None) -> np.ndarray:
    """Compute what `image_features` writes into `obsm` by default, and change nothing."""
    request = Request(choice=Choice(library_key=library_key, table_key=table_key))
    encoder = request.call.make()
    plan = make_plan(data, table.n_obs, request, encoder)
    warn_of(plan, encoder)
    return run_plan(plan, request, encoder)


def _table(data: Any, choice: Choice) -> tuple[AnnData, str | None]:
    """Find the AnnData that results go into, and in a SpatialData its name."""
    if _read.is_mudata(data):
        raise TypeError('image_features takes AnnData or SpatialData: pass the modality, for example mdata["image"].')
    if not _read.is_spatialdata(data):
        table: Any = _read.container(data)
        return table, None
    table = annotating_table(data, choice)
    return table, table_name(data, table)


def _compute(data: Any, table: AnnData, request: Request, key: str) -> tuple[np.ndarray, dict[str, Any]]:
    """Compute features and their record, as far as they are not there under ``key``."""
    encoder = request.call.make()
    plan = make_plan(data, table.n_obs, request, encoder)
    warn_of(plan, encoder, restricted=request.choice.shapes is not None)
    earlier, kept, record = earlier_features(table, key, plan, request)
    if earlier is not None and kept.issuperset(plan.works):
        return earlier, record
    return run_plan(plan, request, encoder, earlier, kept), record
