"""Linear heads that read a risk off a frozen code, from time and event of the slides that they are trained on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from stfuse._folds import stratified_group_folds
from stfuse._survival import bins_of, outcome

PENALTIES = 10.0 ** np.arange(6)
UNCHOSEN = 100.0  # where the events are of one group, so that none can be held out to choose
N_PARTS = 5
# covariates are there to be adjusted for: a wide code must not drown them, a few shots not drive them to infinity
COVARIATE = 0.01
# the base logit of a bin that all or none survive would have no finite optimum without a penalty, however weak
BASE = 0.01
MAX_STEPS = 1000


class Patients(NamedTuple):
    """Code (n x d), time, event and group of n slides."""

    x: np.ndarray
    time: np.ndarray
    event: np.ndarray
    groups: np.ndarray

    def take(self, rows: np.ndarray) -> Patients:
        """Some of them."""
        return Patients(*(values[rows] for values in self))


@dataclass(frozen=True)
class SurvivalHead:
    """How a head is trained; the last ``n_covariates`` columns of the code are covariates."""

    model: str
    penalty: float | None
    n_covariates: int
    seed: int


class Fitted(NamedTuple):
    """A trained head: standardise, weigh, and for hazards the base logit of each bin."""

    mean: np.ndarray
    spread: np.ndarray
    weights: np.ndarray
    base: np.ndarray | None
    penalty: float

    def risk(self, x: np.ndarray) -> np.ndarray:
        """Risk of each row: the log hazard ratio, or minus the number of bins that it is expected to outlive."""
        score = ((x - self.mean) / self.spread) @ self.weights
        if self.base is None:
            return score
        import torch

        from stfuse.module.hazards import risk_of

        return risk_of(torch.from_numpy(score[:, None] + self.base)).numpy()


def fit_head(head: SurvivalHead, train: Patients, edges: np.ndarray) -> Fitted:
    """Train on the slides given, with the penalty chosen among them where none is given."""
    from stfuse.module.scaling import varies

    mean, spread = train.x.mean(0), train.x.std(0)
    # a column that is constant has a spread of rounding errors
    spread[~varies(mean, spread)] = 1
    train = train._replace(x=(train.x - mean) / spread)
    penalty = choose_penalty(head, train, edges) if head.penalty is None else float(head.penalty)
    weighted = _penalties(head, train.x.shape[1], penalty)
    if head.model == "cox":
        return Fitted(mean, spread, _cox(train, weighted), None, penalty)
    w = _hazards(train, edges, weighted)
    return Fitted(mean, spread, w[: weighted.size], w[weighted.size :], penalty)


def choose_penalty(head: SurvivalHead, train: Patients, edges: np.ndarray) -> float:
    """Find the penalty under which slides held out in turn, whole groups, are the most likely.

    The likelihood and not the C-index: with some hundred events the C-index of the held-out ones hardly depends on the penalty, so
    that its maximum is anywhere.
    """
    n_parts = min(N_PARTS, np.unique(train.groups[train.event]).size)
    if n_parts < 2:
        return UNCHOSEN
    part = stratified_group_folds(train.event.astype(np.int64), train.groups, n_parts, head.seed)
    loss = np.zeros(len(PENALTIES))
    held_out = _cox_held_out if head.model == "cox" else _hazards_held_out
    for i in range(n_parts):
        test = part == i
        if test.any() and train.event[~test].any():
            loss += held_out(head, train, test, edges)
    return float(PENALTIES[loss.argmin()])


def _penalties(head: SurvivalHead, width: int, penalty: float) -> np.ndarray:
    """Penalty of each column."""
    weighted = np.full(width, penalty)
    weighted[width - head.n_covariates :] *= COVARIATE
    return weighted


def _descend(loss: Callable[[np.ndarray], tuple[float, np.ndarray]], start: np.ndarray) -> np.ndarray:
    """Go down a convex loss, which gives its slope as well, to the bottom."""
    from scipy.optimize import minimize

    options = {"maxiter": MAX_STEPS, "ftol": 1e-11, "gtol": 1e-5}
    return minimize(loss, start, jac=True, method="L-BFGS-B", options=options).x


# hazards of bins


def _hazards(train: Patients, edges: np.ndarray, penalty: np.ndarray, start: np.ndarray | None = None) -> np.ndarray:
    """Weights, then base logits, that minimise the negative log-likelihood plus half the penalised squares.

    This is a logistic regression with a row for each bin that a slide goes through; all rows of a slide share its code.
    """
    from scipy.special import expit

    n_bins, width = len(edges) + 1, train.x.shape[1]
    at = bins_of(train.time, edges)
    slide = np.repeat(np.arange(len(at)), at + 1)
    bins = np.arange(slide.size) - np.repeat(np.cumsum(at + 1) - at - 1, at + 1)
    died = train.event[slide] & (bins == at[slide])
    penalty = np.concatenate([penalty, np.full(n_bins, BASE)])

    def loss(w: np.ndarray) -> tuple[float, np.ndarray]:
        logit = (train.x @ w[:width])[slide] + w[width:][bins]
        slope = expit(logit) - died
        value = np.logaddexp(0, logit).sum() - logit[died].sum() + 0.5 * penalty @ w**2
        parts = train.x.T @ np.bincount(slide, slope, len(at)), np.bincount(bins, slope, n_bins)
        return value, np.concatenate(parts) + penalty * w

    return _descend(loss, np.zeros(width + n_bins) if start is None else start)


def _hazards_held_out(head: SurvivalHead, train: Patients, test: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Negative log-likelihood of held-out slides under each penalty."""
    import torch

    from stfuse.module.hazards import hazard_nll

    rest, x = train.take(~test), train.x[test]
    bins, event = (torch.tensor(values) for values in (bins_of(train.time[test], edges), train.event[test]))
    loss, w = np.empty(len(PENALTIES)), None
    for i in range(len(PENALTIES))[::-1]:  # from strong to weak, each from where the last one ended
        w = _hazards(rest, edges, _penalties(head, x.shape[1], PENALTIES[i]), w)
        logits = (x @ w[: x.shape[1]])[:, None] + w[x.shape[1] :]
        loss[i] = hazard_nll(torch.from_numpy(logits), bins, event).sum().item()
    return loss


