"""What SIGMMA is made of: settings that make a module, widths, and moments of the data."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from stfuse._cell_graph import SCALES
from stfuse._check import check_flag, check_number
from stfuse.model._base import pick
from stfuse.model._tile_cells import TileCells
from stfuse.model._training import check_training
from stfuse.model._umpire_encoders import output_width
from stfuse.module import sigmma


def check_architecture(params: dict[str, Any], image_encoder: Any) -> dict[str, Any]:
    """Refuse what makes no module; return the parameters, scales by name from small to large."""
    p = params
    scales = [p["scales"]] if isinstance(p["scales"], str) else list(p["scales"])
    if not scales or any(name not in SCALES for name in scales) or len(set(scales)) < len(scales):
        raise ValueError(f"scales must be some of {', '.join(map(repr, SCALES))}, each once, got {p['scales']!r}.")
    check_flag("graph", p["graph"])
    pick(("sampled", "all", "none"), p["edge_addition"], "edge_addition")
    pick(("sage", "gatv2"), p["layer"], "layer")
    for name in ("embed_dim", "n_hidden"):
        check_number(name, p[name], least=1, whole=True)
    check_number("gumbel_temperature", p["gumbel_temperature"], above=0)
    check_number("dropout", p["dropout"], least=0)
    if p["dropout"] >= 1:
        raise ValueError(f"dropout must be below 1, got {p['dropout']}.")
    check_number("crop_size", p["crop_size"], least=1, whole=True, optional=True)
    if image_encoder is not None and not isinstance(image_encoder, nn.Module):
        raise TypeError(f"image_encoder must be a torch.nn.Module or None, got {type(image_encoder).__name__}.")
    return p | {"scales": [name for name in SCALES if name in scales]}


def check_run(
    *,
    max_epochs: int | None,
    batch_size: int,
    lr: float,
    weight_decay: float,
    warmup: float,
    validation_fraction: float,
    patience: int,
) -> None:
    """Refuse what no training can do."""
    check_number("max_epochs", max_epochs, least=1, whole=True, optional=True)
    check_number("batch_size", batch_size, least=2, whole=True)
    check_number("patience", patience, least=1, whole=True)
    check_number("warmup", warmup, least=0, most=1)
    check_training(validation_fraction, patience, weight_decay=weight_decay, lr=lr)


def image_width(encoder: nn.Module, image: np.ndarray, has: np.ndarray, size: int, n_blocks: int) -> int:
    """How many features an encoder gives of a crop, tried on two tiles."""
    least = min(image.shape[2:])
    if least < n_blocks:
        raise ValueError(f"Tiles of {least} pixels cannot be cut into {n_blocks} x {n_blocks} crops.")
    tiles = torch.from_numpy(image[has][:2]).float()
    crops = sigmma.crops_of(tiles / 255 if image.dtype == np.uint8 else tiles, [1], size)[:, 0].numpy()
    return output_width("image", encoder, crops, np.ones(len(crops), bool))


def fit_moments(module: sigmma.Sigmma, data: TileCells) -> None:
    """Standardise by the data: cells by all that are usable, images by all that are there."""
    if data.cells is not None:
        module.cells.fit_moments(*_moments(data.cells.features[data.order]))
    if module.image_encoder is None:
        there = data.image[data.has_image]
        found = [_moments(there[:, number]) for number in range(there.shape[1])]
        module.fit_image_moments(torch.stack([m for m, _ in found]), torch.stack([s for _, s in found]))


def _moments(rows: np.ndarray) -> tuple[Tensor, Tensor]:
    mean, sd = rows.mean(axis=0, dtype=np.float64), rows.std(axis=0, dtype=np.float64)
    # a constant has a spread of rounding errors
    sd[sd <= 1e-6 * np.abs(mean)] = 0
    return torch.from_numpy(mean.astype(np.float32)), torch.from_numpy(sd.astype(np.float32))
