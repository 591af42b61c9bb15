"""Pictures of tissue, codes and training."""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach(
    __name__,
    submod_attrs={
        "_attention": ["attention"],
        "_composition": ["composition"],
        "_embedding": ["embedding"],
        "_expression": ["expression"],
        "_history": ["history"],
        "_niche_map": ["niche_map"],
        "_pathways": ["pathways"],
        "_retrieval": ["retrieval"],
        "_scales": ["scales"],
        "_spatial": ["spatial"],
        "_survival": ["survival"],
    },
)
