"""What slides are asked for, their class or their survival: a linear head on codes, the loss of a network, and scores."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

from stfuse._folds import stratified_group_folds
from stfuse._survival import bins_of, concordance
from stfuse.metrics import balanced_accuracy, macro_f1
from stfuse.tl._mil_folds import auroc
from stfuse.tl._survival_heads import Patients, SurvivalHead, fit_head

if TYPE_CHECKING:
    from stfuse.train._task_plan import ClassTask, HazardTask

C_GRID = 10.0 ** np.arange(-4, 2)
UNCHOSEN = 0.01  # where a class has one group only, so that none can be held out to choose
N_PARTS = 5
LEAST = 1e-6  # probability of a class that a head has not seen
MAX_STEPS = 2000


class Target(Protocol):
    """What slides are asked for. Slides are told by their number in the cohort; ``fold`` is the one that is held out."""

    @property
    def strata(self) -> np.ndarray:
        """Class or event of each slide, of which every part of the slides gets its share."""
        ...

    @property
    def groups(self) -> np.ndarray:
        """Group of each slide."""
        ...

    def shots(self, rows: np.ndarray, fold: int) -> tuple[np.ndarray, list[str]]:
        """Class or bin of time of slides, of each of which shots are drawn, and their names."""
        ...

    def teaches(self, rows: np.ndarray) -> bool:
        """Tell whether anything can be learnt from these slides."""
        ...

    def head(self, code: np.ndarray, train: np.ndarray, test: np.ndarray, fold: int, seed: int) -> np.ndarray:
        """Train a linear head on codes of all slides (NaN rows are never asked for), and predict."""
        ...

    def task(self, fold: int) -> tuple[ClassTask | HazardTask, int]:
        """Loss of a network, and how many numbers it has to tell."""
        ...

    def of_logits(self, logits: np.ndarray) -> np.ndarray:
        """Predictions of a network."""
        ...

    def score(self, rows: np.ndarray, predicted: np.ndarray) -> dict[str, float]:
        """Scores of predictions of slides."""
        ...

    def count(self, rows: np.ndarray) -> dict[str, int]:
        """Numbers to tell beside the scores."""
        ...


@dataclass(frozen=True)
class ClassTarget:
    """Class of each slide of a cohort (-1 = not known), and its group."""

    strata: np.ndarray
    groups: np.ndarray
    classes: list[str]

    def shots(self, rows: np.ndarray, fold: int) -> tuple[np.ndarray, list[str]]:
        """Classes."""
        return self.strata[rows], [f"class {name!r}" for name in self.classes]

    def teaches(self, rows: np.ndarray) -> bool:
        """Tell whether there are two classes."""
        return np.unique(self.strata[rows]).size > 1

    def head(self, code: np.ndarray, train: np.ndarray, test: np.ndarray, fold: int, seed: int) -> np.ndarray:
        """Probability of each class."""
        return logistic(code[train], self.strata[train], self.groups[train], code[test], len(self.classes), seed)

    def task(self, fold: int) -> tuple[ClassTask | HazardTask, int]:
        """Cross-entropy, all slides of the same weight as in the head."""
        import torch

        from stfuse.train._task_plan import ClassTask

        return ClassTask(torch.from_numpy(self.strata), torch.ones(len(self.classes))), len(self.classes)

    def of_logits(self, logits: np.ndarray) -> np.ndarray:
        """Probability of each class."""
        from scipy.special import softmax

        return softmax(logits.astype(np.float64), axis=1)

    def score(self, rows: np.ndarray, predicted: np.ndarray) -> dict[str, float]:
        """Accuracy and its kin of the likeliest class, and how well probabilities rank."""
        true, told = self.strata[rows], predicted.argmax(1)
        return {
            "accuracy": float((true == told).mean()),
            "balanced_accuracy": balanced_accuracy(true, told),
            "macro_f1": macro_f1(true, told),
            "auroc": auroc(true, predicted),
        }

    def count(self, rows: np.ndarray) -> dict[str, int]:
        """Nothing more."""
        return {}


@dataclass(frozen=True)
class SurvivalTarget:
    """Event, group and time of each slide of a cohort (no event where nothing is known), and the edges of bins of each fold."""

    strata: np.ndarray
    groups: np.ndarray
    time: np.ndarray
    edges: list[np.ndarray]

    def shots(self, rows: np.ndarray, fold: int) -> tuple[np.ndarray, list[str]]:
        """Bins of time."""
        names = [f"bin {b} of time" for b in range(len(self.edges[fold]) + 1)]
        return bins_of(self.time[rows], self.edges[fold]), names

    def teaches(self, rows: np.ndarray) -> bool:
        """Tell whether there is an event."""
        return bool(self.strata[rows].any())

    def head(self, code: np.ndarray, train: np.ndarray, test: np.ndarray, fold: int, seed: int) -> np.ndarray:
        """Risk by hazards of bins that are linear in the code."""
        slides = Patients(code[train].astype(np.float64), self.time[train], self.strata[train], self.groups[train])
        return fit_head(SurvivalHead("discrete", None, 0, seed), slides, self.edges[fold]).risk(code[test])

    def task(self, fold: int) -> tuple[ClassTask | HazardTask, int]:
        """Likelihood of hazards of bins."""
        import torch

        from stfuse.train._task_plan import HazardTask

        bins = bins_of(self.time, self.edges[fold])
        return HazardTask(torch.from_numpy(bins), torch.from_numpy(self.strata)), len(self.edges[fold]) + 1

    def of_logits(self, logits: np.ndarray) -> np.ndarray:
        """Risk: minus the number of bins that a slide is expected to outlive."""
        import torch

        from stfuse.module.hazards import risk_of

        return risk_of(torch.from_numpy(logits).double()).numpy()

    def score(self, rows: np.ndarray, predicted: np.ndarray) -> dict[str, float]:
        """Harrell's C."""
        return {"c_index": concordance(self.time[rows], self.strata[rows], predicted)}

    def count(self, rows: np.ndarray) -> dict[str, int]:
        """Events."""
        return {"n_events": int(self.strata[rows].sum())}


