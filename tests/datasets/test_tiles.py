import io
import json

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from anndata import AnnData, read_h5ad
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.sparse import csr_matrix

import stfuse
from stfuse.datasets import export_tiles, read_tiles
from stfuse.datasets._split import by_patient


def make_tiles(n=30, side=16, seed=0, sections=("A", "B"), dtype=np.float32):
    """Tiles of whole pixels in noise, so that crops can be compared pixel by pixel, with columns of all types."""
    rng = np.random.default_rng(seed)
    tiles = AnnData(csr_matrix(rng.poisson(0.5, (n, 6)).astype(dtype)))
    tiles.obs_names = [f"t{i}" for i in range(n)]
    tiles.var["ensembl"] = [f"ENS{i}" for i in range(6)]
    tiles.var["kind"] = pd.Categorical(["x", "y"] * 3)
    grid = np.column_stack([np.arange(n) % 5, np.arange(n) // 5]) * side
    tiles.obs["tile_x"], tiles.obs["tile_y"], tiles.obs["tile_size"] = *grid.T.astype(float), float(side)
    tiles.obs["n_cells"] = rng.integers(0, 9, n)
    tiles.obs["section"] = pd.Categorical(np.resize(sections, n))
    tiles.obs["patient"] = [f"p{i % 6}" for i in range(n)]
    tiles.obs["grade"] = pd.Categorical(rng.integers(1, 4, n), categories=[3, 2, 1, 7], ordered=True)
    tiles.obs["known"] = rng.random(n) < 0.5
    tiles.obs["age"] = pd.array(np.where(rng.random(n) < 0.3, None, 50), dtype="Int64")
    tiles.obs["purity"] = np.where(rng.random(n) < 0.3, np.nan, rng.random(n))
    tiles.obs["image"] = "a name that is taken"
    tiles.obs["label"] = pd.Categorical(np.where(rng.random(n) < 0.2, None, "tumour"))
    tiles.obsm["spatial"] = grid + side / 2
    tiles.obsm["composition"] = pd.DataFrame(rng.random((n, 2)), index=tiles.obs_names, columns=["b", "a"])
    tiles.obsm["X_image"] = rng.random((n, 4)).astype(np.float32)
    tiles.obsm["X_image"][3] = np.nan
    tiles.obsm["X_image_grid"] = rng.random((n, 3, 2)).astype(np.float32)
    size = (side * -(-n // 5), side * 6)
    tiles.uns["spatial"] = {
        name: {
            "images": {"hires": rng.integers(120, 255, (*size, 3), dtype=np.uint8)},
            "scalefactors": {"tissue_hires_scalef": 1.0, "spot_diameter_fullres": float(side)},
        }
        for name in sections
    }
    return tiles


def crop(tiles, i):
    """Slice the image of a tile."""
    x, y, side = tiles.obs[["tile_x", "tile_y", "tile_size"]].iloc[i].astype(int)
    return tiles.uns["spatial"][tiles.obs["section"].iloc[i]]["images"]["hires"][y : y + side, x : x + side]


def assert_same(back, tiles, extra=()):
    assert (back.X != tiles.X).nnz == 0 and back.X.dtype == tiles.X.dtype and isinstance(back.X, csr_matrix)
    pd.testing.assert_frame_equal(back.obs.drop(columns=list(extra)), tiles.obs)
    pd.testing.assert_frame_equal(back.var, tiles.var)
    for key in tiles.obsm:
        if isinstance(tiles.obsm[key], pd.DataFrame):
            pd.testing.assert_frame_equal(back.obsm[key], tiles.obsm[key])
        else:
            assert back.obsm[key].dtype == tiles.obsm[key].dtype
            np.testing.assert_array_equal(back.obsm[key], tiles.obsm[key])


@pytest.mark.parametrize("format", ["huggingface", "parquet"])
@pytest.mark.parametrize("dtype", [np.float32, np.int64])
def test_what_is_written_comes_back(tmp_path, format, dtype):
    tiles = make_tiles(dtype=dtype)
    before = tiles.copy()
    export_tiles(
        tiles,
        tmp_path / "set",
        format=format,
        tile_px=16,
        library_key="section",
        patient_key="patient",
        tiles_per_file=7,
    )
    assert "split" not in tiles.obs and (tiles.X != before.X).nnz == 0
    back = read_tiles(tmp_path / "set", images=True)
    images = back.obsm.pop("tile_image")
    assert_same(back, tiles, extra=["split"])
    assert (back.obs.groupby("patient")["split"].nunique() == 1).all()
    assert set(back.obs["split"]) == {"train", "validation", "test"}
    for i in range(tiles.n_obs):
        np.testing.assert_array_equal(images[i], crop(tiles, i))
    assert "tile_image" not in read_tiles(tmp_path / "set").obsm
    back.write_h5ad(tmp_path / "back.h5ad")
    again = read_h5ad(tmp_path / "back.h5ad")
    export_tiles(again, tmp_path / "again", format=format, images=False)
    pd.testing.assert_frame_equal(read_tiles(tmp_path / "again").obs, again.obs, check_index_type=False)
    # images that were read can be written again
    back.obsm["tile_image"] = images
    export_tiles(back, tmp_path / "third", format=format, tile_px=16)
    np.testing.assert_array_equal(read_tiles(tmp_path / "third", images=True).obsm["tile_image"], images)


def test_files_and_row_groups(tmp_path):
    tiles = make_tiles(250, side=4)
    tiles.obs["split"] = np.where(tiles.obs["patient"] == "p0", "test", "train")
    export_tiles(tiles, tmp_path / "set", library_key="section", tile_px=4, tiles_per_file=150)
    names = sorted(file.name for file in (tmp_path / "set" / "data").iterdir())
    n = int((tiles.obs["split"] == "train").sum())
    assert names == [
        "test-00000-of-00001.parquet",
        "train-00000-of-00002.parquet",
        "train-00001-of-00002.parquet",
    ]
    files = [pq.ParquetFile(tmp_path / "set" / "data" / name) for name in names]
    assert [file.metadata.num_rows for file in files] == [250 - n, 150, n - 150]
    assert max(f.metadata.row_group(i).num_rows for f in files for i in range(f.num_row_groups)) <= 100
    features = json.loads(files[0].schema_arrow.metadata[b"huggingface"])["info"]["features"]
    assert features["image"] == {"_type": "Image"}
    assert features["gene_indices"] == {"feature": {"dtype": "int32", "_type": "Value"}, "_type": "Sequence"}
    card = (tmp_path / "set" / "README.md").read_text()
    assert card.startswith("---\nlicense: unknown\n") and "path: data/train-*.parquet" in card
    back = read_tiles(tmp_path / "set")
    assert_same(back, tiles)


def test_images_are_resampled_from_a_level_that_is_sharp_enough(tmp_path):
    tiles = make_tiles(10, side=32, sections=("A",))
    export_tiles(tiles, tmp_path / "small", tile_px=8)
    images = read_tiles(tmp_path / "small", images=True).obsm["tile_image"]
    means = crop(tiles, 3).reshape(8, 4, 8, 4, 3).mean(axis=(1, 3))
    assert images.shape == (10, 8, 8, 3)
    assert np.abs(images[3] - means).mean() < 8  # of noise with a standard deviation of 39
    assert np.corrcoef(images[3].ravel(), means.ravel())[0, 1] > 0.8


def test_tiles_without_image_have_none(tmp_path):
    tiles = make_tiles()
    del tiles.uns["spatial"]["B"]
    with pytest.warns(UserWarning, match="15 of 30 tiles have no image"):
        export_tiles(tiles, tmp_path / "set", library_key="section", tile_px=16)
    images = read_tiles(tmp_path / "set", images=True).obsm["tile_image"]
    assert not images[1::2].any() and images[::2].any(axis=(1, 2, 3)).all()


def test_cells_to_tiles_to_disk(tmp_path):
    spots = stfuse.datasets.mob()
    spots = spots[spots.obs["section"].isin(["MOB1", "MOB3"])].copy()  # of two mice
    tiles = stfuse.pp.tessellate(spots, tile_um=800, library_key="section", label_key="layer")
    for format in ("huggingface", "parquet"):
        export_tiles(
            tiles,
            tmp_path / format,
            format=format,
            tile_px=48,
            patient_key="individual",
            fractions={"train": 0.5, "test": 0.5},
        )
        back = read_tiles(tmp_path / format, images=True)
        assert_same(back, tiles, extra=["split"])
        assert back.obsm["tile_image"].std(axis=(1, 2)).min() > 1  # tissue, not blank


def test_spatialdata(tmp_path):
    pytest.importorskip("spatialdata")
    from spatialdata import SpatialData
    from spatialdata.models import Image2DModel
    from spatialdata.transformations import Scale

    rng = np.random.default_rng(0)
    image = np.full((160, 200, 3), 245, dtype=np.uint8)
    image[20:140, 20:160] = rng.integers((150, 60, 120), (220, 140, 200), (120, 140, 3))
    element = Image2DModel.parse(
        image.transpose(2, 0, 1),
        dims=("c", "y", "x"),
        transformations={"global": Scale([0.5, 0.5], axes=("x", "y"))},
        chunks=(3, 64, 64),
    )
    sdata = SpatialData.init_from_elements({"he": element})
    stfuse.pp.tessellate(sdata, tile_px=20)
    export_tiles(sdata, tmp_path / "set", tile_px=20)
    back = read_tiles(tmp_path / "set", images=True)
    assert back.n_obs == 42 and back.obs["tile_id"].tolist() == sdata.tables["rna_tiles"].obs["tile_id"].tolist()
    for picture, x, y in zip(back.obsm["tile_image"], back.obs["tile_x"], back.obs["tile_y"], strict=True):
        np.testing.assert_array_equal(picture, image[int(y) : int(y) + 20, int(x) : int(x) + 20])
    del sdata.tables["rna_tiles"]
    with pytest.raises(ValueError, match="no table.s. of tiles.*tessellate"):
        export_tiles(sdata, tmp_path / "other")


def test_it_loads_with_the_datasets_package(tmp_path):
    datasets = pytest.importorskip("datasets")
    tiles = make_tiles(250, side=8)
    export_tiles(tiles, tmp_path / "set", library_key="section", tile_px=8, patient_key="patient", tiles_per_file=60)
    found = datasets.load_dataset(str(tmp_path / "set"), cache_dir=str(tmp_path / "cache"))
    assert set(found) == {"train", "validation", "test"} and sum(map(len, found.values())) == 250
    for part in found.values():
        for row in part.select(range(5)):
            i = tiles.obs_names.get_loc(row["tile"])
            np.testing.assert_array_equal(np.asarray(row["image"]), crop(tiles, i))
            x = np.zeros(6)
            x[row["gene_indices"]] = row["gene_counts"]
            np.testing.assert_array_equal(x, tiles.X[i].toarray()[0])
            np.testing.assert_allclose(row["composition"], tiles.obsm["composition"].iloc[i])


@settings(max_examples=100, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 60), min_size=3, max_size=25),
    weights=st.lists(st.integers(1, 9), min_size=1, max_size=3),
    seed=st.integers(0, 1000),
)
def test_patients_stay_whole_and_every_part_gets_one(sizes, weights, seed):
    patients = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(sizes)), sizes))
    fractions = {f"part{i}": w / sum(weights) for i, w in enumerate(weights)}
    split = by_patient(patients, fractions, seed)
    table = pd.crosstab(patients, np.asarray(split))
    assert ((table > 0).sum(axis=1) == 1).all() and set(table.columns) == set(fractions)
    assert (by_patient(patients, fractions, seed) == split).all()
    # no part is further above its fraction than by its last patient, or by the one that it had to get
    for name, share in fractions.items():
        assert (table[name].sum() - share * len(patients)) <= max(sizes)


