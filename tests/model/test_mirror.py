"""The model on slides: what takes part in training, what it gives back, what it refuses."""

import json

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch
from scipy.sparse import csr_matrix
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_score
from torch import nn

import stfuse
from stfuse.model import MIRROR
from stfuse.model._slide_views import read_genes
from stfuse.module.abmil import SlideEncoder
from stfuse.module.mirror import Beside, RnaEncoder
from stfuse.module.retention import BagRetention, TokenRetention
from stfuse.module.transmil import TransMIL
from stfuse.train._bags import BagBatches, Bags

KEYS = {"slide_key": "slide"}
SMALL = {"dim": 16, "n_prototypes": 12, "n_tiles": 8}
TRAIN = {"max_epochs": 2, "batch_size": 8, "validation_fraction": 0, "progress": False, "device": "cpu"}
ENCODERS = ("abmil", "transmil")


def cohort(n=16, seed=1):
    """Slides in pairs of a patient; s2 has no RNA, s5 no tiles, s7 neither; some tiles are of no slide, one has no features."""
    slides, tiles = stfuse.datasets.synthetic_slides(n, n_tiles=(3, 14), n_genes=12, n_image_features=8, seed=seed)
    slides.X[[2, 7]] = np.nan
    column = tiles.obs["slide"].astype(str).replace({"slide5": "elsewhere"}).where(tiles.obs["slide"] != "slide7")
    tiles.obs["slide"] = column
    tiles.obsm["X_image"][np.flatnonzero(column == "slide3")[1]] = np.nan
    order = np.random.default_rng(0).permutation(tiles.n_obs)
    slides.obs["patient"] = [f"P{i // 2}" for i in range(n)]
    return slides, tiles[order].copy()


def trained(slides, tiles, train=None, setup=None, **params):
    MIRROR.setup_anndata(slides, **KEYS | (setup or {}))
    model = MIRROR(slides, tiles, **SMALL | params)
    model.train(**TRAIN | (train or {}))
    return model


@pytest.fixture(scope="module", params=ENCODERS)
def model(request):
    return trained(*cohort(), slide_encoder=request.param)


@pytest.fixture(scope="module")
def abmil():
    return trained(*cohort())


def weights(model):
    return torch.cat([v.flatten().double() for v in model.module.state_dict().values()])


FIELDS = ("image", "rna", "fused", "private_image", "private_rna", "prototype", "attention")


def assert_same(one, other, rows=slice(None), atol=1e-5):
    for name in FIELDS[:-1]:
        np.testing.assert_allclose(getattr(one, name), getattr(other, name)[rows], atol=atol, err_msg=name)


def test_shapes_and_gaps(model):
    slides, tiles = cohort()
    codes = model.codes()
    assert list(codes.names) == list(slides.obs_names)
    no_image, no_rna = np.isin(np.arange(16), [5, 7]), np.isin(np.arange(16), [2, 7])
    for view, missing in (("image", no_image), ("rna", no_rna)):
        code, private = getattr(codes, view), getattr(codes, f"private_{view}")
        assert code.shape == private.shape == (16, 16) and code.dtype == np.float32
        for x in (code, private):
            np.testing.assert_array_equal(np.isnan(x).all(1), missing)
            assert np.isfinite(x[~missing]).all()
        np.testing.assert_allclose(np.linalg.norm(code[~missing], axis=1), 1, rtol=1e-5)
        np.testing.assert_array_equal(model.get_latent_representation(view=view), code)
        np.testing.assert_array_equal(model.get_latent_representation(view=f"private_{view}"), private)
    assert codes.fused.shape == (16, 64)
    np.testing.assert_array_equal(np.isfinite(codes.fused).all(1), ~(no_image & no_rna))
    np.testing.assert_array_equal(np.isnan(codes.fused).all(1), no_image & no_rna)
    assert codes.prototype[7] == -1 and (np.delete(codes.prototype, 7) >= 0).all() and codes.prototype.max() < 12
    unused = ~tiles.obs["slide"].isin(slides.obs_names).to_numpy() | np.isnan(tiles.obsm["X_image"]).any(1)
    np.testing.assert_array_equal(np.isnan(codes.attention), unused)
    of_slides = pd.Series(codes.attention[~unused]).groupby(tiles.obs["slide"].to_numpy()[~unused]).sum()
    assert len(of_slides) == 14
    np.testing.assert_allclose(of_slides, 1, rtol=1e-5)
    np.testing.assert_array_equal(model.attention(), codes.attention)


