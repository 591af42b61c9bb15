"""The linear anchor: everything PCCA learnt, as buffers that code, translate and fuse tensors."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from stfuse._neighbors import section_neighbors
from stfuse.module import pcca
from stfuse.module.scaling import CHUNK, ViewScaler, whiten_rows

OTHER: dict[str, str] = {"image": "rna", "rna": "image"}
MAX_COMPONENTS = 50
MAX_CONTEXT = 12
N_NEIGHBORS = 6
SHARED_RHO = 0.3


def neighbor_mean(z: Tensor, neighbors: np.ndarray, chunk: int = CHUNK) -> Tensor:
    """Mean of each row's neighbours, n x p; the table is gathered in blocks."""
    out = torch.empty_like(z)
    index = torch.from_numpy(neighbors).to(z.device)
    for start in range(0, z.shape[0], chunk):
        out[start : start + chunk] = z[index[start : start + chunk]].mean(1)
    return out


class AnchorView(nn.Module):
    """What the anchor knows of one view (p components, c context columns, m canonical dimensions, r fused)."""

    code_map: Tensor
    near_mean: Tensor
    near_map: Tensor
    loading: Tensor
    basis: Tensor
    balance: Tensor

    def __init__(self, n_features: int, p: int, rank: int, context: int, m: int, r: int) -> None:
        super().__init__()
        self.rank, self.context = rank, context
        self.scaler = ViewScaler(n_features, p)
        self.register_buffer("code_map", torch.zeros(rank + context, m))
        self.register_buffer("near_mean", torch.zeros(p))
        self.register_buffer("near_map", torch.zeros(p, context))
        self.register_buffer("loading", torch.zeros(m, p))
        self.register_buffer("basis", torch.zeros(r, r))
        self.register_buffer("balance", torch.ones(()))

    def inputs(self, z: Tensor, near: Tensor | None) -> Tensor:
        """Whitened components z (n x p) and neighbour means to the columns that are coded."""
        if not self.context:
            return z[:, : self.rank]
        if near is None:
            raise ValueError("This anchor was fitted with neighbour context: neighbour means are needed to code.")
        return torch.cat([z[:, : self.rank], (near - self.near_mean) @ self.near_map], 1)

    def code(self, z: Tensor, near: Tensor | None) -> Tensor:
        """Shared code, n x m."""
        return self.inputs(z, near) @ self.code_map

    def balanced(self, z: Tensor) -> Tensor:
        """Components with their own variance, divided by the view's size and turned into [shared | private]."""
        r = self.basis.shape[0]
        return (z[:, :r] * self.scaler.sd[:r] * self.balance) @ self.basis


@dataclass(frozen=True)
class Sizes:
    """All that is needed to build an empty anchor before its weights are loaded."""

    n_image: int
    n_rna: int
    p_image: int
    p_rna: int
    rank: int
    context: int
    n_canonical: int
    r_image: int
    r_rna: int
    n_shared: int


class LinearAnchor(nn.Module):
    """Semi-paired probabilistic CCA as a module: codes, translations and fused codes of both views."""

    weights: Tensor
    rho: Tensor

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.sizes = sizes
        s = sizes
        self.views = nn.ModuleDict(
            {
                "image": AnchorView(s.n_image, s.p_image, s.rank, s.context, s.n_canonical, s.r_image),
                "rna": AnchorView(s.n_rna, s.p_rna, s.rank, s.context, s.n_canonical, s.r_rna),
            }
        )
        self.register_buffer("weights", torch.ones(s.n_canonical))
        self.register_buffer("rho", torch.zeros(s.n_canonical))

    def view(self, name: str) -> AnchorView:
        """The part of one view."""
        part = self.views[name]
        if not isinstance(part, AnchorView):
            raise TypeError(name)
        return part

    def whiten(self, name: str, x: np.ndarray) -> Tensor:
        """Features (numpy, NaN rows allowed) to whitened components on this module's device, block by block."""
        return whiten_rows(self.view(name).scaler, x)

    def code(self, name: str, z: Tensor, near: Tensor | None) -> Tensor:
        """Shared code of one view, n x m; compare by cosine."""
        return self.view(name).code(z, near)

    def expected(self, code: Tensor, target: str) -> Tensor:
        """Expected whitened components of the target view, given a shared code of the other one."""
        return (code / self.weights * self.rho) @ self.view(target).loading

    def translate(self, source: str, z: Tensor, near: Tensor | None) -> Tensor:
        """Expected whitened components of the other view."""
        return self.expected(self.code(source, z, near), OTHER[source])


