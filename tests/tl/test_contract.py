"""What every fusion method promises; walks the table of methods."""

import inspect
import random
import warnings

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch

import stfuse
from stfuse import _keys, _registry
from stfuse.datasets import mob, synthetic_tissue

mudata = pytest.importorskip("mudata")
spatialdata = pytest.importorskip("spatialdata")

N = 180
METHODS = list(_registry.fusions().values())
every_method = pytest.mark.parametrize("method", METHODS, ids=lambda m: m.name)


def tissue(**kwargs):
    options = {"n_sections": 2, "n_genes": 30, "n_image_features": 12, "missing_image": 0.15, "missing_rna": 0.1}
    adata = synthetic_tissue(N, **(options | kwargs))
    adata.layers["counts"] = adata.X.copy()
    adata.obs["note"] = np.arange(N, dtype=np.int16)
    adata.obs["known"] = np.arange(N) % 3 > 0
    adata.uns["mine"] = {"a": [1, 2], "b": "text"}
    return adata


@pytest.fixture(scope="module")
def prepared():
    return tissue()


@pytest.fixture
def adata(prepared):
    return prepared.copy()


def function(method):
    return getattr(stfuse.tl, method.name)


# the sections of these data lie on top of each other, which a method that reads windows refuses to take for one
WINDOWS = {"aestetik": {"library_key": "section", "clustering": "kmeans", "n_encoders": 1, "n_hidden": 8}}


def quick(method, **kwargs):
    """Arguments that make the method quick."""
    there = inspect.signature(function(method)).parameters
    options = {"max_epochs": 2, "progress": False, "n_components": 10}
    return {k: v for k, v in options.items() if k in there} | WINDOWS.get(method.name, {}) | kwargs


def run(method, data, **kwargs):
    return function(method)(data, **quick(method, **kwargs))


def written(method, slots):
    """Slots of `obsm` that the method promises."""
    names = [slots.fused]
    names += [slots.image, slots.rna] if method.shared else []
    return names + ([slots.private_image, slots.private_rna] if method.private else [])


def codes_of(box, method, key=None):
    slots = _keys.slots(key or method.name)
    return {name: np.asarray(box.obsm[name]) for name in written(method, slots)}


def assert_same_codes(a, b):
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)


def without(adata, names, record):
    rest = adata.copy()
    for name in names:
        del rest.obsm[name]
    del rest.uns[record]
    return rest


# -- slots -----------------------------------------------------------------------------------------------------------


@every_method
def test_slots(method, adata, assert_same):
    before = adata.copy()
    assert run(method, adata, library_key="section", batch_key="section", paired_key="known") is None
    slots = _keys.slots(method.name)
    names = written(method, slots)
    assert set(adata.obsm) - set(before.obsm) == set(names)
    assert set(adata.uns) - set(before.uns) == {slots.record}

    has_image, has_rna = adata.obs["has_image"].to_numpy(), adata.obs["has_rna"].to_numpy()
    assert (~has_image).any() and (~has_rna).any()
    for name in names:
        assert adata.obsm[name].dtype == np.float32 and adata.obsm[name].shape[0] == N, name
    fused = adata.obsm[slots.fused]
    assert np.isfinite(fused).all() and fused.std(0).max() > 0
    if method.shared:
        image, rna = adata.obsm[slots.image], adata.obsm[slots.rna]
        assert image.shape == rna.shape
        for code, has in ((image, has_image), (rna, has_rna)):
            assert np.isfinite(code[has]).all() and np.isnan(code[~has]).all()
    if method.private:
        for name, has in ((slots.private_image, has_image), (slots.private_rna, has_rna)):
            assert np.isfinite(adata.obsm[name][has]).all() and np.isnan(adata.obsm[name][~has]).all()

    # nothing but these slots was touched
    assert_same(without(adata, names, slots.record), before)
    assert list(adata.obs.dtypes) == list(before.obs.dtypes)
    assert not [key for key in (*adata.obs, *adata.uns) if "scvi" in key]
    assert list(adata.layers) == list(before.layers)
    assert (adata.layers["counts"] != before.layers["counts"]).nnz == 0