def test_each_part_of_the_fused_code_is_scaled_by_what_was_trained_on(model):
    codes = model.codes()
    for part in np.split(codes.fused, 4, axis=1)[2:]:
        both = part[[i for i in range(16) if i not in (2, 5, 7)]]
        assert np.abs(both.mean(0)).max() < 0.5 and 0.5 < both.var(0).mean() < 1.5
    some = {"image": np.setdiff1d(np.arange(16), [5, 7]), "rna": np.setdiff1d(np.arange(16), [2, 7])}
    for number, (view, kind) in enumerate([(v, k) for k in ("", "private_") for v in ("image", "rna")]):
        code, part = getattr(codes, kind + view)[some[view]], np.split(codes.fused, 4, axis=1)[number][some[view]]
        np.testing.assert_allclose(part, (code - code.mean(0)) / np.sqrt(code.var(0).mean()), atol=1e-3)


def test_likest_prototype_by_hand(abmil):
    codes, style = abmil.codes(), abmil.module.style
    for i in (0, 2, 5):
        total = 0
        for private in (codes.private_image[i], codes.private_rna[i]):
            if np.isfinite(private).all():
                with torch.no_grad():
                    mean = style.mean(style.net(torch.from_numpy(private)))
                    total = total + (style.prototypes.weight @ style.decode(mean)).log_softmax(0)
        assert codes.prototype[i] == int(total.argmax())


def test_slides_and_tiles_in_any_order(model):
    slides, tiles = cohort()
    codes = model.codes(slides, tiles)
    order = np.random.default_rng(5).permutation(16)
    assert_same(model.codes(slides[order].copy(), tiles), codes, order)
    if model.params_["slide_encoder"] == "abmil":
        # to a bag order is nothing, to a position encoding it is something
        shuffled = np.random.default_rng(6).permutation(tiles.n_obs)
        again = model.codes(slides, tiles[shuffled].copy())
        assert_same(again, codes)
        np.testing.assert_allclose(again.attention, codes.attention[shuffled], atol=1e-6)


def test_a_slide_is_coded_as_if_it_were_alone(model):
    slides, tiles = cohort()
    codes = model.codes()
    for name in ("slide0", "slide2", "slide11"):
        own = model.codes(slides[[name]].copy(), tiles[tiles.obs["slide"] == name].copy())
        assert_same(own, codes, [int(name[5:])])


def test_one_view_alone(model):
    slides, tiles = cohort()
    codes = model.codes()
    only_rna, only_tiles = model.codes(slides), model.codes(None, tiles)
    np.testing.assert_allclose(only_rna.rna, codes.rna, atol=1e-6)
    assert np.isnan(only_rna.image).all() and not only_rna.attention.size
    np.testing.assert_allclose(only_rna.fused[5], codes.fused[5], atol=1e-5)
    # tiles name their slides, the one that is not among the slides too
    assert list(only_tiles.names) == sorted(set(tiles.obs["slide"].dropna()))
    rows = codes.names.get_indexer(only_tiles.names)
    known = rows >= 0
    np.testing.assert_allclose(only_tiles.image[known], codes.image[rows[known]], atol=1e-6)
    assert np.isfinite(only_tiles.fused).all() and np.isnan(only_tiles.rna).all()
    np.testing.assert_allclose(only_tiles.fused[list(only_tiles.names).index("slide2")], codes.fused[2], atol=1e-5)


def test_a_missing_view_is_told_by_the_other(abmil):
    slides, tiles = cohort()
    codes, module = abmil.codes(), abmil.module
    fused = [torch.from_numpy(x) for x in (codes.private_image[2:3], codes.private_rna[5:6])]
    told = {2: module.translate("rna", fused[0]), 5: module.translate("image", fused[1])}
    middle, spread = module.middle.numpy(), module.spread.numpy()
    for i, part in ((2, 3), (5, 2)):
        expected = (told[i].detach().numpy()[0] - middle[part]) / spread[part]
        np.testing.assert_allclose(np.split(codes.fused[i], 4)[part], expected, atol=1e-4)
    # the aligned code stands for that of the other view
    for i, part, view in ((2, 1, "image"), (5, 0, "rna")):
        expected = (getattr(codes, view)[i] - middle[part]) / spread[part]
        np.testing.assert_allclose(np.split(codes.fused[i], 4)[part], expected, atol=1e-4)


