"""From raw data to the two views: image features, expression features, pairs."""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach(
    __name__,
    submod_attrs={
        "_correct_batch": ["correct_batch"],
        "_encoders": ["encoders"],
        "_hide_pairs": ["hide_pairs"],
        "_image_features": ["image_features"],
        "_cell_graph": ["cell_graph"],
        "_neighbor_mean": ["neighbor_mean"],
        "_normalize_stain": ["normalize_stain"],
        "_pseudobulk": ["pseudobulk"],
        "_rank_tokens": ["rank_tokens"],
        "_recipe": ["rna_features"],
        "_recipe_cross_sample": ["recipe_cross_sample"],
        "_select_genes": ["select_genes"],
        "_tessellate": ["tessellate"],
    },
)
