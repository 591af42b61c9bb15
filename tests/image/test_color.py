import numpy as np
import pytest

from stfuse._image._color import as_rgb, check_channels, color_format
from stfuse._image._pyramid import pyramid


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (np.array([[0, 255]], dtype=np.uint8), [[0, 0, 0], [255, 255, 255]]),
        (np.array([[[7], [8]]], dtype=np.uint8), [[7, 7, 7], [8, 8, 8]]),
        (np.array([[[0.0, 0.5, 1.0]]]), [[0, 128, 255]]),
        (np.array([[[0.0, 12.4, 200.0]]]), [[0, 12, 200]]),
        (np.array([[[10, 20, 30, 255], [10, 20, 30, 0]]], dtype=np.uint8), [[10, 20, 30], [255, 255, 255]]),
        (np.array([[[0, 256, 65535]]], dtype=np.uint16), [[0, 1, 255]]),
        # a camera of 12 bits; what fits into 8 bits is as it is
        (np.array([[[0, 16, 4095]]], dtype=np.uint16), [[0, 1, 255]]),
        (np.array([[[0, 16, 255]]], dtype=np.uint16), [[0, 16, 255]]),
        (np.array([[True, False]]), [[255, 255, 255], [0, 0, 0]]),
    ],
)
def test_kinds_of_image(image, expected):
    rgb = as_rgb(image, "image")
    assert rgb.dtype == np.uint8
    np.testing.assert_array_equal(rgb[0], expected)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((3, 3, 2), dtype=np.uint8), "has the shape"),
        (np.zeros((0, 3, 3), dtype=np.uint8), "has the shape"),
        (np.zeros((9, 9, 5), dtype=np.uint16), "immunofluorescence"),
        (np.zeros(5), "has the shape"),
        (np.full((2, 2, 3), -1.0), "must lie in"),
        (np.full((2, 2, 3), np.nan), "must lie in"),
        (np.full((2, 2), "a"), "must hold numbers"),
    ],
)
def test_what_is_no_image(image, message):
    with pytest.raises(ValueError, match=message):
        as_rgb(image, "image")


def test_a_format_found_on_a_part_clips_the_rest():
    part = np.full((4, 4, 3), 3000, dtype=np.uint16)  # of 12 bits
    brighter = np.full((1, 1, 3), 5000, dtype=np.uint16)
    assert color_format(part, "image").to_rgb(brighter).max() == 255


@pytest.mark.parametrize(
    "names", [[0, 1, 2], ["r", "g", "b"], ["R", "G", "B", "A"], ["red", "green", "blue"], ["gray"]]
)
def test_channels_of_colour_images(names):
    check_channels(names, "image")


def test_channels_of_fluorescence():
    with pytest.raises(ValueError, match="'DAPI', 'CD45', 'CK'.*fluorescence"):
        check_channels(["DAPI", "CD45", "CK"], "sdata.images['if']")
    dapi = np.zeros((50, 50), dtype=np.uint16)
    dapi[20:25, 20:25] = 4000
    colours = np.zeros((50, 50, 3), dtype=np.uint8)
    colours[20:30, 20:30] = (20, 200, 255)
    for image in (dapi, np.stack([dapi] * 3, axis=-1), colours, colours[..., :1]):
        with pytest.raises(ValueError, match="a dark background and no glass: this looks like fluorescence"):
            pyramid([image], name="the image", kind="array")
    with pytest.raises(ValueError, match="four channels of 16 bits"):
        pyramid([np.stack([4095 - dapi] * 4, axis=-1)], name="the image", kind="array")
    pyramid([4095 - dapi], name="a gray photograph", kind="array")
    framed = np.zeros((50, 50, 3), dtype=np.uint8)  # as around a turned photograph
    framed[5:20, 5:25], framed[20:25, 5:25] = 240, (180, 100, 150)
    pyramid([framed], name="the image", kind="array")


def test_floats_that_interpolation_took_out_of_range():
    image = np.full((4, 4, 3), 0.5)
    image[0, 0] = (1.1, -0.05, 1.0)
    np.testing.assert_array_equal(as_rgb(image, "image")[0], [[255, 0, 255]] + [[128] * 3] * 3)
    with pytest.raises(ValueError, match="must lie in"):
        as_rgb(image * 1.6, "image")


def test_channels_first_is_told():
    with pytest.raises(ValueError, match="numpy.moveaxis"):
        as_rgb(np.zeros((3, 40, 50), np.uint8), "image")
