import warnings

import anndata as ad
import mudata
import numpy as np
import pytest

import stfuse


def two_modalities():
    """A MuData with counts in `rna` (in another order) and features in `image`, of overlapping observations."""
    adata = stfuse.datasets.synthetic_tissue(200, seed=1)
    rna = ad.AnnData(adata.X.copy(), obs=adata.obs[[]].copy(), var=adata.var.copy())[50:].copy()
    image = ad.AnnData(obs=adata.obs[[]].copy(), obsm={"X_image": adata.obsm["X_image"]})[::-1][20:].copy()
    return mudata.MuData({"rna": rna, "image": image})


def test_from_a_view_that_the_fusion_made():
    """It lies in the global obsm, not in the modality."""
    mdata = two_modalities()
    model = stfuse.tl.pcca(mdata, return_model=True)
    made = mdata.obsm["X_pca"].copy()
    stfuse.tl.translate(mdata, model, source="rna", target="image")
    found = np.isfinite(mdata.obsm["translated_image"]).all(1)
    np.testing.assert_array_equal(found, mdata.obs_names.isin(mdata["rna"].obs_names))
    again = mdata.obsm["X_pcca"].copy()
    stfuse.tl.pcca(mdata)
    np.testing.assert_array_equal(mdata.obsm["X_pca"], made)
    np.testing.assert_array_equal(mdata.obsm["X_pcca"], again)


def test_pairs_are_not_spoken_of_where_they_do_not_matter():
    mdata = two_modalities()
    stfuse.pp.hide_pairs(mdata, 0.5)
    model = stfuse.tl.pcca(mdata, paired_key="paired", return_model=True)
    new = stfuse.datasets.synthetic_tissue(100, seed=1)
    new.obs["paired"] = False
    plain = stfuse.tl.pcca(stfuse.datasets.synthetic_tissue(100, seed=1), return_model=True)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*marks some observations")
        stfuse.tl.translate(mdata, model, source="image", target="rna")
        plain.codes(new)


@pytest.mark.parametrize("key", ["X_image", "X_pca", "spatial"])
def test_what_was_read_is_not_written_over(key):
    adata = stfuse.datasets.synthetic_tissue(100, seed=1)
    model = stfuse.tl.pcca(adata, return_model=True)
    before = adata.obsm[key].copy()
    with pytest.raises(ValueError, match=f"key_added='{key}' would overwrite"):
        stfuse.tl.translate(adata, model, key_added=key)
    np.testing.assert_array_equal(adata.obsm[key], before)
