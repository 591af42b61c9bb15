import numpy as np
import pytest
import scvi
from anndata import AnnData, read_h5ad

import stfuse

FAST = {"max_epochs": 2, "n_latent": 3, "n_hidden": 8, "device": "cpu", "progress": False}


@pytest.fixture
def bulb():
    adata = stfuse.datasets.mob()[::8, :80].copy()
    del adata.uns["spatial"]
    return adata


def test_it_is_scvi(bulb):
    stfuse.tl.scvi(bulb, batch_key="section", seed=3, **FAST)
    other = AnnData(bulb.X.astype(np.float32), obs=bulb.obs[["section"]].copy())
    seed = scvi.settings.seed
    scvi.settings.seed = 3
    try:
        scvi.model.SCVI.setup_anndata(other, batch_key="section")
        model = scvi.model.SCVI(other, n_latent=3, n_hidden=8)
        model.train(max_epochs=2, accelerator="cpu", benchmark=False, enable_progress_bar=False, logger=False)
    finally:
        scvi.settings.seed = seed
    np.testing.assert_allclose(bulb.obsm["X_scVI"], model.get_latent_representation(), atol=1e-5)


def test_what_is_written(bulb, contents, tmp_path):
    before = contents(bulb)
    assert stfuse.tl.scvi(bulb, **FAST) is None
    codes, record = bulb.obsm.pop("X_scVI"), bulb.uns.pop("scVI")
    np.testing.assert_equal(contents(bulb), before)  # nothing of scvi-tools either
    assert codes.shape == (bulb.n_obs, 3) and codes.dtype == np.float32 and np.isfinite(codes).all()
    assert record["method"] == "scvi" and record["params"]["max_epochs"] == 2 and len(record["history"]) == 2
    bulb.obsm["X_scVI"], bulb.uns["scVI"] = codes, record
    bulb.write_h5ad(tmp_path / "scvi.h5ad")
    np.testing.assert_array_equal(read_h5ad(tmp_path / "scvi.h5ad").obsm["X_scVI"], codes)


def test_model_layer_and_genes(bulb):
    bulb.layers["counts"] = bulb.X.copy()
    bulb.X = np.log1p(bulb.X)
    copy, model = stfuse.tl.scvi(
        bulb,
        layer="counts",
        batch_key="section",
        n_top_genes=30,
        copy=True,
        return_model=True,
        key_added="counts_scvi",
        **FAST,
    )
    assert isinstance(model, scvi.model.SCVI) and "X_counts_scvi" not in bulb.obsm
    genes = copy.uns["counts_scvi"]["genes"]
    assert len(genes) == 30 and list(model.adata.var_names) == list(genes)
    np.testing.assert_allclose(model.get_latent_representation(), copy.obsm["X_counts_scvi"], atol=1e-5)
    new = bulb[:40, genes].copy()
    np.testing.assert_allclose(model.get_latent_representation(new), copy.obsm["X_counts_scvi"][:40], atol=1e-5)


def test_empty_observations(bulb):
    x = bulb.X.toarray()
    x[[2, 9]] = 0
    bulb.X = x
    with pytest.warns(UserWarning, match="2 of .* have no counts"):
        stfuse.tl.scvi(bulb, **FAST)
    np.testing.assert_array_equal(np.flatnonzero(np.isnan(bulb.obsm["X_scVI"]).all(1)), [2, 9])
    assert bulb.uns["scVI"]["n_obs"] == {"total": bulb.n_obs, "rna": bulb.n_obs - 2}


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"layer": "counts"}, KeyError, "No layer 'counts'"),
        ({"batch_key": "donor"}, KeyError, "No obs column 'donor'"),
        ({"n_latent": 0}, ValueError, "n_latent"),
        ({"n_top_genes": 1}, ValueError, "n_top_genes"),
        ({"max_epochs": 0}, ValueError, "max_epochs"),
        ({"device": "tpu"}, ValueError, "device"),
        ({"return_model": "yes"}, TypeError, "return_model"),
        ({"key_added": "pca"}, ValueError, "would overwrite obsm"),
        ({"layer": "log"}, ValueError, "not whole numbers.*layer="),
        ({"layer": "negative"}, ValueError, "negative"),
    ],
)
def test_bad_input_changes_nothing(bulb, contents, options, error, message):
    bulb.layers["log"], bulb.layers["negative"] = np.log1p(bulb.X), bulb.X.toarray() - 1
    bulb.obsm["X_pca"] = np.zeros((bulb.n_obs, 2))
    before = contents(bulb)
    with pytest.raises(error, match=message):
        stfuse.tl.scvi(bulb, **(FAST | options))
    np.testing.assert_equal(contents(bulb), before)


def test_duplicated_genes_are_refused(bulb):
    bulb.var_names = [bulb.var_names[0], *bulb.var_names[:-1]]
    with pytest.raises(ValueError, match="var_names of the data are not unique"):
        stfuse.tl.scvi(bulb, **FAST)
