"""What domains are made of: their cell types, and their genes."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from stfuse import _keys, _read, _record
from stfuse._check import check_flag, check_number, check_seed, check_target, check_text, did_you_mean
from stfuse._labels import read_classes
from stfuse.tl._niche_genes import rank_genes
from stfuse.tl._niche_null import count_cells, enrichment
from stfuse.tl._niche_tables import MARK, is_niches, tables_of

MOST = 100  # groups of a column of numbers, or of one with hardly two cells a group


class _Groups(NamedTuple):
    """Codes of all cells, -1 where there is no group, and the names of the groups."""

    codes: np.ndarray
    names: list[str]

    def kept(self, rows: np.ndarray) -> _Groups:
        """Return the codes of some cells, and of the names only those that occur there."""
        used, codes = np.unique(self.codes[rows], return_inverse=True)
        return _Groups(codes, [self.names[code] for code in used])


def niches(
    cells: Any,
    groupby: str = "sigmma_domain",
    *,
    cell_type_key: str,
    library_key: str | None = None,
    n_perms: int = 1000,
    genes: bool = True,
    n_genes: int | None = None,
    layer: str | None = None,
    key_added: str = "niches",
    table_key: str | None = None,
    seed: int = 0,
    copy: bool = False,
) -> Any:
    r"""Say what domains are made of: cell types of each, which of them are more than chance gives, and genes.

    A cell type belongs to a niche where it makes up more of a domain than of the sections around it. So the count of each type in each
    domain is compared with counts after the labels of the domains were shuffled among the cells of each section: a type and a
    domain that merely share a section are not enriched.

    Parameters
    ----------
    cells
        AnnData, MuData or SpatialData, one row a cell.
    groupby
        Column of `obs` with the domains, for example of :func:`stfuse.tl.domains`.
    cell_type_key
        Column of `obs` with the cell types. Cells with a missing value or `"unassigned"` in this column or in that of the domains
        are left out and counted.
    library_key
        Column of `obs` with the section. None: the column whose values are the sections of `uns["spatial"]`, where it has several;
        else all are one section.
    n_perms
        Number of shuffled tables. The smallest p-value is 2 / (`n_perms` + 1).
    genes
        Whether to look for differential genes as well. Counts are log-normalised first (10,000 a cell), anything else is taken as it
        is; cells without a type take part.
    n_genes
        Genes to keep of each domain, the highest scores first. None: all.
    layer
        Layer with the expression. None: `X`. In a MuData, that of the modality `"rna"`.
    key_added
        Key of the result in `uns`; genes are written under `f"{key_added}_genes"`. An earlier result of this function is replaced.
    table_key
        Which table of a SpatialData.
    seed
        Seed of the shuffling.
    copy
        Whether to return a changed copy instead of changing `cells`.

    Returns
    -------
    None or a copy of `cells`
        Sets

        - `uns["niches"]["composition"]`: DataFrame, domains x cell types, fractions of the cells of a domain, which sum to 1
        - `uns["niches"]["enrichment"]`: the same for the log2 fold, :math:`\log_2 \frac{o + 0.5}{e + 0.5}` of `o` observed and `e`
          expected cells; the half cell keeps types finite that are absent
        - `uns["niches"]["zscore"]`: standard deviations of the shuffled counts between observed and expected; 0 where they can't vary
        - `uns["niches"]["pvalue"]`, `["padj"]`: two-sided p-values, and adjusted over all pairs (Benjamini and Hochberg)
        - `uns["niches"]["n_cells"]`: DataFrame, domains x sections, number of cells with both labels
        - `uns["niches"]["cell_types"]`, `["sections"]`: names of the columns. In the columns themselves a slash, which h5ad can't store, is
          an underscore
        - `uns["niches"]`: also parameters, seed, versions, and `n_obs` (cells used, without a domain, and with one but without a type)
        - `uns["niches_genes"]`: what :func:`scanpy.tl.rank_genes_groups` writes, each domain against all other cells with a domain
          (Wilcoxon's rank sum), if `genes`. :func:`scanpy.get.rank_genes_groups_df` and scanpy's plots read it by `key="niches_genes"`

    Raises
    ------
    KeyError
        If a column or the layer is not there.
    ValueError
        If there are fewer than two domains or cell types, if a column holds measurements and no groups, if both columns are the same, if
        there is no expression, if a number is out of range, or if `key_added` is the name of something else.
    TypeError
        If an argument is of the wrong type.

    Warns
    -----
    UserWarning
        If domains have fewer than two cells with expression; they have no differential genes, and stay among the others' rest.

    Notes
    -----
    **Look at the fold, not at p.** Shuffling takes cells for independent, but cells next to each other are alike, and so are their domains:
    even two maps that have nothing to do with each other agree more than shuffled labels do. All p-values here are therefore too small, and with
    thousands of cells nearly every one is. The same holds for the genes, where moreover domains were often made from the same
    expression that is tested. What lasts is a fold that is large, and alike in every section.

    Expected counts and their spread are exact, sums over sections of hypergeometric ones; only p-values come from the tables
    drawn. These have the margins of each section (:data:`scipy.stats.random_table`), which is what shuffling labels gives, and take as long for
    a thousand cells as for a million: 1,000 tables of 20 domains and 30 types 0.1 s a section.

    See Also
    --------
    stfuse.pl.composition : the heat map of these tables
    stfuse.pl.niche_map : domains on the tissue, and what they are made of
    squidpy.gr.nhood_enrichment : which domains, or types, lie next to each other; `squidpy.gr.nhood_enrichment(cells, "sigmma_domain")`

    Examples
    --------
    >>> import stfuse
    >>> cells = stfuse.datasets.synthetic_tissue(600, n_sections=2)
    >>> stfuse.tl.niches(cells, "domain", cell_type_key="class_rna", library_key="section")
    >>> cells.uns["niches"]["composition"].sum(axis=1).round(6).unique().tolist()
    [1.0]
    >>> cells.uns["niches"]["n_cells"].to_numpy().sum()
    np.int64(600)
    >>> import scanpy as sc
    >>> list(sc.get.rank_genes_groups_df(cells, None, key="niches_genes").columns)
    ['group', 'names', 'scores', 'logfoldchanges', 'pvals', 'pvals_adj']
    """
    params = _record.params_of(locals(), "cells", "seed")
    for name, text in (("groupby", groupby), ("cell_type_key", cell_type_key)):
        check_text(name, text)
    check_text("library_key", library_key, optional=True)
    check_text("layer", layer, optional=True)
    check_number("n_perms", n_perms, least=1, whole=True)
    check_number("n_genes", n_genes, least=1, whole=True, optional=True)
    check_flag("genes", genes)
    check_flag("copy", copy)
    check_seed(seed)
    if groupby == cell_type_key:
        raise ValueError(
            f"groupby and cell_type_key are both {groupby!r}: domains can't be told from what they are made of."
        )
    if copy:
        _record.check_copy(cells)
    box: Any = _read.container(cells, table_key)
    inputs = {"groupby": groupby, "cell_type_key": cell_type_key, "library_key": library_key}
    earlier = _check_keys(box, key_added, inputs, genes)

    all_domains, all_types = (_read_groups(cells, key, table_key) for key in (groupby, cell_type_key))
    all_sections = _Groups(*_read.read_sections(cells, library_key, table_key))
    has_domain, has_type = all_domains.codes >= 0, all_types.codes >= 0
    used = np.flatnonzero(has_domain & has_type)
    if not used.size:
        raise ValueError(
            f"No cell has both a domain and a type: of {has_type.size} cells {(~has_domain).sum()} have a missing value or "
            f"{_keys.UNASSIGNED!r} in obs[{groupby!r}], and {(~has_type).sum()} in obs[{cell_type_key!r}]."
        )
    domains, types, sections = (groups.kept(used) for groups in (all_domains, all_types, all_sections))
    for groups, key, what, has in (
        (domains, groupby, "domain", has_domain),
        (types, cell_type_key, "cell type", has_type),
    ):
        _check_several(groups.names, key, what, has)

    shape = len(sections.names), len(domains.names), len(types.names)
    counts = count_cells(sections.codes, domains.codes, types.codes, shape)
    found = enrichment(counts, n_perms, np.random.default_rng(seed))
    results: dict[str, Any] = {
        key_added: {
            **tables_of(counts, found, domains.names, types.names, sections.names),
            "params": params,
            "seed": seed,
            "versions": _record.versions(),
            "n_obs": {
                "used": used.size,
                "without_domain": int((~has_domain).sum()),
                "without_type": int((has_domain & ~has_type).sum()),
            },
        }
    }
    if genes:
        results[genes_key(key_added)] = rank_genes(
            cells, groupby, all_domains.codes, all_domains.names, layer=layer, n_genes=n_genes, table_key=table_key
        )
    target = _record.copy_of(cells, table_key) if copy else cells
    _record.write(target, uns=results, table_key=table_key)
    if earlier and not genes:  # they belong to the record that was replaced
        _read.container(target, table_key).uns.pop(genes_key(key_added), None)
    return target if copy else None


def genes_key(key_added: str) -> str:
    """Key of the differential genes that stand beside the record."""
    return f"{key_added}_genes"


def _check_keys(box: Any, key_added: str, inputs: dict[str, str | None], genes: bool) -> bool:
    """Refuse to write over anything else; return whether differential genes of an earlier call are there."""
    check_target(box, "key_added", key_added, slots=("uns",), mark=MARK, inputs=inputs)
    record = box.uns.get(key_added)
    earlier = is_niches(record) and bool(record.get("params", {}).get("genes"))
    key = genes_key(key_added)
    if genes:
        check_target(box, "key_added", key, slots=("uns",), mark="", inputs={}, default=key if earlier else None)
    return earlier


def _read_groups(data: Any, key: str, table_key: str | None) -> _Groups:
    """Read a column of groups; `"unassigned"` is none."""
    column = _read.find_column(data, key, table_key)
    if column is None:
        there = _read.columns_of(_read.container(data, table_key))
        raise KeyError(
            f"No obs column {key!r}.{did_you_mean(key, there)} There is {_read.listing(there)}. Domains of cells are made by "
            "stfuse.tl.domains(cells, use_rep=, key_added=)."
        )
    codes, names = read_classes(column, key)
    number = pd.api.types.is_numeric_dtype(column.dtype)
    if len(names) > MOST and (number or 2 * len(names) > (codes >= 0).sum()):
        raise ValueError(
            f"obs[{key!r}] has {len(names)} different {'numbers' if number else 'values'} in {(codes >= 0).sum()} cells, as a "
            "measurement or an identifier has: name a column of groups, or call .astype('category') on one of numbers that are names."
        )
    codes[np.isin(codes, [i for i, name in enumerate(names) if name == _keys.UNASSIGNED])] = -1
    return _Groups(codes, names)


def _check_several(names: list[str], key: str, what: str, has: np.ndarray) -> None:
    if len(names) < 2:
        raise ValueError(
            f"obs[{key!r}] has {len(names)} {what}(s) ({_read.listing(names)}) among the cells that have both labels: two at least are "
            f"needed. {(~has).sum()} of {has.size} cells have a missing value or {_keys.UNASSIGNED!r} there."
        )
