"""A model on disk: the same codes without the training data, and a clear word when a file is not what it was."""

import io
import json
import pickle
import shutil

import numpy as np
import pandas as pd
import pytest
import torch

import stfuse
from stfuse import _registry
from stfuse.datasets import synthetic_tissue
from stfuse.model import AESTETIK, CAMEO, CLIP, PCCA, UMPIRE, Concat, NeighborMean

N = 160
KINDS = {
    "cameo": (CAMEO, {"n_components": 10}, {"max_epochs": 2, "progress": False}),
    "cameo residual": (CAMEO, {"n_components": 10, "private_dim": 2}, {"max_epochs": 2, "progress": False}),
    "cameo published": (CAMEO, {"faithful": True}, {"max_epochs": 2, "progress": False}),
    "aestetik": (
        AESTETIK,
        {"n_clusters": 3, "n_encoders": 1, "n_hidden": 8, "n_comps": 10, "smooth": True, "clustering": "gmm"},
        {"max_epochs": 2, "progress": False},
    ),
    "aestetik published": (
        AESTETIK,
        {"n_clusters": 3, "n_encoders": 2, "n_hidden": 8, "window_size": 3, "mc_passes": 5, "reference": True},
        {"max_epochs": 2, "progress": False},
    ),
    "pcca": (PCCA, {"n_components": 10}, {}),
    "pcca alone": (PCCA, {"n_components": 10, "context": False, "private_dim": 0}, {}),
    "clip": (CLIP, {"n_latent": 8}, {"max_epochs": 2, "progress": False}),
    "umpire": (UMPIRE, {"embed_dim": 8, "adapter_dim": 4}, {"max_epochs": 2, "progress": False}),
    "umpire reconstruction": (
        UMPIRE,
        {"embed_dim": 8, "mode": "linear", "objective": "reconstruction"},
        {"max_epochs": 2, "progress": False},
    ),
    "concat": (Concat, {"n_components": 10}, {}),
    "neighbor_mean": (NeighborMean, {"n_components": 10, "n_neighbors": 4}, {}),
}
KEYS = {"batch_key": "section", "library_key": "section", "paired_key": "known"}
CODES = ("fused", "image", "rna", "private_image", "private_rna")


def tissue(seed=0):
    adata = synthetic_tissue(
        N,
        n_sections=2,
        n_genes=30,
        n_image_features=12,
        missing_image=0.1,
        missing_rna=0.1,
        batch_effect=0.5,
        seed=seed,
    )
    adata.obs["known"] = np.arange(N) % 4 > 0
    return adata


@pytest.fixture(scope="module")
def adata():
    return tissue()


@pytest.fixture(scope="module")
def trained(adata):
    """Every model, trained once."""
    models = {}
    for name, (cls, params, train) in KINDS.items():
        data = adata.copy()
        cls.setup_anndata(data, **KEYS)
        model = cls(data, **params)
        if name == "cameo residual":
            with pytest.MonkeyPatch.context() as patch:  # a gate that is always open: the residual must be stored too
                patch.setattr("stfuse.model._cameo.verdict", lambda *_: 2)
                model.train(**train)
        else:
            model.train(**train)
        models[name] = model
    return models


