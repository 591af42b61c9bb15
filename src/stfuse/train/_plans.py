"""Training plans: what all share, one optimiser on pairs, and generator against critics."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, cast

import lightning.pytorch as lp
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stfuse.module.cameo import AnchoredTranslator, Translator
from stfuse.module.clip import TwoTowers
from stfuse.module.linear_start import nearest_mean
from stfuse.module.losses import (
    CriticKind,
    alignment,
    critic_loss,
    generator_loss,
    gradient_penalty,
    info_nce,
    one_way_nce,
    pair_margin,
    soft_target_nce,
)
from stfuse.module.pcca import rank_score
from stfuse.module.umpire import AlignedViews, Objective
from stfuse.train._batches import Batches, StepBatches, ViewTensors

if TYPE_CHECKING:
    from lightning.pytorch.core.optimizer import LightningOptimizer

POOL = 1_000
KNOWN = 5_000  # training pairs among which held-out ones look for neighbours
CHUNK = 16_384  # rows of features coded at once
ENCODED = 128  # crops or token lists coded at once
SCALED = {"contrastive": info_nce, "infonce": one_way_nce, "bleep": soft_target_nce}


class Plan(lp.LightningModule):
    """What every plan shares: a module, batches dealt to the processes, and running means of the losses."""

    module: nn.Module
    score_name: str  # of the mean held-out score in an epoch's record, where something is held out
    some_rest: bool = False  # whether a step leaves some parameters out, which several processes have to be told

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module
        self.batches: Batches | None = None
        self.epochs: list[dict[str, float]] = []
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}
        self._scored: tuple[int, Any] | None = None

    def on_fit_start(self) -> None:
        """Bring the data to where the module is, once, and take this process's share of the batches."""
        if self.batches is not None:
            self.batches.to(self.device)
            self.batches.split(self.trainer.global_rank, self.trainer.world_size)

    def collect(self, **values: Tensor) -> None:
        """Add up losses on the device; they are read once an epoch. A loss may come in some steps only."""
        for name, value in values.items():
            value = value.detach()
            self._sums[name] = self._sums[name] + value if name in self._sums else value
            self._counts[name] = self._counts.get(name, 0) + 1

    def warmed_up(self, lr: float, weight_decay: float, warmup: float | None) -> Any:
        """AdamW on everything, at a rate that rises over a fraction of all steps and falls as a cosine; None = constant."""
        optimizer = torch.optim.AdamW(self.module.parameters(), lr=lr, weight_decay=weight_decay)
        if warmup is None:
            return optimizer
        total = int(self.trainer.estimated_stepping_batches)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: warm_cosine(step, total, warmup))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def watched(self) -> bool:
        """Tell whether something is held out on which `held_out` scores the module."""
        return False

    def held_out(self) -> Any:
        """Score what is held out: an array, lower is better. Of it the mean decides which epoch is kept."""
        raise NotImplementedError(f"{type(self).__name__} holds nothing out.")

    def scores(self) -> Any:
        """What `held_out` says in the first process, so that all stop at the same epoch; asked for once after a step."""
        if self._scored is None or self._scored[0] != self.global_step:
            self._scored = self.global_step, self.trainer.strategy.broadcast(self.held_out())
        return self._scored[1]

    def on_train_epoch_end(self) -> None:
        """Write the epoch's means, and what is held out says of it."""
        row = {name: float(value) / self._counts[name] for name, value in self._sums.items()}
        if self.watched():
            row[self.score_name] = float(self.scores().mean())
        # all processes tell the story of the first one, so that they write the same record
        self.epochs.append(self.trainer.strategy.broadcast(row))
        self._sums, self._counts = {}, {}

    def of_all(self, code: Tensor) -> Tensor:
        """Codes of all devices, with gradients: a contrastive loss is harder and better the more it compares."""
        if self.trainer.world_size == 1:
            return code
        return cast("Tensor", self.all_gather(code, sync_grads=True)).flatten(0, 1)

    def on_train_end(self) -> None:
        """Let several processes end with one module: moments of a BatchNorm follow each one's last batch."""
        if self.trainer.world_size > 1:
            self.module.load_state_dict(self.trainer.strategy.broadcast(self.module.state_dict()))


