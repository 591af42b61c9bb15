"""Linear heads on frozen codes."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

BATCH = 256
# "Converged": the training loss has not fallen by a thousandth in the last 20 epochs.
PATIENCE, PROGRESS = 20, 1e-3


class Head(NamedTuple):
    """How a head is trained."""

    model: str
    max_epochs: int
    lr: float
    converged: bool
    seed: int


def fit_predict(head: Head, train: np.ndarray, target: np.ndarray, test: np.ndarray) -> np.ndarray:
    """Train on one fold and predict the other.

    ``target`` are class codes (1-d integers) or values (2-d floats). Inputs, and values to predict, are standardised
    with the mean and spread of the training fold.
    """
    from stfuse.module.scaling import varies

    mean, spread = train.mean(0), train.std(0)
    # a column that is constant has a spread of rounding errors
    spread[~varies(mean, spread)] = 1
    train, test = (train - mean) / spread, (test - mean) / spread
    if target.ndim == 1:
        classes, codes = np.unique(target, return_inverse=True)
        if len(classes) == 1:
            return np.full(len(test), classes[0])
        fitted = _torch_linear if head.model == "linear" else _logistic
        return classes[fitted(head, train, codes, test)]
    middle, scale = target.mean(0), target.std(0)
    scale[scale == 0] = 1
    regress = _torch_linear if head.model == "linear" else _ridge
    return regress(head, train, (target - middle) / scale, test) * scale + middle


def _logistic(head: Head, train: np.ndarray, codes: np.ndarray, test: np.ndarray) -> np.ndarray:
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression(max_iter=2000, random_state=head.seed).fit(train, codes).predict(test)


def _ridge(head: Head, train: np.ndarray, values: np.ndarray, test: np.ndarray) -> np.ndarray:
    from sklearn.linear_model import RidgeCV

    predicted = RidgeCV(alphas=np.logspace(-1, 5, 13)).fit(train, values).predict(test)
    return predicted.reshape(len(test), -1)


def _torch_linear(head: Head, train: np.ndarray, target: np.ndarray, test: np.ndarray) -> np.ndarray:
    """Train ``nn.Linear`` with AdamW on cross-entropy or squared error, as stage 2 of the CAMEO paper does."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # so small a layer gains nothing from threads and on a busy machine waits long for them
    try:
        return _train(head, train, target, test)
    finally:
        torch.set_num_threads(threads)


def _train(head: Head, train: np.ndarray, target: np.ndarray, test: np.ndarray) -> np.ndarray:
    import torch
    from torch import nn

    classify = target.ndim == 1
    x = torch.as_tensor(train, dtype=torch.float32)
    y = torch.as_tensor(target, dtype=torch.long if classify else torch.float32)
    generator = torch.Generator().manual_seed(head.seed)
    # torch's own start, but drawn from our generator: the global one is left alone
    n_out = int(target.max()) + 1 if classify else target.shape[1]
    layer = nn.utils.skip_init(nn.Linear, x.shape[1], n_out)
    bound = x.shape[1] ** -0.5
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.uniform_(-bound, bound, generator=generator)
    loss_of = nn.functional.cross_entropy if classify else nn.functional.mse_loss
    optimizer = torch.optim.AdamW(layer.parameters(), lr=head.lr)
    best, since = float("inf"), 0
    for _ in range(head.max_epochs):
        total = 0.0
        for rows in torch.randperm(len(x), generator=generator).split(BATCH):
            optimizer.zero_grad()
            loss = loss_of(layer(x[rows]), y[rows])
            loss.backward()
            optimizer.step()
            total += loss.item() * len(rows)
        since = 0 if total < best * (1 - PROGRESS) else since + 1
        best = min(best, total)
        if head.converged and since >= PATIENCE:
            break
    with torch.no_grad():
        out = layer(torch.as_tensor(test, dtype=torch.float32))
    return (out.argmax(1) if classify else out).numpy()