def test_a_patient_in_two_parts_is_refused(tmp_path):
    tiles = make_tiles()
    tiles.obs["split"] = ["train", "test"] * 15
    tiles.obs["patient"] = "p"
    with pytest.raises(ValueError, match="1 patient.s. of obs.'patient'. are in several parts"):
        export_tiles(tiles, tmp_path / "set", images=False, patient_key="patient")
    assert not (tmp_path / "set").exists()


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ({"format": "csv"}, ValueError, "format must be 'huggingface' or 'parquet'"),
        ({"tile_px": 0}, ValueError, "tile_px must be a whole number of at least 1"),
        ({"patient_key": "patients"}, KeyError, "No obs column 'patients'.*Did you mean 'patient'"),
        ({"patient_key": "section"}, ValueError, "3 parts .* need at least as many patients, and there are 2"),
        ({"patient_key": "patient", "fractions": {"a": 0.5}}, ValueError, "must add up to 1"),
        ({"patient_key": "patient", "fractions": {"a": 1.5, "b": -0.5}}, ValueError, "fractions"),
        ({"patient_key": "patient", "fractions": {"a b": 0.5, "c": 0.5}}, ValueError, "The part 'a b'"),
        ({"fractions": {"a": 0.5, "b": 0.5}}, ValueError, "patient_key="),
        ({"split_key": "known", "fractions": {"a": 1.0}}, ValueError, "there is none to make"),
        ({"obsm_keys": ["X_imag"]}, KeyError, "No obsm.'X_imag'.*Did you mean 'X_image'"),
        ({"library_key": "sect"}, KeyError, "sect"),
        ({"seed": -1}, ValueError, "seed"),
    ],
)
def test_bad_arguments_write_nothing(tmp_path, arguments, error, text):
    with pytest.raises(error, match=text):
        export_tiles(make_tiles(), tmp_path / "set", **{"library_key": "section", **arguments})
    assert list(tmp_path.iterdir()) == []


