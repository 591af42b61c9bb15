import numpy as np
import pandas as pd
import pytest
from anndata import AnnData, read_h5ad
from mudata import MuData
from scipy.sparse import csc_matrix

import stfuse

SMALL = {"n_latent": 4, "n_hidden": 8, "n_heads": 2, "n_top_genes": 60, "max_epochs": 1, "device": "cpu"}


@pytest.fixture
def bulb():
    adata = stfuse.datasets.mob()[::8].copy()
    del adata.uns["spatial"]
    return adata


def gat(data, **kwargs):
    return stfuse.tl.gat(data, **(SMALL | {"library_key": "section", "progress": False} | kwargs))


def test_what_is_written(bulb, contents, tmp_path):
    before = contents(bulb)
    assert gat(bulb) is None
    codes, record = bulb.obsm.pop("X_gat"), bulb.uns.pop("gat")
    np.testing.assert_equal(contents(bulb), before)
    assert codes.shape == (bulb.n_obs, 4) and codes.dtype == np.float32 and np.isfinite(codes).all()
    assert record["method"] == "gat" and record["seed"] == 0
    assert record["params"]["library_key"] == "section" and record["params"]["mask_fraction"] == 0.4
    assert list(record["history"]) == ["masked", "held_out_masked"] and len(record["history"]) == 1
    assert record["n_obs"] == {"total": bulb.n_obs, "rna": bulb.n_obs}
    assert {"torch", "torch-geometric", "stfuse"} <= set(record["versions"])
    assert len(record["genes"]) == 60
    bulb.obsm["X_gat"], bulb.uns["gat"] = codes, record
    bulb.write_h5ad(tmp_path / "gat.h5ad")
    read = read_h5ad(tmp_path / "gat.h5ad")
    np.testing.assert_array_equal(read.obsm["X_gat"], codes)
    assert list(read.uns["gat"]["genes"]) == list(record["genes"])


def test_copy_model_and_name(bulb, contents):
    before = contents(bulb)
    copy, model = gat(bulb, copy=True, return_model=True, key_added="space")
    np.testing.assert_equal(contents(bulb), before)
    np.testing.assert_array_equal(copy.obsm["X_space"], model.get_latent_representation(bulb))
    assert isinstance(gat(bulb, return_model=True), stfuse.model.GAT)
    assert isinstance(gat(bulb, copy=True), AnnData)
    gat(bulb)  # over its own result


def test_counts_in_a_layer_of_any_format(bulb):
    gat(bulb)
    other = bulb.copy()
    other.layers["counts"] = csc_matrix(other.X).astype(np.int64)
    other.X = np.log1p(other.X.toarray())
    model = gat(other, layer="counts", return_model=True)
    np.testing.assert_allclose(other.obsm["X_gat"], bulb.obsm["X_gat"], atol=1e-5)
    np.testing.assert_array_equal(model.get_latent_representation(other), other.obsm["X_gat"])


def test_backed(bulb, tmp_path):
    gat(bulb)
    expected = bulb.obsm.pop("X_gat")
    del bulb.uns["gat"]
    bulb.write_h5ad(tmp_path / "bulb.h5ad")
    backed = read_h5ad(tmp_path / "bulb.h5ad", backed="r")
    gat(backed)
    np.testing.assert_allclose(backed.obsm["X_gat"], expected, atol=1e-5)


def test_warnings_come_once(bulb):
    bulb.X = bulb.X.toarray()
    bulb.X[0] = 0
    with pytest.warns(UserWarning) as caught:
        gat(bulb)
    said = [str(w.message) for w in caught]
    assert sum("have no counts" in text for text in said) == 1, said
    assert np.isnan(bulb.obsm["X_gat"][0]).all()


def test_an_observation_alone(bulb):
    bulb.obs["section"] = np.where(np.arange(bulb.n_obs) == 5, "other", "one")
    bulb.obsm["spatial"] = bulb.obsm["spatial"] + np.arange(bulb.n_obs)[:, None]
    with pytest.warns(UserWarning, match="1 section.s. have one observation with counts"):
        gat(bulb)
    assert np.isfinite(bulb.obsm["X_gat"]).all()


def _no_coordinates(adata):
    del adata.obsm["spatial"]


def _gap(adata):
    adata.obsm["spatial"] = adata.obsm["spatial"].astype(float)
    adata.obsm["spatial"][2] = np.nan


def _negative(adata):
    adata.X = adata.X.toarray() - 1


def _log(adata):
    adata.X = np.log1p(adata.X.toarray())


def _nan(adata):
    adata.X = adata.X.toarray()
    adata.X[0, 0] = np.nan


def _alone(adata):
    adata.obs["section"] = adata.obs_names


def _twins(adata):
    adata.var_names = ["a", "a", *adata.var_names[2:]]


def _foreign(adata):
    adata.uns["gat"] = {"mine": 1}


