"""The demo's way with CAMEO: one code in one call, and what held-out pairs say of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from stfuse import _keys, tl
from stfuse._demo._figures import LOUD, QUIET
from stfuse._demo._html import paragraph, picture
from stfuse._demo._methods import Route
from stfuse._demo._tour import SECTION

if TYPE_CHECKING:
    from stfuse._demo._tour import Tour

# 100 is the default of stfuse.tl.cameo; these are most of the gain in less than half of the time
MAX_EPOCHS = 40

GO_ON = """
import scanpy as sc
import squidpy as sq
import stfuse

adata = sc.read_h5ad("mob.h5ad")                       # counts in X, everything below in obs, obsm and uns
stfuse.pl.spatial(adata, color="cameo_domain", library_key="section")
sc.tl.umap(adata, neighbors_key="cameo_neighbors")     # a map of the fused code
sc.pl.umap(adata, color=["cameo_domain", "layer"])
sq.pl.nhood_enrichment(adata, cluster_key="cameo_domain")

# Your own section: counts in X, the photograph where squidpy puts it. One call makes both views and fuses them.
mine = sq.read.visium("path/to/spaceranger/outs")
stfuse.tl.cameo(mine)
stfuse.tl.domains(mine, use_rep="X_cameo", n_clusters=7)

# The linear method that CAMEO starts from: a second, nothing to tune. It is called in the same way.
stfuse.tl.pcca(adata, library_key="section", batch_key="section")

# Few spots with both views? Hide pairs on purpose and see what is lost.
stfuse.pp.hide_pairs(adata, fraction=0.6, seed=0)
stfuse.tl.cameo(adata, library_key="section", batch_key="section", paired_key="paired", key_added="few")
"""


def fuse(tour: Tour) -> None:
    """Both views to one code; the expression view is made from the counts by the default recipe."""
    settings = tour.settings
    # a section's staining and depth are no biology: each section is centred on its own mean
    tl.cameo(
        tour.adata,
        library_key=SECTION,
        batch_key=SECTION,
        max_epochs=MAX_EPOCHS if settings.max_epochs is None else settings.max_epochs,
        seed=settings.seed,
    )


def alone(tour: Tour) -> tuple[np.ndarray, np.ndarray]:
    """Both views with the centring that the fusion gives them, the image as its components."""
    section = tour.adata.obs[SECTION]
    image, rna = (centred(np.asarray(tour.adata.obsm[key]), section) for key in ROUTE.views)
    return standardised_pca(image, tour.settings.seed), rna


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


def done(tour: Tour) -> list[str]:
    """Say how the two views became one code."""
    return [
        "Its RNA counts become principal components, and CAMEO fuses the two views "
        "(<code>stfuse.tl.cameo</code>). Features are centred within each section, because staining and sequencing depth differ "
        "between slides. No layer label is used, neither here nor for the domains."
    ]


def training(tour: Tour) -> str:
    """Show training and what held-out pairs said."""
    return paragraph(fusion_words(tour.record)) + picture(
        tour.figures["history"],
        "Line chart: share of candidates that rank before the true partner of a held-out pair, by epoch, with the linear start.",
        "<b>What held-out pairs say.</b> Share of candidates that lie nearer to a patch than the RNA of its own spot, for pairs "
        "that were hidden from training. Lower is better; the dashed line is the linear start. The falling curve is the gain of training.",
        "small",
    )


def held_out(record: Mapping[str, Any]) -> pd.Series | None:
    """Share of candidates nearer than the partner of a held-out pair (geometric mean): linear start at 0, then each epoch."""
    history, report = record.get("history"), record.get("report", {})
    if history is None or "held_out_rank" not in history or "held_out_gain" not in report:
        return None
    rank = pd.concat(
        [pd.Series({0: history["held_out_rank"].min() + report["held_out_gain"]}), history["held_out_rank"]]
    )
    # the recorded score is log(share + 0.01)
    return (np.exp(rank) - 0.01).clip(lower=0.0)


def fusion_words(record: Mapping[str, Any]) -> str:
    """Say what was learned from, and what held-out pairs said."""
    words = f"CAMEO learned from {int(record['n_obs']['paired']):,} spots with both views. "
    kept, curve = int(record["report"].get("epochs_kept", 0)), held_out(record)
    if curve is None:
        return words + "No training beat the closed-form linear start on held-out pairs, so that start is the result."
    words += (
        "It starts from a linear fusion in closed form. One pair in five was hidden: where does the true partner of a hidden "
        f"patch rank among all candidates? With the linear start {share(curve.iloc[0])} of them come before it (a geometric mean), with "
        f"the network {share(curve.min())}. "
    )
    if not kept:
        return words + "That is too little to be sure of, so the linear start is the result."
    words += f"That is more than chance explains, so the network was trained again on all pairs, for {kept} epochs."
    cut = record["params"]["max_epochs"]
    if kept >= cut - 1:
        words += (
            f" Training was cut at {cut} epochs to keep the demo short; with the default number the network gains more."
        )
    return words


def share(value: float) -> str:
    """Write a small share as per cent with one digit."""
    return f"{100 * value:.1f} %"


def history(tour: Tour) -> Figure:
    """Draw where the partners of held-out pairs rank while training goes on, and where the linear start has them."""
    figure, ax = plt.subplots(figsize=(7.6, 3.0), layout="constrained")
    curve = held_out(tour.record)
    if curve is None:
        ax.text(0.5, 0.5, "No pairs were held out: the linear start is the result.", ha="center", va="center")
        ax.set_axis_off()
        return figure
    ax.plot(curve.index, curve, color=LOUD, lw=2)
    ax.axhline(curve.iloc[0], color=QUIET, ls="--", lw=1.5)
    ax.annotate("linear start", (curve.index[-1], curve.iloc[0]), (0, 5), textcoords="offset points", ha="right")
    ax.set(xlabel="epoch", ylabel="nearer than the partner", ylim=(0, None), xlim=(0, curve.index[-1]))
    ax.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=1))
    return figure


ROUTE = Route(
    steps=(("Fuse image and RNA", fuse),),
    views=(_keys.IMAGE, _keys.RNA),
    alone=alone,
    batch_key=SECTION,
    surroundings=False,
    learns="one code for each spot from both",
    done=done,
    treated="centred within each section, clustered and smoothed",
    training=training,
    history=history,
    stored="",
    go_on=GO_ON,
)
