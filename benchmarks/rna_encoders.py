"""What RNA encoders know of layers and cell types: a linear probe on their codes, on tissue that the head has not seen.

Run ``python benchmarks/rna_encoders.py --out table.csv``; ``--report table.csv`` prints the table of README.md. ``STFUSE_DATA`` names
the folder with sections that are not in the package. Encoders are trained without labels on all sections, the probe leaves one
animal or section out (with one section, one of five compact parts). The Xenium breast region has no labels; clusters made from the
same expression would only tell which encoder resembles the clustering, so it is not here.
"""

from __future__ import annotations

import argparse
import os
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import anndata
import numpy as np
import pandas as pd
from anndata import AnnData, read_h5ad

import stfuse
from stfuse.pp._recipe import log_normalise, present_counts, variable_genes

FLOOR_GENES = 1_500


class Tissue(NamedTuple):
    """Counts with places, columns with labels, and the column of sections (None = one section)."""

    load: Callable[[], AnnData]
    labels: tuple[str, ...]
    section: str | None
    measured: str


def _shared(*parts: str) -> Path:
    folder = os.environ.get("STFUSE_DATA")
    if folder is None:
        raise SystemExit("STFUSE_DATA is not set: it names the folder with the sections that are not in the package.")
    return Path(folder, *parts)


def starmap() -> AnnData:
    """Three animals."""
    files = sorted(_shared("starmap").glob("*.h5ad"))
    return anndata.concat([read_h5ad(f) for f in files], label="animal", index_unique="-")


TISSUES = {
    "STARmap": Tissue(starmap, ("cell_type", "layer"), "animal", "3,190 cells, 3 animals"),
    "DLPFC": Tissue(
        lambda: read_h5ad(_shared("dlpfc", "dlpfc_151673.h5ad")), ("layer",), None, "3,611 spots, 1 section"
    ),
    # layers that a classifier has read off the expression: they favour what is close to it
    "MOB": Tissue(stfuse.datasets.mob, ("layer",), "section", "1,627 spots, 4 sections"),
}


def floor(adata: AnnData, section: str | None, seed: int) -> str:
    """No encoder: log-normalised expression of the genes that vary most."""
    counts, total, present = present_counts(adata, None)
    genes = variable_genes(counts, FLOOR_GENES, None if section is None else adata.obs[section][present])
    values = np.full((adata.n_obs, len(genes)), np.nan, np.float32)
    values[present] = log_normalise(counts[:, genes], total).toarray()
    adata.obsm["X_floor"] = values
    return "X_floor"


def pca(adata: AnnData, section: str | None, seed: int) -> str:
    """Principal components."""
    stfuse.pp.rna_features(adata)
    return "X_pca"


def pca_neighbors(adata: AnnData, section: str | None, seed: int) -> str:
    """Principal components beside their mean over the neighbourhood: space without learning."""
    pca(adata, section, seed)
    stfuse.pp.neighbor_mean(adata, "X_pca", n_neighbors=6, library_key=section, key_added="X_mean")
    adata.obsm["X_both"] = np.hstack([adata.obsm["X_pca"], adata.obsm["X_mean"]])
    return "X_both"


def scvi(adata: AnnData, section: str | None, seed: int) -> str:
    """The defaults of scvi-tools, without batches, as no other encoder gets them."""
    stfuse.tl.scvi(adata, seed=seed, progress=False)
    return "X_scVI"


def gat(adata: AnnData, section: str | None, seed: int) -> str:
    """Graph attention, squared error."""
    stfuse.tl.gat(adata, library_key=section, seed=seed, progress=False)
    return "X_gat"


def gat_nb(adata: AnnData, section: str | None, seed: int) -> str:
    """Graph attention, negative binomial."""
    stfuse.tl.gat(adata, library_key=section, loss="nb", seed=seed, progress=False)
    return "X_gat"


