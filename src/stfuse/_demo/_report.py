"""The report of the demo: what was done and seen, in plain words, on one page."""

from __future__ import annotations

from html import escape
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from platform import python_version
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from stfuse._demo import _html
from stfuse._demo._html import Section, code, folded, paragraph, picture
from stfuse._demo._methods import route
from stfuse._demo._tour import FUSED, INDIVIDUAL, LAYER, MIN_TARGETS, SECTION
from stfuse._demo._words import (
    NUMBERS,
    in_short,
    individual_words,
    neighbour_words,
    number_words,
    pathway_words,
    percent,
    plain,
    said,
    score_words,
    search_words,
    signed,
)

if TYPE_CHECKING:
    from stfuse._demo._tour import Tour

GO_ON_WORDS = (
    "<code>mob.h5ad</code> beside this page opens in anndata, scanpy or squidpy, also where stfuse is not installed. Run these lines in "
    "the folder of this page, or go straight to data of your own."
)


def write_report(tour: Tour, path: Path) -> Path:
    """Write the page and return its path."""
    sections = [
        tissue(tour),
        comparison(tour),
        Section("training", "Training", "What training said", route(tour).training(tour)),
        neighbours(tour),
        pathways(tour),
        markers(tour),
        *([] if tour.search.empty else [search(tour)]),
        Section("go-on", "Go on", "Go on from here", paragraph(GO_ON_WORDS) + code(route(tour).go_on)),
        provenance(tour),
    ]
    title = "Mouse olfactory bulb, image and RNA as one"
    foot = paragraph(
        f"Written by <code>python -m stfuse demo --method {tour.settings.method}</code>. Data: Spatial Transcriptomics of the mouse olfactory bulb, from the "
        "R package STUtility (Bergenstråhle et al. 2020, MIT License). Pathways: PROGENy (Apache License 2.0)."
    )
    path.write_text(
        _html.page(f"stfuse: {title} ({tour.method.title})", head(tour, title), sections, foot), encoding="utf-8"
    )
    return path


def features_of(tour: Tour) -> str:
    """Say what describes the photographs."""
    if tour.settings.encoder == "texture":
        return "colour and texture statistics"
    return f"features of the network {escape(tour.settings.encoder)}"


def head(tour: Tour, title: str) -> str:
    """Say in a few lines what this is."""
    adata = tour.adata
    sections = adata.obs[SECTION].nunique()
    lead = (
        f"{str(NUMBERS.get(sections, sections)).capitalize()} thin slices of brain, each photographed under the microscope and read out gene by gene on a grid of "
        "spots. The photograph shows how the tissue is built, the RNA what its cells are doing. "
        f"{tour.method.title} learns {route(tour).learns}. This page shows what that code finds, and where it does not help."
    )
    best = tour.comparison["ARI"]
    numbers = {
        "spots with both views": f"{adata.n_obs:,}",
        "genes counted": f"{adata.n_vars:,}",
        "image features a spot": str(np.shape(adata.obsm["X_image"])[1]),
        "numbers in the fused code": str(np.shape(adata.obsm[tour.slots.fused])[1]),
        "agreement of fused domains with known layers (ARI, 1 = same)": f"{best[FUSED]:.2f}",
        "from start to figures": f"{sum(tour.seconds.values()):.0f} s",
    }
    extra = (
        ", one more than the known layers, because a photograph also shows folds and dirt" if tour.spare == 1 else ""
    )
    steps = [
        f"Every spot's patch of the H&amp;E photograph becomes a row of {features_of(tour)} "
        "(<code>stfuse.pp.image_features</code>).",
        *route(tour).done(tour),
        f"Spots with similar codes become {len(tour.domains.cat.categories)} domains (<code>stfuse.tl.domains</code>){extra}. "
        "Only to number and colour them, they are matched with the known layers, inside out.",
        "squidpy, decoupler and scanpy then work on these domains as on any other annotation.",
    ]
    return (
        f'<p class="kicker">stfuse demo: {tour.method.title}</p>\n<h1>{title}</h1>\n{paragraph(lead, "lead")}\n{_html.facts(numbers)}\n'
        f"<h3>What came out</h3>\n{_html.bullets(in_short(tour))}\n<h3>What was done</h3>\n{_html.bullets(steps)}"
    )