@pytest.fixture(scope="module")
def folders(trained, tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    for name, model in trained.items():
        model.save(root / name)
    return root


def assert_same_codes(a, b):
    for name in CODES:
        one, two = getattr(a, name), getattr(b, name)
        assert (one is None) == (two is None), name
        if one is not None:
            np.testing.assert_array_equal(one, two, err_msg=name)


def test_the_residual_is_there_to_be_stored(trained):
    assert trained["cameo residual"].report_["epochs_kept"] == 2
    state = trained["cameo residual"].module.state_dict()
    assert any(v.abs().max() > 0 for k, v in state.items() if k.startswith("encoders.image.6"))


def test_every_model_of_the_table_is_here():
    assert {cls for cls, _, _ in KINDS.values()} == {m.model_class() for m in _registry.fusions().values()}


@pytest.mark.parametrize("kind", KINDS)
def test_a_training_that_breaks_off_leaves_the_model_as_it_was(kind, trained, monkeypatch):
    """A user who changes an option, trains again and presses stop keeps what there was: codes, seed, report and history."""
    model, train = trained[kind], KINDS[kind][2]
    before, kept = (
        model.codes(),
        {k: vars(model)[k] for k in ("seed_", "report_", "history_", "batch_means_", "module")},
    )

    def stop(*args, **kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(type(model), "_finish", stop)
        with pytest.raises(KeyboardInterrupt):
            model.train(**train, seed=5)
    assert all(vars(model)[k] is v for k, v in kept.items())
    assert_same_codes(model.codes(), before)


@pytest.fixture
def no_pickle(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("a pickle was read or written")

    for name in ("load", "loads", "dump", "dumps", "Unpickler", "Pickler"):
        monkeypatch.setattr(pickle, name, refuse)
    for name in ("load", "save"):
        monkeypatch.setattr(torch, name, refuse)
    monkeypatch.setattr(np, "load", refuse)


@pytest.mark.parametrize("kind", KINDS)
def test_without_the_training_data(kind, trained, folders, no_pickle):
    model = trained[kind]
    loaded = type(model).load(folders / kind)
    assert_same_codes(loaded.codes(tissue()), model.codes())
    assert_same_codes(loaded.codes(tissue(seed=1)), model.codes(tissue(seed=1)))
    with pytest.raises(ValueError, match="loaded without data: pass adata="):
        loaded.codes()
    assert loaded.is_trained_ and loaded.seed_ == model.seed_ and loaded.params_ == model.params_
    assert loaded.setup_keys() == model.setup_keys()
    assert loaded.report_ == pytest.approx(model.report_)
    assert set(loaded.history or {}) == set(model.history or {})
    for name, frame in (model.history or {}).items():
        pd.testing.assert_frame_equal(loaded.history[name].astype(float), frame.astype(float), rtol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_with_data(kind, trained, folders):
    loaded = type(trained[kind]).load(folders / kind, tissue())
    assert_same_codes(loaded.codes(), trained[kind].codes())
    np.testing.assert_array_equal(loaded.get_latent_representation(), trained[kind].get_latent_representation())


@pytest.mark.parametrize("kind", [k for k in KINDS if "cameo" in k or "pcca" in k])
def test_translations(kind, trained, folders):
    loaded = type(trained[kind]).load(folders / kind)
    for source, target in (("image", "rna"), ("rna", "image")):
        ours = trained[kind].translate(source=source, target=target)
        np.testing.assert_array_equal(loaded.translate(tissue(), source=source, target=target), ours)
        data = tissue()
        stfuse.tl.translate(data, loaded, source=source, target=target)
        np.testing.assert_array_equal(data.obsm[f"translated_{target}"], ours)


@pytest.mark.parametrize("kind", ["aestetik", "clip", "umpire", "concat", "neighbor_mean"])
def test_a_method_that_does_not_translate_says_so(kind, trained):
    with pytest.raises(NotImplementedError, match="has no translation"):
        trained[kind].translate()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("view", ["image", "rna"])
def test_new_data_with_one_view(kind, view, trained, folders):
    """Neither the other view's key nor the mask has to be there."""
    loaded = type(trained[kind]).load(folders / kind)
    key, other = ("X_image", "X_pca") if view == "image" else ("X_pca", "X_image")
    absent, missing = tissue(), tissue()
    del absent.obsm[other], absent.obs["known"]
    missing.obsm[other][:] = np.nan
    codes = loaded.codes(absent)
    has = ~np.isnan(absent.obsm[key]).any(1)
    assert np.isfinite(codes.fused[has]).all() and np.isnan(codes.fused[~has]).all()
    assert_same_codes(codes, loaded.codes(missing))
    shared = getattr(codes, view)
    if shared is not None:
        np.testing.assert_array_equal(shared, getattr(trained[kind].codes(), view))
        assert np.isnan(codes.rna if view == "image" else codes.image).all()


@pytest.mark.parametrize("kind", KINDS)
def test_a_new_batch_is_centred_on_itself(kind, trained, folders):
    """A known section under a new name, and moved as a whole, is coded as it was."""
    loaded = type(trained[kind]).load(folders / kind)
    whole = tissue()
    known = whole[whole.obs["section"] == "section1"].copy()
    new = known.copy()
    new.obs["section"] = "another"
    new.obsm["X_image"] += 3
    new.obsm["X_pca"] -= 2
    before, after = loaded.codes(known), loaded.codes(new)
    for name in ("fused", "image", "rna"):
        if getattr(before, name) is not None:
            np.testing.assert_allclose(getattr(after, name), getattr(before, name), atol=2e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_what_new_data_must_have(kind, trained, folders):
    loaded = type(trained[kind]).load(folders / kind)
    wide = tissue()
    wide.obsm["X_image"] = np.hstack([wide.obsm["X_image"]] * 2)
    with pytest.raises(ValueError, match="The image view has 24 features, the model was trained on 12"):
        loaded.codes(wide)
    nothing = tissue()
    del nothing.obsm["X_image"], nothing.obsm["X_pca"]
    with pytest.raises(KeyError, match="Neither obsm"):
        loaded.codes(nothing)
    unnamed = tissue()
    del unnamed.obs["section"]
    with pytest.raises(KeyError, match="No obs column 'section'"):
        loaded.codes(unnamed)


# -- files -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_two_files_that_cannot_run_code(kind, folders):
    files = sorted(p.name for p in (folders / kind).iterdir())
    assert files == ["model.json", "weights.safetensors"]
    description = json.loads((folders / kind / "model.json").read_text())
    assert description["body"]["class"] == KINDS[kind][0].__name__
    raw = (folders / kind / "weights.safetensors").read_bytes()
    with pytest.raises((pickle.UnpicklingError, ValueError, EOFError, KeyError, IndexError)):
        pickle.load(io.BytesIO(raw))


@pytest.fixture
def folder(folders, tmp_path):
    return shutil.copytree(folders / "cameo", tmp_path / "model")


def test_overwrite(trained, folder):
    before = (folder / "weights.safetensors").read_bytes()
    with pytest.raises(FileExistsError, match="exists already: pass overwrite=True"):
        trained["pcca"].save(folder)
    assert (folder / "weights.safetensors").read_bytes() == before
    trained["pcca"].save(folder, overwrite=True)
    assert_same_codes(PCCA.load(folder).codes(tissue()), trained["pcca"].codes())
    empty = folder.parent / "deep" / "er"
    empty.mkdir(parents=True)
    trained["pcca"].save(str(empty))
    assert_same_codes(PCCA.load(str(empty)).codes(tissue()), trained["pcca"].codes())


def test_no_model_no_folder(tmp_path, adata):
    with pytest.raises(FileNotFoundError, match="model.json and weights.safetensors missing"):
        CAMEO.load(tmp_path)
    with pytest.raises(FileNotFoundError, match="is not a saved stfuse model"):
        CAMEO.load(tmp_path / "nowhere")
    data = adata.copy()
    PCCA.setup_anndata(data)
    with pytest.raises(RuntimeError, match="nothing to save: the model is not trained"):
        PCCA(data).save(tmp_path / "x")
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("name", ["model.json", "weights.safetensors"])
def test_a_missing_file(folder, name):
    (folder / name).unlink()
    with pytest.raises(FileNotFoundError, match=f"{name} missing"):
        CAMEO.load(folder)


@pytest.mark.parametrize("name", ["model.json", "weights.safetensors"])
@pytest.mark.parametrize("part", [0.0, 0.1, 0.5, 0.9, 0.9999])
def test_a_truncated_file(folder, name, part):
    raw = (folder / name).read_bytes()
    (folder / name).write_bytes(raw[: int(part * len(raw))])
    with pytest.raises(ValueError, match=f"{name} is (damaged or )?truncated.*save the model again"):
        CAMEO.load(folder)


@pytest.mark.parametrize("name", ["model.json", "weights.safetensors"])
def test_a_flipped_byte(folder, name):
    raw = (folder / name).read_bytes()
    rng = np.random.default_rng(0)
    # the ends, where the structure is, and some places between
    places = [*range(120), *rng.integers(0, len(raw), 60), len(raw) - 1, len(raw) - 3]
    for place in places:
        altered = bytearray(raw)
        altered[place] ^= 1 << int(rng.integers(7))
        (folder / name).write_bytes(altered)
        try:
            CAMEO.load(folder)
        except ValueError as error:
            assert "save the model again" in str(error) or "has format" in str(error), (place, error)
        else:  # a space that became another kind of space
            assert json.loads(altered) == json.loads(raw)


def edit(folder, change):
    path = folder / "model.json"
    description = json.loads(path.read_text())
    change(description)
    path.write_text(json.dumps(description))


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d["body"].update({"class": "PCCA"}),
        lambda d: d["body"]["params"].update(n_hidden=3),
        lambda d: d["body"].pop("registry"),
        lambda d: d["body"].update(more=1),
        lambda d: d.update(body=None),
    ],
    ids=["class", "params", "removed", "added", "nothing"],
)
def test_an_edited_description(folder, change):
    edit(folder, change)
    with pytest.raises(ValueError, match="model.json was altered"):
        CAMEO.load(folder)


@pytest.mark.parametrize(
    "text",
    ["", "[]", "null", "3", "{}", '{"body": {}, "format": 1}', '{"body": {}, "format": 1, "sha256": []}', "\xff"],
)
def test_what_is_no_description(folder, text):
    (folder / "model.json").write_text(text, encoding="latin-1")
    with pytest.raises(ValueError, match="model.json is damaged or truncated"):
        CAMEO.load(folder)


def test_weights_of_another_model(folder, folders):
    shutil.copy(folders / "clip" / "weights.safetensors", folder)
    with pytest.raises(ValueError, match="checksum differs"):
        CAMEO.load(folder)


def test_a_newer_format(folder):
    edit(folder, lambda d: d.update(format=2))
    with pytest.raises(ValueError, match="has format 2; this version of stfuse reads format 1"):
        CAMEO.load(folder)


@pytest.mark.parametrize("cls", [PCCA, CLIP, Concat])
def test_another_class(folder, cls):
    with pytest.raises(ValueError, match="holds a CAMEO model: load it with stfuse.model.CAMEO.load"):
        cls.load(folder)


def test_options_of_scvi_tools_are_not_overlooked(trained, folder, tmp_path):
    with pytest.raises(TypeError, match="takes no save_anndata"):
        trained["pcca"].save(tmp_path / "x", save_anndata=True)
    with pytest.raises(TypeError, match="takes no prefix"):
        CAMEO.load(folder, prefix="a")


def test_data_that_do_not_fit_are_not_attached(folders):
    other = tissue()
    del other.obsm["X_pca"]
    with pytest.raises(KeyError, match="X_pca"):
        PCCA.load(folders / "pcca", other)


@pytest.mark.parametrize("kind", KINDS)
def test_before_training(kind, adata):
    cls, params, _ = KINDS[kind]
    data = adata.copy()
    cls.setup_anndata(data, **KEYS)
    with pytest.raises(RuntimeError, match="not trained yet: call .train"):
        cls(data, **params).codes()