def _present_neighbors(spatial: np.ndarray, section: np.ndarray, rows: np.ndarray, n: int) -> np.ndarray:
    """Neighbour table over the rows that have a view; other rows point at themselves."""
    table = np.repeat(np.arange(n)[:, None], N_NEIGHBORS, axis=1)
    table[rows] = rows[section_neighbors(spatial[rows], section[rows], N_NEIGHBORS)]
    return table


def neighbor_means(z: Tensor, has: np.ndarray, spatial: np.ndarray, section: np.ndarray) -> Tensor:
    """Mean whitened components of the nearest spots of the section that have the view."""
    return neighbor_mean(z, _present_neighbors(spatial, section, np.flatnonzero(has), z.shape[0]))


def _near_map(near: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    mean = near.mean(0)
    values, vectors = np.linalg.eigh(np.cov((near - mean).T).reshape(near.shape[1], -1))
    order = np.argsort(values)[::-1][:MAX_CONTEXT]
    return mean, vectors[:, order] / np.sqrt(np.clip(values[order], 1e-9, None))


@dataclass(frozen=True)
class AnchorData:
    """What an anchor is fitted on: features (NaN rows = missing), masks, pairs and where the rows lie."""

    image: np.ndarray
    rna: np.ndarray
    has_image: np.ndarray
    has_rna: np.ndarray
    pairs: np.ndarray
    section: np.ndarray
    spatial: np.ndarray | None

    def of(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Features and mask of one view."""
        return (self.image, self.has_image) if name == "image" else (self.rna, self.has_rna)


def fit_anchor(
    data: AnchorData,
    *,
    n_components: int = MAX_COMPONENTS,
    rank: int | None = None,
    context: bool = True,
    matching: bool = True,
    scale: bool | None = None,
    seed: int = 0,
    progress: bool | None = False,
) -> tuple[LinearAnchor, dict[str, float]]:
    """Fit scalers, choose the design on held-out pairs, fit the canonical maps; return the module and what the pairs said."""
    scalers, z, near, maps = {}, {}, {}, {}
    for name in OTHER:
        x, has = data.of(name)
        scalers[name] = ViewScaler.fit(x, np.flatnonzero(has), n_components, scale)
        z[name] = whiten_rows(scalers[name], x)
        if context and data.spatial is not None:
            means = neighbor_means(z[name], has, data.spatial, data.section).double().numpy()
            maps[name] = _near_map(means[has])
            near[name] = np.where(has[:, None], (means - maps[name][0]) @ maps[name][1], 0.0)
    # both views have the same number of context columns; a narrow view limits it
    width = min((columns.shape[1] for columns in near.values()), default=0)
    near = {name: columns[:, :width] for name, columns in near.items()}
    whitened = {name: np.where(data.of(name)[1][:, None], z[name].double().numpy(), 0.0) for name in OTHER}
    del z
    problem = pcca.Problem(
        whitened["image"],
        whitened["rna"],
        near.get("image"),
        near.get("rna"),
        data.has_image,
        data.has_rna,
        data.pairs,
        seed,
    )
    flat = max(scaler.rank for scaler in scalers.values()) < 4
    report: dict[str, float] = {}
    if rank is None:
        rank, report = pcca.choose_rank(problem, MAX_COMPONENTS if flat else 12, progress)
    rank = min(rank, whitened["image"].shape[1], whitened["rna"].shape[1])
    design, verdict = pcca.choose_design(problem, rank, bool(near), matching, progress)
    report |= verdict
    fit = pcca.fit_design(problem, design)
    # what two spots share through their neighbours is no dimension of the spot itself: it would use up the private ones
    alone = pcca.fit_design(problem, replace(design, context=0), rounds=10, limit=800) if design.context else fit
    anchor = _assemble(data, problem, design, fit, alone, scalers, maps, flat)
    return anchor, report | {"rank": design.rank, "context": design.context, "matching": float(design.matching)}


def _assemble(
    data: AnchorData,
    problem: pcca.Problem,
    design: pcca.Design,
    fit: pcca.Canonical,
    alone: pcca.Canonical,
    scalers: dict[str, ViewScaler],
    maps: dict[str, tuple[np.ndarray, np.ndarray]],
    flat: bool,
) -> LinearAnchor:
    a, b = problem.features(design)
    weights = fit.weights()
    sides = {"image": (a, fit.u, problem.a, data.has_image), "rna": (b, fit.v, problem.b, data.has_rna)}
    fused = {
        name: min(side[2].shape[1], MAX_COMPONENTS if flat else int(np.clip(scalers[name].rank, 12, MAX_COMPONENTS)))
        for name, side in sides.items()
    }
    n_shared = min(int((alone.rho > SHARED_RHO).sum()), *fused.values())
    own_directions = {"image": alone.u, "rna": alone.v}
    sizes = Sizes(
        data.image.shape[1],
        data.rna.shape[1],
        problem.a.shape[1],
        problem.b.shape[1],
        design.rank,
        design.context,
        fit.rho.size,
        fused["image"],
        fused["rna"],
        n_shared,
    )
    anchor = LinearAnchor(sizes)
    anchor.weights.copy_(torch.from_numpy(weights))
    anchor.rho.copy_(torch.from_numpy(fit.rho))
    for name, (columns, directions, pcs, has) in sides.items():
        part = anchor.view(name)
        part.scaler = scalers[name]
        part.code_map.copy_(torch.from_numpy(directions * weights))
        if design.context:
            part.near_mean.copy_(torch.from_numpy(maps[name][0]))
            part.near_map.copy_(torch.from_numpy(maps[name][1][:, : design.context].copy()))
        variates = columns[has] @ directions
        part.loading.copy_(torch.from_numpy(variates.T @ pcs[has] / has.sum()))
        own_variates = pcs[has][:, : design.rank] @ own_directions[name]
        basis, balance = _fused_basis(part, pcs[has], own_variates, alone.rho, n_shared)
        part.basis.copy_(torch.from_numpy(basis))
        part.balance.copy_(torch.tensor(balance))
    return anchor


def _fused_basis(
    part: AnchorView, pcs: np.ndarray, variates: np.ndarray, rho: np.ndarray, n_shared: int
) -> tuple[np.ndarray, float]:
    """Orthonormal basis [shared | private] of the leading components: distances stay those of balanced components."""
    r = part.basis.shape[0]
    sd = part.scaler.sd[:r].double().numpy()
    x = pcs[:, :r] * sd
    balance = 1.0 / np.sqrt((sd**2).sum())
    left = np.zeros((r, 0))
    if n_shared:
        strong = rho > SHARED_RHO
        cross = (x.T @ variates[:, strong]) / x.shape[0] * rho[strong]
        left = np.linalg.svd(cross, full_matrices=False)[0][:, :n_shared]
    # the rest, turned to its own principal axes so that leading private columns matter most
    full = (
        np.linalg.svd(np.hstack([left, np.eye(r)]))[0]
        if not n_shared
        else np.linalg.qr(np.hstack([left, np.eye(r)]))[0]
    )
    rest = full[:, n_shared:]
    _, vectors = np.linalg.eigh(rest.T @ np.diag(sd**2) @ rest)
    rest = rest @ vectors[:, ::-1]
    left = full[:, :n_shared] * np.sign((full[:, :n_shared] * left).sum(0)) if n_shared else left
    return np.hstack([left, rest]), float(balance)
