"""Means over neighbours in space against a loop, and what they must not mix."""

import time
import warnings

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from scipy.spatial.distance import cdist

from stfuse.datasets import synthetic_tissue
from stfuse.pp import neighbor_mean

mudata = pytest.importorskip("mudata")

KEY = "X_c_neighbor_mean"


def tissue(n=80, sections=2, missing=12, width=4, seed=0):
    """Sections on top of each other, some rows missing."""
    rng = np.random.default_rng(seed)
    obs = pd.DataFrame({"section": [f"s{i % sections}" for i in range(n)]}, index=[f"spot{i}" for i in range(n)])
    adata = AnnData(obs=obs)
    adata.obsm["spatial"] = rng.uniform(0, 1000, (n, 2))
    adata.obsm["X_c"] = rng.normal(10, 2, (n, width)).astype(np.float32)
    adata.obsm["X_c"][rng.permutation(n)[:missing]] = np.nan
    return adata


def literal(adata, n_neighbors):
    x, xy, section = adata.obsm["X_c"].astype(float), adata.obsm["spatial"], adata.obs["section"].to_numpy()
    out = np.full(x.shape, np.nan)
    for i in range(len(x)):
        if np.isnan(x[i]).any():
            continue
        mates = [j for j in range(len(x)) if j != i and section[j] == section[i] and not np.isnan(x[j]).any()]
        mates.sort(key=lambda j: ((xy[i] - xy[j]) ** 2).sum())
        rows = [i, *mates[:n_neighbors]]
        out[i] = sum(x[j] for j in rows) / len(rows)
    return out


@pytest.mark.parametrize("n_neighbors", [1, 6, 10])
def test_is_a_literal_loop_and_writes_nothing_else(n_neighbors, contents):
    adata = tissue()
    expected, before = literal(adata, n_neighbors), contents(adata)
    assert neighbor_mean(adata, "X_c", n_neighbors=n_neighbors, library_key="section") is None
    result, record = adata.obsm.pop(KEY), adata.uns.pop(KEY)
    np.testing.assert_equal(contents(adata), before)
    assert result.dtype == np.float32
    np.testing.assert_allclose(result, expected, rtol=1e-6)
    assert record["averaged"] == "X_c" and record["n_obs"] == {"total": 80, "averaged": 68}
    assert record["params"] == {"n_neighbors": n_neighbors, "library_key": "section", "spatial_key": "spatial"}
    assert "stfuse" in record["versions"]


def test_ten_neighbours_and_the_sections_of_uns_by_default():
    adata = tissue()
    adata.uns["spatial"] = {"s0": {}, "s1": {}}
    neighbor_mean(adata, "X_c")
    np.testing.assert_allclose(adata.obsm[KEY], literal(adata, 10), rtol=1e-6)
    assert adata.uns[KEY]["params"]["library_key"] == "section"


def test_sections_do_not_mix():
    adata = tissue()
    neighbor_mean(adata, "X_c", library_key="section")
    mine = (adata.obs["section"] == "s0").to_numpy()
    moved = adata.copy()
    moved.obsm["X_c"][~mine] += 1000
    moved.obsm["spatial"][~mine] = 5
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        neighbor_mean(moved, "X_c", library_key="section")
    np.testing.assert_array_equal(moved.obsm[KEY][mine], adata.obsm[KEY][mine])
    alone = adata[mine].copy()
    neighbor_mean(alone, "X_c", key_added="alone")
    np.testing.assert_allclose(alone.obsm["alone"], adata.obsm[KEY][mine], rtol=1e-6)


