"""Arrays on disk: rows as memory has them, each chunk read once, and what is wrong found where it is."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stfuse import _disk
from stfuse._disk import chunk_rows, lies_on_disk, read_rows, usable_rows

zarr = pytest.importorskip("zarr")
N, WIDTH, CHUNK = 100, 6, 16
KINDS = ("zarr", "zarr sharded", "dask", "h5ad", "h5ad lazy", "zarr lazy")


def values(seed=0):
    return np.random.default_rng(seed).normal(size=(N, WIDTH)).astype(np.float32)


def stored(kind, x, folder):
    """The same numbers, kept in each of the ways that are read piece by piece."""
    if kind.startswith("zarr") and kind != "zarr lazy":
        shards = {"shards": (2 * CHUNK, WIDTH)} if "sharded" in kind else {}
        return zarr.create_array(folder / f"{kind}.zarr", data=x, chunks=(CHUNK, WIDTH), **shards)
    if kind == "dask":
        return pytest.importorskip("dask.array").from_array(x, chunks=(CHUNK, 4))
    tiles = ad.AnnData(obs=pd.DataFrame(index=[f"t{i}" for i in range(len(x))]), obsm={"X_image": x})
    if kind == "h5ad":
        h5py = pytest.importorskip("h5py")
        tiles.write_h5ad(folder / "a.h5ad")
        return ad.experimental.read_elem_lazy(h5py.File(folder / "a.h5ad", "r")["obsm/X_image"], chunks=(CHUNK, WIDTH))
    pytest.importorskip("xarray")
    if kind == "h5ad lazy":
        tiles.write_h5ad(folder / "b.h5ad")
        return ad.experimental.read_lazy(folder / "b.h5ad").obsm["X_image"]
    tiles.write_zarr(folder / "tiles.zarr")
    return ad.experimental.read_lazy(folder / "tiles.zarr").obsm["X_image"]


@pytest.fixture(scope="module")
def arrays(tmp_path_factory):
    return {kind: stored(kind, values(), tmp_path_factory.mktemp("disk")) for kind in KINDS}


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(st.integers(0, N - 1), max_size=40))
def test_rows_in_any_order_and_twice(kind, arrays, rows):
    found = read_rows(arrays[kind], np.array(rows, dtype=np.int64))
    assert found.dtype == np.float32 and isinstance(found, np.ndarray)
    np.testing.assert_array_equal(found, values()[rows])


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_of_rows_and_all_of_them(kind, arrays):
    for rows in (np.arange(N), np.arange(13, 55), np.arange(N)[::-1], np.array([99]), np.array([4, 4, 4])):
        np.testing.assert_array_equal(read_rows(arrays[kind], rows), values()[rows])
    assert usable_rows(arrays[kind], "it").all()


@pytest.mark.parametrize("kind", KINDS)
def test_they_are_told_from_arrays_in_memory(kind, arrays):
    assert lies_on_disk(arrays[kind])
    assert not lies_on_disk(values()) and not lies_on_disk(pd.DataFrame(values())) and not lies_on_disk([[1.0]])
    if kind in ("zarr", "dask", "h5ad"):
        assert chunk_rows(arrays[kind]) == CHUNK
    assert 1 <= chunk_rows(arrays[kind]) <= N


class Counted:
    """An array that tells which of its blocks were read, and how often."""

    def __init__(self, x):
        self.x, self.shape, self.dtype, self.ndim = x, x.shape, x.dtype, 2
        self.read = np.zeros(-(-len(x) // CHUNK), int)

    def __getitem__(self, at):
        rows = np.arange(len(self.x))[at[0]]
        np.add.at(self.read, np.unique(rows // CHUNK), 1)
        return self.x[at]


def counted_dask(x):
    source = Counted(x)
    return pytest.importorskip("dask.array").from_array(source, chunks=(CHUNK, WIDTH)), source


def counted_zarr(x):
    """Keys that are asked of the store."""
    from zarr.storage import MemoryStore, WrapperStore

    class Store(WrapperStore):
        read = np.zeros(-(-len(x) // CHUNK), int)

        async def get(self, key, *args, **kwargs):
            if "/" in key:
                self.read[int(key.split("/")[-2])] += 1
            return await super().get(key, *args, **kwargs)

    store = Store(MemoryStore())
    array = zarr.create_array(store, data=x, chunks=(CHUNK, WIDTH))
    store.read[:] = 0
    return array, store


@pytest.mark.parametrize("make", [counted_dask, counted_zarr])
@pytest.mark.parametrize("rows", [[0, 99, 1, 98, 17, 17, 2], [40, 41, 42], list(range(N)), []])
def test_each_chunk_is_read_once_and_no_other(make, rows):
    x = values()
    array, source = make(x)
    np.testing.assert_array_equal(read_rows(array, np.array(rows, int)), x[rows])
    expected = np.zeros(7, int)
    expected[np.unique(np.array(rows, int) // CHUNK)] = 1
    np.testing.assert_array_equal(source.read, expected)


@pytest.mark.parametrize("make", [counted_dask, counted_zarr])
@pytest.mark.parametrize("block", [1, 3 * CHUNK * WIDTH + 5, 10**9])
def test_looking_through_reads_each_chunk_once_and_little_at_a_time(make, block, monkeypatch):
    monkeypatch.setattr(_disk, "BLOCK", block)
    sizes = []
    read = _disk.read_rows
    monkeypatch.setattr(_disk, "read_rows", lambda array, rows: sizes.append(rows.size) or read(array, rows))
    x = values()
    x[[3, 40, 99]] = np.nan
    array, source = make(x)
    np.testing.assert_array_equal(usable_rows(array, "it"), np.isfinite(x).all(1))
    assert (source.read == 1).all() and sum(sizes) == N
    assert max(sizes) == {1: CHUNK, 3 * CHUNK * WIDTH + 5: 3 * CHUNK, 10**9: N}[block]


@pytest.mark.parametrize("kind", ["zarr", "dask"])
@pytest.mark.parametrize("row", [0, 15, 16, 57, 99])
def test_what_is_wrong_is_found_in_its_row(kind, row, tmp_path, monkeypatch):
    monkeypatch.setattr(_disk, "BLOCK", 1)
    spoiled = values()
    spoiled[row, 2] = np.inf
    with pytest.raises(ValueError, match=f"it holds infinite values \\(first in row {row}, column 2\\)"):
        usable_rows(stored(kind, spoiled, tmp_path), "it")
    spoiled[row, 2] = np.nan
    with pytest.raises(ValueError, match=f"it has NaN inside 1 row\\(s\\) \\(first: row {row}\\)"):
        usable_rows(stored(kind, spoiled, tmp_path / "again"), "it")


def test_what_cannot_be_features():
    with pytest.raises(ValueError, match="tiles must be two-dimensional .* its shape is \\(4, 2, 2\\)"):
        usable_rows(zarr.create_array({}, data=np.zeros((4, 2, 2)), chunks=(2, 2, 2)), "tiles")
    with pytest.raises(ValueError, match="tiles must hold numbers, its dtype is"):
        usable_rows(zarr.create_array({}, data=np.array([["a", "b"]]), chunks=(1, 2)), "tiles")


@pytest.mark.parametrize("dtype", [np.float16, np.float64, np.int32, np.uint8])
def test_other_numbers_become_single_precision(dtype):
    x = (values() * 50).astype(dtype)
    array = zarr.create_array({}, data=x, chunks=(CHUNK, WIDTH))
    found = read_rows(array, np.array([5, 2]))
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, x[[5, 2]].astype(np.float32))
    assert usable_rows(array, "it").all()


def test_no_rows():
    array = zarr.create_array({}, shape=(0, WIDTH), chunks=(CHUNK, WIDTH), dtype=np.float32)
    assert usable_rows(array, "it").shape == (0,) and read_rows(array, np.array([], int)).shape == (0, WIDTH)
