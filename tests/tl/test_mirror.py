"""Slides by MIRROR: what is written, what is refused, and what else can be done with the codes."""

from contextlib import nullcontext

import anndata as ad
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from scipy.sparse import csr_matrix

import stfuse

FAST = {
    "slide_key": "slide",
    "dim": 16,
    "n_prototypes": 12,
    "n_tiles": 8,
    "max_epochs": 1,
    "batch_size": 8,
    "progress": False,
}
OBSM = ["X_mirror", "X_mirror_image", "X_mirror_rna", "X_mirror_private_image", "X_mirror_private_rna"]


def cohort(n=14, seed=1):
    slides, tiles = stfuse.datasets.synthetic_slides(n, n_tiles=(3, 12), n_genes=12, n_image_features=8, seed=seed)
    slides.obs["patient"] = [f"P{i // 2}" for i in range(n)]
    return slides, tiles


@pytest.fixture
def both():
    return cohort()


def test_what_is_written_and_nothing_else(both, assert_same, tmp_path):
    slides, tiles = both
    before = slides.copy(), tiles.copy()
    model = stfuse.tl.mirror(slides, tiles, return_model=True, groups="patient", **FAST)
    codes = model.codes()
    assert list(slides.obsm)[3:] == OBSM and set(slides.obs) - set(before[0].obs) == {"mirror_prototype"}
    assert set(tiles.obs) - set(before[1].obs) == {"mirror_attention"} and list(tiles.obsm) == list(before[1].obsm)
    names = ("fused", "image", "rna", "private_image", "private_rna")
    for key, name in zip(OBSM, names, strict=True):
        np.testing.assert_array_equal(slides.obsm[key], getattr(codes, name))
    np.testing.assert_array_equal(tiles.obs["mirror_attention"], codes.attention)
    assert tiles.obs["mirror_attention"].dtype == np.float32
    prototype = slides.obs["mirror_prototype"]
    assert isinstance(prototype.dtype, pd.CategoricalDtype) and list(prototype.astype(int)) == list(codes.prototype)
    assert "unassigned" not in prototype.cat.categories
    for adata in both:
        record = adata.uns["mirror"]
        assert record["method"] == "mirror" and record["seed"] == 0 and "torch" in record["versions"]
        params = record["params"]
        assert params["slide_key"] == "slide" and params["groups"] == "patient" and params["slide_encoder"] == "abmil"
        assert params["n_tiles"] == 8 and params["lr"] > 0 and params["weights"]["align"] == 0.5
        assert record["n_obs"]["total"] == record["n_obs"]["paired"] == 14 and record["report"]["n_pairs"] == 14
    assert list(slides.uns["mirror"]["history"].index) == [1] and "history" not in tiles.uns["mirror"]
    # all else is as it was
    for old, new in zip(before, both, strict=True):
        for slot in ("obs", "obsm", "uns"):
            for key in set(getattr(new, slot)) - set(getattr(old, slot)):
                del getattr(new, slot)[key]
        assert_same(old, new)


def test_there_and_back_from_disk(both, tmp_path):
    slides, tiles = both
    stfuse.tl.mirror(slides, tiles, weights=(1, 0, 0, 0, 0), **FAST)
    slides.write_h5ad(tmp_path / "slides.h5ad")
    tiles.write_zarr(tmp_path / "tiles.zarr")
    read, other = ad.read_h5ad(tmp_path / "slides.h5ad"), ad.read_zarr(tmp_path / "tiles.zarr")
    np.testing.assert_array_equal(read.obsm["X_mirror"], slides.obsm["X_mirror"])
    pd.testing.assert_frame_equal(
        read.uns["mirror"]["history"], slides.uns["mirror"]["history"], check_index_type=False
    )
    assert read.uns["mirror"]["params"]["weights"]["align"] == 1 and other.uns["mirror"]["params"]["rna_key"] is None
    # and over its own result once more
    stfuse.tl.mirror(read, other, seed=1, **FAST)
    assert (read.obsm["X_mirror"] != slides.obsm["X_mirror"]).any()