def test_unpaired_slides_take_part():
    """A change in what only one view shows moves weights, and what has neither view moves none."""
    base = weights(trained(*cohort()))
    assert torch.equal(weights(trained(*cohort())), base)

    def changed(change):
        slides, tiles = cohort()
        change(slides, tiles)
        return weights(trained(slides, tiles))

    def rna_only(slides, tiles):
        slides.X[5] += np.random.default_rng(0).normal(size=12)

    def tiles_only(slides, tiles):
        rows = (tiles.obs["slide"] == "slide2").to_numpy()
        tiles.obsm["X_image"][rows] += np.random.default_rng(0).normal(size=(rows.sum(), 8))

    def elsewhere(slides, tiles):
        tiles.obsm["X_image"][~tiles.obs["slide"].isin(slides.obs_names)] += 9

    assert not torch.allclose(changed(rna_only), base) and not torch.allclose(changed(tiles_only), base)
    assert torch.equal(changed(elsewhere), base)


def test_pairs_that_may_not_be_used_are_no_pairs():
    """Which RNA a slide has then does not matter, but both are seen."""
    slides, tiles = cohort()
    slides.obs["paired"] = ~slides.obs_names.isin(["slide8", "slide9"])
    model = trained(slides, tiles, setup={"paired_key": "paired"})
    assert model.report_["n_pairs"] == 11 and trained(*cohort()).report_["n_pairs"] == 13
    plan_pairs = []
    original = MIRROR._data

    def watch(self, *args, **kwargs):
        views = original(self, *args, **kwargs)
        plan_pairs.append(views.paired)
        return views

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MIRROR, "_data", watch)
        model.train(**TRAIN)
        codes = model.codes()
    assert not plan_pairs[0][[8, 9]].any() and plan_pairs[0].sum() == 11
    assert np.isfinite(codes.image[8:10]).all() and np.isfinite(codes.rna[8:10]).all()


def test_whole_patients_are_held_out_and_not_seen(monkeypatch):
    """Slides of theirs that are no pair are not seen either."""
    slides, tiles = cohort(40)
    dealt, starts = set(), []
    deal = BagBatches.__iter__

    def watch(self):
        for batch in deal(self):
            dealt.update(batch["slides"].tolist())
            yield batch

    monkeypatch.setattr(BagBatches, "__iter__", watch)
    monkeypatch.setattr("stfuse.model._mirror.fit_start", lambda module, views, known, seed: starts.append(known))
    for seed in range(3):
        dealt.clear()
        model = trained(slides, tiles, {"validation_fraction": 0.25, "seed": seed}, {"groups": "patient"})
        away = np.setdiff1d(np.arange(40), sorted(dealt))
        patients = set(slides.obs["patient"].iloc[np.setdiff1d(away, [7])])
        assert 4 <= len(patients) <= 6 and model.report_["n_held_out"] >= 4
        theirs = np.flatnonzero(slides.obs["patient"].isin(patients))
        assert set(theirs) == set(away) - ({7} - set(theirs))
        np.testing.assert_array_equal(np.flatnonzero(~starts[-1]), away)
    assert "held_out_rank" in model.history and model.history["held_out_rank"].index.name == "epoch"


def test_held_out_slides_move_no_weight():
    """But by when training stops: after one epoch of one both ways."""
    slides, tiles = cohort(30)
    one = {"validation_fraction": 0.2, "max_epochs": 1}
    seen = []
    split = stfuse.model._mirror.split_groups
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("stfuse.model._mirror.split_groups", lambda *a: seen.append(split(*a)) or seen[-1])
        base = trained(slides, tiles, one)
        slides.X[seen[0][1]] += 3
        moved = trained(slides, tiles, one)
    assert seen[0][1].size == 5
    assert torch.equal(weights(base), weights(moved))


@pytest.mark.parametrize("encoder", ENCODERS)
def test_the_seed_decides(encoder):
    one, same, other = (
        weights(trained(*cohort(), {"seed": seed, "max_epochs": 1}, slide_encoder=encoder)) for seed in (0, 0, 3)
    )
    assert torch.equal(one, same) and not torch.allclose(one, other)


def test_training_leaves_the_global_generator_alone():
    torch.manual_seed(11)
    expected = torch.rand(3)
    torch.manual_seed(11)
    trained(*cohort())
    assert torch.equal(torch.rand(3), expected)


class Rates:
    """What training runs with."""

    def __init__(self):
        self.rates, self.decay, self.sizes = [], set(), set()

    def callback(self):
        from lightning.pytorch.callbacks import Callback

        watch = self

        class Watch(Callback):
            def on_train_batch_start(self, trainer, plan, batch, batch_idx):
                group = trainer.optimizers[0].param_groups[0]
                watch.rates.append(group["lr"])
                watch.decay.add(group["weight_decay"])
                watch.sizes.update(batch["offsets"].diff().tolist())

        return Watch()