def visiumformer(adata: AnnData, section: str | None, seed: int) -> str:
    """A small transformer on ranked genes, trained on these sections alone."""
    stfuse.pp.rank_tokens(adata)
    stfuse.tl.visiumformer(adata, seed=seed, progress=False)
    return "X_visiumformer"


ENCODERS = {
    "log expression, 1,500 genes": floor,
    "PCA, 30": pca,
    "PCA and its neighbourhood mean": pca_neighbors,
    "scVI, 10": scvi,
    "GAT": gat,
    "GAT, negative binomial": gat_nb,
    "Visiumformer, small": visiumformer,
}
RANDOM = {"scVI, 10", "GAT", "GAT, negative binomial", "Visiumformer, small"}


def score(tissue: Tissue, encoder: str, seed: int) -> list[dict]:
    """Macro F1 of each label, and the seconds of the encoder."""
    adata = tissue.load()
    start = time.perf_counter()
    key = ENCODERS[encoder](adata, tissue.section, seed)
    seconds = time.perf_counter() - start
    rows = []
    for label in tissue.labels:
        folds = {"splits": "spatial"} if tissue.section is None else {"groups": tissue.section}
        # folds are the same for all encoders and seeds
        table = stfuse.tl.probe(adata, use_rep=key, label_key=label, key_added="probe", seed=0, **folds)
        pooled = table[table["fold"] == "pooled"].iloc[0]
        rows.append(
            {"label": label, "macro_f1": pooled["macro_f1"], "micro_f1": pooled["micro_f1"], "seconds": seconds}
        )
    return rows


def run(out: Path, tissues: list[str], encoders: list[str], seeds: list[int]) -> None:
    """Append rows to the table; those that are there already are skipped."""
    done = pd.read_csv(out) if out.exists() else pd.DataFrame(columns=["tissue", "encoder", "seed"])
    for seed in seeds:
        for name in tissues:
            for encoder in encoders:
                there = (done.tissue == name) & (done.encoder == encoder) & (done.seed == seed)
                if there.any() or (seed != seeds[0] and encoder not in RANDOM):
                    continue
                rows = pd.DataFrame(score(TISSUES[name], encoder, seed)).assign(tissue=name, encoder=encoder, seed=seed)
                done = pd.concat([done, rows], ignore_index=True)
                done.to_csv(out, index=False)
                print(rows.to_string(index=False, header=False), flush=True)


def report(path: Path) -> None:
    """Print a table in Markdown: macro F1, mean over seeds ± standard deviation where there are several."""
    table = pd.read_csv(path)
    columns = [
        (name, label) for name, tissue in TISSUES.items() for label in tissue.labels if name in set(table.tissue)
    ]
    known = dict(list(table.groupby(["tissue", "label", "encoder"])))
    print("| encoder | " + " | ".join(f"{name}, {label.replace('_', ' ')}" for name, label in columns) + " | seconds |")
    print("|" + "-|" * (len(columns) + 2))
    for encoder in [e for e in ENCODERS if e in set(table.encoder)]:
        cells = []
        for name, label in columns:
            rows = known.get((name, label, encoder))
            if rows is None:
                cells.append("")
                continue
            spread = f" ± {rows.macro_f1.std():.3f}" if len(rows) > 1 else ""
            cells.append(f"{rows.macro_f1.mean():.3f}{spread}")
        seconds = table[table.encoder == encoder].seconds
        print(f"| {encoder} | " + " | ".join(cells) + f" | {seconds.min():.0f} to {seconds.max():.0f} |")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("rna_encoders.csv"))
    parser.add_argument("--report", type=Path)
    parser.add_argument("--tissues", nargs="*", default=list(TISSUES))
    parser.add_argument("--encoders", nargs="*", default=list(ENCODERS))
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    if arguments.report is None:
        run(arguments.out, arguments.tissues, arguments.encoders, arguments.seeds)
    report(arguments.report or arguments.out)


if __name__ == "__main__":
    main()
