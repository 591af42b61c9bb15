import builtins
import os
import random
import sys
import warnings

import anndata as ad
import harmonypy
import numpy as np
import pandas as pd
import pytest
import torch
from anndata import AnnData
from scipy.sparse import csr_matrix

from stfuse.datasets import mob, synthetic_tissue
from stfuse.pp import correct_batch, rna_features
from stfuse.pp._correct import _harmony, _scanorama

mudata = pytest.importorskip("mudata")

KEYS = {"harmony": "X_pca_harmony", "scvi": "X_pca_scvi", "scanorama": "X_pca_scanorama"}


def tissue(n=240, sections=3, **kwargs):
    options = {"n_genes": 40, "n_image_features": 12, "batch_effect": 1.5, "missing_rna": 0.05, "missing_image": 0.05}
    adata = synthetic_tissue(n, sections, **(options | kwargs))
    adata.layers["counts"] = adata.X.copy()
    adata.obs["batch"] = adata.obs["section"].astype(str).to_numpy()
    return adata


@pytest.fixture(scope="module")
def prepared():
    return tissue()


@pytest.fixture
def adata(prepared):
    return prepared.copy()


def options(method):
    return {"max_epochs": 2, "progress": False} if method == "scvi" else {}


def centroids_apart(values, batch):
    """Mean distance between the batches' centroids, in units of the spread."""
    present = np.isfinite(values).all(axis=1)
    values, batch = values[present], np.asarray(batch)[present]
    centres = np.stack([values[batch == name].mean(0) for name in np.unique(batch)])
    distances = [np.linalg.norm(a - b) for i, a in enumerate(centres) for b in centres[:i]]
    return np.mean(distances) / np.sqrt(values.var(0).sum())


pytestmark = pytest.mark.filterwarnings("ignore:.*have no counts")
every_method = pytest.mark.parametrize("method", list(KEYS))


# what is written


@every_method
def test_writes_its_slots_and_nothing_else(adata, method, capfd, contents):
    if method == "scanorama":
        pytest.importorskip("scanorama")
    original, before = adata.copy(), contents(adata)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert correct_batch(adata, "X_pca", batch_key="batch", method=method, **options(method)) is None
    shown = [w for w in caught if issubclass(w.category, UserWarning) and "have no counts" not in str(w.message)]
    assert not shown, [str(w.message) for w in shown]
    assert capfd.readouterr() == ("", "")
    key = KEYS[method]
    result, record = adata.obsm.pop(key), adata.uns.pop(key)
    np.testing.assert_equal(contents(adata), before)
    assert result.dtype == np.float32 and result.shape == original.obsm["X_pca"].shape
    np.testing.assert_array_equal(np.isnan(result).all(axis=1), ~original.obs["has_rna"])
    np.testing.assert_array_equal(np.isnan(result).any(axis=1), ~original.obs["has_rna"])
    assert record["method"] == method and record["corrected"] == "X_pca" and record["batch_key"] == "batch"
    expected = original.obs["batch"][original.obs["has_rna"]].value_counts().sort_index()
    assert record["batches"]["n_obs"].to_dict() == expected.to_dict()
    assert record["n_obs"] == {"total": 240, "corrected": int(original.obs["has_rna"].sum())}
    wanted = {"harmony": {"theta"}, "scanorama": {"sigma", "knn"}}
    assert set(record["params"]) == wanted.get(method, {"n_layers", "n_latent", "max_epochs", "layer"})