def test_copies_the_seed_and_another_name(both, contents):
    slides, tiles = both
    before = contents(slides), contents(tiles)
    new_slides, new_tiles, model = stfuse.tl.mirror(slides, tiles, copy=True, return_model=True, **FAST)
    np.testing.assert_equal((contents(slides), contents(tiles)), before)
    assert isinstance(model, stfuse.model.MIRROR)
    pair = stfuse.tl.mirror(slides, tiles, copy=True, **FAST)
    assert len(pair) == 2
    assert stfuse.tl.mirror(slides, tiles, key_added="mine", **FAST) is None
    assert {"X_mine", "X_mine_image", "X_mine_private_rna"} < set(slides.obsm) and "mine_prototype" in slides.obs
    assert "mine_attention" in tiles.obs and "mine" in tiles.uns and "mirror" not in slides.uns
    np.testing.assert_array_equal(slides.obsm["X_mine"], new_slides.obsm["X_mirror"])
    np.testing.assert_array_equal(pair[0].obsm["X_mirror"], new_slides.obsm["X_mirror"])
    np.testing.assert_array_equal(tiles.obs["mine_attention"], new_tiles.obs["mirror_attention"])


def test_gaps_are_counted_and_told(both):
    slides, tiles = both
    slides.X[[2, 7]] = np.nan
    tiles.obs["slide"] = (
        tiles.obs["slide"].astype(str).replace({"slide5": "elsewhere"}).where(tiles.obs["slide"] != "slide7")
    )
    of_three, of_four = (np.flatnonzero(tiles.obs["slide"] == name) for name in ("slide3", "slide4"))
    tiles.obsm["X_image"][of_three[1:]] = np.nan
    tiles.obsm["X_image"][of_four] = np.nan
    lost = int((~tiles.obs["slide"].isin(slides.obs_names)).sum())
    with pytest.warns(UserWarning) as said:
        stfuse.tl.mirror(slides, tiles, **FAST)
    text = " ".join(str(w.message) for w in said)
    assert "3 of 14 slide(s) have no tiles with features (for example 'slide4'): they take part with their RNA" in text
    assert "2 of 14 slide(s) have no RNA (for example 'slide2'): they take part with their tiles" in text
    assert f"{lost} of {tiles.n_obs} tile(s) are of slides that are not in slides.obs_names" in text
    counts = slides.uns["mirror"]["n_obs"]
    assert (
        counts["total"] == 14
        and counts["image"] == 11
        and counts["rna"] == 12
        and counts["both"] == counts["paired"] == 10
    )
    assert counts["neither"] == 1 and counts["tiles_of_unknown_slides"] == lost
    assert counts["tiles_without_features"] == of_three.size - 1 + of_four.size and counts["slides_with_one_tile"] >= 1
    missing = {key: np.flatnonzero(np.isnan(slides.obsm[key]).all(1)).tolist() for key in OBSM}
    assert missing == dict(zip(OBSM, ([7], [4, 5, 7], [2, 7], [4, 5, 7], [2, 7]), strict=True))
    assert np.isfinite(np.delete(slides.obsm["X_mirror"], 7, 0)).all()
    prototype = slides.obs["mirror_prototype"]
    assert prototype.iloc[7] == "unassigned" and (prototype == "unassigned").sum() == 1
    assert prototype.cat.categories[-1] == "unassigned" and set(prototype) == set(prototype.cat.categories)
    attention = tiles.obs["mirror_attention"]
    assert attention.iloc[of_four].isna().all() and attention.iloc[of_three[0]] == 1
    assert attention[~tiles.obs["slide"].isin(slides.obs_names)].isna().all()


@pytest.mark.parametrize("encoder", ["abmil", "transmil"])
def test_slides_with_one_tile_each(both, encoder):
    slides, tiles = both
    tiles = tiles[~tiles.obs["slide"].duplicated()].copy()
    stfuse.tl.mirror(slides, tiles, slide_encoder=encoder, **FAST)
    assert (tiles.obs["mirror_attention"] == 1).all() and np.isfinite(slides.obsm["X_mirror"]).all()


