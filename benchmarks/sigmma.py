"""The ablation of SIGMMA on synthetic cells, where it matters how cells lie: retrieval and expression of tiles held out.

Run ``python benchmarks/sigmma.py --out table.csv``; ``--report table.csv`` prints the table of README.md. A third of the tiles is held
out. Marker genes follow from which cells a tile holds; niche genes answer to how mixed these lie, and are in no method's features.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
from anndata import AnnData

import stfuse
from stfuse.metrics import gene_pearson, recall_at_percent

N_TILES, CELLS = 300, 64
ONE = ("macro",)
ABLATION = {
    "bag of cells, one scale": {"scales": ONE, "graph": False},
    "bag of cells, three scales": {"graph": False},
    "graph, one scale": {"scales": ONE, "edge_addition": "none"},
    "graph, one scale, all edges": {"scales": ONE, "edge_addition": "all"},
    "graph, one scale, edges drawn": {"scales": ONE},
    "graph, three scales, no edges added": {"edge_addition": "none"},
    "graph, three scales, all edges": {"edge_addition": "all"},
    "graph, three scales, edges drawn (default)": {},
    "the same, GATv2": {"layer": "gatv2"},
}


def tissue(seed: int) -> tuple[AnnData, AnnData]:
    """Cells, and tiles with the mean code of their cells beside their image."""
    cells, tiles = stfuse.datasets.synthetic_cells(N_TILES, cells_per_tile=CELLS, seed=seed)
    tiles.obs["paired"] = np.random.default_rng(seed).random(N_TILES) > 1 / 3
    stfuse.pp.cell_graph(cells, tile_key="tile", tiles=tiles)
    codes = pd.DataFrame(cells.obsm["X_pca"]).groupby(cells.obs["tile"].to_numpy(), observed=True).mean()
    tiles.obsm["X_bulk"] = codes.loc[tiles.obs_names].to_numpy(np.float32)
    grid = tiles.obsm["X_image_grid"]
    pooled = [grid[:, :1].mean(1), grid[:, 1:5].mean(1), grid[:, 5:].mean(1)]
    tiles.obsm["X_scales"] = np.hstack(pooled).astype(np.float32)
    return cells, tiles


def ablated(options: dict) -> Callable[[AnnData, AnnData, int], str]:
    """A setting of SIGMMA."""

    def run(cells: AnnData, tiles: AnnData, seed: int) -> str:
        stfuse.tl.sigmma(cells, tiles, tile_key="tile", paired_key="paired", seed=seed, progress=False, **options)
        return "sigmma"

    return run


def aligned(image_key: str, function: str, **options: object) -> Callable[[AnnData, AnnData, int], str]:
    """Another method on whole tiles."""

    def run(cells: AnnData, tiles: AnnData, seed: int) -> str:
        keys = {"image_key": image_key, "rna_key": "X_bulk", "paired_key": "paired"}
        getattr(stfuse.tl, function)(tiles, seed=seed, progress=False, **keys, **options)
        return function

    return run


METHODS = {
    **{name: ablated(options) for name, options in ABLATION.items()},
    "CLIP on mean codes, whole tiles": aligned("X_image", "clip"),
    "CLIP on mean codes, three scales": aligned("X_scales", "clip"),
    "BLEEP's objective, three scales": aligned("X_scales", "umpire", objective="bleep", init="random", context=False),
    "UMPIRE, three scales": aligned("X_scales", "umpire", context=False),
}
DIRECT = {"ridge from the image, three scales": "ridge", "nearest images, three scales": "image-knn"}


def score(name: str, seed: int) -> dict[str, float]:
    """Retrieval both ways and correlation of genes on the tiles held out."""
    cells, tiles = tissue(seed)
    test = ~tiles.obs["paired"].to_numpy()
    start = time.perf_counter()
    recall = {"recall_5": np.nan, "recall_10": np.nan}
    options: dict = {"method": DIRECT.get(name), "image_key": "X_scales"}
    if name in METHODS:
        key = METHODS[name](cells, tiles, seed)
        image, rna = (tiles.obsm[f"X_{key}_{view}"][test] for view in ("image", "rna"))
        both = [recall_at_percent(a, b, [5.0, 10.0]) for a, b in ((image, rna), (rna, image))]
        recall = dict(zip(recall, np.mean(both, axis=0), strict=True))
        options = {"use_rep": (f"X_{key}_image", f"X_{key}_rna"), "n_neighbors": 10}
    seconds = time.perf_counter() - start
    found = correlations(tiles, test, options)
    if name in METHODS:  # the image code as features, as the paper's probe has it
        probe = correlations(tiles, test, {"method": "ridge", "image_key": f"X_{key}_image"})
        found |= {f"probe_{genes}": value for genes, value in probe.items()}
    return {**recall, **found, "seconds": seconds}


def correlations(tiles: AnnData, test: np.ndarray, options: dict) -> dict[str, float]:
    """Mean correlation of predicted genes over the tiles held out."""
    query, reference = tiles[test].copy(), tiles[~test].copy()
    predicted = stfuse.tl.predict_expression(query, reference, progress=False, **options).X
    counts = query.X.toarray()
    truth = np.log1p(counts / counts.sum(axis=1, keepdims=True) * 1e4)
    pearson = gene_pearson(truth, predicted.toarray() if hasattr(predicted, "toarray") else predicted)
    niche = tiles.var["niche"].to_numpy()
    return {"markers": np.nanmean(pearson[~niche]), "niche_genes": np.nanmean(pearson[niche])}


def run(out: Path, names: list[str], seeds: list[int]) -> None:
    """Append rows to the table; those that are there already are skipped."""
    done = pd.read_csv(out) if out.exists() else pd.DataFrame(columns=["method", "seed"])
    for seed in seeds:
        for name in names:
            if ((done.method == name) & (done.seed == seed)).any():
                continue
            row = pd.DataFrame([{"method": name, "seed": seed, **score(name, seed)}])
            done = pd.concat([done, row], ignore_index=True)
            done.to_csv(out, index=False)
            print(row.to_string(index=False, header=False), flush=True)


def report(path: Path) -> None:
    """Print a table in Markdown: mean over seeds ± standard deviation."""
    table = pd.read_csv(path)
    columns = {
        "recall_5": "recall at 5 %",
        "recall_10": "at 10 %",
        "markers": "marker genes",
        "niche_genes": "niche genes",
    }
    columns |= {"probe_markers": "markers, ridge on the image code", "probe_niche_genes": "niche genes, the same"}
    print("| method | " + " | ".join(columns.values()) + " | seconds |\n" + "|-" * (len(columns) + 2) + "|")
    for name in [*METHODS, *DIRECT]:
        rows = table[table.method == name]
        if rows.empty:
            continue
        cells = ["" if rows[c].isna().all() else f"{rows[c].mean():.3f} ± {rows[c].std():.3f}" for c in columns]
        print(f"| {name} | " + " | ".join(cells) + f" | {rows.seconds.min():.0f} to {rows.seconds.max():.0f} |")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("sigmma.csv"))
    parser.add_argument("--report", type=Path)
    parser.add_argument("--methods", nargs="*", default=[*METHODS, *DIRECT])
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    if arguments.report is None:
        run(arguments.out, arguments.methods, arguments.seeds)
    report(arguments.report or arguments.out)


if __name__ == "__main__":
    main()