@every_method
def test_same_result_twice_copy_and_round_trip(adata, method, tmp_path, contents):
    if method == "scanorama":
        pytest.importorskip("scanorama")
    before = contents(adata)
    call = {"batch_key": "batch", "method": method, "seed": 3, **options(method)}
    changed = correct_batch(adata, "X_pca", copy=True, **call)
    np.testing.assert_equal(contents(adata), before)
    correct_batch(adata, "X_pca", **call)
    key = KEYS[method]
    np.testing.assert_array_equal(changed.obsm[key], adata.obsm[key])
    correct_batch(adata, "X_pca", **call)  # an earlier result is replaced
    np.testing.assert_array_equal(changed.obsm[key], adata.obsm[key])
    for name, write, read in (("x.h5ad", "write_h5ad", ad.read_h5ad), ("x.zarr", "write_zarr", ad.read_zarr)):
        getattr(adata, write)(tmp_path / name)
        back = read(tmp_path / name)
        np.testing.assert_array_equal(back.obsm[key], adata.obsm[key])
        assert back.uns[key]["method"] == method
        assert list(back.uns[key]["batches"].index) == list(adata.uns[key]["batches"].index)
        correct_batch(back, "X_pca", **call)  # is known again as a result of its own


# Harmony


def test_harmony_is_harmonypy(adata):
    present = adata.obs["has_rna"].to_numpy()
    values = adata.obsm["X_pca"][present]
    for theta in (0, 2.0, 8):
        expected = harmonypy.run_harmony(
            values, adata.obs.loc[present, ["batch"]], "batch", theta=theta, random_state=5, verbose=False
        ).Z_corr
        correct_batch(adata, "X_pca", batch_key="batch", theta=theta, seed=5)
        np.testing.assert_allclose(adata.obsm["X_pca_harmony"][present], expected, rtol=1e-5, atol=1e-5)
        assert adata.uns["X_pca_harmony"]["params"] == {"theta": theta}


def test_as_many_observations_as_features():
    rng = np.random.default_rng(0)
    values, batch = rng.normal(size=(60, 60)), np.arange(60) % 2
    values[batch == 1] += 2
    # harmonypy can't tell rows from columns here; a column of zeros changes no distance
    padded = np.column_stack([values, np.zeros(60)])
    expected = harmonypy.run_harmony(padded, pd.DataFrame({"b": batch}), "b", theta=2.0, verbose=False).Z_corr
    square = _harmony.harmony(values, batch, theta=2.0, seed=0)
    np.testing.assert_allclose(square, expected[:, :60], atol=1e-5)
    turned = harmonypy.run_harmony(values, pd.DataFrame({"b": batch}), "b", theta=2.0, verbose=False).Z_corr
    assert np.abs(square - turned).max() > 0.1


