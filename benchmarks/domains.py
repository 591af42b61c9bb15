"""Spatial domains of AESTETIK beside the published package and beside simple things, on real sections with labels.

``python domains.py --out domains.csv`` computes (``--only MOB --methods default published`` a part of it), ``--report domains.csv`` prints the
tables. ``STFUSE_DATA`` names the folder with sections that are not in the package. The published package is compared with where it can be
imported (``pip install --no-deps aestetik==0.3.1``); elsewhere its rows are left out.
"""

from __future__ import annotations

import argparse
import logging
import os
import time
import warnings
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pandas as pd
from anndata import AnnData, read_h5ad
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_rand_score

import stfuse

ENCODERS = ("texture", "efficientnet-lite0")
SEEDS = (0, 1, 2)
UNKNOWN = ("undetermined", "unlabelled", "nan")
# a full run of the published package on 3,611 spots takes hours; so many epochs and passes are what its rows stand for
SHORT = {"DLPFC": (15, 50)}


def sections() -> dict[str, tuple[AnnData, str, str | None]]:
    """Objects with counts and images, the column of labels and the column of donors."""
    found: dict[str, tuple[AnnData, str, str | None]] = {}
    folder = os.environ.get("STFUSE_DATA")
    if folder is not None:
        for name, path, label in (
            ("her2st A1", "her2st/her2st_A1.h5ad", "pathologist_label"),
            ("her2st B4", "her2st/her2st_B4.h5ad", "label_transferred"),
            ("DLPFC", "dlpfc/dlpfc_151673.h5ad", "layer"),
        ):
            adata = read_h5ad(Path(folder) / path)
            adata.obs["section"] = pd.Categorical(["one"] * adata.n_obs)
            found[name] = (adata, label, None)
    found["MOB"] = (stfuse.datasets.mob(), "layer", "individual")
    return found


def prepared(adata: AnnData, encoder: str) -> AnnData:
    """The object with both views as the cross-sample recipe makes them; corrected where there are several sections."""
    several = adata.obs["section"].nunique() > 1
    stfuse.pp.image_features(adata, encoder, library_key="section" if several else None, progress=False)
    stfuse.pp.recipe_cross_sample(adata, batch_key="section")
    for view in ("X_pca", "X_image_pca"):
        adata.obsm[f"{view}_used"] = adata.obsm[f"{view}_harmony" if several else view]
    return adata


def z(values: np.ndarray) -> np.ndarray:
    return values / values.std(0)


def code(adata: AnnData, method: str, k: int, seed: int, label: str) -> np.ndarray:
    """Code of one method, n x d."""
    rna, image = np.asarray(adata.obsm["X_pca_used"]), np.asarray(adata.obsm["X_image_pca_used"])
    if method.startswith("neighbour mean"):
        adata.obsm["both"] = np.hstack([z(rna), z(image)])
        rep = {"RNA": "X_pca_used", "image": "X_image_pca_used", "both": "both"}[method.split(", ")[1]]
        stfuse.pp.neighbor_mean(adata, rep, library_key="section", key_added="averaged")
        return adata.obsm["averaged"]
    if method == "RNA":
        return rna
    if method == "image":
        return image
    if method == "side by side":
        return np.hstack([z(rna), z(image)])
    if method == "published":
        return published(adata, k, seed, label)
    keys = {"image_key": "X_image_pca_used", "rna_key": "X_pca_used", "library_key": "section"}
    stfuse.tl.aestetik(adata, n_clusters=k, seed=seed, progress=False, **(keys | OURS[method]))
    return adata.obsm["X_aestetik"]


UNCORRECTED = {"image_key": "X_image_pca", "rna_key": "X_pca"}
OURS: dict[str, dict] = {
    "default": {},
    "image weight 0": {"image_weight": 0.0},
    "image weight 0.75": {"image_weight": 0.75},
    "image weight 1.5": {"image_weight": 1.5},
    "window 7": {"window_size": 7},
    "without smoothing": {"smooth": False},
    "mixture of each view": {"clustering": "gmm"},
    "K-means of each view": {"clustering": "kmeans"},
    "as the paper": {"clustering": "kmeans", "smooth": False, "image_weight": 1.5},
    "reference": {"reference": True, "mc_passes": 50},
    "uncorrected": UNCORRECTED,
    "batch inside": {**UNCORRECTED, "batch_key": "section"},
    "batch inside, centred only": {**UNCORRECTED, "batch_key": "section", "lambda_batch": 0.0},
    "corrected and batch inside": {"batch_key": "section"},
}
SIMPLE = (
    "RNA",
    "image",
    "side by side",
    "neighbour mean, RNA",
    "neighbour mean, image",
    "neighbour mean, both",
)
COHORT = ("uncorrected", "batch inside", "batch inside, centred only", "corrected and batch inside")


