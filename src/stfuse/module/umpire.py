"""Two views in one space: frozen features through adapters, or encoders trained end to end, and a projection each."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal, cast, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stfuse.module.scaling import StandardViews

Objective = Literal["contrastive", "reconstruction", "infonce", "one-sided", "bleep"]
OBJECTIVES: tuple[Objective, ...] = get_args(Objective)
WITHOUT_TEMPERATURE = ("reconstruction", "one-sided")
FREE = 0.02  # share of what torch draws that is left of weights beside a linear start: enough to grow from


class Adapter(nn.Module):
    """Residual bottleneck on frozen features: (1 - w) x + w ReLU(W2 ReLU(W1 x)), without biases."""

    def __init__(self, n_features: int, n_hidden: int, weight: float) -> None:
        super().__init__()
        self.weight = weight
        self.down = nn.Linear(n_features, n_hidden, bias=False)
        self.up = nn.Linear(n_hidden, n_features, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Adapted features, n x d."""
        return (1 - self.weight) * x + self.weight * F.relu(self.up(F.relu(self.down(x))))


class AlignedViews(nn.Module):
    """A projection per view, on what its encoder gives or on standardised features, through an adapter where asked for.

    ``width`` is how many features the projection of each view gets, ``encoders`` those views that come as they are (crops
    n x c x h x w, tokens n x length). An encoder with a method ``encode`` is called by it.
    """

    def __init__(
        self,
        width: Mapping[str, int],
        *,
        embed_dim: int = 512,
        adapter_dim: int | None = None,
        adapter_weight: float = 0.2,
        objective: Objective = "contrastive",
        temperature: float = 0.07,
        encoders: Mapping[str, nn.Module] | None = None,
    ) -> None:
        super().__init__()
        self.encoders = nn.ModuleDict(dict(encoders or {}))
        self.standard = StandardViews(*(0 if v in self.encoders else width[v] for v in ("image", "rna")))
        # before the adapters, so that these do not change where projections start
        self.projections = nn.ModuleDict({v: nn.Linear(d, embed_dim) for v, d in width.items()})
        self.adapters = nn.ModuleDict()
        if adapter_dim is not None:
            features = {v: d for v, d in width.items() if v not in self.encoders}
            self.adapters.update({v: Adapter(d, adapter_dim, adapter_weight) for v, d in features.items()})
        self.decoder: nn.Module | None = None
        if objective == "reconstruction":
            hidden = nn.Linear(embed_dim, embed_dim)
            self.decoder = nn.Sequential(hidden, nn.GELU(), nn.Linear(embed_dim, width["rna"]))
        self.log_scale: nn.Parameter | None = None
        if objective not in WITHOUT_TEMPERATURE:
            self.log_scale = nn.Parameter(torch.tensor(math.log(1 / temperature)))

    @torch.no_grad()
    def start_at(self, view: str, mean: Tensor, weights: Tensor) -> None:
        """Let a view begin as the map (features - mean) @ weights, d x k, in its first k directions, up to a factor.

        The factor makes these weights as large as those that torch draws, so that learning rates mean the same.
        """
        projection = cast("nn.Linear", self.projections[view])
        keep = 1.0
        if view in self.adapters:
            adapter = cast("Adapter", self.adapters[view])
            adapter.up.weight.mul_(FREE)
            keep = 1 - adapter.weight
        k = min(weights.shape[1], projection.out_features)
        standard = self.standard.get_buffer(f"sd_{view}")[:, None] * weights[:, :k]
        factor = projection.weight.square().mean().sqrt() / standard.square().mean().sqrt().clamp_min(1e-12)
        offset = (self.standard.get_buffer(f"mean_{view}") - mean) @ weights[:, :k]
        projection.weight.mul_(FREE)
        projection.bias.zero_()
        projection.weight[:k] = factor / keep * standard.T
        projection.bias[:k] = factor * offset

    def native(self, view: str, x: Tensor) -> Tensor:
        """Standardised features; crops as floats (bytes become 0 to 1), tokens as whole numbers."""
        if view not in self.encoders:
            return self.standard.standard(view, x)
        if view == "rna":
            return x.long()
        return x.float() / 255 if x.dtype == torch.uint8 else x

    def encode(self, view: str, t: Tensor) -> Tensor:
        """Shared code, n x embed_dim, not of unit length yet."""
        if view in self.encoders:
            t = encoded(self.encoders[view], t)
        elif view in self.adapters:
            t = self.adapters[view](t)
        return self.projections[view](t)


def encoded(encoder: nn.Module, x: Tensor) -> Tensor:
    """What an encoder makes of crops or tokens."""
    method = getattr(encoder, "encode", None)
    return method(x) if callable(method) else encoder(x)
