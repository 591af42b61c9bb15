"""Training on a graph in space: blocks of observations with all that reaches them, and hidden values to predict."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.sparse import csr_matrix
from torch import Tensor

from stfuse.module.gat import GraphAttention, Hop
from stfuse.train._plans import Plan

PATCH = 256  # observations that lie together and are trained on together
SCORED = 128  # held-out observations at a time: they lie apart, so each brings its own neighbours


@dataclass(frozen=True)
class ExpressionGraph:
    """Expression of n observations and who their neighbours are.

    ``values`` are log-normalised, ``counts`` those of the same genes (None where no loss needs them); both stay sparse and on
    the host. ``neighbors`` (n x k) holds row numbers, -1 where there is no neighbour. ``order`` lists rows so that those near in
    it lie near in space.
    """

    values: csr_matrix
    counts: csr_matrix | None
    neighbors: np.ndarray
    order: np.ndarray

    def block(self, rows: np.ndarray, n_layers: int) -> tuple[np.ndarray, list[Hop]]:
        """All rows from which something reaches ``rows`` in ``n_layers`` hops, ``rows`` first, and these hops."""
        place = np.full(len(self.neighbors), -1)
        place[rows] = np.arange(len(rows))
        nodes, hops = rows, []
        for _ in range(n_layers):
            near = self.neighbors[nodes]
            there = near >= 0
            found = near[there]
            fresh = np.unique(found[place[found] < 0])
            place[fresh] = np.arange(len(nodes), len(nodes) + len(fresh))
            own = np.arange(len(nodes))
            edges = np.stack([np.r_[own, place[found]], np.r_[own, np.nonzero(there)[0]]])
            hops.append(Hop(torch.from_numpy(edges), len(nodes)))
            nodes = np.r_[nodes, fresh]
        return nodes, hops[::-1]

    def batch(self, rows: np.ndarray, n_layers: int) -> dict[str, Any]:
        """The block of ``rows`` as tensors: only its rows are made dense."""
        nodes, hops = self.block(rows, n_layers)
        batch: dict[str, Any] = {"values": torch.from_numpy(self.values[nodes].toarray()), "hops": hops}
        if self.counts is not None:
            batch["counts"] = torch.from_numpy(self.counts[rows].toarray())
        return batch


def compact_order(spatial: np.ndarray, section: np.ndarray) -> np.ndarray:
    """Rows section by section, along a Z-order curve: those that follow each other lie near each other."""
    code = np.zeros(len(section), dtype=np.uint64)
    for name in np.unique(section):
        rows = section == name
        low, high = spatial[rows].min(axis=0), spatial[rows].max(axis=0)
        # one scale for both axes, so that patches of a long section are not long
        grid = ((spatial[rows] - low) / max((high - low).max(), 1e-12) * 0xFFFF).astype(np.uint64)
        code[rows] = _spread_bits(grid[:, 0]) | (_spread_bits(grid[:, 1]) << np.uint64(1))
    return np.lexsort((spatial[:, 1], spatial[:, 0], code, section))


def _spread_bits(x: np.ndarray) -> np.ndarray:
    """Put a zero between the bits of 16-bit numbers."""
    for shift, mask in ((8, 0x00FF00FF), (4, 0x0F0F0F0F), (2, 0x33333333), (1, 0x55555555)):
        x = (x | (x << np.uint64(shift))) & np.uint64(mask)
    return x


class PatchBatches:
    """Blocks of an epoch: compact patches, cut anew each time, shuffled and dealt out; processes take turns."""

    def __init__(self, graph: ExpressionGraph, held_out: np.ndarray, batch_size: int, n_layers: int, seed: int) -> None:
        self.graph, self.n_layers, self.seed = graph, n_layers, seed
        kept = np.ones(len(graph.order), dtype=bool)
        kept[held_out] = False
        self.rows = graph.order[kept[graph.order]]
        self.n_batches = max(1, -(-len(self.rows) // batch_size))
        self.patch = min(PATCH, batch_size)
        self.epoch, self.rank, self.world = 0, 0, 1

    def to(self, device: torch.device) -> None:
        """Nothing lies on the device: blocks are sent there one by one."""

    def split(self, rank: int, world: int) -> None:
        """Take one process's share of each epoch."""
        self.rank, self.world = rank, world

    def __len__(self) -> int:
        return -(-self.n_batches // self.world)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        rng = np.random.default_rng([self.seed, self.epoch])
        self.epoch += 1
        cuts = np.arange(rng.integers(1, self.patch + 1), len(self.rows), self.patch)
        patches = np.split(self.rows, cuts)
        rows = np.concatenate([patches[i] for i in rng.permutation(len(patches))])
        parts = np.array_split(rows, self.n_batches)
        for step in range(len(self) * self.world):
            if step % self.world == self.rank:
                yield self.graph.batch(parts[step % self.n_batches], self.n_layers)


@dataclass(frozen=True)
class MaskSettings:
    """How much is hidden, and settings of the optimiser."""

    fraction: float = 0.4
    lr: float = 1e-3
    weight_decay: float = 0.0


class GraphPlan(Plan):
    """Hide values everywhere in a block and predict those of its own rows from what is left."""

    module: GraphAttention
    score_name = "held_out_masked"

    def __init__(
        self, module: GraphAttention, graph: ExpressionGraph, held_out: np.ndarray, settings: MaskSettings, seed: int
    ) -> None:
        super().__init__(module)
        self.graph, self.rows, self.settings, self.seed = graph, held_out, settings, seed

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW; without decay it is Adam."""
        return torch.optim.AdamW(self.module.parameters(), lr=self.settings.lr, weight_decay=self.settings.weight_decay)

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """One step on a block."""
        values = batch["values"]
        hidden = torch.rand(values.shape, device=values.device) < self.settings.fraction
        loss = self._errors(batch, hidden).mean()
        self.collect(masked=loss)
        return loss

    def _errors(self, batch: dict[str, Any], hidden: Tensor) -> Tensor:
        values, hops = batch["values"], batch["hops"]
        codes = self.module.encode(values, hops, hidden)
        n = len(codes)
        return self.module.errors(codes, values[:n], batch.get("counts"), hidden[:n])

    def watched(self) -> bool:
        """Tell whether observations are held out."""
        return len(self.rows) > 0

    @torch.no_grad()
    def held_out(self) -> np.ndarray:
        """Mean error of each held-out observation at values that are hidden, the same ones each time."""
        was_training = self.module.training
        self.module.eval()
        generator = torch.Generator().manual_seed(self.seed)
        scores = np.concatenate([self._score(part, generator) for part in self._parts()])
        self.module.train(was_training)
        return scores

    def _parts(self) -> list[np.ndarray]:
        return np.array_split(self.rows, -(-len(self.rows) // SCORED))

    def _score(self, rows: np.ndarray, generator: torch.Generator) -> np.ndarray:
        batch = self.graph.batch(rows, len(self.module.layers))
        hidden = torch.rand(batch["values"].shape, generator=generator) < self.settings.fraction
        batch = self.transfer_batch_to_device(batch, self.device, 0)
        errors = self._errors(batch, hidden.to(self.device)).double()
        of = hidden[: len(rows)].nonzero()[:, 0].to(errors.device)
        sums = errors.new_zeros(len(rows)).index_add(0, of, errors)
        return (sums / hidden[: len(rows)].sum(dim=1).clamp(min=1).to(errors.device)).cpu().numpy()
