"""What a step of MIRROR minimises, beside a loop over slides."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from stfuse.module.losses import info_nce
from stfuse.module.mirror import Beside, Mirror
from stfuse.train._bags import BagBatches, Bags
from stfuse.train._fit import fit
from stfuse.train._mirror_plan import MirrorPlan, MirrorSettings, SlideRna, Weights

DIM, WIDTH, GENES = 16, 6, 5
SIZES = (9, 4, 0, 1, 12, 6, 0, 7)
NO_RNA = (1, 5)
PAIRED = (0, 3, 4)  # slide 7 has both views and may not be used as a pair
RATIO = 0.6


def first_rows(offsets, ratio, generator=None):
    """Hide the first rows of each slide, and no others."""
    sizes = offsets.diff()
    place = torch.cat([torch.arange(n) for n in sizes.tolist()])
    return place < torch.repeat_interleave((sizes * ratio).long(), sizes)


def first_entries(code, ratio):
    return (torch.arange(code.shape[1]) < int(code.shape[1] * ratio)).expand_as(code)


@pytest.fixture
def no_chance(monkeypatch):
    monkeypatch.setattr("stfuse.module.mirror.mask_within", first_rows)
    monkeypatch.setattr("stfuse.module.mirror.hide_entries", first_entries)
    monkeypatch.setattr(torch, "randn_like", torch.zeros_like)


def a_plan(encoder="abmil", detach=True, weights=Weights(), held_out=(), warmup=None):
    rng = np.random.default_rng(0)
    slide = rng.permutation(np.repeat(np.arange(len(SIZES)), SIZES))
    tiles = torch.from_numpy(rng.normal(size=(slide.size, WIDTH)).astype(np.float32))
    genes = torch.from_numpy(rng.normal(size=(len(SIZES), GENES)).astype(np.float32))
    has = torch.ones(len(SIZES), dtype=torch.bool)
    has[list(NO_RNA)] = False
    genes[~has] = torch.nan
    paired = torch.zeros(len(SIZES), dtype=torch.bool)
    paired[list(PAIRED)] = True
    torch.manual_seed(0)
    module = Mirror(WIDTH, GENES, slide_encoder=encoder, dim=DIM, n_prototypes=12, n_positions=12).eval()
    for part, rows in ((module.slides, tiles), (module.genes, genes[has])):
        part.fit_moments(rows)
        if isinstance(start := getattr(part, "project" if part is module.slides else "encode"), Beside):
            start.fit(part.standard(rows), 0)
    settings = MirrorSettings(weights, RATIO, detach, 1e-3, 0.0, warmup, 0)
    rna = SlideRna(genes, has, paired, torch.tensor(held_out, dtype=torch.int64))
    plan = MirrorPlan(module, rna, settings)
    bags = Bags.make(tiles, slide, len(SIZES))
    plan.batches = BagBatches(bags, torch.arange(len(SIZES)), 4, None, seed=0)
    return plan, [tiles[slide == i] for i in range(len(SIZES))]


def by_hand(plan, tiles, slides):
    """Losses of a batch, one slide after another."""
    module, rna = plan.module, plan.rna
    codes, styles, found = {"image": {}, "rna": {}}, {"image": {}, "rna": {}}, {}
    errors, entries = [], []
    for i in slides:
        n = tiles[i].shape[0]
        if n:
            whole = torch.tensor([0, n])
            code, tokens, _ = module.encode_tiles(tiles[i], whole)
            hidden = torch.arange(n) < int(n * RATIO)
            told = module.retain_image(code, tokens, hidden, whole)
            errors += [(tokens[j] - told[j]).square().mean() for j in hidden.nonzero()[:, 0]]
            codes["image"][i] = code
        if rna.has[i]:
            code = codes["rna"][i] = module.genes(rna.genes[i : i + 1])
            hidden = first_entries(code, RATIO)
            entries.append((code - module.retain_rna(code, hidden))[hidden].square().mean())
    for view, own in codes.items():
        for i, code in own.items():
            hidden = module.style.net(code)
            mean, log_variance = module.style.mean(hidden), module.style.log_variance(hidden)
            told = torch.distributions.Normal(mean, (0.5 * log_variance).exp())
            divergence = torch.distributions.kl_divergence(told, torch.distributions.Normal(0.0, 1.0)).sum()
            chance = (module.style.prototypes.weight @ module.style.decode(mean)[0]).softmax(0)
            styles[view][i] = divergence, chance
    if errors:
        found["retain_image"] = sum(errors) / len(errors)
    if entries:
        found["retain_rna"] = sum(entries) / len(entries)
    found["style"] = sum(sum(d for d, _ in own.values()) / len(own) for own in styles.values() if own)
    pairs = [i for i in slides if i in PAIRED]
    if len(pairs) > 1:
        a, b = (
            torch.cat([module.align[view](F.normalize(codes[view][i], dim=1)) for i in pairs])
            for view in ("image", "rna")
        )
        found["align"] = info_nce(a, b, module.log_scale)
        apart = [
            0.5 * ((p * (p / q).log()).sum() + (q * (q / p).log()).sum())
            for p, q in ((styles["image"][i][1], styles["rna"][i][1]) for i in pairs)
        ]
        found["cluster"] = sum(apart) / len(apart)
    return found


@pytest.mark.parametrize("encoder", ["abmil", "transmil"])
@pytest.mark.parametrize(
    "slides",
    [
        [4, 1, 2, 0, 3, 5, 6, 7],  # everything, in disorder
        [0, 1, 4],  # pairs, and one slide without RNA
        [7, 2, 0, 4],  # both views that are no pair among pairs
        [1, 5],  # tiles only
        [6, 2],  # RNA only
        [1, 2, 7, 0],  # one pair: nothing to tell it from
    ],
)
@torch.no_grad()
def test_losses_of_a_batch_by_hand(encoder, slides, no_chance):
    plan, tiles = a_plan(encoder)
    found = plan._losses(plan.batches.deal(torch.tensor(slides), 0))
    expected = by_hand(plan, tiles, slides)
    assert found.keys() == expected.keys()
    assert ("align" in found) == (len(set(slides) & set(PAIRED)) > 1)
    for name, value in expected.items():
        assert float(found[name]) == pytest.approx(float(value), rel=1e-4), name


@torch.no_grad()
def test_a_step_adds_them_up_by_their_weights(no_chance):
    weights = Weights(0.3, 2.0, 0.0, 0.7, 1.1)
    plan, _ = a_plan(weights=weights)
    batch = plan.batches.deal(torch.arange(8), 0)
    plan.module.style.prototypes.weight.mul_(3)  # brought back to unit length before the step
    total = plan.training_step(batch, 0)
    losses = plan._losses(batch)
    assert float(total) == pytest.approx(sum(w * float(losses[n]) for n, w in weights._asdict().items()), rel=1e-5)
    np.testing.assert_allclose(plan.module.style.prototypes.weight.norm(dim=1), 1, rtol=1e-5)
    # the published weights
    assert tuple(Weights()) == (0.5, 0.15, 0.15, 0.1, 0.1)


def test_missing_rna_never_reaches_a_weight(no_chance):
    plan, _ = a_plan()
    plan.training_step(plan.batches.deal(torch.arange(8), 0), 0).backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in plan.module.parameters())


@pytest.mark.parametrize("encoder", ["abmil", "transmil"])
def test_every_weight_learns_from_a_batch_of_all_kinds(encoder):
    plan, _ = a_plan(encoder)
    plan.training_step(plan.batches.deal(torch.arange(8), 0), 0).backward()
    silent = {name for name, p in plan.module.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0}
    assert silent == set()


def test_what_is_undone_by_detach(no_chance):
    """With both weights of retention alone, encoders learn from the targets only where these are not detached."""
    only = Weights(0, 1, 1, 0, 0)
    gradients = {}
    for detach in (True, False):
        plan, _ = a_plan(detach=detach, weights=only)
        plan.training_step(plan.batches.deal(torch.arange(8), 0), 0).backward()
        gradients[detach] = torch.cat([p.grad.flatten() for p in plan.module.slides.parameters()])
    assert not torch.allclose(gradients[True], gradients[False])


@torch.no_grad()
def test_held_out_slides_are_ranked_among_each_other_and_pairs():
    plan, tiles = a_plan(held_out=(7, 3))
    plan.rna.paired[3] = False
    found = plan.held_out()
    others = [7, 3, 0, 4]
    code = {
        "image": torch.cat([plan.module.encode_tiles(tiles[i], torch.tensor([0, SIZES[i]]))[0] for i in others]),
        "rna": plan.module.genes(plan.rna.genes[others]),
    }
    shared = {view: plan.module.shared(view, c).double().numpy() for view, c in code.items()}
    for k in range(2):
        score = 0
        for a, b in (("image", "rna"), ("rna", "image")):
            distance = np.square(shared[a][k] - shared[b]).sum(1)
            score += np.log((distance < distance[k]).sum() / 4 + 0.01) / 2
        assert found[k] == pytest.approx(score), k
    assert plan.watched() and not plan.module.training
    np.testing.assert_array_equal(plan.held_out(), found)  # the same tiles every time


def test_a_training_of_any_slides(no_chance):
    """Batches without pairs leave out what takes pairs; the epoch's record holds the mean of the others."""
    plan, _ = a_plan(warmup=0.1)
    history, keep = fit(plan, max_epochs=3, batches=plan.batches, device="cpu", patience=2, progress=False)
    assert keep is None and set(history) == {"align", "retain_image", "retain_rna", "style", "cluster"}
    assert len(history) == 3 and history["retain_image"].notna().all() and history["style"].notna().all()


def test_the_rate_is_constant_or_rises_and_falls():
    from lightning.pytorch.callbacks import Callback

    class Watch(Callback):
        def __init__(self):
            self.rates = []

        def on_train_batch_start(self, trainer, plan, batch, batch_idx):
            self.rates.append(trainer.optimizers[0].param_groups[0]["lr"])

    rates = {}
    for warmup in (None, 0.25):
        plan, _ = a_plan(warmup=warmup)
        watch = Watch()
        fit(
            plan,
            max_epochs=8,
            batches=plan.batches,
            device="cpu",
            progress=False,
            trainer_kwargs={"callbacks": [watch]},
        )
        rates[warmup] = np.array(watch.rates)
    assert len(rates[None]) == 16 and (rates[None] == 1e-3).all()
    rising = rates[0.25]
    assert rising[0] < 0.5e-3 and rising.argmax() in (3, 4) and rising.max() == pytest.approx(1e-3, rel=0.1)
    assert (np.diff(rising[5:]) < 0).all() and rising[-1] < 2e-4