@pytest.mark.parametrize("method", [m for m in METHODS if m.private], ids=lambda m: m.name)
def test_the_fused_code_ends_in_the_private_codes(method, adata):
    run(method, adata)
    slots = _keys.slots(method.name)
    own = [adata.obsm[slots.private_image], adata.obsm[slots.private_rna]]
    both = (adata.obs["has_image"] & adata.obs["has_rna"]).to_numpy()
    tail = adata.obsm[slots.fused][:, -sum(block.shape[1] for block in own) :]
    np.testing.assert_array_equal(tail[both], np.hstack(own)[both])


@every_method
def test_record(method, adata):
    run(method, adata, seed=7, library_key="section", paired_key="known")
    record = adata.uns[method.name]
    assert record["method"] == method.name and record["seed"] == 7
    assert {"stfuse", "torch", "numpy", "anndata"} <= set(record["versions"])
    both = adata.obs["has_image"] & adata.obs["has_rna"]
    assert record["n_obs"] == {
        "total": N,
        "image": int(adata.obs["has_image"].sum()),
        "rna": int(adata.obs["has_rna"].sum()),
        "both": int(both.sum()),
        "paired": int((both & adata.obs["known"]).sum()),
    }
    # every argument that shapes the result is there
    shaping = set(inspect.signature(function(method)).parameters)
    shaping -= {"data", "table_key", "key_added", "copy", "return_model", "progress", "seed"}
    assert set(record["params"]) == shaping
    assert record["params"]["library_key"] == "section" and record["params"]["image_key"] == "X_image"
    history = record["history"]
    assert history is None or (isinstance(history, pd.DataFrame) and history.index.name == "epoch" and len(history))
    if "max_epochs" in shaping:
        assert list(history.index) == [1, 2]


@every_method
def test_whoever_gets_the_file_can_repeat_it(method, adata, tmp_path):
    run(method, adata, seed=3, library_key="section")
    adata.write_h5ad(tmp_path / "x.h5ad")
    back = ad.read_h5ad(tmp_path / "x.h5ad")
    record = back.uns[method.name]
    function(method)(back, **record["params"], seed=record["seed"], key_added="again", **silent(method))
    first, again = codes_of(adata, method), codes_of(back, method, "again")
    for a, b in zip(first.values(), again.values(), strict=True):
        np.testing.assert_array_equal(a, b)


def silent(method):
    return {"progress": False} if "progress" in inspect.signature(function(method)).parameters else {}


@every_method
def test_key_added(method, adata):
    run(method, adata)
    run(method, adata, key_added="second_run")
    assert set(written(method, _keys.slots("second_run"))) <= set(adata.obsm) and "second_run" in adata.uns
    first, second = codes_of(adata, method).values(), codes_of(adata, method, "second_run").values()
    assert all(np.array_equal(a, b, equal_nan=True) for a, b in zip(first, second, strict=True))


@every_method
def test_copy_and_model(method, adata, assert_same):
    before = adata.copy()
    changed = run(method, adata, copy=True)
    assert_same(adata, before)
    assert isinstance(changed, ad.AnnData) and method.name in changed.uns
    both = run(method, adata, copy=True, return_model=True)
    assert_same(adata, before)
    again, model = both
    assert_same_codes(codes_of(again, method), codes_of(changed, method))
    assert type(model) is method.model_class()
    alone = run(method, adata, return_model=True)
    assert type(alone) is type(model)
    assert_same_codes(codes_of(adata, method), codes_of(changed, method))
    # the model codes the user's own object as the function did
    np.testing.assert_array_equal(alone.get_latent_representation(adata), adata.obsm[_keys.slots(method.name).fused])
    np.testing.assert_array_equal(alone.get_latent_representation(), adata.obsm[_keys.slots(method.name).fused])
    assert not [key for key in adata.uns if "scvi" in key]


def test_a_second_run_leaves_nothing_of_the_first(adata):
    stfuse.tl.pcca(adata, key_added="m")
    assert "X_m_private_rna" in adata.obsm and "X_m_image" in adata.obsm
    stfuse.tl.concat(adata, key_added="m")
    assert {name for name in adata.obsm if name.startswith("X_m")} == {"X_m"}
    assert adata.uns["m"]["method"] == "concat"


