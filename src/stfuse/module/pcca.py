"""Semi-paired probabilistic canonical correlation: the fit, on whitened views.

Two views a and b are seen through c shared Gaussian factors (Bach and Jordan 2005). The pairs give a first estimate by
shrinkage CCA; rows of which the partner is unknown then enter by expectation-maximisation, in which a Sinkhorn plan stands
for the unknown matching. Held-out pairs decide about rank, context and matching. Everything here is float64 numpy on at most
62 columns a view: a fit takes about a second.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import numpy as np

from stfuse._progress import progress

RANKS = (8, 12, 16, 24, 50)
MAX_POOL = 2_200
ROUNDS = 25
PAIR_WEIGHT = 3.0
MIN_UNPAIRED = 20  # fewer unpaired rows than this add nothing
MIN_CV = 12  # fewer pairs than this cannot judge a design
MAX_CV = 10_000  # pairs, and other rows, on which designs are compared: more would not change the verdict
FEW = 30  # below so many pairs the usual context is narrow


@dataclass(frozen=True)
class Canonical:
    """Canonical directions: ``a @ u`` and ``b @ v`` have unit variance and correlation ``rho``."""

    u: np.ndarray
    v: np.ndarray
    rho: np.ndarray

    def weights(self) -> np.ndarray:
        """Weight of each dimension in the shared code: what a match in it tells about being the same spot."""
        r = np.clip(self.rho, 0.001, 0.97)
        return np.sqrt(r / (1 - r**2))

    def codes(self, a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Shared codes of both views."""
        w = self.weights()
        return (a @ self.u) * w, (b @ self.v) * w


@dataclass(frozen=True)
class Design:
    """What the fit looks at: how many PCs, how many context columns, and whether unpaired rows are matched."""

    rank: int
    context: int = 0
    matching: bool = False


@dataclass(frozen=True)
class Problem:
    """Whitened views of the training rows. ``a`` and ``b`` are zero where the view is missing.

    ``near_a`` and ``near_b`` are whitened neighbour means (or None), ``pairs`` the rows used as pairs.
    """

    a: np.ndarray
    b: np.ndarray
    near_a: np.ndarray | None
    near_b: np.ndarray | None
    has_a: np.ndarray
    has_b: np.ndarray
    pairs: np.ndarray
    seed: int = 0

    def features(self, design: Design) -> tuple[np.ndarray, np.ndarray]:
        """Columns of both views under a design."""
        a, b = self.a[:, : design.rank], self.b[:, : design.rank]
        if design.context and self.near_a is not None and self.near_b is not None:
            a = np.hstack([a, self.near_a[:, : design.context]])
            b = np.hstack([b, self.near_b[:, : design.context]])
        return a, b

    def at_most(self, limit: int) -> Problem:
        """A random part with at most ``limit`` pairs and as many other rows."""
        n = self.a.shape[0]
        if n <= limit:
            return self
        rng = np.random.default_rng(self.seed + 3)
        pairs = _pool(self.pairs, rng, limit)
        rows = np.union1d(pairs, _pool(np.setdiff1d(np.arange(n), self.pairs), rng, limit))
        parts = {f.name: getattr(self, f.name) for f in fields(self)}
        arrays = {k: v[rows] for k, v in parts.items() if isinstance(v, np.ndarray) and k != "pairs"}
        return replace(self, **arrays, pairs=np.searchsorted(rows, pairs))


def inverse_root(c: np.ndarray) -> np.ndarray:
    """Symmetric inverse square root."""
    values, vectors = np.linalg.eigh(c)
    return (vectors / np.sqrt(np.clip(values, 1e-8, None))) @ vectors.T


def solve_cca(cx: np.ndarray, cy: np.ndarray, cxy: np.ndarray) -> Canonical:
    """CCA of covariances."""
    wx, wy = inverse_root(cx), inverse_root(cy)
    left, s, right = np.linalg.svd(wx @ cxy @ wy, full_matrices=False)
    return Canonical(wx @ left, wy @ right.T, np.clip(s, 0, 0.999))


