"""Domains of the fused code beside those of each view alone and of both side by side."""

from __future__ import annotations

import numpy as np
import pandas as pd
from anndata import AnnData

from stfuse import _keys, metrics, tl
from stfuse._demo._tour import FUSED, LAYER, SECTION, SLOTS, Tour, by_layer

REPRESENTATIONS = {
    FUSED: SLOTS.fused,
    "RNA alone": _keys.RNA,
    "Image alone": "X_image_pca",
    "Side by side": "X_concat",
}


def compare(tour: Tour) -> None:
    """Score domains against the known layers, for as many domains as layers and for one and two more."""
    adata, settings = tour.adata, tour.settings
    layers = adata.obs[LAYER].nunique()
    numbers = sorted({settings.n_clusters, layers, layers + 1, layers + 2})
    other = rivals(adata, settings.seed)
    scores = {}
    for name, rep in REPRESENTATIONS.items():
        for number in numbers:
            labels = cluster(other, rep, number, settings.seed)
            scores[name, number] = metrics.domain_scores(adata.obs[LAYER], labels)
            if number == settings.n_clusters:
                tour.rivals[name] = pd.Series(by_layer(adata, labels), index=adata.obs_names)
    table = pd.DataFrame(scores).T
    tour.by_number = table["ari"].unstack()
    tour.comparison = table.xs(settings.n_clusters, level=1)[["ari", "nmi"]].rename(columns=str.upper)


def rivals(adata: AnnData, seed: int) -> AnnData:
    """Put every representation into an object of its own, so that mob.h5ad keeps only what a user would want."""
    section = adata.obs[SECTION]
    other = AnnData(obs=adata.obs[[SECTION]].copy(), uns={"spatial": adata.uns["spatial"]})
    other.obsm.update({key: adata.obsm[key] for key in (_keys.SPATIAL, _keys.RNA, _keys.IMAGE, SLOTS.fused)})
    tl.concat(other, library_key=SECTION, batch_key=SECTION, seed=seed)
    # every rival gets the centring that the fusion got
    other.obsm[_keys.RNA] = centred(np.asarray(adata.obsm[_keys.RNA]), section)
    other.obsm["X_image_pca"] = standardised_pca(centred(np.asarray(adata.obsm[_keys.IMAGE]), section), seed)
    return other


def cluster(adata: AnnData, use_rep: str, n_clusters: int, seed: int) -> pd.Series:
    """Find domains in the way of the demo, whatever the representation."""
    tl.domains(
        adata,
        use_rep=use_rep,
        n_clusters=n_clusters,
        library_key=SECTION,
        key_added="found",
        neighbors=False,
        seed=seed,
    )
    return adata.obs["found"]


def centred(features: np.ndarray, section: pd.Series) -> np.ndarray:
    """Take the mean of its section from every row."""
    table = pd.DataFrame(features, index=section.index)
    return (table - table.groupby(section, observed=True).transform("mean")).to_numpy()


def standardised_pca(features: np.ndarray, seed: int, n_components: int = 20) -> np.ndarray:
    """Principal components of standardised features, as one would use the image on its own."""
    from sklearn.decomposition import PCA
    from sklearn.preprocessing import StandardScaler

    scaled = StandardScaler().fit_transform(features)
    return PCA(min(n_components, *scaled.shape), random_state=seed).fit_transform(scaled).astype(np.float32)