def test_faithful_takes_every_published_choice():
    slides, tiles = cohort(20)
    MIRROR.setup_anndata(slides, **KEYS)
    model = MIRROR(slides, tiles, faithful=True)
    assert model.params_ == {
        "slide_encoder": "transmil",
        "dim": 768,
        "n_prototypes": 3000,
        "mask_ratio": 0.75,
        "weights": {"align": 0.5, "retain_image": 0.15, "retain_rna": 0.15, "style": 0.1, "cluster": 0.1},
        "detach": False,
        "n_tiles": 2048,
        "faithful": True,
    }
    # the rest at a width that takes no time
    model, seen = MIRROR(slides, tiles, faithful=True, dim=16, n_tiles=9, n_prototypes=12), Rates()
    model.train(max_epochs=3, progress=False, callbacks=[seen.callback()])
    module = model.module
    assert isinstance(module.slides, TransMIL) and isinstance(module.retain_image, TokenRetention)
    assert module.retain_image.positions.shape == (10, 16) and not module.unit
    assert isinstance(module.genes.encode, RnaEncoder) and not any(isinstance(m, Beside) for m in module.modules())
    for part in (module.slides, module.genes):  # features as they are
        assert not part.mean.any() and (part.scale == 1).all()
    # batches of sixteen of 19 slides with something; all slides of nine tiles, one without tiles of none
    assert seen.rates == [2e-5] * 6 and seen.decay == {0.0} and seen.sizes == {9, 0}
    assert model.report_["n_held_out"] == 0 and "held_out_rank" not in model.history
    assert np.isfinite(np.delete(model.codes().fused, 7, 0)).all() and model.codes().fused.shape == (20, 32)
    np.testing.assert_allclose(np.linalg.norm(module.style.prototypes.weight.detach(), axis=1), 1, rtol=1e-3)


def test_what_is_published_can_be_undone_one_by_one():
    slides, tiles = cohort()
    MIRROR.setup_anndata(slides, **KEYS)
    model = MIRROR(slides, tiles, faithful=True, slide_encoder="abmil", dim=24, detach=True, n_tiles=5, n_prototypes=9)
    seen = Rates()
    model.train(max_epochs=1, batch_size=4, lr=1e-3, weight_decay=0.1, progress=False, callbacks=[seen.callback()])
    assert isinstance(model.module.slides, SlideEncoder) and isinstance(model.module.retain_image, BagRetention)
    assert isinstance(model.module.slides.project, nn.Sequential) and model.params_["detach"]
    assert set(seen.rates) == {1e-3} and seen.decay == {0.1} and len(seen.rates) == 4


def test_our_choices():
    slides, tiles = cohort(20)
    MIRROR.setup_anndata(slides, **KEYS)
    model = MIRROR(slides, tiles)
    assert (
        model.params_["slide_encoder"] == "abmil" and model.params_["detach"] and model.params_["n_prototypes"] == 3000
    )
    abmil, seen = MIRROR(slides, tiles, **SMALL), Rates()
    abmil.train(max_epochs=6, batch_size=4, lr=1e-3, progress=False, callbacks=[seen.callback()])
    assert isinstance(abmil.module.slides.project, Beside) and isinstance(abmil.module.genes.encode, Beside)
    assert abmil.module.unit and abmil.report_["n_held_out"] == 2 and seen.decay == {0.01}
    assert max(seen.rates) == pytest.approx(1e-3, rel=0.1) and seen.rates[-1] < 1e-4 and seen.rates[0] < 3e-4
    # features are standardised by what was trained on
    assert abmil.module.slides.mean.abs().sum() > 0


def test_detach_decides_what_is_learnt():
    assert not torch.allclose(weights(trained(*cohort(), detach=False)), weights(trained(*cohort(), detach=True)))


@pytest.mark.parametrize("dim", [8, 24, 40])
@pytest.mark.parametrize("encoder", ENCODERS)
def test_any_width_that_heads_divide(dim, encoder):
    model = trained(*cohort(), {"max_epochs": 1}, dim=dim, slide_encoder=encoder)
    assert model.codes().fused.shape == (16, 4 * dim) and np.isfinite(np.delete(model.codes().fused, 7, 0)).all()


def test_fewer_features_than_the_width():
    slides, tiles = cohort()
    tiles.obsm["X_image"] = tiles.obsm["X_image"][:, :1]
    model = trained(slides[:, :2].copy(), tiles, dim=40)
    assert np.isfinite(np.delete(model.codes().fused, 7, 0)).all()


