"""The one reader: three containers, missing rows, pairs, sections, and every input it refuses."""

import logging
import warnings

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy.sparse import csr_matrix

from stfuse import _read
from stfuse._read import (
    container,
    find_library_key,
    read_array,
    read_column,
    read_coordinates,
    read_rep,
    read_sections,
)
from stfuse._views import read_views
from stfuse.pp._default_views import make_view

mudata = pytest.importorskip("mudata")
spatialdata = pytest.importorskip("spatialdata")

N = 30


def make(n=N, start=0):
    """Rows whose values say which row they are."""
    rows = np.arange(start, start + n)
    adata = ad.AnnData(obs=pd.DataFrame({"section": pd.Categorical(np.where(rows < 15, "a", "b"))}, index=names(rows)))
    adata.obsm["X_image"] = (rows[:, None] + np.arange(4) / 10).astype(np.float32)
    adata.obsm["X_pca"] = (100.0 + rows[:, None] + np.arange(3) / 10).astype(np.float32)
    adata.obsm["spatial"] = np.column_stack([rows, rows**2]).astype(float)
    return adata


def names(rows):
    return [f"spot{i:02d}" for i in rows]


def two_modalities(image_rows, rna_rows):
    image = make(len(image_rows), image_rows[0])
    rna = make(len(rna_rows), rna_rows[0])
    del image.obsm["X_pca"], rna.obsm["X_image"]
    return mudata.MuData({"image": image, "rna": rna})


# -- AnnData ---------------------------------------------------------------------------------------------------------


def test_anndata():
    adata = make()
    views = read_views(adata)
    np.testing.assert_array_equal(views.image, adata.obsm["X_image"])
    np.testing.assert_array_equal(views.rna, adata.obsm["X_pca"])
    np.testing.assert_array_equal(views.spatial, adata.obsm["spatial"])
    assert views.obs_names.equals(adata.obs_names) and views.n_obs == N
    assert views.has_image.all() and views.has_rna.all() and views.paired.all()
    assert views.section.tolist() == [0] * N and views.sections == ["section"]
    assert views.batch is None and views.batches == [] and views.made == {}
    assert views.counts() == {"total": N, "image": N, "rna": N, "both": N, "paired": N}


def test_rows_of_nan_are_missing_views():
    adata = make()
    adata.obsm["X_image"][:5] = np.nan
    adata.obsm["X_pca"][4:12] = np.nan
    views = read_views(adata)
    assert np.flatnonzero(~views.has_image).tolist() == [0, 1, 2, 3, 4]
    assert np.flatnonzero(~views.has_rna).tolist() == list(range(4, 12))
    assert views.counts() == {"total": N, "image": 25, "rna": 22, "both": 18, "paired": 18}
    assert np.isnan(views.image[:5]).all()


@pytest.mark.parametrize(
    "turn",
    [
        lambda x: x.astype(np.float64),
        lambda x: x.astype(int),
        lambda x: pd.DataFrame(x, index=names(range(N))),
        lambda x: csr_matrix(x),
        lambda x: np.asfortranarray(x),
        lambda x: pytest.importorskip("dask.array").from_array(x, chunks=7),
    ],
    ids=["float64", "int", "frame", "sparse", "fortran", "dask"],
)
def test_kinds_of_arrays(turn):
    adata = make()
    values = np.round(adata.obsm["X_image"] * 10)
    adata.obsm["X_image"] = turn(values)
    views = read_views(adata)
    assert views.image.dtype == np.float32 and type(views.image) is np.ndarray
    np.testing.assert_array_equal(views.image, values)
    np.testing.assert_array_equal(read_rep(adata, "X_image"), values)


