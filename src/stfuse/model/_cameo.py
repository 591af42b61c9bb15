"""CAMEO: adversarial fusion from few pairs, as published or standing on the linear anchor."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

import numpy as np
import torch
from anndata import AnnData
from torch import Tensor

from stfuse._check import check_number
from stfuse._log import logger
from stfuse._views import Views
from stfuse.model._anchored import Coordinates, anchor_data, anchor_sizes, anchored_codes, empty_anchor
from stfuse.model._base import Codes, FusionModel, masked, pick
from stfuse.model._pcca import check_flags, check_pairs, check_private_dim, check_widths
from stfuse.model._training import check_training, raw_tensors, split_pairs, tensors_of, verdict
from stfuse.module.anchor import OTHER, LinearAnchor, fit_anchor
from stfuse.module.cameo import AnchoredTranslator, PublishedTranslator, Translator
from stfuse.train._batches import ViewTensors
from stfuse.train._fit import fit
from stfuse.train._plans import Adversarial, AdversarialPlan

Critic = Literal["wgan", "wgan-gp", "gan"]
CHUNK = 16_384
LOSSES = ("cycle", "adversarial", "align", "contrastive", "translation")
MIN_PAIRS_TO_TRAIN = 50  # with fewer, held-out pairs cannot show that a network beats the anchor

PUBLISHED = Adversarial()
ANCHORED = Adversarial(
    critic="gan",
    n_critic=1,
    optimizer="adamw",
    lr=1e-3,
    lr_critic=1e-3,
    weight_decay=0.1,
    cycle=0.3,
    adversarial=0.1,
    align=0.0,
    contrastive=1.0,
    translation=1.0,
)


class CAMEO(FusionModel):
    r"""Adversarial fusion of two views from few pairs.

    Two translators carry each view into the other one through a shared code. Pairs pull the two codes of a spot together;
    all other observations, paired or not, have to survive the way there and back (cycle loss) and to look real to a critic of the
    other view (adversarial loss), so that unpaired observations teach as well:

    .. math:: L = \lambda_1 L_{cycle} + \lambda_2 L_{adv} + \lambda_3 L_{align}

    By default the translators are the linear maps of :class:`stfuse.model.PCCA` plus a nonlinear residual that starts at zero and is
    trained with a contrastive and a translation term on the pairs beside the terms above. Part of the pairs is held out; the
    network is kept only if it retrieves their partners better than the start by three standard errors, and is trained again on
    all pairs then. Otherwise the linear start is the result. What a view does not share stays beside the shared part as private
    codes. `faithful=True` is the paper to the letter.

    Parameters
    ----------
    adata
        Data registered with `setup_anndata`.
    registry
        Record of a set-up, in place of data (`load` passes it).
    faithful
        The published network and losses: BatchNorm encoders through a common width, shared encoder and decoder, Wasserstein
        critics with clipped weights, RMSprop, no private codes, no linear start.
    private_dim
        Private columns a view in the fused code. None = all that is not shared (0 with `faithful`), 0 = none.
    n_hidden, dropout
        Width and dropout of the residual networks.
    n_components, rank, context, matching, scale
        Of the linear start, see :class:`stfuse.model.PCCA`.

    Notes
    -----
    Learning multimodal representations from partially paired, small-scale data (CAMEO), sections 3.3 and 3.4, appendices C
    and E. Weights of the losses are means over columns here, so that they do not depend on the width.

    Examples
    --------
    >>> import stfuse
    >>> adata = stfuse.datasets.synthetic_tissue(300, seed=1)
    >>> stfuse.model.CAMEO.setup_anndata(adata)
    >>> model = stfuse.model.CAMEO(adata)
    >>> model.train(max_epochs=2)
    >>> model.translate(source="image", target="rna").shape
    (300, 30)
    """

    _method = "cameo"
    module: Translator | None

    def __init__(
        self,
        adata: AnnData | None = None,
        registry: dict[str, Any] | None = None,
        *,
        faithful: bool = False,
        private_dim: int | None = None,
        n_hidden: int = 128,
        dropout: float = 0.4,
        n_components: int = 50,
        rank: int | None = None,
        context: bool = True,
        matching: bool = True,
        scale: bool | None = None,
    ) -> None:
        check_private_dim(private_dim)
        if faithful and private_dim:
            raise ValueError(
                f"The published CAMEO has no private codes: private_dim={private_dim} needs faithful=False."
            )
        check_number("n_hidden", n_hidden, least=1, whole=True)
        check_widths(n_components, rank)
        check_flags(scale, faithful=faithful, context=context, matching=matching)
        check_number("dropout", dropout, least=0)
        if dropout >= 1:
            raise ValueError(f"dropout must be below 1, got {dropout}.")
        super().__init__(
            adata,
            registry,
            faithful=faithful,
            private_dim=private_dim,
            n_hidden=n_hidden,
            dropout=dropout,
            n_components=n_components,
            rank=rank,
            context=context,
            matching=matching,
            scale=scale,
        )

    def train(
        self,
        *,
        max_epochs: int | None = None,
        batch_size: int = 256,
        critic: Critic | None = None,
        n_critic: int | None = None,
        lr: float | None = None,
        lr_critic: float | None = None,
        weight_decay: float | None = None,
        lambda_cycle: float | None = None,
        lambda_adversarial: float | None = None,
        lambda_align: float | None = None,
        lambda_contrastive: float | None = None,
        lambda_translation: float | None = None,
        validation_fraction: float = 0.2,
        patience: int | None = None,
        seed: int = 0,
        device: str = "auto",
        progress: bool | None = None,
        **trainer_kwargs: Any,
    ) -> None:
        """Train. An argument that is None takes the value of the chosen network (published or anchored).

        Parameters
        ----------
        max_epochs
            Epochs at most. None = 200 for the published network, 100 for the anchored one; 0 = the linear start alone.
        batch_size
            Observations of each view, and pairs, a step.
        critic
            `"wgan"` (clipped weights), `"wgan-gp"` (gradient penalty) or `"gan"`. Published `"wgan"`, anchored `"gan"`.
        n_critic
            Steps of the critics for one of the translators. Published 5, anchored 1.
        lr, lr_critic, weight_decay
            Of translators and critics. Published 1e-4, 5e-5, 0; anchored 1e-3, 1e-3, 0.1.
        lambda_cycle, lambda_adversarial, lambda_align
            Weights of the paper's three losses. Published 10, 1, 10; anchored 0.3, 0.1, 0.
        lambda_contrastive, lambda_translation
            Weights of the contrastive and the translation loss on pairs. Published 0, 0; anchored 1, 1.
        validation_fraction
            Fraction of the pairs (2,000 at most) held out. 0 = none: then nothing can judge the network, and the linear start is
            the result (the published network trains to the end).
        patience
            Epochs without better retrieval of held-out pairs after which training stops. Published 30, anchored 12.
        seed
            Seed of everything random.
        device
            `"auto"`, `"cpu"`, `"cuda"`, `"cuda:<index>"` or `"mps"`.
        progress
            Whether to show a bar. None = in a terminal or notebook.
        trainer_kwargs
            Passed to `lightning.pytorch.Trainer` (`devices=`, `strategy=`, `precision=`, `callbacks=`, `logger=`).

        Raises
        ------
        ValueError
            If there are fewer than two pairs (without `faithful`), or an argument is out of range.
        """
        given = {
            "critic": critic,
            "n_critic": n_critic,
            "lr": lr,
            "lr_critic": lr_critic,
            "weight_decay": weight_decay,
            "cycle": lambda_cycle,
            "adversarial": lambda_adversarial,
            "align": lambda_align,
            "contrastive": lambda_contrastive,
            "translation": lambda_translation,
        }
        faithful = self.params_["faithful"]
        settings = _settings(PUBLISHED if faithful else ANCHORED, given)
        rates = {"lr": settings.lr, "lr_critic": settings.lr_critic}
        check_training(validation_fraction, patience, weight_decay=settings.weight_decay, **rates)
        if faithful and max_epochs == 0:
            raise ValueError("max_epochs=0 keeps the linear start, which the published network (faithful=True) lacks.")
        views = self._begin(seed)
        run = {
            "max_epochs": (200 if faithful else 100) if max_epochs is None else max_epochs,
            "batch_size": batch_size,
            "device": device,
            "seed": seed,
            "patience": (30 if faithful else 12) if patience is None else patience,
            "progress": progress,
            "trainer_kwargs": trainer_kwargs,
        }
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            if faithful:
                self._train_published(views, settings, validation_fraction, run)
            else:
                self._train_anchored(views, settings, validation_fraction, run)

    # -- the published network ----------------------------------------------------------------------------------------

    def _train_published(self, views: Views, settings: Adversarial, fraction: float, run: dict[str, Any]) -> None:
        pairs, held_out = split_pairs(views.paired, fraction, run["seed"])
        module = PublishedTranslator(views.image.shape[1], views.rna.shape[1])
        for name, x, has in (("image", views.image, views.has_image), ("rna", views.rna, views.has_rna)):
            module.standard.fit_moments(name, x, np.flatnonzero(has))
        plan = AdversarialPlan(module, raw_tensors(views, pairs, held_out), run["seed"], settings)
        history, keep = fit(plan, desc="CAMEO", **run)
        if keep is not None and keep.state is not None:
            module.load_state_dict(keep.state)
        self._finish(module, history)

    # -- the network on the anchor ------------------------------------------------------------------------------------

    def _anchored_module(
        self, views: Views, pairs: np.ndarray, run: dict[str, Any]
    ) -> tuple[AnchoredTranslator, ViewTensors]:
        keys = ("n_components", "rank", "context", "matching", "scale")
        options = {k: self.params_[k] for k in keys} | {k: run[k] for k in ("seed", "progress")}
        anchor, report = fit_anchor(anchor_data(views, pairs), **options)
        self.report_ |= report
        torch.manual_seed(run["seed"])
        module = AnchoredTranslator(anchor, self.params_["n_hidden"], self.params_["dropout"])
        native = native_rows(anchor, views)
        tensors = tensors_of(native["image"], native["rna"], views, pairs, pairs[:0])
        for name in OTHER:
            module.fit_context(name, tensors.of(name)[tensors.rows(name)])
        return module, tensors

    def _train_anchored(self, views: Views, settings: Adversarial, fraction: float, run: dict[str, Any]) -> None:
        check_pairs(views, 2, "CAMEO")
        seed, all_pairs = run["seed"], np.flatnonzero(views.paired)
        pairs, held_out = split_pairs(views.paired, fraction, seed)
        history, epochs, trust = None, 0, {}
        if run["max_epochs"] and held_out.size and all_pairs.size >= MIN_PAIRS_TO_TRAIN:
            trial, tensors = self._anchored_module(views, pairs, run)
            tensors.held_out = torch.from_numpy(held_out)
            history, keep = fit(AdversarialPlan(trial, tensors, seed, settings), desc="CAMEO", **run)
            epochs = verdict(keep, self.report_)
            if epochs and keep is not None and keep.state is not None:
                trial.load_state_dict(keep.state)
                trial.fit_trust({name: tensors.of(name) for name in OTHER}, tensors.held_out)
                trust = {name: trial.get_buffer(f"trust_{name}") for name in OTHER}
        else:
            logger.info("%d pairs are too few to judge a network: the linear start is the result", all_pairs.size)
        module, tensors = self._anchored_module(views, all_pairs, run)
        if epochs:
            again = run | {"max_epochs": epochs, "patience": None}
            fit(AdversarialPlan(module, tensors, seed, settings), desc="CAMEO, all pairs", **again)
            for name, value in trust.items():
                module.get_buffer(f"trust_{name}").copy_(value)
                self.report_[f"trust_{name}"] = float(value.mean())
        self.report_["epochs_kept"] = epochs
        self._finish(module, history)

    # -- codes --------------------------------------------------------------------------------------------------------

    def _trained(self) -> Translator:
        if self.module is None:
            raise RuntimeError("CAMEO is not trained yet: call .train() first.")
        return self.module

    @torch.no_grad()
    def _codes(self, views: Views) -> Codes:
        module = self._trained()
        if not isinstance(module, AnchoredTranslator):
            return _published_codes(module, views)
        where = Coordinates(module.anchor, views)
        native = _beside(module.anchor, where)
        codes = {name: _blocks(lambda t, name=name: module.encode(name, t), native[name]) for name in OTHER}
        translated = {
            target: _blocks(lambda t, source=source: module.components(source, t), native[source])
            for source, target in OTHER.items()
        }
        return anchored_codes(module.anchor, views, where, codes, translated, self.params_["private_dim"])

    @torch.no_grad()
    def _translate(self, views: Views, source: str) -> np.ndarray:
        module, target = self._trained(), OTHER[source]
        x, has = (views.image, views.has_image) if source == "image" else (views.rna, views.has_rna)
        if isinstance(module, AnchoredTranslator):
            native = _beside(module.anchor, Coordinates(module.anchor, views))[source]
            scaler = module.anchor.view(target).scaler
            out = _blocks(lambda t: scaler.inverse(module.components(source, t) * scaler.sd), native)
            return masked(out, has)
        if not isinstance(module, PublishedTranslator):
            raise TypeError(type(module).__name__)
        standard = module.standard
        out = _blocks(
            lambda t: standard.features(target, module.translate(source, module.native(source, t))), torch.from_numpy(x)
        )
        return masked(out, has)

    def _architecture(self) -> dict[str, Any]:
        module = self._trained()
        if isinstance(module, AnchoredTranslator):
            return {"anchor": anchor_sizes(module.anchor)}
        return {"n_image": self.n_features_["image"], "n_rna": self.n_features_["rna"]}

    def _build(self, architecture: dict[str, Any]) -> Translator:
        if "anchor" in architecture:
            anchor = empty_anchor(architecture["anchor"])
            return AnchoredTranslator(anchor, self.params_["n_hidden"], self.params_["dropout"])
        return PublishedTranslator(architecture["n_image"], architecture["n_rna"])


def _settings(preset: Adversarial, given: dict[str, Any]) -> Adversarial:
    settings = replace(preset, **{k: v for k, v in given.items() if v is not None})
    pick(("wgan", "wgan-gp", "gan"), settings.critic, "critic")
    check_number("n_critic", settings.n_critic, least=1, whole=True)
    for name in LOSSES:
        check_number(f"lambda_{name}", getattr(settings, name), least=0)
    if not any(getattr(settings, name) for name in LOSSES):
        raise ValueError(
            "All weights lambda_* are 0: nothing is left to train on (max_epochs=0 keeps the linear start)."
        )
    if preset is PUBLISHED and settings.contrastive:
        raise ValueError(
            "lambda_contrastive belongs to the anchored network: the published one has no contrastive loss."
        )
    return settings


def _blocks(function: Any, rows: Tensor) -> Tensor:
    """Apply a function to blocks of rows."""
    return torch.cat([function(rows[start : start + CHUNK]) for start in range(0, max(1, rows.shape[0]), CHUNK)])


def _beside(anchor: LinearAnchor, where: Coordinates) -> dict[str, Tensor]:
    """Native rows of the anchored network: components beside context columns."""
    out = {}
    for name in OTHER:
        near, part = where.near[name], anchor.view(name)
        columns = [where.z[name]] if near is None else [where.z[name], (near - part.near_mean) @ part.near_map]
        out[name] = torch.cat(columns, 1)
    return out


def native_rows(anchor: LinearAnchor, views: Views) -> dict[str, Tensor]:
    """Native rows of both views, computed once before training."""
    with torch.no_grad():
        return _beside(anchor, Coordinates(anchor, views))


def _published_codes(module: Translator, views: Views) -> Codes:
    """Shared codes; a missing view's half is the code of its translation."""
    code, half = {}, {}
    for name, x, has in (("image", views.image, views.has_image), ("rna", views.rna, views.has_rna)):
        code[name] = np.full((views.n_obs, module.n_code), np.nan, np.float32)
        rows = np.flatnonzero(has)
        if rows.size:
            code[name][rows] = _blocks(
                lambda t, name=name: module.encode(name, module.native(name, t)), torch.from_numpy(x[rows])
            ).numpy()
    for name, has in (("image", views.has_image), ("rna", views.has_rna)):
        there = torch.from_numpy(code[OTHER[name]])
        translated = _blocks(lambda c, name=name: module.encode(name, module.decode(name, c)), there).numpy()
        half[name] = np.where(has[:, None], code[name], translated)
    return Codes(fused=np.hstack([half["image"], half["rna"]]), image=code["image"], rna=code["rna"])