class FusionPlan(Plan):
    """What the plans on pairs share: the verdict of held-out pairs."""

    module: TwoTowers | AlignedViews | Translator
    score_name = "held_out_rank"
    chunk: int = CHUNK

    def __init__(self, module: TwoTowers | AlignedViews | Translator, data: ViewTensors, seed: int) -> None:
        super().__init__(module)
        self.tensors, self.seed = data, seed

    def on_fit_start(self) -> None:
        """Take the data to the device with the batches that index them."""
        super().on_fit_start()
        self.tensors = self.batches.data if isinstance(self.batches, StepBatches) else self.tensors.to(self.device)

    def watched(self) -> bool:
        """Tell whether pairs are held out."""
        return self.tensors.held_out.numel() > 0

    @torch.no_grad()
    def held_out(self) -> Any:
        """Retrieval score of each held-out pair, lower is better: log of the fraction of rows nearer than the partner."""
        was_training = self.module.training
        self.module.eval()
        data, generator = self.tensors, torch.Generator().manual_seed(self.seed)
        rows = data.held_out
        codes = {}
        for view in ("image", "rna"):
            others = data.rows(view)
            others = others[~torch.isin(others, rows)].cpu()
            others = others[torch.randperm(others.numel(), generator=generator)[:POOL]].to(rows.device)
            codes[view] = self._coded(view, torch.cat([rows, others])).double().numpy()
        self.module.train(was_training)
        own = torch.arange(rows.numel()).numpy()
        n = rows.numel()
        forth = rank_score(codes["image"][:n], codes["rna"], own)
        return 0.5 * (forth + rank_score(codes["rna"][:n], codes["image"], own))

    def _coded(self, view: str, rows: Tensor) -> Tensor:
        """Codes of rows, on the CPU."""
        x = self.tensors.of(view)
        parts = [self.module.encode(view, self.module.native(view, x[some])).cpu() for some in rows.split(self.chunk)]
        return torch.cat(parts)


