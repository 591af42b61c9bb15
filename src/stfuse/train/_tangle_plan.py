"""Contrastive training on slides and their RNA, and nothing else."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from stfuse.module.tangle import Tangle
from stfuse.train._bags import BagBatches
from stfuse.train._plans import Plan


class TanglePlan(Plan):
    """Contrastive loss of the slides of a batch, each a pair of tiles and genes (s x g)."""

    module: Tangle
    batches: BagBatches | None

    def __init__(self, module: Tangle, genes: Tensor, lr: float, weight_decay: float, warmup: float) -> None:
        super().__init__(module)
        self.genes, self.lr, self.weight_decay, self.warmup = genes, lr, weight_decay, warmup

    def on_fit_start(self) -> None:
        """Take genes to the device, with the tiles."""
        super().on_fit_start()
        self.genes = self.genes.to(self.device)

    def configure_optimizers(self) -> Any:
        """AdamW, warmed up and then lowered as a cosine."""
        return self.warmed_up(self.lr, self.weight_decay, self.warmup)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """One step on a batch of slides."""
        if self.batches is None:
            raise RuntimeError("A TANGLE plan is trained on bag batches.")
        image, _ = self.module.slides(self.batches.bags.take(batch["rows"]), batch["offsets"])
        loss = self.module.loss(self.of_all(image), self.of_all(self.module.genes(self.genes[batch["slides"]])))
        self.collect(loss=loss)
        return loss
