"""Graph attention over neighbours in space, trained to predict hidden expression values."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LossKind = Literal["mse", "nb"]


class Hop(NamedTuple):
    """Messages of one layer: ``edges`` (2 x m) lead from rows to the first ``n_to`` rows, which are what comes out."""

    edges: Tensor
    n_to: int


class GraphAttention(nn.Module):
    """Codes of observations from their own expression and that of their neighbours, and expression from codes.

    linear - GELU, then layers of GATv2 attention (Brody et al. 2022) with a skip connection and GELU, then a linear code of what
    came in and what came out: without the former, what is special about an observation is lost among its neighbours. Each gene
    is standardised first; where it is hidden it has a learnt value instead. The decoder is linear - GELU - linear.
    """

    mean: Tensor
    scale: Tensor

    def __init__(
        self,
        n_genes: int,
        n_latent: int = 128,
        n_hidden: int = 128,
        n_heads: int = 4,
        n_layers: int = 2,
        dropout: float = 0.1,
        loss: LossKind = "mse",
    ) -> None:
        super().__init__()
        self.dropout, self.loss = dropout, loss
        self.register_buffer("mean", torch.zeros(n_genes))
        self.register_buffer("scale", torch.ones(n_genes))
        self.hidden_value = nn.Parameter(torch.zeros(n_genes))
        self.embed = nn.Linear(n_genes, n_hidden)
        conv = _attention_layer()
        self.layers = nn.ModuleList(
            conv(n_hidden, n_hidden // n_heads, heads=n_heads, residual=True, add_self_loops=False)
            for _ in range(n_layers)
        )
        self.code = nn.Linear(2 * n_hidden, n_latent)
        self.decoder = nn.Sequential(nn.Linear(n_latent, n_hidden), nn.GELU(), nn.Linear(n_hidden, n_genes))
        self.log_dispersion = nn.Parameter(torch.zeros(n_genes)) if loss == "nb" else None

    def fit_moments(self, mean: Tensor, scale: Tensor) -> None:
        """Take mean and spread of each gene in the training data; a gene that does not vary stays at zero."""
        self.mean.copy_(mean)
        self.scale.copy_(torch.where(scale > 0, scale, torch.ones_like(scale)))

    def standard(self, values: Tensor) -> Tensor:
        """Standardised expression."""
        return (values - self.mean) / self.scale

    def encode(self, values: Tensor, hops: Sequence[Hop], hidden: Tensor | None = None) -> Tensor:
        """Codes of the first rows, those into which the last hop leads.

        ``values`` (n x genes) are log-normalised; where ``hidden`` (the same shape, or one row for all) is true they are not
        looked at. There is one hop a layer, the outermost first.
        """
        t = self.standard(values)
        if hidden is not None:
            t = torch.where(hidden, self.hidden_value, t)
        own = t = F.gelu(self.embed(t))
        for layer, hop in zip(self.layers, hops, strict=True):
            t = F.dropout(t, self.dropout, self.training)
            t = F.gelu(layer((t, t[: hop.n_to]), hop.edges))
        return self.code(torch.cat([own[: len(t)], t], dim=1))

    def errors(self, codes: Tensor, values: Tensor, counts: Tensor | None, hidden: Tensor) -> Tensor:
        """Error of each hidden entry, in the order of ``hidden.nonzero()``.

        The squared error of standardised log-normalised values, or the negative log likelihood of ``counts``.
        """
        out = self.decoder(codes)
        if self.log_dispersion is None:
            return (out[hidden] - self.standard(values)[hidden]).square()
        if counts is None:
            raise ValueError("A negative binomial needs counts.")
        # of these genes only; an observation without any of them has nothing to share out
        size = counts.sum(dim=1, keepdim=True).clamp(min=1)
        log_mean = F.log_softmax(out, dim=1) + size.log()
        log_dispersion = self.log_dispersion.expand_as(out)[hidden]
        return negative_binomial(counts[hidden], log_mean[hidden], log_dispersion)


def negative_binomial(counts: Tensor, log_mean: Tensor, log_dispersion: Tensor) -> Tensor:
    """Negative log likelihood of counts, whose variance is mean + mean^2 / dispersion."""
    law = torch.distributions.NegativeBinomial(
        log_dispersion.exp(), logits=log_mean - log_dispersion, validate_args=False
    )
    return -law.log_prob(counts)


def _attention_layer() -> type[nn.Module]:
    """Import the layer when a network is built: torch-geometric takes seconds."""
    with warnings.catch_warnings():
        # torch-geometric compiles parts of itself in a way that torch gives up
        warnings.filterwarnings("ignore", category=FutureWarning, message=".*torch.jit")
        warnings.filterwarnings("ignore", category=DeprecationWarning, message=".*torch.jit")
        from torch_geometric.nn.conv import GATv2Conv
    layer: type[nn.Module] = GATv2Conv
    return layer
