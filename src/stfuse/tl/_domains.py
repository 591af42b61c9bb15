"""Spatial domains from codes."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import pandas as pd

from stfuse import _keys, _read, _record
from stfuse._log import logger
from stfuse.tl import _cluster
from stfuse.tl._graph import Graph, code_graph, spread
from stfuse.tl._refine import refine_labels

METHODS = ("kmeans", "leiden", "gmm")
# Beyond this many observations a graph takes longer than the clustering it is not needed for.
GRAPH_UP_TO = 20_000


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
        coordinates the step is left out, and a log line says so.
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
        Column of `obs` with the section. Observations of different sections are never neighbours in space.
    key_added
        Column of `obs` to write. None: `use_rep` without a leading `X_`, and `_domain`.
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
        If the code or the column of sections is not there.
    ValueError
        If not exactly one of `n_clusters` and `resolution` is given, if there are more clusters than distinct codes,
        or if the code has NaN inside a row or infinities.

    Notes
    -----
    The refinement can remove a small domain altogether; there are then fewer than `n_clusters`, and a log line says so.

    :func:`scanpy.tl.umap` reads the code again and refuses NaN: where some observations have no code, leave them out
    first, `adata[adata.obs["cameo_domain"] != "unassigned"].copy()`.

    100,000 observations x 100 dimensions take about 25 s with K-means and refinement on two cores.

    Examples
    --------
    >>> import stfuse
    >>> adata = stfuse.datasets.synthetic_tissue(600)
    >>> stfuse.tl.domains(adata, use_rep="X_pca", n_clusters=4)
    >>> list(adata.obs["pca_domain"].cat.categories)
    ['0', '1', '2', '3']
    """
    params = _record.params_of(locals(), "table_key")
    _check_arguments(method, n_clusters, resolution, n_neighbors, n_neighbors_refine)
    name = use_rep.removeprefix("X_")
    key = _keys.slots(name).domain if key_added is None else key_added
    if key == name:
        raise ValueError(f"key_added={key!r} is where the record of the code is kept: choose another name.")
    box: Any = _read.container(data, table_key)
    codes = _read.read_rep(data, use_rep, table_key)
    has_code = _read.check_values(codes, f"obsm[{use_rep!r}]")
    rows = np.flatnonzero(has_code)
    _check_size(rows.size, n_clusters, use_rep)
    section, _ = (
        _read.read_sections(data, library_key, table_key) if refine else (np.zeros(box.n_obs, dtype=np.int64), [])
    )
    spatial = _read.read_coordinates(data, spatial_key, table_key) if refine else None

    graph = None
    if method == "leiden" or neighbors or (neighbors is None and 2 < rows.size <= GRAPH_UP_TO):
        if rows.size < 3:
            raise ValueError(f"A graph needs at least 3 observations with a code, there are {rows.size}.")
        graph = code_graph(codes[rows], n_neighbors=n_neighbors, seed=seed, use_rep=use_rep)
    labels = _labels(codes[rows], graph, method, n_clusters, resolution, seed)
    voters = 0
    if refine:
        labels, voters = _refine(labels, rows, spatial, section, n_neighbors_refine, spatial_key)
    column = _as_categories(labels, rows, box.n_obs)
    if n_clusters is not None and len(np.unique(labels)) < n_clusters:
        logger.info("%d domains are left of n_clusters=%d", len(np.unique(labels)), n_clusters)

    record = {"params": params, "n_neighbors_refine": voters, "n_obs": {"total": box.n_obs, "coded": rows.size}}
    obsp, uns = _graph_slots(graph, rows, box.n_obs, _keys.slots(name).neighbors) if graph is not None else ({}, {})
    if neighbors is False:
        obsp, uns = {}, {}
    target = _record.copy_of(data, table_key) if copy else data
    _record.write(target, obs={key: column}, obsp=obsp, uns={key: record, **uns}, table_key=table_key)
    return target if copy else None


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
    if resolution is not None and not resolution > 0:
        raise ValueError(f"resolution must be positive, got {resolution!r}.")
    for name, value in (("n_clusters", n_clusters), ("n_neighbors", n_neighbors), ("n_neighbors_refine", n_refine)):
        least = 2 if name == "n_neighbors" else 1
        if value is not None and (isinstance(value, bool) or int(value) != value or value < least):
            raise ValueError(f"{name} must be a whole number of at least {least}, got {value!r}.")


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
            return _cluster.leiden(graph, resolution, seed)
        return _cluster.leiden_with(graph, int(n_clusters or 0), seed)[0]
    k = int(n_clusters or 0)
    labels = _cluster.kmeans(codes, k, seed) if method == "kmeans" else _cluster.gmm(codes, k, seed)
    if method == "kmeans" and len(np.unique(labels)) < k:
        raise ValueError(
            f"n_clusters={k} is more than the {len(np.unique(labels))} distinct code(s): many observations share one."
        )
    return labels.astype(np.int64)


def _refine(
    labels: np.ndarray,
    rows: np.ndarray,
    spatial: np.ndarray | None,
    section: np.ndarray,
    n_neighbors: int | None,
    spatial_key: str,
) -> tuple[np.ndarray, int]:
    placed = np.isfinite(spatial[rows]).all(1) if spatial is not None else np.zeros(rows.size, dtype=bool)
    if spatial is None or not placed.any():
        logger.info(
            "no coordinates in obsm[%r]: domains are not refined in space (refine=False silences this)", spatial_key
        )
        return labels, 0
    where = rows[placed]
    refined = labels.copy()
    # empty components of a mixture leave holes in the numbering
    names, codes = np.unique(labels[placed], return_inverse=True)
    voted, voters = refine_labels(codes, spatial[where], section[where], n_neighbors)
    refined[placed] = names[voted]
    logger.info("domains refined by %d neighbours: %d labels changed", voters, int((refined != labels).sum()))
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