@pytest.mark.parametrize("numbers", ["whole", "with gaps", "text"])
def test_slides_whose_names_are_numbers(both, numbers):
    slides, tiles = both
    expected = stfuse.tl.mirror(slides, tiles, copy=True, **FAST)[0].obsm["X_mirror"]
    slides.obs_names = [name[5:] for name in slides.obs_names]
    tiles.obs["slide"] = tiles.obs["slide"].astype(str).str[5:].astype(int)
    if numbers == "with gaps":
        blank = tiles[:1].copy()
        blank.obs["slide"] = np.nan
        blank.obs_names = ["blank"]
        tiles = ad.concat([tiles, blank])
        assert tiles.obs["slide"].dtype == float
    if numbers == "text":
        tiles.obs["slide"] = tiles.obs["slide"].astype(str).astype("category")
    with pytest.warns(UserWarning, match="1 of .* tile") if numbers == "with gaps" else nullcontext():
        stfuse.tl.mirror(slides, tiles, **FAST)
    np.testing.assert_array_equal(slides.obsm["X_mirror"], expected)


def test_pairs_that_may_not_be_used(both):
    slides, tiles = both
    slides.obs["paired"] = [True] * 10 + [False] * 3 + [None]
    stfuse.tl.mirror(slides, tiles, paired_key="paired", **FAST)
    counts = slides.uns["mirror"]["n_obs"]
    assert counts["both"] == 14 and counts["paired"] == 10 and slides.uns["mirror"]["report"]["n_pairs"] == 10
    assert np.isfinite(slides.obsm["X_mirror_image"]).all() and np.isfinite(slides.obsm["X_mirror_rna"]).all()


def test_genes_of_a_mask_and_rna_from_obsm(both):
    slides, tiles = both
    slides.var["selected"] = np.arange(12) < 5
    slides.obsm["X_pca"] = slides.X[:, :5].copy()
    masked, named = (
        stfuse.tl.mirror(slides, tiles, copy=True, **FAST | kw)[0].obsm["X_mirror"]
        for kw in ({"mask_var": "selected"}, {"rna_key": "X_pca"})
    )
    np.testing.assert_array_equal(masked, named)
    frame = slides.copy()
    frame.obsm["X_pca"] = pd.DataFrame(slides.obsm["X_pca"], slides.obs_names, list("abcde"))
    frame.X = None
    stfuse.tl.mirror(frame, tiles, rna_key="X_pca", **FAST)
    np.testing.assert_array_equal(frame.obsm["X_mirror"], named)


@pytest.mark.parametrize("kind", ["dense", "sparse"])
def test_counts_are_warned_of(both, kind):
    slides, tiles = both
    counts = np.random.default_rng(0).poisson(20, slides.shape).astype(np.float32)
    counts[0, 0] = 90
    slides.X = counts if kind == "dense" else csr_matrix(counts)
    with pytest.warns(UserWarning, match="slides.X looks like counts: bring it to a logarithm first"):
        stfuse.tl.mirror(slides, tiles, copy=True, **FAST)
    slides.X = np.log1p(counts)
    stfuse.tl.mirror(slides, tiles, copy=True, **FAST)


def test_faithful_and_other_choices_are_recorded(both):
    slides, tiles = both
    stfuse.tl.mirror(slides, tiles, faithful=True, **FAST)
    params = slides.uns["mirror"]["params"]
    assert (
        params["faithful"] and params["slide_encoder"] == "transmil" and params["lr"] == 2e-5 and not params["detach"]
    )
    assert params["validation_fraction"] == 0 and params["batch_size"] == 8  # what was given stays


def test_tiles_on_disk(both, tmp_path):
    zarr = pytest.importorskip("zarr")
    slides, tiles = both
    in_memory = stfuse.tl.mirror(slides, tiles, copy=True, **FAST | {"n_tiles": None})
    tiles.obsm["X_image"] = zarr.create_array({}, data=tiles.obsm["X_image"], chunks=(16, 8))
    with pytest.raises(ValueError, match="obsm\\['X_image'\\] is an array of zarr.*leave copy=False"):
        stfuse.tl.mirror(slides, tiles, copy=True, **FAST)
    stfuse.tl.mirror(slides, tiles, **FAST | {"n_tiles": None})
    np.testing.assert_allclose(slides.obsm["X_mirror"], in_memory[0].obsm["X_mirror"], atol=1e-5)
    assert isinstance(tiles.obsm["X_image"], zarr.Array)


