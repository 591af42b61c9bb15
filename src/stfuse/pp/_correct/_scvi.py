"""scVI's latent representation of counts, on observations that have counts."""

from __future__ import annotations

import os
import random
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy.sparse import csr_matrix

LEAST = 3  # observations, of which scVI holds one out
_VARIABLES = ("PL_GLOBAL_SEED", "PL_SEED_WORKERS")  # of the environment, which Lightning's seeding sets


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seed scvi-tools, and leave every global generator and setting as it was."""
    import torch

    cudnn = torch.backends.cudnn
    flags = cudnn.deterministic, cudnn.benchmark
    import scvi  # sets one of them

    earlier = scvi.settings.seed
    state, legacy = random.getstate(), np.random.get_state()
    variables = {name: os.environ.get(name) for name in _VARIABLES}
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        try:
            scvi.settings.seed = seed
            yield
        finally:
            scvi.settings.seed = earlier
            cudnn.deterministic, cudnn.benchmark = flags
            random.setstate(state)
            np.random.set_state(legacy)
            for name, value in variables.items():
                if value is None:
                    os.environ.pop(name, None)
                else:
                    os.environ[name] = value


def scvi_latent(
    counts: csr_matrix,
    batch: np.ndarray,
    *,
    n_latent: int,
    n_layers: int,
    max_epochs: int | None,
    seed: int,
    device: str,
    progress: bool | None,
) -> tuple[np.ndarray, pd.DataFrame]:
    """Train scVI with ``batch`` (codes) and return n x n_latent means (float32) and the loss of each epoch."""
    obs = pd.DataFrame({"batch": pd.Categorical(batch.astype(str))}, index=pd.RangeIndex(len(batch)).astype(str))
    private = AnnData(counts.astype(np.float32), obs=obs)
    latent, history, _ = train_scvi(
        private,
        "batch",
        n_latent=n_latent,
        n_layers=n_layers,
        max_epochs=max_epochs,
        seed=seed,
        device=device,
        progress=progress,
    )
    return latent, history


def train_scvi(
    private: AnnData,
    batch_key: str | None,
    *,
    n_latent: int,
    n_layers: int,
    n_hidden: int = 128,
    max_epochs: int | None,
    seed: int,
    device: str,
    progress: bool | None,
    layer: str | None = None,
    keep: bool = False,
) -> tuple[np.ndarray, pd.DataFrame, Any]:
    """Train scVI on an object of our own: return n x n_latent means (float32), the loss of each epoch, and the model.

    Without ``keep`` the model can't be used any more: scvi-tools would hold the counts for as long as the session lasts.
    """
    from stfuse.train._fit import EpochBar, few_threads, quiet, resolve_device

    accelerator, devices = resolve_device(device)
    if private.n_obs < LEAST:
        raise ValueError(f"scVI needs at least {LEAST} observations with counts, there are {private.n_obs}.")
    with quiet(), _seeded(seed):
        from scvi.model import SCVI

        # small batches are spoken of by the caller, how observations are split is no news
        warnings.filterwarnings("ignore", category=UserWarning, module=r"scvi\.")
        SCVI.setup_anndata(private, layer=layer, batch_key=batch_key)
        model: Any = SCVI(private, n_latent=n_latent, n_layers=n_layers, n_hidden=n_hidden)
        try:
            with few_threads(model.module):
                model.train(
                    max_epochs=max_epochs,
                    accelerator=accelerator,
                    devices=devices,
                    benchmark=False,
                    enable_progress_bar=False,
                    enable_model_summary=False,
                    callbacks=[EpochBar("scVI", progress)],
                )
                latent = np.asarray(model.get_latent_representation(), dtype=np.float32)
        finally:
            if not keep:
                model.deregister_manager(private)
    history = model.history["elbo_train"].astype(np.float64)
    if not np.isfinite(latent).all():
        raise RuntimeError("scVI's training diverged: its representation is not finite. Nothing was written.")
    return latent, history, model
