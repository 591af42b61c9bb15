import logging
import warnings

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
from anndata import AnnData

import stfuse
from stfuse.datasets import mob, synthetic_tissue
from stfuse.pp import correct_batch, recipe_cross_sample, rna_features

mudata = pytest.importorskip("mudata")

WRITTEN = ["X_pca", "X_image_pca", "X_pca_harmony", "X_image_pca_harmony"]
RECORDS = ["recipe_cross_sample", "X_pca", "X_pca_harmony", "X_image_pca_harmony"]
pytestmark = pytest.mark.filterwarnings("ignore:.*have no counts")


def tissue(n=240, sections=3, **kwargs):
    options = {"n_genes": 120, "n_image_features": 30, "batch_effect": 1.0, "pca": False}
    adata = synthetic_tissue(n, sections, **(options | kwargs))
    adata.obs["batch"] = adata.obs["section"].astype(str).to_numpy()
    return adata


@pytest.fixture(scope="module")
def prepared():
    return tissue(missing_rna=0.05, missing_image=0.05)


@pytest.fixture
def adata(prepared):
    return prepared.copy()


def distances(scores):
    return np.linalg.norm(scores[:, None] - scores[None], axis=2)


@pytest.mark.parametrize("max_value", [None, 3.0])
def test_rna_equals_the_steps_of_scanpy(max_value):
    adata = tissue()
    adata.X[:, :5] = 0
    adata.X[:9, 0] = 1  # seen in nine observations
    adata.X[:10, 1] = 1
    adata.X.eliminate_zeros()
    ours = recipe_cross_sample(adata, batch_key="batch", n_top_genes=60, n_comps=12, max_value=max_value, copy=True)
    sc.pp.filter_genes(adata, min_cells=10)
    assert adata.n_vars == 116
    sc.pp.highly_variable_genes(adata, flavor="seurat_v3", n_top_genes=60, batch_key="batch")
    sc.pp.normalize_total(adata, target_sum=1e4)
    sc.pp.log1p(adata)
    adata = adata[:, adata.var["highly_variable"]].copy()
    sc.pp.scale(adata, max_value=max_value)
    sc.pp.pca(adata, n_comps=12)
    assert set(ours.uns["recipe_cross_sample"]["genes"]) == set(adata.var_names)
    # distances do not depend on the signs of components
    np.testing.assert_allclose(distances(ours.obsm["X_pca"]), distances(adata.obsm["X_pca"]), rtol=1e-3, atol=1e-2)


@pytest.mark.parametrize("scale", [True, False])
@pytest.mark.parametrize("width", [12, 30])
def test_image_components_are_those_of_sklearn(scale, width):
    from sklearn.decomposition import PCA
    from sklearn.preprocessing import StandardScaler

    adata = tissue(missing_image=0.1)
    adata.obsm["X_image"] *= np.logspace(0, 3, 30, dtype=np.float32)
    recipe_cross_sample(adata, batch_key="batch", scale_image=scale, n_comps=width)
    has = adata.obs["has_image"].to_numpy()
    values = adata.obsm["X_image"][has].astype(float)
    values = StandardScaler().fit_transform(values) if scale else values
    expected = PCA(width, svd_solver="full").fit_transform(values)
    found = adata.obsm["X_image_pca"]
    assert found.shape == (240, width) and found.dtype == np.float32
    unit = expected.std()
    np.testing.assert_allclose(distances(found[has]) / unit, distances(expected) / unit, rtol=1e-2, atol=1e-2)
    assert np.isnan(found[~has]).all()


@pytest.mark.parametrize("method", ["harmony", "scanorama", "scvi"])
def test_corrections_are_those_of_correct_batch(adata, method):
    if method == "scanorama":
        pytest.importorskip("scanorama")
    epochs = {"max_epochs": 2} if method == "scvi" else {}
    recipe_cross_sample(adata, batch_key="batch", method=method, theta=4, seed=2, progress=False, **epochs)
    expected = adata[:, adata.uns["recipe_cross_sample"]["genes"]].copy()
    given = epochs | ({"theta": 4} if method == "harmony" else {}) | ({"n_latent": 20} if method == "scvi" else {})
    correct_batch(expected, "X_pca", batch_key="batch", method=method, seed=2, progress=False, **given)
    correct_batch(expected, "X_image_pca", batch_key="batch", theta=4, seed=2)
    for key in (f"X_pca_{method}", "X_image_pca_harmony"):
        np.testing.assert_array_equal(adata.obsm[key], expected.obsm[key])
        records = dict(adata.uns[key]), dict(expected.uns[key])
        for table in ("batches", "history") if key.endswith("scvi") else ("batches",):
            pd.testing.assert_frame_equal(*(record.pop(table) for record in records))
        np.testing.assert_equal(*records)
    told = adata.uns["recipe_cross_sample"]["steps"].iloc[6]
    assert told["step"] == "correct_batch" and f"method={method}" in told["parameters"]
    assert told["writes"] == f"X_pca_{method}"


