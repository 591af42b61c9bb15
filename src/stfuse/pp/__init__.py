"""From raw data to the two views: image features, expression features, pairs."""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach(
    __name__,
    submod_attrs={
        "_hide_pairs": ["hide_pairs"],
        "_image_features": ["image_features"],
        "_recipe": ["rna_features"],
    },
)