def tissue(tour: Tour) -> Section:
    """Show photographs beside domains, and what the domains consist of."""
    names = list(tour.adata.obs[SECTION].cat.categories)
    shares = pd.crosstab(tour.domains, tour.adata.obs[SECTION], normalize="columns")
    pictures = "".join(
        picture(
            tour.figures[f"tissue_{name}"],
            f"Section {name}: the H&E photograph, and the same photograph with every spot coloured by its fused domain.",
            f"<b>{name},</b> {tour.adata.obs[SECTION].eq(name).sum()} spots.",
        )
        for name in names
    )
    domains, layers = tour.domains, tour.adata.obs[LAYER]
    overlap = pd.crosstab(domains, layers, normalize="index")[tour.layer_order]
    content = pd.DataFrame({"Spots": domains.value_counts(sort=False).map("{:,}".format)})
    content["Mostly in"] = [f"{row.idxmax()} ({percent(row.max())})" for _, row in overlap.iterrows()]
    for name in names:
        content[f"of {name}"] = shares[name].map(percent)
    left = " A domain left over has a colour of its own." if tour.spare > 0 else ""
    content.index, overlap.index = content.index.map(tour.label), overlap.index.map(tour.label)
    body = (
        paragraph(
            "All sections were clustered together, so a colour means the same domain everywhere. The four layers of the "
            "bulb lie around each other like the skins of an onion: granule cells (GCL) in the middle, then mitral cells "
            "(MCL), glomeruli (GL) and the olfactory nerve (ONL) outside. In the photographs the granule cells are the dense, dark "
            "middle; look whether the colours follow the rings around it, and whether all sections tell the same. Each layer lends its name and colour to the domain that matches it best."
            + left
        )
        + f'<div class="pair">{pictures}</div>'
        + _html.table(
            content,
            "Size of each domain, the known layer most of its spots lie in, and its share of each section",
            "Domain",
        )
        + folded(
            "How every domain divides among the known layers",
            _html.table(overlap.map(percent), "Share of a domain's spots that lie in each known layer", "Domain"),
        )
    )
    return Section("tissue", "Tissue", "The tissue and its fused domains", body)


def comparison(tour: Tour) -> Section:
    """Compare with single views, and say what the comparison can't show."""
    best_first = tour.comparison.sort_values("ARI", ascending=False)
    number = NUMBERS[len(best_first)]
    section = tour.adata.obs[SECTION].cat.categories[0]
    ways = ", ".join(said(str(name)) for name in tour.rivals)
    individuals = individual_words(tour.comparison, tour.individuals) if INDIVIDUAL in tour.comparison else ""
    body = (
        paragraph(score_words(tour.comparison))
        + picture(
            tour.figures["comparison"],
            f"Two bar charts with the adjusted Rand index and the normalised mutual information of {number} ways of finding domains; the table below has the numbers.",
            "<b>Agreement with the known layers.</b> 0 is chance, 1 the same partition. "
            f"Every code was {route(tour).treated} in the same way, with the same number of domains and the same seed. Differences below 0.03 are noise.",
            "small",
        )
        + _html.table(
            shown(tour, best_first).rename(columns={INDIVIDUAL: "Individual (ARI)"}),
            "Agreement of domains with the known layers"
            + (" (higher is better), and with the individual (lower is better)" if individuals else ""),
            "Domains from",
        )
        + (paragraph(individuals) if individuals else "")
        + paragraph(number_words(tour.by_number))
        + _html.table(
            shown(tour, tour.by_number.loc[best_first.index]).rename(columns="{} domains".format),
            "Agreement with the known layers (ARI) by number of domains",
            "Domains from",
        )
        + picture(
            tour.figures["rivals"],
            f"Section {section}: photograph, domains from {ways}, and the known layers.",
            f"<b>One section, {number} answers and the known layers.</b> A domain has the colour of the layer that it matches best, "
            "each layer used once. Look for rings that are closed, and for single spots of a wrong colour.",
        )
        + paragraph(
            "<b>Read this with care.</b> The known layers were transferred by a classifier that looks at RNA only. That "
            "favours every method that sees RNA: the fair use of these labels is to judge the image. And four sections "
            "of one tissue cannot rank methods.",
            "note",
        )
    )
    return Section("comparison", "Comparison", "Does looking twice help?", body)


