"""CAMEO: the published model to the letter, and the default that stands on the linear anchor."""

import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import Callback

import stfuse
from stfuse.datasets import synthetic_tissue
from stfuse.metrics import recall_at_percent
from stfuse.model import CAMEO, PCCA
from stfuse.module.cameo import AnchoredTranslator, PublishedTranslator


def fit(adata, cls=CAMEO, keys=None, train=None, **params):
    cls.setup_anndata(adata, **(keys or {}))
    model = cls(adata, **params)
    model.train(**({"progress": False} if cls is CAMEO else {}), **(train or {}))
    return model


def tissue(n=300, **kwargs):
    return synthetic_tissue(n, **({"n_genes": 40, "n_image_features": 16, "seed": 1} | kwargs))


def error_against_mean(truth, guess, mean):
    return ((truth - guess) ** 2).sum() / ((truth - mean) ** 2).sum()


class Critics(Callback):
    """Look at the critics after every step."""

    def __init__(self):
        self.linear, self.gain = [], []

    def on_train_batch_end(self, trainer, module, *args):
        for critic in module.module.critics.values():
            layers = (critic.first, critic.last)
            self.linear.append(max(float(p.detach().abs().max()) for layer in layers for p in layer.parameters()))
            if hasattr(critic.norm, "weight"):
                self.gain.append(float(critic.norm.weight.detach().min()))


# -- as published ----------------------------------------------------------------------------------------------------


def test_published_codes_and_widths():
    adata = tissue(missing_image=0.1, missing_rna=0.1)
    model = fit(adata, faithful=True, train={"max_epochs": 2})
    assert isinstance(model.module, PublishedTranslator)
    codes = model.codes()
    width = 16 // 4  # the narrower view has 16 features
    assert codes.image.shape == codes.rna.shape == (300, width)
    assert codes.private_image is None and codes.private_rna is None
    both = (adata.obs["has_image"] & adata.obs["has_rna"]).to_numpy()
    np.testing.assert_array_equal(codes.fused[both], np.hstack([codes.image, codes.rna])[both])
    # a view that is missing is translated, and the translation is coded
    filled = adata.copy()
    for source, target, key in (("image", "rna", "X_pca"), ("rna", "image", "X_image")):
        missing = np.isnan(adata.obsm[key]).any(1)
        filled.obsm[key][missing] = model.translate(source=source, target=target)[missing]
    again = model.codes(filled)
    np.testing.assert_allclose(codes.fused, np.hstack([again.image, again.rna]), atol=1e-4)


def test_published_training_clips_linear_weights_only():
    watch = Critics()
    fit(tissue(), faithful=True, train={"max_epochs": 2, "lr_critic": 1e-3, "callbacks": [watch]})
    assert max(watch.linear) <= 0.01 and len(watch.gain) == len(watch.linear) > 0
    assert min(watch.gain) > 0.5  # a gain of 0.01 would blind the critic


@pytest.mark.parametrize("faithful", [True, False])
@pytest.mark.parametrize("critic", ["wgan", "wgan-gp", "gan"])
def test_kinds_of_critic(faithful, critic):
    watch = Critics()
    train = {"max_epochs": 2, "critic": critic, "n_critic": 2, "callbacks": [watch]}
    model = fit(tissue(), faithful=faithful, train=train)
    history = {name: frame.iloc[:, 0] for name, frame in model.history.items()}
    assert {"critic", "cycle", "adversarial", "held_out_rank"} <= set(history)
    assert all(np.isfinite(column).all() and len(column) == 2 for column in history.values())
    assert (max(watch.linear) <= 0.01) == (critic == "wgan")
    assert np.isfinite(model.codes().fused).all()


@pytest.mark.parametrize("n_critic", [1, 3])
def test_the_translators_move_once_in_n_critic_steps(n_critic):
    moved, previous = [], []

    class Watch(Callback):
        def on_train_batch_end(self, trainer, module, *args):
            now = [p.detach().clone() for p in module.module.generator_parameters()]
            moved.append(bool(previous) and any(not torch.equal(a, b) for a, b in zip(previous, now, strict=True)))
            previous[:] = now

    train = {"max_epochs": 3, "n_critic": n_critic, "callbacks": [Watch()], "validation_fraction": 0.0}
    fit(tissue(), faithful=True, train=train)
    assert moved[1:] == [(i + 1) % n_critic == 0 for i in range(1, len(moved))]


