"""Small real data and synthetic tissue with known truth."""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach(
    __name__,
    submod_attrs={
        "_mob": ["mob"],
        "_progeny": ["progeny"],
        "_synthetic": ["synthetic_tissue"],
        "_synthetic_cells": ["synthetic_cells"],
        "_synthetic_slides": ["synthetic_slides", "synthetic_tiles"],
        "_tiles": ["export_tiles", "read_tiles"],
    },
)
