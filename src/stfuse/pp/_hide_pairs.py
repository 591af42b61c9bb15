"""Make fully paired data partly paired, for experiments."""

from typing import Any

import numpy as np
import pandas as pd

from stfuse import _keys, _read, _record
from stfuse._check import check_flag, check_number, check_seed, check_text, did_you_mean


def hide_pairs(
    data: Any,
    fraction: float,
    *,
    seed: int = 0,
    key: str = _keys.PAIRED,
    image_key: str = _keys.IMAGE,
    rna_key: str = _keys.RNA,
    library_key: str | None = None,
    table_key: str | None = None,
    copy: bool = False,
) -> Any:
    """Hide which image belongs to which expression in a random fraction of the pairs.

    To learn how much a method depends on pairs one hides some of them. `fraction` is the fraction that
    is **hidden**: 0.6 leaves 40 % of the pairs. Nothing is removed: every observation stays in its place
    with both views, and a method trained with `paired_key=key` uses the two views of a hidden pair
    as if they came from two different observations. The truth remains for scoring.

    Parameters
    ----------
    data
        AnnData, MuData (modalities `image` and `rna`) or SpatialData.
    fraction
        Fraction of the pairs that is hidden, 0 to 1. A pair is an observation with both views. A row of
        NaN in `obsm[image_key]` or `obsm[rna_key]` is no view; a view that is not computed yet counts
        as there. Two pairs at least are left (all where there are fewer), unless `fraction` is 1.
    seed
        Seed. With one seed, the pairs hidden at a small fraction are among those hidden at a larger one.
    key
        Name of the `obs` column to write. A boolean column of this name is replaced, any other refused.
    image_key
        Key of the image features in `obsm`.
    rna_key
        Key of the expression features in `obsm`.
    library_key
        Column of `obs` that names the sections: the same fraction is hidden in each. None = over all.
    table_key
        SpatialData: which table.
    copy
        Whether to return a changed copy instead of changing `data`.

    Returns
    -------
    None, or the changed copy. Written is `obs[key]` (bool, in a MuData the global `obs`): True where an observation
    has both views and they may be used as a pair.

    Raises
    ------
    ValueError
        If `fraction` does not lie between 0 and 1, no observation has both views, or `key` is a column of something else.
    TypeError
        If an argument is of the wrong type.
    KeyError
        If a column, a modality, or a key other than the default ones is missing.

    Examples
    --------
    >>> import stfuse
    >>> adata = stfuse.datasets.synthetic_tissue(500)
    >>> stfuse.pp.hide_pairs(adata, 0.6)
    >>> int(adata.obs["paired"].sum())
    200
    """
    check_number("fraction", fraction, least=0, most=1)
    check_seed(seed)
    check_flag("copy", copy)
    for argument, text in (("key", key), ("image_key", image_key), ("rna_key", rna_key)):
        check_text(argument, text)
    _check_key(data, key, library_key, table_key)
    has_image = _has_view(data, "image", image_key, _keys.IMAGE, table_key)
    has_rna = _has_view(data, "rna", rna_key, _keys.RNA, table_key)
    paired = has_image & has_rna
    if not paired.any():
        raise ValueError(
            f"No observation has both views (image: {has_image.sum()}, rna: {has_rna.sum()} observations), so there are "
            "no pairs to hide."
        )
    section = np.zeros(len(paired), dtype=np.int64)
    if library_key is not None:
        section = _read.read_sections(data, library_key, table_key)[0]
    paired[_choose(np.flatnonzero(paired), section, fraction, seed)] = False

    target = _record.copy_of(data, table_key) if copy else data
    _record.write(target, obs={key: paired}, table_key=table_key)
    return target if copy else None


def _check_key(data: Any, key: str, library_key: str | None, table_key: str | None) -> None:
    """Refuse to write over a column that says something else."""
    box: Any = _read.container(data, table_key)
    if key == library_key or (key in box.obs and not pd.api.types.is_bool_dtype(box.obs[key].dtype)):
        raise ValueError(
            f"key={key!r} would overwrite obs[{key!r}], which does not hold True and False: it names the column that "
            "is written; choose another name."
        )


def _has_view(data: Any, role: str, key: str, default: str, table_key: str | None) -> np.ndarray:
    """Tell which observations have a view; one that is still to be computed is there."""
    box: Any = _read.container(data, table_key)
    if not _read.is_mudata(box):
        if key == default and key not in box.obsm:
            return np.ones(box.n_obs, dtype=bool)
        _check_view(box, role, key, "obsm")
        return _read.check_values(_read.read_rep(data, key, table_key), f"obsm[{key!r}]")
    if role not in box.mod:
        raise KeyError(f"The MuData has no modality {role!r}. It has: {', '.join(box.mod)}.")
    modality = box.mod[role]
    if key not in modality.obsm and key in box.obsm:  # made by a fusion before
        return _read.check_values(_read.read_rep(box, key), f"mdata.obsm[{key!r}]")
    present = np.ones(modality.n_obs, dtype=bool)
    if key != default or key in modality.obsm:
        _check_view(modality, role, key, f"mdata[{role!r}].obsm")
        present = _read.check_values(_read.read_rep(modality, key), f"mdata[{role!r}].obsm[{key!r}]")
    return box.obs_names.isin(modality.obs_names[present])


def _check_view(source: Any, role: str, key: str, where: str) -> None:
    if key not in source.obsm:
        recipe = {"image": "image_features", "rna": "rna_features"}[role]
        raise KeyError(
            f"No {where}[{key!r}].{did_you_mean(key, source.obsm)} There is {_read.listing(source.obsm.keys())}. "
            f"{role}_key= names the {role} view; stfuse.pp.{recipe} makes one."
        )


def _choose(pairs: np.ndarray, section: np.ndarray, fraction: float, seed: int) -> np.ndarray:
    """Choose the rows to hide: the first ones of an order that does not depend on the fraction."""
    order = np.random.default_rng(seed).permutation(pairs)
    hidden = np.zeros(len(order), dtype=bool)
    for code in np.unique(section[order]):
        here = np.flatnonzero(section[order] == code)
        hidden[here[: round(fraction * len(here))]] = True
    if fraction < 1:
        # The last of the order are those that every fraction leaves longest.
        kept = max(0, 2 - int((~hidden).sum()))
        hidden[np.flatnonzero(hidden)[len(np.flatnonzero(hidden)) - kept :]] = False
    return order[hidden]
