"""tl.aestetik: what it writes, which places it believes, and what it refuses without a trace."""

import mudata
import numpy as np
import pytest
from sklearn.metrics import adjusted_rand_score

import stfuse
from stfuse.datasets import synthetic_tissue

QUICK = {
    "n_clusters": 3,
    "window_size": 3,
    "n_encoders": 1,
    "n_hidden": 8,
    "max_epochs": 2,
    "image_weight": 1.5,
    "clustering": "kmeans",
    "smooth": False,
    "progress": False,
    "device": "cpu",
}


def tissue(n=240, **kwargs):
    return synthetic_tissue(n, n_genes=30, n_image_features=12, **kwargs)


def run(data, **kwargs):
    return stfuse.tl.aestetik(data, **QUICK | kwargs)


def test_it_writes_what_the_model_says():
    adata = tissue(n_sections=2, missing_image=0.1)
    model = run(adata, library_key="section", return_model=True, n_latent=5)
    np.testing.assert_array_equal(adata.obsm["X_aestetik"], model.get_latent_representation(adata))
    record = adata.uns["aestetik"]
    assert adata.obsm["X_aestetik"].shape == (240, 5) and record["report"]["image_weight"] == 1.5
    asked = {k: v for k, v in QUICK.items() if k != "progress"} | {"n_latent": 5, "library_key": "section"}
    assert {name: record["params"][name] for name in asked} == asked
    assert {"reconstruction_rna", "triplet_rna", "reconstruction_image", "triplet_image"} == set(record["history"])
    # a section that was not there is grouped on the same scale
    other = tissue(n_sections=2, seed=5)
    groups = model.predict(other)
    assert groups.shape == (240,) and set(groups) <= {0, 1, 2} and "X_aestetik" not in other.obsm


def test_domains_hold_across_sections():
    """Kinds of tissue that lie elsewhere in either section get the same domain in both."""
    adata = tissue(500, n_sections=2, n_classes=(4, 1, 1), seed=2)
    run(adata, library_key="section", n_clusters=4, window_size=5, n_hidden=64, max_epochs=15, lr=1e-2, smooth=True)
    stfuse.tl.concat(adata)
    found = {}
    for name in ("aestetik", "concat"):
        stfuse.tl.domains(adata, use_rep=f"X_{name}", n_clusters=4, refine=False, neighbors=False)
        found[name] = adjusted_rand_score(adata.obs["domain"], adata.obs[f"{name}_domain"])
    assert found["aestetik"] > max(0.5, found["concat"] + 0.1), found


# -- places ------------------------------------------------------------------------------------------------------------


def arrays(adata):
    """Places on the array of hexagonal rows, as Space Ranger counts them."""
    xy = adata.obsm["spatial"]
    row = np.rint((xy[:, 1] - xy[:, 1].min()) / (100 * np.sqrt(0.75))).astype(int)
    return row, np.rint((xy[:, 0] - xy[:, 0].min()) / 50).astype(int)


@pytest.mark.parametrize("names", [("array_row", "array_col"), ("array_x", "array_y")])
def test_places_on_the_array_are_believed(names):
    """Where a section is torn, coordinates alone do not tell which spots lay beside each other."""
    adata = tissue()
    plain = run(adata, copy=True).obsm["X_aestetik"]
    torn = adata.copy()
    right = torn.obsm["spatial"][:, 0] > np.median(torn.obsm["spatial"][:, 0])
    torn.obsm["spatial"][right] += [230, 145]
    without = run(torn, copy=True).obsm["X_aestetik"]
    assert np.abs(without - plain).max() > 0.01
    torn.obs[names[0]], torn.obs[names[1]] = arrays(adata)
    run(torn)
    np.testing.assert_allclose(torn.obsm["X_aestetik"], plain, atol=1e-5)
    # what is no lattice is not believed
    for columns in (["a"] * 240, arrays(adata)[1]), (np.arange(240), np.random.default_rng(0).permutation(240)):
        adata.obs[names[0]], adata.obs[names[1]] = columns
        np.testing.assert_allclose(run(adata, copy=True).obsm["X_aestetik"], plain, atol=1e-5)


def test_some_coordinates_missing():
    adata = tissue()
    adata.obsm["spatial"][:4] = np.nan
    with pytest.warns(UserWarning, match=r"4 observation\(s\) have no coordinates"):
        run(adata)
    assert np.isfinite(adata.obsm["X_aestetik"]).all()


def test_the_views_may_be_observations_of_their_own():
    """An image and expression of the same places, in other observations: these are no sections on top of each other."""
    adata = tissue(120)
    image, rna = adata.copy(), adata.copy()
    rna.obs_names = "rna" + rna.obs_names
    del image.obsm["X_pca"], rna.obsm["X_image"]
    mdata = mudata.MuData({"image": image, "rna": rna})
    with pytest.warns(UserWarning, match=r"120 observation\(s\) share their place"):
        run(mdata)
    assert mdata.obsm["X_aestetik"].shape == (240, 4 * 4) and np.isfinite(mdata.obsm["X_aestetik"]).all()


def test_sections_are_found_in_uns():
    adata = tissue(n_sections=2)
    named = run(adata, copy=True, library_key="section")
    adata.uns["spatial"] = {name: {} for name in adata.obs["section"].cat.categories}
    run(adata)
    np.testing.assert_array_equal(adata.obsm["X_aestetik"], named.obsm["X_aestetik"])
    assert adata.uns["aestetik"]["params"]["library_key"] == "section"


# -- what is refused -----------------------------------------------------------------------------------------------------


def no_places(adata):
    del adata.obsm["spatial"]


BAD = {
    "no coordinates": (no_places, {}, ValueError, r"no coordinates in obsm\['spatial'\].*window_size=1"),
    "sections on top of each other": (
        lambda a: None,
        {"library_key": None},
        ValueError,
        "120 of 240 observations lie where another one lies.*library_key=",
    ),
    "even window": (lambda a: None, {"window_size": 6}, ValueError, "window_size must be odd.*got 6"),
    "weight": (lambda a: None, {"image_weight": 4}, ValueError, "image_weight must be a number between 0 and 3"),
    "loss": (lambda a: None, {"loss": "l2"}, ValueError, "loss must be one of 'l1', 'mse', got 'l2'"),
    "clusters": (lambda a: None, {"n_clusters": 241}, ValueError, "n_clusters=241 is more than the 240 observation"),
    "flag": (lambda a: None, {"reference": "no"}, TypeError, "reference must be True or False"),
}


@pytest.mark.parametrize(("change", "kwargs", "error", "words"), BAD.values(), ids=BAD)
def test_bad_input(change, kwargs, error, words, assert_same):
    adata = tissue(n_sections=2)
    change(adata)
    before = adata.copy()
    with pytest.raises(error, match=words):
        run(adata, **{"library_key": "section"} | kwargs)
    assert_same(adata, before)
