"""The steps of the demo, one function each, in the order in which the report tells them."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
from anndata import AnnData

from stfuse import datasets, pp, tl
from stfuse._demo._compare import compare
from stfuse._demo._methods import route
from stfuse._demo._tour import (
    LAYER,
    LOGGED,
    MIN_TARGETS,
    SECTION,
    Query,
    Settings,
    Tour,
    by_layer,
    within_sections,
)
from stfuse._progress import progress


def measure_image(tour: Tour) -> None:
    """H&E to numbers: one row of features a spot."""
    settings = tour.settings
    pp.image_features(tour.adata, settings.encoder, checkpoint=settings.checkpoint, library_key=SECTION)


def find_domains(tour: Tour) -> None:
    """Cluster the fused code and number the domains after the layers that they match."""
    adata, settings = tour.adata, tour.settings
    tl.domains(adata, use_rep=tour.slots.fused, n_clusters=settings.n_clusters, library_key=SECTION, seed=settings.seed)
    adata.obs[tour.slots.domain] = by_layer(adata, adata.obs[tour.slots.domain])


def neighbourhoods(tour: Tour) -> None:
    """Which domains touch more often than chance: squidpy on a graph of touching spots within each section."""
    import squidpy as sq

    adata, settings = tour.adata, tour.settings
    sq.gr.spatial_neighbors_grid(adata, n_neighs=4, library_key=SECTION)
    sq.gr.nhood_enrichment(
        adata,
        tour.slots.domain,
        library_key=SECTION,
        n_perms=settings.n_permutations,
        seed=settings.seed,
        show_progress_bar=False,
    )
    names = tour.domains.cat.categories
    zscore = adata.uns[f"{tour.slots.domain}_nhood_enrichment"]["zscore"]
    tour.enrichment = pd.DataFrame(zscore, index=names, columns=names)


def log_normalise(tour: Tour) -> None:
    """Keep the counts in X and put log-normalised expression beside them."""
    import scanpy as sc

    logged = AnnData(tour.adata.X, obs=tour.adata.obs[[]], var=tour.adata.var[[]]).copy()
    sc.pp.normalize_total(logged, target_sum=1e4)
    sc.pp.log1p(logged)
    tour.adata.layers[LOGGED] = logged.X


def pathway_activity(tour: Tour) -> None:
    """PROGENy activities a spot (decoupler, univariate linear model), then their mean in each domain."""
    adata = tour.adata
    tl.pathways(adata, "progeny", organism="mouse", layer=LOGGED, tmin=MIN_TARGETS)
    tour.targets = adata.uns["score_progeny"]["targets"]["measured"]
    tour.activity, tour.padj = adata.obsm["score_progeny"], adata.obsm["padj_progeny"]
    tour.pathways, tour.unanimous = by_domain(tour.activity, tour.domains, adata.obs[SECTION])


def by_domain(score: pd.DataFrame, domain: pd.Series, section: pd.Series) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Mean standardised score a domain, and whether its sign is the same in every section that has the domain."""
    z = within_sections(score, section)
    mean = z.groupby(domain, observed=True).mean()
    each = z.groupby([domain, section], observed=True).mean()
    same = np.sign(each) == np.sign(mean.reindex(each.index.get_level_values(0)).to_numpy())
    return mean, same.groupby(level=0, observed=True).all()


def marker_genes(tour: Tour, n_genes: int = 5) -> None:
    """Genes that set each domain apart from the rest (Wilcoxon rank sum), without mitochondrial ones."""
    import scanpy as sc

    adata = tour.adata
    sc.tl.rank_genes_groups(adata, tour.slots.domain, layer=LOGGED, use_raw=False, method="wilcoxon", pts=True)
    table = sc.get.rank_genes_groups_df(adata, group=None)
    table["group"] = pd.Categorical(table["group"], categories=tour.domains.cat.categories)
    # mitochondrial genes tell how well a spot was preserved before they tell what it is
    table = table[(table["logfoldchanges"] > 0) & ~table["names"].str.lower().str.startswith("mt-")].sort_values(
        ["group", "scores"], ascending=[True, False]
    )
    tour.markers = table.groupby("group", observed=True).head(n_genes).reset_index(drop=True)


