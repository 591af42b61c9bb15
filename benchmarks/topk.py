"""Nearest references by cosine: time beside the bare matrix product, and memory (targets: half its speed, bounded memory).

``python benchmarks/topk.py`` prints every figure once.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from functools import cache

import numpy as np
from running import print_all

QUERIES, REFERENCES, D, K = 5000, 50_000, 512, 50

CHILD = """
import json, sys, time
import numpy as np
from stfuse._topk import top_k

n_queries, n_references, d, k = map(int, sys.argv[1:])
rng = np.random.default_rng(0)
query, reference = (rng.standard_normal((n, d), dtype=np.float32) for n in (n_queries, n_references))
top_k(query[:10], reference[:1000], k)

def memory(name):
    # not ru_maxrss: a child process inherits that of its parent
    return next(int(line.split()[1]) * 1024 / 1e6 for line in open("/proc/self/status") if line.startswith(name))

before, start = memory("VmRSS"), time.perf_counter()
found = top_k(query, reference, k)
print(json.dumps({"seconds": time.perf_counter() - start, "mb": memory("VmHWM") - before, "result": (found.similarity.nbytes + found.index.nbytes) / 1e6}))
"""


class Speed:
    """Top 50 of 5,000 queries in 50,000 references, 512 columns."""

    timeout = 600

    def setup(self) -> None:
        """Codes of unit length, as the product alone needs them."""
        import torch

        from stfuse._topk import unit_rows

        rng = np.random.default_rng(0)
        self.codes = [rng.standard_normal((n, D), dtype=np.float32) for n in (QUERIES, REFERENCES)]
        self.unit = [unit_rows(codes) for codes in self.codes]
        self.device = "cuda" if torch.cuda.is_available() else "cpu"

    def product(self) -> float:
        """Seconds of the bare product, in blocks of queries so that it fits memory."""
        import torch

        query, reference = (codes.to(self.device) for codes in self.unit)
        start = time.perf_counter()
        for first in range(0, len(query), 1024):
            query[first : first + 1024] @ reference.T
        if self.device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - start

    def search(self) -> float:
        """Seconds of the search, scaling and transfers included."""
        from stfuse._topk import top_k

        start = time.perf_counter()
        top_k(*self.codes, K, device=self.device)
        return time.perf_counter() - start

    def track_speed_of_the_product(self) -> float:
        """Speed of the search, that of the bare product being 1: the better of three, in turn."""
        runs = [(self.product(), self.search()) for _ in range(3)]
        return min(product for product, _ in runs) / min(search for _, search in runs)


@cache
def measure(case: str) -> dict[str, float]:
    """Figures of one case in a fresh process."""
    out = subprocess.run([sys.executable, "-c", CHILD, *case.split()], capture_output=True, text=True, check=True)
    figures: dict[str, float] = json.loads(out.stdout)
    return figures


class Memory:
    """Queries, references, columns, neighbours. The last is the largest in full; the first two tell how memory grows."""

    timeout = 3600
    params = ("1000 50000 16 50", "1000 500000 16 50", "10000 50000 16 50", "100000 500000 16 50")

    def track_seconds(self, case: str) -> float:
        """Seconds."""
        return measure(case)["seconds"]

    def track_megabytes(self, case: str) -> float:
        """Growth of the process's peak, the result included."""
        return measure(case)["mb"]

    def track_result_megabytes(self, case: str) -> float:
        """Size of the result."""
        return measure(case)["result"]


if __name__ == "__main__":
    print_all(Speed, Memory)
