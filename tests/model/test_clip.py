"""CLIP: what its codes look like, what it learns, and when it stops."""

import numpy as np
import pytest
from lightning.pytorch.callbacks import Callback

from stfuse.metrics import recall_at_percent, retrieval_ranks
from stfuse.model import CLIP


def fit(adata, paired_key=None, max_epochs=None, **params):
    train = {k: params.pop(k) for k in ("seed", "callbacks", "validation_fraction", "patience") if k in params}
    CLIP.setup_anndata(adata, paired_key=paired_key)
    model = CLIP(adata, **params)
    model.train(max_epochs=max_epochs, progress=False, **train)
    return model


def test_codes(two_views):
    adata = two_views(200)
    adata.obsm["X_image"][:10] = np.nan
    adata.obsm["X_pca"][5:20] = np.nan
    codes = fit(adata, max_epochs=2, n_latent=6).codes()
    both = np.arange(200) >= 20
    for code in (codes.image, codes.rna):
        has = ~np.isnan(code).any(1)
        np.testing.assert_allclose(np.linalg.norm(code[has], axis=1), 1, atol=1e-5)
    np.testing.assert_array_equal(codes.fused[both], np.hstack([codes.image, codes.rna])[both])
    # a missing half takes the other view's code
    np.testing.assert_array_equal(codes.fused[:5], np.hstack([codes.rna, codes.rna])[:5])
    np.testing.assert_array_equal(codes.fused[10:20], np.hstack([codes.image, codes.image])[10:20])
    assert np.isnan(codes.fused[5:10]).all()
    assert codes.private_image is None and codes.private_rna is None


def test_it_finds_partners_it_has_not_seen(two_views):
    adata = two_views(700)
    train, test = adata[:500].copy(), adata[500:].copy()
    model = fit(train, max_epochs=20)
    codes = model.codes(test)
    assert recall_at_percent(codes.image, codes.rna) > 0.25  # by chance 0.05
    assert np.median(retrieval_ranks(codes.image, codes.rna)) < 40  # by chance 100
    assert model.history["contrastive"].iloc[-1, 0] < model.history["contrastive"].iloc[0, 0]


def test_it_sees_pairs_only(two_views):
    """Other features in the rows that are no pairs, with the same moments, change no weight."""
    adata = two_views(300)
    adata.obs["known"] = np.arange(300) < 200
    other = adata.copy()
    other.obsm["X_image"][200:] = other.obsm["X_image"][200:][::-1]
    # held-out pairs are ranked among unpaired rows too: without them nothing is left of those rows
    one = fit(adata, "known", 3, validation_fraction=0.0).module.state_dict()
    two = fit(other, "known", 3, validation_fraction=0.0).module.state_dict()
    assert one.keys() == two.keys()
    for name in one:
        np.testing.assert_allclose(one[name], two[name], atol=1e-5, err_msg=name)


def test_the_best_epoch_on_held_out_pairs_is_kept(two_views):
    weights = []

    class Watch(Callback):
        def on_train_epoch_end(self, trainer, module):
            weights.append({k: v.clone() for k, v in module.module.state_dict().items()})

    model = fit(two_views(80, noise=1.5), max_epochs=100, patience=5, callbacks=[Watch()])
    score = model.history["held_out_rank"].iloc[:, 0]
    best = int(score.to_numpy().argmin())
    assert len(score) == best + 6 < 100  # patience
    for name, value in model.module.state_dict().items():
        np.testing.assert_array_equal(value, weights[best][name])


def test_few_pairs(two_views):
    adata = two_views(50)
    adata.obs["known"] = np.arange(50) < 4
    assert "held_out_rank" not in fit(adata, "known", 2).history
    assert len(fit(adata, "known").history["contrastive"]) == 20
    adata.obs["known"] = np.arange(50) < 3
    with pytest.raises(ValueError, match="CLIP needs at least 4"):
        fit(adata, "known")


def test_an_interrupt_leaves_the_model_untrained(two_views):
    class Interrupt(Callback):
        def on_train_batch_end(self, *args):
            raise KeyboardInterrupt

    adata = two_views(80)
    CLIP.setup_anndata(adata)
    model = CLIP(adata)
    with pytest.raises(KeyboardInterrupt):
        model.train(max_epochs=2, progress=False, callbacks=[Interrupt()])
    with pytest.raises(RuntimeError, match="not trained yet"):
        model.codes()
    model.train(max_epochs=1, progress=False)
    assert np.isfinite(model.codes().fused).all()


@pytest.mark.parametrize("params", [{"n_latent": 0}, {"n_hidden": 0}])
def test_bad_parameters(two_views, params):
    adata = two_views(50)
    CLIP.setup_anndata(adata)
    with pytest.raises(ValueError, match="must be a whole number of at least 1"):
        CLIP(adata, **params)


def test_seeds(two_views):
    adata = two_views(100)
    one, same, other = (fit(adata, max_epochs=2, seed=s).codes().fused for s in (0, 0, 1))
    np.testing.assert_array_equal(one, same)
    assert not np.array_equal(one, other)