class JointPlan(FusionPlan):
    """Alignment of pairs with one optimiser; the losses of several devices are one loss of all their pairs.

    ``targets`` (n x t), where given, are what held-out pairs are scored by: how well their image code finds rows whose targets
    are like their own. Without, it is how well they find each other.

    ``objective`` is a loss between the codes of pairs, or "reconstruction": RNA features are predicted from the image code,
    and the RNA code learns to meet that of its image, which it does not move. With ``warmup``, a fraction of all steps, the
    learning rate rises over those and falls to zero over the rest as a cosine; without it is constant.
    """

    module: TwoTowers | AlignedViews

    def __init__(
        self,
        module: TwoTowers | AlignedViews,
        data: ViewTensors,
        seed: int,
        lr: float,
        weight_decay: float,
        *,
        objective: Objective = "contrastive",
        warmup: float | None = None,
        targets: np.ndarray | None = None,
    ) -> None:
        super().__init__(module, data, seed)
        self.targets = targets
        if targets is not None:
            self.score_name = "held_out_error"
        self.lr, self.weight_decay, self.objective, self.warmup = lr, weight_decay, objective, warmup
        if isinstance(module, AlignedViews) and len(module.encoders):
            self.chunk = ENCODED
            # an encoder may have a head that its codes do not pass through
            self.some_rest = True

    @torch.no_grad()
    def held_out(self) -> Any:
        """Squared error of each held-out pair's targets as its image code predicts them, over that of the mean on average."""
        if self.targets is None:
            return super().held_out()
        was_training = self.module.training
        self.module.eval()
        rows, pairs = self.tensors.held_out, self.tensors.pairs
        pairs = pairs[torch.randperm(pairs.numel(), generator=torch.Generator().manual_seed(self.seed))[:KNOWN]]
        pool = sum(F.normalize(self._coded(view, pairs), dim=1) for view in ("image", "rna"))
        query = self._coded("image", rows)
        self.module.train(was_training)
        known, truth = self.targets[pairs.cpu().numpy()], self.targets[rows.cpu().numpy()]
        predicted = nearest_mean(query.double().numpy(), cast("Tensor", pool).double().numpy(), known)
        floor = np.square(truth - known.mean(axis=0)).sum(axis=1).mean()
        return np.square(truth - predicted).sum(axis=1) / max(floor, 1e-300)

    def configure_optimizers(self) -> Any:
        """AdamW on everything."""
        return self.warmed_up(self.lr, self.weight_decay, self.warmup)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """One step on a batch of pairs."""
        rows = batch["pairs"]
        t = {v: self.module.native(v, self.tensors.of(v)[rows]) for v in ("image", "rna")}
        code = {v: self.module.encode(v, t[v]) for v in t}
        parts = self._reconstruction(t, code) if self.objective == "reconstruction" else self._pair_loss(code)
        self.collect(**parts)
        return torch.stack(list(parts.values())).sum()

    def _pair_loss(self, code: dict[str, Tensor]) -> dict[str, Tensor]:
        image, rna = (self.of_all(code[v]) for v in ("image", "rna"))
        if self.objective == "one-sided":
            return {"one_sided": pair_margin(image, rna)}
        return {self.objective: SCALED[self.objective](image, rna, cast("Tensor", self.module.log_scale))}

    def _reconstruction(self, t: dict[str, Tensor], code: dict[str, Tensor]) -> dict[str, Tensor]:
        """Nothing is compared across pairs here, so that nothing has to be gathered."""
        decoder = cast("nn.Module", cast("AlignedViews", self.module).decoder)
        cosine = F.cosine_similarity(code["image"].detach(), code["rna"])
        return {"reconstruction": F.mse_loss(decoder(code["image"]), t["rna"]), "alignment": (1 - cosine).mean()}


def warm_cosine(step: int, total: int, warmup: float) -> float:
    """Fraction of the learning rate at a step: linear up over the first ``warmup`` of all steps, a cosine down to zero."""
    rise = warmup * total
    if step < rise:
        return (step + 1) / (rise + 1)
    return 0.5 * (1 + math.cos(math.pi * min((step - rise) / max(total - rise, 1), 1)))


@dataclass(frozen=True)
class Adversarial:
    """Settings of the adversarial plan; a loss with weight 0 is not computed."""

    critic: CriticKind = "wgan"
    n_critic: int = 5
    optimizer: Literal["rmsprop", "adamw"] | None = None
    lr: float = 1e-4
    lr_critic: float = 5e-5
    weight_decay: float = 0.0
    cycle: float = 10.0
    adversarial: float = 1.0
    align: float = 10.0
    contrastive: float = 0.0
    translation: float = 0.0


