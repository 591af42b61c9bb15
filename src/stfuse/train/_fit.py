"""Run a plan through Lightning, quietly, seeded, and keep the best epoch."""

from __future__ import annotations

import logging
import signal
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import lightning.pytorch as lp
import pandas as pd
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn

from stfuse._progress import DELAY
from stfuse.train._batches import Batches, StepBatches
from stfuse.train._plans import FusionPlan, Plan

SMALL = 250_000  # parameters


def resolve_device(device: str) -> tuple[str, int | list[int]]:
    """Turn ``device`` ("auto", "cpu", "cuda", "cuda:1", "mps") into Lightning's accelerator and devices."""
    kind, _, index = str(device).partition(":")
    if kind not in {"auto", "cpu", "cuda", "gpu", "mps"} or (index and not index.isdigit()):
        raise ValueError(f"device must be 'auto', 'cpu', 'cuda', 'cuda:<index>' or 'mps', got {device!r}.")
    if kind == "auto":
        kind = "cuda" if torch.cuda.is_available() else "cpu"
    if kind in {"cuda", "gpu"} and not torch.cuda.is_available():
        raise ValueError(f"device={device!r}, but torch sees no CUDA device here: use device='auto' or 'cpu'.")
    if kind == "mps" and not torch.backends.mps.is_available():
        raise ValueError("device='mps', but torch sees no Apple GPU here: use device='auto' or 'cpu'.")
    name = "gpu" if kind in {"cuda", "gpu"} else kind
    return name, [int(index)] if index and name == "gpu" else 1


class KeepBest(Callback):
    """Keep the weights of the epoch with the best held-out score, and stop when it does not improve any more."""

    def __init__(self, patience: int) -> None:
        self.patience = patience
        self.start: Any = None
        self.best: Any = None
        self.best_epoch = 0
        self.state: dict[str, Tensor] | None = None

    def on_train_start(self, trainer: lp.Trainer, pl_module: lp.LightningModule) -> None:
        """Score the start: training has to beat it."""
        if isinstance(pl_module, Plan):
            self.start = self.best = pl_module.scores()

    def on_train_epoch_end(self, trainer: lp.Trainer, pl_module: lp.LightningModule) -> None:
        """Compare, keep, stop."""
        if not isinstance(pl_module, Plan):
            return
        scores = pl_module.scores()
        epoch = trainer.current_epoch + 1
        if scores.mean() < self.best.mean():
            self.best, self.best_epoch = scores, epoch
            state = {k: v.detach().clone() for k, v in pl_module.module.state_dict().items()}
            self.state = trainer.strategy.broadcast(state)
        elif epoch - self.best_epoch >= self.patience:
            trainer.should_stop = True


class StopAfter(Callback):
    """Stop after some epochs of a learning-rate schedule that is longer."""

    def __init__(self, epochs: int) -> None:
        self.epochs = epochs

    def on_train_epoch_end(self, trainer: lp.Trainer, pl_module: lp.LightningModule) -> None:
        """Count."""
        if trainer.current_epoch + 1 >= self.epochs:
            trainer.should_stop = True


class EpochBar(Callback):
    """A bar over epochs that appears after two seconds."""

    def __init__(self, desc: str, show: bool | None) -> None:
        self.desc, self.show = desc, show
        self.bar: Any = None

    def on_train_start(self, trainer: lp.Trainer, pl_module: lp.LightningModule) -> None:
        """Open."""
        from tqdm.auto import tqdm

        hidden = None if self.show is None else not self.show
        self.bar = tqdm(
            total=trainer.max_epochs,
            desc=self.desc,
            # None leaves it to tqdm, which keeps log files clean
            disable=True if trainer.global_rank > 0 else hidden,
            delay=DELAY,
            leave=False,
        )

    def on_train_epoch_end(self, trainer: lp.Trainer, pl_module: lp.LightningModule) -> None:
        """Move on."""
        self.bar.update(1)

    def on_train_end(self, trainer: lp.Trainer, pl_module: lp.LightningModule) -> None:
        """Close."""
        self.bar.close()

    def on_exception(self, trainer: lp.Trainer, pl_module: lp.LightningModule, exception: BaseException) -> None:
        """Close."""
        if self.bar is not None:
            self.bar.close()