def test_reading_writes_nothing_and_a_read_only_array_is_read():
    adata = make()
    values = adata.obsm["X_image"].copy()
    values.flags.writeable = False
    adata.obsm["X_image"] = values
    before = adata.copy()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        views = read_views(adata, library_key="section", batch_key="section")
    views.image[:] = 0
    np.testing.assert_array_equal(adata.obsm["X_image"], before.obsm["X_image"])
    pd.testing.assert_frame_equal(adata.obs, before.obs)
    assert set(adata.obsm) == set(before.obsm) and not adata.uns


def test_other_keys():
    adata = make()
    adata.obsm["X_uni"], adata.obsm["X_scVI"] = adata.obsm.pop("X_image"), adata.obsm.pop("X_pca")
    views = read_views(adata, image_key="X_uni", rna_key="X_scVI")
    assert views.image.shape == (N, 4) and views.rna.shape == (N, 3)


def test_a_view_of_an_anndata_stays_a_view():
    adata = make()
    part = adata[10:20]
    assert read_views(part).obs_names.tolist() == names(range(10, 20))
    assert part.is_view


# -- MuData ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("image_rows", "rna_rows", "both"),
    [(range(30), range(30), 30), (range(20), range(10, 30), 10), (range(12), range(12, 30), 0)],
    ids=["same", "overlap", "disjoint"],
)
def test_mudata(image_rows, rna_rows, both):
    mdata = two_modalities(image_rows, rna_rows)
    views = read_views(mdata, library_key="section")
    assert views.obs_names.equals(mdata.obs_names)
    assert views.counts() == {
        "total": 30,
        "image": len(image_rows),
        "rna": len(rna_rows),
        "both": both,
        "paired": both,
    }
    # row by row: the number in the name is in the features, the coordinates and the section
    number = np.array([int(name[4:]) for name in views.obs_names])
    assert np.array_equal(views.has_image, np.isin(number, list(image_rows)))
    np.testing.assert_array_equal(views.image[views.has_image, 0], number[views.has_image])
    np.testing.assert_array_equal(views.rna[views.has_rna, 0], 100 + number[views.has_rna])
    np.testing.assert_array_equal(views.spatial[:, 1], number**2)
    assert np.array_equal(views.section, (number >= 15).astype(int))
    assert np.isnan(views.image[~views.has_image]).all() and np.isnan(views.rna[~views.has_rna]).all()


def test_mudata_in_another_order():
    image, rna = make(), make()
    order = np.random.default_rng(0).permutation(N)
    del image.obsm["X_pca"], rna.obsm["X_image"]
    mdata = mudata.MuData({"image": image, "rna": rna[order].copy()})
    views = read_views(mdata)
    np.testing.assert_allclose(views.rna[:, 0] - views.image[:, 0], 100, atol=1e-4)


def test_mudata_coordinates_in_one_modality():
    mdata = two_modalities(range(20), range(10, 30))
    del mdata["rna"].obsm["spatial"]
    found = read_coordinates(mdata)
    assert np.isnan(found[20:]).all() and np.isfinite(found[:20]).all()
    views = read_views(mdata)
    assert views.spatial is None  # some rows have no place: only windows use the others
    np.testing.assert_array_equal(views.places, found)
    mdata = two_modalities(range(30), range(10, 30))
    del mdata["rna"].obsm["spatial"]
    np.testing.assert_array_equal(read_views(mdata).spatial[:, 0], np.arange(30))


def test_places():
    adata = make()
    views = read_views(adata)
    np.testing.assert_array_equal(views.places, views.spatial)
    adata.obsm["spatial"][3, 1] = np.nan
    views = read_views(adata)
    assert views.spatial is None and np.isfinite(views.places).all(axis=1).sum() == N - 1
    adata.obsm["spatial"][:] = np.nan
    views = read_views(adata)
    assert views.spatial is None and views.places is None


