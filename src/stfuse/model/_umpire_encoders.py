"""Encoders that UMPIRE trains end to end: which go with which views and settings, and how wide what they give is."""

from __future__ import annotations

import copy
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from stfuse.model._stored import StoredModel
from stfuse.module.umpire import Objective, encoded
from stfuse.train._fit import resolve_device

Mode = Literal["adapter", "linear", "finetune"]
NAMES = {"image": ("image_encoder", "crops"), "rna": ("gene_encoder", "gene tokens")}


def encoders_of(image: nn.Module | None, gene: nn.Module | StoredModel | None) -> dict[str, nn.Module]:
    """Encoders by view; of a trained model of stfuse its module."""
    found: dict[str, nn.Module] = {}
    for view, encoder in (("image", image), ("rna", gene)):
        module = encoder.module if isinstance(encoder, StoredModel) else encoder
        if encoder is not None and module is None:
            raise ValueError(
                f"{NAMES[view][0]} is a {type(encoder).__name__} that is not trained yet: call .train() first."
            )
        if module is not None and not isinstance(module, nn.Module):
            raise TypeError(f"{NAMES[view][0]} must be a torch.nn.Module or None, got {type(module).__name__}.")
        if module is not None:
            found[view] = module
    return found


def check_choice(mode: Mode, objective: Objective, encoders: dict[str, nn.Module]) -> None:
    """Refuse what does not go together."""
    if mode == "finetune" and not encoders:
        raise ValueError(
            "mode='finetune' trains encoders end to end and got none: pass image_encoder= (crops), gene_encoder= (tokens) or both, "
            "also to load; or use mode='adapter' or 'linear' on features."
        )
    if mode != "finetune" and encoders:
        given = " and ".join(f"{NAMES[view][0]}=" for view in encoders)
        raise ValueError(f"{given} is for mode='finetune'; mode={mode!r} stands on features and takes no encoder.")
    if objective == "reconstruction" and "rna" in encoders:
        raise ValueError(
            "objective='reconstruction' predicts the features in obsm[rna_key] from the image: leave gene_encoder= and "
            "tokens_key= out."
        )


def torch_device(device: str) -> str:
    """Where codes are computed: where the model was trained."""
    accelerator, devices = resolve_device(device)
    if accelerator != "gpu":
        return accelerator
    return f"cuda:{devices[0]}" if isinstance(devices, list) else "cuda"


def output_width(view: str, encoder: nn.Module, x: np.ndarray, has: np.ndarray) -> int:
    """How many features an encoder gives, tried on two rows; for tokens one of them is the row with the largest."""
    rows = np.flatnonzero(has)
    rows = np.unique([rows[0], rows[x[rows].max(1).argmax()] if view == "rna" else rows[-1]])
    name, what = NAMES[view]
    given = torch.from_numpy(x[rows])
    given = given.long() if view == "rna" else given.float()
    try:
        with torch.no_grad(), torch.random.fork_rng():
            out = encoded(copy.deepcopy(encoder).cpu().eval(), given)
    except Exception as error:
        largest = f" and the largest token {int(given.max())}" if view == "rna" else ""
        raise ValueError(
            f"{name} fails on {what} of shape {tuple(given.shape)}{largest}: {type(error).__name__}: {error}"
        ) from error
    if not isinstance(out, Tensor) or out.ndim != 2 or out.shape[0] != rows.size:
        shape = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
        raise ValueError(
            f"{name} must give one row of features for each observation, {rows.size} x width; of {what} of shape "
            f"{tuple(given.shape)} it made {shape}."
        )
    return int(out.shape[1])
