"""The demo's way with AESTETIK: both views corrected for the section, then one code of each spot and its surroundings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from stfuse import pp, tl
from stfuse._demo._figures import LOUD, QUIET
from stfuse._demo._html import folded, paragraph, picture, table
from stfuse._demo._methods import Route
from stfuse._demo._tour import SECTION
from stfuse._demo._words import enumeration, percent

if TYPE_CHECKING:
    from stfuse._demo._tour import Tour

PREPARATION = "recipe_cross_sample"
# both views together have 3
EQUAL_WEIGHT = 1.5
VIEWS = {"rna": "RNA", "image": "image"}
LOSSES = {"reconstruction": "error of rebuilt windows", "triplet": "loss of triplets"}

GO_ON = """
import anndata as ad
import scanpy as sc
import squidpy as sq
import stfuse

adata = sc.read_h5ad("mob.h5ad")                        # counts in X, everything below in obs, obsm and uns
stfuse.pl.spatial(adata, color="aestetik_domain", library_key="section")
sc.tl.umap(adata, neighbors_key="aestetik_neighbors")   # a map of the code; are the individuals mixed?
sc.pl.umap(adata, color=["aestetik_domain", "layer", "individual"])
sq.pl.nhood_enrichment(adata, cluster_key="aestetik_domain")

# Which pathways set a domain apart, and do all sections agree?
stfuse.tl.rank_pathways(adata, "aestetik_domain", library_key="section")
stfuse.pl.pathways(adata, groupby="aestetik_domain", library_key="section")

# A cohort of your own: counts in X, the photographs where squidpy puts them.
samples = {name: sq.read.visium(f"path/to/{name}/outs", library_id=name) for name in ("first", "second")}
for sample in samples.values():
    sample.var_names_make_unique()
cohort = ad.concat(samples, label="section", index_unique="-", uns_merge="unique")
stfuse.pp.recipe_cross_sample(cohort, batch_key="section")
stfuse.tl.aestetik(
    cohort, image_key="X_image_pca_harmony", rna_key="X_pca_harmony", library_key="section", n_clusters=7
)
stfuse.tl.domains(cohort, use_rep="X_aestetik", n_clusters=7, library_key="section")

