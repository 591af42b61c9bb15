import pickle

import numpy as np
import pytest
import tifffile
from PIL import Image

from stfuse._image._files import open_image


@pytest.fixture
def pixels():
    y, x = np.mgrid[:700, :900]
    return np.stack([x % 256, y % 256, (x + y) % 256], axis=-1).astype(np.uint8)


def test_png_and_jpeg(tmp_path, pixels):
    Image.fromarray(pixels).save(tmp_path / "a.png")
    image = open_image(tmp_path / "a.png")
    np.testing.assert_array_equal(image.read(0), pixels)
    assert image.size == (900, 700) and image.kind == "a.png" and image.mpp is None
    Image.fromarray(pixels).save(tmp_path / "a.JPG", quality=95)
    assert np.abs(open_image(str(tmp_path / "a.JPG")).read(0).astype(int) - pixels).mean() < 8


@pytest.mark.parametrize("mode", ["L", "P", "LA", "RGBA", "CMYK", "I;16"])
def test_modes_of_png(tmp_path, pixels, mode):
    suffix = ".jpg" if mode == "CMYK" else ".png"
    if mode == "I;16":
        Image.fromarray(pixels[..., 0].astype(np.uint16) * 257).save(tmp_path / f"a{suffix}")
    else:
        Image.fromarray(pixels).convert("L" if mode == "LA" else "RGB").convert(mode).save(tmp_path / f"a{suffix}")
    read = open_image(tmp_path / f"a{suffix}").read(0)
    assert read.shape == (700, 900, 3) and read.dtype == np.uint8
    if mode == "I;16":
        np.testing.assert_array_equal(read[..., 1], pixels[..., 0])


def test_tiff_pyramid_is_lazy_and_can_be_sent(tmp_path, pixels):
    path = tmp_path / "slide.tif"
    with tifffile.TiffWriter(path) as writer:
        writer.write(pixels, tile=(64, 64), photometric="rgb", subifds=1, compression="zlib")
        writer.write(pixels[::2, ::2], tile=(64, 64), photometric="rgb", subfiletype=1, compression="zlib")
    image = open_image(path)
    assert [level.size for level in image.levels] == [(900, 700), (450, 350)]
    assert all(level.lazy for level in image.levels) and image.levels[1].downsample == (2.0, 2.0)
    np.testing.assert_array_equal(image.read(0, slice(100, 300), slice(50, 400)), pixels[100:300, 50:400])
    again = pickle.loads(pickle.dumps(image))
    np.testing.assert_array_equal(again.read(1), pixels[::2, ::2])


@pytest.mark.parametrize("axes", ["YXS", "CYX", "YX"])
def test_ome_tiff(tmp_path, pixels, axes):
    path = tmp_path / "a.ome.tif"
    written = {"YXS": pixels, "CYX": np.moveaxis(pixels, -1, 0), "YX": pixels[..., 0]}[axes]
    options = {"photometric": "rgb"} if axes == "YXS" else {"photometric": "minisblack"}
    metadata = {"axes": axes, "PhysicalSizeX": 0.25, "PhysicalSizeXUnit": "µm"}
    tifffile.imwrite(path, written, metadata=metadata, **options)
    image = open_image(path)
    assert image.mpp == (0.25, 0.25)
    expected = np.repeat(pixels[..., :1], 3, axis=2) if axes == "YX" else pixels
    np.testing.assert_array_equal(image.read(0), expected)


def test_ome_tiff_of_fluorescence(tmp_path, pixels):
    metadata = {"axes": "CYX", "Channel": {"Name": ["DAPI", "CD45", "CK"]}}
    tifffile.imwrite(tmp_path / "if.ome.tif", np.moveaxis(pixels, -1, 0), photometric="minisblack", metadata=metadata)
    with pytest.raises(ValueError, match="DAPI.*fluorescence"):
        open_image(tmp_path / "if.ome.tif")
    many = np.zeros((7, 64, 64), np.uint16)
    tifffile.imwrite(tmp_path / "many.ome.tif", many, photometric="minisblack", metadata={"axes": "CYX"})
    with pytest.raises(ValueError, match="immunofluorescence"):
        open_image(tmp_path / "many.ome.tif")
    tifffile.imwrite(tmp_path / "stack.ome.tif", many, photometric="minisblack", metadata={"axes": "ZYX"})
    with pytest.raises(ValueError, match="axes ZYX"):
        open_image(tmp_path / "stack.ome.tif")


def test_sixteen_bits(tmp_path, pixels):
    tifffile.imwrite(tmp_path / "a.tif", pixels.astype(np.uint16) * 16, photometric="rgb", tile=(64, 64))
    np.testing.assert_array_equal(open_image(tmp_path / "a.tif").read(0), pixels)  # 12 bits were used


