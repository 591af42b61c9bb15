"""Fuse the views, and work with the codes."""

import lazy_loader as lazy

# One row a file. The fusion methods and the translation stand first, what works on codes after.
__getattr__, __dir__, __all__ = lazy.attach(
    __name__,
    submod_attrs={
        "_cameo": ["cameo"],
        "_aestetik": ["aestetik"],
        "_pcca": ["pcca"],
        "_clip": ["clip"],
        "_umpire": ["umpire"],
        "_sigmma": ["sigmma"],
        "_concat": ["concat"],
        "_neighbor_mean": ["neighbor_mean"],
        "_visiumformer": ["visiumformer"],
        "_gat": ["gat"],
        "_scvi": ["scvi"],
        "_translate": ["translate"],
        "_predict_expression": ["predict_expression"],
        "_retrieve": ["retrieve"],
        "_domains": ["domains"],
        "_probe": ["probe"],
        "_hest_probe": ["hest_probe"],
        "_survival": ["survival"],
        "_mil": ["mil"],
        "_mirror": ["mirror"],
        "_compare_slides": ["compare_slides"],
        "_tune": ["tune"],
        "_pathways": ["pathways"],
        "_rank_pathways": ["rank_pathways"],
        "_niches": ["niches"],
    },
)
