"""Lists of genes that somebody chose: given as they are, or read from a file."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pandas as pd

from stfuse import _read

# headers over gene symbols, in small letters and digits: the Cancer Gene Census, OncoKB, HGNC and Ensembl exports
SYMBOLS = ("genesymbol", "hugosymbol", "symbol", "genename", "gene", "genes")
FUNCTIONAL = (
    'curated="functional" stands for lists of functional signatures (oncogenes, kinases, transcription factors, ...) whose terms '
    "do not let stfuse bring them along: pass the path of your file, a CSV with one column a signature."
)


def read_genes(curated: Any) -> list[str]:
    """List curated genes, each once: of a list, or of a text file."""
    if isinstance(curated, str | Path):
        genes = _of_file(curated)
    elif isinstance(curated, Iterable):
        genes = list(curated)
        wrong = [gene for gene in genes if not isinstance(gene, str)]
        if wrong:
            raise TypeError(f"curated must list gene names, it holds {wrong[0]!r}.")
    else:
        raise TypeError(f"curated must be a list of genes, the path of a file or None, got {type(curated).__name__}.")
    genes = list(dict.fromkeys(gene.strip() for gene in genes if gene.strip()))
    if not genes:
        raise ValueError("curated holds no genes.")
    return genes


def _of_file(path: str | Path) -> list[str]:
    path = Path(path)
    if not path.is_file():
        if str(path) == "functional":
            raise ValueError(FUNCTIONAL)
        raise FileNotFoundError(
            f"curated={str(path)!r}: there is no such file. A list of genes is given as a list, a single gene as [{str(path)!r}]."
        )
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"curated={str(path)!r} is no text: export it as CSV, TSV or GMT.") from error
    lines = [line for line in text.splitlines() if line.strip()]
    if not lines:
        raise ValueError(f"curated={str(path)!r} is empty.")
    if path.suffix.lower() == ".gmt":
        # name of the set, where it is from, genes
        return [gene for line in lines for gene in line.split("\t")[2:]]
    return _of_table(path, "\t" if "\t" in lines[0] else ",")


def _of_table(path: Path, separator: str) -> list[str]:
    """Genes of a table: the column of symbols, else all columns, one list each."""
    try:
        table = pd.read_csv(path, sep=separator, dtype=str, keep_default_na=False, header=None, encoding="utf-8-sig")
    except pd.errors.ParserError as error:
        raise ValueError(f"curated={str(path)!r} is no table: its rows differ in width ({error}).") from error
    header = [re.sub(r"[^a-z0-9]", "", str(name).lower()) for name in table.iloc[0]]
    for name in SYMBOLS:
        if name in header:
            return list(table.iloc[1:, header.index(name)])
    # the first line of one column is a gene; above several stand their names
    return [gene for column in table for gene in table[column].iloc[min(1, table.shape[1] - 1) :]]


def columns_of(genes: list[str], names: pd.Index) -> tuple[pd.Index, list[str]]:
    """Genes that are there, and those that are not."""
    found = names.isin(genes)
    if not found.any():
        raise ValueError(
            f"None of the {len(genes)} curated genes is in var_names (the list has {_read.listing(genes[:3])}, var_names "
            f"{_read.listing(names[:3])}): name genes alike in both, upper and lower case included."
        )
    there = set(names)
    return names[found], [gene for gene in genes if gene not in there]
