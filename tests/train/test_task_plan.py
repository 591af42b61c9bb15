"""What labelled slides cost a network."""

import torch
import torch.nn.functional as F

from stfuse.module.abmil import ABMIL
from stfuse.module.bilinear import Bilinear
from stfuse.module.hazards import hazard_nll
from stfuse.train._bags import BagBatches, Bags
from stfuse.train._task_plan import ClassTask, HazardTask, TaskPlan, TaskSettings


def bags(n=5):
    torch.manual_seed(0)
    sizes = torch.tensor([2, 1, 4, 3, 2])[:n]
    offsets = torch.cat([torch.zeros(1, dtype=torch.long), sizes.cumsum(0)])
    return Bags(torch.randn(int(offsets[-1]), 6), torch.arange(int(offsets[-1])), offsets)


def plan_of(module, task, held_out, genes=None):
    plan = TaskPlan(module, task, TaskSettings(torch.tensor(held_out), 0, 1e-3, 0.0), genes)
    plan.batches = BagBatches(bags(), torch.arange(3), 2, None, 0)
    return plan


def test_loss_of_classes_is_the_weighted_mean():
    labels, weights = torch.tensor([0, 1, 1, 0, 2]), torch.tensor([0.5, 2.0, 1.0])
    module = ABMIL(6, 3, n_hidden=4, n_attention=2).eval()
    plan = plan_of(module, ClassTask(labels, weights), [3, 4])
    batch = plan.batches.deal(torch.tensor([0, 2, 4]), 0)
    logits = module(plan.batches.bags.take(batch["rows"]), batch["offsets"])
    expected = F.cross_entropy(logits, labels[[0, 2, 4]], weights)
    torch.testing.assert_close(plan.training_step(batch, 0), expected)
    held = torch.cat([module(plan.batches.bags.take(b["rows"]), b["offsets"]) for b in [plan.batches.deal(torch.tensor([3, 4]), 0)]])  # fmt: skip
    told = F.cross_entropy(held, labels[[3, 4]], weights).item()
    assert abs(plan.held_out().mean() - told) < 1e-6 and plan.watched()


def test_loss_of_survival_is_the_likelihood_of_hazards_and_genes_go_with_their_slides():
    bins, event, genes = torch.tensor([0, 1, 2, 1, 0]), torch.tensor([1, 0, 1, 1, 0]).bool(), torch.randn(5, 4)
    module = Bilinear(6, 4, 3, n_hidden=4, n_attention=2, n_gated=2).eval()
    plan = plan_of(module, HazardTask(bins, event), [], genes)
    some = torch.tensor([3, 1])
    batch = plan.batches.deal(some, 0)
    logits = module(plan.batches.bags.take(batch["rows"]), batch["offsets"], genes[some])
    torch.testing.assert_close(plan.training_step(batch, 0), hazard_nll(logits, bins[some], event[some]).mean())
    assert not plan.watched()