@dataclass(frozen=True)
class Products:
    """Cross products of n pairs, from which those of a part can be subtracted: a fold costs no pass over the others."""

    n: int
    aa: np.ndarray
    bb: np.ndarray
    ab: np.ndarray

    @classmethod
    def of(cls, a: np.ndarray, b: np.ndarray) -> Products:
        """Sum over rows."""
        return cls(a.shape[0], a.T @ a, b.T @ b, a.T @ b)

    def __sub__(self, part: Products) -> Products:
        return Products(self.n - part.n, self.aa - part.aa, self.bb - part.bb, self.ab - part.ab)

    def solve(self) -> Canonical:
        """CCA with covariances shrunk towards the identity by 10 / n."""
        shrink = float(np.clip(10 / self.n, 0.01, 0.8))
        keep, eye_a, eye_b = (1 - shrink) / self.n, np.eye(len(self.aa)), np.eye(len(self.bb))
        return solve_cca(keep * self.aa + shrink * eye_a, keep * self.bb + shrink * eye_b, self.ab / self.n)


def shrinkage_cca(a: np.ndarray, b: np.ndarray) -> Canonical:
    """CCA of n pairs with shrunk covariances."""
    return Products.of(a, b).solve()


def folds_of(n: int, n_folds: int, rng: np.random.Generator) -> list[np.ndarray]:
    """Random folds of 0..n-1."""
    return [np.sort(f) for f in np.array_split(rng.permutation(n), min(n_folds, n)) if f.size]


def honest_rho(a: np.ndarray, b: np.ndarray, fit: Canonical, rng: np.random.Generator, repeats: int = 3) -> np.ndarray:
    """Correlations of the variates on pairs not used for them, made non-increasing.

    The in-sample ones are far too high with few pairs and would trust dimensions that are noise.
    """
    n = a.shape[0]
    if n <= 8:
        return 0.7 * fit.rho
    found, whole = [], Products.of(a, b)
    for _ in range(repeats):
        u, v = np.zeros((n, fit.rho.size)), np.zeros((n, fit.rho.size))
        for fold in folds_of(n, 5, rng):
            part = (whole - Products.of(a[fold], b[fold])).solve()
            u[fold], v[fold] = a[fold] @ part.u, b[fold] @ part.v
        found.append((u * v).sum(0) / np.sqrt((u**2).sum(0) * (v**2).sum(0) + 1e-12))
    return np.clip(np.minimum.accumulate(np.mean(found, axis=0)), 0.0, 0.98)


def log_likelihood(u: np.ndarray, v: np.ndarray, rho: np.ndarray) -> np.ndarray:
    """Log ratio of "same spot" to "different spots" for every pair of rows (i of u, j of v), float32."""
    r = np.clip(rho, 0.0, 0.98)
    one = 1 - r**2
    cross = (u * (r / one)).astype(np.float32) @ v.T.astype(np.float32)
    cross -= (0.5 * (u**2) @ (r**2 / one)).astype(np.float32)[:, None]
    cross -= (0.5 * (v**2) @ (r**2 / one)).astype(np.float32)[None, :]
    return cross


def sinkhorn(score: np.ndarray, rounds: int = 8) -> np.ndarray:
    """Soft matching of rows and columns: each of the smaller side has a partner in sum, each of the larger at most so.

    Relaxed marginals (rows without a good partner keep less mass) were tried for views of different observations and
    lost to this everywhere.
    """
    k = np.exp(np.clip(score - score.max(1, keepdims=True), -60, None), dtype=np.float32)
    n, m = k.shape
    row, column = np.float32(min(1.0, m / n)), np.float32(min(1.0, n / m))
    tiny = np.float32(1e-30)
    left, right = np.ones(n, np.float32), np.ones(m, np.float32)
    for _ in range(rounds):
        left = row / (k @ right + tiny)
        right = column / (left @ k + tiny)
    k *= left[:, None]
    k *= right[None, :]
    return k