def test_lattice_ties_go_by_place():
    """A square lattice has four nearest and four second nearest: of the latter two are taken, whatever the order of rows."""
    xy = np.stack(np.meshgrid(np.arange(9.0), np.arange(7.0)), -1).reshape(-1, 2)
    rng = np.random.default_rng(0)
    adata = AnnData(obs=pd.DataFrame(index=[str(i) for i in range(len(xy))]))
    adata.obsm["spatial"], adata.obsm["X_c"] = xy, np.eye(len(xy))
    neighbor_mean(adata, "X_c", n_neighbors=6)
    taken = adata.obsm[KEY] > 0
    np.testing.assert_array_equal(taken.sum(1), 7)
    distances = cdist(xy, xy)
    for i, row in enumerate(taken):
        np.testing.assert_allclose(np.sort(distances[i][row]), np.sort(distances[i])[:7])
    mixed = adata[rng.permutation(len(xy))].copy()
    neighbor_mean(mixed, "X_c", n_neighbors=6)
    np.testing.assert_allclose(mixed[adata.obs_names].obsm[KEY], adata.obsm[KEY], atol=1e-7)


def test_small_sections():
    adata = tissue(23, 1, missing=0)
    adata.obs["section"] = ["big"] * 16 + ["few"] * 4 + ["one"] + ["empty"] * 2
    adata.obsm["X_c"][21:] = np.nan
    with pytest.warns(UserWarning, match=r"1 section\(s\) have no more than n_neighbors \+ 1 = 11.*'few': 4"):
        neighbor_mean(adata, "X_c", library_key="section")
    result, x = adata.obsm[KEY], adata.obsm["X_c"]
    np.testing.assert_allclose(result[16:20], np.tile(x[16:20].mean(0), (4, 1)), rtol=1e-6)
    np.testing.assert_array_equal(result[20], x[20])
    assert np.isnan(result[21:]).all() and np.isfinite(result[:21]).all()


def test_many_in_one_place():
    adata = tissue(30, 1, missing=0)
    adata.obsm["spatial"][:] = 3
    adata.obsm["X_c"] = np.eye(30)
    with pytest.warns(UserWarning, match="30 of 30 observations lie exactly where another one lies.*library_key="):
        neighbor_mean(adata, "X_c", n_neighbors=4)
    taken = adata.obsm[KEY] > 0
    assert (taken.sum(1) == 5).all() and taken.diagonal().all()


def test_noise_goes_and_signal_stays():
    adata = tissue(2000, 1, missing=0)
    rng = np.random.default_rng(1)
    signal = adata.obsm["spatial"] / 500
    adata.obsm["X_c"] = (signal + rng.normal(size=(2000, 2))).astype(np.float32)
    neighbor_mean(adata, "X_c")
    noise = (adata.obsm[KEY] - signal).std()
    assert noise == pytest.approx(1 / np.sqrt(11), rel=0.1)


def test_unit_dtype_and_layout_do_not_matter():
    adata = tissue()
    call = {"library_key": "section", "n_neighbors": 5}
    neighbor_mean(adata, "X_c", **call)
    other = adata.copy()
    other.obsm["spatial"] = np.column_stack([np.rint(adata.obsm["spatial"] * 1e6).astype(np.int64), np.zeros(80)])
    frame = pd.DataFrame(adata.obsm["X_c"].astype(float), index=adata.obs_names, columns=list("abcd"))
    other.obsm["X_c"] = frame
    neighbor_mean(other, "X_c", **call)
    np.testing.assert_allclose(other.obsm[KEY], adata.obsm[KEY], rtol=1e-6)


def test_missing_rows_need_no_place():
    adata = tissue()
    missing = np.isnan(adata.obsm["X_c"]).any(1)
    neighbor_mean(adata, "X_c", library_key="section")
    other = adata.copy()
    other.obsm["spatial"][missing] = np.nan
    neighbor_mean(other, "X_c", library_key="section")
    np.testing.assert_array_equal(other.obsm[KEY], adata.obsm[KEY])


@pytest.mark.parametrize(
    ("name", "write", "read"), [("x.h5ad", "write_h5ad", "read_h5ad"), ("x.zarr", "write_zarr", "read_zarr")]
)
def test_copy_repeat_and_round_trip(name, write, read, tmp_path, contents):
    adata = tissue()
    before = contents(adata)
    changed = neighbor_mean(adata, "X_c", library_key="section", copy=True)
    np.testing.assert_equal(contents(adata), before)
    getattr(changed, write)(tmp_path / name)
    back = getattr(ad, read)(tmp_path / name)
    np.testing.assert_array_equal(back.obsm[KEY], changed.obsm[KEY])
    neighbor_mean(back, "X_c", library_key="section", n_neighbors=3)  # is known again as a result of its own
    assert back.uns[KEY]["params"]["n_neighbors"] == 3
    # its own result may be averaged again
    neighbor_mean(back, KEY, library_key="section", key_added="twice")
    assert np.nanvar(back.obsm["twice"]) < np.nanvar(back.obsm[KEY])


