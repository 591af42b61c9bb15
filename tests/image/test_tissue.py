import numpy as np
import pytest

from stfuse._image._pyramid import pyramid
from stfuse._image._tissue import find_tissue


def slide(seed=0, glass=(235, 230, 235), tissue=(200, 120, 170), size=(300, 400)):
    """A disc of tissue with nuclei on glass."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[: size[0], : size[1]]
    disc = (y - 150) ** 2 + (x - 200) ** 2 < 100**2
    pixels = np.where(disc[..., None], tissue, glass).astype(float)
    nuclei = disc & (rng.random(size) < 0.15)
    pixels[nuclei] = (90, 60, 140)
    pixels += rng.normal(0, 3, pixels.shape)
    return np.clip(pixels, 0, 255).astype(np.uint8), disc


@pytest.mark.parametrize("glass", [(255, 255, 255), (235, 230, 235), (190, 188, 190)])
def test_a_disc_is_found(glass):
    pixels, disc = slide(glass=glass)
    tissue = find_tissue(pyramid([pixels], name="image", kind="array"))
    assert tissue.step == (1.0, 1.0)
    assert (tissue.mask & disc).sum() / (tissue.mask | disc).sum() > 0.95


def test_pale_stroma_beside_dark_nuclei_is_tissue():
    pixels, disc = slide(tissue=(225, 195, 215))
    assert find_tissue(pyramid([pixels], name="image", kind="array")).mask[disc].mean() > 0.8


def test_an_image_full_of_tissue():
    pixels, _ = slide()
    assert find_tissue(pyramid([pixels[100:200, 150:250]], name="image", kind="array")).mask.mean() > 0.95


@pytest.mark.parametrize("value", [255, 200])
def test_empty_glass(value):
    noise = np.random.default_rng(0).normal(value, 2, (200, 200, 3))
    assert not find_tissue(pyramid([np.clip(noise, 0, 255).astype(np.uint8)], name="image", kind="array")).mask.any()


def test_black_frame_of_a_turned_image_is_no_tissue():
    pixels, disc = slide()
    pixels[:, :60] = 0
    mask = find_tissue(pyramid([pixels], name="image", kind="array")).mask
    assert not mask[:, :55].any() and mask[disc].mean() > 0.95


def test_gray_photographs():
    pixels, disc = slide(glass=(235, 235, 235), tissue=(160, 160, 160))
    gray = pixels.mean(axis=2).astype(np.uint8)
    assert find_tissue(pyramid([gray], name="image", kind="array")).mask[disc].mean() > 0.95


def test_shares_of_tiles_equal_means_of_the_mask():
    pixels, _ = slide()
    tissue = find_tissue(pyramid([pixels], name="image", kind="array", downsample=2.0))
    origins = np.array([[0, 0], [200, 100], [133, 71], [740, 540]], dtype=float)
    shares = tissue.fraction(origins, (60.0, 60.0))
    fine = np.kron(tissue.mask, np.ones((2, 2)))
    expected = [fine[int(y) : int(y) + 60, int(x) : int(x) + 60].mean() for x, y in origins]
    np.testing.assert_allclose(shares, expected, atol=1e-12)


def test_points():
    pixels, disc = slide()
    tissue = find_tissue(pyramid([pixels], name="image", kind="array"))
    points = np.array([[200.5, 150.5], [5, 5], [-1, 10], [400, 10], [np.nan, 3]])
    np.testing.assert_array_equal(tissue.at(points), [True, False, False, False, False])