def _pool(rows: np.ndarray, rng: np.random.Generator, limit: int) -> np.ndarray:
    return rows if rows.size <= limit else np.sort(rng.choice(rows, limit, replace=False))


def match_unpaired(
    a: np.ndarray, b: np.ndarray, problem: Problem, start: Canonical, rounds: int = ROUNDS, limit: int = MAX_POOL
) -> Canonical:
    """Refine the start by expectation-maximisation over the unknown partners of the unpaired rows.

    A round draws at most ``limit`` unpaired rows of each view; where both views come from the same observations the same
    rows are drawn of both, so that the partner of each is in the pool.
    """
    is_pair = np.zeros(a.shape[0], bool)
    is_pair[problem.pairs] = True
    rows_a, rows_b = np.flatnonzero(problem.has_a & ~is_pair), np.flatnonzero(problem.has_b & ~is_pair)
    coincide = np.array_equal(rows_a, rows_b)
    rng = np.random.default_rng(problem.seed)
    pa, pb = a[problem.pairs], b[problem.pairs]
    weight = PAIR_WEIGHT * pa.shape[0]
    ridge_a, ridge_b = 1e-6 * np.eye(a.shape[1]), 1e-6 * np.eye(b.shape[1])
    cx = (PAIR_WEIGHT * pa.T @ pa + a[rows_a].T @ a[rows_a]) / (weight + rows_a.size) + ridge_a
    cy = (PAIR_WEIGHT * pb.T @ pb + b[rows_b].T @ b[rows_b]) / (weight + rows_b.size) + ridge_b
    matched = min(rows_a.size, rows_b.size)
    known = PAIR_WEIGHT * pa.T @ pb
    fit = start
    for _ in range(rounds):
        ia = _pool(rows_a, rng, limit)
        ib = ia if coincide else _pool(rows_b, rng, limit)
        xa, xb = a[ia], b[ib]
        plan = sinkhorn(log_likelihood(xa @ fit.u, xb @ fit.v, fit.rho))
        guessed = xa.T @ (plan @ xb.astype(np.float32)) * (matched / min(ia.size, ib.size))
        fit = solve_cca(cx, cy, (known + guessed) / (weight + matched))
    return fit


def rank_score(query: np.ndarray, pool: np.ndarray, partner: np.ndarray) -> np.ndarray:
    """log(fraction of the pool that is not farther than the partner + .01) for each query; lower is better.

    Ties, and codes that are not numbers, count against the code: one that is the same everywhere, or that diverged, must not
    look perfect.
    """
    q = query / (np.linalg.norm(query, axis=1, keepdims=True) + 1e-12)
    p = pool / (np.linalg.norm(pool, axis=1, keepdims=True) + 1e-12)
    sims = q @ p.T
    own = sims[np.arange(q.shape[0]), partner]
    others = sims.shape[1] - 1 - (sims < own[:, None]).sum(1)
    return np.log(others / sims.shape[1] + 0.01)


