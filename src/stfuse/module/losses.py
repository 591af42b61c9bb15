"""Losses on tensors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

CriticKind = Literal["wgan", "wgan-gp", "gan"]


def info_nce(a: Tensor, b: Tensor, log_scale: Tensor) -> Tensor:
    """Symmetric contrastive loss of n pairs (Radford et al. 2021): row i of ``a`` belongs to row i of ``b``.

    The scale is the inverse temperature, clamped to 100.
    """
    logits = F.normalize(a, dim=1) @ F.normalize(b, dim=1).T * log_scale.clamp(max=4.6052).exp()
    target = torch.arange(a.shape[0], device=a.device)
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
