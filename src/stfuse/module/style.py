"""Style (MIRROR, equations 15 to 18): a small distribution for each view, and prototypes on which both views have to agree."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WIDTHS = (512, 256, 128)  # of the hidden layer, what it gives, and the style


class StyleClusters(nn.Module):
    """Codes of either view to a normal distribution, a draw of it back to the code's width, and its likeness to prototypes."""

    def __init__(self, dim: int, n_prototypes: int) -> None:
        super().__init__()
        hidden, given, style = WIDTHS
        self.net = nn.Sequential(nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, given))
        self.mean, self.log_variance = nn.Linear(given, style), nn.Linear(given, style)
        self.decode = nn.Linear(style, dim)
        self.prototypes = nn.Linear(dim, n_prototypes, bias=False)
        nn.init.orthogonal_(self.prototypes.weight)
        self.normalize()

    @torch.no_grad()
    def normalize(self) -> None:
        """Bring every prototype back to unit length, as is done before each step."""
        self.prototypes.weight.copy_(F.normalize(self.prototypes.weight, dim=1))

    def forward(self, code: Tensor, draw: bool = True) -> tuple[Tensor, Tensor, Tensor]:
        """Mean and log variance of the style (b x 128), and log probabilities of the prototypes (b x k)."""
        hidden = self.net(code)
        mean, log_variance = self.mean(hidden), self.log_variance(hidden)
        z = mean + torch.randn_like(mean) * (0.5 * log_variance).exp() if draw else mean
        return mean, log_variance, self.prototypes(self.decode(z)).log_softmax(1)


def style_loss(mean: Tensor, log_variance: Tensor) -> Tensor:
    """Divergence of a normal distribution from the standard one (equation 15), mean over samples."""
    return 0.5 * (log_variance.exp() + mean.square() - 1 - log_variance).sum(1).mean()


def cluster_loss(one: Tensor, other: Tensor) -> Tensor:
    """Half of both divergences between two sets of log probabilities (equation 16), mean over samples."""
    forth = F.kl_div(one, other, reduction="batchmean", log_target=True)
    return 0.5 * (forth + F.kl_div(other, one, reduction="batchmean", log_target=True))
