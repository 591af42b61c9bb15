"""What MIRROR is made of and trained by: this package's choices, those of the publication, and what is refused."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from stfuse._check import check_flag, check_number
from stfuse.model._base import pick
from stfuse.model._training import check_training
from stfuse.train._mirror_plan import Weights

STEP = 8  # heads are so many at most in a slide encoder, and have to divide the width


class Choices(NamedTuple):
    """What a call leaves open."""

    slide_encoder: str
    dim: int
    detach: bool
    max_epochs: int
    batch_size: int
    lr: float
    weight_decay: float
    validation_fraction: float


OURS = Choices("abmil", 256, True, 30, 32, 1e-3, 0.01, 0.1)
PUBLISHED = Choices("transmil", 768, False, 100, 16, 2e-5, 0.0, 0.0)


def chosen(given: Mapping[str, Any], faithful: bool) -> dict[str, Any]:
    """Put in what a call left open."""
    defaults = (PUBLISHED if faithful else OURS)._asdict()
    return {name: defaults[name] if value is None and name in defaults else value for name, value in given.items()}


def read_weights(weights: Sequence[float] | Mapping[str, float] | None) -> dict[str, float]:
    """Weights by the name of their loss: five in order, or some by name."""
    names = Weights._fields
    if weights is None:
        return Weights()._asdict()
    if isinstance(weights, Mapping):
        unknown = [name for name in weights if name not in names]
        if unknown:
            raise ValueError(f"weights knows {', '.join(names)}, got {unknown[0]!r}.")
        found = Weights()._asdict() | dict(weights)
    elif not isinstance(weights, Sequence) or len(weights) != len(names) or isinstance(weights, str):  # type: ignore[unreachable]
        raise ValueError(
            f"weights must be {len(names)} numbers ({', '.join(names)}) or a dict of some, got {weights!r}."
        )
    else:
        found = dict(zip(names, weights, strict=True))
    for name, number in found.items():
        check_number(f"weights: {name}", number, least=0)
    if not any(found.values()):
        raise ValueError("weights are all zero: there is nothing to learn.")
    return {name: float(number) for name, number in found.items()}


def check_architecture(params: Mapping[str, Any]) -> dict[str, Any]:
    """Refuse what makes no module; return the parameters with what was left open."""
    check_flag("faithful", params["faithful"])
    p = chosen(params, params["faithful"])
    pick(("abmil", "transmil"), p["slide_encoder"], "slide_encoder")
    check_number("dim", p["dim"], least=STEP, whole=True)
    if p["dim"] % STEP:
        raise ValueError(f"dim must be a multiple of {STEP}, so that heads divide it, got {p['dim']}.")
    check_number("n_prototypes", p["n_prototypes"], least=2, whole=True)
    check_number("n_tiles", p["n_tiles"], least=1, whole=True, optional=True)
    if p["n_tiles"] is None and params["faithful"]:
        raise ValueError("faithful=True draws a fixed number of tiles a slide: give n_tiles.")
    check_number("mask_ratio", p["mask_ratio"], above=0)
    if p["mask_ratio"] >= 1:
        raise ValueError(f"mask_ratio must be below 1, got {p['mask_ratio']}.")
    check_flag("detach", p["detach"])
    return p | {"weights": read_weights(p["weights"])}


def check_run(run: Mapping[str, Any], faithful: bool) -> dict[str, Any]:
    """Refuse what no training can do; return the arguments with what was left open."""
    r = chosen(run, faithful)
    check_number("max_epochs", r["max_epochs"], least=1, whole=True)
    check_number("batch_size", r["batch_size"], least=2, whole=True)
    check_number("patience", r["patience"], least=1, whole=True)
    check_training(r["validation_fraction"], r["patience"], weight_decay=r["weight_decay"], lr=r["lr"])
    return r
