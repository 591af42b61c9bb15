"""Expression from histology: every registered predictor on tissue that it has not seen.

``python expression.py --out expression.csv`` computes (``--only B4 --methods umpire ridge`` a part of it), ``--report expression.csv`` prints the
tables. Folds are the four sections of the mouse olfactory bulb, and the four quadrants of sections that ``STFUSE_DATA`` holds: B4 of her2st
with crops of its full-resolution image, A1 of her2st, and one of DLPFC with an image of 600 pixels. Genes are chosen on the training
part of each fold. Nothing in the package was chosen on the last two.
"""

from __future__ import annotations

import argparse
import logging
import os
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
from anndata import AnnData, read_h5ad

import stfuse
from stfuse._neighbors import neighborhood_mean

ENCODERS = ("texture", "efficientnet-lite0")
SEEDS = (0, 1, 2)
# sections of which one quadrant at a time is left out, and the image's file where it is not in the object
QUADRANTS = {
    "B4": ("her2st/her2st_B4.h5ad", "her2st/her2st_B4_fullres.jpg"),
    "A1": ("her2st/her2st_A1.h5ad", None),
    "DLPFC": ("dlpfc/dlpfc_151673.h5ad", None),
}
N_GENES = 50
# what is trained from random numbers; the others give the same every time
SEEDED = ("umpire", "clip", "cameo", "bleep", "umpire, alone", "umpire, random start", "umpire, as published")
AS_PUBLISHED = {"init": "random", "context": False}
UMPIRE = {
    "bleep": AS_PUBLISHED | {"objective": "bleep"},
    "umpire, random start": {"init": "random"},
    "umpire, alone": {"context": False},
    # ten epochs of these few pairs would be some twenty steps, so it gets a hundred; nothing is held out
    "umpire, as published": AS_PUBLISHED
    | {
        "lr": 1e-4,
        "weight_decay": 1e-3,
        "temperature": 0.07,
        "batch_size": 512,
        "validation_fraction": 0.0,
        "max_epochs": 100,
    },
}
RIDGE = {"ridge, HEST": {"alpha": "hest", "n_comps": 256}}
# the image features followed by their mean over the six nearest, which the default of UMPIRE sees too
BESIDE = {"ridge, neighbours": "ridge", "image-knn, neighbours": "image-knn"}
METHODS = ("mean", "ridge, HEST", "ridge", "image-knn", *BESIDE, "pcca", "cameo", "clip", *UMPIRE, "umpire")


def folds(encoder: str, only: list[str] | None) -> Iterator[tuple[str, int, AnnData, AnnData, str | None]]:
    """Name of the tissue, number of the fold, training part, test part without expression, column of sections."""
    if not only or "MOB" in only:
        adata = stfuse.datasets.mob()
        stfuse.pp.image_features(adata, encoder, library_key="section", progress=False)
        for fold, section in enumerate(adata.obs["section"].cat.categories):
            yield ("MOB", fold, *parted(adata, (adata.obs["section"] == section).to_numpy()), "section")
    folder = os.environ.get("STFUSE_DATA")
    for name, (file, image) in QUADRANTS.items():
        if folder is None or (only and name not in only):
            continue
        adata = read_h5ad(Path(folder) / file)
        more = {} if image is None else {"image": Path(folder) / image}
        stfuse.pp.image_features(adata, encoder, **more, progress=False)
        right, low = (adata.obsm["spatial"][:, :2] > np.median(adata.obsm["spatial"][:, :2], axis=0)).T
        for fold in range(4):
            yield (name, fold, *parted(adata, (2 * right + low) == fold), None)


def parted(adata: AnnData, test: np.ndarray) -> tuple[AnnData, AnnData]:
    """Training and test part; RNA features are made of the training part alone."""
    train = adata[~test].copy()
    stfuse.pp.rna_features(train)
    return train, adata[test].copy()


def log_normalised(adata: AnnData) -> np.ndarray:
    counts = np.asarray(adata.X.todense(), dtype=np.float64)
    return np.log1p(counts / np.maximum(counts.sum(1, keepdims=True), 1) * 1e4)