@pytest.mark.parametrize("encoder", ENCODERS)
@pytest.mark.parametrize("n_tiles", [4, None])
def test_so_many_tiles_a_step(encoder, n_tiles, monkeypatch):
    slides, tiles = cohort()
    taken = []
    take = Bags.take
    monkeypatch.setattr(Bags, "take", lambda self, rows: taken.append(rows.clone()) or take(self, rows))
    MIRROR.setup_anndata(slides, **KEYS)
    model = MIRROR(slides, tiles, **SMALL | {"n_tiles": n_tiles, "slide_encoder": encoder})
    monkeypatch.setattr("stfuse.model._mirror.fit_fusion", lambda *a: None)
    monkeypatch.setattr("stfuse.model._mirror.fit_start", lambda *a: None)
    model.train(**TRAIN)
    slide = tiles.obs["slide"].to_numpy()
    most = max(pd.Series(slide[rows]).value_counts().max() for rows in taken)
    sizes = tiles.obs["slide"].value_counts().drop("elsewhere")
    assert most == (4 if n_tiles else sizes.max())
    if n_tiles:  # drawn anew: together they see more than one draw does
        seen = pd.Series(slide[torch.cat(taken).unique()]).value_counts()
        assert seen.max() > 4
    # codes come from all tiles
    taken.clear()
    monkeypatch.undo()
    monkeypatch.setattr(Bags, "take", lambda self, rows: taken.append(rows.clone()) or take(self, rows))
    model.codes()
    assert torch.cat(taken).unique().numel() == np.isfinite(model.attention()).sum()


def test_saved_and_loaded(model, tmp_path):
    slides, tiles = cohort()
    model.save(tmp_path / "m")
    loaded = MIRROR.load(tmp_path / "m")
    new_slides, new_tiles = cohort(10, seed=4)
    codes, again = model.codes(new_slides, new_tiles), loaded.codes(new_slides, new_tiles)
    for name in FIELDS:
        np.testing.assert_array_equal(getattr(again, name), getattr(codes, name), err_msg=name)
    with pytest.raises(ValueError, match="loaded without data: pass slides=, tiles= or both"):
        loaded.codes()
    attached = MIRROR.load(tmp_path / "m", slides, tiles)
    np.testing.assert_array_equal(attached.codes().fused, model.codes().fused)
    assert attached.params_ == model.params_ and attached.report_ == model.report_
    pd.testing.assert_frame_equal(attached.history["align"], model.history["align"], check_dtype=False)
    # a loaded model trains
    attached.train(**TRAIN)
    assert torch.equal(weights(attached), weights(model))
    body = (tmp_path / "m" / "model.json").read_text()
    assert "slide3" not in json.dumps(json.loads(body)) and "P1" not in body
    with pytest.raises(TypeError, match="takes no prefix"):
        MIRROR.load(tmp_path / "m", prefix="x")


def on_disk(tiles, kind, folder):
    if kind == "zarr array":
        zarr = pytest.importorskip("zarr")
        tiles.obsm["X_image"] = zarr.create_array({}, data=tiles.obsm["X_image"], chunks=(16, 8))
        return tiles
    pytest.importorskip("xarray")
    if kind == "lazy h5ad":
        tiles.write_h5ad(folder / "tiles.h5ad")
        return ad.experimental.read_lazy(folder / "tiles.h5ad")
    tiles.write_zarr(folder / "tiles.zarr")
    return ad.experimental.read_lazy(folder / "tiles.zarr")


@pytest.mark.parametrize("kind", ["zarr array", "lazy h5ad", "lazy zarr"])
def test_tiles_on_disk_have_the_codes_of_tiles_in_memory(kind, model, tmp_path):
    slides, tiles = cohort()
    lazy = on_disk(tiles.copy(), kind, tmp_path)
    for given in (slides, None):
        codes, expected = model.codes(given, lazy), model.codes(given, tiles)
        assert_same(codes, expected)
        np.testing.assert_allclose(codes.attention, expected.attention, atol=1e-6)


def test_training_from_disk_reads_no_more_than_a_step_needs(tmp_path, monkeypatch):
    slides, tiles = cohort(24)
    lazy = on_disk(tiles.copy(), "zarr array", tmp_path)
    sizes = []
    from stfuse.train import _disk_tiles

    read = _disk_tiles.read_rows
    monkeypatch.setattr(_disk_tiles, "read_rows", lambda array, rows: sizes.append(rows.size) or read(array, rows))
    monkeypatch.setattr("stfuse.model._tile_bags.PART", 32)
    model = trained(slides, lazy, n_tiles=4)
    first, *rest = sizes  # components are taken from some tiles of every slide
    assert max(rest) <= 32 and first <= tiles.n_obs
    assert np.isfinite(np.delete(model.codes().fused, 7, 0)).all()
    # all tiles of a slide in each step: the same as from memory
    from_disk, from_memory = (trained(slides, x, {"max_epochs": 1}, n_tiles=None) for x in (lazy, tiles))
    assert torch.equal(weights(from_disk), weights(from_memory))


