"""Domains of the fused code beside those of each view alone and of both without learning."""

from __future__ import annotations

import pandas as pd
from anndata import AnnData

from stfuse import _keys, metrics, tl
from stfuse._demo._methods import route
from stfuse._demo._tour import FUSED, INDIVIDUAL, LAYER, SECTION, SINGLE, SURROUNDINGS, TOGETHER, Tour, by_layer


def compare(tour: Tour) -> None:
    """Score domains against the known layers, for as many domains as layers and for one and two more.

    With several individuals also against these, which domains should not follow.
    """
    adata, settings = tour.adata, tour.settings
    layers = adata.obs[LAYER].nunique()
    numbers = sorted({settings.n_clusters, layers, layers + 1, layers + 2})
    other, names = rivals(tour)
    scores = {}
    for name, rep in names.items():
        for number in numbers:
            labels = cluster(other, rep, number, settings.seed)
            scores[name, number] = metrics.domain_scores(adata.obs[LAYER], labels)
            if tour.individuals > 1:
                scores[name, number][INDIVIDUAL] = metrics.domain_scores(adata.obs[INDIVIDUAL], labels)["ari"]
            if number == settings.n_clusters:
                tour.rivals[name] = pd.Series(by_layer(adata, labels), index=adata.obs_names)
    table = pd.DataFrame(scores).T.drop(columns="n_obs")
    tour.by_number = table["ari"].unstack()
    tour.comparison = table.xs(settings.n_clusters, level=1).rename(columns={"ari": "ARI", "nmi": "NMI"})


def rivals(tour: Tour) -> tuple[AnnData, dict[str, str]]:
    """Put every code into an object of its own, so that mob.h5ad keeps only what a user would want; tell their keys by name."""
    adata, how, slots = tour.adata, route(tour), tour.slots
    image_key, rna_key = how.views
    other = AnnData(obs=adata.obs[[SECTION]].copy(), uns={"spatial": adata.uns["spatial"]})
    other.obsm.update({key: adata.obsm[key] for key in (_keys.SPATIAL, image_key, rna_key, slots.fused)})
    # every rival gets the correction that the fusion got
    tl.concat(other, image_key=image_key, rna_key=rna_key, library_key=SECTION, batch_key=how.batch_key)
    names = {TOGETHER: "X_concat", FUSED: slots.fused}
    if how.surroundings:
        tl.neighbor_mean(other, image_key=image_key, rna_key=rna_key, library_key=SECTION, batch_key=how.batch_key)
        names[SURROUNDINGS] = "X_neighbor_mean"
    for name, key, features in zip(SINGLE, ("X_alone_image", "X_alone_rna"), how.alone(tour), strict=True):
        other.obsm[key] = features
        names[name] = key
    order = [*SINGLE, TOGETHER, SURROUNDINGS, FUSED]
    return other, {name: names[name] for name in order if name in names}


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
