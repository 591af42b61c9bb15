"""UMPIRE on features: objectives, adapters, what is refused."""

import inspect
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import stfuse
from stfuse.datasets import synthetic_tissue
from stfuse.metrics import recall_at_percent
from stfuse.model import UMPIRE
from stfuse.model._context import with_neighbors
from stfuse.model._linear_start import LinearStart, targets_of
from stfuse.model._training import split_pairs, split_tissue, tensors_of, verdict
from stfuse.module.linear_start import linear_maps
from stfuse.module.losses import MAX_LOG_SCALE
from stfuse.module.umpire import OBJECTIVES, Adapter
from stfuse.train._plans import JointPlan

TRAIN = set(inspect.signature(UMPIRE.train).parameters) | {"callbacks"}


def fit(adata, paired_key=None, **params):
    train = {"progress": False} | {k: params.pop(k) for k in TRAIN & set(params)}
    UMPIRE.setup_anndata(adata, paired_key=paired_key)
    model = UMPIRE(adata, **({"embed_dim": 16} | params))
    model.train(**train)
    return model


@pytest.fixture(scope="module")
def small():
    return synthetic_tissue(150, n_genes=60, n_image_features=24)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_every_objective_finds_partners_it_has_not_seen(objective, two_views):
    adata = two_views(700)
    train, test = adata[:500].copy(), adata[500:].copy()
    model = fit(train, objective=objective, embed_dim=32, lr=3e-3, max_epochs=15)
    codes = model.codes(test)
    assert recall_at_percent(codes.image, codes.rna) > 0.2  # by chance 0.05
    assert recall_at_percent(codes.rna, codes.image) > 0.2
    for code in (codes.image, codes.rna):
        assert code.shape == (200, 32)
        np.testing.assert_allclose(np.linalg.norm(code, axis=1), 1, atol=1e-5)
    loss = model.history[objective.replace("-", "_")]
    assert loss.iloc[-1, 0] < loss.iloc[0, 0]
    assert (model.module.log_scale is None) == (objective in ("one-sided", "reconstruction"))


def test_the_image_learns_from_reconstruction_alone(small):
    """What the RNA code learns moves no weight of the image."""
    model = fit(small.copy(), objective="reconstruction", max_epochs=3, validation_fraction=0.0, context=False)
    assert {"reconstruction", "alignment"} == set(model.history)
    module = model.module.train()
    module.zero_grad()
    plan = JointPlan(module, None, 0, 1e-3, 0.0, objective="reconstruction")
    t = {v: torch.randn(9, d) for v, d in model.n_features_.items()}
    found = plan._reconstruction(t, {v: module.encode(v, t[v]) for v in t})
    found["alignment"].backward(retain_graph=True)
    assert all(p.grad is None or not p.grad.any() for n, p in module.named_parameters() if ".rna" not in n)
    assert module.projections["rna"].weight.grad.abs().sum() > 0
    module.zero_grad()
    found["reconstruction"].backward()
    assert module.projections["image"].weight.grad.abs().sum() > 0
    assert all(p.grad is None or not p.grad.any() for n, p in module.named_parameters() if ".rna" in n)


def test_an_adapter_is_the_formula():
    torch.manual_seed(0)
    adapter, x = Adapter(5, 3, 0.2), torch.randn(7, 5)
    down, up = adapter.down.weight.detach().numpy(), adapter.up.weight.detach().numpy()
    hidden = np.maximum(x.numpy() @ down.T, 0)
    expected = 0.8 * x.numpy() + 0.2 * np.maximum(hidden @ up.T, 0)
    np.testing.assert_allclose(adapter(x).detach().numpy(), expected, atol=1e-6)
    assert adapter.down.bias is None and adapter.up.bias is None


def test_adapters_of_no_weight_are_none(two_views):
    adata = two_views(150)
    bent = fit(adata, mode="adapter", adapter_weight=0.0, max_epochs=4)
    plain = fit(adata, mode="linear", max_epochs=4)
    np.testing.assert_allclose(bent.codes().fused, plain.codes().fused, atol=1e-6)
    other = fit(adata, mode="adapter", adapter_weight=0.5, max_epochs=4)
    assert not np.allclose(other.codes().fused, plain.codes().fused, atol=1e-2)
    assert not len(plain.module.adapters) and set(bent.module.adapters) == {"image", "rna"}


