"""The combinations that tuning tries: which names a grid may have, and to which step each belongs."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from stfuse import _read, _registry
from stfuse._check import check_text, did_you_mean

# Table 1 of the cross-sample study of AESTETIK
DEFAULT_GRIDS: dict[str, dict[str, list[Any]]] = {
    "aestetik": {
        "image_weight": [0.0, 1.0, 1.5, 2.0, 3.0],
        "window_size": [5, 7],
        "domains.refine": [True, False],
    }
}
CORRECTION, DOMAINS = "correct_batch", "domains"
# What tuning may vary of the steps around the method: not the keys, nor what it decides itself.
STEPS = {
    CORRECTION: ("method", "theta", "sigma", "knn", "n_layers", "n_latent", "max_epochs", "layer"),
    DOMAINS: ("method", "refine", "n_neighbors_refine", "n_neighbors"),
}
# Arguments of a method that tuning gives itself, or that would leave something behind.
OWN = ("data", "library_key", "n_clusters", "seed", "progress", "table_key", "key_added", "copy", "return_model")


@dataclass(frozen=True)
class Combination:
    """One point of the grid, parted by step: arguments of the correction, of the method and of the domains."""

    values: dict[str, Any]
    correction: dict[str, Any]
    arguments: dict[str, Any]
    domains: dict[str, Any]


@dataclass(frozen=True)
class Grid:
    """Names and values of a grid, names in the order of the steps: what comes first changes slowest."""

    method: str
    values: dict[str, list[Any]]

    @property
    def corrects(self) -> bool:
        """Whether an argument of the batch correction is among the names."""
        return any(_step(name) == CORRECTION for name in self.values)

    def combinations(self) -> list[Combination]:
        """Give all combinations; neighbours in the list share as many early steps as there can be."""
        found = []
        for point in itertools.product(*self.values.values()):
            values = dict(zip(self.values, point, strict=True))
            parts: dict[str, dict[str, Any]] = {CORRECTION: {}, "": {}, DOMAINS: {}}
            for name, value in values.items():
                step = _step(name)
                parts[step][name.removeprefix(f"{step}.")] = value
            found.append(Combination(values, parts[CORRECTION], parts[""], parts[DOMAINS]))
        return found

    def columns(self, combinations: list[Combination]) -> dict[str, Any]:
        """Give one column of the table for each name, in types that h5ad holds: numbers, booleans, or else text."""
        return {
            name: _column([c.values[name] for c in combinations], self.values[name])
            for name in sorted_names(self.values)
        }


def sorted_names(values: Mapping[str, Any]) -> list[str]:
    """Order names as steps are taken: correction, method, domains."""
    order = {CORRECTION: 0, "": 1, DOMAINS: 2}
    return sorted(values, key=lambda name: order[_step(name)])


def _step(name: str) -> str:
    step = name.partition(".")[0]
    return step if "." in name and step in STEPS else ""


def _column(values: list[Any], searched: list[Any]) -> Any:
    kinds = {bool if isinstance(v, bool | np.bool_) else float if _is_number(v) else str for v in searched}
    if kinds == {bool}:
        return np.array(values, dtype=bool)
    if kinds == {float}:
        whole = all(isinstance(v, int | np.integer) for v in searched)
        return np.array(values, dtype=np.int64 if whole else np.float64)
    return pd.array([str(v) for v in values], dtype=object)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | np.integer | np.floating)


def signature_of(method: Any) -> dict[str, inspect.Parameter]:
    """Look a method up, and give the parameters of its function in ``tl`` by name."""
    from stfuse import tl

    check_text("method", method)
    if method not in _registry.fusions():
        raise ValueError(
            f"Unknown method {method!r}.{did_you_mean(method, _registry.fusions())} Registered: "
            f"{', '.join(sorted(_registry.fusions()))}."
        )
    return dict(inspect.signature(getattr(tl, method)).parameters)


def check_fixed(fixed: Mapping[str, Any], method: str) -> None:
    """Refuse fixed arguments that the method does not take, or that tuning gives it."""
    for name in fixed:
        if name in OWN:
            raise ValueError(f"{name}= is given to stfuse.tl.{method} by tune itself: leave it out.")
        if name not in signature_of(method):
            there = [p for p in signature_of(method) if p not in OWN]
            raise TypeError(
                f"{name!r} is no argument of tune or of stfuse.tl.{method}.{did_you_mean(name, there)} The latter takes "
                f"{_read.listing(there)}."
            )


def read_grid(grid: Any, method: str, fixed: Mapping[str, Any]) -> Grid:
    """Check a grid, name by name and value by value; None = the published one of the method."""
    if grid is None:
        if method not in DEFAULT_GRIDS:
            raise ValueError(
                f"There is no published grid for method={method!r}: give grid=, such as {{'domains.refine': [True, False]}}."
            )
        grid = {name: values for name, values in DEFAULT_GRIDS[method].items() if name not in fixed}
    if not isinstance(grid, Mapping):
        raise TypeError(f"grid must be a dict of lists, argument to values, got {grid!r}.")
    if not grid:
        raise ValueError(
            "grid is empty: name at least one argument and the values to try, {'domains.refine': [True, False]}."
        )
    values = {}
    for name, tried in grid.items():
        _check_name(name, method, fixed)
        values[name] = _check_values(name, tried)
    return Grid(method, {name: values[name] for name in sorted_names(values)})


def _check_name(name: Any, method: str, fixed: Mapping[str, Any]) -> None:
    if not isinstance(name, str):
        raise TypeError(f"The names of a grid must be strings, got {name!r}.")
    step = _step(name)
    argument = name.removeprefix(f"{step}.")
    if name in fixed:
        raise ValueError(
            f"{name!r} is in the grid and given as an argument too ({name}={fixed[name]!r}): leave one out."
        )
    own = [p for p in signature_of(method) if p not in OWN]
    if argument in (STEPS[step] if step else own):
        return
    if not step and argument in OWN:
        raise ValueError(f"{name!r} can't be in the grid: tune decides it, or takes it as an argument of its own.")
    around = [f"{other}.{p}" for other, arguments in STEPS.items() for p in arguments]
    meant = next((full for full in around if full.partition(".")[2] == name), None)
    hint = f" Did you mean {meant!r}?" if meant else did_you_mean(name, own + around)
    raise ValueError(
        f"grid names {name!r}, which can't be tuned.{hint} There are the arguments of stfuse.tl.{method}, "
        f"{_read.listing(own)}, and of the steps around it, {_read.listing(around)}."
    )


def _check_values(name: str, tried: Any) -> list[Any]:
    if isinstance(tried, np.ndarray) and tried.ndim == 1:
        tried = tried.tolist()
    if not isinstance(tried, list | tuple | range):
        raise TypeError(f"grid[{name!r}] must be a list of the values to try, got {tried!r}.")
    if not len(tried):
        raise ValueError(f"grid[{name!r}] is empty: give at least one value.")
    values = list(tried)
    for i, value in enumerate(values):
        if value in values[:i]:
            raise ValueError(f"grid[{name!r}] has {value!r} twice.")
    return values