def shown(tour: Tour, scores: pd.DataFrame) -> pd.DataFrame:
    """Lay scores out for a table."""
    return scores.map(plain).rename(index=tour.shown)


def neighbours(tour: Tour) -> Section:
    """Show squidpy's neighbourhood enrichment on the domains."""
    z = tour.enrichment
    body = (
        paragraph(neighbour_words(tour))
        + picture(
            tour.figures["neighbours"],
            "Heat map of neighbourhood enrichment z-scores between the domains; the folded table below has the numbers.",
            "<b>Who lies beside whom.</b> Red pairs touch more often than chance, blue ones less. Spots of "
            "one domain lie together, hence the red diagonal; it is flattered, because domains were smoothed over neighbours. "
            "In nested rings the blue deepens away from the diagonal, among the domains that have a layer.",
            "small",
        )
        + folded("The numbers", _html.table(z.map(signed), "Neighbourhood enrichment z-scores", "Domain"))
    )
    return Section("neighbours", "Neighbours", "Which domains are neighbours", body)


def pathways(tour: Tour) -> Section:
    """Show pathway activities, and how few genes carry them."""
    top = tour.top_pathway
    measured = tour.targets.rename("Genes measured").to_frame()
    measured["Scored"] = ["yes" if n >= MIN_TARGETS else "no" for n in tour.targets]
    body = (
        paragraph(
            "PROGENy reads a pathway's activity off the genes that answer to it, here with decoupler's univariate linear "
            "model on the log-normalised counts. Scores are compared inside each section, then averaged over each domain."
        )
        + paragraph(pathway_words(tour), "note")
        + picture(
            tour.figures["pathways"],
            "Heat map of mean pathway activity by domain; the folded table below has the numbers.",
            "<b>Pathways by domain.</b> Red is above the section's average, blue below, in standard deviations between spots. "
            "A star means that every section agrees on the sign.",
            "small",
        )
        + picture(
            tour.figures["top_pathway"],
            f"Activity of {top} on the spots of every section.",
            f"<b>{top} on the tissue,</b> the pathway that differs most between domains, in standard deviations within each section. Single "
            "spots are noisy; look whether bright spots fall "
            "together in the same ring of all sections.",
            "medium",
        )
        + folded(
            "The numbers",
            _html.table(tour.pathways.T.map(lambda v: signed(v, 2)), "Mean standardised activity", "Pathway")
            + _html.table(measured, "How many of each pathway's 100 genes are among those measured", "Pathway"),
        )
    )
    return Section("pathways", "Pathways", "What the domains are doing", body)