@every_method
def test_a_view_of_an_anndata(method, prepared):
    parent = prepared.copy()
    part = parent[: N // 2]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ad.ImplicitModificationWarning)
        run(method, part)
    assert _keys.slots(method.name).fused in part.obsm and _keys.slots(method.name).fused not in parent.obsm


# -- files -----------------------------------------------------------------------------------------------------------


@every_method
def test_h5ad_round_trip(method, adata, assert_same, tmp_path):
    run(method, adata, library_key="section")
    adata.write_h5ad(tmp_path / "x.h5ad")
    back = ad.read_h5ad(tmp_path / "x.h5ad")
    assert_same_codes(codes_of(back, method), codes_of(adata, method))
    ours, theirs = adata.uns[method.name], back.uns[method.name]
    assert set(ours) == set(theirs)
    for part in ("params", "versions", "n_obs", "report"):
        assert set(ours[part]) == set(theirs[part])
        for key, value in ours[part].items():
            assert theirs[part][key] == value or (value != value and theirs[part][key] != theirs[part][key]), key
    if ours["history"] is not None:
        pd.testing.assert_frame_equal(ours["history"], theirs["history"], check_index_type=False)


def as_mudata(adata):
    """The same observations in two modalities; a row of NaN becomes an observation that is not there."""
    image = adata[adata.obs["has_image"]].copy()
    rna = adata[adata.obs["has_rna"]].copy()
    del image.obsm["X_pca"], rna.obsm["X_image"]
    mdata = mudata.MuData({"image": image, "rna": rna})
    assert mdata.n_obs == adata.n_obs
    return mdata


@every_method
def test_mudata(method, adata, assert_same, tmp_path):
    mdata = as_mudata(adata)
    before = mdata.copy()
    run(method, mdata, library_key="section")
    for name in mdata.mod:
        assert_same(mdata[name], before[name])
    pd.testing.assert_frame_equal(mdata.obs, before.obs)
    names = written(method, _keys.slots(method.name))
    assert set(mdata.obsm) - set(before.obsm) == set(names)

    # the same codes as rows of NaN give, in the order of the MuData
    in_order = adata[mdata.obs_names].copy()
    run(method, in_order, library_key="section")
    assert_same_codes(codes_of(mdata, method), codes_of(in_order, method))

    mdata.write_h5mu(tmp_path / "x.h5mu")
    back = mudata.read_h5mu(tmp_path / "x.h5mu")
    assert_same_codes(codes_of(back, method), codes_of(mdata, method))
    assert back.uns[method.name]["n_obs"] == mdata.uns[method.name]["n_obs"]


@every_method
def test_mudata_copy(method, adata):
    mdata = as_mudata(adata)
    keys = set(mdata.obsm)
    changed, model = run(method, mdata, copy=True, return_model=True)
    assert set(mdata.obsm) == keys and not mdata.uns
    assert isinstance(changed, mudata.MuData) and method.name in changed.uns
    assert isinstance(model, method.model_class())


@every_method
def test_mudata_without_any_pair(method, adata):
    image, rna = adata[:90].copy(), adata[90:].copy()
    image, rna = image[image.obs["has_image"]].copy(), rna[rna.obs["has_rna"]].copy()
    mdata = mudata.MuData({"image": image, "rna": rna})
    if method.min_pairs:
        with pytest.raises(ValueError, match="none has both: do the obs_names of the two modalities agree"):
            run(method, mdata)
        assert not mdata.uns and set(mdata.obsm) == {"image", "rna"}
    else:
        run(method, mdata)
        assert np.isfinite(mdata.obsm[_keys.slots(method.name).fused]).all()


def test_the_record_tells_which_sections_were_found(adata):
    adata.uns["spatial"] = {name: {} for name in adata.obs["section"].cat.categories}
    stfuse.tl.concat(adata)
    assert adata.uns["concat"]["params"]["library_key"] == "section"


@every_method
def test_spatialdata(method, adata, assert_same):
    expected = run(method, adata, copy=True)
    sdata = spatialdata.SpatialData(tables={"spots": adata.copy(), "other": adata[:20].copy()})
    changed = run(method, sdata, table_key="spots", copy=True)
    assert_same(sdata.tables["spots"], adata)
    assert_same_codes(codes_of(changed.tables["spots"], method), codes_of(expected, method))
    assert run(method, sdata, table_key="spots") is None
    assert_same_codes(codes_of(sdata.tables["spots"], method), codes_of(expected, method))
    assert_same(sdata.tables["other"], adata[:20].copy())


# -- the same again --------------------------------------------------------------------------------------------------


@every_method
def test_same_seed_same_codes_and_no_other_random_state_moves(method, adata):
    np.random.seed(5), torch.manual_seed(5), random.seed(5)
    states = np.random.get_state()[1].copy(), torch.get_rng_state(), random.getstate()
    first = codes_of(run(method, adata, copy=True, seed=1), method)
    after = np.random.get_state()[1], torch.get_rng_state(), random.getstate()
    assert np.array_equal(states[0], after[0]) and torch.equal(states[1], after[1]) and states[2] == after[2]
    np.random.seed(99), torch.manual_seed(99), random.seed(99)
    assert_same_codes(first, codes_of(run(method, adata, copy=True, seed=1), method))


@every_method
def test_the_users_precision_and_layout_do_not_matter(method, adata):
    expected = codes_of(run(method, adata, copy=True), method)
    adata.obsm["X_image"] = np.asfortranarray(adata.obsm["X_image"].astype(np.float64))
    adata.obsm["X_pca"] = pd.DataFrame(adata.obsm["X_pca"], index=adata.obs_names)
    adata.obsm["X_pca"].columns = [f"PC{i}" for i in range(adata.obsm["X_pca"].shape[1])]
    found = codes_of(run(method, adata, copy=True), method)
    for name in expected:
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-3, atol=1e-4)