def test_published_without_any_pair():
    adata = tissue(missing_image=0.5, missing_rna=0.5)
    model = fit(adata, faithful=True, train={"max_epochs": 3})
    assert "align" not in model.history and np.isfinite(model.codes().fused).all()
    with pytest.raises(ValueError, match="CAMEO needs at least 2.*faithful=True"):
        fit(adata)


def test_published_training_brings_pairs_together(two_views):
    """On held-out pairs, after as many epochs as it takes to see something."""
    adata = two_views(600)
    train, test = adata[:450].copy(), adata[450:].copy()
    codes = fit(train, faithful=True, train={"max_epochs": 40, "lr": 1e-3, "n_critic": 1}).codes(test)
    assert recall_at_percent(codes.image, codes.rna) > 0.12  # by chance 0.05


# -- on the anchor ---------------------------------------------------------------------------------------------------

SAME = ("fused", "image", "rna", "private_image", "private_rna")


def assert_the_anchor(model, adata, **params):
    pcca = fit(adata.copy(), PCCA, **params)
    for name in SAME:
        np.testing.assert_allclose(getattr(model.codes(), name), getattr(pcca.codes(), name), atol=2e-5, err_msg=name)
    for source, target in (("image", "rna"), ("rna", "image")):
        ours = model.translate(source=source, target=target)
        np.testing.assert_allclose(ours, pcca.translate(source=source, target=target), atol=1e-3)


def test_no_epochs_is_the_anchor():
    adata = tissue(missing_image=0.1, missing_rna=0.1)
    model = fit(adata.copy(), train={"max_epochs": 0})
    assert isinstance(model.module, AnchoredTranslator) and model.report_["epochs_kept"] == 0
    assert_the_anchor(model, adata)


def test_training_that_does_not_help_leaves_the_anchor():
    """Absurd learning rates ruin every network; the result is the start all the same."""
    adata = tissue()
    model = fit(adata.copy(), train={"max_epochs": 3, "lr": 10.0})
    assert model.report_["epochs_kept"] == 0
    assert len(model.history["held_out_rank"]) == 3  # it did train, and the history tells
    assert_the_anchor(model, adata)


def test_too_few_pairs_to_judge_leave_the_anchor():
    adata = tissue()
    adata.obs["known"] = np.arange(300) < 49
    keys = {"paired_key": "known"}
    model = fit(adata.copy(), keys=keys, train={"max_epochs": 3})
    assert model.report_["epochs_kept"] == 0 and not model.history
    assert_the_anchor(model, adata, keys=keys)


def test_what_the_network_learns_is_kept_where_it_helps():
    """A relation that no line follows: squares. The anchor finds nothing there, the network does."""
    rng = np.random.default_rng(0)
    n = 700
    adata = tissue(n)
    hidden = rng.normal(size=(n, 3))
    turn = [np.linalg.qr(rng.normal(size=(6, 6)))[0] for _ in range(2)]
    image = np.hstack([hidden, 0.3 * rng.normal(size=(n, 3))]) @ turn[0]
    rna = np.hstack([hidden**2 - 1, 0.3 * rng.normal(size=(n, 3))]) @ turn[1]
    adata.obsm["X_image"], adata.obsm["X_pca"] = image.astype("f4"), rna.astype("f4")
    train, test = adata[: n - 200].copy(), adata[n - 200 :].copy()
    plain = {"context": False, "matching": False}
    model = fit(train, train={"max_epochs": 20}, dropout=0.0, **plain)
    assert model.report_["epochs_kept"] > 0
    assert model.report_["held_out_gain"] > 3 * model.report_["held_out_gain_se"]
    ours, anchor = model.codes(test), fit(train.copy(), PCCA, **plain).codes(test)
    assert recall_at_percent(ours.image, ours.rna) > recall_at_percent(anchor.image, anchor.rna) + 0.15
    # squares follow from the values, not the other way round
    truth, mean = test.obsm["X_pca"], train.obsm["X_pca"].mean(0)
    assert error_against_mean(truth, model.translate(test, source="image", target="rna"), mean) < 0.7


@pytest.mark.parametrize("opened", [False, True], ids=["start", "network"])
@pytest.mark.parametrize("view", ["image", "rna"])
def test_a_missing_view_is_its_translation_in_the_fused_code(view, opened, monkeypatch):
    if opened:
        monkeypatch.setattr("stfuse.model._cameo.verdict", lambda *_: 2)
    adata = tissue()
    key, other = ("X_image", "rna") if view == "image" else ("X_pca", "image")
    adata.obsm[key][:50] = np.nan
    model = fit(adata, scale=False, train={"max_epochs": 2})
    filled = adata.copy()
    filled.obsm[key][:50] = model.translate(source=other, target=view)[:50]
    np.testing.assert_allclose(model.codes(filled).fused, model.codes().fused, atol=1e-3)


