"""Training on tiles and the graphs of their cells: one contrastive loss a scale."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from stfuse.module.pcca import rank_score
from stfuse.module.sigmma import Sigmma
from stfuse.train._batches import StepBatches
from stfuse.train._plans import Plan, warm_cosine
from stfuse.train._tile_graphs import TileGraphs

POOL = 1_000  # tiles among which a held-out one looks for its partner
TILES = 64  # coded at once


class SigmmaPlan(Plan):
    """Contrastive losses of all scales, summed; the losses of several devices are one loss of all their tiles."""

    module: Sigmma
    score_name = "held_out_rank"

    def __init__(
        self,
        module: Sigmma,
        data: TileGraphs,
        names: Sequence[str],
        seed: int,
        lr: float,
        weight_decay: float,
        warmup: float,
    ) -> None:
        super().__init__(module)
        self.data, self.names, self.seed = data, names, seed
        self.lr, self.weight_decay, self.warmup = lr, weight_decay, warmup
        # an encoder may have a head that its codes do not pass through; without a graph no map of neighbours is used
        self.some_rest = module.image_encoder is not None or not module.cells.graph

    def on_fit_start(self) -> None:
        """Take the data to the device with the batches that index them."""
        super().on_fit_start()
        if isinstance(self.batches, StepBatches):
            self.data = cast("TileGraphs", self.batches.data)

    def configure_optimizers(self) -> Any:
        """AdamW, with a learning rate that rises and falls as a cosine."""
        optimizer = torch.optim.AdamW(self.module.parameters(), lr=self.lr, weight_decay=self.weight_decay)
        total = int(self.trainer.estimated_stepping_batches)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: warm_cosine(step, total, self.warmup))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """One step on a batch of tiles."""
        image, rna = self.codes(batch["pairs"])
        losses = self.module.losses([self.of_all(c) for c in image], [self.of_all(c) for c in rna])
        self.collect(**dict(zip(self.names, losses, strict=True)))
        return torch.stack(losses).sum()

    def codes(self, tiles: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Codes of some tiles at each scale, of the image and of the cells."""
        features, graph = self.data.take(tiles)
        return self.module.encode_image(self.data.image[tiles]), self.module.encode_rna(features, graph)[0]

    def watched(self) -> bool:
        """Tell whether tiles are held out."""
        return self.data.held_out.numel() > 0

    @torch.no_grad()
    def held_out(self) -> Any:
        """Retrieval score of each held-out tile, lower is better: log of the fraction of tiles nearer than its partner."""
        was_training = self.module.training
        self.module.eval()
        rows, others = self.data.held_out, self.data.pairs.cpu()
        order = torch.randperm(others.numel(), generator=torch.Generator().manual_seed(self.seed))
        every = torch.cat([rows, others[order[:POOL]]])
        parts = [self.codes(some.to(self.device)) for some in every.split(TILES)]
        image, rna = (_side_by_side([part[view] for part in parts]) for view in (0, 1))
        self.module.train(was_training)
        n = rows.numel()
        own = np.arange(n)
        return 0.5 * (rank_score(image[:n], rna, own) + rank_score(rna[:n], image, own))


def _side_by_side(parts: Sequence[Sequence[Tensor]]) -> np.ndarray:
    """Codes of unit length of all scales, for cosines that are means over scales."""
    scales = [torch.cat(codes) for codes in zip(*parts, strict=True)]
    unit = torch.cat([F.normalize(codes, dim=1) for codes in scales], dim=1)
    return unit.double().cpu().numpy()
