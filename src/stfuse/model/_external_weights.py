"""Weights of a transformer that was trained elsewhere: other names, and genes in another order."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal

import pandas as pd
import torch
from torch import Tensor

from stfuse._check import check_number
from stfuse._log import warn
from stfuse._tokens import FIRST, MASK
from stfuse.module.visiumformer import Visiumformer
from stfuse.pp._encoders._weights import read_checkpoint

type Names = Literal["published"] | Mapping[str, str | None] | Callable[[str], str | None] | None

PUBLISHED: dict[str, str | None] = {
    "embeddings.": "embedding.",
    "positional_embedding.": "positions.",
    "encoder.layers.": "layers.",
    "classifier_head.": "head.",
    # a template of the layers, and heads for other tasks
    "encoder_layer.": None,
    "pooler_head.": None,
    "cls_head.": None,
}
EMBEDDING = "embedding.weight"
HEAD = ("head.weight", "head.bias")
LISTED = 10  # names that a message gives


def external_state(
    path: str | Path,
    module: Visiumformer,
    names: Names,
    own_genes: pd.Index,
    genes: Sequence[str | None] | None,
    mask_row: int,
) -> dict[str, Tensor]:
    """Read a file's tensors under the names of ``module``, its rows of genes in the order of ``own_genes``; all are checked."""
    state = renamed(read_checkpoint(path, allow_pickle=True), names)
    if genes is not None:
        state = _in_order(state, own_genes, genes, mask_row)
    own = module.state_dict()
    if not any(name in state for name in HEAD):
        state |= {name: own[name] for name in HEAD}
    _check(state, own, Path(path).name)
    return state


def renamed(state: dict[str, Tensor], names: Names) -> dict[str, Tensor]:
    """Give tensors their names here; what has none is left out."""
    if names is None:
        return dict(state)
    if isinstance(names, str):
        if names != "published":
            raise ValueError(f"names must be 'published', a dict, a function or None, got {names!r}.")
        names = PUBLISHED
    if isinstance(names, Mapping):
        table = names
        names = lambda name: _by_table(name, table)
    elif not callable(names):
        raise TypeError(f"names must be 'published', a dict, a function or None, got {type(names).__name__}.")
    found: dict[str, Tensor] = {}
    for name, tensor in state.items():
        own = names(name)
        if own is None:
            continue
        if own in found:
            raise ValueError(f"names gives two tensors of the file the name {own!r} (the second is {name!r}).")
        found[own] = tensor
    return found


def _by_table(name: str, table: Mapping[str, str | None]) -> str | None:
    fits = [key for key in table if key == name or (key.endswith(".") and name.startswith(key))]
    if not fits:
        return name
    key = max(fits, key=len)
    own = table[key]
    return None if own is None else own + name[len(key) :]


def _in_order(
    state: dict[str, Tensor], own_genes: pd.Index, genes: Sequence[str | None], mask_row: int
) -> dict[str, Tensor]:
    """Put rows of embedding and head in the order of the vocabulary; a gene without a row gets the mean of the others."""
    rows = pd.Series({row: gene for row, gene in enumerate(genes) if gene is not None}, dtype=object)
    if not rows.is_unique:
        raise ValueError(f"genes names a gene twice: {rows[rows.duplicated()].iloc[0]!r}.")
    place = pd.Index(rows).get_indexer(own_genes)
    known = place >= 0
    if 2 * known.sum() < len(own_genes):
        raise ValueError(
            f"Only {known.sum()} of the vocabulary's {len(own_genes)} genes are in genes= (missing for example "
            f"{own_genes[~known][0]!r}): do both name genes in the same way?"
        )
    row = torch.from_numpy(rows.index.to_numpy()[place[known]])
    state = dict(state)
    for name in (EMBEDDING, *HEAD):
        if name not in state:
            continue
        table, first = state[name], FIRST if name == EMBEDDING else 0
        least = int(row.max()) + 1
        if len(table) < least:
            raise ValueError(f"genes has a gene in row {least - 1}, but the file's {name} has {len(table)} rows.")
        picked = table[row]
        ordered = table.new_zeros(first + len(own_genes), *table.shape[1:])
        ordered[first:] = picked.mean(0)
        ordered[first + torch.from_numpy(known.nonzero()[0])] = picked
        if name == EMBEDDING:
            check_number("mask_row", mask_row, least=0, most=len(table) - 1, whole=True)
            ordered[MASK] = table[mask_row]
        state[name] = ordered
    if not known.all():
        warn(
            f"{(~known).sum()} of the vocabulary's {len(own_genes)} genes are not in genes=: they get the mean of the others' "
            "embeddings."
        )
    return state


def _check(state: dict[str, Tensor], own: dict[str, Tensor], file: str) -> None:
    missing = [name for name in own if name not in state]
    unexpected = [name for name in state if name not in own]
    shapes = [
        f"{name} ({'x'.join(map(str, state[name].shape))}, not {'x'.join(map(str, own[name].shape))})"
        for name in own
        if name in state and state[name].shape != own[name].shape
    ]
    wrong = [
        f"{word}: {', '.join(found[:LISTED])}{' ...' if len(found) > LISTED else ''}"
        for word, found in (("missing", missing), ("unexpected", unexpected), ("of another shape", shapes))
        if found
    ]
    if wrong:
        raise ValueError(
            f"The weights in {file} do not fit this Visiumformer. {'; '.join(wrong)}. Give names= from the file's names to those here, "
            "genes= for another vocabulary, or the sizes of that model."
        )