def test_the_temperature_is_learnt_from_where_it_starts(two_views):
    adata = two_views(100)
    model = fit(adata, temperature=0.5, max_epochs=3, validation_fraction=0.0)
    assert model.module.log_scale.item() != pytest.approx(np.log(2), abs=1e-6)
    assert model.module.log_scale.item() == pytest.approx(np.log(2), abs=0.1)
    # the smallest that may be asked for is where the clamp is
    assert np.log(1 / 0.01) == pytest.approx(MAX_LOG_SCALE, abs=1e-3)
    with pytest.raises(ValueError, match="temperature must be a number of at least 0.01"):
        UMPIRE(adata, temperature=0.001)


def test_missing_views(two_views):
    adata = two_views(200)
    adata.obsm["X_image"][:10] = np.nan
    adata.obsm["X_pca"][5:20] = np.nan
    codes = fit(adata, max_epochs=2).codes()
    assert np.isnan(codes.image[:10]).all() and np.isfinite(codes.image[10:]).all()
    assert np.isnan(codes.rna[5:20]).all() and np.isfinite(codes.rna[20:]).all()
    np.testing.assert_array_equal(codes.fused[:5], np.hstack([codes.rna, codes.rna])[:5])
    np.testing.assert_array_equal(codes.fused[10:20], np.hstack([codes.image, codes.image])[10:20])
    np.testing.assert_array_equal(codes.fused[20:], np.hstack([codes.image, codes.rna])[20:])
    assert np.isnan(codes.fused[5:10]).all()


def test_it_sees_pairs_only(two_views):
    adata = two_views(300)
    adata.obs["known"] = np.arange(300) < 200
    other = adata.copy()
    other.obsm["X_image"][200:] = other.obsm["X_image"][200:][::-1]
    one = fit(adata, "known", max_epochs=3, validation_fraction=0.0).module.state_dict()
    two = fit(other, "known", max_epochs=3, validation_fraction=0.0).module.state_dict()
    for name in one:
        np.testing.assert_allclose(one[name], two[name], atol=1e-5, err_msg=name)


def test_where_it_starts(small):
    """Before any training the codes are those of the linear maps, whatever adapters lie between."""
    model = fit(small.copy(), lr=1e-12, max_epochs=1, embed_dim=70, validation_fraction=0.0)
    views = with_neighbors(model._views(None))
    start = LinearStart.of(views, True, 0)
    maps = linear_maps(*start._inputs(), np.arange(150), start._widths(), start.penalty, 0)
    codes = model.codes()
    for view in ("image", "rna"):
        code = maps[view](getattr(views, view))
        cosine = (code / np.linalg.norm(code, axis=1)[:, None] * getattr(codes, view)[:, : code.shape[1]]).sum(1)
        assert np.percentile(cosine, 5) > 0.98  # what is left is room for training
    assert model.report_["penalty"] == start.penalty
    narrow = fit(small.copy(), lr=1e-12, max_epochs=1, embed_dim=5, validation_fraction=0.0)
    np.testing.assert_allclose(
        *(m[:, :5] / np.linalg.norm(m[:, :5], axis=1)[:, None] for m in (maps["rna"](views.rna), narrow.codes().rna)),
        atol=0.05,
    )


def test_training_has_to_beat_the_start(small, monkeypatch):
    """Where it does not, the start on all pairs is the result; where it does, the best epoch."""
    start = fit(small.copy(), lr=1e-12, max_epochs=1, validation_fraction=0.0).codes()
    monkeypatch.setattr("stfuse.model._alignment.verdict", lambda *_: 0)
    np.testing.assert_allclose(fit(small.copy(), max_epochs=3).codes().fused, start.fused, atol=1e-4)
    monkeypatch.setattr("stfuse.model._alignment.verdict", lambda *_: 1)
    assert not np.allclose(fit(small.copy(), max_epochs=3).codes().fused, start.fused, atol=1e-2)
    random = fit(small.copy(), init="random", max_epochs=3)
    assert "penalty" not in random.report_ and "held_out_rank" in random.history
    assert not np.allclose(random.codes().fused, start.fused, atol=1e-2)