@pytest.mark.parametrize(("first", "second"), [("array_row", "array_col"), ("array_x", "array_y")])
def test_places_on_the_array(first, second):
    adata = make()
    assert read_array(adata) is None and read_views(adata).array is None
    adata.obs[first] = np.arange(N, dtype=np.int32)
    assert read_array(adata) is None  # half a place
    adata.obs[second] = np.r_[np.nan, np.arange(N - 1)]
    expected = np.column_stack([np.arange(N), np.r_[np.nan, np.arange(N - 1)]])
    np.testing.assert_array_equal(read_array(adata), expected)
    np.testing.assert_array_equal(read_views(adata).array, expected)
    adata.obs[second] = adata.obs[second].astype(str)
    assert read_array(adata) is None


def test_places_on_the_array_in_mudata():
    mdata = two_modalities(range(20), range(10, 30))
    for name, rows in (("image", range(20)), ("rna", range(10, 30))):
        mdata[name].obs["array_row"], mdata[name].obs["array_col"] = rows, np.array(rows) * 2
    number = np.array([int(name[4:]) for name in mdata.obs_names])
    np.testing.assert_array_equal(read_array(mdata), np.column_stack([number, 2 * number]))
    # modalities that contradict each other tell nothing
    mdata["rna"].obs["array_col"] += 1
    assert read_array(mdata) is None


def test_mudata_global_slots_come_first():
    mdata = two_modalities(range(20), range(10, 30))
    mdata.obs["section"] = "all"
    mdata.obsm["spatial"] = np.ones((30, 2))
    assert read_sections(mdata, "section")[1] == ["all"]
    np.testing.assert_array_equal(read_coordinates(mdata), np.ones((30, 2)))


def test_mudata_representations():
    mdata = two_modalities(range(20), range(10, 30))
    assert np.isnan(read_rep(mdata, "X_image")[20:]).all()
    mdata["rna"].obsm["X_image"] = np.zeros((20, 2))
    with pytest.raises(KeyError, match="several modalities.*'image', 'rna'"):
        read_rep(mdata, "X_image")
    mdata.obsm["X_image"] = np.ones((30, 1))
    assert read_rep(mdata, "X_image").shape == (30, 1)


def test_mudata_views_in_the_global_slot():
    """Where a fusion writes the views it made: they are read again, also by a trained model."""
    mdata = two_modalities(range(20), range(10, 30))
    rna = read_views(mdata).rna
    del mdata["rna"].obsm["X_pca"]
    mdata.obsm["X_pca"] = rna
    np.testing.assert_array_equal(read_views(mdata).rna, rna)
    assert read_views(mdata, recipe=None, min_views=1).counts()["both"] == 10
    mdata["rna"].obsm["X_pca"] = np.zeros((20, 2))
    assert read_views(mdata, min_views=1).rna.shape == (30, 2)  # the modality's own comes first


def test_mudata_with_other_modalities_besides():
    mdata = two_modalities(range(20), range(10, 30))
    other = ad.AnnData(obs=pd.DataFrame(index=["alone"]))
    views = read_views(mudata.MuData({"protein": other, **mdata.mod}))
    assert views.n_obs == 31 and views.counts()["both"] == 10


# -- SpatialData -----------------------------------------------------------------------------------------------------


def test_spatialdata():
    one = spatialdata.SpatialData(tables={"spots": make()})
    assert container(one) is one.tables["spots"] is container(one, "spots")
    assert read_views(one).counts()["both"] == N
    several = spatialdata.SpatialData(tables={"spots": make(), "cells": make(10)})
    assert read_views(several, table_key="cells").n_obs == 10
    assert read_rep(several, "X_pca", "spots").shape == (N, 3)
    assert read_column(several, "section", "cells").size == 10
    assert read_coordinates(several, table_key="cells").shape == (10, 2)
    with pytest.raises(ValueError, match=r"2 tables \((spots, cells|cells, spots)\): name one with table_key="):
        read_views(several)
    with pytest.raises(KeyError, match="No table 'bins'.*spots"):
        read_views(several, table_key="bins")
    with pytest.raises(ValueError, match=r"0 tables \(none\)"):
        container(spatialdata.SpatialData())


