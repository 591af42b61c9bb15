"""Small parts of training on pairs: what is held out, and what it says."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from stfuse._check import check_number
from stfuse._views import Views
from stfuse.train._batches import ViewTensors
from stfuse.train._fit import KeepBest

MIN_HELD_OUT = 10
GATE = 3.0  # standard errors; the best of many epochs looks better than it is
MAX_HELD_OUT = 2_000  # more would make the verdict no surer and its similarities large


def check_training(validation_fraction: float, patience: int | None, *, weight_decay: float, **rates: float) -> None:
    """Refuse what no training can do. ``rates`` are learning rates by name."""
    for name, rate in rates.items():
        check_number(name, rate, above=0)
    check_number("weight_decay", weight_decay, least=0)
    check_number("validation_fraction", validation_fraction, least=0)
    if validation_fraction >= 1:
        raise ValueError(f"validation_fraction must be in [0, 1), got {validation_fraction}.")
    if patience is not None and patience < 1:
        raise ValueError(f"patience must be None or at least 1, got {patience}.")


def split_pairs(views: Views, fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Pairs for training and pairs held out for validation; none are held out when there are too few to tell anything."""
    pairs = np.flatnonzero(views.paired)
    n = min(round(fraction * pairs.size), MAX_HELD_OUT)
    if n < 2 or pairs.size < MIN_HELD_OUT:
        return pairs, pairs[:0]
    order = np.random.default_rng(seed).permutation(pairs)
    return np.sort(order[n:]), np.sort(order[:n])


def split_tissue(views: Views, fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Like `split_pairs`, of round pieces of tissue, for neighbours are so alike that they tell of each other.

    Of every section the pairs around one of them are held out; anything, where nothing says how the pairs lie.
    """
    pairs = np.flatnonzero(views.paired)
    if fraction == 0 or views.spatial is None:
        return split_pairs(views, fraction, seed)
    rng = np.random.default_rng(seed)
    fraction = min(fraction, MAX_HELD_OUT / pairs.size)
    held = []
    for code in np.unique(views.section[pairs]):
        inside = pairs[views.section[pairs] == code]
        middle = views.spatial[rng.choice(inside)]
        distance = np.square(views.spatial[inside] - middle).sum(axis=1)
        held.append(inside[np.argsort(distance, kind="stable")[: round(fraction * inside.size)]])
    out = np.sort(np.concatenate(held))
    return np.setdiff1d(pairs, out), out


def verdict(keep: KeepBest | None, report: dict[str, float]) -> int:
    """Epochs after which held-out pairs are better than at the start by `GATE` standard errors; 0 = they are not."""
    if keep is None or keep.state is None:
        return 0
    gain = keep.start - keep.best
    error = float(gain.std() / np.sqrt(gain.size))
    report |= {"held_out_gain": float(gain.mean()), "held_out_gain_se": error}
    return keep.best_epoch if gain.mean() > GATE * error else 0


def tensors_of(image: Tensor, rna: Tensor, views: Views, pairs: np.ndarray, held_out: np.ndarray) -> ViewTensors:
    """Pack rows and index lists for a plan. Held-out pairs stay among the unpaired rows."""
    return ViewTensors(
        image=image,
        rna=rna,
        rows_image=torch.from_numpy(np.flatnonzero(views.has_image)),
        rows_rna=torch.from_numpy(np.flatnonzero(views.has_rna)),
        pairs=torch.from_numpy(pairs),
        held_out=torch.from_numpy(held_out),
    )


def raw_tensors(views: Views, pairs: np.ndarray, held_out: np.ndarray) -> ViewTensors:
    """Features as they lie in memory, without a copy."""
    return tensors_of(torch.from_numpy(views.image), torch.from_numpy(views.rna), views, pairs, held_out)