def test_neighbours_are_read_beside_each_observation(small):
    adata = small.copy()
    model = fit(adata, max_epochs=1)
    assert model.module.projections["image"].in_features == 2 * adata.obsm["X_image"].shape[1]
    codes = model.codes()
    moved = adata.copy()
    moved.obsm["spatial"] = moved.obsm["spatial"][::-1].copy()
    assert not np.allclose(model.codes(moved).image, codes.image, atol=1e-3)
    bare = adata.copy()
    del bare.obsm["spatial"]
    with pytest.raises(ValueError, match=r"needs obsm\['spatial'\].*or train with context=False"):
        model.codes(bare)
    assert fit(bare, max_epochs=1).module.projections["image"].in_features == adata.obsm["X_image"].shape[1]
    alone = fit(adata.copy(), max_epochs=1, context=False)
    np.testing.assert_allclose(alone.codes(moved).image, alone.codes().image, atol=1e-6)
    only = adata.copy()
    del only.obsm["X_pca"]
    np.testing.assert_allclose(model.codes(only).image, codes.image, atol=1e-6)


BAD = {
    "init": ({"init": "pca"}, ValueError, "init must be one of 'linear', 'random', got 'pca'"),
    "context": ({"context": "no"}, TypeError, "context must be True or False"),
    "mode": ({"mode": "lora"}, ValueError, "mode must be one of 'adapter', 'linear', 'finetune', got 'lora'"),
    "objective": ({"objective": "l1"}, ValueError, "objective must be one of 'contrastive', 'reconstruction'"),
    "embed_dim": ({"embed_dim": 0}, ValueError, "embed_dim must be a whole number of at least 1"),
    "adapter_dim": ({"adapter_dim": 0}, ValueError, "adapter_dim must be a whole number of at least 1"),
    "adapter_weight": ({"adapter_weight": 1.5}, ValueError, "adapter_weight must be a number between 0 and 1"),
    "temperature": ({"temperature": 0.0}, ValueError, "temperature must be a number of at least 0.01"),
    "warmup": ({"warmup": 2.0}, ValueError, "warmup must be a number between 0 and 1"),
    "no encoders": ({"mode": "finetune"}, ValueError, "trains encoders end to end and got none: pass image_encoder="),
    "no module": ({"mode": "finetune", "image_encoder": "uni"}, TypeError, "image_encoder must be a torch.nn.Module"),
    "encoder": (
        {"gene_encoder": torch.nn.Linear(2, 2)},
        ValueError,
        "gene_encoder= is for mode='finetune'; mode='adapter'",
    ),
    "tokens": ({"tokens_key": "tokens"}, KeyError, r"No obsm\['tokens'\] with gene tokens.*Call stfuse.pp.rank_tokens"),
    "features": (
        {"mode": "finetune", "image_encoder": torch.nn.Linear(2, 2)},
        ValueError,
        r"image_encoder= needs crops \(observations x channels x height x width\).*holds features, 24 an",
    ),
    "no tokens": (
        {"mode": "finetune", "gene_encoder": torch.nn.Embedding(4, 2)},
        ValueError,
        "gene_encoder= needs gene tokens: call stfuse.pp.rank_tokens",
    ),
    "both": (
        {"mode": "finetune", "gene_encoder": torch.nn.Embedding(4, 2), "objective": "reconstruction"},
        ValueError,
        "objective='reconstruction' predicts the features",
    ),
}


@pytest.mark.parametrize(("kwargs", "error", "words"), BAD.values(), ids=BAD)
def test_bad_arguments_change_nothing(kwargs, error, words, small, contents):
    adata = small.copy()
    before = contents(adata)
    with pytest.raises(error, match=words):
        stfuse.tl.umpire(adata, max_epochs=1, progress=False, **kwargs)
    np.testing.assert_equal(contents(adata), before)


