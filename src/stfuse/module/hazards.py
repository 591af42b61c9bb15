"""Survival in discrete time: the chance of an event in each bin of time, given that there was none before."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def hazard_nll(logits: Tensor, bin: Tensor, event: Tensor) -> Tensor:
    """Negative log-likelihood of each of n slides (Zadeh and Schmid 2021); the hazard of a bin is the sigmoid of its logit.

    ``logits`` are n x bins. ``bin`` is the bin in which a slide's time ends, and ``event`` whether it ends with the event: then
    the slide went through all bins before and had the event in this one. A censored slide went through this one too.
    """
    step = torch.arange(logits.shape[1], device=logits.device)
    last = step == bin[:, None]
    died = last & event.bool()[:, None]
    survived = (step < bin[:, None]) | (last & ~died)
    # what does not count is left out and not multiplied by zero, which would turn an infinite term into NaN
    through = F.logsigmoid(-logits).masked_fill(~survived, 0)
    return -(through + F.logsigmoid(logits).masked_fill(~died, 0)).sum(1)


def risk_of(logits: Tensor) -> Tensor:
    """Risk of each of n slides: minus the sum over bins of the chance to outlive the bin, from minus the number of bins to 0."""
    return -F.logsigmoid(-logits).cumsum(1).exp().sum(1)
