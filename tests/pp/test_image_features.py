import logging

import numpy as np
import pytest
from anndata import AnnData, read_h5ad
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from stfuse.datasets import mob
from stfuse.pp import image_features
from stfuse.pp._encoders._texture import TextureEncoder


class MeanColor:
    """The smallest encoder: mean of each colour."""

    name = "mean"
    n_features = 3

    def __init__(self):
        self.sizes = []

    def __call__(self, crops):
        self.sizes.append(crops.shape)
        return crops.mean(axis=(1, 2)).astype(np.float32)


def compute_image_features(adata, *args, **kwargs):
    return image_features(adata, *args, copy=True, **kwargs).obsm["X_image"]


def tissue(n=30, size=120, sections=("A",), seed=0, dtype=np.uint8):
    rng = np.random.default_rng(seed)
    adata = AnnData(np.ones((n, 2), dtype=np.float32))
    adata.obsm["spatial"] = rng.random((n, 2)) * size * 10
    adata.obs["section"] = np.resize(sections, n)
    adata.uns["spatial"] = {
        s: {
            "images": {"hires": rng.integers(0, 256, (size, size, 3), dtype=np.uint8)},
            "scalefactors": {"tissue_hires_scalef": 0.1, "spot_diameter_fullres": 60.0},
        }
        for s in sections
    }
    return adata


def snapshot(adata):
    """All that a failed call could have changed."""
    return adata.obs.copy(), {k: v.copy() for k, v in adata.obsm.items()}, sorted(adata.uns), adata.X.copy()


def assert_unchanged(adata, before):
    obs, obsm, uns, x = before
    assert adata.obs.equals(obs) and sorted(adata.uns) == uns and sorted(adata.obsm) == sorted(obsm)
    np.testing.assert_array_equal(adata.X, x)
    for key, value in obsm.items():
        np.testing.assert_array_equal(adata.obsm[key], value)


def test_features_equal_a_slow_loop():
    adata = tissue(40, sections=("A", "B"))
    assert image_features(adata, crop_scale=2) is None
    for i in range(adata.n_obs):
        image = adata.uns["spatial"][adata.obs["section"].iloc[i]]["images"]["hires"]
        x, y = adata.obsm["spatial"][i] * 0.1
        side = 12  # two spots of 60 pixels at a tenth of the resolution
        padded = np.pad(image, ((side, side), (side, side), (0, 0)), mode="reflect")
        left, top = int(np.floor(x - 6 + 0.5)) + side, int(np.floor(y - 6 + 0.5)) + side
        expected = TextureEncoder()(padded[None, top : top + side, left : left + side])[0]
        np.testing.assert_allclose(adata.obsm["X_image"][i], expected, rtol=1e-4, atol=1e-5)


def test_same_call_gives_the_same_features_whatever_the_batches():
    adata = tissue()
    expected = compute_image_features(adata)
    np.testing.assert_array_equal(compute_image_features(adata), expected)
    for batch_size in (1, 7, 1000):
        np.testing.assert_allclose(compute_image_features(adata, batch_size=batch_size), expected, rtol=1e-4, atol=1e-5)


def test_record_and_h5ad_round_trip(tmp_path):
    adata = tissue(sections=("A", "B"))
    image_features(adata, key_added="X_texture")
    record = adata.uns["X_texture"]
    assert record["encoder"] == "texture" and record["crop_scale"] == 3
    assert record["crop_pixels"] == {"A": 18, "B": 18} and record["image"] == {"A": "hires", "B": "hires"}
    assert len(record["feature_names"]) == adata.obsm["X_texture"].shape[1]
    adata.write_h5ad(tmp_path / "a.h5ad")
    back = read_h5ad(tmp_path / "a.h5ad")
    np.testing.assert_array_equal(back.obsm["X_texture"], adata.obsm["X_texture"])
    assert back.uns["X_texture"]["crop_pixels"] == record["crop_pixels"]
    assert list(back.uns["X_texture"]["feature_names"]) == list(record["feature_names"])


def test_copy_and_view():
    adata = tissue()
    before = snapshot(adata)
    changed = image_features(adata, copy=True)
    assert_unchanged(adata, before)
    assert "X_image" in changed.obsm and "X_image" in changed.uns
    part = adata[:10]
    with pytest.warns(Warning, match="view"):
        image_features(part)
    np.testing.assert_allclose(part.obsm["X_image"], changed.obsm["X_image"][:10], rtol=1e-4, atol=1e-5)
    assert_unchanged(adata, before)


