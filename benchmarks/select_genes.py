"""Selection of genes by elimination: time and memory for 60,000 genes of 950 slides, beside scikit-learn's where that is feasible.

``python select_genes.py`` prints tables; each measurement is a fresh process, so that peaks of memory are its own. Memory is
what the process holds more at its peak than before, once the matrix is made. Beside the time stands the time in which this machine
multiplies as many numbers as the kernel matrices ask for: no elimination by kernels is faster.
"""

from __future__ import annotations

import argparse
import json
import logging
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData

SLIDES, FOLDS, STEP, INFORMATIVE = 950, 5, 0.05, 50


def cohort(n_genes: int) -> AnnData:
    """Noise, and some genes that tell a fifth of the slides from the others."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((SLIDES, n_genes), dtype=np.float32)
    label = np.arange(SLIDES) % 5 == 0
    x[np.ix_(label, np.arange(INFORMATIVE))] += 0.5
    obs = pd.DataFrame({"label": np.where(label, "b", "a")}, index=pd.RangeIndex(SLIDES).astype(str))
    return AnnData(x, obs=obs, var=pd.DataFrame(index=pd.RangeIndex(n_genes).astype(str)))


def memory(field: str) -> float:
    """Memory of this process, MB: VmRSS now, VmHWM at its highest."""
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith(field)) / 1024


class Peak:
    """Highest memory while something runs, looked at fifty times a second."""

    def __enter__(self) -> Peak:
        self.before = self.highest = memory("VmRSS")
        self.done = threading.Event()
        self.watch = threading.Thread(target=self._look, daemon=True)
        self.watch.start()
        return self

    def _look(self) -> None:
        while not self.done.wait(0.02):
            self.highest = max(self.highest, memory("VmRSS"))

    def __exit__(self, *_: Any) -> None:
        self.done.set()
        self.watch.join()

    @property
    def growth(self) -> float:
        return self.highest - self.before


def measured(call: Callable[[], int], matrix: np.ndarray) -> dict[str, float]:
    with Peak() as peak:
        began = time.perf_counter()
        chosen = call()
        seconds = time.perf_counter() - began
    return {"seconds": seconds, "growth": peak.growth, "matrix": matrix.nbytes / 2**20, "chosen": chosen}


def ours(n_genes: int) -> dict[str, float]:
    import stfuse

    stfuse.pp.select_genes(cohort(60), "label", n_splits=FOLDS)  # what is imported on the way
    slides = cohort(n_genes)

    def call() -> int:
        stfuse.pp.select_genes(slides, "label", n_splits=FOLDS, step=STEP)
        return int(slides.uns["selected"]["n_genes"])

    return measured(call, slides.X) | {"floor": floor(n_genes)}


def floor(n_genes: int) -> float:
    """Seconds for the products of slides alone: of all genes once, and of those that go in each fold and at the end."""
    block = np.random.default_rng(0).standard_normal((SLIDES, 1100))
    np.dot(block, block.T)
    began = time.perf_counter()
    for _ in range(10):
        np.dot(block, block.T)
    return (time.perf_counter() - began) / 10 / block.shape[1] * n_genes * (FOLDS + 2)


def sklearn_with(estimator: Any, n_genes: int) -> dict[str, float]:
    from sklearn.feature_selection import RFECV
    from sklearn.model_selection import StratifiedKFold
    from sklearn.preprocessing import StandardScaler

    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=0)
    search = RFECV(estimator, step=STEP, cv=folds, scoring="accuracy")
    small = cohort(60)
    search.fit(small.X, small.obs["label"])
    slides = cohort(n_genes)

    def call() -> int:
        search.fit(StandardScaler().fit_transform(slides.X), slides.obs["label"])
        return int(search.n_features_)

    return measured(call, slides.X)


def linear(n_genes: int) -> dict[str, float]:
    from sklearn.svm import LinearSVC

    return sklearn_with(LinearSVC(max_iter=5000, random_state=0), n_genes)


def kernel(n_genes: int) -> dict[str, float]:
    from sklearn.svm import SVC

    return sklearn_with(SVC(kernel="linear"), n_genes)


PARTS = {"ours": ours, "linear": linear, "kernel": kernel}
NAMES = {"ours": "select_genes", "linear": "RFECV(LinearSVC)", "kernel": "RFECV(SVC, linear)"}


def in_own_process(part: str, n_genes: int) -> dict[str, float]:
    command = [sys.executable, __file__, "--part", part, "--genes", str(n_genes)]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return json.loads(out.strip().splitlines()[-1])


def main(beside: list[int], alone: list[int]) -> None:
    print(f"{SLIDES} slides, {FOLDS} folds, step {STEP:g}\n")
    print("| genes | by | chosen | s | floor, s | peak over the matrix, MB | matrix, MB | peak / matrix |")
    print("|-|-|-|-|-|-|-|-|")
    for n_genes in sorted({*beside, *alone}):
        for part in PARTS if n_genes in beside else ["ours"]:
            found = in_own_process(part, n_genes)
            least = f"{found['floor']:.1f}" if "floor" in found else ""
            print(
                f"| {n_genes:,} | {NAMES[part]} | {found['chosen']:,.0f} | {found['seconds']:.1f} | {least} | {found['growth']:.0f} | "
                f"{found['matrix']:.0f} | {found['growth'] / found['matrix']:.2f} |",
                flush=True,
            )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--part", choices=PARTS)
    parser.add_argument("--genes", type=int, default=0)
    parser.add_argument("--beside", type=int, nargs="*", default=[5_000], help="numbers of genes also for scikit-learn")
    parser.add_argument("--alone", type=int, nargs="*", default=[20_000, 60_000, 200_000])
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.INFO)
    if options.part:
        print(json.dumps(PARTS[options.part](options.genes)))
    else:
        main(options.beside, options.alone)
