"""Expression as a linear function of the image features."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.sparse import csr_matrix

from stfuse._check import check_flag, check_number
from stfuse._folds import tissue_folds
from stfuse._read import read_coordinates, read_sections
from stfuse.tl._predictors_task import Prediction, Task

PENALTIES = np.logspace(-2, 7, 28)
N_SPLITS = 5

type Values = csr_matrix | np.ndarray


def ridge(
    task: Task, *, alpha: float | str = "cv", n_comps: int | None = None, fit_intercept: bool = True
) -> Prediction:
    """Ridge regression; the penalty by cross-validation over sections or blocks of tissue, as HEST has it, or a number."""
    check_flag("fit_intercept", fit_intercept)
    check_penalty(alpha, ("cv", "hest"))
    query, reference = image_components(task, n_comps)
    usable = task.usable
    x, y = reference[usable].astype(np.float64), task.expression.rows(usable)
    note: dict[str, Any] = {"n_reference": int(usable.size), "n_features": x.shape[1]}
    if alpha == "cv":
        fold = _folds(task, usable)
        error = held_out_error(x, y, fold, PENALTIES, fit_intercept=fit_intercept)
        penalty = float(PENALTIES[np.argmin(error)])
        note |= {"alpha_tried": PENALTIES, "held_out_mse": error}
    else:
        penalty = penalty_of(alpha, x.shape[1], y.shape[1])
    note["alpha"] = penalty
    has = task.images.has_query
    weights, offset = Ridge(x, y, fit_intercept).solve(penalty)
    return Prediction(task.spread(query[has] @ weights + offset), note=note)


def check_penalty(alpha: Any, names: tuple[str, ...]) -> None:
    """Refuse what is neither a name of a rule nor a number."""
    if isinstance(alpha, str):
        if alpha not in names:
            raise ValueError(f"alpha must be {', '.join(map(repr, names))} or a number, got {alpha!r}.")
    else:
        check_number("alpha", alpha, least=0)


def penalty_of(alpha: float | str, n_features: int, n_genes: int) -> float:
    """A number as it is, or the penalty of HEST's benchmark: 100 / (features x genes)."""
    return 100 / (n_features * n_genes) if alpha == "hest" else float(alpha)


class Ridge:
    """Ridge regression for many penalties and many targets, which stay sparse.

    ``x`` is centred first; without intercept ``y`` is regressed as it is and predictions are without its mean.
    """

    def __init__(self, x: np.ndarray, y: Values, fit_intercept: bool) -> None:
        self.center = x.mean(axis=0)
        x = x - self.center
        if len(x) < x.shape[1]:
            _, spread, axes = np.linalg.svd(x, full_matrices=False)
            self.axes, self.eigenvalues = axes.T, spread**2
        else:
            self.eigenvalues, self.axes = np.linalg.eigh(x.T @ x)
        self.targets = np.asarray(y.T @ (x @ self.axes)).T  # axes x genes
        self.mean = np.asarray(y.mean(axis=0)).ravel() if fit_intercept else np.zeros(y.shape[1])

    def shrink(self, penalty: float) -> np.ndarray:
        """Factor of each axis; an axis along which nothing varies has none."""
        kept = self.eigenvalues > 1e-10 * self.eigenvalues.max()
        return np.divide(1, self.eigenvalues + penalty, out=np.zeros_like(self.eigenvalues), where=kept)

    def solve(self, penalty: float) -> tuple[np.ndarray, np.ndarray]:
        """Weights (features x genes) and offset (genes)."""
        weights = (self.axes * self.shrink(penalty)) @ self.targets
        return weights, self.mean - self.center @ weights

    def errors(self, x: np.ndarray, y: Values, penalties: np.ndarray) -> np.ndarray:
        """Sum of squared errors of other observations, for each penalty, without computing a prediction."""
        along = (x - self.center) @ self.axes
        both = np.asarray(y.T @ along).T - np.outer(along.sum(axis=0), self.mean)
        straight = np.einsum("rg,rg->r", both, self.targets)
        square = (along.T @ along) * (self.targets @ self.targets.T)
        sums = np.asarray(y.sum(axis=0)).ravel()
        squares = y.multiply(y).sum() if isinstance(y, csr_matrix) else np.square(y).sum()
        left = squares - 2 * sums @ self.mean + len(x) * self.mean @ self.mean
        shrink = np.stack([self.shrink(penalty) for penalty in penalties])
        return np.asarray(left - 2 * shrink @ straight + np.einsum("pr,rs,ps->p", shrink, square, shrink))


def held_out_error(
    x: np.ndarray, y: Values, fold: np.ndarray, penalties: np.ndarray, *, fit_intercept: bool
) -> np.ndarray:
    """Mean squared error over observations and genes when each fold is predicted from the others."""
    total = np.zeros(len(penalties))
    for held in np.unique(fold):
        test = fold == held
        total += Ridge(x[~test], y[~test], fit_intercept).errors(x[test], y[test], penalties)
    return total / (y.shape[0] * y.shape[1])


def image_components(task: Task, n_comps: int | None) -> tuple[np.ndarray, np.ndarray]:
    """Features of both, scaled to the reference's mean and spread, and as its components if asked for."""
    check_number("n_comps", n_comps, least=1, whole=True, optional=True)
    images = task.images
    scale = component_scaler(images.reference[task.usable], n_comps, task.seed)
    out = []
    for values, has in ((images.query, images.has_query), (images.reference, images.has_reference)):
        found = scale.transform(values[has])
        codes = np.full((has.size, found.shape[1]), np.nan, np.float32)
        codes[has] = found
        out.append(codes)
    return out[0], out[1]


def component_scaler(x: np.ndarray, n_comps: int | None, seed: int) -> Any:
    """Fit a standardisation, followed by principal components if asked for: as many as there can be, at most."""
    from sklearn.decomposition import PCA
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    steps: list[Any] = [StandardScaler()]
    if n_comps is not None:
        steps.append(PCA(min(n_comps, len(x) - 1, x.shape[1]), random_state=seed))
    return make_pipeline(*steps).fit(x)


def _folds(task: Task, rows: np.ndarray) -> np.ndarray:
    section, _ = read_sections(task.reference, task.keys.library_key, task.table_key)
    spatial = read_coordinates(task.reference, table_key=task.table_key)
    return tissue_folds(section[rows], None if spatial is None else spatial[rows], N_SPLITS, task.seed)