def markers(tour: Tour) -> Section:
    """List the genes that mark each domain."""
    best = tour.markers.assign(
        shown=[f"{g} ({signed(f)})" for g, f in zip(tour.markers["names"], tour.markers["logfoldchanges"], strict=True)]
    )
    table = best.groupby("group", observed=True)["shown"].agg(", ".join).rename("Genes (log2 fold change)").to_frame()
    table.index = table.index.map(tour.label)
    body = (
        paragraph(
            "scanpy ranks genes by how clearly they are higher in a domain than in the rest (Wilcoxon rank sum). Domains were "
            "found with the same RNA, so p-values would mean little and are left out; order and size of the "
            "differences are what to look at. Mitochondrial genes are left out: they tell first how well a spot was preserved."
        )
        + _html.table(table, "The genes that mark each domain most clearly", "Domain")
        + picture(
            tour.figures["markers"],
            "The fused domains of one section, and the first marker gene of every domain on its spots.",
            "<b>First marker of each domain</b> beside the domains (log-normalised expression, yellow is high, a scale of its own in every panel). "
            "It should light up where the domain lies.",
        )
    )
    return Section("markers", "Markers", "The genes that mark them", body)


def search(tour: Tour) -> Section:
    """Show cross-view search."""
    rate = tour.search.loc[[*tour.layer_order, "All spots"]].map(percent)
    rate.columns = [f"same layer among {tour.settings.n_neighbors} found", "by chance"]
    pictures = "".join(
        picture(
            tour.figures[f"search_{query.domain}"],
            f"An image patch of {query.section} in domain {query.domain}, and a map of {query.target} with the similarity "
            "of every spot's RNA to the patch.",
            f"<b>A spot of the layer {query.layer}, in domain {query.domain}, asks.</b> {query.hits} of the {len(query.found)} spots found lie in {query.layer} too.",
        )
        for query in tour.queries
    )
    body = (
        paragraph(search_words(tour))
        + paragraph(
            "The patches below were drawn at random, one in each domain, so some searches fail. Spots are bright where their RNA code "
            f"resembles the code of the framed patch, and the {tour.settings.n_neighbors} nearest are ringed. Look whether the bright zone is the "
            "ring that the patch comes from."
        )
        + f'<div class="pair">{pictures}</div>'
        + _html.table(rate, "From image patches to RNA in the other sections, by known layer of the patch", "Layer")
    )
    return Section("search", "Search", "Searching RNA with a picture", body)


def provenance(tour: Tour) -> Section:
    """Say what would be needed to repeat it."""
    record, slots, how = tour.record, tour.slots, route(tour)
    params = pd.Series({k: str(v) for k, v in record["params"].items()}, name="Value").to_frame()
    seconds = pd.Series(tour.seconds, name="Seconds").map("{:.1f}".format).to_frame()
    packages = {"python": python_version()} | record["versions"] | more_versions(how.packages)
    versions = pd.Series(packages, name="Version").to_frame()
    shared = (
        f", those of each view in <code>obsm['{slots.image}']</code> and <code>obsm['{slots.rna}']</code>"
        if tour.method.shared
        else ""
    )
    body = (
        paragraph(
            "Everything stands in <code>mob.h5ad</code>: counts in <code>X</code>, log-normalised expression in "
            f"<code>layers['log1p']</code>, {how.stored}fused codes in <code>obsm['{slots.fused}']</code>{shared}, domains in "
            f"<code>obs['{slots.domain}']</code>, pathway activities in <code>obsm['score_progeny']</code>, and the record of the "
            f"fusion in <code>uns['{slots.record}']</code>. The figures "
            f"lie beside this page as PNG files. Seed: {tour.settings.seed}. The same seed gives the same numbers again on the "
            "same machine."
        )
        + _html.table(seconds, "Time for each step, first use of each library included", "Step")
        + folded("Versions", _html.table(versions, "Versions", "Package"))
        + folded(
            "Parameters of the fusion",
            _html.table(params, f"Parameters of stfuse.tl.{tour.settings.method}", "Parameter"),
        )
    )
    return Section("provenance", "Provenance", "How this page was made", body)


def more_versions(packages: tuple[str, ...]) -> dict[str, str]:
    """Versions of the packages that worked before and after the fusion."""
    found = {}
    for name in (*packages, "squidpy", "decoupler", "matplotlib"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "unknown"
    return found