@pytest.mark.parametrize("data", [None, np.zeros((3, 2)), pd.DataFrame({"a": [1]}), "file.h5ad"])
def test_what_is_no_container(data):
    with pytest.raises(TypeError, match=f"Expected AnnData, MuData or SpatialData, got {type(data).__name__}"):
        read_views(data)


# -- pairs -----------------------------------------------------------------------------------------------------------

FIRST = np.arange(N) < 12


@pytest.mark.parametrize(
    "column",
    [
        FIRST,
        pd.Categorical(FIRST),
        FIRST.astype(object),
        FIRST.astype(int),
        pd.array(FIRST, dtype="boolean"),
        pd.array(np.where(FIRST, True, None), dtype="boolean"),
        np.where(FIRST, True, None),
        pd.Categorical(np.where(FIRST, True, None)),
        np.where(FIRST, True, np.nan).astype(object),
        np.where(FIRST, 1.0, np.nan),
    ],
    ids=[
        "bool",
        "categorical",
        "object",
        "int",
        "nullable",
        "nullable missing",
        "None",
        "categorical missing",
        "object nan",
        "float nan",
    ],
)
def test_paired_mask(column):
    adata = make()
    adata.obs["known"] = column
    adata.obsm["X_image"][:2] = np.nan
    views = read_views(adata, paired_key="known")
    assert views.paired.dtype == bool
    # a row without image is no pair, whatever the mask says; a missing value is no
    assert np.flatnonzero(views.paired).tolist() == list(range(2, 12))
    assert views.has_image.sum() == N - 2


@pytest.mark.parametrize("column", [["yes"] * N, ["True"] * N, np.arange(N), pd.Categorical(["a", "b"] * 15)])
def test_a_mask_that_is_none(column):
    adata = make()
    adata.obs["known"] = column
    with pytest.raises(ValueError, match=r"obs\['known'\] \(paired_key\) must be boolean, its dtype is"):
        read_views(adata, paired_key="known")


def test_mask_in_a_modality_of_a_mudata():
    mdata = two_modalities(range(20), range(10, 30))
    mdata["image"].obs["known"] = [True] * 15 + [False] * 5
    assert read_views(mdata, paired_key="known").counts()["paired"] == 5  # rows 10 to 14


def test_a_mask_that_is_there_but_not_named():
    adata = make()
    adata.obs["paired"] = FIRST
    with pytest.warns(UserWarning, match="paired_key was not given.*Pass paired_key='paired'") as caught:
        assert read_views(adata).paired.all()
    assert caught[0].filename == __file__
    adata.obs["paired"] = True
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read_views(adata)


# -- sections, batches, columns --------------------------------------------------------------------------------------


def test_sections_and_batches():
    adata = make()
    adata.obs["patient"] = [7] * 20 + [3] * 10
    views = read_views(adata, library_key="section", batch_key="patient")
    assert views.sections == ["a", "b"] and views.section.tolist() == [0] * 15 + [1] * 15
    assert views.batches == ["3", "7"] and views.batch.tolist() == [1] * 20 + [0] * 10
    assert views.library_key == "section"


def test_missing_labels_are_refused():
    adata = make()
    adata.obs["patient"] = ["x"] * 29 + [None]
    for key in ("batch_key", "library_key"):
        with pytest.raises(ValueError, match=rf"obs\['patient'\] \({key}\) has 1 missing value\(s\): fill them"):
            read_views(adata, **{key: "patient"})


@pytest.mark.parametrize("key", ["batch_key", "library_key", "paired_key"])
def test_missing_columns(key):
    with pytest.raises(KeyError, match="No obs column 'slide'. There is 'section'"):
        read_views(make(), **{key: "slide"})
    with pytest.raises(KeyError, match="No obs column 'slide'.*'image:section', 'rna:section'"):
        read_views(two_modalities(range(20), range(10, 30)), **{key: "slide"})