def search_across_views(tour: Tour) -> None:
    """From an image patch to RNA spots of the other sections, by cosine of the shared codes."""
    adata, settings = tour.adata, tour.settings
    image, rna = (unit_rows(np.asarray(adata.obsm[key])) for key in (tour.slots.image, tour.slots.rna))
    similarity = image @ rna.T
    section = adata.obs[SECTION].astype(str).to_numpy()
    elsewhere = np.where(section[:, None] == section[None, :], -np.inf, similarity)
    k = settings.n_neighbors
    top = np.argpartition(-elsewhere, k, axis=1)[:, :k]
    known = adata.obs[LAYER].astype(str).to_numpy()
    chance = pd.Series(known).map(pd.Series(known).value_counts(normalize=True)).to_numpy()
    result = pd.DataFrame({"layer": known, "hit": (known[top] == known[:, None]).mean(axis=1), "chance": chance})
    tour.search = result.groupby("layer").mean()
    tour.search.loc["All spots"] = result[["hit", "chance"]].mean()
    tour.queries = draw_queries(tour, similarity, section)


def unit_rows(codes: np.ndarray) -> np.ndarray:
    """Scale rows to length one."""
    return codes / np.maximum(np.linalg.norm(codes, axis=1, keepdims=True), 1e-12)


def draw_queries(tour: Tour, similarity: np.ndarray, section: np.ndarray) -> list[Query]:
    """Draw one spot a domain at random from the first section; the last section is searched."""
    rng = np.random.default_rng(tour.settings.seed)
    names = sorted(set(section))
    first, last = names[0], names[-1]
    inside = np.flatnonzero(section == last)
    known, drawn = tour.adata.obs[LAYER].astype(str), []
    for domain in tour.domains.cat.categories:
        rows = np.flatnonzero((section == first) & (tour.domains == domain).to_numpy())
        if rows.size == 0:
            continue
        row = int(rng.choice(rows))
        values = pd.Series(similarity[row, inside], index=tour.adata.obs_names[inside])
        nearest = values.sort_values(ascending=False, kind="stable").index[: tour.settings.n_neighbors]
        layer = str(known.iloc[row])
        spot, hits = str(tour.adata.obs_names[row]), int((known[nearest] == layer).sum())
        drawn.append(Query(spot, domain, first, last, values, layer, list(nearest), hits))
    return drawn


def draw(tour: Tour, out: Path) -> None:
    """Draw every figure."""
    from stfuse._demo._figures import draw_all

    tour.figures = draw_all(tour, out)


def write_object(tour: Tour, out: Path) -> None:
    """Write the object with everything that was computed."""
    tour.adata.write_h5ad(out / "mob.h5ad", compression="gzip")


def steps_of(tour: Tour) -> list[tuple[str, Callable[[Tour], None]]]:
    """List what is computed, in order: title and function."""
    steps = [
        ("Measure the H&E around every spot", measure_image),
        *route(tour).steps,
        ("Find domains in the fused code", find_domains),
        ("Compare with each view alone", compare),
        ("Ask which domains are neighbours", neighbourhoods),
        ("Normalise the counts", log_normalise),
        ("Estimate pathway activity", pathway_activity),
        ("Rank marker genes", marker_genes),
    ]
    # only codes of both views in one space can be searched with one another
    return [*steps, ("Search RNA with image patches", search_across_views)] if tour.method.shared else steps


def run(
    out: Path, settings: Settings | None = None, data: AnnData | None = None, say: Callable[[str], None] = print
) -> Path:
    """Run the whole tour and return the path of the report; ``say`` gets a line a step."""
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    began = time.perf_counter()
    tour = Tour(settings or Settings(), datasets.mob() if data is None else data.copy())
    tour.seconds["Load four sections of mouse olfactory bulb"] = time.perf_counter() - began
    steps = [
        *steps_of(tour),
        ("Draw the figures", lambda t: draw(t, out)),
        ("Write mob.h5ad", lambda t: write_object(t, out)),
    ]
    for number, (title, step) in enumerate(progress(steps, desc="stfuse demo"), start=1):
        say(f"[{number:2d}/{len(steps)}] {title}")
        started = time.perf_counter()
        step(tour)
        tour.seconds[title] = time.perf_counter() - started
    from stfuse._demo._report import write_report

    report = write_report(tour, out / "report.html")
    say(f"Done in {time.perf_counter() - began:.0f} s. Open {report}")
    return report