@pytest.mark.parametrize("n", [2, 3, 6, 15, 45])
def test_few_observations(n):
    adata = AnnData(obs=pd.DataFrame({"b": np.arange(n) < max(1, n // 3)}, index=[str(i) for i in range(n)]))
    adata.obsm["X_c"] = np.random.default_rng(n).normal(size=(n, 4)) + 5 * adata.obs[["b"]].to_numpy()
    if n == 2:
        with pytest.raises(ValueError, match="Each of the 2 observations.*is a batch of its own.*name the column"):
            correct_batch(adata, "X_c", batch_key="b")
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        correct_batch(adata, "X_c", batch_key="b")
    assert np.isfinite(adata.obsm["X_c_harmony"]).all()
    assert centroids_apart(adata.obsm["X_c_harmony"], adata.obs["b"]) < centroids_apart(
        adata.obsm["X_c"], adata.obs["b"]
    )


def test_names_and_order_of_batches_do_not_matter(adata):
    correct_batch(adata, "X_pca", batch_key="batch")
    names = sorted(set(adata.obs["batch"]))
    turned = adata.obs["batch"].map(dict(zip(names, ["z", "m/n", "a"], strict=True)))
    adata.obs["turned"] = pd.Categorical(turned, categories=["unused", "z", "m/n", "a"])
    correct_batch(adata, "X_pca", batch_key="turned", key_added="X_turned")
    np.testing.assert_allclose(adata.obsm["X_turned"], adata.obsm["X_pca_harmony"], atol=1e-3)
    assert list(adata.uns["X_turned"]["batches"].index) == ["a", "m/n", "z"]


def test_sections_of_the_bulb_come_together():
    adata = mob()
    rna_features(adata, n_comps=20, batch_key="section")
    before = centroids_apart(adata.obsm["X_pca"], adata.obs["section"])
    correct_batch(adata, "X_pca", batch_key="section")
    assert centroids_apart(adata.obsm["X_pca_harmony"], adata.obs["section"]) < 0.7 * before
    # the layers stay apart
    layers = centroids_apart(adata.obsm["X_pca_harmony"], adata.obs["layer"])
    assert layers > 0.9 * centroids_apart(adata.obsm["X_pca"], adata.obs["layer"])


@every_method
def test_global_state_is_left_alone(adata, method):
    if method == "scanorama":
        pytest.importorskip("scanorama")
        for name in [name for name in sys.modules if name.split(".")[0] == "scanorama"]:
            del sys.modules[name]  # its import seeds numpy
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    settings = torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic, torch.get_num_threads()
    folder, variables = set(os.listdir()), {k: os.environ.get(k) for k in ("PL_GLOBAL_SEED", "PL_SEED_WORKERS")}
    correct_batch(adata, "X_pca", batch_key="batch", method=method, **options(method))
    assert before == (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())
    assert settings == (
        torch.backends.cudnn.benchmark,
        torch.backends.cudnn.deterministic,
        torch.get_num_threads(),
    )
    assert folder == set(os.listdir())
    assert variables == {k: os.environ.get(k) for k in variables}


# Scanorama


def test_scanorama_is_scanorama(adata):
    scanorama = pytest.importorskip("scanorama")
    present = adata.obs["has_rna"].to_numpy()
    values, batch = adata.obsm["X_pca"][present].astype(float), adata.obs["batch"].to_numpy()[present]
    sizes = pd.Series(batch).value_counts()
    assert sizes.is_unique
    names = [sizes.index[0], sizes.index[2], sizes.index[1]]
    centre = values.mean(0)
    unit = np.sqrt(((values - centre) ** 2).sum(1).mean())
    parts = [(values[batch == name] - centre) / unit for name in names]
    found = scanorama.assemble(parts, knn=12, sigma=20, approx=False, verbose=False)
    correct_batch(adata, "X_pca", batch_key="batch", method="scanorama", sigma=20, knn=12)
    result = adata.obsm["X_pca_scanorama"][present]
    for name, part in zip(names, found, strict=True):
        np.testing.assert_allclose(result[batch == name], np.asarray(part) * unit + centre, rtol=1e-4, atol=1e-4)
    assert adata.uns["X_pca_scanorama"]["params"] == {"sigma": 20, "knn": 12}
    assert "scanorama" in adata.uns["X_pca_scanorama"]["versions"]


def test_scanorama_keeps_to_rows_names_and_scale(adata):
    pytest.importorskip("scanorama")
    call = {"batch_key": "batch", "method": "scanorama"}
    correct_batch(adata, "X_pca", **call)
    expected = adata.obsm["X_pca_scanorama"]
    order = np.random.default_rng(0).permutation(adata.n_obs)
    mixed = adata[order].copy()
    names = sorted(set(adata.obs["batch"]))
    mixed.obs["batch"] = mixed.obs["batch"].map(dict(zip(names, ["z", "m", "a"], strict=True)))
    mixed.obsm["X_pca"] = mixed.obsm["X_pca"] * 1000 + 7
    correct_batch(mixed, "X_pca", **call)
    np.testing.assert_allclose((mixed.obsm["X_pca_scanorama"] - 7) / 1000, expected[order], rtol=1e-2, atol=1e-3)


def test_scanorama_brings_batches_together(adata):
    pytest.importorskip("scanorama")
    correct_batch(adata, "X_pca", batch_key="batch", method="scanorama")
    before = centroids_apart(adata.obsm["X_pca"], adata.obs["batch"])
    assert centroids_apart(adata.obsm["X_pca_scanorama"], adata.obs["batch"]) < 0.8 * before


def test_scanorama_on_few_and_on_strangers(adata):
    pytest.importorskip("scanorama")
    call = {"batch_key": "batch", "method": "scanorama"}
    adata.obs["batch"] = np.where(np.arange(240) < 235, "many", "few")
    with pytest.warns(UserWarning, match="second largest batch has [45] observation.*compares knn=[45]"):
        correct_batch(adata, "X_pca", **call)
    assert adata.uns["X_pca_scanorama"]["params"]["knn"] == 20
    rng = np.random.default_rng(0)
    strange = AnnData(obs=pd.DataFrame({"batch": list("ab") * 60 + ["c"] * 60}, index=[str(i) for i in range(180)]))
    values = rng.normal(size=(180, 6))
    values[:120, 0] += 9
    values[120:, 1] += 40
    strange.obsm["X_c"] = values
    with pytest.warns(UserWarning, match="1 of 3 batches match no other one.*stay as they are: 'c'"):
        correct_batch(strange, "X_c", knn=5, **call)
    np.testing.assert_allclose(strange.obsm["X_c_scanorama"][120:], values[120:], rtol=1e-5)


def test_approximate_neighbours_do_about_the_same(adata, monkeypatch):
    pytest.importorskip("scanorama")
    call = {"batch_key": "batch", "method": "scanorama"}
    correct_batch(adata, "X_pca", **call)
    monkeypatch.setattr(_scanorama, "EXACT", 10)
    correct_batch(adata, "X_pca", key_added="X_approximate", **call)
    a, b = (adata.obsm[key] - adata.obsm["X_pca"] for key in ("X_pca_scanorama", "X_approximate"))
    present = np.isfinite(a[:, 0])
    assert np.corrcoef(a[present].ravel(), b[present].ravel())[0, 1] > 0.9


def test_scanorama_is_optional(adata, monkeypatch):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name == "scanorama":
            raise ImportError("No module named 'scanorama'")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=r"pip install 'stfuse\[correction\]'"):
        correct_batch(adata, "X_pca", batch_key="batch", method="scanorama")


# scVI


def test_scvi_reads_counts_and_leaves_no_trace(adata):
    import scvi

    stores = scvi.model.SCVI._setup_adata_manager_store, scvi.model.SCVI._per_instance_manager_store
    held = len(stores[0]), sum(map(len, stores[1].values()))
    expected = adata.copy()
    call = {"batch_key": "batch", "method": "scvi", **options("scvi")}
    correct_batch(expected, "X_pca", **call)
    adata.X = np.log1p(adata.X)
    correct_batch(adata, "X_pca", layer="counts", **call)
    np.testing.assert_array_equal(adata.obsm["X_pca_scvi"], expected.obsm["X_pca_scvi"])
    record = adata.uns["X_pca_scvi"]
    assert record["params"] == {"n_layers": 1, "n_latent": 30, "max_epochs": 2, "layer": "counts"}
    assert list(record["history"].columns) == ["elbo_train"] and len(record["history"]) == 2
    assert not [key for key in [*adata.obs, *adata.uns, *adata.obsm] if key.startswith("_scvi")]
    assert held == (len(stores[0]), sum(map(len, stores[1].values())))
    other = adata.copy()
    correct_batch(other, "X_pca", layer="counts", seed=1, **call)
    assert not np.allclose(other.obsm["X_pca_scvi"], adata.obsm["X_pca_scvi"], equal_nan=True)


def test_scvi_width_and_missing_rows(adata):
    call = {"batch_key": "batch", "method": "scvi", "n_layers": 2, **options("scvi")}
    correct_batch(adata, "X_new", **call)  # there need be no such features
    assert adata.obsm["X_new_scvi"].shape == (240, 20)
    adata.obsm["X_pca"][:7] = np.nan
    correct_batch(adata, "X_pca", n_latent=4, **call)
    missing = ~adata.obs["has_rna"].to_numpy()
    missing[:7] = True
    assert adata.obsm["X_pca_scvi"].shape == (240, 4)
    np.testing.assert_array_equal(np.isnan(adata.obsm["X_pca_scvi"]).all(1), missing)


def test_scvi_is_scvi():
    import scvi

    adata = tissue(130, 2, missing_rna=0, missing_image=0)
    correct_batch(adata, "X_pca", batch_key="batch", method="scvi", n_latent=4, seed=9, **options("scvi"))
    earlier, state = scvi.settings.seed, torch.get_rng_state()
    other = AnnData(adata.X, obs=adata.obs[["batch"]])
    scvi.settings.seed = 9
    scvi.model.SCVI.setup_anndata(other, batch_key="batch")
    model = scvi.model.SCVI(other, n_latent=4)
    model.train(max_epochs=2, accelerator="cpu", devices=1, enable_progress_bar=False, benchmark=False)
    scvi.settings.seed = earlier
    torch.set_rng_state(state)
    np.testing.assert_allclose(adata.obsm["X_pca_scvi"], model.get_latent_representation(), atol=1e-5)


@pytest.mark.parametrize(
    ("spoil", "kwargs", "error", "message"),
    [
        (lambda a: setattr(a, "X", np.log1p(a.X)), {}, ValueError, "not whole numbers.*layer=.*Layers there: 'counts'"),
        (lambda a: setattr(a, "X", None), {}, ValueError, "X is empty.*Layers: counts"),
        (lambda a: a.layers.pop("counts"), {"layer": "counts"}, KeyError, "No layer 'counts'"),
        (lambda a: setattr(a, "X", a.X * 0), {}, ValueError, "Only 0 of 240 observations have counts"),
        (lambda a: setattr(a, "X", -a.X), {}, ValueError, "negative values.*scVI starts from raw counts"),
        (None, {"rep": "X_image"}, ValueError, "image features.*method='harmony'"),
        (None, {"device": "abacus"}, ValueError, "device must be"),
    ],
)
def test_scvi_without_counts(adata, spoil, kwargs, error, message, contents):
    if spoil is not None:
        spoil(adata)
    before = contents(adata)
    with pytest.raises(error, match=message):
        correct_batch(adata, kwargs.pop("rep", "X_pca"), batch_key="batch", method="scvi", max_epochs=1, **kwargs)
    np.testing.assert_equal(contents(adata), before)


# batches


@pytest.mark.parametrize("method", ["harmony", "scanorama"])
def test_one_batch(adata, method):
    if method == "scanorama":
        pytest.importorskip("scanorama")
    adata.obs["batch"] = "all"
    with pytest.warns(UserWarning, match=r"one batch of obs\['batch'\].*'all': the features stay as they are"):
        correct_batch(adata, "X_pca", batch_key="batch", method=method)
    np.testing.assert_array_equal(adata.obsm[KEYS[method]], adata.obsm["X_pca"])


def test_one_batch_scvi(adata):
    adata.obs["batch"] = "all"
    with pytest.warns(UserWarning, match="scVI describes this batch alone"):
        correct_batch(adata, "X_pca", batch_key="batch", method="scvi", **options("scvi"))
    assert np.isfinite(adata.obsm["X_pca_scvi"]).any()


@every_method
def test_a_batch_with_one_observation(adata, method):
    if method == "scanorama":
        pytest.importorskip("scanorama")
    where = np.flatnonzero(adata.obs["has_rna"])[10]
    adata.obs.iloc[where, adata.obs.columns.get_loc("batch")] = "alone"
    with pytest.warns(UserWarning, match="1 of 4 batches.*have one observation \\('alone'\\)"):
        correct_batch(adata, "X_pca", batch_key="batch", method=method, **options(method))
    np.testing.assert_array_equal(np.isfinite(adata.obsm[KEYS[method]]).all(1), adata.obs["has_rna"])


# containers


def mudata_of(adata, rep_in="rna"):
    rna, image = adata[::-1].copy(), adata[40:].copy()
    image = AnnData(obs=image.obs[["batch"]], obsm={"X_image": image.obsm["X_image"]})
    if rep_in != "rna":
        del rna.obsm["X_pca"]
    del rna.obsm["X_image"]
    data = mudata.MuData({"rna": rna, "image": image})
    if rep_in == "global":
        data.obsm["X_pca"] = adata[data.obs_names].obsm["X_pca"]
    return data


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("rep_in", ["rna", "global"])
def test_mudata(adata, rep_in):
    data = mudata_of(adata, rep_in)
    correct_batch(data, "X_pca", batch_key="batch")
    ordered = adata[data.obs_names].copy()
    correct_batch(ordered, "X_pca", batch_key="batch")
    np.testing.assert_allclose(data.obsm["X_pca_harmony"], ordered.obsm["X_pca_harmony"], atol=1e-4)
    assert data.uns["X_pca_harmony"]["corrected"] == "X_pca"
    correct_batch(data, "X_image", batch_key="batch")
    missing = ~data.obs_names.isin(data["image"].obs_names) | ~ordered.obs["has_image"].to_numpy()
    np.testing.assert_array_equal(np.isnan(data.obsm["X_image_harmony"]).all(1), missing)
    call = {"batch_key": "batch", "method": "scvi", **options("scvi")}
    correct_batch(data, "X_pca", **call)
    correct_batch(ordered, "X_pca", **call)
    np.testing.assert_array_equal(data.obsm["X_pca_scvi"], ordered.obsm["X_pca_scvi"])
    with pytest.raises(ValueError, match="are image features"):
        correct_batch(data, "X_image", **call)
    data["rna"].obsm["X_mine"] = data["rna"].obsm["spatial"]
    with pytest.raises(ValueError, match=r"mdata\['rna'\].obsm\['X_mine'\] is there already"):
        correct_batch(data, "X_pca", batch_key="batch", key_added="X_mine")
    with pytest.raises(KeyError, match="No obsm\\['X_pcb'\\]. Did you mean 'X_pca'"):
        correct_batch(data, "X_pcb", batch_key="batch")


def test_spatialdata(adata):
    spatialdata = pytest.importorskip("spatialdata")
    sdata = spatialdata.SpatialData(tables={"table": adata.copy()})
    correct_batch(adata, "X_pca", batch_key="batch")
    changed = correct_batch(sdata, "X_pca", batch_key="batch", table_key="table", copy=True)
    np.testing.assert_array_equal(changed["table"].obsm["X_pca_harmony"], adata.obsm["X_pca_harmony"])
    assert "X_pca_harmony" not in sdata["table"].obsm


def test_a_dataframe_and_backed_data(adata, tmp_path):
    correct_batch(adata, "X_pca", batch_key="batch")
    expected = adata.obsm["X_pca_harmony"]
    adata.obsm["X_table"] = pd.DataFrame(adata.obsm["X_pca"], index=adata.obs_names).rename(columns=str)
    adata.obsm["X_sparse"] = csr_matrix(np.nan_to_num(adata.obsm["X_pca"]))
    correct_batch(adata, "X_table", batch_key="batch")
    np.testing.assert_array_equal(adata.obsm["X_table_harmony"], expected)
    adata.write_h5ad(tmp_path / "x.h5ad")
    backed = ad.read_h5ad(tmp_path / "x.h5ad", backed="r")
    correct_batch(backed, "X_sparse", batch_key="batch")
    assert np.isfinite(backed.obsm["X_sparse_harmony"]).all()
    with pytest.raises(ValueError, match="backed"):
        correct_batch(backed, "X_pca", batch_key="batch", copy=True)


# bad input


def infinite(adata):
    adata.obsm["X_pca"][3, 2] = np.inf


def holes(adata):
    adata.obsm["X_pca"][np.flatnonzero(adata.obs["has_rna"])[0], 2] = np.nan


def nothing(adata):
    adata.obsm["X_pca"][:] = np.nan


def unknown(adata):
    adata.obs["batch"] = adata.obs["batch"].where(np.arange(240) > 3)


def own(adata):
    adata.obs["batch"] = adata.obs_names


def foreign(adata):
    adata.obsm["X_pca_harmony"] = adata.obsm["spatial"].copy()


def deep(adata):
    adata.obsm["X_pca"] = np.zeros((240, 3, 2))


@pytest.mark.parametrize(
    ("spoil", "kwargs", "error", "message"),
    [
        (None, {"rep": "X_pcaa"}, KeyError, "No obsm.*Did you mean 'X_pca'.*stfuse.pp.rna_features"),
        (None, {"rep": 3}, TypeError, "rep must be a string"),
        (None, {"batch_key": "bach"}, KeyError, "Did you mean 'batch'"),
        (None, {"batch_key": None}, TypeError, "batch_key must be a string"),
        (None, {"method": "Harmony"}, ValueError, "method must be one of 'harmony', 'scvi', 'scanorama'.*Did you mean"),
        (None, {"method": None}, ValueError, "method must be one of"),
        (None, {"sigma": 10}, ValueError, "sigma=10 belongs to method='scanorama'.*takes theta="),
        (None, {"layer": "counts"}, ValueError, "belongs to method='scvi'"),
        (None, {"method": "scvi", "theta": 0}, ValueError, "theta=0 belongs to method='harmony'"),
        (None, {"theta": -1}, ValueError, "theta must be a number of at least 0"),
        (None, {"theta": "2"}, TypeError, "theta must be"),
        (None, {"method": "scanorama", "sigma": 0}, ValueError, "sigma must be a number above 0"),
        (None, {"method": "scanorama", "knn": 0}, ValueError, "knn must be a whole number of at least 1"),
        (None, {"method": "scvi", "n_layers": 0}, ValueError, "n_layers must be"),
        (None, {"method": "scvi", "n_latent": 2.5}, TypeError, "n_latent must be"),
        (None, {"method": "scvi", "max_epochs": 0}, ValueError, "max_epochs must be"),
        (None, {"seed": -1}, ValueError, "seed must be"),
        (None, {"copy": "no"}, TypeError, "copy must be"),
        (None, {"key_added": "a/b"}, ValueError, "slash"),
        (None, {"key_added": "spatial"}, ValueError, "would overwrite what is read as coordinates"),
        (None, {"key_added": "X_pca"}, ValueError, "would overwrite what is read as rep"),
        (None, {"key_added": "X_image"}, ValueError, "which this function did not write"),
        (None, {"key_added": "synthetic_tissue"}, ValueError, "which this function did not write"),
        (foreign, {}, ValueError, "which this function did not write"),
        (infinite, {}, ValueError, "infinite"),
        (holes, {}, ValueError, "NaN inside 1 row"),
        (nothing, {}, ValueError, "All rows of obsm\\['X_pca'\\] are NaN"),
        (unknown, {}, ValueError, "4 missing value"),
        (own, {}, ValueError, "is a batch of its own"),
        (deep, {}, ValueError, "two-dimensional"),
    ],
)
def test_bad_input_changes_nothing(adata, spoil, kwargs, error, message, contents):
    if kwargs.get("method") == "scanorama":
        pytest.importorskip("scanorama")
    if spoil is not None:
        spoil(adata)
    before = contents(adata)
    call = {"rep": "X_pca", "batch_key": "batch"} | kwargs
    with pytest.raises(error, match=message):
        correct_batch(adata, call.pop("rep"), **call)
    np.testing.assert_equal(contents(adata), before)


def test_wrong_objects():
    with pytest.raises(TypeError, match="Expected AnnData, MuData or SpatialData"):
        correct_batch(np.zeros((3, 2)), "X_pca", batch_key="batch")
    empty = AnnData(np.zeros((0, 3)), obs=pd.DataFrame({"batch": []}))
    with pytest.raises(ValueError, match="no observations"):
        correct_batch(empty, "X_pca", batch_key="batch")