# -- what is refused, and that nothing is changed then ---------------------------------------------------------------


def spoil(key, value, rows=slice(None), columns=slice(None)):
    def change(adata):
        adata.obsm[key][rows, columns] = value

    return change


def twice(adata):
    adata.obs_names = ["same", "same", *adata.obs_names[2:]]


def disjoint(adata):
    adata.obsm["X_image"][:100] = np.nan
    adata.obsm["X_pca"][100:] = np.nan


def nothing(adata):
    pass


BAD = {
    "missing image key": (nothing, {"image_key": "X_uni"}, KeyError, "No obsm.'X_uni'.*There is.*X_image"),
    "missing rna key": (nothing, {"rna_key": "X_scVI"}, KeyError, "No obsm.'X_scVI'.*There is.*X_pca"),
    "one key for both": (nothing, {"rna_key": "X_image"}, ValueError, "the two views must be different"),
    "missing column": (nothing, {"batch_key": "slide"}, KeyError, "No obs column 'slide'. There is 'section'"),
    "missing section": (nothing, {"library_key": "slide"}, KeyError, "No obs column 'slide'"),
    "missing mask": (nothing, {"paired_key": "pairs"}, KeyError, "No obs column 'pairs'"),
    "mask of text": (nothing, {"paired_key": "section"}, ValueError, "must be boolean"),
    "wrong dimensions": (
        lambda a: a.obsm.__setitem__("X_image", np.zeros((N, 2, 2))),
        {},
        ValueError,
        "two-dimensional",
    ),
    "NaN inside a row": (spoil("X_pca", np.nan, 1, 1), {}, ValueError, "NaN inside 1 row"),
    "inf": (spoil("X_pca", np.inf, -1), {}, ValueError, "infinite values"),
    "constant": (spoil("X_image", 1.0), {}, ValueError, "Every feature.*is constant"),
    "no image": (spoil("X_image", np.nan), {}, ValueError, "image view is missing in every observation"),
    "duplicate names": (twice, {}, ValueError, "not unique"),
    "slash": (nothing, {"key_added": "a/b"}, ValueError, "without a slash"),
    "no name": (nothing, {"key_added": ""}, ValueError, "non-empty"),
    "overwrites a view": (nothing, {"key_added": "image"}, ValueError, "would overwrite 'X_image'"),
    "overwrites a code": (
        lambda a: a.obsm.__setitem__("X_scVI", np.ones((a.n_obs, 2))),
        {"key_added": "scVI"},
        ValueError,
        "would overwrite obsm.'X_scVI'",
    ),
    "overwrites uns": (nothing, {"key_added": "mine"}, ValueError, "not the record of such a method"),
    "seed": (nothing, {"seed": -1}, ValueError, "seed must be"),
    "seed of text": (nothing, {"seed": "0"}, TypeError, "seed must be"),
}


