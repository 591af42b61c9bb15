"""Write the API pages and the table of methods from the package itself, so that neither can fall behind it."""

import importlib
import inspect
from pathlib import Path

NAMESPACES = {
    "pp": "Prepare: `pp`",
    "tl": "Tools: `tl`",
    "pl": "Pictures: `pl`",
    "model": "Models: `model`",
    "metrics": "Metrics: `metrics`",
    "datasets": "Data sets: `datasets`",
}


def public_names(namespace: str) -> list[str]:
    """Give the public names of one namespace, for example ``"tl"``."""
    return sorted(importlib.import_module(f"stfuse.{namespace}").__all__, key=str.lower)


def namespace_page(namespace: str) -> str:
    """Give the page of one namespace: what it is for, and a table of its public names."""
    doc = inspect.getdoc(importlib.import_module(f"stfuse.{namespace}")) or ""
    rows = "\n".join(f"    {namespace}.{name}" for name in public_names(namespace))
    return (
        f"# {NAMESPACES[namespace]}\n\n"
        "```{eval-rst}\n"
        f"{doc}\n\n"
        ".. currentmodule:: stfuse\n\n"
        ".. autosummary::\n"
        "    :toctree: ../generated\n"
        "    :nosignatures:\n\n"
        f"{rows}\n"
        "```\n"
    )


def methods_table(docs: Path) -> str:
    """Give the table of fusion methods, as registered."""
    from stfuse._registry import METHODS

    yes = {True: "yes", False: ""}
    rows = [
        "| method | what it is | pairs needed | private codes | translates | call |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for method in METHODS.values():
        page = docs / "methods" / f"{method.name}.md"
        title = f"[{method.title}]({page.name})" if page.exists() else method.title
        call = f"{{func}}`stfuse.tl.{method.name}`"
        rows.append(
            f"| {title} | {method.summary} | {method.min_pairs or 'none'} | {yes[method.private]} "
            f"| {yes[method.translates]} | {call} |"
        )
    return "\n".join(rows) + "\n"


def pages(docs: Path) -> dict[str, str]:
    """Give every generated page by its path below ``docs``."""
    return {
        **{f"api/{namespace}.md": namespace_page(namespace) for namespace in NAMESPACES},
        "api/_methods.md": methods_table(docs),
    }


def write(docs: Path) -> None:
    """Write the pages; one that has not changed keeps its date, so that Sphinx does not read it again."""
    for path, text in pages(docs).items():
        target = docs / path
        target.parent.mkdir(exist_ok=True)
        if not target.exists() or target.read_text() != text:
            target.write_text(text)


def own(fullname: str, names: list[str]) -> list[str]:
    """Keep the members of a class that stfuse wrote, and leave out what comes from its foreign base classes."""
    module, _, cls = fullname.rpartition(".")
    family = [c for c in getattr(importlib.import_module(module), cls).__mro__ if c.__module__.startswith("stfuse.")]
    return [name for name in names if not name.startswith("_") and any(name in vars(c) for c in family)]
