"""Spots or cells summed into slides."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy.sparse import issparse

from stfuse import _keys, _read, _record
from stfuse._check import check_number, check_target, check_text, did_you_mean
from stfuse._labels import read_classes
from stfuse._log import logger, warn
from stfuse.pp._layer import values_of

type Mode = Literal["sum", "mean"]

MARK = "groupby"  # the entry of a record by which a result of this function is told
N_OBS = "n_obs"
EXACT = 2**24  # single precision holds whole numbers up to here


class _Groups(NamedTuple):
    """Group of each observation (-1 = none) and the names of the groups."""

    codes: np.ndarray
    names: list[str]


class _Source(NamedTuple):
    """The table whose values are summed, and in which rows of the object with the groups its observations stand."""

    table: AnnData
    rows: np.ndarray | slice
    obs: pd.DataFrame


def pseudobulk(
    data: Any,
    groupby: str | Sequence[str],
    *,
    layer: str | None = None,
    mode: Literal["sum", "mean"] = "sum",
    min_obs: int = 10,
    key_added: str | None = None,
    table_key: str | None = None,
) -> AnnData:
    """Sum spots or cells into one profile a section, patient or region: slides of a spatial cohort.

    Methods for slides and the RNA of a patient take two objects, `slides` with one row of RNA each and `tiles` with image
    features. Where the RNA is spatial, the sums over a section or over its regions are the slides, and the spots themselves
    are the tiles.

    Parameters
    ----------
    data
        AnnData, MuData or SpatialData with counts.
    groupby
        Column of `obs` with the group of each observation, or several: each combination that occurs is a group then, named
        by its values with `_` between them. Observations where a value is missing or `"unassigned"` are in no group.
    layer
        Layer that holds the counts. None = `X`.
    mode
        `"sum"`: counts, as a bulk measurement has them. `"mean"`: their average, for values that don't add up.
    min_obs
        Groups with fewer observations are left out.
    key_added
        Column of `obs` of `data` into which the name of each observation's group is written, so that
        `slide_key=key_added` joins the observations, as tiles, to the slides. None = for one column nothing is written
        (it joins them itself), for several the names of the columns with `_` between them.
    table_key
        Which table of a SpatialData, or modality of a MuData. None = the only table; `"rna"`, or the only modality.

    Returns
    -------
    A new AnnData, groups x genes, with

    - `X`: sums or means, dense; float32, or float64 where sums above 2^24 would be rounded
    - `obs_names`: names of the groups, in the order of the categories
    - `obs`: `n_obs`, the columns of `groupby`, and every column that has one value only within each group (patient, age,
      subtype)
    - `var`: that of `data`
    - `uns["pseudobulk"]`: `groupby`, parameters, versions, the number of observations in groups, in none, and in groups
      that were too small

    There are no coordinates: groups of different sections have no space in common. If `key_added` is set or made,

    - `data.obs[key_added]`: categorical, `"unassigned"` where an observation is in no group; in a MuData globally
    - `data.uns[key_added]`: the same record

    Raises
    ------
    KeyError
        If a column, layer, table or modality is missing.
    ValueError
        If no group is large enough, if a column holds decimal numbers, if two combinations get the same name, if values of a
        group are missing or infinite, if gene names are not unique, or if `key_added` is the name of something else.
    TypeError
        If an argument is of the wrong type.

    Warns
    -----
    UserWarning
        If groups are left out because they are too small, or if values that look normalised are summed.

    Notes
    -----
    The sums are :func:`scanpy.get.aggregate`'s, in double precision; sparse, Dask and backed matrices are not loaded whole.
    100,000 cells x 5,000 genes, 5 % of them not zero, take 0.2 s.

    See Also
    --------
    stfuse.pp.select_genes : choose the genes of slides.

    Examples
    --------
    >>> import scanpy as sc
    >>> import stfuse
    >>> adata = stfuse.datasets.mob()
    >>> slides = stfuse.pp.pseudobulk(adata, ["section", "layer"])
    >>> slides.n_obs == adata.obs["section_layer"].nunique()
    True
    >>> sc.pp.normalize_total(slides, target_sum=1e6)
    >>> sc.pp.log1p(slides)
    """
    columns = _check_arguments(groupby, layer, mode, min_obs)
    box: Any = _read.container(data, None if _read.is_mudata(data) else table_key)
    if key_added is None and len(columns) > 1:
        key_added = "_".join(columns).replace("/", "_")
    if key_added is not None:
        inputs: Mapping[str, str | None] = {f"groupby={column!r}": column for column in columns}
        check_target(box, "key_added", key_added, slots=("obs", "uns"), mark=MARK, inputs=inputs)
    source = _source(box, table_key, columns)
    _read.check_genes(source.table.var_names, "the data")
    values, where = values_of(source.table, layer)
    groups = _read_groups(data, columns, None if _read.is_mudata(data) else table_key)
    groups, left_out = _large_enough(groups, source.rows, min_obs, columns)

    codes = groups.codes[source.rows]
    sums = _aggregate(_summable(values), codes, groups.names, mode, where)
    obs = _constant_columns(source.obs, codes, len(groups.names))
    obs.insert(0, N_OBS, np.bincount(codes[codes >= 0], minlength=len(groups.names)))
    obs.index = pd.Index(groups.names)
    record = _record.h5ad_safe(
        {
            MARK: columns,
            "params": {"layer": layer, "mode": mode, "min_obs": min_obs},
            "n_obs": {"total": len(codes), "grouped": int(obs[N_OBS].sum()), **left_out},
            "versions": _record.versions(),
        }
    )
    slides = AnnData(sums, obs=obs, var=source.table.var.copy(), uns={"pseudobulk": record})
    if key_added is not None:
        _record.write(box, obs={key_added: _membership(groups)}, uns={key_added: record})
        logger.info("obs[%r] names the group of each observation", key_added)
    return slides


def _check_arguments(groupby: Any, layer: Any, mode: Any, min_obs: Any) -> list[str]:
    """Refuse arguments that can't be meant, and list the columns."""
    columns = [groupby] if isinstance(groupby, str) else groupby
    if not isinstance(columns, Sequence) or not columns or not all(isinstance(c, str) and c for c in columns):
        raise TypeError(f"groupby must be a column of obs or a list of columns, got {groupby!r}.")
    if len(set(columns)) < len(columns):
        raise ValueError(f"groupby names a column twice: {_read.listing(columns)}.")
    check_text("layer", layer, optional=True)
    modes = get_args(Mode.__value__)
    if mode not in modes:
        raise ValueError(f"mode must be one of {', '.join(modes)}, got {mode!r}.")
    check_number("min_obs", min_obs, least=1, whole=True)
    return list(columns)


