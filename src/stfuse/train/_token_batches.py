"""Batches of gene tokens of like length, and training by guessing hidden genes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from stfuse._tokens import PAD
from stfuse.module.visiumformer import Visiumformer, hide, masked_loss
from stfuse.train._plans import Plan, warm_cosine

BUCKET = 32  # rows whose lengths differ by less are dealt together


class TokenBatches:
    """Shuffled rows of an epoch, dealt out in batches of like length and cut to their longest, so that little padding is read.

    ``tokens`` is n x length, padding at the end, every row with a gene at least. Rows are shuffled within classes of length,
    and the batches among each other. Processes take turns.
    """

    def __init__(self, tokens: Tensor, batch_size: int, seed: int) -> None:
        self.tokens, self.batch_size, self.seed = tokens, batch_size, seed
        self.lengths = torch.count_nonzero(tokens != PAD, dim=1).cpu()
        self.n_batches = -(-len(tokens) // batch_size)
        self.epoch, self.rank, self.world = 0, 0, 1

    def to(self, device: torch.device) -> None:
        """Move the tokens to a device."""
        self.tokens = self.tokens.to(device)

    def split(self, rank: int, world: int) -> None:
        """Take one process's share of each epoch."""
        self.rank, self.world = rank, world

    def __len__(self) -> int:
        return -(-self.n_batches // self.world)

    def deal(self) -> list[tuple[Tensor, int]]:
        """Rows of each batch of the next epoch, and the length of the longest."""
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch * 7919)
        self.epoch += 1
        order = torch.randperm(len(self.tokens), generator=generator)
        order = order[torch.sort(self.lengths[order] // BUCKET, stable=True).indices]
        parts = order.tensor_split(self.n_batches)
        turn = torch.randperm(self.n_batches, generator=generator)
        return [(parts[i], int(self.lengths[parts[i]].max())) for i in turn]

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        hands = self.deal()
        for step in range(len(self) * self.world):
            if step % self.world == self.rank:
                rows, longest = hands[step % self.n_batches]
                yield {"tokens": self.tokens[rows.to(self.tokens.device), :longest]}


@dataclass(frozen=True)
class MaskedSettings:
    """Settings of masked training."""

    n_vocabulary: int
    mask_fraction: float = 0.15
    lr: float = 1e-3
    weight_decay: float = 0.1
    warmup: float = 0.1
    compiled: bool = False


class MaskedPlan(Plan):
    """Hidden genes are guessed from the others."""

    module: Visiumformer

    def __init__(self, module: Visiumformer, settings: MaskedSettings, seed: int) -> None:
        super().__init__(module)
        self.settings, self.seed = settings, seed
        self._hidden: Callable[[Tensor], Tensor] = module.hidden
        self._generator = torch.Generator()

    def on_fit_start(self) -> None:
        """Draw where the tokens are, each process for itself."""
        super().on_fit_start()
        self._generator = torch.Generator(self.device).manual_seed(self.seed + 7919 * self.trainer.global_rank)
        if self.settings.compiled:
            # lengths differ from batch to batch
            self._hidden = torch.compile(self.module.hidden, dynamic=True)

    def configure_optimizers(self) -> Any:
        """AdamW, warmed up and then lowered as a cosine."""
        s, total = self.settings, int(self.trainer.estimated_stepping_batches)
        optimizer = torch.optim.AdamW(self.module.parameters(), lr=s.lr, weight_decay=s.weight_decay)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: warm_cosine(step, total, s.warmup))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """One step on a batch of tokens."""
        tokens, s = batch["tokens"], self.settings
        changed, chosen = hide(tokens, s.n_vocabulary, s.mask_fraction, self._generator)
        loss = masked_loss(self.module, self._hidden(changed), tokens, chosen)
        self.collect(loss=loss)
        return loss