def test_half_precision():
    model = trained(*cohort(), {"precision": "bf16-mixed"})
    assert np.isfinite(np.delete(model.codes().fused, 7, 0)).all()


def test_a_failed_training_leaves_the_model_as_it_was(abmil, monkeypatch):
    before, history = weights(abmil).clone(), abmil.history
    state = {k: v for k, v in vars(abmil).items() if k.endswith("_") and not k.startswith("_")}

    def stop(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("stfuse.model._mirror.fit_fusion", stop)
    with pytest.raises(KeyboardInterrupt):
        abmil.train(**TRAIN | {"seed": 9})
    assert torch.equal(weights(abmil), before) and abmil.history is history
    assert all(vars(abmil)[k] is v or vars(abmil)[k] == v for k, v in state.items())


def test_slides_that_have_nothing_in_common_are_told():
    slides, tiles = cohort(30)
    with pytest.warns(UserWarning, match="Held-out slides found their partners no better.*the last epoch is kept"):
        model = trained(slides, tiles, {"validation_fraction": 0.2, "lr": 1e-9})
    assert model.report_["epochs_kept"] == 2


def test_training_goes_on_until_held_out_slides_say_so():
    slides, tiles = stfuse.datasets.synthetic_slides(80, n_tiles=(10, 30), n_genes=40, n_image_features=16, seed=2)
    train = {"validation_fraction": 0.2, "max_epochs": 60, "patience": 2, "batch_size": 32, "lr": 1e-2}
    model = trained(slides, tiles, train, n_tiles=16)
    rank = model.history["held_out_rank"]["held_out_rank"]
    kept = model.report_["epochs_kept"]
    assert rank.idxmin() == kept and len(rank) == kept + 2 < 60 and rank.min() < -0.9
    assert model.report_["n_held_out"] == 16


@pytest.fixture(scope="module")
def signal():
    slides, tiles = stfuse.datasets.synthetic_slides(150, n_tiles=(20, 60), seed=0)
    MIRROR.setup_anndata(slides, **KEYS)
    model = MIRROR(slides, tiles, dim=32, n_prototypes=100, n_tiles=32)
    model.train(max_epochs=15, lr=3e-3, progress=False, device="cpu")
    return slides, tiles, model.codes()


def test_attention_rises_on_tumour(signal):
    """Only tumour tiles tell what RNA tells too."""
    _, tiles, codes = signal
    tumour = (tiles.obs["tissue"] == "tumour").to_numpy()
    of_slides = tiles.obs["slide"].to_numpy()
    attended = pd.Series(codes.attention * tumour).groupby(of_slides, observed=True).sum()
    share = pd.Series(tumour.astype(float)).groupby(of_slides, observed=True).mean()
    assert attended.mean() > 1.1 * share.mean() and (attended > share).mean() > 0.9


def test_pairs_find_each_other_and_the_fused_code_tells_the_subtype(signal):
    slides, _, codes = signal
    own = (codes.image * codes.rna).sum(1)
    nearer = ((codes.image @ codes.rna.T) > own[:, None]).mean(1)
    assert nearer.mean() < 0.1  # most are slides that were trained on; 0.5 by chance
    score = cross_val_score(LogisticRegression(C=0.1, max_iter=1000), codes.fused, slides.obs["subtype"], cv=5)
    assert score.mean() > 0.7


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"slide_encoder": "vit"}, "slide_encoder"),
        ({"dim": 12}, "dim must be a multiple of 8, so that heads divide it, got 12"),
        ({"dim": 0}, "dim"),
        ({"n_prototypes": 1}, "n_prototypes"),
        ({"mask_ratio": 0}, "mask_ratio"),
        ({"mask_ratio": 1.0}, "mask_ratio must be below 1"),
        ({"weights": (1, 2)}, "weights must be 5 numbers \\(align, retain_image"),
        ({"weights": "align"}, "weights must be 5 numbers"),
        ({"weights": {"aline": 1}}, "weights knows align, .*got 'aline'"),
        ({"weights": {"align": -1}}, "weights: align"),
        ({"weights": (0,) * 5}, "weights are all zero"),
        ({"n_tiles": 0}, "n_tiles"),
        ({"n_tiles": None, "faithful": True}, "faithful=True draws a fixed number of tiles a slide: give n_tiles"),
        ({"detach": "no"}, "detach"),
        ({"faithful": 1}, "faithful"),
    ],
)
def test_no_such_model(arguments, message):
    slides, tiles = cohort()
    MIRROR.setup_anndata(slides, **KEYS)
    with pytest.raises((ValueError, TypeError), match=message):
        MIRROR(slides, tiles, **arguments)