def test_other_bad_tables(tmp_path):
    tiles = make_tiles()
    del tiles.obs["tile_size"]
    with pytest.raises(ValueError, match="no 'tile_size'.*tessellate"):
        export_tiles(tiles, tmp_path / "set")
    tiles = make_tiles()
    del tiles.uns["spatial"]
    with pytest.raises(KeyError, match="has no image"):
        export_tiles(tiles, tmp_path / "set")
    tiles.obs["mixed"] = pd.Series([1, "a", (2,)] * 10, index=tiles.obs_names, dtype=object)
    with pytest.raises(ValueError, match="obs.'mixed'. can't be written"):
        export_tiles(tiles, tmp_path / "set", images=False)
    del tiles.obs["mixed"]
    tiles.obsm["sparse"] = csr_matrix(np.eye(30))
    with pytest.warns(UserWarning, match="not written: sparse"):
        export_tiles(tiles, tmp_path / "set", images=False)


def test_folders_of_others_are_left_alone(tmp_path):
    tiles = make_tiles()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("precious")
    for overwrite in (False, True):
        with pytest.raises(FileExistsError, match="holds other files"):
            export_tiles(tiles, tmp_path / "mine", images=False, overwrite=overwrite)
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "precious"
    with pytest.raises(FileExistsError, match="is a file"):
        export_tiles(tiles, tmp_path / "mine" / "thesis.txt", images=False)
    export_tiles(tiles, tmp_path / "set", images=False, tiles_per_file=3)
    with pytest.raises(FileExistsError, match="overwrite=True"):
        export_tiles(tiles, tmp_path / "set", images=False)
    with pytest.raises(KeyError):  # what is there outlives a failed call
        export_tiles(tiles, tmp_path / "set", images=False, overwrite=True, patient_key="nobody")
    assert read_tiles(tmp_path / "set").n_obs == 30
    export_tiles(tiles[:4].copy(), tmp_path / "set", images=False, overwrite=True, format="parquet")
    assert read_tiles(tmp_path / "set").n_obs == 4


