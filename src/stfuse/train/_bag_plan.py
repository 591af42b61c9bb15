"""Training on bags: the label of a slide from its tiles."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from stfuse.module.abmil import ABMIL
from stfuse.train._bags import BagBatches
from stfuse.train._plans import Plan


@dataclass(frozen=True)
class BagTargets:
    """Class of each slide (-1 = not known), weight of each class, and the slides held out for validation."""

    labels: Tensor
    weights: Tensor
    held_out: Tensor


class BagPlan(Plan):
    """Weighted cross-entropy of the slides of a batch."""

    module: ABMIL
    score_name = "held_out_loss"
    batches: BagBatches | None
    labels: Tensor
    weights: Tensor

    def __init__(self, module: ABMIL, targets: BagTargets, seed: int, lr: float, weight_decay: float) -> None:
        super().__init__(module)
        self.held_out_slides, self.seed, self.lr, self.weight_decay = targets.held_out, seed, lr, weight_decay
        # buffers follow the module to its device
        self.register_buffer("labels", targets.labels, persistent=False)
        self.register_buffer("weights", targets.weights, persistent=False)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW on everything."""
        return torch.optim.AdamW(self.module.parameters(), lr=self.lr, weight_decay=self.weight_decay)

    def _logits(self, batch: dict[str, Tensor]) -> Tensor:
        if self.batches is None:
            raise RuntimeError("A bag plan is trained on bag batches.")
        return self.module(self.batches.bags.take(batch["rows"]), batch["offsets"])

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """One step on a batch of slides."""
        loss = F.cross_entropy(self._logits(batch), self.labels[batch["slides"]], self.weights)
        self.collect(loss=loss)
        return loss

    def watched(self) -> bool:
        """Tell whether slides are held out."""
        return self.held_out_slides.numel() > 0

    @torch.no_grad()
    def held_out(self) -> np.ndarray:
        """Weighted cross-entropy of each held-out slide, of mean the loss; the same tiles are drawn every time."""
        if self.batches is None:
            raise RuntimeError("A bag plan is trained on bag batches.")
        was_training = self.module.training
        self.module.eval()
        logits, slides = [], self.held_out_slides
        for part in slides.split(self.batches.batch_size):
            logits.append(self._logits(self.batches.deal(part, self.seed)))
        self.module.train(was_training)
        true = self.labels[slides.to(self.labels.device)]
        losses = F.cross_entropy(torch.cat(logits), true, self.weights, reduction="none")
        return (losses / self.weights[true].mean()).cpu().numpy()