def _source(box: Any, table_key: str | None, columns: list[str]) -> _Source:
    """Find the table to sum: the object itself, or a modality of a MuData."""
    if not _read.is_mudata(box):
        return _Source(box, slice(None), box.obs)
    _read.check_names(box.obs_names, "the MuData")
    names = list(box.mod)
    if table_key is None:
        if "rna" not in names and len(names) != 1:
            raise ValueError(f"The MuData has no modality 'rna' but {_read.listing(names)}: name one with table_key=.")
        table_key = "rna" if "rna" in names else names[0]
    if table_key not in names:
        raise KeyError(f"No modality {table_key!r}.{did_you_mean(table_key, names)} There is {_read.listing(names)}.")
    table = box.mod[table_key]
    obs = table.obs.copy()
    # global columns; those that mudata pulled from the modalities carry their names in front
    pulled = tuple(f"{name}:" for name in names)
    more = [c for c in box.obs.columns if c not in obs and (c in columns or not str(c).startswith(pulled))]
    for column in more:
        obs[column] = box.obs[column].reindex(obs.index)
    return _Source(table, box.obs_names.get_indexer(table.obs_names), obs)


def _summable(values: Any) -> Any:
    """Values as scanpy sums them: of a backed file a Dask array."""
    if not (isinstance(values, np.ndarray) or issparse(values) or hasattr(values, "dask")):
        from anndata.experimental import read_elem_lazy

        values = read_elem_lazy(getattr(values, "group", values))
    if (
        values.dtype == bool or values.dtype == np.float16
    ):  # sums of the one are wrong in sparse matrices, the other is refused
        values = values.astype(np.float32)
    return values