def test_weights_by_name_or_in_order():
    slides, tiles = cohort()
    MIRROR.setup_anndata(slides, **KEYS)
    some = MIRROR(slides, tiles, weights={"style": 0}).params_["weights"]
    assert some == {"align": 0.5, "retain_image": 0.15, "retain_rna": 0.15, "style": 0.0, "cluster": 0.1}
    assert list(MIRROR(slides, tiles, weights=[1, 2, 3, 4, 5]).params_["weights"].values()) == [1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"max_epochs": 0}, "max_epochs"),
        ({"batch_size": 1}, "batch_size"),
        ({"lr": 0.0}, "lr"),
        ({"weight_decay": -1}, "weight_decay"),
        ({"validation_fraction": 1.0}, "validation_fraction"),
        ({"patience": 0}, "patience"),
        ({"seed": -1}, "seed"),
        ({"device": "gpus"}, "device"),
    ],
)
def test_what_training_refuses(abmil, arguments, message):
    before = weights(abmil).clone()
    with pytest.raises((ValueError, TypeError), match=message):
        abmil.train(**TRAIN | arguments)
    assert torch.equal(weights(abmil), before)


def test_too_few_pairs_and_nothing_to_train_on():
    slides, tiles = cohort()
    slides.X[4:] = np.nan
    with pytest.raises(
        ValueError, match="MIRROR needs 4 slides with both.* there are 3 \\(of 16 slides 14 have tiles, 3 RNA\\)"
    ):
        trained(slides, tiles)
    MIRROR.setup_anndata(slides, **KEYS)
    with pytest.raises(ValueError, match="nothing to train on: MIRROR takes slides and tiles"):
        MIRROR(slides).train(**TRAIN)


def test_four_pairs_are_enough():
    slides, tiles = cohort()
    slides.X[6:] = np.nan
    model = trained(slides, tiles)
    assert model.report_["n_pairs"] == 4 and np.isfinite(np.delete(model.codes().fused, 7, 0)).all()


def test_what_coding_refuses(abmil):
    slides, tiles = cohort()
    wide = tiles.copy()
    wide.obsm["X_image"] = np.hstack([wide.obsm["X_image"]] * 2)
    with pytest.raises(ValueError, match="The image view has 16 features, the model was trained on 8"):
        abmil.codes(slides, wide)
    with pytest.raises(ValueError, match="7 of the 12 genes .* for example .gene5."):
        abmil.codes(slides[:, :5].copy())
    with pytest.raises(ValueError, match="view"):
        abmil.get_latent_representation(view="image_private")
    MIRROR.setup_anndata(slides, **KEYS)
    untrained = MIRROR(slides, tiles)
    with pytest.raises(RuntimeError, match="call .train\\(\\) first"):
        untrained.codes()
    stranger = tiles.copy()
    stranger.obs["slide"] = "x"
    with pytest.raises(
        ValueError, match="No tile's tiles.obs\\['slide'\\], such as 'x', is a name of slides.obs_names"
    ):
        abmil.codes(slides, stranger)
    nothing = tiles.copy()
    nothing.obsm["X_image"][:] = np.nan
    with pytest.raises(ValueError, match="No tile of a slide has features"):
        abmil.codes(slides, nothing)
    unnamed = tiles.copy()
    del unnamed.obs["slide"]
    with pytest.raises(KeyError, match="No column 'slide' \\(slide_key\\) in tiles.obs"):
        abmil.codes(None, unnamed)


@pytest.mark.filterwarnings("ignore:Observation names are not unique")
@pytest.mark.parametrize(
    ("spoil", "setup", "message"),
    [
        (None, {"slide_key": ""}, "slide_key"),
        (None, {"slide_key": None}, "slide_key must be a string, got None"),
        (None, {"image_key": 3}, "image_key"),
        (None, {"rna_key": "X_pca"}, "No slides.obsm\\['X_pca'\\] \\(rna_key\\).*'shared'"),
        (None, {"mask_var": "selected"}, "No column 'selected' \\(mask_var\\) in slides.var.* stfuse.pp.select_genes"),
        (None, {"mask_var": "selected", "rna_key": "shared"}, "leave one of them out"),
        (lambda s: s.var.__setitem__("none", False), {"mask_var": "none"}, "picks no gene"),
        (lambda s: s.var.__setitem__("text", "yes"), {"mask_var": "text"}, "must be boolean"),
        (lambda s: s.X.__setitem__((3, 4), np.nan), {}, "slides.X has NaN inside 1 row\\(s\\) \\(first: row 3\\)"),
        (
            lambda s: s.X.__setitem__((3, 4), np.inf),
            {},
            "slides.X holds infinite values \\(first in row 3, column 4\\)",
        ),
        (lambda s: s.X.fill(np.nan), {}, "No slide has RNA: all rows of slides.X are NaN"),
        (lambda s: setattr(s, "obs_names", ["a"] * 16), {}, "not unique"),
    ],
)
def test_what_the_set_up_refuses(spoil, setup, message):
    slides, _ = cohort()
    if spoil:
        spoil(slides)
    with pytest.raises((ValueError, KeyError, TypeError), match=message):
        MIRROR.setup_anndata(slides, **KEYS | setup)


