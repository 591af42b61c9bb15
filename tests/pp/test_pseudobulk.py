"""Sums of spots against a loop over groups, names, columns, and what is refused."""

import warnings

import anndata as ad
import dask.array as da
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
from anndata import AnnData
from scipy.sparse import csc_matrix, csr_array, csr_matrix

from stfuse.datasets import mob
from stfuse.pp import pseudobulk

mudata = pytest.importorskip("mudata")


def tissue(n=300, genes=40, seed=0):
    """Spots of two patients with three sections, domains across them."""
    rng = np.random.default_rng(seed)
    section = rng.integers(0, 3, n)
    obs = pd.DataFrame(
        {
            "section": pd.Categorical.from_codes(section, ["s10", "s9", "s1"]),
            "domain": pd.Categorical(rng.choice(["core", "rim"], n)),
            "patient": np.array(["A", "A", "B"])[section],
            "age": np.array([50.5, 50.5, np.nan])[section],
            "noise": rng.normal(size=n),
        },
        index=[f"spot{i}" for i in range(n)],
    )
    var = pd.DataFrame({"length": np.arange(genes)}, index=[f"G{i}" for i in range(genes)])
    return AnnData(rng.poisson(0.7, (n, genes)).astype(np.float32), obs=obs, var=var)


def literal(adata, columns, mode=np.sum):
    found = {}
    for key, rows in adata.obs.groupby(columns, observed=True).indices.items():
        found[key if isinstance(key, str) else "_".join(key)] = mode(np.asarray(adata.X, dtype=float)[rows], axis=0)
    return found


def refused(data, contents, error, match, *args, **kwargs):
    before = contents(data)
    with pytest.raises(error, match=match):
        pseudobulk(data, *args, **kwargs)
    np.testing.assert_equal(contents(data), before)


@pytest.mark.parametrize("columns", [["section"], ["section", "domain"], ["domain", "patient"]])
@pytest.mark.parametrize("mode", ["sum", "mean"])
def test_is_a_literal_loop(columns, mode):
    adata = tissue()
    expected = literal(adata, columns, getattr(np, mode))
    slides = pseudobulk(adata, columns if len(columns) > 1 else columns[0], mode=mode)
    assert list(slides.obs_names) == list(expected)  # in the order of the categories
    assert isinstance(slides.X, np.ndarray) and slides.X.dtype == np.float32
    np.testing.assert_allclose(slides.X, np.stack(list(expected.values())), rtol=1e-6)
    assert slides.obs["n_obs"].to_list() == list(adata.obs.groupby(columns, observed=True).size())
    pd.testing.assert_frame_equal(slides.var, adata.var)
    if mode == "sum":
        np.testing.assert_array_equal(slides.X.sum(0), adata.X.sum(0))


@pytest.mark.parametrize(
    "kind", ["csr", "csc", "csr_array", "uint8", "bool", "float16", "dask", "dask csr", "layer", "backed", "backed csr"]
)
def test_where_the_counts_lie_does_not_matter(kind, tmp_path):
    adata, layer = tissue(), None
    if kind == "bool":
        adata.X = (adata.X > 0).astype(np.float32)
    expected = pseudobulk(adata, "section").X
    x = adata.X
    makers = {"csr": csr_matrix, "csc": csc_matrix, "csr_array": csr_array}
    if kind in makers:
        adata.X = makers[kind](x)
    elif kind in ("uint8", "bool", "float16"):
        adata.X = csr_matrix(x.astype(kind)) if kind != "float16" else x.astype(kind)
    elif kind.startswith("dask"):
        adata.X = da.from_array(x, chunks=(70, 40))
        adata.X = adata.X.map_blocks(csr_matrix) if kind == "dask csr" else adata.X
    elif kind == "layer":
        adata.layers["counts"], adata.X, layer = adata.X, np.log1p(adata.X), "counts"
    else:
        adata.X = csr_matrix(x) if kind == "backed csr" else x
        adata.write_h5ad(tmp_path / "spots.h5ad")
        adata = ad.read_h5ad(tmp_path / "spots.h5ad", backed="r")
    slides = pseudobulk(adata, "section", layer=layer)
    assert isinstance(slides.X, np.ndarray)
    np.testing.assert_array_equal(slides.X, expected)


def test_columns_that_are_constant_within_groups_come_along():
    adata = tissue()
    adata.obs["lists"] = pd.Series([[1]] * 300, index=adata.obs_names)
    adata.obs["n_obs"] = 7
    slides = pseudobulk(adata, "section")
    assert list(slides.obs.columns) == ["n_obs", "section", "patient", "age"]
    assert slides.obs["patient"].to_list() == ["A", "A", "B"]
    np.testing.assert_array_equal(slides.obs["age"], [50.5, 50.5, np.nan])
    assert slides.obs["n_obs"].sum() == 300
    adata.obs.loc[adata.obs_names[0], "patient"] = None  # known of some spots is not known of the section
    assert "patient" not in pseudobulk(adata, "section").obs
    by_domain = pseudobulk(adata[adata.obs["section"] != "s9"].copy(), ["domain", "section"])
    assert list(by_domain.obs["section"].cat.categories) == ["s10", "s1"]