def test_writes_its_slots_and_nothing_else(adata, capfd, contents):
    before = contents(adata)
    assert recipe_cross_sample(adata, batch_key="batch") is None
    assert capfd.readouterr() == ("", "")
    record = adata.uns["recipe_cross_sample"]
    assert list(record["steps"]["step"]) == [
        "filter_genes",
        "highly_variable_genes",
        "normalize_total",
        "log1p",
        "scale",
        "pca",
        "correct_batch",
        "scale",
        "pca",
        "correct_batch",
    ]
    assert list(record["steps"]["view"]) == ["rna"] * 7 + ["image"] * 3
    assert [key for key in record["steps"]["writes"] if key] == ["X_pca", "X_pca_harmony", *WRITTEN[1::2]]
    assert "flavor=seurat_v3, n_top_genes=3000, batch_key=batch" in record["steps"]["parameters"].iloc[1]
    assert record["n_obs"] == {"total": 240, "rna": 228, "image": 228} and record["seed"] == 0
    assert record["params"]["theta"] == 2.0 and record["params"]["max_value"] is None
    for key, has in zip(WRITTEN, ["has_rna", "has_image"] * 2, strict=True):
        np.testing.assert_array_equal(np.isnan(adata.obsm[key]).all(1), ~adata.obs[has])
        np.testing.assert_array_equal(np.isnan(adata.obsm[key]).any(1), ~adata.obs[has])
        assert adata.obsm[key].dtype == np.float32 and adata.obsm[key].shape == (240, 20)
    for key in WRITTEN:
        del adata.obsm[key]
    for key in RECORDS:
        del adata.uns[key]
    np.testing.assert_equal(contents(adata), before)


def test_round_trips_and_runs_again(adata, tmp_path):
    changed = recipe_cross_sample(adata, batch_key="batch", copy=True)
    assert "X_pca" not in adata.obsm
    for name, write, read in (("x.h5ad", "write_h5ad", ad.read_h5ad), ("x.zarr", "write_zarr", ad.read_zarr)):
        getattr(changed, write)(tmp_path / name)
        back = read(tmp_path / name)
        steps = back.uns["recipe_cross_sample"]["steps"]
        for column in ("view", "step", "parameters", "writes"):
            assert list(steps[column]) == list(changed.uns["recipe_cross_sample"]["steps"][column])
        assert list(back.uns["recipe_cross_sample"]["genes"]) == list(changed.uns["recipe_cross_sample"]["genes"])
        recipe_cross_sample(back, batch_key="batch", n_comps=5)
        assert back.obsm["X_image_pca_harmony"].shape == (240, 5)
    # another correction beside the first
    again = changed.copy()
    pytest.importorskip("scanorama")
    recipe_cross_sample(again, batch_key="batch", method="scanorama")
    np.testing.assert_array_equal(again.obsm["X_pca_harmony"], changed.obsm["X_pca_harmony"])
    np.testing.assert_array_equal(again.obsm["X_image_pca_harmony"], changed.obsm["X_image_pca_harmony"])


