"""The model on tiles: what it gives back, what it refuses, and that it is the same after saving."""

import json

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch

from stfuse.model import ABMIL

KEYS = {"slide_key": "slide", "label_key": "grade"}
SIZES = {"a": 9, "b": 1, "c": 20, "d": 6, "e": 14, "f": 5}
SMALL = {"n_hidden": 6, "n_attention": 4}
TRAIN = {"max_epochs": 2, "n_tiles": 8, "batch_size": 2, "progress": False}


def some_tiles(seed=0):
    """Six slides in disorder; the slide "e" has no label, a tile no features and one no slide."""
    rng = np.random.default_rng(seed)
    slide = rng.permutation(np.repeat(list(SIZES), list(SIZES.values()))).astype(object)
    grade = pd.Series(slide).map({"a": "low", "b": "high", "c": "high", "d": "low", "f": "low"})
    x = rng.normal(size=(slide.size, 5)).astype(np.float32)
    x[np.flatnonzero(slide == "c")[3]] = np.nan
    slide[np.flatnonzero(slide == "a")[0]] = None
    grade[pd.isna(slide)] = None
    obs = pd.DataFrame({"slide": slide, "grade": grade.to_numpy()}, index=[f"t{i}" for i in range(slide.size)])
    return ad.AnnData(obs=obs, obsm={"X_image": x})


@pytest.fixture(scope="module")
def model():
    tiles = some_tiles()
    ABMIL.setup_anndata(tiles, **KEYS)
    model = ABMIL(tiles, **SMALL)
    model.train(**TRAIN)
    return model


def test_shapes_and_gaps(model):
    tiles = some_tiles()
    proba, embedding, attention = model.predict_proba(), model.get_latent_representation(), model.attention()
    assert list(proba.index) == list(SIZES) and list(proba.columns) == ["high", "low"]
    np.testing.assert_allclose(proba.sum(axis=1), 1, rtol=1e-6)
    assert embedding.shape == (6, 6) and np.isfinite(embedding.to_numpy()).all()
    unused = tiles.obs["slide"].isna().to_numpy() | np.isnan(tiles.obsm["X_image"]).any(1)
    np.testing.assert_array_equal(np.isnan(attention), unused)
    sums = pd.Series(attention[~unused]).groupby(tiles.obs["slide"].to_numpy()[~unused].astype(str)).sum()
    np.testing.assert_allclose(sums, 1, rtol=1e-6)
    assert attention[tiles.obs["slide"] == "b"] == 1
    assert model.report_ == {"n_slides": 5, "n_held_out": 0} and list(model.history) == ["loss"]


def test_the_order_of_tiles_does_not_matter(model):
    """Attention goes with the tile, and the slide's prediction stays."""
    tiles = some_tiles()
    order = np.random.default_rng(1).permutation(tiles.n_obs)
    shuffled = model.codes(tiles[order].copy())
    codes = model.codes(tiles)
    np.testing.assert_allclose(shuffled.attention, codes.attention[order], atol=1e-6)
    np.testing.assert_allclose(shuffled.proba, codes.proba, atol=1e-6)
    np.testing.assert_allclose(shuffled.embedding, codes.embedding, atol=1e-6)


def test_a_slide_is_coded_as_if_it_were_alone(model):
    alone = model.codes(slides=["d"])
    np.testing.assert_allclose(alone.proba, model.predict_proba().loc[["d"]], atol=1e-6)
    assert np.isfinite(alone.attention).sum() == SIZES["d"]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_features_that_may_not_be_written_to(model, dtype):
    tiles = some_tiles()
    tiles.obsm["X_image"] = tiles.obsm["X_image"].astype(dtype)
    tiles.obsm["X_image"].setflags(write=False)
    pd.testing.assert_frame_equal(model.predict_proba(tiles), model.predict_proba())


def test_small_parts_give_the_same(model, monkeypatch):
    whole = model.codes()
    monkeypatch.setattr("stfuse.model._tile_bags.PART", 4)
    parts = model.codes()
    np.testing.assert_allclose(parts.proba, whole.proba, atol=1e-6)
    np.testing.assert_allclose(parts.attention, whole.attention, atol=1e-6)


def test_saved_and_loaded(model, tmp_path):
    model.save(tmp_path / "m")
    loaded = ABMIL.load(tmp_path / "m")
    new = some_tiles(seed=3)
    del new.obs["grade"]  # labels are for training only
    for name in ("proba", "embedding"):
        pd.testing.assert_frame_equal(getattr(loaded.codes(new), name), getattr(model.codes(new), name))
    np.testing.assert_array_equal(loaded.attention(new), model.attention(new))
    with pytest.raises(ValueError, match="loaded without data: pass adata="):
        loaded.predict_proba()
    body = json.dumps(json.loads((tmp_path / "m" / "model.json").read_text())["body"]["registry"])
    assert '"low"' not in body and '"f"' not in body
    pd.testing.assert_frame_equal(ABMIL.load(tmp_path / "m", some_tiles()).predict_proba(), model.predict_proba())