def test_columns_of_modalities_are_merged():
    mdata = two_modalities(range(20), range(10, 30))
    column = read_column(mdata, "section")
    assert column.index.equals(mdata.obs_names) and column.tolist() == ["a"] * 15 + ["b"] * 15
    mdata["image"].obs["score"] = np.arange(20.0)
    score = read_column(mdata, "score")
    assert score.dtype == float and np.isnan(score.iloc[20:]).all()
    with pytest.raises(ValueError, match="10 missing"):
        read_sections(mdata, "score")


def test_columns_by_the_name_that_mudata_gives_them():
    mdata = two_modalities(range(20), range(10, 30))
    mdata["rna"].obs["kind"] = "r"
    kind = read_column(mdata, "rna:kind")
    assert kind.index.equals(mdata.obs_names) and kind.isna().sum() == 10 and set(kind.dropna()) == {"r"}
    with pytest.raises(KeyError, match="No obs column 'image:kind'"):
        read_column(mdata, "image:kind")


def test_modalities_may_not_contradict_each_other():
    mdata = two_modalities(range(20), range(10, 30))
    mdata["rna"].obs["section"] = "c"
    with pytest.raises(ValueError, match="'section' differs.*in 10 observation.*'image:section', 'rna:section'"):
        read_column(mdata, "section")
    assert read_column(mdata, "rna:section").dropna().unique().tolist() == ["c"]
    # a column that nobody asked for does no harm
    mdata["image"].uns["spatial"] = libraries("a", "b")
    for modality in mdata.mod.values():
        rows = mdata.obs_names.get_indexer(modality.obs_names)
        modality.obs["library"] = np.where(rows < 15, "a", "b")
    assert find_library_key(mdata) == "library"


def libraries(*names):
    return {name: {"images": {}} for name in names}


def test_the_section_column_is_found(caplog):
    adata = make()
    assert find_library_key(adata) is None
    adata.uns["spatial"] = libraries("only")
    assert find_library_key(adata) is None
    assert read_sections(adata, None)[1] == ["only"]
    adata.uns["spatial"] = libraries("a", "b")
    with caplog.at_level(logging.INFO, logger="stfuse"):
        assert find_library_key(adata) == "section"
    assert "library_key='section' is used" in caplog.text
    assert read_views(adata).sections == ["a", "b"] and read_views(adata).library_key == "section"
    # a section without a spot is no obstacle
    adata.uns["spatial"] = libraries("a", "b", "c")
    assert find_library_key(adata) == "section"


def test_the_section_column_is_not_guessed():
    adata = make()
    adata.uns["spatial"] = libraries("a", "b")
    adata.obs["same"] = adata.obs["section"]
    with pytest.raises(ValueError, match=r"2 sections \('a', 'b'\): say with library_key=.*'section', 'same'"):
        read_views(adata)
    assert read_views(adata, library_key="same").sections == ["a", "b"]
    adata.obs = adata.obs[[]]
    with pytest.raises(ValueError, match="Columns there: nothing"):
        find_library_key(adata)


def test_the_section_column_is_found_in_a_mudata():
    mdata = two_modalities(range(20), range(10, 30))
    mdata["image"].uns["spatial"] = libraries("a", "b")
    assert find_library_key(mdata) == "section"
    assert read_views(mdata).sections == ["a", "b"]


# -- coordinates -----------------------------------------------------------------------------------------------------


def test_coordinates():
    adata = make()
    adata.obsm["spatial"] = np.arange(3 * N).reshape(N, 3)
    assert read_coordinates(adata).dtype == np.float64
    np.testing.assert_array_equal(read_coordinates(adata), adata.obsm["spatial"][:, :2])
    adata.obsm["where"] = np.ones((N, 1))
    with pytest.raises(ValueError, match=r"obsm\['where'\] must have at least two columns.*\(30, 1\)"):
        read_coordinates(adata, "where")
    assert read_coordinates(adata, "nowhere") is None
    del adata.obsm["spatial"]
    assert read_views(adata).spatial is None