# Cox


def _cox(train: Patients, penalty: np.ndarray) -> np.ndarray:
    from sksurv.linear_model import CoxPHSurvivalAnalysis

    model = CoxPHSurvivalAnalysis(alpha=penalty, ties="efron")
    with np.errstate(over="ignore"):  # a first step that is too long is halved
        return model.fit(train.x, outcome(train.time, train.event)).coef_


def cox_quickly(train: Patients, penalty: np.ndarray, start: np.ndarray | None = None) -> np.ndarray:
    """The same but for ties, which are Breslow's: scikit-survival walks over slides in Python, too slow to choose among penalties."""
    order = np.argsort(-train.time, kind="stable")
    sorted_ = train.take(order)

    def loss(w: np.ndarray) -> tuple[float, np.ndarray]:
        value, slope = _partial(sorted_, sorted_.x @ w)
        return value + 0.5 * penalty @ w**2, sorted_.x.T @ slope + penalty * w

    return _descend(loss, np.zeros(train.x.shape[1]) if start is None else start)


def _cox_held_out(head: SurvivalHead, train: Patients, test: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """What held-out slides add to the negative partial log-likelihood under each penalty (Verweij and van Houwelingen 1993).

    Held-out slides alone would be compared among few; all less those trained on has them compared with everybody.
    """
    order = np.argsort(-train.time, kind="stable")
    everybody, rest = train.take(order), train.take(order[~test[order]])
    loss, weights = np.empty(len(PENALTIES)), None
    for i in range(len(PENALTIES))[::-1]:  # from strong to weak, each from where the last one ended
        weights = cox_quickly(rest, _penalties(head, train.x.shape[1], PENALTIES[i]), weights)
        loss[i] = _partial(everybody, everybody.x @ weights)[0] - _partial(rest, rest.x @ weights)[0]
    return loss


def _partial(latest_first: Patients, score: np.ndarray) -> tuple[float, np.ndarray]:
    """Negative partial log-likelihood of slides, the latest first, ties by Breslow; and its slope in the score of each."""
    time, event = -latest_first.time, latest_first.event
    at_risk = np.logaddexp.accumulate(score)[np.searchsorted(time, time, side="right") - 1]
    # each slide is in the risk sets of all events up to its own time
    sets = np.exp(np.logaddexp.accumulate(np.where(event, -at_risk, -np.inf)[::-1])[::-1])
    expected = np.exp(score) * sets[np.searchsorted(time, time, side="left")]
    return float((at_risk - score)[event].sum()), expected - event