def test_crops_have_the_same_physical_size_at_every_resolution():
    adata = tissue(sections=("A", "B"))
    entry = adata.uns["spatial"]["B"]
    entry["images"] = {"lowres": np.kron(entry["images"]["hires"], np.ones((2, 2, 1), dtype=np.uint8))}
    entry["scalefactors"] = {"tissue_lowres_scalef": 0.2, "spot_diameter_fullres": 60.0}
    encoder = MeanColor()
    image_features(adata, encoder)
    assert adata.uns["X_image"]["crop_pixels"] == {"A": 18, "B": 36}
    assert {size[1:] for size in encoder.sizes} == {(18, 18, 3), (36, 36, 3)}


@pytest.mark.parametrize("kind", ["gray", "rgba", "float"])
def test_kinds_of_image(kind):
    adata = tissue()
    images = adata.uns["spatial"]["A"]["images"]
    rgb = images["hires"]
    if kind == "gray":
        images["hires"] = rgb[..., 0]
        rgb = np.repeat(rgb[..., :1], 3, axis=2)
    elif kind == "rgba":
        images["hires"] = np.dstack([rgb, np.full(rgb.shape[:2], 255, dtype=np.uint8)])
    else:
        images["hires"] = (rgb / 255).astype(np.float32)
    ours = compute_image_features(adata, MeanColor())
    images["hires"] = rgb
    np.testing.assert_array_equal(ours, compute_image_features(adata, MeanColor()))


def test_observations_off_the_image():
    adata = tissue()
    adata.obsm["spatial"][3] = (-1, 50)
    adata.obsm["spatial"][4] = (50, 1200)
    adata.obsm["spatial"][5] = np.nan
    adata.obsm["spatial"][6] = (0, 1199.9)
    with pytest.warns(UserWarning, match="3 of 30 observations have no image") as caught:
        image_features(adata)
    assert len(caught) == 1 and caught[0].filename == __file__
    missing = np.isnan(adata.obsm["X_image"])
    np.testing.assert_array_equal(np.flatnonzero(missing.all(axis=1)), [3, 4, 5])
    np.testing.assert_array_equal(missing.any(axis=1), missing.all(axis=1))


def test_a_section_without_image():
    adata = tissue(sections=("A", "B"))
    adata.obs["section"] = np.resize(["A", "B", "C"], 30)
    with pytest.warns(UserWarning, match="10 of 30"):
        image_features(adata, library_key="section")
    np.testing.assert_array_equal(np.isnan(adata.obsm["X_image"][:, 0]), adata.obs["section"] == "C")


def test_small_crops_are_enlarged_to_four_pixels():
    adata = tissue()
    adata.uns["spatial"]["A"]["scalefactors"]["spot_diameter_fullres"] = 5.0
    with pytest.warns(UserWarning, match="fewer than 4 pixels in A"):
        image_features(adata)
    assert adata.uns["X_image"]["crop_pixels"]["A"] == 4 and np.isfinite(adata.obsm["X_image"]).all()


def test_library_key_is_found_or_asked_for(caplog):
    adata = tissue(sections=("A", "B"))
    with caplog.at_level(logging.INFO, logger="stfuse"):
        found = compute_image_features(adata)
    assert "section" in caplog.text
    np.testing.assert_array_equal(found, compute_image_features(adata, library_key="section"))
    adata.obs["slide"] = adata.obs["section"].to_numpy()[::-1]
    before = snapshot(adata)
    with pytest.raises(ValueError, match="library_key="):
        image_features(adata)
    assert_unchanged(adata, before)


def test_torch_module():
    torch = pytest.importorskip("torch")
    adata = tissue()
    module = torch.nn.Sequential(torch.nn.Dropout(0.5), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten()).train()
    image_features(adata, module)
    np.testing.assert_allclose(
        adata.obsm["X_image"], compute_image_features(adata, MeanColor()) / 255, rtol=1e-4, atol=1e-5
    )
    assert module.training  # as it came
    assert adata.uns["X_image"]["encoder"] == "Sequential" and "feature_names" not in adata.uns["X_image"]
    with pytest.raises(ValueError, match="one row of features for each"):
        image_features(adata, torch.nn.Identity())


def no_image(adata):
    del adata.uns["spatial"]


def no_coordinates(adata):
    del adata.obsm["spatial"]


def far_away(adata):
    adata.obsm["spatial"] += 5000


def nowhere(adata):
    adata.obsm["spatial"][:] = np.nan


def no_scale(adata):
    del adata.uns["spatial"]["A"]["scalefactors"]["tissue_hires_scalef"]


def duplicated(adata):
    adata.obs["section"] = "Z"


