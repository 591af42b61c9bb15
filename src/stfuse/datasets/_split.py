"""Parts of a data set for training and testing, by whole patients."""

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np
import pandas as pd
from anndata import AnnData

from stfuse import _read
from stfuse._check import check_number

FRACTIONS = {"train": 0.7, "validation": 0.15, "test": 0.15}
_NAME = re.compile(r"^\w+(\.\w+)*$")  # what the Hugging Face hub takes


def read_split(
    tiles: AnnData, split_key: str, patient_key: str | None, fractions: Mapping[str, float] | None, seed: int
) -> pd.Categorical:
    """Read the split of each tile, or make it of whole patients; without patients all is one part."""
    if split_key in tiles.obs:
        if fractions is not None:
            raise ValueError(
                f"obs[{split_key!r}] holds a split, so there is none to make: leave out fractions=, or name a column that is "
                "not there with split_key=."
            )
        codes, names = _read.read_codes(tiles.obs[split_key], split_key, "split_key")
        split = pd.Categorical.from_codes(codes, names)
    elif patient_key is None:
        if fractions is not None:
            raise ValueError("A split is made by whole patients: name the column of obs that tells them, patient_key=.")
        split = pd.Categorical.from_codes(np.zeros(tiles.n_obs, dtype=np.int64), ["train"])
    else:
        patients, _ = _read.read_codes(_read.read_column(tiles, patient_key), patient_key, "patient_key")
        split = by_patient(patients, FRACTIONS if fractions is None else fractions, seed)
    strange = [name for name in split.categories if not _NAME.match(str(name))]
    if strange:
        raise ValueError(
            f"The part {strange[0]!r} of obs[{split_key!r}] names files, so it may hold letters, digits, underscores and dots "
            "only."
        )
    if patient_key is not None:
        _check_patients(_read.read_column(tiles, patient_key), split, patient_key)
    return split


def by_patient(patients: np.ndarray, fractions: Mapping[str, float], seed: int) -> pd.Categorical:
    """Deal patients (codes) out at random, each to the part that lacks most of its fraction of the tiles."""
    for name, value in fractions.items():
        check_number(f"fractions[{name!r}]", value, above=0, most=1)
    if not fractions or abs(sum(fractions.values()) - 1) > 1e-6:
        raise ValueError(f"fractions must add up to 1, but they are {dict(fractions)}.")
    present, counts = np.unique(patients, return_counts=True)
    names = list(fractions)
    if len(present) < len(names):
        raise ValueError(
            f"{len(names)} parts ({', '.join(names)}) need at least as many patients, and there are {len(present)}: name "
            'fewer parts, for example fractions={"train": 0.5, "test": 0.5}.'
        )
    lacking = np.array([fractions[name] for name in names]) * counts.sum()
    given = np.zeros(len(names), dtype=np.int64)
    part = np.empty(len(present), dtype=np.int64)
    order = np.random.default_rng(seed).permutation(len(present))
    for left, i in zip(range(len(order), 0, -1), order, strict=True):
        # the last patients go to the parts that have none yet
        open_ = np.flatnonzero(given == 0) if (given == 0).sum() == left else np.arange(len(names))
        part[i] = open_[np.argmax(lacking[open_])]
        lacking[part[i]] -= counts[i]
        given[part[i]] += 1
    return pd.Categorical.from_codes(part[np.searchsorted(present, patients)], names)


def _check_patients(patients: pd.Series, split: pd.Categorical, patient_key: str) -> None:
    codes = pd.Series(split.codes).groupby(patients.astype(str).to_numpy()).nunique()
    torn = codes.index[codes > 1]
    if len(torn):
        raise ValueError(
            f"{len(torn)} patient(s) of obs[{patient_key!r}] are in several parts of the split (first: {torn[0]!r}), so that "
            "what is learned from a patient would be tested on the same one: assign whole patients, or leave out the split "
            "column and let it be made."
        )
