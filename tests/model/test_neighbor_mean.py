"""NeighborMean against Concat and a loop."""

import warnings

import numpy as np
import pytest
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_rand_score

import stfuse
from stfuse.model import Concat, NeighborMean

N = 120


@pytest.fixture
def adata(two_views):
    """Two sections on the same ground; a few observations lack a view, one lacks both."""
    adata = two_views(N)
    adata.obsm["spatial"] = np.random.default_rng(1).uniform(0, 100, (N, 2))
    adata.obs["section"] = np.where(np.arange(N) < 70, "a", "b")
    adata.obsm["X_image"][[0, 5, 6, 80, 90]] = np.nan
    adata.obsm["X_pca"][[0, 10, 81, 82]] = np.nan
    return adata


def fit(adata, cls=NeighborMean, library_key="section", batch_key=None, **params):
    cls.setup_anndata(adata, library_key=library_key, batch_key=batch_key)
    model = cls(adata, **params)
    model.train()
    return model


def literal(adata, n_neighbors, n_components):
    """Concat's blocks, each averaged by a loop over observations."""
    concat = fit(adata.copy(), Concat, n_components=n_components).codes().fused
    xy, section = adata.obsm["spatial"], adata.obs["section"].to_numpy()
    out = np.full(concat.shape, np.nan)
    for block, key in ((slice(0, n_components), "X_image"), (slice(n_components, None), "X_pca")):
        has = np.isfinite(adata.obsm[key]).all(1)
        for i in range(adata.n_obs):
            mates = [j for j in range(adata.n_obs) if j != i and has[j] and section[j] == section[i]]
            mates = sorted(mates, key=lambda j: ((xy[i] - xy[j]) ** 2).sum())[:n_neighbors]
            rows = [i] * int(has[i]) + mates
            out[i, block] = np.mean([concat[j, block] for j in rows], axis=0) if rows else 0
    out[np.isnan(concat).any(1)] = np.nan
    return out


@pytest.mark.parametrize("n_neighbors", [1, 10])
def test_is_concat_averaged_by_a_loop(adata, n_neighbors):
    found = fit(adata, n_components=4, n_neighbors=n_neighbors).codes().fused
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, literal(adata, n_neighbors, 4), atol=1e-5)
    assert np.isnan(found[0]).all() and np.isfinite(found[1:]).all()


def test_is_the_mean_of_the_preprocessing_where_nothing_is_missing(two_views):
    adata = two_views(N)
    adata.obsm["spatial"] = np.random.default_rng(1).uniform(0, 100, (N, 2))
    adata.obsm["X_concat"] = fit(adata, Concat, None).codes().fused
    stfuse.pp.neighbor_mean(adata, "X_concat")
    found = fit(adata, library_key=None).codes().fused
    np.testing.assert_allclose(found, adata.obsm["X_concat_neighbor_mean"], atol=1e-6)


def test_a_section_without_a_view_gets_the_mean_of_all(adata):
    adata.obsm["X_image"][70:] = np.nan
    fused = fit(adata, n_components=4).codes().fused
    coded = np.isfinite(adata.obsm["X_pca"]).all(1)
    assert (fused[70:][coded[70:], :4] == 0).all() and (fused[70:][coded[70:], 4:] != 0).all()
    assert (fused[1:70] != 0).all() and np.isnan(fused[70:][~coded[70:]]).all()


def test_sections_do_not_mix(adata):
    model = fit(adata, n_components=4)
    alone = adata[:70].copy()
    np.testing.assert_allclose(model.codes(alone).fused, model.codes().fused[:70], atol=1e-6)


