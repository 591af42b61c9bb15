import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stfuse.pp._crops import as_uint8_rgb, gather_crops, library_image


def slow_crop(pixels, x, y, side):
    """One crop, the literal way: pad the image by mirroring, then slice."""
    pad = side
    padded = np.pad(pixels, ((pad, pad), (pad, pad), (0, 0)), mode="reflect")
    left, top = int(np.floor(x - side / 2 + 0.5)) + pad, int(np.floor(y - side / 2 + 0.5)) + pad
    return padded[top : top + side, left : left + side]


@settings(max_examples=60, deadline=None)
@given(
    height=st.integers(1, 30),
    width=st.integers(1, 30),
    side=st.integers(1, 40),
    seed=st.integers(0, 10_000),
)
def test_crops_equal_padding_and_slicing(height, width, side, seed):
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    centers = rng.random((5, 2)) * (width, height)
    crops = gather_crops(pixels, centers, side)
    assert crops.shape == (5, side, side, 3) and crops.dtype == np.uint8
    for crop, (x, y) in zip(crops, centers, strict=True):
        np.testing.assert_array_equal(crop, slow_crop(pixels, x, y, side))


def test_a_crop_is_centered():
    pixels = np.zeros((9, 11, 3), dtype=np.uint8)
    pixels[4, 7] = 200  # row 4, column 7: x = 7.5, y = 4.5 is the middle of this pixel
    crop = gather_crops(pixels, np.array([[7.5, 4.5]]), 3)[0]
    assert crop[1, 1, 0] == 200 and crop.sum() == 600


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
    rgb = as_uint8_rgb(image, "image")
    assert rgb.dtype == np.uint8
    np.testing.assert_array_equal(rgb[0], expected)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((3, 3, 2), dtype=np.uint8), "has the shape"),
        (np.zeros((0, 3, 3), dtype=np.uint8), "has the shape"),
        (np.zeros(5), "has the shape"),
        (np.full((2, 2, 3), -1.0), "must lie in"),
        (np.full((2, 2, 3), np.nan), "must lie in"),
        (np.full((2, 2), "a"), "must hold numbers"),
    ],
)
def test_what_is_no_image(image, message):
    with pytest.raises(ValueError, match=message):
        as_uint8_rgb(image, "image")


def entry(**kinds):
    factors = {"spot_diameter_fullres": 20.0} | {f"tissue_{k}_scalef": s for k, (_, s) in kinds.items()}
    return {"A": {"images": {k: np.zeros((n, n, 3), np.uint8) for k, (n, _) in kinds.items()}, "scalefactors": factors}}


def test_hires_before_lowres_each_with_its_scale():
    both = library_image(entry(lowres=(5, 0.05), hires=(20, 0.2)), "A")
    assert (both.kind, both.scale, both.pixels.shape[0], both.spot_diameter) == ("hires", 0.2, 20, 20.0)
    low = entry(lowres=(5, 0.05))
    low["A"]["scalefactors"]["tissue_hires_scalef"] = 0.2  # files often hold the factor of an image they lack
    assert library_image(low, "A")[1:] == (0.05, 20.0, "lowres")


def test_incomplete_entries():
    spatial = entry(hires=(20, 0.2))
    del spatial["A"]["scalefactors"]["spot_diameter_fullres"]
    with pytest.raises(KeyError, match="spot_diameter_fullres.*tissue_hires_scalef"):
        library_image(spatial, "A")
    spatial["A"]["scalefactors"] = {"spot_diameter_fullres": 0, "tissue_hires_scalef": 1}
    with pytest.raises(ValueError, match="must be a positive number"):
        library_image(spatial, "A")
    with pytest.raises(KeyError, match="neither 'hires' nor 'lowres'.*fullres"):
        library_image({"A": {"images": {"fullres": 0}}}, "A")