def test_mudata():
    adata = tissue()
    has = np.isfinite(adata.obsm["X_c"]).all(1)
    rna, image = adata[has].copy(), adata[::3].copy()
    del image.obsm["X_c"]
    mdata = mudata.MuData({"image": image, "rna": rna})
    neighbor_mean(mdata, "X_c", library_key="section", n_neighbors=4)
    rows = mdata.obs_names.get_indexer(rna.obs_names)
    result = mdata.obsm[KEY]
    assert KEY in mdata.uns and KEY not in mdata["rna"].obsm
    neighbor_mean(adata, "X_c", library_key="section", n_neighbors=4)
    np.testing.assert_allclose(result[rows], adata.obsm[KEY][has], rtol=1e-6)
    assert np.isnan(np.delete(result, rows, 0)).all()
    mdata["rna"].obsm["X_new"] = rna.obsm["X_c"]
    with pytest.raises(ValueError, match=r"mdata\['rna'\].obsm\['X_new'\] is there already"):
        neighbor_mean(mdata, "X_c", library_key="section", key_added="X_new")


def test_spatialdata():
    spatialdata = pytest.importorskip("spatialdata")
    adata = tissue()
    sdata = spatialdata.SpatialData(tables={"spots": adata.copy(), "other": adata[:20].copy()})
    changed = neighbor_mean(sdata, "X_c", library_key="section", table_key="spots", copy=True)
    assert KEY not in sdata["spots"].obsm
    np.testing.assert_allclose(changed["spots"].obsm[KEY], literal(adata, 10), rtol=1e-6)
    neighbor_mean(sdata, "X_c", library_key="section", table_key="spots")
    assert KEY in sdata["spots"].obsm and KEY not in sdata["other"].obsm
    with pytest.raises(ValueError, match="has 2 tables"):
        neighbor_mean(sdata, "X_c")


def test_coordinates_of_another_key():
    adata = tissue(missing=0)
    adata.obsm["microns"] = adata.obsm.pop("spatial")
    neighbor_mean(adata, "X_c", library_key="section", spatial_key="microns")
    adata.obsm["spatial"] = adata.obsm["microns"]
    np.testing.assert_allclose(adata.obsm[KEY], literal(adata, 10), rtol=1e-6)


def test_forgotten_library_key_is_told():
    adata = synthetic_tissue(200, n_sections=2)
    with pytest.warns(UserWarning, match="library_key="):
        neighbor_mean(adata, "X_pca")
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        neighbor_mean(adata, "X_pca", library_key="section")


def change(slot, key, value, rows=slice(None)):
    def apply(adata):
        getattr(adata, slot)[key][rows] = value

    return apply


def without_coordinates(adata):
    adata.obsm["Spatial"] = adata.obsm.pop("spatial")


def no_columns(adata):
    adata.obsm["X_c"] = np.zeros((80, 0))


def gap_in_section(adata):
    adata.obs["section"] = adata.obs["section"].where(np.arange(80) > 2)


def twice(adata):
    adata.obs_names = ["same", "same", *adata.obs_names[2:]]


def foreign(adata):
    adata.obsm[KEY] = np.ones((80, 2))


def nothing(adata):
    pass


