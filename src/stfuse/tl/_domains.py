"""Spatial domains from codes."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd

from stfuse import _cluster, _keys, _read, _record
from stfuse._check import check_flag, check_number, check_seed, check_target, check_text
from stfuse._log import logger, warn
from stfuse.tl._graph import Graph, code_graph, spread
from stfuse.tl._leiden import leiden, leiden_with
from stfuse.tl._refine import refine_labels

METHODS = ("kmeans", "leiden", "gmm")
# Beyond this many observations a graph takes longer than the clustering it is not needed for.
GRAPH_UP_TO = 20_000


class _Space(NamedTuple):
    """Where the observations with a code lie: which of them are ``placed``, and of these place and section."""

    placed: np.ndarray
    xy: np.ndarray
    section: np.ndarray


def domains(
    data: Any,
    *,
    use_rep: str = "X_cameo",
    n_clusters: int | None = None,
    resolution: float | None = None,
    method: Literal["kmeans", "leiden", "gmm"] = "kmeans",
    refine: bool = True,
    n_neighbors_refine: int | None = None,
    neighbors: bool | None = None,
    n_neighbors: int = 15,
    library_key: str | None = None,
    key_added: str | None = None,
    table_key: str | None = None,
    spatial_key: str = _keys.SPATIAL,
    seed: int = 0,
    copy: bool = False,
) -> Any:
    r"""Group observations with similar codes into spatial domains.

    Domains are the usual end of a fusion: parts of the tissue that look alike *and* express alike. All sections are
    clustered together, so a domain has the same name in all of them. The code is clustered as it is; then, with
    `refine`, each observation takes the majority label of its surroundings in its own section, which removes single
    misplaced observations.

    Parameters
    ----------
    data
        AnnData, MuData or SpatialData.
    use_rep
        Key of the code in `obsm`, n x d. Rows of NaN (no code) get the domain `"unassigned"`.
    n_clusters
        Number of domains. Either this or `resolution`.
    resolution
        Resolution of Leiden; higher gives more domains.
    method
        `"kmeans"`: K-means (10 starts, 3 above 200,000 observations). `"gmm"`: Gaussian mixture with one covariance
        for all components, for elongated clusters. `"leiden"`: communities of the nearest-neighbour graph; with
        `n_clusters` the resolution is found by bisection.
    refine
        Vote over neighbours in space. An observation's own label counts as two votes and wins ties. Without
        coordinates the step is left out, with a warning, and the record says `refine=False`.
    n_neighbors_refine
        Number of neighbours that vote. None lets the labels say: rings of 4, 6, 8, 12 and 18 neighbours are added as
        long as their labels agree with the observation's (corrected for chance) at least 0.8 times as well as those of
        the first ring. Thin layers keep a small neighbourhood, wide domains get a large one.
    neighbors
        Whether to write the nearest-neighbour graph of the code, for :func:`scanpy.tl.umap` and the like. None:
        always for Leiden, which needs it, otherwise up to 20,000 observations.
    n_neighbors
        Number of neighbours in that graph.
    library_key
        Column of `obs` with the section. Observations of different sections are never neighbours in space. None: the
        column whose values are the sections of `uns["spatial"]`, where it has several; else all are one section.
    key_added
        Column of `obs` to write. None: `use_rep` without a leading `X_`, and `_domain`. An earlier result under this
        name is replaced, any other column refused.
    table_key
        Which table of a SpatialData.
    spatial_key
        Key of the coordinates in `obsm`.
    seed
        Seed; the same seed gives the same domains.
    copy
        Whether to return a changed copy instead of changing `data`.

    Returns
    -------
    None or a copy of `data`
        Sets, for `use_rep="X_cameo"`:

        - `obs["cameo_domain"]`: categorical, `"0"` the largest domain, `"1"` the next and so on, `"unassigned"` last and
          only where there are any
        - `uns["cameo_domain"]`: parameters, neighbours used in the vote, number of observations
        - `uns["cameo_neighbors"]`, `obsp["cameo_neighbors_connectivities"]`, `obsp["cameo_neighbors_distances"]`: the
          graph, if asked for

    Raises
    ------
    KeyError
        If the code, the column of sections or coordinates under a `spatial_key` of your own are not there.
    ValueError
        If not exactly one of `n_clusters` and `resolution` is given, if there are more clusters than distinct codes,
        if the code has NaN inside a row or infinities, if `key_added` is the name of something else, or if a number is
        out of range.
    TypeError
        If an argument is of the wrong type.

    Warns
    -----
    UserWarning
        If what counts as one section has observations in the same place (a forgotten `library_key`), if there are no
        coordinates to refine with, or if fewer than `n_clusters` domains are left.

    Notes
    -----
    The refinement can remove a small domain altogether; there are then fewer than `n_clusters`, and a warning says so.

    `"unassigned"` is a category like any other for what comes after: :func:`scanpy.tl.rank_genes_groups` tests it as a
    group of its own and counts it among the rest of every other.

    :func:`scanpy.tl.umap` reads the code again and refuses NaN: where some observations have no code, leave them out
    first, `adata[adata.obs["cameo_domain"] != "unassigned"].copy()`.

    100,000 observations x 100 dimensions take about 25 s with K-means and refinement on two cores. The first graph of
    a Python process takes up to 10 s more, in which scanpy compiles its code; `neighbors=False` leaves it out.

    Examples
    --------
    >>> import stfuse
    >>> adata = stfuse.datasets.synthetic_tissue(600)
    >>> stfuse.tl.domains(adata, use_rep="X_pca", n_clusters=4)
    >>> list(adata.obs["pca_domain"].cat.categories)
    ['0', '1', '2', '3']
    """
    params = _record.params_of(locals(), "table_key")
    for argument, flag in (("refine", refine), ("copy", copy)):
        check_flag(argument, flag)
    check_flag("neighbors", neighbors, optional=True)
    for argument, text in (("use_rep", use_rep), ("spatial_key", spatial_key)):
        check_text(argument, text)
    check_seed(seed)
    _check_arguments(method, n_clusters, resolution, n_neighbors, n_neighbors_refine)
    box: Any = _read.container(data, table_key)
    name = use_rep.removeprefix("X_")
    key = _target(box, name, library_key, key_added)
    codes = _read.read_rep(data, use_rep, table_key)
    has_code = _read.check_values(codes, f"obsm[{use_rep!r}]")
    rows = np.flatnonzero(has_code)
    _check_size(rows.size, n_clusters, use_rep)
    space = _read_space(data, rows, library_key, spatial_key, table_key) if refine else None

    graph = None
    if method == "leiden" or neighbors or (neighbors is None and 2 < rows.size <= GRAPH_UP_TO):
        if rows.size < 3:
            raise ValueError(f"A graph needs at least 3 observations with a code, there are {rows.size}.")
        graph = code_graph(codes[rows], n_neighbors=n_neighbors, seed=seed, use_rep=use_rep)
    labels = _labels(codes[rows], graph, method, n_clusters, resolution, seed)
    voters = 0
    if space is not None:
        labels, voters = _refine(labels, space, n_clusters, n_neighbors_refine)
    column = _as_categories(labels, rows, box.n_obs)

    record = {
        "params": {**params, "refine": space is not None},
        "n_neighbors_refine": voters,
        "n_obs": {"total": box.n_obs, "coded": rows.size},
    }
    obsp, uns = _graph_slots(graph, rows, box.n_obs, _keys.slots(name).neighbors) if graph is not None else ({}, {})
    if neighbors is False:
        obsp, uns = {}, {}
    target = _record.copy_of(data, table_key) if copy else data
    _record.write(target, obs={key: column}, obsp=obsp, uns={key: record, **uns}, table_key=table_key)
    return target if copy else None


def _target(box: Any, name: str, library_key: str | None, key_added: str | None) -> str:
    default = _keys.slots(name).domain
    key = default if key_added is None else key_added
    inputs = {"the record of the code": name, "library_key": library_key}
    check_target(box, "key_added", key, slots=("obs", "uns"), mark="n_neighbors_refine", inputs=inputs, default=default)
    return key


def _check_arguments(
    method: str, n_clusters: int | None, resolution: float | None, n_neighbors: int, n_refine: int | None
) -> None:
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, got {method!r}.")
    if (n_clusters is None) == (resolution is None):
        given = "neither" if n_clusters is None else "both"
        raise ValueError(
            f"Give exactly one of n_clusters and resolution, got {given}: n_clusters=7 for a number of domains, or "
            'method="leiden", resolution=1.0.'
        )
    if resolution is not None and method != "leiden":
        raise ValueError(f'method={method!r} needs n_clusters; resolution belongs to method="leiden".')
    check_number("resolution", resolution, above=0, optional=True)
    check_number("n_clusters", n_clusters, least=1, whole=True, optional=True)
    check_number("n_neighbors", n_neighbors, least=2, whole=True)
    check_number("n_neighbors_refine", n_refine, least=1, whole=True, optional=True)


def _check_size(n: int, n_clusters: int | None, use_rep: str) -> None:
    if n == 0:
        raise ValueError(f"Every row of obsm[{use_rep!r}] is NaN: no observation has a code.")
    if n_clusters is not None and n_clusters > n:
        raise ValueError(
            f"n_clusters={n_clusters} is more than the {n} observation(s) with a code in obsm[{use_rep!r}]."
        )


def _labels(
    codes: np.ndarray, graph: Graph | None, method: str, n_clusters: int | None, resolution: float | None, seed: int
) -> np.ndarray:
    if n_clusters == 1:
        return np.zeros(len(codes), dtype=np.int64)
    if method == "leiden" and graph is not None:
        if resolution is not None:
            return leiden(graph, resolution, seed)
        return leiden_with(graph, int(n_clusters or 0), seed)[0]
    k = int(n_clusters or 0)
    labels = _cluster.kmeans(codes, k, seed) if method == "kmeans" else _cluster.gmm(codes, k, seed)
    if method == "kmeans" and len(np.unique(labels)) < k:
        raise ValueError(
            f"n_clusters={k} is more than the {len(np.unique(labels))} distinct code(s): many observations share one."
        )
    if method == "gmm" and len(np.unique(labels)) < k:
        warn(
            f"{len(np.unique(labels))} domains are left of n_clusters={k}: the other components of the mixture have no "
            'observations. method="kmeans" gives exactly as many as asked for.'
        )
    return labels.astype(np.int64)


def _read_space(
    data: Any, rows: np.ndarray, library_key: str | None, spatial_key: str, table_key: str | None
) -> _Space | None:
    """Read where the observations in ``rows`` lie, None (and a warning) where nothing is known of it."""
    section, names = _read.read_sections(data, library_key, table_key)
    spatial = _read.read_coordinates(data, spatial_key, table_key)
    if spatial is None and spatial_key != _keys.SPATIAL:
        raise KeyError(_read.no_coordinates(data, spatial_key, table_key) + " refine=False needs none.")
    placed = np.isfinite(spatial[rows]).all(1) if spatial is not None else np.zeros(rows.size, dtype=bool)
    if spatial is None or not placed.any():
        state = "there are no coordinates" if spatial is None else "no coordinates are finite"
        warn(f"Domains are not refined in space: {state} in obsm[{spatial_key!r}] (refine=False silences this).")
        return None
    where = rows[placed]
    _read.warn_if_stacked(spatial[where], len(names), library_key)
    return _Space(placed, spatial[where], section[where])


def _refine(
    labels: np.ndarray, space: _Space, n_clusters: int | None, n_neighbors: int | None
) -> tuple[np.ndarray, int]:
    refined = labels.copy()
    # empty components of a mixture leave holes in the numbering
    names, codes = np.unique(labels[space.placed], return_inverse=True)
    voted, voters = refine_labels(codes, space.xy, space.section, n_neighbors)
    refined[space.placed] = names[voted]
    logger.info("domains refined by %d neighbours: %d labels changed", voters, int((refined != labels).sum()))
    before, after = len(np.unique(labels)), len(np.unique(refined))
    if after < before and n_clusters is not None:
        warn(
            f"{after} domains are left of n_clusters={n_clusters}: the refinement in space gave all observations of "
            f"{before - after} to their surroundings. refine=False or a smaller n_neighbors_refine keeps them."
        )
    return refined, voters


def _as_categories(labels: np.ndarray, rows: np.ndarray, n: int) -> pd.Categorical:
    """Name domains by size, the largest "0"."""
    _, first, codes, sizes = np.unique(labels, return_index=True, return_inverse=True, return_counts=True)
    rank = np.empty(len(sizes), dtype=np.int64)
    rank[np.lexsort((first, -sizes))] = np.arange(len(sizes))
    names = [str(i) for i in range(len(sizes))]
    all_codes = np.full(n, len(sizes), dtype=np.int64)
    all_codes[rows] = rank[codes]
    return pd.Categorical.from_codes(all_codes, names + [_keys.UNASSIGNED] * (rows.size < n))


def _graph_slots(graph: Graph, rows: np.ndarray, n: int, key: str) -> tuple[dict[str, Any], dict[str, Any]]:
    names = {f"{part}_key": f"{key}_{part}" for part in ("connectivities", "distances")}
    obsp = {
        names["connectivities_key"]: spread(graph.connectivities, rows, n),
        names["distances_key"]: spread(graph.distances, rows, n),
    }
    return obsp, {key: {**names, "params": graph.params}}
