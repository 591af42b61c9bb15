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
PIECES, SMALLEST_PIECE = 6, 3  # pieces of tissue held out in all, and pairs in one
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


def split_pairs(paired: np.ndarray, fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Pairs for training and pairs held out for validation; none are held out when there are too few to tell anything."""
    pairs = np.flatnonzero(paired)
    n = min(round(fraction * pairs.size), MAX_HELD_OUT)
    if n < 2 or pairs.size < MIN_HELD_OUT:
        return pairs, pairs[:0]
    order = np.random.default_rng(seed).permutation(pairs)
    return np.sort(order[n:]), np.sort(order[:n])


def split_groups(
    paired: np.ndarray, groups: np.ndarray | None, fraction: float, seed: int
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """Like `split_pairs`, of whole groups: whoever is held out is not seen at all."""
    if groups is None:
        return split_pairs(paired, fraction, seed)
    pairs = np.flatnonzero(paired)
    names, group = np.unique(groups[pairs], return_inverse=True)
    some, _ = split_pairs(np.ones(names.size, bool), fraction, seed)
    inside = np.isin(group, some)
    return pairs[inside], pairs[~inside]


def split_tissue(views: Views, fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Like `split_pairs`, of round pieces of tissue, and the piece of each held-out pair.

    Neighbouring spots are so alike that they tell of each other. Every section gives as many pieces as make six of all, around
    places far from each other. Without coordinates anything is held out, each pair a piece of its own.
    """
    pairs = np.flatnonzero(views.paired)
    if fraction == 0 or views.spatial is None:
        some, out = split_pairs(views.paired, fraction, seed)
        return some, out, np.arange(out.size)
    rng = np.random.default_rng(seed)
    fraction = min(fraction, MAX_HELD_OUT / pairs.size)
    piece = np.full(views.n_obs, -1)
    sections = np.unique(views.section[pairs])
    for code in sections:
        left = pairs[views.section[pairs] == code]
        wanted = round(fraction * left.size)
        n_pieces = max(1, min(-(-PIECES // sections.size), wanted // SMALLEST_PIECE))
        middles = views.spatial[left[_far_apart(views.spatial[left], n_pieces, rng)]]
        for size, middle in zip(
            np.diff(np.linspace(0, wanted, n_pieces + 1).round().astype(int)), middles, strict=True
        ):
            order = np.argsort(np.square(views.spatial[left] - middle).sum(axis=1), kind="stable")
            piece[left[order[:size]]] = piece.max() + 1
            left = np.sort(left[order[size:]])
    out = np.flatnonzero(piece >= 0)
    return np.setdiff1d(pairs, out), out, piece[out]


def _far_apart(places: np.ndarray, n: int, rng: np.random.Generator) -> list[int]:
    """Rows of places, each the farthest from those before."""
    chosen = [int(rng.integers(len(places)))]
    distance = np.full(len(places), np.inf)
    for _ in range(n - 1):
        distance = np.minimum(distance, np.square(places - places[chosen[-1]]).sum(axis=1))
        chosen.append(int(distance.argmax()))
    return chosen


def verdict(keep: KeepBest | None, report: dict[str, float], piece: np.ndarray | None = None) -> int:
    """Epochs after which held-out pairs are better than at the start by `GATE` standard errors; 0 = they are not.

    ``piece`` numbers the pieces of tissue that the pairs lie in, of which each counts as one observation.
    """
    if keep is None or keep.state is None:
        return 0
    gain = keep.start - keep.best
    parts = gain if piece is None else np.array([gain[piece == code].mean() for code in np.unique(piece)])
    error = float(parts.std(ddof=1) / np.sqrt(parts.size)) if parts.size > 1 else np.inf
    report |= {"held_out_gain": float(parts.mean()), "held_out_gain_se": error}
    return keep.best_epoch if parts.mean() > GATE * error else 0


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