BAD = {
    "no features": (nothing, {"rep": "X_d"}, KeyError, "No obsm.'X_d'.*There is.*'X_c'"),
    "no coordinates": (
        without_coordinates,
        {},
        KeyError,
        "No obsm.'spatial'. with coordinates. Did you mean 'Spatial'.*There is.*Neighbours in space",
    ),
    "missing coordinates": (
        lambda a: (change("obsm", "X_c", 1.0, [3])(a), change("obsm", "spatial", np.nan, [3])(a)),
        {},
        ValueError,
        r"has 1 observation\(s\) with features but without finite coordinates",
    ),
    "one coordinate": (
        lambda a: a.obsm.__setitem__("spatial", np.ones((80, 1))),
        {},
        ValueError,
        "at least two columns",
    ),
    "NaN inside a row": (
        lambda a: a.obsm.__setitem__("X_c", np.where(np.eye(80, 4), np.nan, 1.0)),
        {},
        ValueError,
        "NaN inside 4 row",
    ),
    "inf": (change("obsm", "X_c", np.inf, [5]), {}, ValueError, "infinite values"),
    "nothing there": (change("obsm", "X_c", np.nan), {}, ValueError, "no features: every row is NaN"),
    "no columns": (no_columns, {}, ValueError, "no features: no columns"),
    "three dimensions": (lambda a: a.obsm.__setitem__("X_c", np.ones((80, 2, 2))), {}, ValueError, "two-dimensional"),
    "no column": (nothing, {"library_key": "slide"}, KeyError, "No obs column 'slide'"),
    "gap in column": (gap_in_section, {}, ValueError, r"library_key\) has 3 missing"),
    "column no text": (nothing, {"library_key": 3}, TypeError, "library_key must be a string or None"),
    "rep no text": (nothing, {"rep": None}, TypeError, "rep must be a string"),
    "empty spatial_key": (nothing, {"spatial_key": ""}, ValueError, "spatial_key must be a non-empty string"),
    "no neighbours": (
        nothing,
        {"n_neighbors": 0},
        ValueError,
        "n_neighbors must be a whole number of at least 1, got 0",
    ),
    "half a neighbour": (nothing, {"n_neighbors": 2.5}, TypeError, "n_neighbors must be a whole number"),
    "copy": (nothing, {"copy": "no"}, TypeError, "copy must be True or False"),
    "over the features": (nothing, {"key_added": "X_c"}, ValueError, "overwrite what is read as rep"),
    "over the coordinates": (nothing, {"key_added": "spatial"}, ValueError, "overwrite what is read as spatial_key"),
    "over others": (foreign, {}, ValueError, "which this function did not write"),
    "slash": (nothing, {"key_added": "a/b"}, ValueError, "holds a slash"),
    "same names": (twice, {}, ValueError, "not unique"),
}


@pytest.mark.filterwarnings("ignore:Observation names are not unique")
@pytest.mark.parametrize(("spoil", "call", "error", "words"), BAD.values(), ids=BAD)
def test_bad_input(spoil, call, error, words, contents):
    adata = tissue()
    spoil(adata)
    before = contents(adata)
    with pytest.raises(error, match=words):
        neighbor_mean(adata, **({"rep": "X_c", "library_key": "section"} | call))
    np.testing.assert_equal(contents(adata), before)


def test_other_objects():
    with pytest.raises(TypeError, match="Expected AnnData, MuData or SpatialData, got ndarray"):
        neighbor_mean(np.zeros((3, 3)), "X_c")
    with pytest.raises(ValueError, match="There are no observations"):
        neighbor_mean(tissue()[:0].copy(), "X_c")


def test_a_hundred_thousand_in_seconds():
    n = 100_000
    adata = AnnData(obs=pd.DataFrame({"section": np.where(np.arange(n) % 2, "a", "b")}, index=np.arange(n).astype(str)))
    rng = np.random.default_rng(0)
    adata.obsm["spatial"], adata.obsm["X_c"] = rng.uniform(size=(n, 2)), rng.normal(size=(n, 20)).astype(np.float32)
    start = time.process_time()
    neighbor_mean(adata, "X_c", library_key="section")
    assert time.process_time() - start < 10
    rows = np.flatnonzero(adata.obs["section"] == "a")
    nearest = rows[np.argsort(cdist(adata.obsm["spatial"][rows[:1]], adata.obsm["spatial"][rows])[0])[:11]]
    np.testing.assert_allclose(adata.obsm[KEY][rows[0]], adata.obsm["X_c"][nearest].mean(0), rtol=1e-4, atol=1e-6)