def _read_groups(data: Any, columns: list[str], table_key: str | None) -> _Groups:
    """Number the combinations of values that occur."""
    parts, names = [], []
    for column in columns:
        codes, classes = read_classes(_read.read_column(data, column, table_key), column, otherwise=" first")
        nothing = [i for i, name in enumerate(classes) if name == _keys.UNASSIGNED]
        parts.append(np.where(np.isin(codes, nothing), -1, codes))
        names.append(classes)
    table = np.column_stack(parts)
    known = (table >= 0).all(axis=1)
    if not known.any():
        raise ValueError(f"No observation has a value of {_read.listing(columns)}: there are no groups.")
    combinations, where = np.unique(table[known], axis=0, return_inverse=True)
    joined = ["_".join(names[i][code] for i, code in enumerate(row)) for row in combinations]
    twice = pd.Index(joined)[pd.Index(joined).duplicated()]
    if len(twice):
        raise ValueError(
            f"Several combinations of {_read.listing(columns)} are named {twice[0]!r}: values that hold '_' make them look alike. "
            "Rename the categories, or make a column of groups of your own."
        )
    codes = np.full(len(table), -1, dtype=np.int64)
    codes[known] = where.ravel()
    return _Groups(codes, joined)


def _large_enough(
    groups: _Groups, rows: np.ndarray | slice, min_obs: int, columns: list[str]
) -> tuple[_Groups, dict[str, int]]:
    """Leave small groups out, and count the observations that are in no group."""
    codes = groups.codes[rows]
    sizes = np.bincount(codes[codes >= 0], minlength=len(groups.names))
    kept = sizes >= min_obs
    if not kept.any():
        raise ValueError(
            f"No group of {_read.listing(columns)} has min_obs={min_obs} observations; the largest, "
            f"{groups.names[int(sizes.argmax())]!r}, has {sizes.max()}. Lower min_obs=, or group by fewer columns."
        )
    missing = int((codes < 0).sum())
    if missing:
        logger.info("%d of %d observations have no value of %s: they are in no group", missing, len(codes), columns)
    if not kept.all():
        small = [f"{groups.names[i]!r}: {sizes[i]}" for i in np.flatnonzero(~kept)]
        warn(
            f"{len(small)} of {len(kept)} groups have fewer than min_obs={min_obs} observations and are left out "
            f"({', '.join(small[:5])}{', ...' if len(small) > 5 else ''})."
        )
    number = np.append(np.where(kept, np.cumsum(kept) - 1, -1), -1)  # the last is that of code -1
    names = [name for name, keep in zip(groups.names, kept, strict=True) if keep]
    left_out = {"without_group": missing, "in_small_groups": int(sizes[~kept].sum())}
    return _Groups(number[groups.codes], names), left_out


def _aggregate(values: Any, codes: np.ndarray, names: list[str], mode: str, where: str) -> np.ndarray:
    import scanpy as sc

    obs = pd.DataFrame({"group": pd.Categorical.from_codes(codes, names)}, index=pd.RangeIndex(len(codes)).astype(str))
    found: Any = sc.get.aggregate(AnnData(values, obs=obs), "group", mode).layers[mode]
    found = np.asarray(found.compute() if hasattr(found, "compute") else found, dtype=np.float64)
    low, high = found.min(), found.max()
    if not (np.isfinite(low) and np.isfinite(high)):
        raise ValueError(f"{where} has missing or infinite values: clean them first.")
    whole = bool((found == np.rint(found)).all())
    if mode == "sum" and (low < 0 or not whole):
        warn(
            f"The sums of {where} are {'negative in part' if low < 0 else 'no whole numbers'}, so it holds no counts. "
            "Normalised or scaled values do not add up: name the layer with counts by layer=, or take mode='mean'."
        )
    return found if whole and max(high, -low) > EXACT else found.astype(np.float32)


def _constant_columns(obs: pd.DataFrame, codes: np.ndarray, n_groups: int) -> pd.DataFrame:
    """Columns with one value within each group, one row a group."""
    grouped = np.flatnonzero(codes >= 0)
    group = codes[grouped]
    _, first = np.unique(group, return_index=True)
    table = obs.iloc[grouped]
    kept = []
    for name in table.columns.drop(N_OBS, errors="ignore"):
        try:
            value, known = pd.factorize(table[name], use_na_sentinel=False)
        except TypeError:  # lists and other values that can't be compared
            continue
        if len(np.unique(group * len(known) + value)) == n_groups:
            kept.append(name)
    found = table[kept].iloc[first].copy()
    for name in found.columns:
        if isinstance(found[name].dtype, pd.CategoricalDtype):
            found[name] = found[name].cat.remove_unused_categories()
    return found


def _membership(groups: _Groups) -> pd.Categorical:
    """Group of each observation by name."""
    if (groups.codes >= 0).all():
        return pd.Categorical.from_codes(groups.codes, groups.names)
    codes = np.where(groups.codes < 0, len(groups.names), groups.codes)
    return pd.Categorical.from_codes(codes, [*groups.names, _keys.UNASSIGNED])
