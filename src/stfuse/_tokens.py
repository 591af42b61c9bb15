"""Gene tokens: what their numbers mean, the vocabulary behind them, and how both are read from an object."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from stfuse._check import did_you_mean
from stfuse._read import listing

TOKENS = "tokens"  # the default key
PAD, MASK, FIRST = 0, 1, 2  # no token, hidden token, the first gene


@dataclass(frozen=True)
class Vocabulary:
    """Genes that have a token, in the order of their numbers, and the mean by which each is divided."""

    genes: pd.Index
    means: np.ndarray

    def __len__(self) -> int:
        return len(self.genes)

    @property
    def digest(self) -> str:
        """What tells two vocabularies apart: names, order and means."""
        content = hashlib.sha256("\n".join(map(str, self.genes)).encode())
        content.update(np.ascontiguousarray(self.means, dtype="<f8").tobytes())
        return content.hexdigest()

    def record(self) -> dict[str, np.ndarray]:
        """As it is kept in an object."""
        return {"vocabulary": np.asarray(self.genes, dtype=str), "means": self.means}

    @classmethod
    def of_record(cls, record: Any) -> Vocabulary | None:
        """Read a record; None where it is none."""
        if not isinstance(record, Mapping) or not {"vocabulary", "means"} <= set(record):
            return None
        genes = pd.Index(np.asarray(record["vocabulary"], dtype=object))
        means = np.asarray(record["means"], dtype=np.float64)
        return cls(genes, means) if means.shape == (len(genes),) else None


def read_tokens(box: Any, key: str) -> tuple[np.ndarray, Vocabulary]:
    """Read tokens (n x length) and their vocabulary; what no call of `rank_tokens` writes is refused."""
    mend = f"Tokens are written by stfuse.pp.rank_tokens(data, key_added={key!r})."
    if key not in box.obsm:
        there = list(box.obsm.keys())
        raise KeyError(f"No obsm[{key!r}].{did_you_mean(key, there)} There is {listing(there)}. {mend}")
    tokens, vocabulary = tokens_under(box, key, f"obsm[{key!r}]", mend)
    if vocabulary is None:
        raise KeyError(f"uns[{key!r}] holds no vocabulary of the tokens in obsm[{key!r}]. {mend}")
    return tokens, vocabulary


def tokens_under(box: Any, key: str, what: str, mend: str) -> tuple[np.ndarray, Vocabulary | None]:
    """Read the tokens under a key that is there, and their vocabulary, if the object has it; what are no tokens is refused.

    Without a vocabulary any whole numbers from 0 will do: they mean something to an encoder of the user's.
    """
    vocabulary = Vocabulary.of_record(box.uns.get(key))
    tokens = np.asarray(box.obsm[key])
    if (
        tokens.ndim != 2
        or tokens.dtype.kind not in "iu"
        or not tokens.size
        or (vocabulary is None and tokens.min() < 0)
    ):
        raise ValueError(
            f"{what} must hold gene tokens, observations x length, whole numbers from 0; its shape is {tokens.shape} and its dtype "
            f"{tokens.dtype}. {mend}"
        )
    if vocabulary is not None:
        _check_meaning(tokens, len(vocabulary), what, mend)
    return tokens.astype(np.int32, copy=False), vocabulary


def _check_meaning(tokens: np.ndarray, n_genes: int, what: str, mend: str) -> None:
    """Refuse what are no tokens of a vocabulary, left-aligned in every row."""
    low, high = int(tokens.min()), int(tokens.max())
    if low < 0 or high >= FIRST + n_genes or (tokens == MASK).any():
        raise ValueError(
            f"{what} has tokens that stand for no gene: they must be {PAD} or {FIRST} to {FIRST + n_genes - 1}, and are {low} to "
            f"{high}. {mend}"
        )
    if ((tokens[:, :-1] == PAD) & (tokens[:, 1:] != PAD)).any():
        raise ValueError(f"{what} has padding ({PAD}) before a gene. {mend}")


def lengths(tokens: np.ndarray) -> np.ndarray:
    """Number of genes in each row."""
    return np.count_nonzero(tokens, axis=1)