def beside(adata: AnnData, library_key: str | None) -> AnnData:
    """The same with the mean of the image features around each observation beside them."""
    adata = adata.copy()
    x, n = adata.obsm["X_image"], adata.n_obs
    section = adata.obs[library_key].cat.codes.to_numpy() if library_key else np.zeros(n, int)
    near = neighborhood_mean(x, np.ones(n, bool), adata.obsm["spatial"][:, :2].astype(float), section, 6)
    adata.obsm["X_image"] = np.hstack([x, near])
    return adata


def predict(test: AnnData, train: AnnData, method: str, library_key: str | None, seed: int) -> np.ndarray:
    name, params = method, {}
    if method in UMPIRE:
        name, params = "umpire", UMPIRE[method]
    elif method in RIDGE:
        name, params = "ridge", RIDGE[method]
    view = "rna" if method in ("bleep", "umpire, as published") else "both"
    if method in BESIDE:
        name, train, test = BESIDE[method], beside(train, library_key), beside(test, library_key)
    call = {"library_key": library_key, "method_params": params, "reference_view": view, "seed": seed}
    found = stfuse.tl.predict_expression(test.copy(), train, method=name, progress=False, **call)
    return np.asarray(found[:, train.var_names].X)


def compute(args: argparse.Namespace) -> None:
    """Run everything, and write after every row."""
    rows: list[dict] = []
    for encoder in args.encoders:
        for tissue, fold, train, test, library_key in folds(encoder, args.only):
            truth, of_train = log_normalised(test), log_normalised(train)
            chosen = {kind: stfuse.metrics.top_genes(of_train, N_GENES, kind=kind) for kind in ("hvg", "heg")}
            for method in args.methods or METHODS:
                for seed in SEEDS[: args.seeds] if method in SEEDED else SEEDS[:1]:
                    began = time.perf_counter()
                    predicted = predict(test, train, method, library_key, seed)
                    row = {"tissue": tissue, "encoder": encoder, "fold": fold, "method": method, "seed": seed}
                    row["seconds"] = time.perf_counter() - began
                    for kind, genes in chosen.items():
                        r = stfuse.metrics.gene_pearson(truth[:, genes], predicted[:, genes])
                        row[kind] = float(np.nanmean(r))
                    row["mse"] = float(((truth - predicted)[:, chosen["hvg"]] ** 2).mean())
                    rows.append(row)
                    print(row, flush=True)
                    pd.DataFrame(rows).to_csv(args.out, index=False)


def report(path: Path) -> None:
    """Mean over folds and seeds, and the spread of the folds' means over seeds."""
    table = pd.read_csv(path)
    for column, digits in (("hvg", 3), ("heg", 3), ("mse", 2), ("seconds", 1)):
        by_seed = table.groupby(["method", "tissue", "encoder", "seed"], sort=False)[column].mean()
        groups = by_seed.groupby(level=[0, 1, 2], sort=False)
        cells = groups.apply(
            lambda v, d=digits: f"{v.mean():.{d}f}" + (f" ± {v.std(ddof=0):.{d}f}" if len(v) > 1 else "")
        )
        wide = cells.unstack([1, 2]).reindex([m for m in METHODS if m in set(table["method"])]).fillna("")
        print(
            f"\n### {column}\n\n| method | {' | '.join(', '.join(c) for c in wide.columns)} |\n|{'-|' * (wide.shape[1] + 1)}"
        )
        for method, row in wide.iterrows():
            print(f"| {method} | {' | '.join(row)} |")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--report", type=Path)
    parser.add_argument("--only", nargs="*", choices=("MOB", *QUADRANTS))
    parser.add_argument("--methods", nargs="*")
    parser.add_argument("--encoders", nargs="*", default=ENCODERS)
    parser.add_argument("--seeds", type=int, default=len(SEEDS))
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.INFO)
    if options.out:
        compute(options)
    if options.report:
        report(options.report)
