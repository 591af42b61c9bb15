"""`import stfuse` is cheap: everything heavy waits until it is used."""

import subprocess
import sys
from importlib.metadata import version
from importlib.resources import files

import pytest

import stfuse

HEAVY = ["torch", "lightning", "scvi", "muon", "mudata", "spatialdata", "squidpy", "scanpy", "skimage", "matplotlib"]


def run(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.strip()


def seconds(module: str) -> float:
    return float(run(f"import time; t = time.perf_counter(); import {module}; print(time.perf_counter() - t)"))


def test_costs_little_more_than_numpy():
    # The least of several runs, taken in turns: a busy machine slows both.
    numpy, ours = zip(*[(seconds("numpy"), seconds("stfuse")) for _ in range(5)], strict=True)
    assert min(ours) <= min(numpy) + 0.3


def test_loads_nothing_heavy():
    assert run(f"import stfuse, sys; print([m for m in {HEAVY} if m in sys.modules])") == "[]"


@pytest.mark.parametrize("namespace", ["pp", "tl", "pl", "model", "metrics", "datasets"])
def test_listing_a_namespace_loads_nothing_heavy(namespace):
    code = f"import stfuse, sys; dir(stfuse.{namespace}); print([m for m in {HEAVY} if m in sys.modules])"
    assert run(code) == "[]"


def test_namespaces_are_listed_and_loaded():
    assert dir(stfuse) == ["__version__", "datasets", "metrics", "model", "pl", "pp", "tl"]
    for name in stfuse.__all__:
        assert getattr(stfuse, name) is getattr(stfuse, name)


def test_version_is_the_installed_one():
    assert stfuse.__version__ == version("stfuse")


def test_type_checkers_are_told_that_types_are_there():
    assert (files("stfuse") / "py.typed").is_file()


def test_unknown_name():
    with pytest.raises(AttributeError, match="nonsense"):
        _ = stfuse.nonsense