def published(adata: AnnData, k: int, seed: int, label: str) -> np.ndarray:
    """Embedding of the published package, window 5 and its other defaults."""
    from aestetik import AESTETIK

    other = AnnData(np.zeros((adata.n_obs, 1), np.float32), obs=pd.DataFrame(index=adata.obs_names))
    other.obsm["X_pca_transcriptomics"] = np.asarray(adata.obsm["X_pca_used"], np.float32)
    other.obsm["X_pca_morphology"] = np.asarray(adata.obsm["X_image_pca_used"], np.float32)
    rows, columns = ("array_row", "array_col") if "array_row" in adata.obs else ("array_x", "array_y")
    other.obs["x_array"], other.obs["y_array"] = (adata.obs[c].to_numpy().astype(int) for c in (rows, columns))
    other.obs["sample"] = adata.obs["section"].astype(str).to_numpy()
    epochs, passes = SHORT.get(label, (100, 1000))
    model = AESTETIK(
        n_cluster=k,
        window_size=5,
        max_epochs=epochs,
        num_repeats_predict=passes,
        random_state=seed,
        used_obs_batch="sample",
        refine_cluster=False,
    ).fit(other)
    return np.asarray(model.embedding_)


def compute(args: argparse.Namespace) -> pd.DataFrame:
    """Run everything, and write after every row."""
    rows: list[dict] = []
    for name, (adata, label, donor) in sections().items():
        if args.only and name not in args.only:
            continue
        methods = [*SIMPLE, *(m for m in OURS if m not in COHORT or adata.obs["section"].nunique() > 1)]
        methods += ["published"] if find_spec("aestetik") else []
        for encoder in args.encoders:
            prepared(adata, encoder)
            for method in methods:
                if args.methods and method not in args.methods:
                    continue
                for seed in SEEDS[: args.seeds]:
                    rows.append(score(adata, name, encoder, method, seed, label, donor))
                    print(rows[-1], flush=True)
                    pd.DataFrame(rows).to_csv(args.out, index=False)
    return pd.DataFrame(rows)


def score(adata: AnnData, name: str, encoder: str, method: str, seed: int, label: str, donor: str | None) -> dict:
    """ARI of K-means domains with labels, before and after refinement, and with the donor."""
    known = ~adata.obs[label].astype(str).isin(UNKNOWN).to_numpy()
    truth = adata.obs[label].astype(str).to_numpy()
    k = len(set(truth[known]))
    began = time.perf_counter()
    adata.obsm["X_found"] = np.asarray(code(adata, method, k, seed, name), np.float32)
    seconds = time.perf_counter() - began
    labels = KMeans(k, n_init=10, random_state=seed).fit_predict(adata.obsm["X_found"])
    stfuse.tl.domains(adata, use_rep="X_found", n_clusters=k, library_key="section", seed=seed, neighbors=False)
    refined = adata.obs["found_domain"].astype(str).to_numpy()
    report = adata.uns["aestetik"]["report"] if method in OURS else {}
    return {
        "tissue": name,
        "encoder": encoder,
        "method": method,
        "seed": seed,
        "ari": adjusted_rand_score(truth[known], labels[known]),
        "ari_refined": adjusted_rand_score(truth[known], refined[known]),
        "ari_donor": adjusted_rand_score(adata.obs[donor].astype(str), labels) if donor else np.nan,
        "ari_section": adjusted_rand_score(adata.obs["section"].astype(str), labels) if donor else np.nan,
        "image_weight": report.get("image_weight", np.nan),
        "seconds": seconds,
    }


def spread(values: pd.Series) -> str:
    return f"{values.mean():.2f} ± {values.std(ddof=0):.2f}"


def report(path: Path) -> None:
    """Print the tables."""
    table = pd.read_csv(path)
    order = [m for m in (*SIMPLE, "published", *OURS) if m in set(table["method"])]
    shown: tuple[tuple[str, str, Callable], ...] = (
        ("ARI of K-means domains", "ari", spread),
        ("ARI after refinement in space", "ari_refined", spread),
        ("ARI with the donor, lower is better", "ari_donor", spread),
        ("Seconds", "seconds", lambda v: f"{v.mean():.0f}" if v.mean() >= 1 else f"{v.mean():.1f}"),
    )
    for title, column, show in shown:
        part = table.dropna(subset=[column])
        cells = part.groupby(["method", "tissue", "encoder"], sort=False)[column].apply(show).unstack([1, 2])
        cells = cells.reindex([m for m in order if m in cells.index]).fillna("")
        names = [f"{tissue}, {encoder}" for tissue, encoder in cells.columns]
        print(f"\n### {title}\n\n| method | {' | '.join(names)} |\n|{'-|' * (len(names) + 1)}")
        for method, row in cells.iterrows():
            print(f"| {method} | {' | '.join(row)} |")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--report", type=Path)
    parser.add_argument("--only", nargs="*")
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
