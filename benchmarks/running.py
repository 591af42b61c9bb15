"""Run benchmark classes as asv would, without asv."""

from __future__ import annotations

import sys
import time


def print_all(*classes: type) -> None:
    """Print every figure of the classes once; names on the command line choose some of them."""
    chosen = set(sys.argv[1:])
    for cls in classes:
        if chosen and cls.__name__ not in chosen:
            continue
        bench = cls()
        if hasattr(bench, "setup"):
            bench.setup()
        for name in (n for n in dir(cls) if n.startswith(("track_", "time_"))):
            for argument in getattr(cls, "params", (None,)):
                arguments = () if argument is None else (argument,)
                start = time.perf_counter()
                value = getattr(bench, name)(*arguments)
                seconds = time.perf_counter() - start
                print(
                    f"{cls.__name__}.{name}{arguments or ''}: {value if name.startswith('track_') else seconds:.3f}",
                    flush=True,
                )
