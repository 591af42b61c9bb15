"""Survival of slides: time and event, bins of time, and the C-index."""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Real
from typing import Any

import numpy as np
import pandas as pd

from stfuse import _read
from stfuse._log import logger, warn

INVERTED = 0.95  # a larger share of events looks like a column that means the opposite
VALUES = 6  # values of a column that a message names


@dataclass(frozen=True)
class Survival:
    """Time and event of n slides, which of them are ``known``, and how the event was read, in words."""

    time: np.ndarray
    event: np.ndarray
    known: np.ndarray
    convention: str

    @property
    def n_events(self) -> int:
        """How many events there are."""
        return int(self.event[self.known].sum())


def need_sksurv() -> None:
    """Say which extra brings scikit-survival, where it is missing."""
    try:
        import sksurv  # noqa: F401
    except ImportError as error:
        raise ImportError("Survival analysis needs scikit-survival: pip install 'stfuse[survival]'.") from error


def check_event_value(value: Any) -> None:
    """Refuse what can't be one value of a column."""
    missing = isinstance(value, float) and np.isnan(value)
    if missing or not isinstance(value, str | Real | np.bool_):
        raise TypeError(f"event_value must be the value of one that had the event (True, 1, 'dead'), got {value!r}.")


def read_survival(data: Any, time_key: str, event_key: str, event_value: Any, table_key: str | None) -> Survival:
    """Read time and event of each slide; where either is missing, nothing is known of it.

    ``event_value`` in ``obs[event_key]`` means that the event happened, any other value that the slide was censored.
    """
    time = _read_times(_read.read_column(data, time_key, table_key), time_key)
    column = _read.read_column(data, event_key, table_key)
    known = ~np.isnan(time) & column.notna().to_numpy()
    if not known.any():
        raise ValueError(f"No observation has both a time in obs[{time_key!r}] and a value in obs[{event_key!r}].")
    values = column.astype(object).to_numpy()
    # 1 == True, as in Python; a missing value equals nothing
    event = np.array([there and bool(value == event_value) for there, value in zip(known, values, strict=True)])
    found = Survival(time, event, known, _convention(pd.Series(values[known]), event_key, event_value))
    if not event.any():
        raise ValueError(
            f"No events: none of the {known.sum()} value(s) of obs[{event_key!r}] is event_value={event_value!r}; it has "
            f"{_counts(pd.Series(values[known]))}. Say with event_value= which of these means that the event happened."
        )
    logger.info("%s", found.convention)
    if not known.all():
        logger.info("%d of %d observations have no time or no event", (~known).sum(), known.size)
    if found.n_events > INVERTED * known.sum():
        warn(
            f"{found.n_events} of {known.sum()} observations have the event, which is rare: {found.convention}. If the column says "
            "who was censored, name its value for an event with event_value=."
        )
    return found


def _read_times(column: pd.Series, key: str) -> np.ndarray:
    if not pd.api.types.is_numeric_dtype(column.dtype) or pd.api.types.is_bool_dtype(column.dtype):
        raise ValueError(
            f"obs[{key!r}] (time_key) must hold numbers, such as months until event or end of follow-up; its dtype is {column.dtype}."
        )
    time = column.to_numpy(dtype=float, na_value=np.nan)
    wrong = np.flatnonzero((time <= 0) | np.isinf(time))
    if wrong.size:
        raise ValueError(
            f"obs[{key!r}] (time_key) has {wrong.size} time(s) that are not finite and above 0, for example {time[wrong[0]]:g} of "
            f"{column.index[wrong[0]]!r}: leave these observations out, or set their time to NaN, so that they are predicted only."
        )
    return time


def _counts(values: pd.Series) -> str:
    counts = values.map(repr).value_counts()
    told = ", ".join(f"{value} ({count})" for value, count in counts.iloc[:VALUES].items())
    return told + (f" and {len(counts) - VALUES} more" if len(counts) > VALUES else "")


def _convention(values: pd.Series, key: str, event_value: Any) -> str:
    event = values == event_value
    rest = _counts(values[~event]) if not event.all() else "nothing else"
    return f"obs[{key!r}] = {event_value!r} is read as an event ({int(event.sum())}), {rest} as censored"


def bin_edges(time: np.ndarray, event: np.ndarray, n_bins: int) -> np.ndarray:
    """Cut time into bins that hold equally many events: the inner edges, at most ``n_bins - 1``; the outer ends are open.

    An edge is the time of an event and the last of its bin. Where many events share a time there are fewer bins, so that each holds
    at least one event.
    """
    times = time[event]
    edges = np.unique(np.quantile(times, np.arange(1, n_bins) / n_bins, method="inverted_cdf"))
    return edges[edges < times.max()]


def bins_of(time: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Bin in which each time lies."""
    return np.searchsorted(edges, time, side="left")


def outcome(time: np.ndarray, event: np.ndarray) -> np.ndarray:
    """Time and event as scikit-survival takes them."""
    from sksurv.util import Surv

    return Surv.from_arrays(event=event, time=time)


def concordance(time: np.ndarray, event: np.ndarray, risk: np.ndarray) -> float:
    """Harrell's C: of the pairs of which it is known who had the event first, how often that one has the higher risk.

    NaN where there is no such pair. Pairs of equal risk count one half.
    """
    from sksurv.exceptions import NoComparablePairException
    from sksurv.metrics import concordance_index_censored

    if len(time) < 2 or not event.any():
        return float("nan")
    try:
        return float(concordance_index_censored(event, time, risk)[0])
    except NoComparablePairException:
        return float("nan")