def test_slides_without_x():
    slides, tiles = cohort()
    bare = ad.AnnData(obs=slides.obs)
    with pytest.raises(ValueError, match="slides has no X, and no rna_key= says where else"):
        MIRROR.setup_anndata(bare, **KEYS)
    bare.obsm["X_pca"] = slides.X
    assert np.isfinite(np.delete(trained(bare, tiles, setup={"rna_key": "X_pca"}).codes().fused, 7, 0)).all()


def test_genes_of_a_mask():
    slides, tiles = cohort()
    slides.var["selected"] = np.arange(12) % 3 == 0
    model = trained(slides, tiles, setup={"mask_var": "selected"})
    assert model.n_features_["rna"] == 4
    codes = model.codes()
    slides.X[:, 1] += 100  # a gene that is not among them
    np.testing.assert_array_equal(model.codes().fused, codes.fused)


@pytest.mark.parametrize("sparse", [True, False])
def test_sparse_and_wide_numbers(sparse):
    from scipy.sparse import csr_matrix

    slides, tiles = cohort()
    slides.X = np.nan_to_num(slides.X).astype(np.float64)
    expected = weights(trained(slides.copy(), tiles))
    if sparse:
        slides.X = csr_matrix(slides.X)
    tiles.obsm["X_image"] = tiles.obsm["X_image"].astype(np.float64)
    assert torch.allclose(weights(trained(slides, tiles)), expected, atol=1e-6)


def test_genes_of_new_slides_are_found_by_name(tmp_path):
    slides, tiles = stfuse.datasets.synthetic_slides(24, n_genes=20, n_tiles=(2, 4), n_image_features=5, seed=2)
    slides.var["selected"] = np.arange(20) % 2 == 0
    MIRROR.setup_anndata(slides, slide_key="slide", mask_var="selected")
    model = MIRROR(slides, tiles, dim=8, n_prototypes=5)
    model.train(max_epochs=1, validation_fraction=0, progress=False)
    model.save(tmp_path / "model")
    expected = model.codes().fused
    mixed = slides[:, np.random.default_rng(0).permutation(20)].copy()
    mixed.var["selected"] = np.arange(20) < 10  # of other genes
    for asked in (model, MIRROR.load(tmp_path / "model")):
        np.testing.assert_allclose(asked.codes(mixed, tiles).fused, expected, atol=1e-6)
        with pytest.raises(ValueError, match="1 of the 10 genes .* 'gene0'"):
            asked.codes(slides[:, 1:].copy(), tiles)
    twice = mixed.copy()
    twice.var_names = ["gene0"] * 20
    with pytest.raises(ValueError, match="var_names_make_unique"):
        model.codes(twice, tiles)


def test_prototypes_are_of_unit_length_after_training():
    slides, tiles = stfuse.datasets.synthetic_slides(20, n_genes=20, n_tiles=(2, 4), n_image_features=5, seed=2)
    MIRROR.setup_anndata(slides, slide_key="slide")
    model = MIRROR(slides, tiles, dim=8, n_prototypes=5)
    model.train(max_epochs=3, validation_fraction=0, progress=False, lr=0.05)
    np.testing.assert_allclose(model.module.style.prototypes.weight.detach().norm(dim=1), 1, rtol=1e-5)


def test_sparse_rna_on_disk_is_read(tmp_path):
    slides, tiles = stfuse.datasets.synthetic_slides(20, n_genes=12, n_tiles=(2, 4), n_image_features=5, seed=2)
    slides.X = csr_matrix(slides.X)
    slides.write_h5ad(tmp_path / "slides.h5ad")
    genes = [read_genes(s, None, None)[0] for s in (slides, ad.read_h5ad(tmp_path / "slides.h5ad", backed="r"))]
    np.testing.assert_array_equal(*genes)