def test_lazily_read_tiles(both, tmp_path):
    pytest.importorskip("xarray")
    slides, tiles = both
    tiles.write_zarr(tmp_path / "tiles.zarr")
    lazy = ad.experimental.read_lazy(tmp_path / "tiles.zarr")
    stfuse.tl.mirror(slides, lazy, **FAST)
    attention = lazy.obs["mirror_attention"].to_series()
    np.testing.assert_allclose(attention.groupby(tiles.obs["slide"].astype(str)).sum(), 1, rtol=1e-5)
    read = ad.read_zarr(tmp_path / "tiles.zarr")  # the file is as it was
    assert "mirror_attention" not in read.obs


def as_mudata(slides, tiles):
    from mudata import MuData

    tiles.var_names = pd.Index([], dtype=str)
    return MuData({"patients": slides, "patches": tiles})


def as_spatialdata(slides, tiles):
    from spatialdata import SpatialData
    from spatialdata.models import TableModel

    return SpatialData(tables={"patients": TableModel.parse(slides), "patches": TableModel.parse(tiles)})


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("make", [as_mudata, as_spatialdata])
def test_one_object_that_holds_both(make, both):
    slides, tiles = both
    expected = stfuse.tl.mirror(slides, tiles, copy=True, **FAST)
    data = make(slides, tiles)
    held = data.mod if make is as_mudata else data.tables
    copied, model = stfuse.tl.mirror(data, copy=True, return_model=True, **FAST)
    assert (
        "X_mirror" not in held["patients"].obsm and "mirror" not in held["patches"].uns and type(copied) is type(data)
    )
    assert isinstance(model, stfuse.model.MIRROR)
    assert stfuse.tl.mirror(data, slides_table="patients", tiles_table="patches", **FAST) is None
    for found in (held, copied.mod if make is as_mudata else copied.tables):
        np.testing.assert_array_equal(found["patients"].obsm["X_mirror"], expected[0].obsm["X_mirror"])
        np.testing.assert_array_equal(found["patches"].obs["mirror_attention"], expected[1].obs["mirror_attention"])
    what = "modality" if make is as_mudata else "table"
    for arguments, message in (
        ({"tiles_table": "pathces"}, f"No {what} 'pathces' \\(tiles_table\\). Did you mean 'patches'"),
        ({"slides_table": "x"}, f"No {what} 'x' \\(slides_table\\). There is 'pat"),
        ({"slide_key": "slid"}, f"No {what} with a column 'slid' \\(slide_key\\): name it by tiles_table="),
    ):
        with pytest.raises(KeyError, match=message):
            stfuse.tl.mirror(data, **FAST | arguments)
    with pytest.raises(ValueError, match=f"the {what} of tiles is named by tiles_table="):
        stfuse.tl.mirror(data, tiles, **FAST)


@pytest.mark.filterwarnings("ignore")
def test_a_spatialdata_is_written_and_read(both, tmp_path):
    from spatialdata import read_zarr

    data = as_spatialdata(*both)
    stfuse.tl.mirror(data, **FAST)
    data.write(tmp_path / "a.zarr")
    read = read_zarr(tmp_path / "a.zarr").tables["patients"]
    np.testing.assert_array_equal(read.obsm["X_mirror"], data.tables["patients"].obsm["X_mirror"])


