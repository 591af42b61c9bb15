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