class Uneven(MeanColor):
    def __call__(self, crops):
        return np.full((len(crops), 2), np.inf)


@pytest.mark.parametrize(
    ("spoil", "kwargs", "error", "message"),
    [
        (None, {"encoder": "unu"}, ValueError, "No encoder 'unu'.*There are: texture"),
        (None, {"encoder": 3}, TypeError, "encoder must be a name"),
        (None, {"encoder": MeanColor}, TypeError, "encoder must be a name"),
        (None, {"encoder": Uneven()}, ValueError, "not finite"),
        (None, {"crop_scale": 0}, ValueError, "crop_scale must be a number above 0"),
        (None, {"crop_scale": np.nan}, ValueError, "crop_scale must be a number above 0"),
        (None, {"crop_scale": "3"}, TypeError, "crop_scale must be a number above 0 or None, got '3'"),
        (None, {"crop_scale": 21}, ValueError, "126 x 126 pixels in section 'A'.*120 x 120.*smaller"),
        (None, {"batch_size": 0}, ValueError, "batch_size must be a whole number of at least 1"),
        (None, {"batch_size": 2.0}, TypeError, "batch_size must be a whole number"),
        (None, {"progress": "no"}, TypeError, "progress must be True, False or None"),
        (None, {"key_added": "spatial"}, ValueError, "would overwrite what is read as spatial_key"),
        (None, {"key_added": "X_old"}, ValueError, "would overwrite obsm.'X_old'"),
        (None, {"key_added": 5}, TypeError, "key_added must be a string, got 5"),
        (None, {"key_added": "X/image"}, ValueError, "slash"),
        (None, {"library_key": "slide"}, KeyError, "slide.*section"),
        (None, {"spatial_key": "xy"}, KeyError, "No obsm.*xy.*spatial"),
        (no_image, {}, KeyError, "uns.'spatial'. has no image"),
        (no_coordinates, {}, KeyError, "No obsm.*'spatial"),
        (far_away, {}, ValueError, "1200 x 1200 full-resolution pixels.*x 5"),
        (nowhere, {}, ValueError, "no finite coordinates"),
        (no_scale, {}, KeyError, "tissue_hires_scalef"),
        (duplicated, {"library_key": "section"}, ValueError, r"None of the sections in obs.*\(Z\).*\(A\)"),
    ],
)
def test_bad_input_changes_nothing(spoil, kwargs, error, message):
    adata = tissue()
    adata.obsm["X_old"] = np.ones((30, 2))
    if spoil is not None:
        spoil(adata)
    before = snapshot(adata)
    with pytest.raises(error, match=message):
        image_features(adata, **kwargs)
    assert_unchanged(adata, before)


def test_other_containers():
    mudata = pytest.importorskip("mudata")
    with pytest.raises(TypeError, match=r'mdata\["image"\]'):
        image_features(mudata.MuData({"image": tissue(), "rna": tissue()}))
    with pytest.raises(TypeError, match="dict"):
        image_features({})


def test_spatialdata_table():
    spatialdata = pytest.importorskip("spatialdata")
    sdata = spatialdata.SpatialData(tables={"table": tissue()})
    image_features(sdata)
    np.testing.assert_allclose(sdata["table"].obsm["X_image"], compute_image_features(tissue()), rtol=1e-4, atol=1e-5)
    bare = tissue()
    no_image(bare)
    with pytest.raises(KeyError, match="has no image"):
        image_features(spatialdata.SpatialData(tables={"table": bare}))


def test_layers_of_the_olfactory_bulb():
    """Leave one section out: as good as a network trained on ImageNet (0.68 to 0.71), and far above chance (0.25)."""
    adata = mob()
    image_features(adata)
    features, layer, section = adata.obsm["X_image"], adata.obs["layer"].to_numpy(), adata.obs["section"].to_numpy()
    assert features.shape == (1627, 95) and np.isfinite(features).all()
    scores = []
    for left_out in np.unique(section):
        train = section != left_out
        model = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=500))
        predicted = model.fit(features[train], layer[train]).predict(features[~train])
        scores.append(f1_score(layer[~train], predicted, average="macro"))
    assert np.mean(scores) > 0.68


def test_lowres_visium(shared_data):
    adata = read_h5ad(shared_data / "dlpfc" / "dlpfc_151673.h5ad")
    image_features(adata, crop_scale=1)
    assert adata.uns["X_image"]["image"] == {"151673": "lowres"}
    assert adata.uns["X_image"]["crop_pixels"] == {"151673": 4}
    assert np.isfinite(adata.obsm["X_image"]).all()
