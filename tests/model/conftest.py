import numpy as np
import pandas as pd
import pytest
from anndata import AnnData


@pytest.fixture(scope="session")
def two_views():
    """Two Gaussian views of four shared factors; no coordinates, so that nothing but the pairs can teach."""

    def make(n=1200, p=10, q=8, noise=0.7, seed=0):
        rng = np.random.default_rng(seed)
        shared = rng.normal(size=(n, 4)) * [1.5, 1.2, 1.0, 0.8]
        adata = AnnData(obs=pd.DataFrame(index=[f"spot{i}" for i in range(n)]))
        for key, width in (("X_image", p), ("X_pca", q)):
            x = shared @ rng.normal(size=(4, width)) / 2 + noise * rng.normal(size=(n, width)) + rng.normal(size=width)
            adata.obsm[key] = x.astype(np.float32)
        return adata

    return make
