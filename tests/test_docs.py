"""Every public name is documented: it has a page, a docstring that fits its signature, and an example that runs."""

import doctest
import importlib
import importlib.util
import inspect
import re
import tomllib
from pathlib import Path

import pytest

import stfuse

ROOT = Path(__file__).parents[1]
NAMESPACES = ["pp", "tl", "pl", "model", "metrics", "datasets"]
PUBLIC = [
    f"{namespace}.{name}" for namespace in NAMESPACES for name in importlib.import_module(f"stfuse.{namespace}").__all__
]


def resolve(name: str):
    namespace, attribute = name.split(".")
    return getattr(getattr(stfuse, namespace), attribute)


def documented_parameters(doc: str) -> list[str]:
    """Names in the `Parameters` section of a NumPy docstring, in order."""
    section = re.search(r"^Parameters\n-+\n(.*?)(?=^\w[^\n]*\n-{3,}$|\Z)", doc, flags=re.M | re.S)
    if section is None:
        return []
    heads = [line for line in section[1].splitlines() if line and not line.startswith((" ", "\t"))]
    return [part.strip(" *:") for head in heads for part in head.split(" : ")[0].split(",")]


@pytest.fixture(scope="module")
def api_pages():
    spec = importlib.util.spec_from_file_location("api_pages", ROOT / "docs" / "extensions" / "api_pages.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_namespace_has_a_page(api_pages):
    pages = api_pages.pages(ROOT / "docs")
    toctree = (ROOT / "docs" / "api.md").read_text()
    for namespace in NAMESPACES:
        assert f"api/{namespace}\n" in toctree
        listed = re.findall(rf"^    ({namespace}\.\w+)$", pages[f"api/{namespace}.md"], flags=re.M)
        assert sorted(listed) == sorted(name for name in PUBLIC if name.startswith(f"{namespace}."))


def test_every_method_is_in_the_table(api_pages):
    from stfuse._registry import METHODS

    table = api_pages.methods_table(ROOT / "docs")
    for method in METHODS.values():
        assert f"`stfuse.tl.{method.name}`" in table


@pytest.mark.parametrize("name", PUBLIC)
def test_docstring_names_the_parameters(name):
    obj = resolve(name)
    doc = inspect.getdoc(obj)
    assert doc, f"stfuse.{name} has no docstring"
    signature = [p for p in inspect.signature(obj).parameters if p != "self"]
    assert documented_parameters(doc) == signature
    assert re.search(r"^Examples\n-+$", doc, flags=re.M), f"stfuse.{name} has no Examples section"


@pytest.mark.parametrize("name", PUBLIC)
def test_example_runs(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    obj = resolve(name)
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    tests = doctest.DocTestFinder(exclude_empty=True).find(obj, name, globs={"stfuse": stfuse})
    runner = doctest.DocTestRunner(optionflags=flags)
    said: list[str] = []
    for test in tests:
        runner.run(test, out=said.append)
    assert runner.failures == 0, "".join(said)
    assert runner.tries > 0, f"the example of stfuse.{name} has no line that runs"


def test_citation_has_the_version():
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text()
