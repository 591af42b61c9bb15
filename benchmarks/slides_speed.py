"""MIRROR: an epoch beside the bare module (target: at most 1.2 x), and training on features that are larger than memory.

``python benchmarks/slides_speed.py Epoch`` and ``... Disk`` print their figures. `Disk` writes chunks into a temporary folder, of which the array on
disk has links: 64 different ones make up 80 GB.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from running import print_all

from stfuse.model import MIRROR
from stfuse.train._bags import BagBatches, Bags
from stfuse.train._mirror_plan import MirrorPlan, MirrorSettings, SlideRna, Weights

N_GENES = 2_000
WIDTH = 1_024
BATCH = 32


def cohort(n_slides: int, n_tiles: int, spread: float) -> tuple[AnnData, AnnData]:
    """Slides with about so many tiles each."""
    rng = np.random.default_rng(0)
    names = np.array([f"s{i}" for i in range(n_slides)])
    sizes = (n_tiles * np.exp(spread * rng.normal(size=n_slides))).astype(int).clip(1)
    slide = np.repeat(np.arange(n_slides), sizes)
    tiles = AnnData(obs=pd.DataFrame({"slide": pd.Categorical.from_codes(slide, names)}))
    tiles.obsm["X_image"] = rng.standard_normal((slide.size, WIDTH), dtype=np.float32)
    slides = AnnData(rng.normal(size=(n_slides, N_GENES)).astype(np.float32), obs=pd.DataFrame(index=names))
    return slides, tiles


@cache
def epochs(case: str) -> dict[str, float]:
    """Seconds of an epoch by the public class, and of the same steps on tensors that lie ready."""
    n_slides, n_tiles, spread = case.split()
    slides, tiles = cohort(int(n_slides), int(n_tiles), float(spread))
    MIRROR.setup_anndata(slides, slide_key="slide")
    model = MIRROR(slides, tiles)
    seconds: list[float] = []

    class Clock(__import__("lightning.pytorch", fromlist=["Callback"]).Callback):
        def on_train_epoch_start(self, *_: object) -> None:
            self.start = time.perf_counter()

        def on_train_epoch_end(self, *_: object) -> None:
            seconds.append(time.perf_counter() - self.start)

    model.train(max_epochs=2, validation_fraction=0, progress=False, callbacks=[Clock()])
    views = model._data(model.adata, model.tiles, training=True)
    module = model.module.train()
    rna = SlideRna(torch.from_numpy(views.genes), torch.from_numpy(views.has_rna), torch.ones(len(views.names), dtype=torch.bool), torch.empty(0, dtype=torch.long))  # fmt: skip
    plan = MirrorPlan(module, rna, MirrorSettings(Weights(), 0.75, True, 3e-4, 0.01, None, 0))
    batches = BagBatches(views.bags, torch.arange(len(views.names)), BATCH, 2048, 0)
    optimizer = torch.optim.AdamW(module.parameters(), lr=3e-4)
    bare = 0.0
    for batch in batches:
        ready = batches.bags.take(batch["rows"]).clone()
        # the same module and the same losses, tiles in order and at hand
        plan.batches = BagBatches(Bags(ready, torch.arange(len(ready)), batch["offsets"]), torch.arange(1), 1, None, 0)
        given = {"slides": batch["slides"], "rows": torch.arange(len(ready)), "offsets": batch["offsets"]}
        plan._tiles = lambda rows, ready=ready: ready  # type: ignore[method-assign]
        start = time.perf_counter()
        module.style.normalize()
        parts = plan._losses(given)
        loss = torch.stack([Weights()._asdict()[name] * value for name, value in parts.items()]).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        bare += time.perf_counter() - start
    return {"epoch": min(seconds), "bare": bare, "tiles": float(views.bags.sizes.clamp(max=2048).sum())}


class Epoch:
    """Slides, tiles a slide (their median), and spread of the logarithm of the number of tiles."""

    timeout = 3600
    params = ("955 2048 0", "200 2048 1")

    def track_seconds(self, case: str) -> float:
        """Seconds of an epoch."""
        return epochs(case)["epoch"]

    def track_ratio(self, case: str) -> float:
        """Over those of the bare module."""
        return epochs(case)["epoch"] / epochs(case)["bare"]

    def track_tiles_a_second(self, case: str) -> float:
        """Tiles that took part."""
        return epochs(case)["tiles"] / epochs(case)["epoch"]


CHILD = """
import json, sys, time
import numpy as np, pandas as pd, zarr
from anndata import AnnData
import stfuse
from stfuse.model import MIRROR

