"""Networks that MIRROR is compared with, trained on some slides of a cohort and asked about others."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np
import torch
from torch import Tensor

from stfuse._check import check_number
from stfuse.model._slide_views import SlideViews
from stfuse.model._tile_bags import encode_bags, moment_tiles
from stfuse.model._training import check_training
from stfuse.module.abmil import ABMIL, SlideEncoder
from stfuse.module.bilinear import Bilinear
from stfuse.module.tangle import Tangle
from stfuse.train._bags import BagBatches, Bags
from stfuse.train._fit import fit
from stfuse.train._tangle_plan import TanglePlan
from stfuse.train._task_plan import ClassTask, HazardTask, TaskPlan, TaskSettings

PART = 65_536  # tiles in memory at once
CODED = 1_024  # slides whose genes are


@dataclass(frozen=True)
class Training:
    """How a network is trained; tiles of a slide are drawn anew in each step."""

    n_tiles: int | None = 2048
    max_epochs: int = 40
    batch_size: int = 8
    lr: float = 1e-3
    weight_decay: float = 1e-2

    def check(self) -> None:
        """Refuse what no training can do."""
        for name, value in asdict(self).items():
            if isinstance(getattr(type(self), name, None), int) or name == "n_tiles":
                check_number(name, value, least=1, whole=True, optional=name == "n_tiles")
        check_training(0.0, None, weight_decay=self.weight_decay, lr=self.lr)


@dataclass(frozen=True)
class AbmilSettings(Training):
    """Widths and training of attention over tiles with a head; ``patience`` holds where slides are held out to stop on."""

    n_hidden: int = 256
    n_attention: int = 128
    dropout: float = 0.25
    patience: int = 10

    def check(self) -> None:
        """Refuse what makes no network."""
        super().check()
        check_number("dropout", self.dropout, least=0, most=0.95)


@dataclass(frozen=True)
class BilinearSettings(AbmilSettings):
    """The same of the bilinear network, with the number of features of each view that are multiplied."""

    lr: float = 2e-4
    n_gated: int = 32


@dataclass(frozen=True)
class TangleSettings(Training):
    """Widths and training of TANGLE; of all steps the first ``warmup`` raise the learning rate."""

    max_epochs: int = 50
    batch_size: int = 64
    lr: float = 4e-4
    dim: int = 256
    n_attention: int = 128
    warmup: float = 0.05

    def check(self) -> None:
        """Refuse what makes no network."""
        super().check()
        check_number("batch_size", self.batch_size, least=2, whole=True)
        check_number("warmup", self.warmup, least=0, most=1)


@dataclass(frozen=True)
class Run:
    """Which machine, and the seed of everything random."""

    seed: int
    device: str


def mean_tiles(bags: Bags) -> np.ndarray:
    """Mean features of the tiles of each slide, s x d, NaN where it has none; not all tiles are in memory at once."""
    sizes = bags.sizes.numpy()
    slide = torch.from_numpy(np.repeat(np.arange(sizes.size), sizes))
    total = torch.zeros(sizes.size, bags.features.shape[1], dtype=torch.float64)
    for start in range(0, slide.numel(), PART):
        total.index_add_(0, slide[start : start + PART], bags.take(bags.rows[start : start + PART]).double())
    return np.where(sizes[:, None] > 0, total.numpy() / np.maximum(sizes, 1)[:, None], np.nan)


def train_tangle(views: SlideViews, rows: np.ndarray, settings: TangleSettings, run: Run) -> Tangle:
    """Train on pairs, the slides ``rows``."""
    slides, genes = torch.from_numpy(rows), torch.from_numpy(views.genes)
    with torch.random.fork_rng():
        torch.manual_seed(run.seed)
        module = Tangle(views.widths["image"], views.widths["rna"], settings.dim, settings.n_attention)
        module.slides.fit_moments(moment_tiles(views.bags, slides, run.seed))
        module.genes.fit_moments(genes[slides])
        fit(
            TanglePlan(module, genes, settings.lr, settings.weight_decay, settings.warmup),
            max_epochs=settings.max_epochs,
            batches=BagBatches(views.bags, slides, settings.batch_size, settings.n_tiles, run.seed),
            device=run.device,
            seed=run.seed,
            progress=False,
        )
    return module


@torch.no_grad()
def tangle_codes(module: Tangle, views: SlideViews, rows: np.ndarray, device: str) -> np.ndarray:
    """Embeddings of both encoders side by side, as MIRROR's authors use them, r x 2 dim."""
    image = encode(module.slides, views, rows, device)
    rna = torch.cat([module.genes(genes) for genes in _gene_parts(views, rows)])
    return torch.cat([image, rna], 1).numpy()


def train_network(
    module: ABMIL | Bilinear,
    views: SlideViews,
    rows: np.ndarray,
    watched: np.ndarray,
    task: ClassTask | HazardTask,
    settings: AbmilSettings,
    run: Run,
) -> ABMIL | Bilinear:
    """Train on the slides ``rows`` and keep the epoch in which those ``watched`` have the lowest loss, without any the last one."""
    slides, genes = torch.from_numpy(rows), None
    with torch.random.fork_rng():
        torch.manual_seed(run.seed)
        module.encoder.fit_moments(moment_tiles(views.bags, slides, run.seed))
        if isinstance(module, Bilinear):
            genes = torch.from_numpy(views.genes)
            module.genes.fit_moments(genes[slides])
        start = {name: value.clone() for name, value in module.state_dict().items()}
        how = TaskSettings(torch.from_numpy(watched), run.seed, settings.lr, settings.weight_decay)
        _, keep = fit(
            TaskPlan(module, task, how, genes),
            max_epochs=settings.max_epochs,
            batches=BagBatches(views.bags, slides, settings.batch_size, settings.n_tiles, run.seed),
            device=run.device,
            seed=run.seed,
            patience=settings.patience,
            progress=False,
        )
    if keep is not None:
        module.load_state_dict(start if keep.state is None else keep.state)
    return module


def new_network(
    views: SlideViews, n_out: int, settings: AbmilSettings, seed: int
) -> ABMIL | Bilinear:  # fmt: skip
    """Make an untrained network, with attention over tiles alone or beside genes, as its settings say."""
    widths = settings.n_hidden, settings.n_attention
    image, rna = views.widths["image"], views.widths["rna"]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        if isinstance(settings, BilinearSettings):
            return Bilinear(image, rna, n_out, *widths, settings.n_gated, settings.dropout)
        return ABMIL(image, n_out, *widths, settings.dropout)


@torch.no_grad()
def network_logits(module: ABMIL | Bilinear, views: SlideViews, rows: np.ndarray, device: str) -> np.ndarray:
    """Logits of slides by all of their tiles, r x out."""
    image = encode(module.encoder, views, rows, device)
    if isinstance(module, ABMIL):
        return module.head(image).numpy()
    parts = zip(image.split(CODED), _gene_parts(views, rows), strict=True)
    return torch.cat([module.join(some, module.genes(genes)) for some, genes in parts]).numpy()


def encode(encoder: SlideEncoder, views: SlideViews, rows: np.ndarray, device: str) -> Tensor:
    """Embedding of slides by all of their tiles."""
    return encode_bags(encoder, views.bags.select(torch.from_numpy(rows)), device)[0]


def _gene_parts(views: SlideViews, rows: np.ndarray) -> list[Tensor]:
    return [torch.from_numpy(views.genes[some]) for some in np.split(rows, range(CODED, rows.size, CODED))]
