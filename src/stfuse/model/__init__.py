"""Model classes in the manner of scvi-tools."""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach(
    __name__,
    submod_attrs={
        "_abmil": ["ABMIL"],
        "_sigmma": ["SIGMMA"],
        "_aestetik": ["AESTETIK"],
        "_cameo": ["CAMEO"],
        "_clip": ["CLIP"],
        "_concat": ["Concat"],
        "_gat": ["GAT"],
        "_mirror": ["MIRROR"],
        "_neighbor_mean": ["NeighborMean"],
        "_pcca": ["PCCA"],
        "_umpire": ["UMPIRE"],
        "_visiumformer": ["Visiumformer"],
    },
)
