"""Speed and memory, as ratios or peaks of one run (asv style: ``track_*`` and ``time_*`` methods).

``asv run`` finds the classes; ``python benchmarks/speed.py`` prints every figure once.
"""

from __future__ import annotations

import resource
import statistics
import subprocess
import sys
import time

import numpy as np
import torch
from anndata import AnnData
from running import print_all

import stfuse

N_IMAGE, N_RNA, BATCH = 1024, 128, 256


def features(n: int, seed: int = 0) -> AnnData:
    """Features of the size of a foundation model's and of scVI's, with a shared part; made block by block."""
    rng = np.random.default_rng(seed)
    image, rna = np.empty((n, N_IMAGE), np.float32), np.empty((n, N_RNA), np.float32)
    left, right = rng.standard_normal((16, N_IMAGE), np.float32), rng.standard_normal((16, N_RNA), np.float32)
    for start in range(0, n, 8192):
        stop = min(n, start + 8192)
        factors = rng.standard_normal((stop - start, 16), np.float32)
        image[start:stop] = factors @ left + rng.standard_normal((stop - start, N_IMAGE), np.float32)
        rna[start:stop] = factors @ right + rng.standard_normal((stop - start, N_RNA), np.float32)
    adata = AnnData(obsm={"X_image": image, "X_pca": rna})
    side = int(np.ceil(np.sqrt(n)))
    adata.obsm["spatial"] = np.stack(np.divmod(np.arange(n), side), 1).astype(float)
    return adata


class StepCost:
    """A training step of CAMEO against the same module in a bare loop on the same tensors (target: at most 1.15).

    The floor of a step at batch 256 is the arithmetic of its linear layers; both loops do the same.
    """

    timeout = 600
    steps = 64

    def setup(self) -> None:
        """One tissue of exactly ``steps`` batches."""
        from stfuse.model._cameo import PUBLISHED
        from stfuse.module.cameo import PublishedTranslator
        from stfuse.train._batches import StepBatches, ViewTensors
        from stfuse.train._plans import AdversarialPlan

        adata = features(self.steps * BATCH)
        rows = torch.arange(adata.n_obs)
        self.tensors = ViewTensors(
            torch.from_numpy(adata.obsm["X_image"]), torch.from_numpy(adata.obsm["X_pca"]), rows, rows, rows, rows[:0]
        )
        self.make = lambda: AdversarialPlan(PublishedTranslator(N_IMAGE, N_RNA), self.tensors, 0, PUBLISHED)
        self.batches = lambda: StepBatches(self.tensors, BATCH, 0)

    def bare(self) -> float:
        """Seconds a step of a plain loop: same losses, same optimisers, rows gathered by an index."""
        from stfuse.module.losses import alignment, critic_loss, generator_loss

        plan = self.make()
        s, m = plan.settings, plan.module.train()
        to_generator, to_critics = plan.configure_optimizers()
        image, rna, n = self.tensors.image, self.tensors.rna, self.tensors.image.shape[0]
        start = time.perf_counter()
        for step in range(1, self.steps + 1):
            real = {
                "image": m.native("image", image[torch.randint(n, (BATCH,))]),
                "rna": m.native("rna", rna[torch.randint(n, (BATCH,))]),
            }
            with torch.set_grad_enabled(step % s.n_critic == 0):
                code = {v: m.encode(v, x) for v, x in real.items()}
                fake = {"rna": m.decode("rna", code["image"]), "image": m.decode("image", code["rna"])}
            loss = sum(critic_loss(s.critic, *m.critic(v).joint(real[v], fake[v].detach())) for v in real)
            to_critics.zero_grad()
            loss.backward()
            to_critics.step()
            for v in real:
                m.critic(v).clip()
            if step % s.n_critic == 0:
                pairs = torch.randint(n, (BATCH,))
                total = s.align * alignment(
                    m.encode("image", m.native("image", image[pairs])), m.encode("rna", m.native("rna", rna[pairs]))
                )
                for v, other in (("image", "rna"), ("rna", "image")):
                    total = total + s.cycle * m.cycle(v, real[v], code[v], fake[other])
                    total = total + s.adversarial * generator_loss(s.critic, m.critic(v).joint(real[v], fake[v])[1])
                to_generator.zero_grad()
                total.backward()
                to_generator.step()
        return (time.perf_counter() - start) / self.steps

    def ours(self, epochs: int = 3) -> float:
        """Seconds a step of the training plan in its trainer, without the first epoch's start-up."""
        from lightning.pytorch.callbacks import Callback

        from stfuse.train._fit import fit

        marks: list[float] = []

        class Mark(Callback):
            def on_train_epoch_end(self, trainer: object, pl_module: object) -> None:
                marks.append(time.perf_counter())

        fit(
            self.make(),
            max_epochs=epochs,
            batch_size=BATCH,
            device="cpu",
            progress=False,
            trainer_kwargs={"callbacks": [Mark()]},
        )
        return (marks[-1] - marks[0]) / (self.steps * (epochs - 1))

    def track_ratio(self) -> float:
        """Median ratio of pairs of runs, one after the other."""
        self.bare()
        return statistics.median(self.ours() / self.bare() for _ in range(5))


MEMORY = """
import resource, sys
sys.path.insert(0, {folder!r})
from speed import features
import stfuse, stfuse.model
stfuse.model.CAMEO
small = features(600)
stfuse.tl.cameo(small, max_epochs=1, faithful={faithful}, device="cpu", progress=False)
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
before = peak()
adata = features({n})
size = adata.obsm["X_image"].nbytes + adata.obsm["X_pca"].nbytes
stfuse.tl.cameo(adata, max_epochs=2, batch_size=256, faithful={faithful}, device="cpu", progress=False)
print((peak() - before) / size)
"""


class Memory:
    """Peak memory of training on 100,000 observations, in units of the features (target: under 3)."""

    timeout = 1800
    params = (False, True)
    param_names = ("faithful",)
    n_obs = 100_000

    def track_peak_over_features(self, faithful: bool) -> float:
        """Growth of the process's peak over an idle one that has trained before, features included."""
        from pathlib import Path

        code = MEMORY.format(n=self.n_obs, faithful=faithful, folder=str(Path(__file__).parent))
        out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        return float(out.stdout.strip().splitlines()[-1])


class Domains:
    """K-means domains with refinement on 100,000 observations (target: under 60 s on two cores)."""

    timeout = 600
    n_obs = 100_000

    def setup(self) -> None:
        """A code of 50 columns on a lattice."""
        tissue = stfuse.datasets.synthetic_tissue(self.n_obs, n_sections=2, n_genes=60, seed=0)
        stfuse.tl.concat(tissue, n_components=25)
        self.adata = tissue

    def time_kmeans_refined(self) -> None:
        """The whole call."""
        stfuse.tl.domains(
            self.adata, use_rep="X_concat", n_clusters=12, method="kmeans", refine=True, library_key="section"
        )


class Anchor:
    """Seconds of PCCA on a section of 3,000 spots, and against CLIP on the same data."""

    timeout = 600

    def setup(self) -> None:
        """Ten percent of the spots are pairs."""
        self.adata = stfuse.datasets.synthetic_tissue(3000, seed=0)
        stfuse.pp.hide_pairs(self.adata, 0.9)

    def time_pcca(self) -> None:
        """The whole call."""
        stfuse.tl.pcca(self.adata, paired_key="paired")


if __name__ == "__main__":
    print_all(StepCost, Anchor, Domains, Memory)
    print(f"peak of this process: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6:.2f} GB")