@pytest.mark.filterwarnings("ignore:Observation names are not unique")
@pytest.mark.parametrize(("change", "kwargs", "error", "words"), BAD.values(), ids=BAD)
@every_method
def test_bad_input(method, change, kwargs, error, words, adata, assert_same):
    change(adata)
    before = adata.copy()
    with pytest.raises(error, match=words):
        run(method, adata, **kwargs)
    assert_same(adata, before)


TRAINING = {
    "batch_size": (1, "batch_size must be a whole number of at least 2 or None, got 1"),
    "max_epochs": (-1, "max_epochs must be a whole number"),
    "device": ("tpu", "device must be 'auto'"),
    "validation_fraction": (1.0, r"validation_fraction must be in \[0, 1\)"),
    "patience": (0, "patience must be None or at least 1"),
    "n_hidden": (0, "n_hidden.*at least 1"),
    "n_latent": (0, "n_latent.*at least 1"),
    "n_components": (0, "n_components must be a whole number"),
    "rank": (0, "rank must be a whole number"),
    "private_dim": (-1, "private_dim must be"),
    "dropout": (1.0, "dropout must be below 1"),
    "critic": ("lsgan", "critic must be one of 'wgan'"),
    "n_critic": (0, "n_critic must be a whole number"),
    "lambda_cycle": (-1.0, "lambda_cycle must be a number of at least 0"),
    "lr": (0.0, "lr must be"),
    "lr_critic": (-1.0, "lr_critic must be"),
    "weight_decay": (-1.0, "weight_decay must"),
}


ARGUMENTS = [(m, name) for m in METHODS for name in TRAINING if name in inspect.signature(function(m)).parameters]


@pytest.mark.parametrize(("method", "name"), ARGUMENTS, ids=[f"{m.name}-{name}" for m, name in ARGUMENTS])
def test_bad_arguments(method, name, adata, assert_same):
    value, words = TRAINING[name]
    before = adata.copy()
    with pytest.raises(ValueError, match=words):
        run(method, adata, **{name: value})
    assert_same(adata, before)


@every_method
def test_too_few_pairs(method, adata, assert_same):
    disjoint(adata)
    before = adata.copy()
    if not method.min_pairs:
        run(method, adata)
        return
    with pytest.raises(ValueError, match=f"needs at least {method.min_pairs} .*none has both"):
        run(method, adata)
    n = method.min_pairs - 1
    rows = np.flatnonzero(adata.obs["has_image"])[-n:]
    adata.obsm["X_pca"][rows] = np.random.default_rng(0).normal(size=(n, 30))
    adata.obs["known"] = True
    before = adata.copy()
    with pytest.raises(ValueError, match=f"{n} observations have both views and {n} of them may be used as pairs"):
        run(method, adata, paired_key="known")
    assert_same(adata, before)


@every_method
def test_the_fewest_pairs_do(method):
    adata = tissue(missing_image=0, missing_rna=0)
    adata.obs["known"] = np.arange(N) < method.min_pairs
    run(method, adata, paired_key="known")
    assert np.isfinite(adata.obsm[_keys.slots(method.name).fused]).all()
    assert adata.uns[method.name]["n_obs"]["paired"] == method.min_pairs


def test_the_published_model_does_without_pairs(adata):
    disjoint(adata)
    stfuse.tl.cameo(adata, faithful=True, max_epochs=1)
    assert np.isfinite(adata.obsm["X_cameo"][adata.obs["has_image"] | adata.obs["has_rna"]]).any()


