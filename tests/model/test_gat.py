import warnings

import numpy as np
import pytest
import torch
from anndata import concat

import stfuse
from stfuse.model import GAT
from stfuse.model import _gat as module_under_test

SMALL = {"n_latent": 4, "n_hidden": 8, "n_heads": 2, "n_top_genes": 60}


@pytest.fixture(scope="module")
def bulb():
    adata = stfuse.datasets.mob()[::6].copy()
    del adata.uns["spatial"]
    return adata


def _trained(adata, seed=0, train=None, **kwargs):
    GAT.setup_anndata(adata, library_key="section")
    model = GAT(adata, **(SMALL | kwargs))
    model.train(
        **({"max_epochs": 2, "batch_size": 100, "device": "cpu", "progress": False, "seed": seed} | (train or {}))
    )
    return model


@pytest.fixture(scope="module")
def model(bulb):
    return _trained(bulb.copy())


def test_codes(bulb, model):
    codes = model.get_latent_representation()
    assert codes.shape == (bulb.n_obs, 4) and codes.dtype == np.float32 and np.isfinite(codes).all()
    np.testing.assert_array_equal(codes, model.get_latent_representation(bulb))
    assert len(model.genes_) == 60 and set(model.genes_) <= set(bulb.var_names)
    assert list(model.history) == ["masked", "held_out_masked"]


@pytest.mark.parametrize("size", [9, 64])
def test_codes_in_parts_are_those_of_the_whole(bulb, model, monkeypatch, size):
    whole = model.get_latent_representation(bulb)
    monkeypatch.setattr(module_under_test, "CHUNK", size)
    np.testing.assert_allclose(model.get_latent_representation(bulb), whole, atol=1e-5)


def test_sections_do_not_see_each_other(bulb, model):
    other = bulb.obs["section"] == "MOB2"
    changed = bulb.copy()
    x = changed.X.toarray()
    x[other] = np.random.default_rng(0).permutation(x[other], axis=1)
    changed.X = x
    before, after = model.get_latent_representation(bulb), model.get_latent_representation(changed)
    np.testing.assert_array_equal(before[~other], after[~other])
    assert (before[other] != after[other]).any(axis=1).all()


def test_neighbours_matter_within_two_layers_and_no_further(bulb, model):
    one = bulb[bulb.obs["section"] == "MOB1"].copy()
    table = stfuse._neighbors.section_neighbors(one.obsm["spatial"], np.zeros(one.n_obs, int), 6)
    reached = {0}
    for _ in range(2):
        reached |= {i for i in range(one.n_obs) if set(table[i]) & reached}
    changed = one.copy()
    x = changed.X.toarray()
    x[0] = x[0][::-1]
    changed.X = x
    differs = (model.get_latent_representation(one) != model.get_latent_representation(changed)).any(axis=1)
    assert 1 < len(reached) < one.n_obs
    assert set(np.flatnonzero(differs)) == reached


def test_the_order_of_observations_does_not_matter(bulb, model):
    order = np.random.default_rng(1).permutation(bulb.n_obs)
    expected = model.get_latent_representation(bulb)[order]
    np.testing.assert_allclose(model.get_latent_representation(bulb[order].copy()), expected, atol=1e-5)


def test_the_order_of_genes_does_not_matter(bulb, model):
    order = np.random.default_rng(1).permutation(bulb.n_vars)
    expected = model.get_latent_representation(bulb)
    np.testing.assert_allclose(model.get_latent_representation(bulb[:, order].copy()), expected, atol=1e-5)


def test_same_seed_same_codes(bulb, model):
    torch.manual_seed(99)
    again = _trained(bulb.copy()).get_latent_representation()
    np.testing.assert_array_equal(again, model.get_latent_representation())
    assert not np.allclose(_trained(bulb.copy(), seed=1).get_latent_representation(), again, atol=1e-3)


@pytest.mark.parametrize("loss", ["mse", "nb"])
def test_saved_and_loaded(bulb, model, tmp_path, loss):
    model = model if loss == "mse" else _trained(bulb.copy(), loss="nb")
    model.save(tmp_path / "gat")
    loaded = GAT.load(tmp_path / "gat")
    np.testing.assert_array_equal(loaded.get_latent_representation(bulb), model.get_latent_representation())
    assert loaded.genes_ == model.genes_ and loaded.report_ == model.report_
    np.testing.assert_allclose(loaded.history["masked"], model.history["masked"])
    with pytest.raises(ValueError, match="loaded without data"):
        loaded.get_latent_representation()
    attached = GAT.load(tmp_path / "gat", bulb.copy())
    np.testing.assert_array_equal(attached.get_latent_representation(), model.get_latent_representation())