def test_only_own_files_are_replaced(tmp_path):
    """A clone of a data set, with what git and its author keep there."""
    tiles, folder = make_tiles(), tmp_path / "set"
    (tmp_path / "set.partial").mkdir()
    (tmp_path / "set.partial" / "thesis.txt").write_text("precious")
    export_tiles(tiles, folder, images=False, tiles_per_file=3)
    others = (".git/config", "notes.md", "data/raw.csv", "data/raw.parquet", "figures/train-00000-of-00001.parquet")
    for name in others:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(name)
    few = tiles[:4].copy()
    export_tiles(few, folder, images=False, overwrite=True)
    assert read_tiles(folder).n_obs == 4
    export_tiles(few[:2].copy(), folder, images=False, overwrite=True, format="parquet")
    assert read_tiles(folder).n_obs == 2
    for name in others:
        assert (folder / name).read_text() == name
    left = {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()}
    assert left == {*others, "tiles-00000-of-00001.parquet", "genes.parquet", "stfuse.json"}
    assert (tmp_path / "set.partial" / "thesis.txt").read_text() == "precious"
    assert sorted(file.name for file in tmp_path.iterdir()) == ["set", "set.partial"]
    (folder / "README.md").write_text("# My own words")
    with pytest.raises(FileExistsError, match="README.md' is no card"):
        export_tiles(few, folder, images=False, overwrite=True)
    assert (folder / "README.md").read_text() == "# My own words" and read_tiles(folder).n_obs == 2