# -- what is refused -------------------------------------------------------------------------------------------------


def spoil(what, value, rows=slice(None), columns=slice(None)):
    def change(adata):
        adata.obsm[what][rows, columns] = value

    return change


def replace(what, value):
    def change(adata):
        adata.obsm[what] = value

    return change


def twice(adata):
    adata.obs_names = ["same", "same", *adata.obs_names[2:]]


def only_one(adata):
    adata.obsm["X_pca"][1:] = np.nan


BAD = {
    "NaN in a row": (
        spoil("X_pca", np.nan, 3, 1),
        r"obsm\['X_pca'\] \(the rna view\) has NaN inside 1 row.*row 3.*impute",
    ),
    "inf": (spoil("X_image", np.inf, 2, 1), r"obsm\['X_image'\].*infinite.*row 2, column 1.*set the whole row to NaN"),
    "-inf": (spoil("X_image", -np.inf, 2, 1), "infinite"),
    "too large for float32": (replace("X_image", np.full((N, 2), 1e300)), "infinite"),
    "no image at all": (spoil("X_image", np.nan), r"image view is missing in every observation.*obsm\['X_image'\]"),
    "no rna at all": (spoil("X_pca", np.nan), "rna view is missing in every observation"),
    "one row": (only_one, "rna view is there in one observation only"),
    "constant": (spoil("X_image", 2.5), r"Every feature of obsm\['X_image'\] \(the image view\) is constant"),
    "constant but for rounding": (
        replace("X_image", 1 + 1e-8 * np.arange(N)[:, None] * np.ones(3)),
        "is constant: there is nothing to learn",
    ),
    "no columns": (replace("X_pca", np.zeros((N, 0), np.float32)), r"obsm\['X_pca'\] \(the rna view\) has no columns"),
    "three dimensions": (replace("X_image", np.zeros((N, 2, 2))), r"must be two-dimensional.*\(30, 2, 2\)"),
    "text": (replace("X_pca", np.full((N, 2), "a")), "must hold numbers, its dtype is"),
    "duplicate names": (twice, "obs_names of the data are not unique.*'same'.*obs_names_make_unique"),
}


@pytest.mark.filterwarnings("ignore:Observation names are not unique", "ignore:overflow encountered")
@pytest.mark.parametrize(("change", "words"), BAD.values(), ids=BAD)
def test_bad_views(change, words):
    adata = make()
    change(adata)
    with pytest.raises(ValueError, match=words):
        read_views(adata)


def test_some_constant_features_are_fine():
    adata = make()
    adata.obsm["X_image"][:, :3] = 1
    assert read_views(adata).has_image.all()


def test_missing_keys():
    adata = make()
    with pytest.raises(KeyError, match=r"No obsm\['X_uni'\] for the image view. There is.*'X_pca'.*pp.image_features"):
        read_views(adata, image_key="X_uni")
    with pytest.raises(KeyError, match=r"No obsm\['X_scVI'\] for the rna view. There is.*'X_image'.*scvi-tools"):
        read_views(adata, rna_key="X_scVI")
    with pytest.raises(KeyError, match="Codes are written by stfuse.tl"):
        read_rep(adata, "X_cameo")
    del adata.obsm["X_image"]
    with pytest.raises(KeyError, match=r"no obsm\['X_image'\] and no image in uns\['spatial'\].*image_key="):
        read_views(adata, recipe=make_view)
    with pytest.raises(KeyError, match=r"No obsm\['X_image'\] for the image view"):
        read_views(adata)
    del adata.obsm["X_pca"]
    adata.obsm["X_image"] = np.ones((N, 2)) * np.arange(N)[:, None]
    with pytest.raises(KeyError, match=r"no obsm\['X_pca'\] and no counts in X.*rna_key="):
        read_views(adata, recipe=make_view)


