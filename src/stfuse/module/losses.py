"""Losses on tensors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

CriticKind = Literal["wgan", "wgan-gp", "gan"]


MAX_LOG_SCALE = 4.6052  # the inverse temperature stops at 100
MARGIN = 1.0


def _logits(a: Tensor, b: Tensor, log_scale: Tensor) -> Tensor:
    """Cosines of all rows of ``a`` with all of ``b``, times the inverse temperature, which is clamped to 100."""
    return F.normalize(a, dim=1) @ F.normalize(b, dim=1).T * log_scale.clamp(max=MAX_LOG_SCALE).exp()


def info_nce(a: Tensor, b: Tensor, log_scale: Tensor) -> Tensor:
    """Symmetric contrastive loss of n pairs (Radford et al. 2021): row i of ``a`` belongs to row i of ``b``.

    The scale is the inverse temperature, clamped to 100.
    """
    logits = _logits(a, b, log_scale)
    target = torch.arange(a.shape[0], device=a.device)
    return 0.5 * (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target))


def one_way_nce(a: Tensor, b: Tensor, log_scale: Tensor) -> Tensor:
    """Contrastive loss of n pairs from ``a`` to ``b`` only (van den Oord et al. 2018): each row of ``a`` looks for its partner."""
    return F.cross_entropy(_logits(a, b, log_scale), torch.arange(a.shape[0], device=a.device))


def pair_margin(a: Tensor, b: Tensor) -> Tensor:
    """Pull pairs together, push others apart while nearer than a margin (Hadsell et al. 2006), on unit codes.

    Mean over pairs of the squared distance, plus mean over all others of the squared shortfall from the margin of one. Nothing
    is compared within a row, and no temperature is needed.
    """
    squared = 2 - 2 * F.normalize(a, dim=1) @ F.normalize(b, dim=1).T
    own = torch.eye(a.shape[0], dtype=torch.bool, device=a.device)
    # the root has no slope at zero
    short = (MARGIN - squared[~own].clamp(min=1e-12).sqrt()).clamp(min=0)
    return squared[own].mean() + short.square().mean()


def soft_target_nce(a: Tensor, b: Tensor, log_scale: Tensor) -> Tensor:
    """Contrastive loss of n pairs whose targets are soft: pairs that look alike in both views are no negatives (BLEEP).

    The target of row i is the softmax over j of the mean of both views' own similarities, at the same temperature. Those are
    symmetric, so one matrix with rows that add up to one serves both directions. Targets take part in the gradient.
    """
    target = (0.5 * (_logits(a, a, log_scale) + _logits(b, b, log_scale))).softmax(dim=1)
    logits = _logits(a, b, log_scale)
    return 0.5 * (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target))


def alignment(a: Tensor, b: Tensor) -> Tensor:
    """Squared distance of paired codes, mean over columns so that its weight does not depend on the width (CAMEO)."""
    return (a - b).square().mean()


def critic_loss(kind: CriticKind, real: Tensor, fake: Tensor) -> Tensor:
    """What the critic minimises, given its scores."""
    if kind == "gan":
        return F.softplus(-real).mean() + F.softplus(fake).mean()
    return fake.mean() - real.mean()


def generator_loss(kind: CriticKind, fake: Tensor) -> Tensor:
    """What the generator minimises, given the critic's scores of its output."""
    return F.softplus(-fake).mean() if kind == "gan" else -fake.mean()


def gradient_penalty(
    critic: Callable[[Tensor], Tensor], real: Tensor, fake: Tensor, generator: torch.Generator
) -> Tensor:
    """Squared distance of the critic's gradient norm from one, between real and generated points (Gulrajani et al. 2017)."""
    mix = torch.rand(real.shape[0], 1, device=generator.device, generator=generator).to(real.device)
    point = (mix * real + (1 - mix) * fake).detach().requires_grad_(True)
    (gradient,) = torch.autograd.grad(critic(point).sum(), point, create_graph=True)
    return (gradient.norm(dim=1) - 1).square().mean()


BANDWIDTHS = (0.25, 0.5, 1.0, 2.0, 4.0)
SAMPLE = 512


def batch_discrepancy(codes: Tensor, batch: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Squared maximum mean discrepancy between each batch and all of them, mean over batches (Gretton et al. 2012).

    Kernels are Gaussians of several widths around the mean squared distance. At most 512 rows are looked at.
    """
    if codes.shape[0] > SAMPLE:
        rows = torch.randperm(codes.shape[0], generator=generator)[:SAMPLE].to(codes.device)
        codes, batch = codes[rows], batch[rows]
    member = F.one_hot(batch.unique(return_inverse=True)[1]).to(codes.dtype)
    # each batch's mean embedding less that of all rows
    weights = member / member.sum(0) - 1 / codes.shape[0]
    distance = (codes[:, None] - codes[None]).square().sum(2)
    width = distance.detach().mean().clamp(min=1e-12)
    kernel = torch.stack([torch.exp(-distance / (factor * width)) for factor in BANDWIDTHS]).mean(0)
    return torch.einsum("ib,ij,jb->b", weights, kernel, weights).mean()