def test_a_call_that_fails_midway_leaves_what_was_there(tmp_path):
    tiles, folder = make_tiles(), tmp_path / "set"
    export_tiles(tiles, folder, images=False)
    tiles.obs["mixed"] = pd.Series([1, "a", (2,)] * 10, index=tiles.obs_names, dtype=object)
    with pytest.raises(ValueError, match="can't be written"):
        export_tiles(tiles, folder, images=False, overwrite=True)
    assert read_tiles(folder).n_obs == 30 and [file.name for file in tmp_path.iterdir()] == ["set"]


def test_the_folder_here_and_behind_links(tmp_path, monkeypatch):
    tiles = make_tiles()
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    export_tiles(tiles, ".", images=False)
    assert read_tiles(".").n_obs == 30
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    (tmp_path / "dangling").symlink_to("later")
    for link, real in (("link", "real"), ("dangling", "later")):
        export_tiles(tiles, tmp_path / link, images=False)
        assert (tmp_path / link).is_symlink() and (tmp_path / real / "stfuse.json").is_file()
        assert read_tiles(tmp_path / link).n_obs == 30
    assert (tmp_path / "real").stat().st_mode == (tmp_path / "here").stat().st_mode


def test_expression_of_half_precision_comes_back_as_float32(tmp_path):
    tiles = make_tiles(10)
    tiles.X = tiles.X.toarray().astype(np.float16)
    export_tiles(tiles, tmp_path / "set", images=False)
    back = read_tiles(tmp_path / "set")
    assert back.X.dtype == np.float32
    np.testing.assert_array_equal(back.X.toarray(), tiles.X)


DEPTHS = {
    "16 bits": lambda x: x.astype(np.uint16) * 257,
    "shares of 1": lambda x: (x / 255).astype(np.float32),
    "whole numbers": lambda x: x.astype(np.int64),
    "gray": lambda x: x[..., :1],
}


@pytest.mark.parametrize("depth", DEPTHS)
def test_stored_images_of_any_depth(tmp_path, depth):
    tiles, pixels = make_tiles(10), np.random.default_rng(0).integers(0, 256, (10, 8, 8, 3), dtype=np.uint8)
    pixels = np.repeat(pixels[..., :1], 3, axis=3) if depth == "gray" else pixels
    tiles.obsm["tile_image"] = DEPTHS[depth](pixels)
    export_tiles(tiles, tmp_path / "set", tile_px=8)
    np.testing.assert_array_equal(read_tiles(tmp_path / "set", images=True).obsm["tile_image"], pixels)


def test_stored_images_that_are_none(tmp_path):
    tiles = make_tiles(10)
    for values, text in ((np.zeros((10, 8)), "height x width"), (np.full((10, 8, 8, 3), -5.0), "must lie in")):
        tiles.obsm["tile_image"] = values
        with pytest.raises(ValueError, match=text):
            export_tiles(tiles, tmp_path / "set")
    assert list(tmp_path.iterdir()) == []


def test_large_whole_numbers_and_columns_of_several_types(tmp_path):
    tiles = make_tiles(9)
    big = [2**60 + 1, None, 2**60 + 3] * 3
    tiles.obs["id"] = pd.array(big, dtype="Int64")
    tiles.obs["unsigned"] = pd.array([2**63 + 1, None, 5] * 3, dtype="UInt64")
    tiles.obs["class"] = pd.Categorical(big, categories=[2**60 + 3, 2**60 + 1])
    tiles.obsm["mixed"] = pd.DataFrame(
        {"whole": np.arange(9), "half": np.arange(9) / 2, "flag": np.arange(9) % 2 == 0}, index=tiles.obs_names
    )
    tiles.obsm["numbered"] = pd.DataFrame(
        np.arange(27.0).reshape(9, 3).astype(np.float32), index=tiles.obs_names, columns=[3, 1, 2]
    )
    export_tiles(tiles, tmp_path / "set", images=False)
    back = read_tiles(tmp_path / "set")
    pd.testing.assert_frame_equal(back.obs.drop(columns="split"), tiles.obs)
    for key in ("mixed", "numbered", "composition"):
        pd.testing.assert_frame_equal(back.obsm[key], tiles.obsm[key], check_column_type=False)
    assert back.obsm["numbered"].columns.tolist() == [3, 1, 2]