def test_the_seed_decides(model):
    def trained(seed):
        tiles = some_tiles()
        ABMIL.setup_anndata(tiles, **KEYS)
        again = ABMIL(tiles, **SMALL)
        again.train(**TRAIN, seed=seed)
        return again.predict_proba().to_numpy()

    np.testing.assert_array_equal(trained(0), model.predict_proba())
    assert np.abs(trained(1) - model.predict_proba().to_numpy()).max() > 1e-4


def test_slides_that_are_not_trained_on_have_no_part_in_it(model):
    """Neither their labels nor their features move a weight."""

    def weights(change):
        tiles = some_tiles()
        change(tiles, (tiles.obs["slide"] == "f").to_numpy())
        ABMIL.setup_anndata(tiles, **KEYS)
        other = ABMIL(tiles, **SMALL)
        other.train(slides=list("abcd"), **TRAIN)
        return torch.cat([v.flatten() for v in other.module.state_dict().values()])

    def relabel(tiles, rows):
        tiles.obs.loc[rows, "grade"] = "high"

    def move(tiles, rows):
        tiles.obsm["X_image"][rows] += 100

    as_it_is = weights(lambda *_: None)
    assert torch.equal(weights(relabel), as_it_is) and torch.equal(weights(move), as_it_is)


def test_the_epoch_with_the_lowest_held_out_loss_is_kept():
    tiles = some_tiles()
    ABMIL.setup_anndata(tiles, **KEYS)
    model = ABMIL(tiles, **SMALL)
    model.train(held_out=["f", "b"], **TRAIN | {"max_epochs": 30, "lr": 3e-2}, patience=3)
    losses = model.history["held_out_loss"]["held_out_loss"].astype(float)
    kept = model.report_["epochs_kept"]
    assert model.report_["n_held_out"] == 2 and len(losses) < 30
    # the weights are those of that epoch: the slides have fewer tiles than a step takes, so the loss is that of all of them
    proba = model.predict_proba()
    wrong = -np.log([proba.loc["f", "low"], proba.loc["b", "high"]])
    # trained on are two slides of low and one of high
    now = np.average(wrong, weights=[3 / 4, 3 / 2])
    if kept:
        assert now == pytest.approx(losses.loc[kept], rel=1e-4) and losses.idxmin() == kept
    else:
        assert now < losses.min()


def test_what_is_refused(model):
    tiles = some_tiles()
    with pytest.raises(KeyError, match="No obs column 'slid'.* Did you mean 'slide'"):
        ABMIL.setup_anndata(tiles, slide_key="slid")
    with pytest.raises(KeyError, match="X_imag"):
        ABMIL.setup_anndata(tiles, slide_key="slide", image_key="X_imag")
    torn = some_tiles()
    torn.obs.loc[torn.obs_names[torn.obs["slide"] == "c"][0], "grade"] = "low"
    with pytest.raises(ValueError, match="several values in slide 'c'"):
        ABMIL.setup_anndata(torn, **KEYS)
    ABMIL.setup_anndata(tiles, slide_key="slide")
    with pytest.raises(ValueError, match="pass label_key= to ABMIL.setup_anndata"):
        ABMIL(tiles).train()
    for argument in ({"n_hidden": 0}, {"dropout": 1.0}, {"n_attention": 2.5}):
        with pytest.raises((ValueError, TypeError), match=next(iter(argument))):
            ABMIL(tiles, **argument)


def test_what_training_refuses(model):
    before = model.predict_proba()
    for arguments, message in (
        ({"slides": ["a", "d"]}, "only one class \\('low'\\)"),
        ({"slides": ["a", "nowhere"]}, "names 'nowhere'"),
        ({"slides": ["a", "e"]}, "names 'e', which has no label"),
        ({"slides": ["a", "b"], "held_out": ["b"]}, "'b' is both in"),
        ({"class_weight": "even"}, "class_weight"),
        ({"n_tiles": 0}, "n_tiles"),
        ({"lr": 0.0}, "lr"),
        ({"patience": 0}, "patience"),
    ):
        with pytest.raises((ValueError, KeyError), match=message):
            model.train(**arguments)
    pd.testing.assert_frame_equal(model.predict_proba(), before)


def test_what_coding_refuses(model):
    wide = some_tiles()
    wide.obsm["X_image"] = np.hstack([wide.obsm["X_image"]] * 2)
    with pytest.raises(ValueError, match="10 features, the model was trained on 5"):
        model.codes(wide)
    tiles = some_tiles()
    ABMIL.setup_anndata(tiles, **KEYS)
    with pytest.raises(RuntimeError, match="call .train\\(\\) first"):
        ABMIL(tiles).predict_proba()
    nothing = some_tiles()
    nothing.obsm["X_image"][:] = np.nan
    with pytest.raises(ValueError, match="No tile has both features"):
        model.codes(nothing)
