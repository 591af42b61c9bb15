import dask.array as da
import mudata
import numpy as np
import pytest
from anndata import AnnData, read_h5ad

from stfuse.datasets import mob
from stfuse.pp import normalize_stain

METHODS = ("macenko", "reinhard")
STAINS = np.array([[0.75, 0.59, 0.29], [0.30, 0.83, 0.47]])


def slide(side=150, seed=0, strength=1.0, white=(240, 235, 245), stains=STAINS):
    """Stained tissue on glass."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:side, :side] - side / 2
    amount = rng.uniform(0.6, 1.2, (side, side, 2)) * (y**2 + x**2 < (side / 3) ** 2)[..., None]
    kind = rng.random((side, side, 1))
    amount *= np.where(kind < 0.3, [1, 0], np.where(kind < 0.6, [0, 1], [0.5, 0.5])) * strength
    return np.rint(np.array(white) * np.exp(-amount @ stains)).astype(np.uint8)


def two_sections():
    adata = AnnData(np.ones((4, 2), dtype=np.float32))
    adata.uns["spatial"] = {
        name: {
            "images": {"hires": slide(seed=i, strength=1 - 0.3 * i), "lowres": slide(75, seed=i)},
            "scalefactors": {
                "tissue_hires_scalef": 0.2,
                "tissue_lowres_scalef": 0.1,
                "spot_diameter_fullres": 50.0,
            },
        }
        for i, name in enumerate("AB")
    }
    return adata


def one_image(multiscale=False, channels=("r", "g", "b"), image=None):
    from spatialdata.models import Image2DModel
    from spatialdata.transformations import Affine, Identity

    turn = Affine([[0, 2, 5], [-2, 0, 7], [0, 0, 1]], input_axes=("x", "y"), output_axes=("x", "y"))
    pixels = np.moveaxis(slide() if image is None else image, 2, 0)
    return Image2DModel.parse(
        da.from_array(pixels, chunks=(1, 64, 50)),
        dims=("c", "y", "x"),
        c_coords=list(channels),
        transformations={"global": Identity(), "turned": turn},
        scale_factors=[2, 2] if multiscale else None,
    )


def spatial_data(**kinds):
    from spatialdata import SpatialData

    return SpatialData(images={name: one_image(**kind) for name, kind in (kinds or {"he": {}}).items()})


@pytest.mark.parametrize("method", METHODS)
def test_images_lie_beside_the_originals(method, tmp_path):
    adata = two_sections()
    before = {name: entry["images"]["hires"].copy() for name, entry in adata.uns["spatial"].items()}
    assert normalize_stain(adata, method=method) is None
    for name, entry in adata.uns["spatial"].items():
        made = entry["images"][f"hires_{method}"]
        assert made.dtype == np.uint8 and made.shape == before[name].shape and (made != before[name]).any()
        assert (made[:10] == 255).all()
        np.testing.assert_array_equal(entry["images"]["hires"], before[name])
        assert entry["scalefactors"][f"tissue_hires_{method}_scalef"] == 0.2
    record = adata.uns[f"stain_{method}"]
    assert record["method"] == method and record["target"] == "reference" and set(record["fits"]) == {"A", "B"}
    assert record["image"] == {"A": "hires", "B": "hires"}
    expected = {k: e["images"][f"hires_{method}"] for k, e in adata.uns["spatial"].items()}
    adata.write_h5ad(tmp_path / "a.h5ad")
    back = read_h5ad(tmp_path / "a.h5ad")
    np.testing.assert_array_equal(back.uns[f"stain_{method}"]["fits"]["A"]["white"], record["fits"]["A"]["white"])
    # read back, the call can be repeated, and its target taken for other data
    normalize_stain(back, method=method, target=back.uns[f"stain_{method}"]["target_fit"])
    for name, image in expected.items():
        np.testing.assert_array_equal(back.uns["spatial"][name]["images"][f"hires_{method}"], image)


def test_a_section_as_the_target():
    adata = two_sections()
    normalize_stain(adata, target="A", image="lowres", key_added="like_A")
    images = {name: entry["images"] for name, entry in adata.uns["spatial"].items()}
    assert set(images["B"]) == {"hires", "lowres", "lowres_like_A"}
    assert np.abs(images["A"]["lowres_like_A"].astype(int) - images["A"]["lowres"]).max() <= 3
    assert adata.uns["stain_like_A"]["target"] == "A"
    assert adata.uns["spatial"]["B"]["scalefactors"]["tissue_lowres_like_A_scalef"] == 0.1


def test_again_and_both_images_under_one_name():
    adata = two_sections()
    for image in ("hires", "lowres", "hires"):
        normalize_stain(adata, image=image)
    assert set(adata.uns["spatial"]["A"]["images"]) == {"hires", "lowres", "hires_macenko", "lowres_macenko"}
    normalize_stain(adata, target="B")
    assert adata.uns["stain_macenko"]["target"] == "B"


def test_other_names_are_refused_and_nothing_is_changed():
    adata = two_sections()
    mine = adata.uns["spatial"]["B"]["images"]["hires_macenko"] = np.zeros((3, 3, 3), np.uint8)
    with pytest.raises(ValueError, match="'hires_macenko' already.*key_added="):
        normalize_stain(adata)
    assert adata.uns["spatial"]["B"]["images"]["hires_macenko"] is mine
    assert set(adata.uns) == {"spatial"} and set(adata.uns["spatial"]["A"]["images"]) == {"hires", "lowres"}
    adata.uns["stain_x"] = {"a": 1}
    with pytest.raises(ValueError, match="stain_x"):
        normalize_stain(adata, key_added="x")
    adata.uns["spatial"]["B"]["images"]["hires"] = np.full((50, 50, 3), 240, np.uint8)
    with pytest.raises(ValueError, match=r"'B'.*shows no tissue"):
        normalize_stain(adata, key_added="y")
    assert set(adata.uns) == {"spatial", "stain_x"} and set(adata.uns["spatial"]["A"]["images"]) == {"hires", "lowres"}


def test_copy_and_shared_parts():
    adata = two_sections()
    shared = AnnData(np.ones((2, 2), dtype=np.float32), uns={"spatial": adata.uns["spatial"]})
    changed = normalize_stain(adata, copy=True)
    assert "hires_macenko" in changed.uns["spatial"]["A"]["images"] and "stain_macenko" in changed.uns
    assert set(adata.uns) == {"spatial"} and set(adata.uns["spatial"]["A"]["images"]) == {"hires", "lowres"}
    normalize_stain(adata)
    assert set(shared.uns["spatial"]["A"]["images"]) == {"hires", "lowres"}


def test_squidpy_draws_the_result():
    squidpy = pytest.importorskip("squidpy")
    adata = two_sections()
    adata.obsm["spatial"] = np.array([[100.0, 100], [200, 300], [400, 400], [300, 100]])
    adata.obs["section"] = list("AABB")
    adata.obs["section"] = adata.obs["section"].astype("category")
    normalize_stain(adata)
    squidpy.pl.spatial_scatter(adata, img_res_key="hires_macenko", library_key="section")


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("multiscale", [False, True])
def test_elements_stay_lazy_and_in_place(method, multiscale, tmp_path):
    from spatialdata import SpatialData
    from spatialdata.transformations import Scale, get_transformation, set_transformation

    sdata = spatial_data(he={"multiscale": multiscale})
    original = sdata.images["he"]
    normalize_stain(sdata, method=method)
    made = sdata.images[f"he_{method}"]
    assert set(sdata.images) == {"he", f"he_{method}"} and sdata.images["he"] is original
    levels = [(original, made)]
    if multiscale:
        assert list(made.children) == list(original.children) == ["scale0", "scale1", "scale2"]
        levels = [(original[s]["image"], made[s]["image"]) for s in made.children]
    adata = AnnData(np.ones((1, 1), dtype=np.float32))
    adata.uns["spatial"] = {"s": {"images": {"hires": slide()}, "scalefactors": {"tissue_hires_scalef": 1.0}}}
    normalize_stain(adata, method=method)
    expected = adata.uns["spatial"]["s"]["images"][f"hires_{method}"]
    for i, (old, new) in enumerate(levels):
        assert isinstance(new.data, da.Array) and new.dtype == np.uint8 and new.shape == old.shape
        assert new.data.chunks[1:] == old.data.chunks[1:] and list(new.coords["c"].values) == ["r", "g", "b"]
        np.testing.assert_array_equal(new.coords["x"], old.coords["x"])
        if i == 0:
            np.testing.assert_array_equal(np.moveaxis(new.values, 0, 2), expected)
    for system in ("global", "turned"):
        assert get_transformation(made, system) == get_transformation(original, system)
    assert set(get_transformation(made, get_all=True)) == {"global", "turned"}
    record = sdata.attrs[f"stain_{method}"]
    assert set(record["fits"]) == {"he"} and record["written"] == [f"he_{method}"]

    sdata.write(tmp_path / "a.zarr")
    back = SpatialData.read(tmp_path / "a.zarr")
    assert back.attrs[f"stain_{method}"]["fits"] == record["fits"]
    normalize_stain(back, method=method, target=back.attrs[f"stain_{method}"]["target_fit"])
    again = back.images[f"he_{method}"]
    again = again["scale0"]["image"] if multiscale else again
    np.testing.assert_array_equal(np.moveaxis(again.values, 0, 2), expected)
    set_transformation(made, Scale([2.0, 2.0], axes=("x", "y")), "global")
    assert get_transformation(original, "global") != get_transformation(made, "global")


def test_a_table_gets_the_record():
    sdata = spatial_data(one={}, two={"image": slide(seed=1, strength=0.7)})
    sdata.tables["table"] = AnnData(np.ones((3, 2), dtype=np.float32))
    changed = normalize_stain(sdata, image="two", target="one", copy=True)
    assert set(sdata.images) == {"one", "two"} and "stain_macenko" not in sdata.tables["table"].uns
    assert set(changed.images) == {"one", "two", "two_macenko"}
    assert changed.images["one"] is sdata.images["one"] and not changed.attrs
    assert changed.tables["table"].uns["stain_macenko"]["target"] == "one"
    normalize_stain(changed)  # all images but results
    assert set(changed.images) == {"one", "two", "one_macenko", "two_macenko"}
    normalize_stain(changed, method="reinhard", image=["one"])
    assert "one_reinhard" in changed.images and "one_macenko_reinhard" not in changed.images
    changed.images["two_reinhard"] = one_image()
    with pytest.raises(ValueError, match="'two_reinhard' already"):
        normalize_stain(changed, method="reinhard")


def test_kinds_of_pixels():
    rgba = np.dstack([slide(), np.full((150, 150), 255, np.uint8)])
    sdata = spatial_data(
        plain={},
        alpha={"image": rgba, "channels": ("r", "g", "b", "a")},
        deep={"image": slide().astype(np.uint16) * 257},
        real={"image": (slide() / 255).astype(np.float32)},
    )
    normalize_stain(sdata)
    expected = sdata.images["plain_macenko"].values
    for name in ("alpha", "deep", "real"):
        made = sdata.images[f"{name}_macenko"]
        assert made.dtype == np.uint8 and list(made.coords["c"].values) == ["r", "g", "b"]
        np.testing.assert_array_equal(made.values, expected)


def test_bad_input():
    adata = two_sections()
    with pytest.raises(ValueError, match="Did you mean 'macenko'"):
        normalize_stain(adata, method="Macenko")
    with pytest.raises(KeyError, match="'C' is no section.*'A', 'B'"):
        normalize_stain(adata, target="C")
    with pytest.raises(KeyError, match="no 'hirez'.*Did you mean 'hires'"):
        normalize_stain(adata, image="hirez")
    with pytest.raises(TypeError, match="copy"):
        normalize_stain(adata, copy="no")
    with pytest.raises(TypeError, match="image must be a string"):
        normalize_stain(adata, image=["hires"])
    with pytest.raises(ValueError, match="slash"):
        normalize_stain(adata, key_added="a/b")
    with pytest.raises(KeyError, match=r"uns\['spatial'\] has no image"):
        normalize_stain(AnnData(np.ones((2, 2), dtype=np.float32)))
    with pytest.raises(TypeError, match="takes AnnData or SpatialData, not dict"):
        normalize_stain({})
    mdata = mudata.MuData({"image": adata})
    with pytest.raises(TypeError, match=r'mdata\["image"\]'):
        normalize_stain(mdata)
    gray = np.repeat(slide()[:, :, :1], 3, axis=2)
    adata.uns["spatial"]["A"]["images"]["hires"] = gray
    with pytest.raises(ValueError, match="gray"):
        normalize_stain(adata)
    sdata = spatial_data(he={}, dapi={"channels": ("DAPI", "CD3", "CD8")})
    with pytest.raises(ValueError, match="fluorescence"):
        normalize_stain(sdata)
    with pytest.raises(KeyError, match="No image 'hE'.*Did you mean 'he'"):
        normalize_stain(sdata, image="hE")
    with pytest.raises(TypeError, match="name of an image"):
        normalize_stain(sdata, image=3)
    with pytest.raises(KeyError, match="no section"):
        normalize_stain(sdata, image="he", target="none")
    assert set(sdata.images) == {"he", "dapi"} and not sdata.attrs


def test_real_sections():
    adata = mob()
    adata.uns["spatial"] = {name: adata.uns["spatial"][name] for name in ("MOB1", "MOB3")}
    normalize_stain(adata)
    for entry in adata.uns["spatial"].values():
        made = entry["images"]["hires_macenko"]
        assert made.shape == entry["images"]["hires"].shape
        assert np.median(made, axis=(0, 1)).min() >= 250  # glass