def test_on_the_bulb(caplog):
    adata = mob()
    adata.obsm["X_pca"] = np.zeros((adata.n_obs, 3))
    with caplog.at_level(logging.INFO, logger="stfuse"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        recipe_cross_sample(adata, batch_key="section")
    assert "obsm['X_image'] is made by stfuse.pp.image_features" in caplog.text
    assert "obsm['X_pca'] is replaced" in caplog.text
    assert adata.obsm["X_image"].shape == (1627, 95)

    def apart(values, column):
        groups = adata.obs[column].to_numpy()
        centres = np.stack([values[groups == name].mean(0) for name in np.unique(groups)])
        return distances(centres).mean() / np.sqrt(values.var(0).sum())

    for key in WRITTEN[:2]:
        before, after = adata.obsm[key], adata.obsm[f"{key}_harmony"]
        assert apart(after, "section") < 0.7 * apart(before, "section")
        assert apart(after, "layer") > 0.8 * apart(before, "layer")


def test_counts_in_a_layer_and_what_reads_the_components_later(adata):
    expected = recipe_cross_sample(adata, batch_key="batch", copy=True)
    rna_features(adata)
    adata.layers["counts"] = adata.X.copy()
    adata.X = np.log1p(adata.X)
    recipe_cross_sample(adata, batch_key="batch", layer="counts")
    np.testing.assert_array_equal(adata.obsm["X_pca"], expected.obsm["X_pca"])
    # loadings of the components that were there before would be wrong now
    with pytest.raises(KeyError, match="no uns\\['X_pca'\\]\\['loadings'\\]"):
        rna_features(adata.copy(), reference=adata, layer="counts")
    rna_features(adata, layer="counts")


def test_one_batch_and_small_batches(adata):
    adata.obs["batch"] = "all"
    with pytest.warns(UserWarning, match="one batch of obs.*the features stay as they are") as caught:
        recipe_cross_sample(adata, batch_key="batch")
    assert sum("one batch" in str(w.message) for w in caught) == 2
    np.testing.assert_array_equal(adata.obsm["X_pca_harmony"], adata.obsm["X_pca"])
    adata.obs["batch"] = np.where(np.arange(240) % 60 == 0, "few", np.where(np.arange(240) < 100, "a", "b"))
    with pytest.warns(UserWarning, match="1 of 3 batches have fewer than 10 observations with counts \\('few'\\)"):
        recipe_cross_sample(adata, batch_key="batch", n_top_genes=60)
    few = adata.obs["batch"] == "few"
    without = recipe_cross_sample(adata[~few].copy(), batch_key="batch", n_top_genes=60, copy=True)
    genes = [set(a.uns["recipe_cross_sample"]["genes"]) for a in (adata, without)]
    assert len(genes[0] & genes[1]) > 55  # the filter saw the few as well
    adata.obs["batch"] = (np.arange(240) // 8).astype(str)
    with pytest.warns(UserWarning, match="Every batch has fewer than 10.*ranked over all batches together"):
        recipe_cross_sample(adata, batch_key="batch", n_top_genes=60)


def test_few_genes_and_observations():
    adata = tissue(30, 2, n_genes=12, n_image_features=5)
    recipe_cross_sample(adata, batch_key="batch", min_cells=1)
    assert adata.obsm["X_pca"].shape == (30, 11) and adata.obsm["X_image_pca"].shape == (30, 5)
    assert np.isfinite(adata.obsm["X_image_pca_harmony"]).all() and np.isfinite(adata.obsm["X_pca_harmony"]).all()
    adata.obsm["X_image"][:, 1] = 3  # constant
    recipe_cross_sample(adata, batch_key="batch", min_cells=1)
    assert np.isfinite(adata.obsm["X_image_pca"]).all()


def test_mudata(adata):
    rna, image = adata[::-1].copy(), adata[40:].copy()
    image = AnnData(obs=image.obs[["batch"]], obsm={"X_image": image.obsm["X_image"]})
    rna.obsm.clear()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        data = mudata.MuData({"rna": rna, "image": image})
        recipe_cross_sample(data, batch_key="batch")
        ordered = adata[data.obs_names].copy()
        ordered.obsm["X_image"][~data.obs_names.isin(image.obs_names)] = np.nan
        recipe_cross_sample(ordered, batch_key="batch")
    for key in WRITTEN:
        np.testing.assert_allclose(data.obsm[key], ordered.obsm[key], atol=1e-3, err_msg=key)
    assert not data["rna"].obsm and list(data["image"].obsm) == ["X_image"]
    codes = stfuse.tl.concat(data, image_key="X_image_pca_harmony", rna_key="X_pca_harmony", copy=True)
    seen = np.isfinite(data.obsm["X_pca"][:, 0]) | np.isfinite(data.obsm["X_image_pca"][:, 0])
    np.testing.assert_array_equal(np.isfinite(codes.obsm["X_concat"]).all(1), seen)
    data["rna"].obsm["X_pca"] = rna.X[:, :3].toarray()
    with pytest.warns(UserWarning, match=r"mdata\['rna'\].obsm\['X_pca'\] stays"):
        recipe_cross_sample(data, batch_key="batch")
    data["image"].obsm["X_image_pca"] = image.obsm["X_image"]
    with pytest.raises(ValueError, match=r"mdata\['image'\].obsm\['X_image_pca'\] is there already"):
        recipe_cross_sample(data, batch_key="batch")
    del image.obsm["X_image_pca"]
    with pytest.raises(KeyError, match="no modality 'rna'"):
        recipe_cross_sample(mudata.MuData({"image": image}), batch_key="batch")


def test_spatialdata(adata):
    spatialdata = pytest.importorskip("spatialdata")
    sdata = spatialdata.SpatialData(tables={"table": adata.copy()})
    recipe_cross_sample(adata, batch_key="batch")
    recipe_cross_sample(sdata, batch_key="batch")
    for key in WRITTEN:
        np.testing.assert_array_equal(sdata["table"].obsm[key], adata.obsm[key])


def normalised(adata):
    sc.pp.log1p(adata)


def no_counts(adata):
    adata.X = adata.X * 0


def no_image(adata):
    del adata.obsm["X_image"]


def one_image(adata):
    adata.obsm["X_image"][1:] = np.nan


def holes(adata):
    adata.obsm["X_image"][np.flatnonzero(adata.obs["has_image"])[0], 2] = np.nan


def unknown(adata):
    adata.obs["batch"] = adata.obs["batch"].where(np.arange(240) > 3)


def own(adata):
    adata.obs["batch"] = adata.obs_names


def foreign(key, slot="obsm"):
    def spoil(adata):
        getattr(adata, slot)[key] = adata.obsm["spatial"].copy()

    return spoil


@pytest.mark.parametrize(
    ("spoil", "kwargs", "error", "message"),
    [
        (None, {"batch_key": "bach"}, KeyError, "Did you mean 'batch'"),
        (None, {"batch_key": None}, TypeError, "batch_key must be a string"),
        (unknown, {}, ValueError, "4 missing value"),
        (own, {}, ValueError, "is a batch of its own"),
        (None, {"layer": "counts"}, KeyError, "No layer 'counts'"),
        (no_counts, {}, ValueError, "Only 0 of 240 observations have counts"),
        (normalised, {"method": "scvi"}, ValueError, "not whole numbers.*scVI starts from raw counts"),
        (None, {"min_cells": 1000}, ValueError, "0 of 120 genes are seen in 1000 or more observations"),
        (None, {"min_cells": 0}, ValueError, "min_cells must be"),
        (None, {"n_top_genes": 1}, ValueError, "n_top_genes must be"),
        (None, {"n_comps": 0}, ValueError, "n_comps must be"),
        (None, {"max_value": 0}, ValueError, "max_value must be"),
        (None, {"scale_image": 1}, TypeError, "scale_image must be True or False"),
        (None, {"copy": "no"}, TypeError, "copy must be"),
        (None, {"seed": 1.5}, TypeError, "seed must be"),
        (None, {"theta": -1}, ValueError, "theta must be"),
        (None, {"method": "combat"}, ValueError, "method must be one of"),
        (None, {"max_epochs": 3}, ValueError, "max_epochs=3 belongs to method='scvi'"),
        (None, {"sigma": 3, "method": "scvi"}, ValueError, "sigma=3 belongs to method='scanorama'"),
        (None, {"image_key": "X_imag"}, KeyError, "No obsm\\['X_imag'\\].*Did you mean 'X_image'.*image_features"),
        (None, {"image_key": "X_pca"}, ValueError, "is a key that is written"),
        (no_image, {}, KeyError, "no image in uns\\['spatial'\\]"),
        (one_image, {}, ValueError, "is there in 1 observation"),
        (holes, {}, ValueError, "NaN inside 1 row"),
        (foreign("X_image_pca"), {}, ValueError, "obsm\\['X_image_pca'\\] is there and was not written by"),
        (foreign("X_pca_harmony"), {}, ValueError, "obsm\\['X_pca_harmony'\\] is there and was not written by"),
        (foreign("recipe_cross_sample", "uns"), {}, ValueError, "no record of this function"),
    ],
)
def test_bad_input_changes_nothing(adata, spoil, kwargs, error, message, contents):
    if spoil is not None:
        spoil(adata)
    before = contents(adata)
    with warnings.catch_warnings(), pytest.raises(error, match=message):
        warnings.simplefilter("ignore")
        recipe_cross_sample(adata, **({"batch_key": "batch"} | kwargs))
    np.testing.assert_equal(contents(adata), before)


def test_normalised_values_and_observations_without_counts_are_noticed(adata):
    with pytest.warns(UserWarning, match="12 of 240 observations have no counts"):
        recipe_cross_sample(adata, batch_key="batch")
    normalised(adata)
    with pytest.warns(UserWarning, match="not whole numbers.*The recipe starts from raw counts"):
        recipe_cross_sample(adata, batch_key="batch")
    rare = tissue(60, 2)
    dense = rare.X.toarray()
    dense[7] = 0
    dense[:, 0] = 0
    dense[7, 0] = 3
    rare.X = dense
    with pytest.warns(UserWarning, match="1 observations have counts of rare genes only"):
        recipe_cross_sample(rare, batch_key="batch")
    assert np.flatnonzero(np.isnan(rare.obsm["X_pca"]).any(1)).tolist() == [7]
    assert isinstance(rare.uns["recipe_cross_sample"]["steps"], pd.DataFrame)
