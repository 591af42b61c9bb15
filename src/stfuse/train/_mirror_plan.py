"""Training on slides and RNA: what pairs have in common, and what each view has to keep."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from stfuse.module.mirror import Mirror
from stfuse.module.pcca import rank_score
from stfuse.module.style import cluster_loss, style_loss
from stfuse.train._bags import BagBatches
from stfuse.train._plans import Plan, warm_cosine

POOL = 100  # slides among which a held-out one looks for its partner, where not more are held out: to code many takes an epoch's time


class Weights(NamedTuple):
    """Weights of the losses."""

    align: float = 0.5
    retain_image: float = 0.15
    retain_rna: float = 0.15
    style: float = 0.1
    cluster: float = 0.1


@dataclass(frozen=True)
class MirrorSettings:
    """How a MIRROR is trained; ``warmup`` = None keeps the learning rate as it is."""

    weights: Weights
    mask_ratio: float
    detach: bool
    lr: float
    weight_decay: float
    warmup: float | None
    seed: int


@dataclass(frozen=True)
class SlideRna:
    """RNA of s slides (rows of missing ones are never indexed), who has any, and which are trained as pairs or held out."""

    genes: Tensor
    has: Tensor
    paired: Tensor
    held_out: Tensor

    def to(self, device: torch.device) -> SlideRna:
        """Move the genes to a device; the rest is asked for on the CPU."""
        return SlideRna(self.genes.to(device), self.has, self.paired, self.held_out)


class MirrorPlan(Plan):
    """Weighted sum of alignment (pairs), retention and style (whatever is there) and agreement on prototypes (pairs)."""

    module: Mirror
    score_name = "held_out_rank"
    batches: BagBatches | None
    some_rest = True  # a batch may be without tiles, without RNA, or without pairs

    def __init__(self, module: Mirror, rna: SlideRna, settings: MirrorSettings) -> None:
        super().__init__(module)
        self.rna, self.settings = rna, settings

    def on_fit_start(self) -> None:
        """Take genes to the device, with the tiles."""
        super().on_fit_start()
        self.rna = self.rna.to(self.device)

    def configure_optimizers(self) -> Any:
        """AdamW (Adam where nothing decays), at a constant rate or one that rises and falls as a cosine."""
        s = self.settings
        optimizer = torch.optim.AdamW(self.module.parameters(), lr=s.lr, weight_decay=s.weight_decay)
        if s.warmup is None:
            return optimizer
        total, warmup = int(self.trainer.estimated_stepping_batches), s.warmup
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: warm_cosine(step, total, warmup))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor | None:
        """One step on a batch of slides."""
        self.module.style.normalize()
        parts = self._losses(batch)
        weights = self.settings.weights._asdict()
        self.collect(**parts)
        return torch.stack([weights[name] * value for name, value in parts.items()]).sum()

    def _losses(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        s, module = self.settings, self.module
        slides, offsets = batch["slides"].cpu(), batch["offsets"]
        sizes = offsets.diff()
        losses: dict[str, Tensor] = {}
        styles = {}
        # places in the batch of slides that have tiles, and that have RNA
        place = {"image": sizes.nonzero()[:, 0], "rna": self.rna.has[slides].nonzero()[:, 0]}
        code: dict[str, Tensor] = {}
        if place["image"].numel():
            tight = torch.cat([offsets[:1], offsets[1:][sizes > 0]])
            of_slides, tokens, _ = module.encode_tiles(self._tiles(batch["rows"]), tight)
            code["image"] = of_slides
            losses["retain_image"] = module.retain_tiles(of_slides, tokens, tight, s.mask_ratio, s.detach)
        if place["rna"].numel():
            code["rna"] = module.genes(self._genes(slides[place["rna"]]))
            losses["retain_rna"] = module.retain_genes(code["rna"], s.mask_ratio, s.detach)
        for view, codes in code.items():
            styles[view] = module.style(codes)
        losses["style"] = torch.stack([style_loss(mean, log_var) for mean, log_var, _ in styles.values()]).sum()
        pairs = self._pairs(slides, place)
        if pairs is not None and pairs["image"].numel() > 1:
            losses["align"] = module.alignment_loss(*(code[view].index_select(0, pairs[view]) for view in pairs))
            likeness = [styles[view][2].index_select(0, pairs[view]) for view in pairs]
            losses["cluster"] = cluster_loss(likeness[0], likeness[1])
        return losses

    def _pairs(self, slides: Tensor, place: dict[str, Tensor]) -> dict[str, Tensor] | None:
        """Rows of both codes that are trained as pairs."""
        paired = self.rna.paired[slides]
        if not bool(paired.any()):
            return None
        row = {
            view: torch.full((slides.numel(),), -1).index_put((at.cpu(),), torch.arange(at.numel()))
            for view, at in place.items()
        }
        return {view: rows[paired].to(self.device) for view, rows in row.items()}

    def _tiles(self, rows: Tensor) -> Tensor:
        if self.batches is None:
            raise RuntimeError("A MIRROR plan is trained on bag batches.")
        return self.batches.bags.take(rows)

    def _genes(self, slides: Tensor) -> Tensor:
        return self.rna.genes.index_select(0, slides.to(self.rna.genes.device)).float()

    def watched(self) -> bool:
        """Tell whether slides are held out."""
        return self.rna.held_out.numel() > 0

    @torch.no_grad()
    def held_out(self) -> Any:
        """Retrieval score of each held-out slide among these and others; the same tiles are drawn every time."""
        if self.batches is None:
            raise RuntimeError("A MIRROR plan is trained on bag batches.")
        was_training = self.module.training
        self.module.eval()
        pairs = self.rna.paired.nonzero()[:, 0]
        order = torch.randperm(pairs.numel(), generator=torch.Generator().manual_seed(self.settings.seed))
        held_out = self.rna.held_out
        slides = torch.cat([held_out, pairs[order[: max(POOL - held_out.numel(), 0)]]])
        image, rna = [], []
        for part in slides.split(self.batches.batch_size):
            batch = self.batches.deal(part, self.settings.seed)
            code, _, _ = self.module.encode_tiles(self._tiles(batch["rows"]), batch["offsets"])
            image.append(self.module.shared("image", code))
            rna.append(self.module.shared("rna", self.module.genes(self._genes(part))))
        self.module.train(was_training)
        a, b = (torch.cat(parts).double().cpu().numpy() for parts in (image, rna))
        n = held_out.numel()
        own = torch.arange(n).numpy()
        return 0.5 * (rank_score(a[:n], b, own) + rank_score(b[:n], a, own))