@pytest.mark.parametrize("format", ["huggingface", "parquet"])
def test_tiles_without_cells_or_genes_and_no_tiles(tmp_path, format):
    tiles = make_tiles(10)
    with pytest.raises(ValueError, match="The table has no tiles"):
        export_tiles(tiles[:0].copy(), tmp_path / "none", format=format)
    assert list(tmp_path.iterdir()) == []
    empty = tiles.copy()
    empty.X, empty.obs["n_cells"] = csr_matrix(tiles.shape, dtype=np.int64), 0
    bare = tiles[:, :0].copy()
    bare.var = pd.DataFrame(index=bare.var_names)
    for name, table in (("empty", empty), ("bare", bare)):
        export_tiles(table, tmp_path / name, format=format, images=False)
        assert_same(read_tiles(tmp_path / name), table, extra=["split"])


def cut_short(folder):
    file = next(folder.rglob("train-*.parquet"))
    file.write_bytes(file.read_bytes()[:200])


def lose_a_file(folder):
    next(folder.rglob("train-00001*.parquet")).unlink()


def lose_genes(folder):
    (folder / "genes.parquet").unlink()


def break_json(folder):
    (folder / "stfuse.json").write_text("{")


def later_version(folder):
    (folder / "stfuse.json").write_text('{"version": 99}')


def other_columns(folder):
    content = json.loads((folder / "stfuse.json").read_text())
    content["obs"].append({"name": "new", "column": "new", "dtype": "int64"})
    (folder / "stfuse.json").write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("damage", "text"),
    [
        (cut_short, "damaged or no Parquet file"),
        (lose_a_file, "should hold 30 tiles, but its files hold 20"),
        (lose_genes, "has no genes.parquet"),
        (break_json, "stfuse.json' is damaged"),
        (later_version, "version 99.*update stfuse"),
        (other_columns, "has no column 'new'"),
    ],
)
def test_damaged_data_sets(tmp_path, damage, text):
    export_tiles(make_tiles(), tmp_path / "set", images=False, tiles_per_file=10)
    damage(tmp_path / "set")
    with pytest.raises(ValueError, match=text):
        read_tiles(tmp_path / "set")


def test_folders_that_are_none(tmp_path):
    with pytest.raises(FileNotFoundError, match="There is no"):
        read_tiles(tmp_path / "nothing")
    with pytest.raises(FileNotFoundError, match="has no Parquet file"):
        read_tiles(tmp_path)
    export_tiles(make_tiles(), tmp_path / "set", images=False)
    with pytest.raises(KeyError, match="has no images"):
        read_tiles(tmp_path / "set", images=True)
    with pytest.raises(ValueError, match="another origin"):
        read_tiles(tmp_path / "set", expression="genes")