def test_empty_observations_have_no_code_and_are_no_neighbours(bulb):
    adata = bulb.copy()
    x = adata.X.toarray()
    empty = np.zeros(adata.n_obs, bool)
    empty[[3, 100]] = True
    x[empty] = 0
    adata.X = x
    adata.obsm["spatial"] = adata.obsm["spatial"].astype(float)
    adata.obsm["spatial"][3] = np.nan  # where nothing is, no place is needed
    with pytest.warns(UserWarning, match="2 of .* have no counts"):
        model = _trained(adata)
    codes = model.get_latent_representation()
    np.testing.assert_array_equal(np.isnan(codes).all(1), empty)
    assert np.isfinite(codes[~empty]).all()
    np.testing.assert_allclose(model.get_latent_representation(adata[~empty].copy()), codes[~empty], atol=1e-5)


def test_genes_that_are_missing_count_as_hidden(bulb, model):
    part = bulb[:, ~bulb.var_names.isin(model.genes_[:5])].copy()
    with pytest.warns(UserWarning, match="5 of the model's 60 genes .* count as hidden"):
        codes = model.get_latent_representation(part)
    assert np.isfinite(codes).all() and not np.allclose(codes, model.get_latent_representation(bulb))
    # sizes of observations are those of the genes that are there; so compare with data that have none of these genes
    zero = bulb.copy()
    x = zero.X.toarray()
    x[:, zero.var_names.isin(model.genes_[:5])] = 0
    zero.X = x
    module = model.module
    learnt = module.hidden_value.detach()[:5].clone()
    with torch.no_grad():
        module.hidden_value[:5] = -(module.mean / module.scale)[:5]  # what a zero looks like
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            as_zero = model.get_latent_representation(part)
    finally:
        with torch.no_grad():
            module.hidden_value[:5] = learnt
    np.testing.assert_allclose(as_zero, model.get_latent_representation(zero), atol=1e-5)


def test_too_few_genes(bulb, model):
    part = bulb[:, ~bulb.var_names.isin(model.genes_[:31])].copy()
    with pytest.raises(ValueError, match="Only 29 of the model's 60 genes .* name genes in the same way"):
        model.get_latent_representation(part)


def test_new_sections_need_the_column(bulb, model):
    new = bulb.copy()
    del new.obs["section"]
    with pytest.raises(KeyError, match="trained with library_key='section'"):
        model.get_latent_representation(new)


def test_genes_are_ranked_within_sections(bulb):
    GAT.setup_anndata(adata := bulb.copy(), library_key="section")
    model = GAT(adata, **SMALL)
    import scanpy as sc

    found = sc.pp.highly_variable_genes(bulb, flavor="seurat_v3", n_top_genes=60, batch_key="section", inplace=False)
    model.train(max_epochs=1, device="cpu", progress=False)
    assert set(model.genes_) == set(bulb.var_names[found["highly_variable"]])
    GAT.setup_anndata(adata := bulb.copy())
    model = GAT(adata, **(SMALL | {"n_top_genes": None}))
    with pytest.warns(UserWarning, match="lie exactly where another"):
        GAT.setup_anndata(concat([bulb, bulb], index_unique="-"))
    model.train(max_epochs=1, device="cpu", progress=False)
    assert model.genes_ == list(bulb.var_names)


def test_training_stops_early_and_keeps_the_best(bulb):
    model = _trained(bulb.copy(), train={"max_epochs": 60, "patience": 1, "lr": 0.05})
    history = model.history["held_out_masked"].iloc[:, 0]
    best = model.report_["best_epoch"]
    assert len(history) == best + 1 < 60
    assert model.report_["held_out_masked"] == pytest.approx(history.min())


def test_no_observation_is_held_out_of_few(bulb):
    model = _trained(bulb[bulb.obs["section"] == "MOB1"][:40].copy())
    assert list(model.history) == ["masked"] and model.report_ == {}


def test_diverging(bulb):
    with pytest.raises(RuntimeError, match="diverged"):
        _trained(bulb.copy(), train={"lr": 1e30, "gradient_clip": None, "patience": None, "max_epochs": 3})


def test_a_failed_training_leaves_the_former_one(bulb, model):
    before = model.get_latent_representation()
    with pytest.raises(ValueError, match="max_epochs"):
        model.train(max_epochs=0)
    np.testing.assert_array_equal(model.get_latent_representation(), before)


def test_untrained(bulb):
    GAT.setup_anndata(adata := bulb.copy(), library_key="section")
    with pytest.raises(RuntimeError, match="not trained yet"):
        GAT(adata, **SMALL).get_latent_representation()