def logistic(
    x: np.ndarray, labels: np.ndarray, groups: np.ndarray, asked: np.ndarray, n_classes: int, seed: int
) -> np.ndarray:
    """Probability of each class of the rows asked for, by logistic regression on standardised codes.

    The penalty is the one under which groups held out in turn are the likeliest.
    """
    from stfuse.module.scaling import varies

    mean, sd = x.mean(0, dtype=np.float64), x.std(0, dtype=np.float64)
    # a column that is constant has a spread of rounding errors
    sd[~varies(mean, sd)] = 1
    x, asked = (x - mean) / sd, (asked - mean) / sd
    if x.shape[1] > x.shape[0]:
        # weights lie where the slides do: turned there, fewer numbers give the same predictions
        x, turn = _turned(x)
        asked = asked @ turn
    return _probability(x, labels, asked, n_classes, _choose_c(x, labels, groups, n_classes, seed))


def _turned(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows in the space that they span, n x n, and the map into it, d x n."""
    q, r = np.linalg.qr(x.T)
    return r.T, q


def _choose_c(x: np.ndarray, labels: np.ndarray, groups: np.ndarray, n_classes: int, seed: int) -> float:
    n_groups = [np.unique(groups[labels == label]).size for label in np.unique(labels)]
    if min(n_groups) < 2:
        return UNCHOSEN
    n_parts = min(N_PARTS, max(n_groups), int(np.bincount(labels).max()))
    part = stratified_group_folds(labels, groups, n_parts, seed)
    loss = np.zeros(C_GRID.size)
    for i in range(n_parts):
        train, test = part != i, part == i
        if test.any() and np.unique(labels[train]).size > 1:
            for j, c in enumerate(C_GRID):
                told = _probability(x[train], labels[train], x[test], n_classes, c)
                loss[j] -= np.log(np.maximum(told[np.arange(test.sum()), labels[test]], LEAST)).sum()
    return float(C_GRID[loss.argmin()])


def _probability(x: np.ndarray, labels: np.ndarray, asked: np.ndarray, n_classes: int, c: float) -> np.ndarray:
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(C=c, max_iter=MAX_STEPS).fit(x, labels)
    told = np.zeros((len(asked), n_classes))
    told[:, model.classes_] = model.predict_proba(asked)
    return told