@pytest.mark.filterwarnings("ignore")
def test_features_are_made_where_there_is_an_image():
    """Spots with an image and no features: they are made as stfuse.pp.image_features makes them, and kept."""
    spots = stfuse.datasets.mob()
    spots = spots[spots.obs["section"] == "MOB1"].copy()
    spots.obs["region"] = spots.obs["layer"].astype(str) + pd.Series(
        np.arange(spots.n_obs) % 2, spots.obs_names
    ).astype(str)
    slides = stfuse.pp.pseudobulk(spots, "region", min_obs=5)
    slides.X = np.log1p(slides.X)
    assert "X_image" not in spots.obsm
    stfuse.tl.mirror(slides, spots, **FAST | {"slide_key": "region"})
    assert spots.obsm["X_image"].shape[0] == spots.n_obs and np.isfinite(slides.obsm["X_mirror"]).all()


def infinite(slides, tiles):
    tiles.obsm["X_image"][3, 1] = np.inf


def partly(slides, tiles):
    slides.X[2, 3] = np.nan


def strangers(slides, tiles):
    slides.obs_names = [f"slide {i}" for i in range(slides.n_obs)]


def twins(slides, tiles):
    slides.obs_names = ["slide0", *slides.obs_names[:-1]]


def few_pairs(slides, tiles):
    slides.X[3:] = np.nan


def no_rna(slides, tiles):
    slides.X[:] = np.nan


def no_patient(slides, tiles):
    slides.obs["patient"] = slides.obs["patient"].where(slides.obs_names != "slide3")


def no_features(slides, tiles):
    tiles.obsm["X_image"][:] = np.nan


def foreign_attention(slides, tiles):
    tiles.obs["mirror_attention"] = 1.0


def foreign_code(slides, tiles):
    slides.obsm["X_mirror_private_rna"] = np.ones((slides.n_obs, 2))


def foreign_record(slides, tiles):
    slides.uns["mirror"] = {"method": "other"}


def taken_rna(slides, tiles):
    slides.obsm["X_mirror_rna"] = slides.X.copy()


def text(slides, tiles):
    slides.obs["use"] = "yes"


@pytest.mark.filterwarnings("ignore:Observation names are not unique")
@pytest.mark.parametrize(
    ("spoil", "arguments", "message"),
    [
        (infinite, {}, "tiles.obsm\\['X_image'\\] holds infinite values \\(first in row 3, column 1\\)"),
        (partly, {}, "slides.X has NaN inside 1 row\\(s\\) \\(first: row 2\\)"),
        (strangers, {}, "such as 'slide0', is a name of slides.obs_names, such as 'slide 0'"),
        (twins, {}, "obs_names of slides are not unique"),
        (few_pairs, {}, "needs 4 slides with both tiles and RNA, and there are 3"),
        (no_rna, {}, "No slide has RNA"),
        (no_features, {}, "No tile of a slide has features"),
        (no_patient, {"groups": "patient"}, "\\(groups\\) has 1 missing value"),
        (foreign_attention, {}, "overwrite tiles.obs\\['mirror_attention'\\], which this function did not write"),
        (foreign_code, {}, "overwrite slides.obsm\\['X_mirror_private_rna'\\], which this function did not write"),
        (foreign_record, {}, "overwrite slides.uns\\['mirror'\\], which this function did not write"),
        (taken_rna, {"rna_key": "X_mirror_rna"}, "overwrite 'X_mirror_rna', which is read"),
        (text, {"paired_key": "use"}, "must be boolean"),
        (None, {"key_added": "slide"}, "key_added='slide' would overwrite 'slide', which is read"),
        (None, {"key_added": "a/b"}, "slash"),
        (None, {"slide_key": "slides"}, "No column 'slides' \\(slide_key\\) in tiles.obs. Did you mean 'slide'"),
        (None, {"image_key": "X_img"}, "No tiles.obsm\\['X_img'\\].*There is 'X_image', 'spatial'"),
        (None, {"rna_key": "shard"}, "No slides.obsm\\['shard'\\] \\(rna_key\\). Did you mean 'shared'"),
        (None, {"mask_var": "sel"}, "No column 'sel' \\(mask_var\\) in slides.var"),
        (None, {"groups": "person"}, "No column 'person' \\(groups\\) in slides.obs"),
        (None, {"paired_key": "pair"}, "No column 'pair' \\(paired_key\\) in slides.obs"),
        (None, {"slides_table": "a"}, "slides_table= names a table of a SpatialData"),
        (None, {"slide_encoder": "mean"}, "slide_encoder"),
        (None, {"dim": 20}, "dim must be a multiple of 8"),
        (None, {"weights": "many"}, "weights must be 5 numbers"),
        (None, {"mask_ratio": 1}, "mask_ratio"),
        (None, {"n_tiles": 0}, "n_tiles"),
        (None, {"n_tiles": 2.5}, "n_tiles"),
        (None, {"max_epochs": 0}, "max_epochs"),
        (None, {"lr": -1}, "lr"),
        (None, {"seed": "0"}, "seed"),
        (None, {"device": "gpus"}, "device"),
        (None, {"copy": "no"}, "copy"),
        (None, {"return_model": 1}, "return_model"),
        (None, {"progress": "yes"}, "progress"),
        (None, {"slide_key": 3}, "slide_key must be a string"),
    ],
)
def test_bad_input_changes_nothing(spoil, arguments, message, both, contents):
    slides, tiles = both
    if spoil:
        spoil(slides, tiles)
    before = contents(slides), contents(tiles)
    with pytest.raises((ValueError, KeyError, TypeError), match=message):
        stfuse.tl.mirror(slides, tiles, **FAST | arguments)
    for old, new in zip(before, (contents(slides), contents(tiles)), strict=True):
        np.testing.assert_equal(new, old)