def test_new_data_and_a_saved_model(adata, tmp_path):
    model = fit(adata, n_components=4, n_neighbors=3)
    model.save(tmp_path / "model")
    loaded = NeighborMean.load(tmp_path / "model")
    assert loaded.params_["n_neighbors"] == 3
    np.testing.assert_array_equal(loaded.codes(adata).fused, model.codes().fused)
    # the same tissue moved and turned, in another order
    new = adata[np.random.default_rng(2).permutation(N)].copy()
    new.obsm["spatial"] = new.obsm["spatial"][:, ::-1] * 7 - 400
    codes = loaded.codes(new).fused
    np.testing.assert_allclose(codes[new.obs_names.get_indexer(adata.obs_names)], model.codes().fused, atol=1e-5)
    # one view alone
    del new.obsm["X_pca"]
    one = loaded.codes(new).fused
    has_image = np.isfinite(new.obsm["X_image"]).all(1)
    np.testing.assert_array_equal(one[has_image, :4], codes[has_image, :4])
    assert (one[has_image, 4:] == 0).all() and np.isnan(one[~has_image]).all()


def test_places_decide(adata):
    """Features shuffled over the places give other codes: nothing but neighbours differs."""
    before = fit(adata, n_components=4).codes().fused
    adata.obsm["spatial"] = adata.obsm["spatial"][::-1].copy()
    assert np.abs(fit(adata, n_components=4).codes().fused - before)[1:].max() > 0.05


def test_clusters_are_domains_rather_than_without_neighbours():
    adata = stfuse.datasets.synthetic_tissue(600, domain_strength=0.5)
    scores = {}
    for name in ("concat", "neighbor_mean"):
        getattr(stfuse.tl, name)(adata)
        groups = KMeans(3, n_init=10, random_state=0).fit_predict(adata.obsm[f"X_{name}"])
        scores[name] = adjusted_rand_score(adata.obs["class_shared"], groups)
    assert scores["neighbor_mean"] > scores["concat"] + 0.1


def test_without_coordinates(adata):
    new = adata.copy()
    del new.obsm["spatial"]
    keys = set(new.obsm)
    with pytest.raises(ValueError, match=r"no coordinates in obsm\['spatial'\]"):
        stfuse.tl.neighbor_mean(new)
    assert set(new.obsm) == keys and not new.uns
    model = fit(adata.copy(), n_components=4)
    with pytest.raises(ValueError, match=r"no coordinates in obsm\['spatial'\].*stfuse.tl.concat"):
        model.codes(new)
    with pytest.raises(ValueError, match=r"no coordinates in obsm\['spatial'\]"):
        fit(new)
    adata.obsm["spatial"][3] = np.nan
    with pytest.raises(ValueError, match="or not for every observation"):
        stfuse.tl.neighbor_mean(adata, library_key="section")


@pytest.mark.parametrize(
    ("params", "error", "words"),
    [
        ({"n_neighbors": 0}, ValueError, "n_neighbors must be a whole number of at least 1, got 0"),
        ({"n_neighbors": 2.0}, TypeError, "n_neighbors must be a whole number"),
        ({"n_neighbors": None}, TypeError, "n_neighbors must be a whole number"),
        ({"n_components": 0}, ValueError, "n_components must be a whole number of at least 1"),
        ({"scale": "no"}, TypeError, "scale must be True, False or None"),
    ],
    ids=lambda p: str(p) if isinstance(p, dict) else "",
)
def test_bad_arguments(adata, params, error, words):
    with pytest.raises(error, match=words):
        fit(adata, **params)
    with pytest.raises(error, match=words):
        stfuse.tl.neighbor_mean(adata, **params)
    assert "X_neighbor_mean" not in adata.obsm and "neighbor_mean" not in adata.uns


def test_small_and_stacked_sections_are_told_once(adata):
    adata.obs["section"] = np.where(np.arange(N) < 112, "a", "few")
    with pytest.warns(UserWarning, match="'few': 8.*same mean") as told:
        stfuse.tl.neighbor_mean(adata, library_key="section")
    assert [w.filename for w in told if w.category is UserWarning] == [__file__]
    stacked = stfuse.datasets.synthetic_tissue(200, n_sections=2)
    with pytest.warns(UserWarning, match="library_key=") as told:
        stfuse.tl.neighbor_mean(stacked)
    assert len([w for w in told if w.category is UserWarning]) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        stfuse.tl.neighbor_mean(stacked, library_key="section")


def test_only_a_fused_code(adata):
    with pytest.raises(ValueError, match="NeighborMean has no code named 'rna'"):
        fit(adata).get_latent_representation(view="rna")