STEPS = {
    "cameo": "stfuse.train._plans.AdversarialPlan.on_train_epoch_end",
    "aestetik": "stfuse.train._window_plan.WindowPlan.on_train_epoch_end",
    "clip": "stfuse.train._plans.JointPlan.on_train_epoch_end",
    "umpire": "stfuse.train._plans.JointPlan.on_train_epoch_end",
    "pcca": "stfuse.model._pcca.fit_anchor",
    "concat": "stfuse.model._components.ViewScaler.fit",
    "neighbor_mean": "stfuse.model._components.ViewScaler.fit",
}


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError], ids=lambda e: e.__name__)
@every_method
def test_an_interrupted_training_changes_nothing(method, error, adata, assert_same, monkeypatch):
    def stop(*args, **kwargs):
        raise error

    monkeypatch.setattr(STEPS[method.name], stop)
    before = adata.copy()
    with pytest.raises(error):
        run(method, adata)
    assert_same(adata, before)


# -- rows without any view, views that are not there yet -------------------------------------------------------------


@every_method
def test_an_observation_without_any_view_has_no_code(method, adata):
    for key in ("X_image", "X_pca"):
        adata.obsm[key][:3] = np.nan
    run(method, adata)
    for name in written(method, _keys.slots(method.name)):
        assert np.isnan(adata.obsm[name][:3]).all(), name
    assert np.isfinite(adata.obsm[_keys.slots(method.name).fused][3:]).all()


@pytest.fixture(scope="module")
def crop():
    """A corner of two real sections, without any features, on photographs of half the size."""
    adata, names = mob(), ("MOB1", "MOB2")
    keep = np.concatenate([np.flatnonzero(adata.obs["section"] == name)[:60] for name in names])
    adata = adata[keep, :400].copy()
    adata.uns["spatial"] = {name: adata.uns["spatial"][name] for name in names}
    for section in adata.uns["spatial"].values():
        section["images"]["hires"] = section["images"]["hires"][::2, ::2].copy()
        section["scalefactors"]["tissue_hires_scalef"] /= 2
    assert not {"X_image", "X_pca"} & set(adata.obsm)
    return adata


@pytest.fixture(scope="module")
def crop_with_views(crop):
    adata = crop.copy()
    stfuse.pp.image_features(adata, library_key="section")
    stfuse.pp.rna_features(adata)
    return adata


@every_method
def test_default_views_are_made(method, crop, crop_with_views, assert_same, caplog):
    adata = crop.copy()
    with caplog.at_level("INFO", logger="stfuse"):
        run(method, adata)
    assert "stfuse.pp.image_features" in caplog.text and "scanpy.pp.normalize_total" in caplog.text
    names = [*written(method, _keys.slots(method.name)), "X_image", "X_pca"]
    assert set(adata.obsm) - set(crop.obsm) == set(names)
    # with what carries the components over to other data
    new = crop[::-1].copy()
    stfuse.pp.rna_features(new, reference=adata)
    np.testing.assert_allclose(new.obsm["X_pca"][::-1], adata.obsm["X_pca"], atol=1e-3)
    del adata.uns["X_pca"]
    assert_same(without(adata, names, method.name), crop)

    # made by hand they are the same
    again = crop_with_views.copy()
    for key in ("X_image", "X_pca"):
        np.testing.assert_array_equal(adata.obsm[key], again.obsm[key])
    run(method, again)
    assert_same_codes(codes_of(again, method), codes_of(adata, method))


def test_a_named_view_is_never_made(crop, assert_same):
    adata = crop.copy()
    with pytest.raises(KeyError, match="X_uni"):
        stfuse.tl.concat(adata, image_key="X_uni")
    assert_same(adata, crop)


def test_sections_on_top_of_each_other_are_told():
    adata = stfuse.datasets.synthetic_tissue(200, n_sections=2)
    with pytest.warns(UserWarning, match="library_key="):
        stfuse.tl.pcca(adata)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        stfuse.tl.pcca(adata, library_key="section")
        stfuse.tl.pcca(adata, context=False)
