"""Which pathways set a group of observations apart."""

from __future__ import annotations

import warnings
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy.sparse import csr_matrix

from stfuse import _keys, _read, _record
from stfuse._check import check_flag, check_target, check_text, did_you_mean
from stfuse._log import warn
from stfuse.tl._pathway_scores import Activity, read_activity

METHODS = ("t-test_overestim_var", "t-test", "wilcoxon")
REST = "rest"


class Groups(NamedTuple):
    """Of the observations in ``rows``: the group, as codes into ``names``; every name occurs."""

    rows: np.ndarray
    codes: np.ndarray
    names: list[str]


def rank_pathways(
    data: Any,
    groupby: str,
    *,
    score_key: str = "score_progeny",
    reference: str = REST,
    method: Literal["t-test_overestim_var", "t-test", "wilcoxon"] = "t-test_overestim_var",
    library_key: str | None = None,
    key_added: str = "rank_pathways",
    table_key: str | None = None,
    copy: bool = False,
) -> Any:
    """Rank the pathways that set each group of observations apart, and count the sections that agree.

    Scores are standardised within each section first, so that a section's staining, depth or donor can't pass for a difference
    between groups. Then the scores of each group are tested against the reference.

    Parameters
    ----------
    data
        AnnData, MuData or SpatialData with scores from :func:`stfuse.tl.pathways`.
    groupby
        Column of `obs` with the groups, for example the domains of :func:`stfuse.tl.domains`. Left out are observations with a
        missing value or in the group `"unassigned"`, and those without scores; they are no part of the rest either.
    score_key
        Key in `obsm` of the scores, a DataFrame.
    reference
        `"rest"`: all other groups together. Or the name of a group.
    method
        Test: `"t-test"` (Welch), `"t-test_overestim_var"` (the same with the size of the group for that of the reference, which is
        stricter) or `"wilcoxon"` (rank sum).
    library_key
        Column of `obs` with the section. None: the column whose values are the sections of `uns["spatial"]`, where it has several;
        else all are one section.
    key_added
        Key of the table in `uns`. An earlier table of this function is replaced.
    table_key
        Which table of a SpatialData.
    copy
        Whether to return a changed copy instead of changing `data`.

    Returns
    -------
    None or a copy of `data`
        Sets

        - `uns["rank_pathways"]`: DataFrame with a row for each group and pathway, groups in their order, the smallest p-values first:
          `group`, `reference`, `pathway`, `stat` (of the test), `meanchange` (difference of means in standard deviations
          within a section), `pval` and `padj` (Benjamini and Hochberg over the pathways of a group). With several sections also
          `n_sections` (sections with observations of both the group and the reference) and `n_sections_agreeing` (those of them
          where the difference has the sign of `meanchange`)
        - `uns["rank_pathways_params"]`: parameters and the size of each group

    Raises
    ------
    KeyError
        If the scores or a column are not there.
    ValueError
        If there are fewer than two groups, if the reference is no group of at least two observations, if the method is unknown, or
        if `key_added` is the name of something else.
    TypeError
        If an argument is of the wrong type.

    Warns
    -----
    UserWarning
        If groups have one observation, which can't be tested (they stay part of the rest), or if sections have one with scores,
        which can't be standardised.

    Notes
    -----
    The tests are those of :func:`decoupler.tl.rankby_group`. They take observations for independent, which neighbours in a
    tissue are not: with thousands of spots nearly every p-value is small. Trust a difference by its size (`meanchange`) and by
    the sections that agree.

    Examples
    --------
    >>> import stfuse
    >>> adata = stfuse.datasets.mob()
    >>> stfuse.tl.pathways(adata, organism="mouse")
    >>> stfuse.tl.rank_pathways(adata, "layer", library_key="section")
    >>> table = adata.uns["rank_pathways"]
    >>> table.loc[table["group"] == "GCL", ["pathway", "n_sections", "n_sections_agreeing"]].values.tolist()[0]
    ['MAPK', 4, 4]
    """
    params = _record.params_of(locals(), "table_key")
    texts = {"groupby": groupby, "score_key": score_key, "reference": reference}
    for argument, text in texts.items():
        check_text(argument, text)
    check_text("library_key", library_key, optional=True)
    check_flag("copy", copy)
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, got {method!r}.")
    if copy:
        _record.check_copy(data)
    box: Any = _read.container(data, table_key)
    _check_key(box, key_added, score_key)
    activity = read_activity(data, score_key, library_key, table_key)
    _warn_of_lonely(activity)
    groups = read_groups(data, groupby, activity.z, table_key)
    sizes = np.bincount(groups.codes, minlength=len(groups.names))
    _check_groups(groups, sizes, groupby, reference)

    table = _test(activity.z.iloc[groups.rows], groups, sizes, reference, method)
    if len(activity.sections) > 1:
        table = _with_sections(table, activity, groups, reference)
    record = {"params": params, "n_obs": dict(zip(groups.names, sizes.tolist(), strict=True))}
    target = _record.copy_of(data, table_key) if copy else data
    _record.write(target, uns={key_added: table, params_key(key_added): record}, table_key=table_key)
    return target if copy else None


def params_key(key_added: str) -> str:
    """Key of the record that stands beside a table."""
    return f"{key_added}_params"


