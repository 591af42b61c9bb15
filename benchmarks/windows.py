"""Tables of windows for 1,000,000 observations: seconds and memory on one thread (targets: 60 s, 250 MB with the table).

``python benchmarks/windows.py`` prints every figure once.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from functools import cache
from itertools import product
from pathlib import Path

import numpy as np
from running import print_all

N = 1_000_000
KINDS = ("hexagonal", "hexagonal by array", "square", "free")

CHILD = """
import json, sys, time
import numpy as np
from stfuse._windows import window_table

folder, width = sys.argv[1], int(sys.argv[2])
spatial, section, array = (np.load(f"{folder}/{name}.npy") for name in ("spatial", "section", "array"))
array = array if len(array) else None
window_table(spatial[:3000].copy(), section[:3000].copy(), width, None if array is None else array[:3000].copy())

def memory(name):
    # not ru_maxrss: a child process inherits that of its parent
    return next(int(line.split()[1]) * 1024 / 1e6 for line in open("/proc/self/status") if line.startswith(name))

before, start = memory("VmRSS"), time.perf_counter()
table = window_table(spatial, section, width, array)
seconds = time.perf_counter() - start
print(json.dumps({"seconds": seconds, "mb": memory("VmHWM") - before, "table": table.nbytes / 1e6, "filled": (table >= 0).mean()}))
"""


def tissue(kind: str, n_sections: int, seed: int = 0) -> dict[str, np.ndarray]:
    """``N`` observations in shuffled rows; lattices are turned a little, with jitter, and a tenth is missing."""
    rng = np.random.default_rng(seed)
    n, places, arrays = N // n_sections, [], []
    for _ in range(n_sections):
        if kind == "free":
            xy = rng.random((n, 2)) * np.sqrt(n)
        else:
            side = int(np.ceil(np.sqrt(n / 0.9)))
            row, column = np.divmod(rng.permutation(side**2)[:n], side)
            odd = row % 2 if kind.startswith("hexagonal") else 0
            xy = np.column_stack([column + odd / 2, row * (1 if kind == "square" else np.sqrt(0.75))])
            xy += rng.normal(0, 0.03, (n, 2))
            arrays.append(np.column_stack([row, 2 * column + odd]))
        turn = np.deg2rad(rng.uniform(-5, 5))
        places.append(100 * xy @ [[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
    order = rng.permutation(N)
    array = np.concatenate(arrays)[order] if kind.endswith("array") else np.empty((0, 2))
    return {
        "spatial": np.concatenate(places)[order],
        "section": np.repeat(np.arange(n_sections), n)[order],
        "array": array,
    }


@cache
def measure(case: str) -> dict[str, float]:
    """Figures of one case, all of one run."""
    kind, sections, window = case.split(", ")
    with tempfile.TemporaryDirectory() as folder:
        for name, values in tissue(kind, int(sections.split()[0])).items():
            np.save(Path(folder) / f"{name}.npy", values)
        command = [sys.executable, "-c", CHILD, folder, window.split()[1]]
        out = subprocess.run(command, capture_output=True, text=True, check=True)
    figures: dict[str, float] = json.loads(out.stdout)
    return figures


class Windows:
    """One section of a million and ten of a hundred thousand, windows of 5 and 7, in a fresh process each."""

    timeout = 1800
    params = tuple(f"{kind}, {n} sections, window {w}" for kind, n, w in product(KINDS, (1, 10), (5, 7)))

    def track_seconds(self, case: str) -> float:
        """Seconds for the table, lattices included."""
        return measure(case)["seconds"]

    def track_megabytes(self, case: str) -> float:
        """Growth of the process's peak, the table included."""
        return measure(case)["mb"]

    def track_filled(self, case: str) -> float:
        """Share of the cells of windows that hold an observation."""
        return measure(case)["filled"]


if __name__ == "__main__":
    print_all(Windows)
