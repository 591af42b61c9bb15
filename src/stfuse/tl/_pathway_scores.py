"""Scores of pathways that an object holds, on a scale on which sections compare."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from stfuse import _read
from stfuse._check import did_you_mean


class Activity(NamedTuple):
    """``z``: n x pathways, standard deviations from the mean of the section; ``section``: codes into ``sections``."""

    raw: pd.DataFrame
    z: pd.DataFrame
    section: np.ndarray
    sections: list[str]


def read_activity(data: Any, score_key: str, library_key: str | None, table_key: str | None) -> Activity:
    """Read scores and standardise each within its section, where staining, depth and day are the same."""
    scores = read_scores(data, score_key, table_key)
    section, names = _read.read_sections(data, library_key, table_key)
    return Activity(scores, within_sections(scores, section), section, names)


def read_scores(data: Any, score_key: str, table_key: str | None) -> pd.DataFrame:
    """Read a table of scores from ``obsm``; rows without a score are NaN throughout."""
    box: Any = _read.container(data, table_key)
    table: Any = box.obsm[score_key] if score_key in box.obsm else None
    if table is None:
        there = list(box.obsm)
        raise KeyError(
            f"No obsm[{score_key!r}].{did_you_mean(score_key, there)} There is {_read.listing(there)}. Scores of pathways "
            "are written by stfuse.tl.pathways(data)."
        )
    if not isinstance(table, pd.DataFrame):
        raise ValueError(
            f"obsm[{score_key!r}] must be a DataFrame, whose columns name the pathways, as stfuse.tl.pathways writes it; it "
            f"is a {type(table).__name__}."
        )
    values = _read.as_matrix(table, f"obsm[{score_key!r}]").astype(np.float64)
    scored = _read.check_values(values, f"obsm[{score_key!r}]")
    if not scored.any():
        raise ValueError(f"obsm[{score_key!r}] has no scores: every row is NaN.")
    return pd.DataFrame(values, index=box.obs_names, columns=table.columns.astype(str))


def within_sections(scores: pd.DataFrame, section: np.ndarray) -> pd.DataFrame:
    """Standardise by mean and standard deviation of the section.

    NaN stays, and so is all of a section with one score; where all scores are the same, they are 0.
    """
    groups = scores.groupby(section)
    centred, spread = scores - groups.transform("mean"), groups.transform("std")
    flat = spread <= 1e-12 * groups.transform(lambda part: part.abs().max())
    return (centred / spread.mask(flat, 1.0)).mask(flat & centred.notna(), 0.0)