def test_blocks_of_tissue_are_held_out(small):
    views = fit(small.copy(), max_epochs=1)._views(None)
    pairs, held_out, piece = split_tissue(views, 0.2, 0)
    assert sorted(np.bincount(piece)) == [5] * 6
    np.testing.assert_array_equal(np.union1d(pairs, held_out), np.arange(150))
    assert held_out.size == 30 and not np.intersect1d(pairs, held_out).size
    # each piece is the pairs nearest to one place
    for code in np.unique(piece):
        inside = views.spatial[held_out[piece == code]]
        assert np.ptp(inside, axis=0).max() < 0.4 * np.ptp(views.spatial, axis=0).max()
    for nothing in (0.0, 0.2):
        bare = replace(views, spatial=None)
        some = split_tissue(bare, nothing, 0)
        np.testing.assert_array_equal(some[1], split_pairs(bare.paired, nothing, 0)[1])


def test_held_out_pairs_are_scored_by_what_is_predicted(small):
    """Literal: the targets' mean over the nearest training pairs, by the sum of both codes."""
    model = fit(small.copy(), max_epochs=1, context=False)
    views = model._views(None)
    targets = targets_of(views, False)
    pairs, held_out = np.arange(100), np.arange(100, 150)
    image, rna = torch.from_numpy(views.image), torch.from_numpy(views.rna)
    plan = JointPlan(model.module, tensors_of(image, rna, views, pairs, held_out), 0, 1e-3, 0.0, targets=targets)
    found = plan.held_out()
    codes = model.codes()
    pool = (codes.image + codes.rna)[:100]
    expected = []
    for i in range(100, 150):
        cosine = pool @ codes.image[i] / np.linalg.norm(pool, axis=1)
        near = np.argsort(-cosine)[:33]
        weight = np.clip(cosine[near], 1e-6, None)
        expected.append(((targets[i] - weight @ targets[near] / weight.sum()) ** 2).sum())
    floor = ((targets[100:] - targets[:100].mean(0)) ** 2).sum(1).mean()
    np.testing.assert_allclose(found, np.array(expected) / floor, rtol=1e-3)
    assert "held_out_error" in model.history


def test_a_tiny_section_changes_nothing_for_the_others(small):
    views = fit(small.copy(), max_epochs=1)._views(None)
    section = views.section.copy()
    section[:3] = 1
    pairs, held_out, piece = split_tissue(replace(views, section=section, sections=["a", "b"]), 0.3, 0)
    np.testing.assert_array_equal(np.union1d(pairs, held_out), np.arange(150))
    assert held_out.size == pytest.approx(45, abs=1)
    assert len(np.unique(piece[held_out > 2])) == 3


def test_the_verdict_counts_pieces():
    keep = SimpleNamespace(
        state={}, start=np.array([2.0, 2, 2, 2, 3, 3]), best=np.array([1.0, 1, 1, 1, 2.8, 2.6]), best_epoch=4
    )
    report = {}
    assert verdict(keep, report) == 4  # of six observations
    # pieces gain 1, 1 and .3: .767 with a standard error of .233
    assert verdict(keep, report, np.array([0, 0, 1, 1, 2, 2])) == 4
    assert report["held_out_gain"] == pytest.approx(2.3 / 3) and report["held_out_gain_se"] == pytest.approx(0.7 / 3)
    assert verdict(keep, report, np.array([0, 0, 0, 0, 1, 1])) == 0
    assert verdict(keep, report, np.zeros(6, int)) == 0  # one piece says nothing


def test_too_few_pairs_to_judge_leave_the_start(two_views):
    adata = two_views(40)
    model = fit(adata, max_epochs=5)
    start = fit(adata, lr=1e-12, max_epochs=1, validation_fraction=0.0)
    np.testing.assert_allclose(model.codes().fused, start.codes().fused, atol=1e-5)
    assert not model.history
    blind = fit(adata, max_epochs=5, validation_fraction=0.0)
    assert len(blind.history["contrastive"]) == 5
    assert not np.allclose(blind.codes().fused, start.codes().fused, atol=1e-2)