def test_other_objects_are_refused(both):
    slides, tiles = both
    with pytest.raises(TypeError, match="tiles must be an AnnData, got DataFrame"):
        stfuse.tl.mirror(slides, tiles.obs, **FAST)
    with pytest.raises(TypeError, match="slides must be an AnnData, got str"):
        stfuse.tl.mirror("slides.h5ad", tiles, **FAST)
    with pytest.raises(ValueError, match="tiles= is missing: it goes with an AnnData of slides"):
        stfuse.tl.mirror(slides, **FAST)


def test_an_interrupted_training_changes_nothing(both, contents, monkeypatch):
    before = contents(both[0]), contents(both[1])

    def stop(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(stfuse.model.MIRROR, "codes", stop)
    with pytest.raises(KeyboardInterrupt):
        stfuse.tl.mirror(*both, **FAST)
    np.testing.assert_equal((contents(both[0]), contents(both[1])), before)


@pytest.fixture(scope="module")
def coded():
    slides, tiles = stfuse.datasets.synthetic_slides(
        60, n_tiles=(5, 20), n_genes=30, n_image_features=12, paired=0.9, seed=1
    )
    slides.obs["patient"] = [f"P{i // 2}" for i in range(60)]
    with pytest.warns(UserWarning, match="have no"):
        stfuse.tl.mirror(slides, tiles, **FAST | {"max_epochs": 6, "lr": 3e-3, "batch_size": 16})
    return slides, tiles


def test_codes_are_probed(coded):
    slides, _ = coded
    scores = stfuse.tl.probe(slides, use_rep="X_mirror", label_key="subtype", groups="patient", n_splits=3)
    assert len(scores) and np.isfinite(scores.select_dtypes(float).to_numpy()).all()


def test_survival_is_told(coded):
    pytest.importorskip("sksurv")
    slides, _ = coded
    scores = stfuse.tl.survival(slides, time_key="months", event_key="event", groups="patient", n_splits=3)
    assert len(scores) and slides.obs.filter(like="risk").shape[1] > 1


def test_codes_are_grouped_looked_up_and_drawn(coded):
    slides, _ = coded
    stfuse.tl.domains(slides, use_rep="X_mirror", n_clusters=3, refine=False, neighbors=False)
    assert slides.obs["mirror_domain"].nunique() == 3
    found = stfuse.tl.retrieve(slides, use_rep="mirror", k=3)
    assert found.shape[0] >= 3 * 57 - 3
    axes = [stfuse.pl.embedding(slides, "X_mirror", color="subtype", method="pca")]
    axes.append(stfuse.pl.history(slides, "mirror"))
    assert all(ax is not None for ax in axes)
    plt.close("all")