def _foreign_codes(adata):
    adata.obsm["X_gat"] = np.zeros((adata.n_obs, 2))


def _nothing(adata):
    adata.X = np.zeros(adata.shape, np.float32)


@pytest.mark.parametrize(
    ("spoil", "options", "error", "message"),
    [
        (_no_coordinates, {}, KeyError, "No obsm.'spatial'. with coordinates.*spatial_key="),
        (_gap, {}, ValueError, "1 observation.s. have no coordinates"),
        (_negative, {}, ValueError, "negative values.*layer="),
        (_negative, {"loss": "nb"}, ValueError, "negative values"),
        (_log, {"loss": "nb"}, ValueError, "not whole numbers.*layer="),
        (_nan, {}, ValueError, "missing or infinite"),
        (_nothing, {}, ValueError, "Only 0 of .* have counts"),
        (_alone, {}, ValueError, "is alone in its section"),
        (_twins, {}, ValueError, "var_names of the data are not unique"),
        (_foreign, {}, ValueError, "no record of this function"),
        (_foreign_codes, {}, ValueError, "has no record"),
        (None, {"key_added": "a/b"}, ValueError, "slash"),
        (None, {"layer": "counts"}, KeyError, "No layer 'counts'"),
        (None, {"library_key": "slide"}, KeyError, "No obs column 'slide'"),
        (None, {"mask_fraction": 1}, ValueError, "mask_fraction"),
        (None, {"mask_fraction": 0}, ValueError, "mask_fraction"),
        (None, {"loss": "poisson"}, ValueError, "loss must be one of 'mse', 'nb'"),
        (None, {"n_hidden": 10, "n_heads": 4}, ValueError, "multiple"),
        (None, {"n_neighbors": 0}, ValueError, "n_neighbors"),
        (None, {"dropout": 1}, ValueError, "dropout"),
        (None, {"patience": 0}, ValueError, "patience"),
        (None, {"max_epochs": 1.5}, TypeError, "max_epochs"),
        (None, {"gradient_clip": 0}, ValueError, "gradient_clip"),
        (None, {"validation_fraction": 1}, ValueError, "validation_fraction"),
        (None, {"seed": -1}, ValueError, "seed"),
        (None, {"device": "tpu"}, ValueError, "device"),
        (None, {"copy": "no"}, TypeError, "copy"),
    ],
)
def test_bad_input_changes_nothing(bulb, contents, spoil, options, error, message):
    if spoil is not None:
        spoil(bulb)
    before = contents(bulb)
    with pytest.raises(error, match=message):
        gat(bulb, **options)
    np.testing.assert_equal(contents(bulb), before)


def test_log_data_are_warned_of(bulb):
    _log(bulb)
    with pytest.warns(UserWarning, match="not whole numbers") as caught:
        gat(bulb)
    assert sum("not whole numbers" in str(w.message) for w in caught) == 1


def test_diverging_training_writes_nothing(bulb, contents):
    before = contents(bulb)
    with pytest.raises(RuntimeError, match="diverged"):
        gat(bulb, lr=1e30, gradient_clip=None, max_epochs=3, patience=None)
    np.testing.assert_equal(contents(bulb), before)


def test_mudata_is_referred_to_its_modality(bulb):
    mdata = MuData({"rna": bulb})
    with pytest.raises(TypeError, match=r'mdata\["rna"\]'):
        gat(mdata)
    gat(mdata["rna"])
    assert "X_gat" in mdata["rna"].obsm


def test_spatialdata(bulb):
    """Coordinates are those of the annotated shapes."""
    import geopandas as gpd
    from shapely import Point
    from spatialdata import SpatialData
    from spatialdata.models import ShapesModel, TableModel

    gat(bulb, library_key=None, n_neighbors=3)
    places = bulb.obsm["spatial"]
    bare = AnnData(bulb.X, obs=pd.DataFrame(index=bulb.obs_names), var=bulb.var)
    bare.obs["region"], bare.obs["id"] = pd.Categorical(["spots"] * bare.n_obs), np.arange(bare.n_obs)
    shapes = gpd.GeoDataFrame(
        {"radius": np.ones(bare.n_obs)}, geometry=[Point(*p) for p in places], index=bare.obs["id"]
    )
    table = TableModel.parse(bare, region="spots", region_key="region", instance_key="id")
    sdata = SpatialData(shapes={"spots": ShapesModel.parse(shapes)}, tables={"table": table})
    gat(sdata, library_key=None, n_neighbors=3)
    np.testing.assert_allclose(sdata.tables["table"].obsm["X_gat"], bulb.obsm["X_gat"], atol=1e-5)


def test_codes_go_into_a_fusion(bulb):
    gat(bulb)
    bulb.obsm["X_image"] = np.random.default_rng(0).normal(size=(bulb.n_obs, 6)).astype(np.float32)
    stfuse.tl.pcca(bulb, rna_key="X_gat")
    assert np.isfinite(bulb.obsm["X_pcca"]).all()