class AdversarialPlan(FusionPlan):
    """Two translators against two critics (CAMEO, stage 1).

    Every step takes pairs, image rows and RNA rows drawn independently. Critics see real and generated rows in one batch.
    The generator moves once in ``n_critic`` steps of the critics.
    """

    module: Translator
    some_rest = True  # critics and translators take turns

    def __init__(self, module: Translator, data: ViewTensors, seed: int, settings: Adversarial) -> None:
        super().__init__(module, data, seed)
        self.settings = settings
        self.automatic_optimization = False
        self._generator = torch.Generator().manual_seed(seed)
        self._count = 0

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        """RMSprop for the clipped Wasserstein critic, AdamW otherwise (CAMEO, appendix E.4), unless one is named."""
        s = self.settings
        kind = s.optimizer or ("rmsprop" if s.critic == "wgan" else "adamw")
        critics, generator = list(self.module.critics.parameters()), self.module.generator_parameters()
        if kind == "rmsprop":
            return [
                torch.optim.RMSprop(generator, lr=s.lr, weight_decay=s.weight_decay),
                torch.optim.RMSprop(critics, lr=s.lr_critic),
            ]
        return [
            torch.optim.AdamW(generator, lr=s.lr, weight_decay=s.weight_decay),
            torch.optim.AdamW(critics, lr=s.lr_critic, betas=(0.5, 0.9), weight_decay=s.weight_decay),
        ]

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Critics, and every ``n_critic`` steps the generator."""
        s, module = self.settings, self.module
        to_generator, to_critics = cast("list[LightningOptimizer]", self.optimizers())
        real = {v: module.native(v, self.tensors.of(v)[batch[v]]) for v in ("image", "rna")}
        self._count += 1
        moves = not s.adversarial or self._count % s.n_critic == 0
        code, fake = self._generate(real, moves)
        if s.adversarial:
            loss = self._critic_loss(real, {v: rows.detach() for v, rows in fake.items()})
            to_critics.zero_grad()
            self.manual_backward(loss)
            to_critics.step()
            if s.critic == "wgan":
                for view in real:
                    module.critic(view).clip()
            self.collect(critic=loss)
        if moves:
            parts = self._generator_losses(real, code, fake, batch["pairs"])
            total = torch.stack([w * v for w, v in parts.values()]).sum()
            to_generator.zero_grad()
            self.manual_backward(total)
            to_generator.step()
            self.collect(**{name: value for name, (_, value) in parts.items()})

    def _generate(self, real: dict[str, Tensor], moves: bool) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Codes and translations of the step, made once for critics and generator."""
        module = self.module
        if not (self.settings.adversarial or self.settings.cycle):
            return {}, {}
        with torch.set_grad_enabled(moves):
            code = {v: module.encode(v, rows) for v, rows in real.items()}
            return code, {"rna": module.decode("rna", code["image"]), "image": module.decode("image", code["rna"])}

    def _critic_loss(self, real: dict[str, Tensor], fake: dict[str, Tensor]) -> Tensor:
        s, module = self.settings, self.module
        total = torch.zeros((), device=self.device)
        for view, rows in real.items():
            critic = module.critic(view)
            total = total + critic_loss(s.critic, *critic.joint(rows, fake[view]))
            if s.critic == "wgan-gp":
                n = min(rows.shape[0], fake[view].shape[0])
                total = total + 10 * gradient_penalty(critic, rows[:n], fake[view][:n], self._generator)
        return total

    def _generator_losses(
        self, real: dict[str, Tensor], code: dict[str, Tensor], fake: dict[str, Tensor], pairs: Tensor
    ) -> dict[str, tuple[float, Tensor]]:
        s, module = self.settings, self.module
        parts: dict[str, tuple[float, Tensor]] = {}
        if s.cycle:
            there = module.cycle("image", real["image"], code["image"], fake["rna"])
            parts["cycle"] = s.cycle, there + module.cycle("rna", real["rna"], code["rna"], fake["image"])
        if s.adversarial:
            scores = [generator_loss(s.critic, module.critic(v).joint(real[v], fake[v])[1]) for v in ("image", "rna")]
            parts["adversarial"] = s.adversarial, scores[0] + scores[1]
        if pairs.numel() > 1:
            parts |= self._pair_losses(pairs)
        return parts

    def _pair_losses(self, pairs: Tensor) -> dict[str, tuple[float, Tensor]]:
        s, module = self.settings, self.module
        t = {v: module.native(v, self.tensors.of(v)[pairs]) for v in ("image", "rna")}
        code = {v: module.encode(v, rows) for v, rows in t.items()}
        parts: dict[str, tuple[float, Tensor]] = {}
        if s.align:
            parts["align"] = s.align, alignment(code["image"], code["rna"])
        if s.contrastive and isinstance(module, AnchoredTranslator):
            parts["contrastive"] = s.contrastive, info_nce(code["image"], code["rna"], module.log_scale)
        if s.translation:
            errors = [
                (module.decode(target, code[source]) - t[target]).square().mean()
                for source, target in (("image", "rna"), ("rna", "image"))
            ]
            parts["translation"] = s.translation, errors[0] + errors[1]
        return parts
