"""Numbers that score codes, domains and predictions: pure functions on arrays."""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach(
    __name__,
    submod_attrs={
        "_domains": ["domain_scores"],
        "_expression": ["gene_pearson", "top_genes"],
        "_integration": ["integration_scores"],
        "_prediction": ["balanced_accuracy", "macro_f1", "micro_f1", "r2", "weighted_f1"],
        "_retrieval": ["recall_at_percent", "retrieval_ranks"],
        "_separation": ["davies_bouldin", "silhouette"],
    },
)