def test_translation_predicts_better_than_the_mean():
    """The published model does not promise this: none of its losses asks for the features of the partner."""
    adata = synthetic_tissue(900, seed=1)
    train, test = adata[::2].copy(), adata[1::2].copy()
    model = fit(train, train={"max_epochs": 3})
    for source, target, key in (("image", "rna", "X_pca"), ("rna", "image", "X_image")):
        guess = model.translate(test, source=source, target=target)
        assert error_against_mean(test.obsm[key], guess, train.obsm[key].mean(0)) < 0.9


def test_the_fused_code_of_the_network_is_that_of_the_anchor_where_both_views_are(monkeypatch):
    """Distances between complete observations stay those of the balanced components."""
    monkeypatch.setattr("stfuse.model._cameo.verdict", lambda *_: 2)
    adata = tissue()
    model = fit(adata.copy(), train={"max_epochs": 2})
    pcca = fit(adata.copy(), PCCA)
    assert np.abs(model.codes().image - pcca.codes().image).max() > 1e-2  # the network did move
    np.testing.assert_allclose(model.codes().fused, pcca.codes().fused, atol=1e-5)


@pytest.mark.parametrize("private_dim", [0, 2])
def test_private_dim(private_dim):
    model = fit(tissue(), private_dim=private_dim, train={"max_epochs": 1})
    codes, k = model.codes(), model.module.anchor.sizes.n_shared
    assert codes.fused.shape[1] == 2 * k + 2 * private_dim
    assert (codes.private_rna is None) == (private_dim == 0)


def test_interrupt_and_a_second_training():
    class Interrupt(Callback):
        def on_train_batch_end(self, *args):
            raise KeyboardInterrupt

    adata = tissue()
    CAMEO.setup_anndata(adata)
    model = CAMEO(adata)
    with pytest.raises(KeyboardInterrupt):
        model.train(max_epochs=2, progress=False, callbacks=[Interrupt()])
    with pytest.raises(RuntimeError, match="not trained yet"):
        model.codes()
    model.train(max_epochs=2, progress=False)
    first = model.codes().fused
    model.train(max_epochs=2, progress=False)
    np.testing.assert_array_equal(model.codes().fused, first)
    model.train(max_epochs=0, progress=False)
    assert "held_out_gain" not in model.report_  # nothing of the earlier training


@pytest.mark.parametrize(
    ("params", "words"),
    [
        ({"faithful": True, "private_dim": 2}, "published CAMEO has no private codes"),
        ({"private_dim": -1}, "private_dim must be"),
        ({"dropout": 1.0}, "dropout must be below 1"),
        ({"n_hidden": 0}, "n_hidden must be a whole number of at least 1"),
        ({"n_components": 0}, "n_components must be a whole number of at least 1"),
    ],
)
def test_bad_parameters(params, words):
    adata = tissue(60)
    CAMEO.setup_anndata(adata)
    with pytest.raises(ValueError, match=words):
        CAMEO(adata, **params)


@pytest.mark.parametrize(
    ("faithful", "train", "words"),
    [
        (True, {"max_epochs": 0}, "which the published network .* lacks"),
        (True, {"lambda_contrastive": 1.0}, "lambda_contrastive belongs to the anchored network"),
        (False, {"critic": "lsgan"}, "critic must be one of 'wgan', 'wgan-gp', 'gan', got 'lsgan'"),
        (False, {"lr": 0.0}, "lr must be a number above 0"),
        (True, {"lr_critic": float("nan")}, "lr_critic must be a number above 0"),
        (False, {"weight_decay": -0.1}, "weight_decay must be a number of at least 0"),
        (
            False,
            {f"lambda_{name}": 0.0 for name in ("cycle", "adversarial", "align", "contrastive", "translation")},
            "nothing is left to train on",
        ),
    ],
)
def test_bad_training(faithful, train, words):
    adata = tissue(60)
    CAMEO.setup_anndata(adata)
    with pytest.raises(ValueError, match=words):
        CAMEO(adata, faithful=faithful).train(**train)


def test_seeds():
    adata = tissue()
    one, same, other = (fit(adata, faithful=True, train={"max_epochs": 2, "seed": s}).codes().fused for s in (0, 0, 1))
    np.testing.assert_array_equal(one, same)
    assert not np.array_equal(one, other)
    stfuse.tl.cameo(adata, faithful=True, max_epochs=2, seed=1)
    np.testing.assert_array_equal(adata.obsm["X_cameo"], other)