def read_groups(data: Any, groupby: str, z: pd.DataFrame, table_key: str | None) -> Groups:
    """Read the groups of observations that have scores and a group, in the order of the column."""
    column = _read.read_column(data, groupby, table_key)
    # numbers in their order, not "10" before "2"
    labels = column.cat if isinstance(column.dtype, pd.CategoricalDtype) else column.astype("category").cat
    order = [str(name) for name in labels.categories]
    names = np.array([*order, ""], dtype=object)[labels.codes]
    rows = np.flatnonzero(
        (labels.codes >= 0).to_numpy() & (names != _keys.UNASSIGNED) & z.notna().all(axis=1).to_numpy()
    )
    used = [name for name in dict.fromkeys(order) if name in set(names[rows])]
    return Groups(rows, pd.Index(used).get_indexer(names[rows]), used)


def _check_key(box: Any, key_added: str, score_key: str) -> None:
    # its own tables are known by the record beside them
    own = params_key(key_added) in box.uns if isinstance(key_added, str) else False
    default = key_added if own else "rank_pathways"
    check_target(box, "key_added", key_added, slots=("uns",), mark="", inputs={"score_key": score_key}, default=default)


def _warn_of_lonely(activity: Activity) -> None:
    lost = activity.raw.notna().any(axis=1).to_numpy() & activity.z.isna().all(axis=1).to_numpy()
    if lost.any():
        names = _read.listing(activity.sections[code] for code in np.unique(activity.section[lost]))
        warn(
            f"{int(lost.sum())} section(s) have one observation with scores, which can't be standardised and is left out: {names}."
        )


def _check_groups(groups: Groups, sizes: np.ndarray, groupby: str, reference: str) -> None:
    if len(groups.names) < 2:
        raise ValueError(
            f"obs[{groupby!r}] has {len(groups.names)} group(s) with scores ({_read.listing(groups.names)}): two at least are needed "
            f"to compare. Missing values and {_keys.UNASSIGNED!r} are no groups."
        )
    if reference != REST and reference not in groups.names:
        raise ValueError(
            f"reference={reference!r} is no group of obs[{groupby!r}] with scores.{did_you_mean(reference, groups.names)} There is "
            f"{_read.listing(groups.names)}, and {REST!r} for all others."
        )
    lonely = [name for name, size in zip(groups.names, sizes, strict=True) if size < 2]
    if reference in lonely:
        raise ValueError(
            f"reference={reference!r} has one observation with scores: two at least are needed for a test."
        )
    tested = set(groups.names) - set(lonely) - {reference}
    if not tested or len(groups.rows) < 4:
        raise ValueError(
            f"No group of obs[{groupby!r}] can be tested: two observations at least are needed in a group and in its reference."
        )
    if lonely:
        warn(f"Groups with one observation can't be tested and are left out of the table: {_read.listing(lonely)}.")


def _test(z: pd.DataFrame, groups: Groups, sizes: np.ndarray, reference: str, method: str) -> pd.DataFrame:
    """Run decoupler's tests and bring their table into the order of the groups."""
    import decoupler as dc

    labels = pd.Categorical.from_codes(groups.codes, groups.names)
    obs = pd.DataFrame({"group": labels}, index=z.index.astype(str))
    small = AnnData(z.to_numpy(), obs=obs, var=pd.DataFrame(index=z.columns))
    with warnings.catch_warnings():
        # groups of one, which are dropped below, and pathways whose scores are all the same
        warnings.simplefilter("ignore", RuntimeWarning)
        table = dc.tl.rankby_group(small, "group", reference=reference, method=method)
    tested = [name for name, size in zip(groups.names, sizes, strict=True) if size > 1 and name != reference]
    table = table.rename(columns={"name": "pathway"})
    table = table[table["group"].isin(tested)]
    table["group"] = pd.Categorical(table["group"].astype(str), tested)
    table["pathway"] = pd.Categorical(table["pathway"].astype(str), z.columns)
    return table.sort_values("group", kind="stable", ignore_index=True)


def _with_sections(table: pd.DataFrame, activity: Activity, groups: Groups, reference: str) -> pd.DataFrame:
    """Count the sections with a group and its reference, and those whose difference has the sign of all together."""
    z = activity.z.to_numpy()[groups.rows]
    shape = len(groups.names), len(activity.sections)
    cell = np.ravel_multi_index((groups.codes, activity.section[groups.rows]), shape)
    member = csr_matrix((np.ones(len(cell)), (cell, np.arange(len(cell)))), shape=(shape[0] * shape[1], len(cell)))
    total = (member @ z).reshape(*shape, -1)
    size = np.bincount(cell, minlength=shape[0] * shape[1]).reshape(*shape, 1)
    if reference == REST:
        other, n_other = total.sum(axis=0) - total, size.sum(axis=0) - size
    else:
        i = groups.names.index(reference)
        other, n_other = total[[i]], size[[i]]
    both = (size > 0) & (n_other > 0)
    difference = total / np.maximum(size, 1) - other / np.maximum(n_other, 1)

    row = pd.Index(groups.names).get_indexer(table["group"].astype(str))
    column = table["pathway"].cat.codes.to_numpy()
    same = np.sign(difference[row, :, column]) == np.sign(table["meanchange"].to_numpy())[:, None]
    there = both[row, :, 0]
    return table.assign(n_sections=there.sum(axis=1), n_sections_agreeing=(same & there).sum(axis=1))
