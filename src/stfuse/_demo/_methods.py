"""The methods that the demo can take, each described in a file of its own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.figure import Figure

    from stfuse._demo._tour import Tour

# a method NAME is the ROUTE in _NAME.py; the first one is the default
METHODS = ("cameo", "aestetik")


@dataclass(frozen=True)
class Route:
    """What is particular about one method: what it computes, and what the report says of it."""

    # steps between the image features and the domains: title and function
    steps: tuple[tuple[str, Callable[[Tour], None]], ...]
    # keys of the image's and the RNA's features that are fused, and the features of each view on its own that compare fairly
    views: tuple[str, str]
    alone: Callable[[Tour], tuple[np.ndarray, np.ndarray]]
    # column within which the fusion centres its features, if it does
    batch_key: str | None
    # whether it looks at the surroundings of a spot; the mean over neighbours is among its rivals then
    surroundings: bool
    # what ends the sentence "NAME learns"
    learns: str
    # what was done between the image features and the domains, as items of HTML
    done: Callable[[Tour], list[str]]
    # how every code was treated before it was clustered
    treated: str
    # body of the section on training, and its figure
    training: Callable[[Tour], str]
    history: Callable[[Tour], Figure]
    # where mob.h5ad keeps what the method made on the way, as HTML
    stored: str
    # code to go on with
    go_on: str
    # packages whose versions matter beside those of the record
    packages: tuple[str, ...] = ()


def route(tour: Tour) -> Route:
    """Look up the route of the tour's method."""
    found: Route = import_module(f"stfuse._demo._{tour.settings.method}").ROUTE
    return found
