"""Average one view over neighbours in space."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from stfuse import _keys, _read, _record
from stfuse._check import check_flag, check_number, check_target, check_text
from stfuse._neighbors import neighborhood_mean, warn_if_small
from stfuse.pp._correct_batch import holders

MARK = "averaged"  # the entry of a record by which a result of this function is told


class _Space(NamedTuple):
    """Where the rows that are averaged lie, and the column that tells their sections."""

    xy: np.ndarray
    section: np.ndarray
    library_key: str | None


def neighbor_mean(
    data: Any,
    rep: str,
    *,
    n_neighbors: int = 10,
    library_key: str | None = None,
    key_added: str | None = None,
    spatial_key: str = _keys.SPATIAL,
    table_key: str | None = None,
    copy: bool = False,
) -> Any:
    """Average features over neighbours in space: the simplest way to let them know where they lie.

    Each row of `obsm[rep]` becomes the mean of itself and the rows of its nearest neighbours in the same section.
    Measurement noise goes down, what neighbours share stays, borders are blurred. Clustered with :func:`stfuse.tl.domains` the
    result is a baseline that methods for spatial domains often fail to beat.

    Parameters
    ----------
    data
        AnnData, MuData or SpatialData. In a MuData, `rep` is looked for in the global `obsm` and in that of each
        modality.
    rep
        Key of the features or codes in `obsm`, n x d; a row of NaN = missing there.
    n_neighbors
        Nearest neighbours that are averaged with the observation itself, fewer where the section has fewer. Only
        observations with features count.
    library_key
        Column of `obs` with the section; neighbours are of the same one. None = the column whose values are the sections of
        `uns["spatial"]`, where it has several; else all are one section.
    key_added
        Key of the result in `obsm` and of its record in `uns`. None = `f"{rep}_neighbor_mean"`.
    spatial_key
        Key of the coordinates in `obsm`, in whatever unit.
    table_key
        SpatialData: which table.
    copy
        Whether to return a changed copy instead of changing `data`.

    Returns
    -------
    None, or the changed copy. Written are, in a MuData globally,

    - `obsm[key_added]`: n x d, float32. A row of NaN stays one
    - `uns[key_added]`: the key that was averaged, parameters, versions, the number of observations

    Raises
    ------
    KeyError
        If the features, the coordinates or the column is missing.
    ValueError
        If the features are infinite, missing in part of a row or everywhere, if an observation with features has no finite
        coordinates, if the column has missing values, if `n_neighbors` is below 1, or if `key_added` is the name of something else.
    TypeError
        If an argument is of the wrong type.

    Warns
    -----
    UserWarning
        If what counts as one section has observations in the same place (a forgotten `library_key`), or if a section has no
        more than `n_neighbors` + 1 observations, which then all get the same mean.

    Notes
    -----
    All neighbours weigh alike, whatever their distance. Of several that are equally far, as on a lattice, the places decide
    which are taken and not the order of the observations.

    1,000,000 observations x 20 features take about 10 s on one core.

    See Also
    --------
    stfuse.tl.neighbor_mean : the same for both views at once, as a method with a model.

    Examples
    --------
    >>> import stfuse
    >>> adata = stfuse.datasets.synthetic_tissue(300)
    >>> stfuse.pp.neighbor_mean(adata, "X_pca")
    >>> adata.obsm["X_pca_neighbor_mean"].shape
    (300, 30)
    """
    for name, text in (("rep", rep), ("spatial_key", spatial_key)):
        check_text(name, text)
    check_text("library_key", library_key, optional=True)
    check_number("n_neighbors", n_neighbors, least=1, whole=True)
    check_flag("copy", copy)
    key = f"{rep}_neighbor_mean" if key_added is None else key_added
    box: Any = _read.container(data, table_key)
    _check_key(box, key, {"rep": rep, "spatial_key": spatial_key})
    if copy:
        _record.check_copy(data)
    values, has = _features(data, rep, table_key)
    space = _read_space(data, np.flatnonzero(has), n_neighbors, library_key, spatial_key, table_key)
    out = np.full(values.shape, np.nan, dtype=np.float32)
    present = np.ones(len(space.xy), dtype=bool)
    out[has] = neighborhood_mean(values[has], present, space.xy, space.section, n_neighbors)
    record = {
        MARK: rep,
        "params": {"n_neighbors": n_neighbors, "library_key": space.library_key, "spatial_key": spatial_key},
        "versions": _record.versions(),
        "n_obs": {"total": box.n_obs, "averaged": len(space.xy)},
    }
    target = _record.copy_of(data, table_key) if copy else data
    _record.write(target, obsm={key: out}, uns={key: record}, table_key=table_key)
    return target if copy else None


def _check_key(box: Any, key: str, inputs: dict[str, str]) -> None:
    check_target(box, "key_added", key, slots=("obsm", "uns"), mark=MARK, inputs=inputs)
    hiding = holders(box, key)
    if hiding:
        raise ValueError(
            f"key_added={key!r}: mdata[{hiding[0]!r}].obsm[{key!r}] is there already and could be taken for the result, which is "
            "written into the global obsm. Choose another name, or delete it first."
        )


def _features(data: Any, rep: str, table_key: str | None) -> tuple[np.ndarray, np.ndarray]:
    """Read the features and which rows are there."""
    box: Any = _read.container(data, table_key)
    if box.n_obs == 0:
        raise ValueError("There are no observations.")
    _read.check_names(box.obs_names, "the data")
    values = _read.read_rep(data, rep, table_key)
    has = _read.check_values(values, f"obsm[{rep!r}]")
    if not has.any():
        raise ValueError(f"obsm[{rep!r}] has no features: {'every row is NaN' if values.shape[1] else 'no columns'}.")
    return values, has


def _read_space(
    data: Any, rows: np.ndarray, n_neighbors: int, library_key: str | None, spatial_key: str, table_key: str | None
) -> _Space:
    spatial = _read.read_coordinates(data, spatial_key, table_key)
    if spatial is None:
        raise KeyError(_read.no_coordinates(data, spatial_key, table_key) + " Neighbours in space are found by them.")
    lost = int((~np.isfinite(spatial[rows]).all(axis=1)).sum())
    if lost:
        raise ValueError(
            f"obsm[{spatial_key!r}] has {lost} observation(s) with features but without finite coordinates, so that they have no "
            "neighbours: drop them, or set their rows of features to NaN."
        )
    library_key = library_key or _read.find_library_key(data, table_key)
    section, names = _read.read_sections(data, library_key, table_key)
    _read.warn_if_stacked(spatial[rows], len(names), library_key)
    warn_if_small(section[rows], names, n_neighbors)
    return _Space(spatial[rows], section[rows], library_key)
