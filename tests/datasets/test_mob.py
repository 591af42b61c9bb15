from importlib.resources import files

import numpy as np
import pytest
from anndata import read_h5ad
from scipy.spatial import cKDTree

from stfuse.datasets import mob


@pytest.fixture(scope="module")
def adata():
    return mob()


def test_contents(adata):
    assert adata.shape == (1627, 1000)
    assert adata.obs["section"].value_counts(sort=False).to_dict() == {
        "MOB1": 379,
        "MOB2": 407,
        "MOB3": 438,
        "MOB4": 403,
    }
    assert adata.obs.groupby("section", observed=True)["individual"].first().tolist() == ["1", "1", "2", "2"]
    assert adata.obs["layer"].cat.categories.tolist() == ["ONL", "GL", "MCL", "GCL"]
    assert not adata.obs["layer"].isna().any()
    assert adata.obs_names.is_unique and adata.var_names.is_unique
    assert adata.X.dtype == np.float32 and adata.X.format == "csr"
    assert (adata.X.data == np.rint(adata.X.data)).all() and adata.X.data.min() >= 0


def test_images_are_in_squidpys_layout_and_spots_lie_on_tissue(adata):
    assert list(adata.uns["spatial"]) == ["MOB1", "MOB2", "MOB3", "MOB4"]
    for section, entry in adata.uns["spatial"].items():
        image = entry["images"]["hires"]
        assert image.shape == (1905, 1905, 3) and image.dtype == np.uint8
        x, y = adata.obsm["spatial"][adata.obs["section"] == section].T.astype(int)
        # tissue is darker than the glass around it: a swap of x and y would show
        assert image[y, x].mean() < image.mean() - 20


def test_spot_diameter_follows_from_the_array(adata):
    # Nearest spots are diagonal neighbours of an array of 100 um: their distance is the root of 2 diameters.
    for section in adata.uns["spatial"]:
        xy = adata.obsm["spatial"][adata.obs["section"] == section]
        pitch = np.median(cKDTree(xy).query(xy, k=2)[0][:, 1])
        assert adata.uns["spatial"][section]["scalefactors"]["spot_diameter_fullres"] == pytest.approx(
            pitch / np.sqrt(2), rel=0.05
        )
    assert ((adata.obs["array_x"] + adata.obs["array_y"]) % 2 == 0).all()


def test_each_call_gives_a_new_object(adata):
    other = mob()
    other.X.data[:] = 0
    other.uns["spatial"]["MOB1"]["images"]["hires"][:] = 0
    assert mob().X.sum() > 0 and adata.uns["spatial"]["MOB1"]["images"]["hires"].any()


def test_h5ad_round_trip(adata, tmp_path):
    part = adata[adata.obs["section"] == "MOB1"].copy()
    del part.uns["spatial"]["MOB2"], part.uns["spatial"]["MOB3"], part.uns["spatial"]["MOB4"]
    part.write_h5ad(tmp_path / "mob.h5ad")
    back = read_h5ad(tmp_path / "mob.h5ad")
    assert back.obs.equals(part.obs)
    np.testing.assert_array_equal(
        back.uns["spatial"]["MOB1"]["images"]["hires"], part.uns["spatial"]["MOB1"]["images"]["hires"]
    )


def test_size_and_licences_of_what_ships():
    data = files("stfuse.datasets") / "data"
    sizes = [f.stat().st_size for folder in data.iterdir() for f in folder.iterdir()]
    assert sum(sizes) < 6_000_000
    assert "Permission is hereby granted, free of charge" in (data / "mob" / "LICENSE.STUtility").read_text()
    assert "Apache License" in (data / "progeny" / "LICENSE.PROGENy").read_text()


def test_equals_the_source(adata, shared_data):
    for i, section in enumerate(("MOB1", "MOB2", "MOB3", "MOB4"), start=1):
        source = read_h5ad(shared_data / "mob" / f"mob{i}.h5ad")
        part = adata[adata.obs["section"] == section]
        assert [name.removeprefix(f"{section}_") for name in part.obs_names] == source.obs_names.tolist()
        np.testing.assert_array_equal(part.X.toarray(), source[:, part.var_names].X.toarray())
        np.testing.assert_allclose(part.obsm["spatial"], source.obsm["spatial"], rtol=1e-6)
        assert part.obs["layer"].astype(str).tolist() == source.obs["layer_transferred"].astype(str).tolist()