def foreign_set(folder, sizes=(12, 12)):
    """A set as the datasets package writes it: image, class label, text, lists, named numbers."""
    (folder / "data").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for part, n in (("train", 4), ("test", 2)):
        pixels = rng.integers(0, 256, (n, sizes[0], sizes[1], 3), dtype=np.uint8)
        files = []
        for one in pixels:
            buffer = io.BytesIO()
            Image.fromarray(one).save(buffer, format="PNG")
            files.append({"bytes": buffer.getvalue(), "path": "x.png"})
        table = pa.table(
            {
                "image": pa.array(files),
                "label": pa.array(np.arange(n) % 2),
                "sample": [f"VUHD{part}"] * n,
                "n_cells": np.arange(n),
                "gene_expression": [rng.random(5).tolist() for _ in range(n)],
                "cell_types": [{"T": 0.25, "B": 0.75}] * n,
                "cells": [["a"] * i for i in range(n)],
            }
        )
        features = {"label": {"names": ["alveoli", "airway"], "_type": "ClassLabel"}, "image": {"_type": "Image"}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
        pq.write_table(table, folder / "data" / f"{part}-00000-of-00001.parquet")
    return folder


def test_data_sets_of_others(tmp_path):
    folder = foreign_set(tmp_path / "set")
    with pytest.warns(UserWarning, match="left out: cells"):
        tiles = read_tiles(folder, images=True, expression="gene_expression")
    assert tiles.shape == (6, 5) and tiles.obsm["tile_image"].shape == (6, 12, 12, 3)
    assert tiles.obs["label"].tolist() == ["alveoli", "airway"] * 3
    assert tiles.obs["split"].tolist() == ["test"] * 2 + ["train"] * 4
    assert tiles.obs["sample"].iloc[0] == "VUHDtest" and tiles.obs["n_cells"].iloc[1] == 1
    assert tiles.obsm["cell_types"].columns.tolist() == ["T", "B"] and "gene_expression" not in tiles.obsm
    with pytest.warns(UserWarning, match="left out"):
        assert read_tiles(folder).shape == (6, 0)
    with pytest.warns(UserWarning, match="left out"):
        assert read_tiles(folder, expression="cell_types").var_names.tolist() == ["T", "B"]
    with pytest.warns(UserWarning, match="left out"):
        assert read_tiles(folder / "data" / "test-00000-of-00001.parquet").n_obs == 2
    with pytest.raises(KeyError, match="No obs column|no column 'genes'"):
        read_tiles(folder, expression="genes")
    with pytest.raises(ValueError, match="'sample' is no expression.*gene_expression, cell_types"):
        read_tiles(folder, expression="sample")


def test_images_of_several_sizes_make_no_array(tmp_path):
    folder = foreign_set(tmp_path / "set")
    other = foreign_set(tmp_path / "other", sizes=(12, 14))
    file = other / "data" / "train-00000-of-00001.parquet"
    file.rename(folder / "data" / "validation-00000-of-00001.parquet")
    with pytest.warns(UserWarning, match="left out"), pytest.raises(ValueError, match="12 x 12 and 14 x 12"):
        read_tiles(folder, images=True)


def test_real_slide_with_full_resolution(shared_data, tmp_path):
    spots = read_h5ad(shared_data / "her2st" / "her2st_B4.h5ad")
    path = shared_data / "her2st" / "her2st_B4_fullres.jpg"
    tiles = stfuse.pp.tessellate(spots, image=path, tile_um=400, mpp=0.69, label_key="label_transferred")
    tiles = tiles[:12].copy()
    export_tiles(tiles, tmp_path / "set", image=path)
    back = read_tiles(tmp_path / "set", images=True)
    assert_same(back, tiles, extra=["split"])
    Image.MAX_IMAGE_PIXELS = None
    with Image.open(path) as picture:
        x, y, side = tiles.obs[["tile_x", "tile_y", "tile_size"]].iloc[5]
        direct = np.asarray(picture.crop((int(x), int(y), int(x + side), int(y + side))).resize((224, 224)))
    assert np.abs(back.obsm["tile_image"][5].astype(float) - direct).mean() < 6


def test_tiles_of_a_slide_file(shared_data, tmp_path):
    """A SpatialData as LazySlide makes it: tiles in pixels of a slide that is no element of it."""
    geopandas, shapely = pytest.importorskip("geopandas"), pytest.importorskip("shapely")
    from spatialdata import SpatialData
    from spatialdata.models import ShapesModel

    from stfuse._image._files import open_image

    boxes = geopandas.GeoDataFrame(
        {"tile_id": [0, 1], "geometry": [shapely.box(400, 800, 656, 1056), shapely.box(656, 800, 912, 1056)]}
    )
    sdata = SpatialData.init_from_elements({"tiles": ShapesModel.parse(boxes)})
    stfuse.pp.tessellate(sdata, shapes="tiles")
    path = shared_data / "wsi" / "CMU-1-Small-Region.svs"
    export_tiles(sdata, tmp_path / "set", image=path, tile_px=256)
    images = read_tiles(tmp_path / "set", images=True).obsm["tile_image"]
    np.testing.assert_array_equal(images[1], open_image(path).read(0, slice(800, 1056), slice(656, 912)))