@contextmanager
def quiet() -> Iterator[None]:
    """Keep Lightning's start-up lines and loader hints from the user, who did not ask for a Trainer."""
    loggers = [
        logging.getLogger(n) for n in ("lightning.pytorch", "lightning.fabric", "lightning.pytorch.utilities.rank_zero")
    ]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="lightning")
            yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)


def _check_strategy(trainer: lp.Trainer, strategy: Any) -> None:
    """Refuse processes that end with the training: history and best epoch would end with them."""
    launcher = trainer.strategy.launcher
    forked = launcher is not None and launcher.is_interactive_compatible
    if forked or (isinstance(strategy, str) and strategy.startswith(("ddp_spawn", "ddp_fork", "ddp_notebook"))):
        raise ValueError(
            f"strategy={strategy!r} trains in processes of which no result comes back: use strategy='ddp' in a script, "
            "or one device in a notebook."
        )


@contextmanager
def few_threads(module: nn.Module) -> Iterator[None]:
    """One thread for a small network: waiting threads spin, which beside other work makes a step many times slower."""
    before = torch.get_num_threads()
    if sum(p.numel() for p in module.parameters()) < SMALL:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def fit(
    plan: Plan,
    *,
    max_epochs: int,
    batch_size: int = 256,
    batches: Batches | None = None,
    device: str = "auto",
    seed: int = 0,
    patience: int | None = None,
    pairs_only: bool = False,
    progress: bool | None = None,
    desc: str = "training",
    trainer_kwargs: dict[str, Any] | None = None,
) -> tuple[pd.DataFrame, KeepBest | None]:
    """Train the plan; return its history and, where what it holds out was watched, what that said.

    ``batches`` are dealt as they are; a plan on pairs needs none and gets batches of ``batch_size``. With ``patience``, any plan
    that holds something out (`Plan.watched`) is watched.
    """
    keep = None
    callbacks: list[Callback] = [EpochBar(desc, progress)]
    if patience is not None and plan.watched():
        keep = KeepBest(patience)
        callbacks.append(keep)
    options = dict(trainer_kwargs or {})
    callbacks += options.pop("callbacks", None) or []
    accelerator, devices = resolve_device(device)
    defaults: dict[str, Any] = {
        "accelerator": accelerator,
        "devices": devices,
        "logger": False,
        "enable_checkpointing": False,
        "enable_model_summary": False,
        "enable_progress_bar": False,
        "use_distributed_sampler": False,
        "benchmark": False,
        "num_sanity_val_steps": 0,
    }
    strategy = options.get("strategy", "auto")
    if strategy == "ddp" and plan.some_rest:
        options["strategy"] = "ddp_find_unused_parameters_true"
    if isinstance(plan, FusionPlan):
        batches = StepBatches(plan.tensors, batch_size, seed, pairs_only=pairs_only)
    plan.batches = batches
    with quiet(), few_threads(plan.module):
        trainer = lp.Trainer(max_epochs=max_epochs, callbacks=callbacks, **(defaults | options))
        _check_strategy(trainer, strategy)
        handler = signal.getsignal(signal.SIGINT)
        try:
            trainer.fit(plan, train_dataloaders=batches)
        except SystemExit as error:
            # on an interrupt Lightning shuts the keyboard out and leaves the interpreter, a notebook's too
            if not isinstance(error.__context__, KeyboardInterrupt):
                raise
            if threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGINT, handler)
            raise KeyboardInterrupt("training was interrupted; nothing was written") from None
    plan.module.to("cpu").eval()
    history = pd.DataFrame(plan.epochs, index=pd.RangeIndex(1, len(plan.epochs) + 1, name="epoch"))
    return history, keep
