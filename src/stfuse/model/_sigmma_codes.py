"""Codes of tiles and cells by a trained SIGMMA, tile by tile, and what is made of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from scipy.sparse import csr_matrix, diags_array
from torch import Tensor

from stfuse import _keys
from stfuse._cell_graph import SCALES
from stfuse.model._tile_cells import TileCells
from stfuse.module.sigmma import Graph, Sigmma
from stfuse.train._sigmma_plan import TILES

NOTHING = np.empty(0, np.int64)


@dataclass(frozen=True)
class TileCodes:
    """What a model says of t tiles (``names``) and n cells, by scale; NaN where a view is missing.

    ``image`` and ``rna`` (t x width) are of unit length, ``fused`` holds both side by side, a missing one filled by the other.
    ``cells`` are n x hidden at all scales up to the coarsest, ``edges`` n x n: edges of the scale, with the probability of those that
    were added.
    """

    names: pd.Index
    image: dict[str, np.ndarray]
    rna: dict[str, np.ndarray]
    fused: dict[str, np.ndarray]
    cells: dict[str, np.ndarray]
    edges: dict[str, csr_matrix]


@torch.no_grad()
def code_tiles(module: Sigmma, data: TileCells, scales: Sequence[str], device: torch.device) -> TileCodes:
    """Code all tiles that have a view, some at a time."""
    t, width, n_hidden = len(data.names), module.embed_dim, module.cells.n_hidden
    image, rna = ({name: _empty(t, width) for name in scales} for _ in _keys.VIEWS)
    for rows in _parts(np.flatnonzero(data.has_image)):
        found = module.encode_image(torch.from_numpy(data.image[rows]).to(device))
        for name, code in zip(scales, found, strict=True):
            image[name][rows] = F.normalize(code, dim=1).cpu().numpy()
    upto: Sequence[str] = SCALES[: len(module.cells.layers)]
    cells = {name: _empty(0 if data.cells is None else len(data.cells.tile), n_hidden) for name in upto}
    kept: list[list[np.ndarray]] = [[] for _ in upto[1:]]
    tensors = data.tensors(NOTHING, NOTHING).to(device)
    for rows in _parts(np.flatnonzero(data.sizes > 0)):
        features, graph = tensors.take(torch.from_numpy(rows))
        codes, of_cells, weights = module.encode_rna(features, graph)
        # tiles in between have no cell
        own = data.order[data.offsets[rows[0]] : data.offsets[rows[-1] + 1]]
        enough = data.has_rna[rows]
        for name, code in zip(scales, codes, strict=True):
            rna[name][rows[enough]] = F.normalize(code, dim=1).cpu().numpy()[enough]
        for name, code in zip(upto, of_cells, strict=True):
            cells[name][own] = code.cpu().numpy()
        for found_edges, edges in zip(kept, _kept_edges(module, of_cells, weights, graph), strict=False):
            found_edges.append(
                np.column_stack([own[edges[:, 0].astype(int)], own[edges[:, 1].astype(int)], edges[:, 2]])
            )
    fused = {name: fuse(image[name], rna[name]) for name in scales}
    return TileCodes(data.names, image, rna, fused, cells, _edges(data, upto, kept) if module.cells.graph else {})


def _empty(n: int, width: int) -> np.ndarray:
    return np.full((n, width), np.nan, np.float32)


def _parts(rows: np.ndarray) -> list[np.ndarray]:
    return np.array_split(rows, -(-rows.size // TILES)) if rows.size else []


def _kept_edges(module: Sigmma, cells: list[Tensor], weights: list[Tensor], graph: Graph) -> list[np.ndarray]:
    """Both ends of each edge that was added, and its probability, at each scale but the first."""
    chance = module.cells.probabilities(cells, graph) or weights
    found = []
    for weight, p, pairs in zip(weights, chance, graph.added, strict=False):
        on = weight > 0
        found.append(torch.cat([pairs.ends[on].double(), p[on].double()[:, None]], dim=1).cpu().numpy())
    return found


def fuse(image: np.ndarray, rna: np.ndarray) -> np.ndarray:
    """Both codes side by side, a missing one filled by the other."""
    return np.hstack([np.where(np.isnan(image), rna, image), np.where(np.isnan(rna), image, rna)])


def beside(codes: TileCodes) -> dict[str, np.ndarray]:
    """Codes of all scales side by side, of unit length together; of the fused code both views."""
    found = {
        view: np.hstack(list(getattr(codes, view).values())) / np.float32(np.sqrt(len(codes.image)))
        for view in _keys.VIEWS
    }
    return found | {"fused": fuse(found["image"], found["rna"])}


def _edges(data: TileCells, upto: Sequence[str], kept: list[list[np.ndarray]]) -> dict[str, csr_matrix]:
    """Graph of each scale: the edges of the smallest blocks, and all that were added up to there."""
    if data.cells is None:
        return {}
    took_part = np.zeros(len(data.cells.tile), np.float32)
    took_part[data.order] = 1
    only = diags_array(took_part)
    graph = csr_matrix(only @ data.cells.edges.astype(np.float32) @ only)
    graph.eliminate_zeros()
    graphs = {upto[0]: graph}
    for name, parts in zip(upto[1:], kept, strict=True):
        if parts:
            one, other, chance = np.concatenate(parts).T
            ends = np.r_[one, other].astype(int), np.r_[other, one].astype(int)
            graph = csr_matrix(graph + csr_matrix((np.r_[chance, chance].astype(np.float32), ends), shape=graph.shape))
        graphs[name] = graph.copy()
    return graphs