# Correct inside the model instead: features as they are, and a batch_key.
stfuse.tl.aestetik(adata, library_key="section", batch_key="individual", n_clusters=5, key_added="inside")
"""


def correct(tour: Tour) -> None:
    """Components of both views, made comparable between sections by Harmony."""
    pp.recipe_cross_sample(tour.adata, batch_key=SECTION, seed=tour.settings.seed)


def fuse(tour: Tour) -> None:
    """Windows of both corrected views to one code."""
    image_key, rna_key = ROUTE.views
    tl.aestetik(
        tour.adata,
        image_key=image_key,
        rna_key=rna_key,
        library_key=SECTION,
        n_clusters=tour.settings.n_clusters,
        max_epochs=tour.settings.max_epochs,
        seed=tour.settings.seed,
    )


def alone(tour: Tour) -> tuple[np.ndarray, np.ndarray]:
    """Both views as they are fused, corrected already."""
    image_key, rna_key = ROUTE.views
    return np.asarray(tour.adata.obsm[image_key]), np.asarray(tour.adata.obsm[rna_key])


def done(tour: Tour) -> list[str]:
    """Say how the two views became one code."""
    image, rna = (view.shape[1] for view in alone(tour))
    side = tour.record["params"]["window_size"]
    return [
        f"RNA counts become {rna} principal components and image features {image}, and Harmony takes out of both what "
        "tells the sections apart (<code>stfuse.pp.recipe_cross_sample</code>), because staining and sequencing depth differ "
        "between slides.",
        f"AESTETIK reads both views in a window of {side} by {side} places around every spot and learns a code of it "
        "(<code>stfuse.tl.aestetik</code>). No layer label is used, neither here nor for the domains.",
    ]


def training(tour: Tour) -> str:
    """Show how the losses fell, and what the data said before training."""
    steps = steps_of(tour.adata.uns[PREPARATION]["steps"])
    return (
        paragraph(weight_words(tour.record))
        + paragraph(loss_words(tour.record))
        + picture(
            tour.figures["history"],
            "Two line charts: the error of rebuilt windows and the loss of triplets by epoch, for RNA and image.",
            "<b>How the losses fell.</b> Left the error of rebuilt windows, right the loss of triplets, each for both views. Lower is "
            "better. Falling curves say that the network learned its task, not that its domains are right: for that see the "
            '<a href="#comparison">comparison</a>.',
            "small",
        )
        + folded("The preparation, step by step", table(steps, "Steps of stfuse.pp.recipe_cross_sample", "View"))
    )


def steps_of(steps: pd.DataFrame) -> pd.DataFrame:
    """Lay the recorded steps out for a table."""
    named = steps.rename(columns={"step": "Step", "parameters": "Parameters", "writes": "Writes"})
    return named.set_index(named.pop("view").map(VIEWS))


def weight_words(record: Mapping[str, Any]) -> str:
    """Say what clusters of each view tell of the neighbours' expression, and the weight that the image got for it."""
    report, params = record["report"], record["params"]
    image = report["predicted_image"]
    best = max(share for name, share in report.items() if name.startswith("predicted_") and name != "predicted_image")
    return (
        f"AESTETIK needs no pairs to align: it learned from the windows around {int(record['n_obs']['total']):,} spots. Its code has to keep apart what "
        f"{params['n_clusters']} clusters of each view keep apart. How much should the image count? The expression of the neighbouring spots, which was "
        f"measured apart, is the judge: clusters of the image explain {percent(image)} of its variance, the best that use RNA {percent(best)}. So the image gets a "
        f"weight of {report['image_weight']:.2f}, where {EQUAL_WEIGHT} would make both views equal."
    )


def loss_words(record: Mapping[str, Any]) -> str:
    """Say how far the losses fell."""
    history = record["history"]
    told = []
    for loss, title in LOSSES.items():
        curves = {name: history[f"{loss}_{view}"] for view, name in VIEWS.items() if f"{loss}_{view}" in history}
        each = [f"from {curve.iloc[0]:.2f} to {curve.iloc[-1]:.2f} ({name})" for name, curve in curves.items()]
        told.append(f"the {title} went {enumeration(each)}")
    return f"Over {len(history)} epochs {', '.join(told)}."


def history(tour: Tour) -> Figure:
    """Draw the losses of both views, rebuilt windows beside triplets."""
    curves = tour.record["history"]
    figure, axes = plt.subplots(1, 2, figsize=(7.6, 3.0), layout="constrained")
    for ax, (loss, title) in zip(axes, LOSSES.items(), strict=True):
        for (view, name), colour in zip(VIEWS.items(), (LOUD, QUIET), strict=True):
            if f"{loss}_{view}" in curves:
                ax.plot(curves.index, curves[f"{loss}_{view}"], color=colour, lw=2, label=name)
        ax.set(xlabel="epoch", title=title, ylim=(0, None))
        ax.legend(frameon=False)
    return figure


ROUTE = Route(
    steps=(("Correct both views for the section", correct), ("Fuse image and RNA", fuse)),
    views=("X_image_pca_harmony", "X_pca_harmony"),
    alone=alone,
    batch_key=None,
    surroundings=True,
    learns="one code for each spot from both, and from the spots around it",
    done=done,
    treated="made from the same corrected views, clustered and smoothed",
    training=training,
    history=history,
    stored="the components of both views in <code>obsm['X_pca']</code> and <code>obsm['X_image_pca']</code>, corrected for the section in "
    "<code>obsm['X_pca_harmony']</code> and <code>obsm['X_image_pca_harmony']</code>, the steps that led there in "
    "<code>uns['recipe_cross_sample']</code>, ",
    go_on=GO_ON,
    packages=("harmonypy",),
)
