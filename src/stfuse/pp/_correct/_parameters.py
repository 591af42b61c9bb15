"""Which parameters belong to which correction, and what they are where nothing is given."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from stfuse._check import check_number, check_text, did_you_mean

TITLES = {"harmony": "Harmony", "scvi": "scVI", "scanorama": "Scanorama"}

# None = decided from the data
DEFAULTS: dict[str, dict[str, Any]] = {
    "harmony": {"theta": 2.0},
    "scvi": {"n_layers": 1, "n_latent": None, "max_epochs": None, "layer": None},
    "scanorama": {"sigma": 15.0, "knn": 20},
}
PACKAGES = {"harmony": "harmonypy", "scvi": "scvi-tools", "scanorama": "scanorama"}


def check_method(method: Any) -> None:
    """Refuse what is no correction."""
    if not isinstance(method, str) or method not in DEFAULTS:
        raise ValueError(
            f"method must be one of {', '.join(map(repr, DEFAULTS))}, got {method!r}.{did_you_mean(method, DEFAULTS)}"
        )


def resolve(method: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Fill in the parameters of one method; ``given`` are those of all methods, None where the user gave none."""
    check_method(method)
    for name, value in given.items():
        if value is not None and name not in DEFAULTS[method]:
            owner = next(m for m, own in DEFAULTS.items() if name in own)
            own = ", ".join(f"{n}=" for n in DEFAULTS[method])
            raise ValueError(
                f"{name}={value!r} belongs to method={owner!r}, but method={method!r} was asked for, which takes {own}."
            )
    check_number("theta", given.get("theta"), least=0, optional=True)
    check_number("sigma", given.get("sigma"), above=0, optional=True)
    for name in ("knn", "n_layers", "n_latent", "max_epochs"):
        check_number(name, given.get(name), least=1, whole=True, optional=True)
    check_text("layer", given.get("layer"), optional=True)
    return {name: default if given.get(name) is None else given[name] for name, default in DEFAULTS[method].items()}
