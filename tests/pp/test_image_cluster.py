"""Image features computed by the workers of a dask cluster."""

import os

import numpy as np
import pytest
from anndata import AnnData

from stfuse.pp import image_features
from stfuse.pp._encode import connected_client


class Where:
    """An encoder whose first feature is the process it ran in."""

    name = "where"
    n_features = 2

    def __call__(self, crops):
        return np.column_stack([np.full(len(crops), os.getpid()), crops.mean(axis=(1, 2, 3))]).astype(np.float32)


@pytest.fixture(scope="module")
def client():
    distributed = pytest.importorskip("distributed")
    with (
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None, memory_limit=0
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        yield client


@pytest.fixture
def slide(tmp_path):
    import tifffile

    pixels = np.random.default_rng(0).integers(100, 255, (600, 800, 3), dtype=np.uint8)
    tifffile.imwrite(tmp_path / "slide.tif", pixels, tile=(128, 128), photometric="rgb")
    adata = AnnData(np.ones((300, 1), np.float32))
    adata.obsm["spatial"] = np.random.default_rng(1).random((300, 2)) * (800, 600)
    return adata, pixels, tmp_path / "slide.tif"


def test_no_client_is_started():
    assert connected_client() is None


@pytest.mark.parametrize("kind", ["file", "array", "dask"])
def test_workers_compute_what_one_process_does(slide, client, kind):
    import dask.array as da

    adata, pixels, path = slide
    image = {"file": path, "array": pixels, "dask": da.from_array(pixels, chunks=(200, 200, 3))}[kind]
    kwargs = {"image": image, "crop_px": 32, "grid": [1, 2]}
    assert connected_client() is client
    client.cluster.scale(2)
    client.wait_for_workers(2)
    image_features(adata, Where(), key_added="X_where", **kwargs)
    image_features(adata, "texture", key_added="X_texture", **kwargs)
    processes = set(np.unique(adata.obsm["X_where"][..., 0]))
    assert len(processes) == 2 and os.getpid() not in processes
    alone = _alone(adata, kwargs)
    np.testing.assert_allclose(adata.obsm["X_texture"], alone, rtol=1e-5, atol=1e-6)


def _alone(adata, kwargs):
    from unittest.mock import patch

    with patch("stfuse.pp._encode.connected_client", return_value=None):
        return image_features(adata, "texture", copy=True, **kwargs).obsm["X_image_grid"]


def test_an_error_on_a_worker_comes_back(slide, client):
    class Fails(Where):
        def __call__(self, crops):
            raise RuntimeError("out of memory")

    adata, _, path = slide
    with pytest.raises(RuntimeError, match="out of memory"):
        image_features(adata, Fails(), image=path, crop_px=32)
    assert not adata.obsm.keys() - {"spatial"}


def test_pixels_that_the_cluster_holds_are_read_from_it(slide, client):
    import dask.array as da

    adata, pixels, _ = slide
    held = client.persist(da.from_array(pixels, chunks=(200, 200, 3)))
    image_features(adata, "texture", image=held, crop_px=32, key_added="X_held")
    image_features(adata, "texture", image=pixels, crop_px=32, key_added="X_memory")
    np.testing.assert_allclose(adata.obsm["X_held"], adata.obsm["X_memory"], rtol=1e-5, atol=1e-6)


def test_an_encoder_that_cannot_be_sent(slide, client):
    import threading

    class Locked(Where):
        def __init__(self):
            self.lock = threading.Lock()

    adata, _, path = slide
    with pytest.raises(TypeError, match="'where' can't be sent to the workers.*close the client"):
        image_features(adata, Locked(), image=path, crop_px=32)


def test_workers_notice_other_weights_under_the_same_name(slide, client, tmp_path):
    timm, torch = pytest.importorskip("timm"), pytest.importorskip("torch")
    from safetensors.torch import save_file

    # one worker gets both weights, and only one process has to load torch
    client.cluster.scale(1)
    adata, _, path = slide
    adata = adata[:12].copy()
    file, found = tmp_path / "weights.safetensors", []
    for seed in (0, 1):
        torch.manual_seed(seed)
        save_file(timm.create_model("resnet10t", num_classes=0).state_dict(), file)
        kwargs = {"image": path, "crop_px": 64, "checkpoint": file, "device": "cpu"}
        image_features(adata, "resnet10t", overwrite=True, **kwargs)
        from unittest.mock import patch

        with patch("stfuse.pp._encode.connected_client", return_value=None):
            alone = image_features(adata, "resnet10t", overwrite=True, copy=True, **kwargs).obsm["X_image"]
        np.testing.assert_allclose(adata.obsm["X_image"], alone, rtol=1e-3, atol=1e-4)
        found.append(alone)
    assert np.abs(found[0] - found[1]).max() > 1e-2
