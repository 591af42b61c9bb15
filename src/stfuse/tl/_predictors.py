"""The table of predictors of expression; ``tl.predict_expression`` and its tests walk it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from stfuse import _registry
from stfuse._check import did_you_mean
from stfuse.tl._predictors_fused import fused_neighbors, fusion_options, translated
from stfuse.tl._predictors_neighbors import image_knn
from stfuse.tl._predictors_ridge import ridge
from stfuse.tl._predictors_task import Prediction, Task, read_images


@dataclass(frozen=True)
class Predictor:
    """One way to predict expression.

    ``predict`` takes a task and options by name. ``spread`` says whether it gives a standard deviation beside the mean;
    ``fusion`` names the fusion method whose options it takes, if any.
    """

    name: str
    title: str
    summary: str
    predict: Callable[..., Prediction]
    spread: bool = True
    fusion: str | None = None

    def options(self) -> list[str]:
        """Names that ``method_params`` may have."""
        if self.fusion is not None:
            return fusion_options(self.fusion)
        kinds = inspect.signature(self.predict).parameters
        return [name for name, parameter in kinds.items() if parameter.kind is parameter.KEYWORD_ONLY]

    def check_options(self, params: Mapping[str, Any]) -> None:
        """Refuse options that the method does not know."""
        there = self.options()
        for name in params:
            if name not in there:
                raise ValueError(
                    f"method_params of {self.name!r} has no {name!r}.{did_you_mean(name, there)} There is "
                    f"{', '.join(there) or 'nothing'}."
                )


def mean_expression(task: Task) -> Prediction:
    """Predict the reference's mean everywhere: what every method has to beat."""
    rows = task.expression.rows(task.expression.has)
    mean = np.asarray(rows.mean(axis=0)).ravel()
    squares = rows.multiply(rows) if hasattr(rows, "multiply") else rows**2
    std = np.sqrt(np.maximum(np.asarray(squares.mean(axis=0)).ravel() - mean**2, 0))
    images = read_images(task.query, vars(task.keys), "query", table_key=task.table_key)
    task.keep(images)
    has = images.has_image
    spread = np.where(has[:, None], std, np.nan).astype(np.float32)
    uncertainty = np.where(has, np.sqrt(np.mean(std**2)), np.nan).astype(np.float32)
    return Prediction(
        np.where(has[:, None], mean, np.nan).astype(np.float32), spread if task.std else None, uncertainty
    )


_OWN = (
    Predictor(
        "ridge",
        "Ridge",
        "Linear regression on image features, penalty by cross-validation or as HEST's",
        ridge,
        spread=False,
    ),
    Predictor(
        "image-knn", "Image k-NN", "Mean of the reference observations whose image features are nearest", image_knn
    ),
    Predictor("mean", "Mean", "Mean of the reference everywhere: the floor", mean_expression),
)


def predictors() -> dict[str, Predictor]:
    """Every predictor by name: the fusion methods that give shared codes or translate, and those of the table here."""
    found: dict[str, Predictor] = {}
    for method in _registry.fusions().values():
        if method.shared:
            summary = f"RNA codes of {method.title} nearest to the image code"
            fit = partial(fused_neighbors, method=method.name)
            found[method.name] = Predictor(method.name, method.title, summary, fit, fusion=method.name)
        if method.translates:
            name, summary = (
                f"{method.name}-translate",
                f"Image translated by {method.title} into RNA features, and those into genes",
            )
            fit = partial(translated, method=method.name)
            found[name] = Predictor(name, f"{method.title}, translated", summary, fit, spread=False, fusion=method.name)
    return found | {predictor.name: predictor for predictor in _OWN}


def get(name: str) -> Predictor:
    """Look a predictor up by name."""
    table = predictors()
    if name not in table:
        raise ValueError(f"Unknown method {name!r}.{did_you_mean(name, table)} There is: {', '.join(sorted(table))}.")
    return table[name]