def test_nothing_is_written_for_one_column(contents):
    adata = tissue()
    before = contents(adata)
    pseudobulk(adata, "section")
    np.testing.assert_equal(contents(adata), before)


def test_membership_joins_spots_to_slides(tmp_path):
    adata = tissue()
    adata.obs["domain"] = adata.obs["domain"].cat.add_categories("unassigned")
    adata.obs.loc[adata.obs_names[:20], "domain"] = None
    adata.obs.loc[adata.obs_names[20:30], "domain"] = "unassigned"
    slides = pseudobulk(adata, ["section", "domain"])
    column = adata.obs["section_domain"]
    assert (column[:30] == "unassigned").all() and set(column[30:]) == set(slides.obs_names)
    np.testing.assert_array_equal(slides.X, np.stack([adata.X[column == name].sum(0) for name in slides.obs_names]))
    record = slides.uns["pseudobulk"]
    assert record["groupby"] == ["section", "domain"]
    assert record["n_obs"] == {"total": 300, "grouped": 270, "without_group": 30, "in_small_groups": 0}
    slides.write_h5ad(tmp_path / "slides.h5ad")
    adata.write_h5ad(tmp_path / "spots.h5ad")
    pseudobulk(ad.read_h5ad(tmp_path / "spots.h5ad"), ["section", "domain"])  # an earlier result is replaced
    pseudobulk(adata, "section", key_added="slide")
    assert list(adata.obs["slide"].cat.categories) == ["s10", "s9", "s1"]


def test_small_groups_are_left_out_and_told():
    adata = tissue()
    adata.obs["region"] = pd.Categorical(["big"] * 250 + ["mid"] * 45 + ["few"] * 5, ["few", "big", "mid"])
    with pytest.warns(UserWarning, match=r"1 of 3 groups have fewer than min_obs=10 .*'few': 5"):
        slides = pseudobulk(adata, "region", key_added="slide")
    assert list(slides.obs_names) == ["big", "mid"]
    np.testing.assert_array_equal(slides.X[1], adata.X[250:295].sum(0))
    assert (adata.obs["slide"][295:] == "unassigned").all()
    assert slides.uns["pseudobulk"]["n_obs"]["in_small_groups"] == 5
    assert pseudobulk(adata, "region", min_obs=5).n_obs == 3


def test_numbers_name_slides():
    adata = tissue()
    adata.obs["number"] = np.where(np.arange(300) < 40, np.nan, np.arange(300) % 2)
    assert list(pseudobulk(adata, "number").obs_names) == ["0", "1"]
    adata.obs["flag"] = np.arange(300) % 2 == 0
    assert list(pseudobulk(adata, "flag").obs_names) == ["False", "True"]


def test_large_sums_are_exact():
    adata = tissue()
    adata.X[0, 0] = 2**24
    slides = pseudobulk(adata, "section")
    assert slides.X.dtype == np.float64
    assert slides.X[:, 0].sum() == adata.X[:, 0].sum(dtype=np.float64)
    eight = AnnData(csr_matrix(np.full((300, 2), 255, np.uint8)), obs=adata.obs)
    assert pseudobulk(eight, "patient").X.sum() == 300 * 2 * 255


def test_normalised_values_are_told():
    adata = tissue()
    sc.pp.normalize_total(adata)
    sc.pp.log1p(adata)
    with pytest.warns(UserWarning, match="no whole numbers, so it holds no counts.*mode='mean'"):
        pseudobulk(adata, "section")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pseudobulk(adata, "section", mode="mean")
    adata.X = -np.ones(adata.shape)
    with pytest.warns(UserWarning, match="negative in part"):
        pseudobulk(adata, "section")


def test_mudata():
    adata = tissue()
    image = AnnData(obs=pd.DataFrame(index=[*adata.obs_names[50:], *(f"extra{i}" for i in range(30))]))
    mdata = mudata.MuData({"image": image, "rna": adata[::-1].copy()})
    mdata.obs["section"] = adata.obs["section"].reindex(mdata.obs_names).fillna("s1")
    mdata.obs["site"] = "X"
    slides = pseudobulk(mdata, "section", key_added="slide")
    expected = pseudobulk(adata, "section")
    np.testing.assert_array_equal(slides[expected.obs_names].X, expected.X)
    assert slides.obs["patient"].to_dict() == {"s10": "A", "s9": "A", "s1": "B"} and set(slides.obs["site"]) == {"X"}
    # tiles without RNA belong to their slide, too
    assert (mdata.obs["slide"] == mdata.obs["section"].astype(str)).all()
    several = pseudobulk(mdata, ["rna:domain", "section"])
    assert several.n_obs == 6 and several.obs["n_obs"].sum() == 300
    assert pseudobulk(mdata, "section", table_key="rna").n_obs == 3
    with pytest.raises(KeyError, match="No modality 'protein'"):
        pseudobulk(mdata, "section", table_key="protein")
    with pytest.raises(ValueError, match="no modality 'rna'.*table_key="):
        pseudobulk(mudata.MuData({"a": adata, "b": adata[:, :5].copy()}), "section")


