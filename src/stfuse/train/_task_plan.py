"""Training on labelled slides: a class, or the hazard of each bin of time, from tiles and, where a network takes them, genes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stfuse.module.hazards import hazard_nll
from stfuse.train._bags import BagBatches
from stfuse.train._plans import Plan


class ClassTask(nn.Module):
    """Cross-entropy of the class of each slide (-1 = not known), each class with its weight."""

    labels: Tensor
    weights: Tensor

    def __init__(self, labels: Tensor, weights: Tensor) -> None:
        super().__init__()
        # buffers follow the module to its device
        self.register_buffer("labels", labels, persistent=False)
        self.register_buffer("weights", weights, persistent=False)

    def forward(self, logits: Tensor, slides: Tensor) -> tuple[Tensor, Tensor]:
        """Weighted loss of each slide, and its weight."""
        true = self.labels[slides]
        return F.cross_entropy(logits, true, self.weights, reduction="none"), self.weights[true]


class HazardTask(nn.Module):
    """Negative log-likelihood of the bin in which each slide's time ends, and of whether it ends with the event."""

    bins: Tensor
    event: Tensor

    def __init__(self, bins: Tensor, event: Tensor) -> None:
        super().__init__()
        self.register_buffer("bins", bins, persistent=False)
        self.register_buffer("event", event, persistent=False)

    def forward(self, logits: Tensor, slides: Tensor) -> tuple[Tensor, Tensor]:
        """Loss of each slide, and its weight, which is one."""
        losses = hazard_nll(logits, self.bins[slides], self.event[slides])
        return losses, torch.ones_like(losses)


@dataclass(frozen=True)
class TaskSettings:
    """Slides held out to stop on (there may be none), and how the network is trained."""

    held_out: Tensor
    seed: int
    lr: float
    weight_decay: float


class TaskPlan(Plan):
    """Mean loss of the slides of a batch. With ``genes`` (s x g) the module is given those of each slide beside its tiles."""

    score_name = "held_out_loss"
    batches: BagBatches | None

    def __init__(
        self, module: nn.Module, task: ClassTask | HazardTask, settings: TaskSettings, genes: Tensor | None = None
    ) -> None:
        super().__init__(module)
        self.task, self.settings, self.genes = task, settings, genes

    def on_fit_start(self) -> None:
        """Take genes to the device, with the tiles."""
        super().on_fit_start()
        if self.genes is not None:
            self.genes = self.genes.to(self.device)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW on everything."""
        s = self.settings
        return torch.optim.AdamW(self.module.parameters(), lr=s.lr, weight_decay=s.weight_decay)

    def _logits(self, batch: dict[str, Tensor]) -> Tensor:
        if self.batches is None:
            raise RuntimeError("A task plan is trained on bag batches.")
        tiles = self.batches.bags.take(batch["rows"])
        if self.genes is None:
            return self.module(tiles, batch["offsets"])
        return self.module(tiles, batch["offsets"], self.genes[batch["slides"]])

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """One step on a batch of slides."""
        losses, weights = self.task(self._logits(batch), batch["slides"])
        loss = losses.sum() / weights.sum()
        self.collect(loss=loss)
        return loss

    def watched(self) -> bool:
        """Tell whether slides are held out."""
        return self.settings.held_out.numel() > 0

    @torch.no_grad()
    def held_out(self) -> np.ndarray:
        """Weighted loss of each held-out slide, of mean the loss; the same tiles are drawn every time."""
        if self.batches is None:
            raise RuntimeError("A task plan is trained on bag batches.")
        was_training = self.module.training
        self.module.eval()
        logits, slides = [], self.settings.held_out
        for part in slides.split(self.batches.batch_size):
            logits.append(self._logits(self.batches.deal(part, self.settings.seed)))
        self.module.train(was_training)
        losses, weights = self.task(torch.cat(logits), slides.to(self.device))
        return (losses / weights.mean()).cpu().numpy()