def test_missing_keys_of_a_mudata():
    mdata = two_modalities(range(20), range(10, 30))
    with pytest.raises(KeyError, match=r"No mdata\['rna'\].obsm\['X_scVI'\].*'X_pca'"):
        read_views(mdata, rna_key="X_scVI")
    with pytest.raises(KeyError, match="no modality 'image'; it has 'he', 'rna'. Name its modalities"):
        read_views(mudata.MuData({"he": mdata["image"], "rna": mdata["rna"]}))


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
def test_duplicate_names_in_a_modality():
    image, rna = make(), make()
    image.obs_names = ["same", "same", *image.obs_names[2:]]
    with pytest.raises(ValueError, match="not unique.*'same'"):
        read_views(mudata.MuData({"image": image, "rna": rna}))


def test_no_observations():
    with pytest.raises(ValueError, match="There are no observations"):
        read_views(make()[:0].copy())


# -- new data for a trained model ------------------------------------------------------------------------------------


def test_one_view_is_enough_to_code():
    adata = make()
    del adata.obsm["X_image"]
    views = read_views(adata, min_views=1)
    assert views.image.shape == (N, 0) and not views.has_image.any() and views.has_rna.all()
    mdata = mudata.MuData({"rna": adata})
    assert read_views(mdata, min_views=1).counts()["rna"] == N
    adata.obsm["X_pca"][0, 0] = np.nan
    with pytest.raises(ValueError, match="NaN inside 1 row"):
        read_views(adata, min_views=1)
    del adata.obsm["X_pca"]
    with pytest.raises(KeyError, match=r"Neither obsm\['X_image'\] nor obsm\['X_pca'\] is there: 'spatial'"):
        read_views(adata, min_views=1)


def test_blocks_of_rows_are_counted_as_one():
    """Large arrays are checked block by block."""
    array = np.ones((5, 4_000_000), np.float32)
    array[3] = np.nan
    assert _read.check_values(array, "x").tolist() == [True, True, True, False, True]
    array[4, 7] = np.inf
    with pytest.raises(ValueError, match="row 4, column 7"):
        _read.check_values(array, "x")


def test_regions_of_a_table_are_sections(caplog):
    adata = ad.AnnData(obs=pd.DataFrame({"region": pd.Categorical(["a", "a", "b", "b"])}, index=list("wxyz")))
    adata.obsm["X_image"] = adata.obsm["X_pca"] = np.random.default_rng(0).normal(size=(4, 2)).astype(np.float32)
    adata.uns["spatialdata_attrs"] = {"region": ["a", "b"], "region_key": "region", "instance_key": "id"}
    views = read_views(adata)
    assert views.library_key == "region" and views.sections == ["a", "b"]
    assert read_views(adata[:2].copy()).library_key is None


def test_groups_that_are_whole_numbers():
    whole, pointed = (_read.read_codes(pd.Series(v), "b", "batch_key") for v in ([1, 2, 1], [1.0, 2.0, 1.0]))
    assert whole[1] == pointed[1] == ["1", "2"]
    np.testing.assert_array_equal(whole[0], pointed[0])
    assert _read.read_codes(pd.Series([0.5, 1.0]), "b", "batch_key")[1] == ["0.5", "1.0"]


def test_rows_of_zeros_are_told():
    adata = ad.AnnData(obs=pd.DataFrame(index=[f"s{i}" for i in range(20)]))
    rng = np.random.default_rng(0)
    adata.obsm["X_image"], adata.obsm["X_pca"] = rng.normal(size=(2, 20, 4)).astype(np.float32)
    adata.obsm["X_pca"][:3] = 0
    with pytest.warns(UserWarning, match="3 rows of obsm.'X_pca'. .the rna view. are all zeros: .*make them NaN"):
        assert read_views(adata).has_rna.all()
    adata.obsm["X_pca"][:, 1:] *= rng.random((20, 3)) < 0.5  # counts of a few genes may well be zero
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        read_views(adata)
