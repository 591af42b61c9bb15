"""Gene tokens: `pp.rank_tokens` against loops over observations, its memory, and how fast Visiumformer trains.

``python benchmarks/tokens.py`` prints every figure once (50,000 observations x 18,000 genes, 5,000 of them in each: about 6 GB);
``--spots 10000`` makes it smaller. Targets: 5 x the sparse loop, 15 x the dense one, growth of memory below twice the matrix, and
0.9 of the bare module's tokens a second.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import torch
from running import print_all
from scipy.sparse import csr_matrix

N, GENES, NONZERO, TOKENS = 50_000, 18_000, 5_000, 1_500
# with STFUSE_CPU_TIME=1 in the environment processor time, of all threads: on a machine with other work wall clocks tell little
CLOCK = time.process_time if os.environ.get("STFUSE_CPU_TIME") else time.perf_counter
PART = 400  # observations on which the loops are timed


def section(n: int, seed: int = 0) -> ad.AnnData:
    """Counts with 4,000 to 6,000 genes an observation, which differ in how often and how high they are seen."""
    rng = np.random.default_rng(seed)
    length = rng.integers(NONZERO - 1_000, NONZERO + 1_001, n)
    indptr = np.append(0, np.cumsum(length)).astype(np.int64)
    indices = np.empty(indptr[-1], np.int32)
    level = rng.gamma(0.5, 4.0, GENES) + 1
    for start, stop in zip(indptr[:-1], indptr[1:], strict=True):
        indices[start:stop] = np.sort(rng.permutation(GENES)[: stop - start])
    data = np.empty(indptr[-1], np.float32)
    for rows in np.array_split(np.arange(data.size), max(1, data.size // 5_000_000)):
        data[rows] = 1 + rng.poisson(level[indices[rows]] - 1)
    names = pd.Index([f"g{i}" for i in range(GENES)])
    return ad.AnnData(csr_matrix((data, indices, indptr), shape=(n, GENES)), var=pd.DataFrame(index=names))


def sparse_loop(x: csr_matrix, means: np.ndarray) -> np.ndarray:
    """One observation after the other, on its entries."""
    out = np.zeros((x.shape[0], TOKENS), np.int32)
    for i in range(x.shape[0]):
        start, stop = x.indptr[i], x.indptr[i + 1]
        genes, counts = x.indices[start:stop], x.data[start:stop]
        values = counts * (1e4 / counts.sum()) / means[genes]
        first = np.argsort(-values, kind="stable")[:TOKENS]
        out[i, : len(first)] = genes[first] + 2
    return out


def dense_loop(x: csr_matrix, means: np.ndarray) -> np.ndarray:
    """One observation after the other, on all genes."""
    out = np.zeros((x.shape[0], TOKENS), np.int32)
    dense = x.toarray()
    for i, row in enumerate(dense):
        values = row * (1e4 / row.sum()) / means
        first = np.argsort(-values, kind="stable")[: min(TOKENS, np.count_nonzero(row))]
        out[i, : len(first)] = first + 2
    return out


def _seconds(work: Callable[[], Any], repeats: int = 3) -> tuple[float, Any]:
    """Least seconds of several runs."""
    least = np.inf
    for _ in range(repeats):
        start = CLOCK()
        result = work()
        least = min(least, CLOCK() - start)
    return least, result


def memory(name: str) -> float:
    """Bytes; not ru_maxrss, which a child process inherits from its parent."""
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024.0 for line in file if line.startswith(name))


def ranking(n: int) -> dict[str, float]:
    """Times of all three on the same data, and the growth of the process's peak over that of the matrix."""
    from stfuse.pp import rank_tokens

    rank_tokens(section(50, seed=1))  # everything is imported
    adata = section(n)
    x = adata.X
    size = x.data.nbytes + x.indices.nbytes + x.indptr.nbytes
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # the peak begins here
    before = memory("VmRSS")
    rank_tokens(adata)
    grown = memory("VmHWM") - before
    own = adata.obsm["tokens"]
    means = pd.Series(adata.uns["tokens"]["means"], index=adata.uns["tokens"]["vocabulary"])
    seconds, _ = _seconds(lambda: rank_tokens(adata), 2)
    given, _ = _seconds(lambda: rank_tokens(adata, gene_means=means), 2)
    assert np.array_equal(own, adata.obsm["tokens"])
    part, factor = x[:PART], n / min(PART, n)
    figures = {"seconds": seconds, "seconds_given_means": given, "memory_over_matrix": grown / size}
    for name, loop in (("sparse", sparse_loop), ("dense", dense_loop)):
        took, tokens = _seconds(partial(loop, part, means.to_numpy()))
        # equal but for values that only double precision tells apart
        assert (tokens == own[: len(tokens)]).mean() > 0.999
        figures[f"seconds_{name}_loop"] = took * factor
        figures[f"times_{name}_loop"] = took * factor / given
        figures[f"times_{name}_loop_with_means"] = took * factor / seconds
    return figures


