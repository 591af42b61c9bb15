"""Pictures of tissue, codes and training."""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach(
    __name__,
    submod_attrs={
        "_embedding": ["embedding"],
        "_expression": ["expression"],
        "_history": ["history"],
        "_pathways": ["pathways"],
        "_retrieval": ["retrieval"],
        "_spatial": ["spatial"],
    },
)
