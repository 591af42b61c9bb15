"""Cell graphs: time and memory (targets: 1,000,000 cells in 10,000 tiles below 90 s and 3 GB), and a training step beside the bare module.

``python benchmarks/sigmma_speed.py`` prints every figure once; ``STFUSE_DATA`` names the folder with the Xenium section.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from functools import cache
from pathlib import Path

import numpy as np
import torch
from running import print_all

CHILD = """
import json, sys, time
import numpy as np
import pandas as pd
from anndata import AnnData
from stfuse.pp import cell_graph

n_cells, n_tiles, mode = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
side = int(np.sqrt(n_tiles))
rng = np.random.default_rng(0)
places = rng.random((n_cells, 2)) * side * 128
column, row = (places // 128).astype(int).T
names = np.array([f"tile{i}" for i in range(side * side)])
obs = pd.DataFrame({"tile": pd.Categorical.from_codes(row * side + column, names)}, index=np.arange(n_cells).astype(str))
cells = AnnData(obs=obs, obsm={"spatial": places})
corner = np.stack(np.divmod(np.arange(side * side), side)[::-1], axis=1) * 128.0
tiles = AnnData(obs=pd.DataFrame({"tile_x": corner[:, 0], "tile_y": corner[:, 1], "tile_size": 128.0}, index=names))
small = rng.permutation(n_cells)[:2000]
cell_graph(cells[small].copy(), tile_key="tile", tiles=tiles)

def memory(name):
    # not ru_maxrss: a child process inherits that of its parent
    return next(int(line.split()[1]) * 1024 / 1e9 for line in open("/proc/self/status") if line.startswith(name))

before, start = memory("VmRSS"), time.perf_counter()
cell_graph(cells, tile_key="tile", tiles=tiles, mode=mode, radius=15.0 if mode == "radius" else None)
seconds = time.perf_counter() - start
print(json.dumps({"seconds": seconds, "gb": memory("VmHWM") - before, "all_gb": memory("VmHWM"), "pairs": cells.uns["cell_graph"]["n_pairs"]["macro"]["listed"]}))
"""


@cache
def graph(case: str) -> dict[str, float]:
    """Figures of one case in a fresh process."""
    out = subprocess.run([sys.executable, "-c", CHILD, *case.split()], capture_output=True, text=True, check=True)
    figures: dict[str, float] = json.loads(out.stdout)
    return figures


class CellGraph:
    """Cells, tiles, and kind of neighbours."""

    timeout = 600
    params = (
        "100000 1024 knn",
        "1000000 10000 knn",
        "1000000 10000 radius",
        "1000000 10000 delaunay",
    )

    def track_seconds(self, case: str) -> float:
        """Seconds."""
        return graph(case)["seconds"]

    def track_gigabytes(self, case: str) -> float:
        """Growth of the process's peak, the result included."""
        return graph(case)["gb"]

    def track_gigabytes_of_the_process(self, case: str) -> float:
        """Peak of the whole process, libraries and cells included."""
        return graph(case)["all_gb"]


class Step:
    """A step of 64 tiles of 100 cells, against the bare module on graphs that were taken out before."""

    timeout = 600

    def setup(self) -> None:
        """Tissue of 192 tiles, its tensors, and three batches."""
        import stfuse
        from stfuse.model import SIGMMA

        cells, tiles = stfuse.datasets.synthetic_cells(192, cells_per_tile=100)
        stfuse.pp.cell_graph(cells, tile_key="tile", tiles=tiles)
        SIGMMA.setup_anndata(cells, tile_key="tile")
        self.model = SIGMMA(cells, tiles)
        data = self.model._data(cells, tiles, training=True)
        self.model._measure(data)
        self.tensors = data.tensors(np.arange(192), np.empty(0, np.int64))
        self.batches = [torch.arange(192)[i::3] for i in range(3)]
        self.prepared = [(self.tensors.image[b], *self.tensors.take(b)) for b in self.batches]

    def bare(self) -> float:
        """Seconds of a step of the module and its optimiser alone."""
        module = self.model._build(self.model._architecture()).train()
        optimizer = torch.optim.AdamW(module.parameters(), lr=1e-3)
        start = time.perf_counter()
        for image, cells, found in self.prepared:
            losses = module.losses(module.encode_image(image), module.encode_rna(cells, found)[0])
            optimizer.zero_grad()
            torch.stack(losses).sum().backward()
            optimizer.step()
        return (time.perf_counter() - start) / len(self.prepared)

    def trained(self) -> float:
        """Seconds of a step in training: batches dealt, graphs taken out, losses collected."""
        from stfuse.train._batches import StepBatches
        from stfuse.train._fit import fit
        from stfuse.train._sigmma_plan import SigmmaPlan

        times = []
        for epochs in (1, 4):
            module = self.model._build(self.model._architecture())
            plan = SigmmaPlan(module, self.tensors, ["micro", "meso", "macro"], 0, 1e-3, 0.01, 0.1)
            batches = StepBatches(self.tensors, 64, 0, pairs_only=True)
            start = time.perf_counter()
            fit(plan, max_epochs=epochs, batches=batches, device="cpu", progress=False)
            times.append((time.perf_counter() - start, epochs * len(batches)))
        # what starting takes falls out
        return (times[1][0] - times[0][0]) / (times[1][1] - times[0][1])

    def track_time_beside_the_module(self) -> float:
        """Time of a step in training, that of the bare module being 1: the better of three, in turn."""
        self.bare()
        runs = [(self.bare(), self.trained()) for _ in range(3)]
        return min(trained for _, trained in runs) / min(bare for bare, _ in runs)

    def track_seconds_of_the_module(self) -> float:
        """Seconds of the bare step."""
        return min(self.bare() for _ in range(3))


class Niches:
    """From the counts of 17,136 Xenium cells to niches and both figures (target: below three minutes)."""

    timeout = 600

    def track_seconds(self) -> float:
        """Seconds, imports included."""
        import matplotlib

        matplotlib.use("agg")
        start = time.perf_counter()
        import anndata

        import stfuse

        cells = anndata.read_h5ad(Path(os.environ["STFUSE_DATA"], "xenium_breast_17k.h5ad"))
        stfuse.pp.rna_features(cells)
        stfuse.tl.domains(cells, use_rep="X_pca", n_clusters=12, refine=False, key_added="cell_type")
        stfuse.pp.neighbor_mean(cells, "X_pca", n_neighbors=20, key_added="X_near")
        stfuse.tl.domains(cells, use_rep="X_near", n_clusters=8, key_added="niche")
        stfuse.tl.niches(cells, groupby="niche", cell_type_key="cell_type")
        stfuse.pl.composition(cells)
        stfuse.pl.niche_map(cells, groupby="niche")
        return time.perf_counter() - start


if __name__ == "__main__":
    print_all(CellGraph, Step, Niches)
