import numpy as np
import pytest
from scipy.ndimage import gaussian_filter
from skimage.color import rgb2hed

from stfuse.pp._encoders._texture import TextureEncoder, stain_channels

encoder = TextureEncoder()


def named(features):
    return {name: features[:, i] for i, name in enumerate(encoder.feature_names)}


def random_crops(n=6, side=20, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, side, side, 3), dtype=np.uint8)


def test_stains_are_those_of_scikit_image():
    crops = random_crops()
    hematoxylin, eosin, _ = stain_channels(crops)
    expected = rgb2hed(crops)
    np.testing.assert_allclose(hematoxylin, expected[..., 0], atol=1e-6)
    np.testing.assert_allclose(eosin, expected[..., 1], atol=1e-6)


def test_statistics_of_the_stains():
    crops = random_crops()
    features, expected = named(encoder(crops)), rgb2hed(crops)
    for i, name in enumerate(("hematoxylin", "eosin")):
        flat = expected[..., i].reshape(len(crops), -1)
        np.testing.assert_allclose(features[f"{name}_mean"], flat.mean(axis=1), atol=1e-6)
        np.testing.assert_allclose(features[f"{name}_sd"], flat.std(axis=1), atol=1e-6)
        np.testing.assert_allclose(features[f"{name}_q25"], np.quantile(flat, 0.25, axis=1), atol=2e-3)


def slow_patterns(channel):
    """Histogram of rotation-invariant uniform patterns, pixel by pixel, borders repeated outward."""
    height, width = channel.shape
    counts = np.zeros(10)
    for i in range(height):
        for j in range(width):
            circle = [(-1, -1), (-1, 0), (-1, 1), (0, 1), (1, 1), (1, 0), (1, -1), (0, -1)]
            rows_columns = [(min(max(i + a, 0), height - 1), min(max(j + b, 0), width - 1)) for a, b in circle]
            larger = [channel[r, c] > channel[i, j] for r, c in rows_columns]
            changes = sum(larger[k] != larger[k - 1] for k in range(8))
            counts[sum(larger) if changes <= 2 else 9] += 1
    return counts / channel.size


def test_binary_patterns_equal_a_slow_loop():
    crops = random_crops(3, side=9)
    features = named(encoder(crops))
    density = stain_channels(crops)[2]
    coarse = gaussian_filter(density, (0, 1, 1))[:, ::2, ::2]
    for i in range(3):
        for px, channel in ((1, density[i]), (2, coarse[i])):
            ours = [features[f"pattern{k}_{px}px"][i] for k in range(10)]
            np.testing.assert_allclose(ours, slow_patterns(channel), atol=1e-6)


def test_patterns_by_hand():
    # one dark, that is dense, pixel amid light ones
    crop = np.full((1, 3, 3, 3), 200, dtype=np.uint8)
    crop[0, 1, 1] = 50
    features = named(encoder(crop))
    # the middle has no denser neighbour; each of the 8 others sees the middle, a single denser neighbour
    assert features["pattern0_1px"][0] == pytest.approx(1 / 9)
    assert features["pattern1_1px"][0] == pytest.approx(8 / 9)


def test_gradient_of_a_ramp():
    # density falls by a constant from column to column, so the gradient is that constant away from the borders
    value = np.linspace(0.1, 0.6, 40)
    ramp = np.rint(255 * np.exp(np.log(1e-6) * value)).astype(np.uint8)
    crop = np.broadcast_to(ramp[None, None, :, None], (1, 40, 40, 3)).copy()
    flat = np.full_like(crop, 100)
    features = named(encoder(np.concatenate([crop, flat])))
    assert features["density_gradient_mean_1px"][0] > 0.005
    for name in ("gradient_mean", "gradient_sd", "laplacian_mean", "laplacian_sd", "laplacian_skew"):
        for px in (1, 2, 4):
            assert features[f"density_{name}_{px}px"][1] == pytest.approx(0, abs=1e-4)


def test_coarse_and_fine_texture_differ_in_scale():
    rng = np.random.default_rng(0)
    fine = rng.integers(60, 200, (8, 32, 32), dtype=np.uint8)
    coarse = np.repeat(np.repeat(fine[:, ::8, ::8], 8, axis=1), 8, axis=2)
    crops = np.repeat(np.concatenate([fine, coarse])[..., None], 3, axis=-1)
    features = named(encoder(crops))
    ratio = features["density_gradient_mean_4px"] / features["density_gradient_mean_1px"]
    assert ratio[8:].min() > ratio[:8].max()


def test_a_dark_centre_shows_in_the_rings():
    crop = np.full((1, 21, 21, 3), 220, dtype=np.uint8)
    crop[0, 8:13, 8:13] = 40
    features = named(encoder(crop))
    assert features["density_center"][0] > 5 * features["density_middle"][0]
    assert features["density_middle"][0] == pytest.approx(features["density_rim"][0], rel=1e-4)


@pytest.mark.parametrize("side", [1, 2, 3, 4, 5, 7, 33])
@pytest.mark.parametrize("value", [None, 0, 255])
def test_every_size_and_flat_crops_give_finite_features(side, value):
    crops = random_crops(3, side) if value is None else np.full((3, side, side, 3), value, dtype=np.uint8)
    features = encoder(crops)
    assert features.shape == (3, encoder.n_features) and features.dtype == np.float32
    assert np.isfinite(features).all()
    assert encoder.n_features >= 20 and len(set(encoder.feature_names)) == encoder.n_features


def test_a_crop_does_not_depend_on_its_batch():
    crops = random_crops(10)
    together = encoder(crops)
    np.testing.assert_allclose(together, np.concatenate([encoder(c[None]) for c in crops]), rtol=1e-4, atol=1e-5)


def test_turning_a_crop_changes_nothing():
    crops = random_crops(side=16, seed=1)
    turned = encoder(np.rot90(crops, axes=(1, 2)).copy())
    features = named(encoder(crops))
    for i, name in enumerate(encoder.feature_names):
        if not name.endswith(("2px", "4px")):  # halving the image keeps the even rows, which turning moves
            np.testing.assert_allclose(turned[:, i], features[name], rtol=1e-3, atol=1e-4, err_msg=name)


def test_large_crops_are_averaged_down():
    rng = np.random.default_rng(0)
    small = rng.integers(0, 256, (3, 69, 70, 3), dtype=np.uint8)
    large = np.kron(small, np.ones((1, 3, 3, 1), dtype=np.uint8))
    np.testing.assert_allclose(encoder(large), encoder(small), rtol=1e-5, atol=1e-6)
    framed = np.pad(large, ((0, 0), (1, 1), (0, 1), (0, 0)))  # 209 x 211: what is left over is cut off
    np.testing.assert_allclose(encoder(framed), encoder(small), rtol=1e-5, atol=1e-6)
    assert not np.allclose(encoder(large[:, :95, :95]), encoder(small[:, :31, :31]), rtol=1e-2)


def test_sums_of_the_largest_crops_fit():
    white = np.full((1, 64 * 250, 128, 3), 255, dtype=np.uint8)
    from stfuse.pp._encoders._texture import _reduced

    assert _reduced(white).min() == 255