def test_spatialdata():
    spatialdata = pytest.importorskip("spatialdata")
    adata = tissue()
    adata.obs["region"], adata.obs["instance"] = pd.Categorical(["spots"] * 300), range(300)
    table = spatialdata.models.TableModel.parse(adata, region="spots", region_key="region", instance_key="instance")
    sdata = spatialdata.SpatialData(tables={"table": table, "other": table.copy()})
    slides = pseudobulk(sdata, ["section", "domain"], table_key="table")
    np.testing.assert_array_equal(slides.X, pseudobulk(tissue(), ["section", "domain"]).X)
    assert set(sdata.tables["table"].obs["section_domain"]) == set(slides.obs_names)
    assert "section_domain" not in sdata.tables["other"].obs
    with pytest.raises(ValueError, match="2 tables"):
        pseudobulk(sdata, "section")


def test_wrong_calls(contents):
    adata = tissue()
    adata.obs["a"], adata.obs["b"] = ["x_y", "x"] * 150, ["z", "y_z"] * 150
    adata.obs["decimal"], adata.obs["nothing"] = np.linspace(0, 1, 300), pd.Series(dtype=object)
    adata.uns["mine"] = 1
    refused(adata, contents, KeyError, "No obs column 'sections'.*mean 'section'", "sections")
    refused(adata, contents, ValueError, "are named 'x_y_z'", ["a", "b"])
    refused(adata, contents, ValueError, "decimal numbers", "decimal")
    refused(adata, contents, ValueError, "there are no groups", "nothing")
    refused(adata, contents, ValueError, "min_obs=200 observations; the largest", "section", min_obs=200)
    refused(adata, contents, ValueError, "min_obs must be", "section", min_obs=0)
    refused(adata, contents, ValueError, "mode must be", "section", mode="median")
    refused(adata, contents, KeyError, "No layer 'counts'", "section", layer="counts")
    refused(adata, contents, TypeError, "groupby must be", [])
    refused(adata, contents, TypeError, "groupby must be", 3)
    refused(adata, contents, ValueError, "twice", ["a", "a"])
    refused(adata, contents, ValueError, "would overwrite what is read", "section", key_added="section")
    refused(adata, contents, ValueError, "would overwrite what is read", ["a", "section", "b"], key_added="section")
    refused(adata, contents, ValueError, "would overwrite obs", "section", key_added="patient")
    refused(adata, contents, ValueError, "would overwrite uns", "section", key_added="mine")
    adata.X[3, 3] = np.nan
    refused(adata, contents, ValueError, "missing or infinite", "section", key_added="slide")
    del adata.X
    refused(adata, contents, ValueError, "X is empty", "section")
    with pytest.raises(TypeError, match="Expected AnnData"):
        pseudobulk(pd.DataFrame(), "section")
    twice = tissue()
    twice.var_names = ["G0", *twice.var_names[:-1]]
    refused(twice, contents, ValueError, "var_names_make_unique", "section")


def test_layers_of_the_olfactory_bulb():
    """Each layer's own genes stand out in the sums, in every section."""
    adata = mob()
    slides = pseudobulk(adata, ["section", "layer"])
    assert slides.n_obs == adata.obs.groupby(["section", "layer"], observed=True).ngroups
    assert slides.X.sum(dtype=float) == adata.X.sum(dtype=float)
    sc.pp.normalize_total(slides)
    penk = pd.Series(np.asarray(slides[:, "Penk"].X).ravel(), slides.obs["layer"].to_numpy())
    assert penk["GCL"].min() > penk.drop("GCL").max()  # the granule cells' own


def test_sections_of_breast_cancer(shared_data):
    """Two sections with different genes, joined: a slide a section and a slide a pathologist's region."""
    parts = [ad.read_h5ad(shared_data / "her2st" / f"her2st_{name}.h5ad") for name in ("A1", "B4")]
    adata = ad.concat(parts, join="outer", index_unique="-")
    slides = pseudobulk(adata, "section")
    assert list(slides.obs_names) == ["A1", "B4"] and slides.obs["patient"].to_list() == ["A", "B"]
    for part, name in zip(parts, slides.obs_names, strict=True):
        np.testing.assert_array_equal(
            slides[name, part.var_names].X.ravel(), np.asarray(part.X.sum(0, dtype=np.float64)).ravel()
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # small regions
        regions = pseudobulk(adata, ["section", "pathologist_label"])
    assert set(regions.obs["section"]) == {"A1"} and regions.n_obs > 2  # only A1 has such labels
    assert (adata.obs["section_pathologist_label"][adata.obs["section"] == "B4"] == "unassigned").all()