def held_out_scores(
    problem: Problem, design: Design, n_repeats: int = 2, n_folds: int = 5, rounds: int = 10, limit: int = 800
) -> np.ndarray:
    """Retrieval score of pairs, by maps fitted without them; mean of both directions and of the repeats.

    Of a large fold only ``limit / 2`` pairs are scored, the same ones for every design: more say nothing new.
    """
    a, b = problem.features(design)
    rng = np.random.default_rng(problem.seed + 1)
    pairs = problem.pairs
    pool_a, pool_b = _pool(np.flatnonzero(problem.has_a), rng, limit), _pool(np.flatnonzero(problem.has_b), rng, limit)
    total, times = np.zeros(pairs.size), np.zeros(pairs.size)
    for _ in range(n_repeats):
        for fold in folds_of(pairs.size, n_folds, rng):
            # held-out pairs join the unpaired rows, as they would if their partner were unknown
            fit = fit_design(replace(problem, pairs=np.delete(pairs, fold)), design, rounds, limit, repeats=1)
            scored = _pool(fold, rng, limit // 2)
            out = pairs[scored]
            others_a, others_b = np.setdiff1d(pool_a, out), np.setdiff1d(pool_b, out)
            own = np.arange(out.size)
            rows_a, rows_b = np.r_[out, others_a], np.r_[out, others_b]
            u, v = fit.codes(a[rows_a], b[rows_b])
            total[scored] += rank_score(u[own], v, own) + rank_score(v[own], u, own)
            times[scored] += 2
    return total[times > 0] / times[times > 0]


def fit_design(
    problem: Problem, design: Design, rounds: int = ROUNDS, limit: int = MAX_POOL, repeats: int = 3
) -> Canonical:
    """Fit the maps under one design."""
    a, b = problem.features(design)
    pa, pb = a[problem.pairs], b[problem.pairs]
    start = shrinkage_cca(pa, pb)
    start = replace(start, rho=honest_rho(pa, pb, start, np.random.default_rng(problem.seed + 2), repeats))
    return match_unpaired(a, b, problem, start, rounds, limit) if design.matching else start


def choose_rank(problem: Problem, default: int, show: bool | None = False) -> tuple[int, dict[str, float]]:
    """Rank by cross-validation on the pairs: nearest to the default among those within one standard error of the best."""
    problem = problem.at_most(MAX_CV)
    most = min(problem.a.shape[1], problem.b.shape[1])
    ranks = sorted({min(k, most) for k in RANKS})
    default = min(ranks, key=lambda k: abs(k - default))
    if problem.pairs.size < MIN_CV or len(ranks) == 1:
        return default, {}
    bar = progress(ranks, desc="PCCA: components", show=show)
    scores = {k: held_out_scores(problem, Design(k)) for k in bar}
    best = min(ranks, key=lambda k: float(scores[k].mean()))
    error = scores[best].std() / np.sqrt(scores[best].size)
    good = [k for k in ranks if scores[k].mean() <= scores[best].mean() + error]
    return min(good, key=lambda k: abs(k - default)), {f"rank_{k}": float(s.mean()) for k, s in scores.items()}


def choose_design(
    problem: Problem, rank: int, context: bool, matching: bool, show: bool | None = False
) -> tuple[Design, dict[str, float]]:
    """Let held-out pairs decide about context and matching.

    The usual design (context when there are coordinates, matching when there are unpaired rows) is left only where
    another one is better by two standard errors: with a handful of pairs their verdict is mostly noise, and the trial fits
    see smaller pools than the final one.
    """
    problem = problem.at_most(MAX_CV)
    n = problem.pairs.size
    width = problem.near_a.shape[1] if context and problem.near_a is not None else 0
    contexts = sorted({0, min(4, width), width})
    is_pair = np.zeros(problem.a.shape[0], bool)
    is_pair[problem.pairs] = True
    unpaired = min((problem.has_a & ~is_pair).sum(), (problem.has_b & ~is_pair).sum())
    matchings = (False, True) if matching and unpaired > MIN_UNPAIRED else (False,)
    usual = Design(rank, contexts[-1] if n >= FEW else contexts[min(1, len(contexts) - 1)], matchings[-1])
    designs = [Design(rank, c, m) for c in contexts for m in matchings]
    if n < MIN_CV or len(designs) == 1:
        return usual, {}
    bar = progress(designs, desc="PCCA: neighbours, matching", show=show)
    scores = {d: held_out_scores(problem, d, n_repeats=1, n_folds=3, limit=800) for d in bar}
    best = min(designs, key=lambda d: float(scores[d].mean()))
    gain = scores[usual] - scores[best]
    chosen = best if gain.mean() > 2 * gain.std() / np.sqrt(gain.size) else usual
    return chosen, {f"context_{d.context}_matching_{d.matching}": float(s.mean()) for d, s in scores.items()}
