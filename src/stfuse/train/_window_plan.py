"""Training on windows: reconstruction and triplets of each view, and codes that do not tell the batches apart."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from stfuse.module.aestetik import WindowAutoencoder
from stfuse.module.losses import batch_discrepancy
from stfuse.module.triplets import draw_triplets, triplet_loss
from stfuse.module.windows import WindowData
from stfuse.train._plans import Plan


@dataclass(frozen=True)
class WindowTargets:
    """What training knows of each row beside its window: clusters in RNA and image (n x 2, -1 = none) and batch (n, or None)."""

    clusters: Tensor
    batch: Tensor | None

    def to(self, device: torch.device) -> WindowTargets:
        """Move everything to a device."""
        return WindowTargets(self.clusters.to(device), None if self.batch is None else self.batch.to(device))


class WindowBatches:
    """Shuffled rows of an epoch, dealt out in batches of nearly equal size, two rows at least; processes take turns."""

    def __init__(self, data: WindowData, targets: WindowTargets, rows: Tensor, batch_size: int, seed: int) -> None:
        self.data, self.targets, self.rows, self.seed = data, targets, rows, seed
        # a single row has no moments to be normalised by
        self.n_batches = max(1, min(-(-rows.numel() // batch_size), rows.numel() // 2))
        self.epoch, self.rank, self.world = 0, 0, 1

    def to(self, device: torch.device) -> None:
        """Move the data to a device."""
        self.data, self.targets, self.rows = self.data.to(device), self.targets.to(device), self.rows.to(device)

    def split(self, rank: int, world: int) -> None:
        """Take one process's share of each epoch."""
        self.rank, self.world = rank, world

    def __len__(self) -> int:
        return -(-self.n_batches // self.world)

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch * 7919)
        self.epoch += 1
        order = self.rows[torch.randperm(self.rows.numel(), generator=generator).to(self.rows.device)]
        parts = order.tensor_split(self.n_batches)
        for step in range(len(self) * self.world):
            if step % self.world == self.rank:
                yield {"rows": parts[step % self.n_batches]}


@dataclass(frozen=True)
class WindowSettings:
    """Weights of the losses and settings of the optimiser."""

    weight_rna: float
    weight_image: float
    loss: Literal["l1", "mse"] = "l1"
    n_repeats: int = 1
    lambda_batch: float = 0.0
    lr: float = 1e-3
    weight_decay: float = 1e-6


class WindowPlan(Plan):
    """Each window is encoded once in a step, and the triplets index the codes."""

    module: WindowAutoencoder
    batches: WindowBatches | None

    def __init__(self, module: WindowAutoencoder, settings: WindowSettings, seed: int) -> None:
        super().__init__(module)
        self.settings = settings
        self._generator = torch.Generator().manual_seed(seed)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam with the maximum of past moments, as published."""
        s = self.settings
        return torch.optim.Adam(self.module.parameters(), lr=s.lr, weight_decay=s.weight_decay, amsgrad=True)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """One step on a batch of rows."""
        if self.batches is None:
            raise RuntimeError("A window plan is trained on window batches.")
        rows, data, targets, s = batch["rows"], self.batches.data, self.batches.targets, self.settings
        windows = data.windows(rows)
        which = None if targets.batch is None else targets.batch[rows]
        code, rebuilt = self.module(windows, which)
        total = code.new_zeros(())
        seen: dict[str, Tensor] = {}
        columns = (slice(0, data.n_rna), slice(data.n_rna, None))
        for view, (name, weight) in enumerate((("rna", s.weight_rna), ("image", s.weight_image))):
            if not weight:
                continue
            wrong = reconstruction(
                rebuilt[..., columns[view]], windows[..., columns[view]], data.has[rows, view], s.loss
            )
            apart = triplet_loss(code, draw_triplets(targets.clusters[rows, view], s.n_repeats, self._generator))
            seen |= {f"reconstruction_{name}": wrong, f"triplet_{name}": apart}
            total = total + weight * (wrong + apart)
        if which is not None and s.lambda_batch:
            seen["batch"] = batch_discrepancy(code, which, self._generator)
            total = total + s.lambda_batch * seen["batch"]
        self.collect(**seen)
        return total


def reconstruction(rebuilt: Tensor, windows: Tensor, has: Tensor, loss: Literal["l1", "mse"]) -> Tensor:
    """Mean error of the windows of those rows that have the view."""
    error = F.l1_loss if loss == "l1" else F.mse_loss
    if bool(has.all()):
        return error(rebuilt, windows)
    return error(rebuilt[has], windows[has]) if bool(has.any()) else rebuilt.sum() * 0