@cache
def child(n: int) -> dict[str, float]:
    """Figures of `ranking`, in a process of its own."""
    out = subprocess.run([sys.executable, __file__, "--child", str(n)], capture_output=True, text=True, check=True)
    figures: dict[str, float] = json.loads(out.stdout.splitlines()[-1])
    return figures


class RankTokens:
    """Tokens of 1,500 genes; with means that are given, as the loops have them, and with those of the data."""

    timeout = 3600
    params = (
        "seconds",
        "seconds_given_means",
        "seconds_sparse_loop",
        "seconds_dense_loop",
        "times_sparse_loop",
        "times_dense_loop",
        "times_sparse_loop_with_means",
        "times_dense_loop_with_means",
        "memory_over_matrix",
    )

    def track_figure(self, figure: str) -> float:
        """One figure of one run."""
        return child(SPOTS)[figure]


class Training:
    """Tokens a second of `model.train` (small preset) and of the bare module on prepared batches, in turns."""

    timeout = 1800
    epochs = 2

    def setup(self) -> None:
        """96 observations of 256 genes."""
        from stfuse.model import Visiumformer
        from stfuse.pp import rank_tokens

        adata = section(96, seed=2)
        rank_tokens(adata, n_tokens=256)
        Visiumformer.setup_anndata(adata)
        self.model, self.n = Visiumformer(adata), adata.n_obs * 256
        self.tokens = torch.from_numpy(adata.obsm["tokens"])

    def bare(self) -> float:
        """The module's own steps: forward, loss of hidden genes, backward, optimiser."""
        from stfuse.module.visiumformer import PRESETS, Visiumformer, hide, masked_loss

        module = Visiumformer(GENES, **PRESETS["small"])
        optimizer = torch.optim.AdamW(module.parameters())
        generator = torch.Generator().manual_seed(0)
        prepared = [(part, *hide(part, GENES, 0.15, generator)) for part in self.tokens.split(32)] * self.epochs
        start = CLOCK()
        for tokens, changed, chosen in prepared:
            optimizer.zero_grad()
            masked_loss(module, module.hidden(changed), tokens, chosen).backward()
            optimizer.step()
        return self.n * self.epochs / (CLOCK() - start)

    def trained(self) -> float:
        """`model.train` as a user calls it."""
        start = CLOCK()
        self.model.train(max_epochs=self.epochs, batch_size=32, device="cpu", progress=False)
        return self.n * self.epochs / (CLOCK() - start)

    def track_share_of_bare(self) -> float:
        """Tokens a second of `train` over those of the bare module: median of rounds in turns."""
        self.bare(), self.trained()
        return float(np.median([self.trained() / self.bare() for _ in range(3)]))

    def track_tokens_per_second(self) -> float:
        """Of `model.train`."""
        return self.trained()


def _spots() -> int:
    """``--spots N`` of the command line, which is taken off it."""
    if "--spots" not in sys.argv:
        return N
    at = sys.argv.index("--spots")
    number = int(sys.argv[at + 1])
    del sys.argv[at : at + 2]
    return number


SPOTS = N

if __name__ == "__main__":
    if "--child" in sys.argv:
        print(json.dumps(ranking(int(sys.argv[-1]))))
    else:
        SPOTS = _spots()
        print_all(RankTokens, Training)
