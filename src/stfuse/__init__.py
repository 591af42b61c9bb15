"""stfuse: fuse histology images and spatial transcriptomics, fully or partly paired.

The public surface is six namespaces, each loaded when it is first used:

- ``stfuse.pp`` turns raw data into the two views (image features, expression features),
- ``stfuse.tl`` fuses the views and works with the fused codes,
- ``stfuse.pl`` draws the results,
- ``stfuse.model`` holds the models behind ``stfuse.tl``,
- ``stfuse.metrics`` holds plain functions that score codes,
- ``stfuse.datasets`` holds small real and synthetic tissue.
"""

from typing import TYPE_CHECKING, Any

import lazy_loader as _lazy

if TYPE_CHECKING:
    from stfuse import datasets, metrics, model, pl, pp, tl

    __version__: str

_load, _, _namespaces = _lazy.attach(__name__, submodules=["pp", "tl", "pl", "model", "metrics", "datasets"])

__all__ = ["__version__", "datasets", "metrics", "model", "pl", "pp", "tl"]


def __getattr__(name: str) -> Any:
    # importlib.metadata costs 50 ms, so the version is looked up only when somebody asks for it.
    if name == "__version__":
        from importlib.metadata import version

        return globals().setdefault(name, version("stfuse"))
    return _load(name)


def __dir__() -> list[str]:
    return list(__all__)