def test_damaged_files(tmp_path, pixels):
    for name, options in {"a.png": {}, "a.jpg": {"quality": 90}}.items():
        Image.fromarray(pixels).save(tmp_path / name, **options)
        content = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(content[: len(content) // 2])
        with pytest.raises(ValueError, match=f"{name}' is damaged or truncated"):
            open_image(tmp_path / name)
    (tmp_path / "text.png").write_text("no image")
    with pytest.raises(ValueError, match="no image that can be read"):
        open_image(tmp_path / "text.png")
    (tmp_path / "text.tif").write_text("no image")
    with pytest.raises(ValueError, match="damaged, truncated or no TIFF"):
        open_image(tmp_path / "text.tif")
    with pytest.raises(FileNotFoundError, match="nowhere.png' does not exist"):
        open_image(tmp_path / "nowhere.png")
    with pytest.raises(FileNotFoundError, match="is a folder"):
        open_image(tmp_path)


@pytest.mark.parametrize("compression", [None, "zlib", "jpeg"])
def test_truncated_tiff(tmp_path, pixels, compression):
    """The directory is there and the pixels are not, as after an interrupted download."""
    path = tmp_path / "slide.tif"
    tifffile.imwrite(path, pixels, tile=(64, 64), photometric="rgb", compression=compression)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * 0.6)])
    with pytest.raises(ValueError, match="damaged"):
        open_image(path).read(0)


def test_slide_file(shared_data):
    image = open_image(shared_data / "wsi" / "CMU-1-Small-Region.svs")
    assert image.mpp == (0.499, 0.499) and image.size == (2220, 2967)
    with tifffile.TiffFile(shared_data / "wsi" / "CMU-1-Small-Region.svs") as file:
        whole = file.series[0].asarray()
    np.testing.assert_array_equal(image.read(0), whole)


@pytest.mark.parametrize(
    ("sizes", "mpp"),
    [
        ({"PhysicalSizeX": 0.25, "PhysicalSizeY": 0.5}, (0.25, 0.5)),
        ({"PhysicalSizeX": 250.0, "PhysicalSizeXUnit": "nm", "PhysicalSizeY": 0.25}, (0.25, 0.25)),
        ({"PhysicalSizeX": 0.0}, None),
        ({"PhysicalSizeX": 3.0, "PhysicalSizeXUnit": "pixel"}, None),
    ],
)
def test_pixel_sizes_of_ome(tmp_path, pixels, sizes, mpp):
    tifffile.imwrite(tmp_path / "a.ome.tif", pixels, photometric="rgb", metadata={"axes": "YXS", **sizes})
    found = open_image(tmp_path / "a.ome.tif").mpp
    assert found == (None if mpp is None else pytest.approx(mpp))


def test_pixel_size_of_the_image_that_is_used(tmp_path, pixels):
    with tifffile.TiffWriter(tmp_path / "a.ome.tif", ome=True) as writer:
        writer.write(pixels[::9, ::9].copy(), photometric="rgb", metadata={"axes": "YXS", "PhysicalSizeX": 8.0})
        writer.write(pixels, photometric="rgb", metadata={"axes": "YXS", "PhysicalSizeX": 0.5})
    image = open_image(tmp_path / "a.ome.tif")
    assert image.size == (900, 700) and image.mpp == (0.5, 0.5)


@pytest.mark.parametrize(
    ("text", "mpp"), [("0.499", 0.499), ("4.99e-1", 0.499), ("0,4990", 0.499), ("0", None), ("x", None)]
)
def test_pixel_sizes_of_svs(tmp_path, pixels, text, mpp):
    description = f"Aperio Image Library v1\n900x700 [0,0 900x700] (64x64)|AppMag = 20|MPP = {text}|Left = 1"
    tifffile.imwrite(
        tmp_path / "a.svs", pixels, tile=(64, 64), photometric="rgb", description=description, metadata=None
    )
    image = open_image(tmp_path / "a.svs")
    assert image.mpp == (None if mpp is None else (mpp, mpp))


@pytest.mark.parametrize("kind", ["palette", "miniswhite", "separated"])
def test_colours_that_are_not_rgb(tmp_path, pixels, kind):
    options = {"colormap": np.zeros((3, 256), np.uint16)} if kind == "palette" else {}
    data = np.dstack([pixels, pixels[..., :1]]) if kind == "separated" else pixels[..., 0]
    tifffile.imwrite(tmp_path / "a.tif", data, photometric=kind, **options)
    with pytest.raises(ValueError, match=f"stored as {kind.upper()}.*save it as RGB"):
        open_image(tmp_path / "a.tif")


def test_files_are_closed_again(tmp_path, pixels):
    import gc
    import os
    import sys

    if not sys.platform.startswith("linux"):
        pytest.skip("counts the files of this process, which only Linux lists")
    tifffile.imwrite(tmp_path / "a.tif", pixels, tile=(64, 64), photometric="rgb")
    open_image(tmp_path / "a.tif").read(0)
    gc.collect()
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        open_image(tmp_path / "a.tif").read(0)
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) <= before
