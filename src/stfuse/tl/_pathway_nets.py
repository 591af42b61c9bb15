"""Where the genes of pathways come from: PROGENy, MSigDB's hallmarks, a GMT file, or the user's table."""

from __future__ import annotations

import gzip
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from stfuse import datasets
from stfuse._check import did_you_mean
from stfuse._log import logger

NAMED = ("progeny", "hallmark")
COLUMNS = ["source", "target", "weight"]


class Net(NamedTuple):
    """Pathways and their genes; ``organism`` is None where the genes are the user's own.

    ``table`` is long: ``source`` (the pathway), ``target`` (the gene) and ``weight``, no zeros, no pair twice.
    """

    name: str
    origin: str
    organism: str | None
    table: pd.DataFrame


def read_net(net: Any, organism: str) -> Net:
    """Read what the argument ``net`` names."""
    if isinstance(net, pd.DataFrame):
        return Net("pathways", "a DataFrame", None, _checked(net, "The DataFrame given as net="))
    if not isinstance(net, str | PathLike):
        raise TypeError(
            f"net must be {' or '.join(map(repr, NAMED))}, the path of a GMT file, or a DataFrame, got {type(net).__name__}."
        )
    if isinstance(net, str) and net in NAMED:
        table = datasets.progeny(organism) if net == "progeny" else _hallmark(organism)
        return Net(net, net, organism, _checked(table, net))
    path = Path(net)
    if not path.is_file():
        raise FileNotFoundError(
            f"net={str(net)!r} is neither {' nor '.join(map(repr, NAMED))} nor a file.{did_you_mean(net, NAMED)} A GMT file "
            "of gene sets can be had from https://www.gsea-msigdb.org/gsea/msigdb."
        )
    stem = path.name.removesuffix(".gz").removesuffix(".gmt")
    return Net(stem, path.name, None, _checked(_read_gmt(path), path.name))


def _hallmark(organism: str) -> pd.DataFrame:
    import decoupler as dc

    # decoupler looks the organism up only after it has downloaded
    organisms = {"human", *dc.op.show_organisms()}
    if organism not in organisms:
        raise ValueError(f"No hallmarks for organism {organism!r}. There are: {', '.join(sorted(organisms))}.")
    try:
        return dc.op.hallmark(organism=organism)
    except OSError as error:  # what requests raises is one
        raise ConnectionError(
            f"The hallmark gene sets could not be downloaded ({type(error).__name__}). They can't come with the package: "
            'download a GMT file from https://www.gsea-msigdb.org/gsea/msigdb and give its path, net="h.all.symbols.gmt".'
        ) from error


def _read_gmt(path: Path) -> pd.DataFrame:
    """Read a set a line: name, description, genes, parted by tabs.

    decoupler's reader parts at any white space, which tears names with spaces and takes a gene for an empty description.
    """
    rows: list[tuple[str, str]] = []
    opened: Any = gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8")
    try:
        with opened as file:
            for number, line in enumerate(file, start=1):
                fields = [field.strip() for field in line.rstrip("\r\n").split("\t")]
                if fields == [""]:
                    continue
                if len(fields) < 3 or not fields[0]:
                    raise ValueError(
                        f"{path.name} is no GMT file: line {number} has {len(fields)} field(s) parted by tabs, a gene set "
                        "has at least three, its name, a description and a gene."
                    )
                rows += [(fields[0], gene) for gene in fields[2:] if gene]
    except (UnicodeDecodeError, gzip.BadGzipFile) as error:
        raise ValueError(f"{path.name} is no GMT file: it is no text ({error}).") from None
    return pd.DataFrame(rows, columns=COLUMNS[:2]).drop_duplicates(ignore_index=True)


def _checked(net: pd.DataFrame, where: str) -> pd.DataFrame:
    """Check a long table and bring it into one form."""
    missing = [name for name in COLUMNS[:2] if name not in net.columns]
    if missing:
        raise ValueError(
            f"{where} has no column {missing[0]!r}; there is {', '.join(map(str, net.columns[:8])) or 'none'}. One row for each "
            "pair is needed: 'source' (the pathway), 'target' (the gene) and, if known, 'weight'. A table of genes x "
            'pathways becomes that by table.rename_axis(index="target", columns="source").stack().rename("weight").reset_index().'
        )
    if net.empty:
        raise ValueError(f"{where} has no rows: there are no pathways in it.")
    if net[COLUMNS[:2]].isna().to_numpy().any():
        raise ValueError(f"{where} has missing values in 'source' or 'target': leave these rows out, net.dropna().")
    table = net[COLUMNS[:2]].astype(str).reset_index(drop=True)
    table["weight"] = _weights(net, where)
    table = table[table["weight"] != 0].drop_duplicates(ignore_index=True)
    twice = table.duplicated(COLUMNS[:2])
    if twice.any():
        source, target = table.loc[twice, COLUMNS[:2]].iloc[0]
        raise ValueError(
            f"{where} has {int(twice.sum())} pair(s) with more than one weight (for example {source!r} and {target!r}): "
            "keep one row for each."
        )
    return _without_slashes(table, where)


def _weights(net: pd.DataFrame, where: str) -> np.ndarray:
    if "weight" not in net.columns:
        return np.ones(len(net))
    if not pd.api.types.is_numeric_dtype(net["weight"].dtype):
        raise TypeError(f"{where} must have numbers in 'weight', its dtype is {net['weight'].dtype}.")
    weight = net["weight"].to_numpy(dtype=float, na_value=np.nan)
    if not np.isfinite(weight).all():
        raise ValueError(f"{where} has {int((~np.isfinite(weight)).sum())} missing or infinite value(s) in 'weight'.")
    return weight


def _without_slashes(table: pd.DataFrame, where: str) -> pd.DataFrame:
    """Write names with an underscore for the slash that h5ad cannot hold."""
    slashed = [name for name in table["source"].unique() if "/" in name]
    if not slashed:
        return table
    renamed = {name: name.replace("/", "_") for name in slashed}
    both = set(renamed.values()) & set(table["source"])
    if both or len(set(renamed.values())) < len(slashed):
        raise ValueError(
            f"{where} has pathways whose names differ only in a slash, which h5ad cannot hold (for example {slashed[0]!r}): "
            "rename one of them."
        )
    logger.info("slashes in %d names of pathways are written as underscores, for h5ad", len(slashed))
    return table.assign(source=table["source"].replace(renamed))
