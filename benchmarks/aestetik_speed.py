"""Speed and memory of AESTETIK beside the published package, in one run on the same data and one thread.

``python aestetik_speed.py`` prints ratios; the published package must be importable (``pip install --no-deps aestetik==0.3.1``). Each measurement is a fresh process, so
that peaks of memory are its own.
"""

from __future__ import annotations

import argparse
import json
import logging
import subprocess
import sys
import time
import warnings

import numpy as np
from anndata import AnnData

SIDE, N_FEATURES, N_CLUSTERS = 60, 20, 7


def tissue(n: int, n_features: int = N_FEATURES) -> AnnData:
    """Spots on a square lattice with bands of domains in both views."""
    rng = np.random.default_rng(0)
    side = int(np.ceil(np.sqrt(n)))
    y, x = (part[:n] for part in np.divmod(np.arange(side * side), side))
    domain = (x * N_CLUSTERS // side).astype(int)
    adata = AnnData(np.zeros((n, 1), np.float32))
    for key in ("X_pca", "X_image"):
        centers = rng.normal(size=(N_CLUSTERS, n_features)) * np.linspace(3, 0.5, n_features)
        adata.obsm[key] = (centers[domain] + rng.normal(size=(n, n_features)) * 1.5).astype(np.float32)
    adata.obsm["spatial"] = np.column_stack([x, y]).astype(float)
    return adata


def peak() -> float:
    """Highest memory of this process so far, MB."""
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) / 1024


def ours(n: int, window: int, epochs: int) -> dict[str, float]:
    import torch

    from stfuse.model import AESTETIK

    torch.set_num_threads(1)
    adata = tissue(n)
    imported = peak()
    AESTETIK.setup_anndata(adata)
    model = AESTETIK(adata, n_clusters=N_CLUSTERS, window_size=window, image_weight=1.5)
    model.train(max_epochs=1, progress=False)  # what is imported on the way
    began = time.perf_counter()
    model.train(max_epochs=1, progress=False)
    one = time.perf_counter() - began
    began = time.perf_counter()
    model.train(max_epochs=1 + epochs, progress=False)
    epoch = (time.perf_counter() - began - one) / epochs
    began = time.perf_counter()
    model.get_latent_representation(adata)
    return {"epoch": epoch, "inference": time.perf_counter() - began, "peak": peak() - imported, "whole": one}


def published(n: int, window: int, epochs: int) -> dict[str, float]:
    import torch
    from aestetik import AESTETIK

    torch.set_num_threads(1)
    adata = tissue(n)
    adata.obsm["X_pca_transcriptomics"], adata.obsm["X_pca_morphology"] = adata.obsm["X_pca"], adata.obsm["X_image"]
    adata.obs["x_array"], adata.obs["y_array"] = adata.obsm["spatial"].astype(int).T
    imported = peak()
    options = {"n_cluster": N_CLUSTERS, "window_size": window, "clustering_method": "kmeans", "refine_cluster": False}

    def fit(epochs: int) -> tuple[float, object]:
        began = time.perf_counter()
        model = AESTETIK(max_epochs=epochs, num_repeats_predict=1, **options).fit(adata)
        return time.perf_counter() - began, model

    one, _ = fit(1)
    several, model = fit(1 + epochs)
    began = time.perf_counter()
    model.transform(adata)
    return {
        "epoch": (several - one) / epochs,
        "inference": time.perf_counter() - began,
        "peak": peak() - imported,
        "whole": one,
    }


def scale(n: int, window: int, epochs: int) -> dict[str, float]:
    """Training of many spots: growth of the peak over the features and the table."""
    import torch

    from stfuse.model import AESTETIK

    torch.set_num_threads(1)
    small, large = tissue(5_000), tissue(n)
    AESTETIK.setup_anndata(small)
    AESTETIK(small, clustering="kmeans").train(max_epochs=1, progress=False)
    base = peak()
    AESTETIK.setup_anndata(large)
    model = AESTETIK(large, n_clusters=N_CLUSTERS, window_size=window, clustering="kmeans")
    began = time.perf_counter()
    model.train(max_epochs=epochs, progress=False)
    return {"seconds": time.perf_counter() - began, "growth": peak() - base}


PARTS = {"ours": ours, "published": published, "scale": scale}


def measured(part: str, *numbers: int) -> dict[str, float]:
    """Run one part in a process of its own."""
    command = [sys.executable, __file__, "--part", part, "--numbers", *map(str, numbers)]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return json.loads(out.strip().splitlines()[-1])


def main() -> None:
    n = SIDE**2
    for window in (5, 7):
        mine, theirs = measured("ours", n, window, 10), measured("published", n, window, 2)
        print(
            f"window {window}: epoch {mine['epoch']:.2f} s against {theirs['epoch']:.1f} s = {theirs['epoch'] / mine['epoch']:.0f} x; "
            f"single-pass code {mine['inference']:.2f} s against {theirs['inference']:.1f} s = "
            f"{theirs['inference'] / mine['inference']:.0f} x; peak over the imports {mine['peak']:.0f} MB against {theirs['peak']:.0f} MB = "
            f"1/{theirs['peak'] / mine['peak']:.1f}",
            flush=True,
        )
    for n in (25_000, 100_000):
        found = measured("scale", n, 5, 1)
        print(
            f"{n} spots x 40 features, one epoch: {found['seconds']:.0f} s, peak grows by {found['growth']:.0f} MB",
            flush=True,
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--part", choices=PARTS)
    parser.add_argument("--numbers", nargs="*", type=int, default=[])
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.INFO)
    if options.part:
        print(json.dumps(PARTS[options.part](*options.numbers)))
    else:
        main()