n_slides, n_tiles, path = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
array = zarr.open_array(path, mode="r")
names = np.array([f"s{i}" for i in range(n_slides)])
tiles = AnnData(obs=pd.DataFrame({"slide": pd.Categorical.from_codes(np.repeat(np.arange(n_slides), n_tiles), names)}))
tiles.obsm["X_image"] = array
slides = AnnData(np.random.default_rng(0).normal(size=(n_slides, 500)).astype("float32"), obs=pd.DataFrame(index=names))

def memory(name):
    return next(int(line.split()[1]) * 1024 / 1e9 for line in open("/proc/self/status") if line.startswith(name))

before = memory("VmHWM")
MIRROR.setup_anndata(slides, slide_key="slide")
model = MIRROR(slides, tiles)
seconds = []
import lightning.pytorch as lp
class Clock(lp.Callback):
    def on_train_start(self, *_): self.start = time.perf_counter()
    def on_train_end(self, *_): seconds.append(time.perf_counter() - self.start)
start = time.perf_counter()
model.train(max_epochs=1, progress=False, limit_train_batches=int(sys.argv[4]), callbacks=[Clock()])
whole = time.perf_counter() - start
print(json.dumps({"gb": memory("VmHWM") - before, "all_gb": memory("VmHWM"), "epoch": seconds[0], "seconds": whole, "disk_gb": array.nbytes / 1e9}))
"""


def linked_array(folder: Path, n_rows: int, chunk: int, n_different: int = 64) -> Path:
    """A zarr array whose chunks are links to a few files: as large to its reader as it says."""
    import zarr

    path = folder / f"features_{n_rows}.zarr"
    array = zarr.create_array(path, shape=(n_rows, WIDTH), chunks=(chunk, WIDTH), dtype="float32", compressors=None)
    rng = np.random.default_rng(0)
    different = min(n_different, -(-n_rows // chunk))
    array[: min(different * chunk, n_rows)] = rng.standard_normal(
        (min(different * chunk, n_rows), WIDTH), dtype=np.float32
    )
    for number in range(different, -(-n_rows // chunk)):
        folder_of = path / "c" / str(number)
        folder_of.mkdir(parents=True)
        os.link(path / "c" / str(number % different) / "0", folder_of / "0")
    return path


@cache
def on_disk(case: str) -> dict[str, float]:
    """Figures of one case in a fresh process."""
    n_slides, n_tiles, steps = case.split()
    with tempfile.TemporaryDirectory(dir=os.environ.get("STFUSE_SCRATCH")) as folder:
        path = linked_array(Path(folder), int(n_slides) * int(n_tiles), 512)
        command = [sys.executable, "-c", CHILD, n_slides, n_tiles, str(path), steps]
        out = subprocess.run(command, capture_output=True, text=True, check=True)
    figures: dict[str, float] = json.loads(out.stdout.splitlines()[-1])
    return figures


class Disk:
    """Slides, tiles each, and steps of the epoch."""

    timeout = 7200
    params = ("100 20000 4", "1000 20000 4")

    def track_gb_on_disk(self, case: str) -> float:
        """What the features would take in memory."""
        return on_disk(case)["disk_gb"]

    def track_gb_of_training(self, case: str) -> float:
        """Growth of the process's peak: looking through, training, coding what the fused code needs."""
        return on_disk(case)["gb"]

    def track_seconds_of_steps(self, case: str) -> float:
        """Seconds of the steps."""
        return on_disk(case)["epoch"]

    def track_seconds(self, case: str) -> float:
        """Seconds of all of it."""
        return on_disk(case)["seconds"]


if __name__ == "__main__":
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))
    print_all(Epoch, Disk)
