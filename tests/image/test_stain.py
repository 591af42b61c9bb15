import math
import pickle

import anndata
import numpy as np
import pytest
from PIL import Image

from stfuse._image._files import open_image
from stfuse._image._pyramid import pyramid
from stfuse._image._stain import check_method, fit_image, fit_stain, read_fit, section_transforms, stain_transform
from stfuse._image._stain_macenko import REFERENCE as MACENKO
from stfuse._image._stain_macenko import MacenkoFit
from stfuse._image._stain_reinhard import REFERENCE as REINHARD
from stfuse._image._stain_reinhard import ReinhardFit, to_lab
from stfuse.datasets import mob

METHODS = ("macenko", "reinhard")
STAINS = np.array([[0.70, 0.62, 0.35], [0.25, 0.85, 0.46]])
STAINS /= np.linalg.norm(STAINS, axis=1, keepdims=True)
WHITE = np.array([235.0, 228.0, 240.0])


class Pictured:
    def __init__(self, name, image):
        self.name, self.image = name, pyramid([image], name=f"image {name}", kind="hires")


def amounts(n=40_000, seed=0, top=(1.6, 1.1)):
    """Amounts of both stains, with pixels of either alone: the directions are those of the extremes."""
    rng = np.random.default_rng(seed)
    share = np.concatenate([np.zeros(n // 5), np.ones(n // 5), rng.random(n - 2 * (n // 5))])
    strength = rng.uniform(0.75, 1, n)
    return np.column_stack([share * strength * top[0], (1 - share) * strength * top[1]])


def mixed(mixture, stains=STAINS, white=WHITE):
    """Colours of amounts of stains by Beer and Lambert, with the offset of one that keeps black finite."""
    return np.clip(np.rint((white + 1) * np.exp(-mixture @ stains) - 1), 0, 255).astype(np.uint8)


def slide(stains=STAINS, white=WHITE, strength=1.0, side=200, seed=0):
    """A disc of stained tissue on glass."""
    y, x = np.mgrid[:side, :side]
    inside = (y - side / 2) ** 2 + (x - side / 2) ** 2 < (side / 3) ** 2
    mixture = np.zeros((side, side, 2))
    drawn = amounts(int(inside.sum()), seed) * strength
    mixture[inside] = np.random.default_rng(seed).permutation(drawn)
    return mixed(mixture, stains, white), inside


def angle(a, b):
    return np.degrees(np.arccos(np.clip(np.sum(a * b, axis=-1), -1, 1)))


def test_stains_of_a_mixture_are_found():
    mixture = amounts()
    fit = fit_stain(mixed(mixture), "macenko", white=WHITE)
    assert (angle(fit.stains, STAINS) < 1.0).all()  # hematoxylin first
    np.testing.assert_allclose(fit.maxima, np.percentile(mixture, 99, axis=0), rtol=0.02)
    np.testing.assert_array_equal(fit.white, WHITE)


def test_hematoxylin_comes_first_whatever_the_amounts():
    for top in ((0.9, 2.0), (2.5, 0.9)):
        fit = fit_stain(mixed(amounts(top=top)), "macenko", white=WHITE)
        assert (angle(fit.stains, STAINS) < 1.5).all()


def test_macenko_gives_the_colours_of_the_target():
    other = np.array([[0.6, 0.7, 0.39], [0.15, 0.9, 0.41]])
    other /= np.linalg.norm(other, axis=1, keepdims=True)
    mixture = amounts(500)
    transform = stain_transform(
        MacenkoFit(STAINS, np.array([1.5, 1.0]), WHITE), MacenkoFit(other, np.array([2.0, 0.8]), np.full(3, 250.0))
    )
    expected = mixed(mixture * [2.0 / 1.5, 0.8 / 1.0], other, np.full(3, 250.0))
    made = transform(mixed(mixture).reshape(20, 25, 3))
    assert made.dtype == np.uint8 and made.shape == (20, 25, 3)
    assert np.abs(made.reshape(-1, 3).astype(int) - expected).max() <= 3  # the source's own rounding, in dark pixels


def test_macenko_equals_a_slow_loop():
    rgb = np.random.default_rng(0).integers(0, 256, (300, 3), dtype=np.uint8)
    source, target = MacenkoFit(STAINS, np.array([1.5, 1.0]), WHITE), MACENKO
    made = stain_transform(source, target)(rgb)
    for pixel, got in zip(rgb, made, strict=True):
        density = np.array([-math.log((int(v) + 1) / (w + 1)) for v, w in zip(pixel, WHITE, strict=True)])
        amount = np.linalg.lstsq(source.stains.T, density, rcond=None)[0] / source.maxima * target.maxima
        for i in range(3):
            value = 256 * math.exp(-sum(amount[k] * target.stains[k, i] for k in range(2))) - 1
            assert abs(got[i] - min(max(value, 0), 255)) <= 0.51


def lab_of(pixel):
    red, green, blue = (float(v) for v in pixel)
    cones = [
        math.log(max(v, 1))
        for v in (
            0.3811 * red + 0.5783 * green + 0.0402 * blue,
            0.1967 * red + 0.7244 * green + 0.0782 * blue,
            0.0241 * red + 0.1288 * green + 0.8444 * blue,
        )
    ]
    long, middle, short = cones
    return [
        (long + middle + short) / math.sqrt(3),
        (long + middle - 2 * short) / math.sqrt(6),
        (long - middle) / math.sqrt(2),
    ]


def test_reinhard_equals_a_slow_loop():
    rgb = np.random.default_rng(0).integers(0, 200, (300, 3), dtype=np.uint8)
    source = ReinhardFit(np.array([8.3, -0.2, 0.01]), np.array([0.5, 0.15, 0.03]), WHITE)
    made = stain_transform(source, REINHARD)(rgb)
    for pixel, got in zip(rgb, made, strict=True):
        if np.mean([math.log((w + 1) / (int(v) + 1)) for v, w in zip(pixel, WHITE, strict=True)]) < 0.15:
            continue
        lab = [
            (v - m) / s * t + u
            for v, m, s, t, u in zip(lab_of(pixel), source.means, source.sds, REINHARD.sds, REINHARD.means, strict=True)
        ]
        a, b, c = lab[0] / math.sqrt(3), lab[1] / math.sqrt(6), lab[2] / math.sqrt(2)
        cones = np.exp([a + b + c, a + b - c, a - 2 * b])
        mixing = [[0.3811, 0.5783, 0.0402], [0.1967, 0.7244, 0.0782], [0.0241, 0.1288, 0.8444]]
        expected = np.clip(np.linalg.solve(mixing, cones), 0, 255)
        assert np.abs(got - expected).max() <= 0.6


def test_reinhard_gives_the_means_and_deviations_of_the_target():
    rgb = mixed(amounts(), white=WHITE)
    source = fit_stain(rgb, "reinhard", white=WHITE)
    slow = np.array([lab_of(pixel) for pixel in rgb[:2000]])
    np.testing.assert_allclose(to_lab(rgb[:2000].astype(float)), slow, atol=1e-10)
    target = ReinhardFit(np.array([8.6, -0.12, 0.03]), source.sds * 0.8, np.full(3, 255.0))
    made = fit_stain(stain_transform(source, target)(rgb), "reinhard", white=target.white)
    np.testing.assert_allclose(made.means, target.means, atol=0.01)
    np.testing.assert_allclose(made.sds, target.sds, rtol=0.03)


@pytest.mark.parametrize("method", METHODS)
def test_a_fit_onto_itself_changes_nothing(method):
    image, _ = slide()
    fit = fit_image(pyramid([image], name="a", kind="hires"), method)
    made = stain_transform(fit, fit)(image)
    assert np.abs(made.astype(int) - image).max() <= 2


def test_normalising_twice_is_normalising_once():
    image, inside = slide()
    once = section_transforms([Pictured("a", image)], "macenko")[0]["a"](image)
    twice = section_transforms([Pictured("a", once)], "macenko")[0]["a"](once)
    assert np.abs(twice[inside].astype(int) - once[inside]).mean() < 2


@pytest.mark.parametrize("method", METHODS)
def test_glass_becomes_white_without_a_tint(method):
    image, inside = slide()
    made = section_transforms([Pictured("a", image)], method)[0]["a"](image)
    assert (made[~inside] == 255).all()


@pytest.mark.parametrize("method", METHODS)
def test_white_stays_white_where_no_glass_is_seen(method):
    fit = fit_stain(mixed(amounts()), method)
    assert (stain_transform(fit, read_fit(fit.to_dict(), method))(np.full((4, 3), 255, np.uint8)) >= 248).all()


def test_reinhard_has_no_edge_between_glass_and_tissue():
    source = ReinhardFit(np.array([8.3, -0.2, 0.01]), np.array([0.5, 0.15, 0.03]), WHITE)
    strength = np.linspace(0, 0.5, 2000)[:, None] * [[1.0, 0.5]]
    exact = (WHITE + 1) * np.exp(-strength @ STAINS) - 1
    made = stain_transform(source, REINHARD)(np.rint(exact).astype(np.uint8)).astype(int)
    assert np.abs(np.diff(made, axis=0)).max() <= 12  # a step of one gray level, steepened


@pytest.mark.parametrize("method", METHODS)
def test_two_stainings_of_one_tissue_come_together(method):
    other = np.array([[0.60, 0.70, 0.39], [0.12, 0.92, 0.37]])
    other /= np.linalg.norm(other, axis=1, keepdims=True)
    image, inside = slide()
    again, _ = slide(other, np.full(3, 250.0), strength=0.7)
    before = np.abs(image[inside].astype(float) - again[inside]).mean()
    transforms, _ = section_transforms([Pictured("a", image), Pictured("b", again)], method)
    after = np.abs(transforms["a"](image)[inside].astype(float) - transforms["b"](again)[inside]).mean()
    assert after < before / 3
    towards, _ = section_transforms([Pictured("a", image), Pictured("b", again)], method, "a")
    assert np.abs(towards["b"](again)[inside].astype(float) - image[inside]).mean() < before / 3


def test_squidpy_finds_the_same_stains():
    squidpy = pytest.importorskip("squidpy.experimental.im")
    if not hasattr(squidpy, "fit_stain_reference"):
        pytest.skip("this squidpy has no stain normalisation")
    from spatialdata import SpatialData
    from spatialdata.models import Image2DModel, Labels2DModel

    image, inside = slide(white=np.full(3, 255.0))
    sdata = SpatialData(
        images={"he": Image2DModel.parse(image, dims=("y", "x", "c"), c_coords=["r", "g", "b"])},
        labels={"he_tissue": Labels2DModel.parse(inside.astype(np.int32), dims=("y", "x"))},
    )
    theirs = squidpy.fit_stain_reference(sdata, "he", method="macenko")
    ours = fit_stain(image[inside], "macenko", white=np.full(3, 255.0))
    assert (angle(ours.stains, theirs.stain_matrix[:, :2].T) < 1.5).all()
    theirs = squidpy.fit_stain_reference(sdata, "he", method="reinhard")
    ours = fit_stain(image[inside], "reinhard", white=np.full(3, 255.0))
    np.testing.assert_allclose(ours.means, theirs.mu, atol=0.03)  # they add one before the logarithm
    np.testing.assert_allclose(ours.sds, theirs.sigma, rtol=0.03)
    pink, _ = slide(np.array([[0.6, 0.7, 0.39], [0.1, 0.92, 0.37]]), np.full(3, 255.0), strength=0.8)
    sdata.images["pink"] = Image2DModel.parse(pink, dims=("y", "x", "c"), c_coords=["r", "g", "b"])
    sdata.labels["pink_tissue"] = sdata.labels["he_tissue"]
    expected = squidpy.normalize_stains(sdata, "pink", theirs, inplace=False).transpose("y", "x", "c").values
    made = stain_transform(fit_stain(pink[inside], "reinhard", white=np.full(3, 255.0)), ours)(pink)
    assert np.abs(made[inside].astype(int) - expected[inside]).max() <= 4


@pytest.mark.parametrize("method", METHODS)
def test_fits_can_be_stored_and_pickled(method, tmp_path):
    image, _ = slide()
    transforms, record = section_transforms([Pictured("a", image)], method)
    adata = anndata.AnnData(np.zeros((1, 1)), uns={"record": record})
    adata.write_h5ad(tmp_path / "a.h5ad")
    back = anndata.read_h5ad(tmp_path / "a.h5ad").uns["record"]
    again = stain_transform(read_fit(back["fits"]["a"], method), read_fit(back["target_fit"], method))
    expected = transforms["a"](image)
    np.testing.assert_array_equal(again(image), expected)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(transforms["a"]))(image), expected)


@pytest.mark.parametrize("method", METHODS)
def test_parts_are_changed_like_the_whole(method):
    image, _ = slide(side=400)  # several blocks
    transform = section_transforms([Pictured("a", image)], method)[0]["a"]
    whole = transform(image)
    parts = np.stack([image[:200, :200], image[200:, 200:]])
    np.testing.assert_array_equal(transform(parts), np.stack([whole[:200, :200], whole[200:, 200:]]))
    assert transform(image[:0]).shape == (0, 400, 3)


@pytest.mark.parametrize("method", METHODS)
def test_every_kind_of_target(method, tmp_path):
    image, _ = slide()
    other, _ = slide(white=np.full(3, 250.0), strength=0.6, seed=1)
    sections = [Pictured("a", image), Pictured("b", other)]
    Image.fromarray(other).save(tmp_path / "b.png")
    _, expected = section_transforms(sections, method, "b")
    assert expected["target"] == "b"
    for target in (tmp_path / "b.png", str(tmp_path / "b.png"), other, expected["fits"]["b"], sections[1].image):
        made, record = section_transforms(sections, method, target)
        for key, value in expected["target_fit"].items():
            np.testing.assert_array_equal(record["target_fit"][key], value)
        assert set(made) == {"a", "b"}


def test_large_images_are_fitted_as_sharp_as_they_are():
    import dask.array as da

    # nuclei of 3 pixels: means over 3 x 3 pixels that do not meet them are paler than they
    nuclei = np.kron(np.random.default_rng(0).random((1000, 1000)) < 0.2, np.ones((3, 3), bool))
    mixture = np.where(nuclei[..., None], [1.5, 0.1], [0.0, 0.9])
    image = np.full((4201, 4201, 3), WHITE.astype(np.uint8))
    image[601:3601, 602:3602] = mixed(mixture)
    fit = fit_image(pyramid([da.from_array(image, chunks=(1024, 1024, 3))], name="large", kind="large"), "macenko")
    np.testing.assert_allclose(fit.maxima, [1.5, 0.9], rtol=0.1)
    np.testing.assert_array_equal(fit.white, WHITE)


@pytest.mark.parametrize("method", METHODS)
def test_sections_of_the_olfactory_bulb_come_together(method):
    adata = mob()
    sections = [Pictured(name, e["images"]["hires"]) for name, e in adata.uns["spatial"].items()]
    transforms, record = section_transforms(sections, method, "MOB1")

    def at_spots(name, image):  # the same layers of the same organ, without any mask of tissue
        scale = adata.uns["spatial"][name]["scalefactors"]["tissue_hires_scalef"]
        x, y = (adata.obsm["spatial"][adata.obs["section"] == name] * scale).astype(int).T[:, :, None, None]
        offset = np.arange(-8, 9)
        return to_lab(image[y + offset[:, None], x + offset].reshape(-1, 3).astype(float)).mean(axis=0)

    before = [at_spots(s.name, s.image.read(0)) for s in sections]
    after = [at_spots(s.name, transforms[s.name](s.image.read(0))) for s in sections]
    assert (np.ptp(after, axis=0)[:2] < np.ptp(before, axis=0)[:2] / 2).all()
    if method == "macenko":
        found = np.stack([fit["stains"] for fit in record["fits"].values()])
        assert angle(found, found.mean(axis=0)).max() < 6 and (found[:, 0, 0] > found[:, 1, 0]).all()


@pytest.mark.slow
def test_a_tinted_slide(shared_data):
    adata = anndata.read_h5ad(shared_data / "her2st" / "her2st_B4.h5ad")
    section = Pictured("B4", next(iter(adata.uns["spatial"].values()))["images"]["hires"])
    large = open_image(shared_data / "her2st" / "her2st_B4_fullres.jpg")
    for method in METHODS:
        transforms, record = section_transforms([section], method)
        glass = transforms["B4"](section.image.read(0))[50:150, 50:150].reshape(-1, 3)
        assert np.median(glass, axis=0).min() >= 250  # from 219, 206, 223
        sharp, fit = fit_image(large, method).to_dict(), record["fits"]["B4"]
        for key in {"stains", "means", "white"} & set(fit):
            np.testing.assert_allclose(sharp[key], fit[key], atol=1 if key == "white" else 0.1)
        for key in {"maxima", "sds"} & set(fit):
            np.testing.assert_allclose(sharp[key], fit[key], rtol=0.2)


def test_bad_pixels():
    rng = np.random.default_rng(0)
    for method in METHODS:
        with pytest.raises(ValueError, match="too few"):
            fit_stain(np.full((5000, 3), 250, np.uint8), method)
        gray = np.repeat(rng.integers(20, 200, (5000, 1), dtype=np.uint8), 3, axis=1)
        with pytest.raises(ValueError, match="gray"):
            fit_stain(gray, method)
        with pytest.raises(ValueError, match="no tissue"):
            fit_image(pyramid([np.full((50, 50, 3), 240, np.uint8)], name="blank", kind="x"), method)
    one = rng.uniform(0.4, 2, (20_000, 1)) * STAINS[:1]
    noisy = np.clip(241 * np.exp(-one) - 1 + rng.normal(0, 1.5, one.shape), 0, 255).astype(np.uint8)
    with pytest.raises(ValueError, match='no two stains.*method="reinhard"'):
        fit_stain(noisy, "macenko")
    fit_stain(noisy, "reinhard")


def test_bad_arguments(tmp_path):
    sections = [Pictured("liver", slide()[0])]
    with pytest.raises(ValueError, match=r"'macenko' or 'reinhard', got 'macenco'. Did you mean 'macenko'"):
        check_method("macenco")
    with pytest.raises(ValueError, match="got None"):
        section_transforms(sections, None)
    with pytest.raises(KeyError, match="'live' is no section.*Did you mean 'liver'"):
        section_transforms(sections, "macenko", "live")
    with pytest.raises(FileNotFoundError):
        section_transforms(sections, "macenko", tmp_path / "none.png")
    with pytest.raises(TypeError, match="got int"):
        section_transforms(sections, "macenko", 3)
    with pytest.raises(ValueError, match="is of 'reinhard'"):
        section_transforms(sections, "macenko", REINHARD.to_dict())
    with pytest.raises(ValueError, match="maxima of the target must be positive"):
        section_transforms(sections, "macenko", {**MACENKO.to_dict(), "maxima": [1.0, -1.0]})
    with pytest.raises(ValueError, match="stains of the target must be finite numbers of the shape"):
        section_transforms(sections, "macenko", {**MACENKO.to_dict(), "stains": np.ones((3, 2))})
    with pytest.raises(ValueError, match="must hold numbers"):
        section_transforms(sections, "macenko", {**MACENKO.to_dict(), "stains": "blue"})
    with pytest.raises(ValueError, match="channels"):
        section_transforms(sections, "macenko", np.zeros((30, 30, 7), np.uint8))
    with pytest.raises(ValueError, match="The target is a fit of 'reinhard'"):
        stain_transform(MACENKO, REINHARD)
