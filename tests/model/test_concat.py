"""Concat against principal components of scikit-learn."""

import numpy as np
import pytest
from sklearn.decomposition import PCA

from stfuse.model import Concat


def fit(adata, **params):
    Concat.setup_anndata(adata)
    model = Concat(adata, **params)
    model.train()
    return model


def same_up_to_sign(a, b, **kwargs):
    np.testing.assert_allclose(a * np.sign((a * b).sum(0)), b, **kwargs)


@pytest.mark.parametrize("scale", [False, True])
def test_blocks_are_principal_components_of_one_size(two_views, scale):
    adata = two_views(300)
    fused = fit(adata, n_components=5, scale=scale).codes().fused
    assert fused.shape == (300, 10)
    for block, key in ((fused[:, :5], "X_image"), (fused[:, 5:], "X_pca")):
        x = adata.obsm[key].astype(float)
        if scale:
            x = np.clip((x - x.mean(0)) / x.std(0), -3, 3)
        pcs = PCA(5).fit_transform(x)
        same_up_to_sign(block, pcs / np.sqrt(pcs.var(0).sum()), atol=2e-4)
        assert block.var(0).sum() == pytest.approx(1, abs=1e-4)


def test_neither_units_nor_width_give_a_view_more_weight(two_views):
    adata = two_views(300)
    before = fit(adata, n_components=4, scale=True).codes().fused
    adata.obsm["X_image"] = np.hstack([adata.obsm["X_image"] * np.float32(1000)] * 3)
    np.testing.assert_allclose(fit(adata, n_components=4, scale=True).codes().fused, before, atol=1e-3)


def test_a_missing_view_is_its_mean(two_views):
    adata = two_views(100)
    adata.obsm["X_image"][:20] = np.nan
    adata.obsm["X_pca"][10:30] = np.nan
    fused = fit(adata, n_components=4).codes().fused
    assert (fused[:10, :4] == 0).all() and (fused[20:30, 4:] == 0).all()
    assert np.isnan(fused[10:20]).all() and np.isfinite(np.delete(fused, np.arange(10, 20), 0)).all()


def test_no_more_components_than_features(two_views):
    assert fit(two_views(100, p=3, q=2), n_components=30).codes().fused.shape == (100, 5)


def test_only_a_fused_code(two_views):
    model = fit(two_views(50))
    with pytest.raises(ValueError, match="Concat has no code named 'image'"):
        model.get_latent_representation(view="image")
    with pytest.raises(ValueError, match="n_components must be a whole number of at least 1"):
        Concat(model.adata, n_components=0)
