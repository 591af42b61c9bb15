"""Convolutional autoencoder of spatial windows: an ensemble in one pass, tensors only."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

STRIDE = 3  # of the pooling
PART = 64  # windows convolved at a time where no moments are taken


def kernel_size(window_size: int) -> int:
    """Side of the convolution's kernel: three, less in windows that are no larger."""
    return 3 if window_size > 3 else max(1, window_size - 1)


def _pooled(n_conv: int, kernel: int, truncate: bool) -> list[Tensor]:
    """Positions along one side that each pooled cell sees; ``truncate`` drops the rest that fills no whole cell."""
    starts = range(0, n_conv - kernel + 1 if truncate else n_conv, STRIDE)
    return [torch.arange(start, min(start + kernel, n_conv)) for start in starts]


class _Geometry:
    """Index tables of a window: which cells each tap of each convolution reads, and what is pooled together."""

    def __init__(self, window_size: int, truncate: bool) -> None:
        self.window, self.kernel = window_size, kernel_size(window_size)
        self.conv = window_size - self.kernel + 1
        side = _pooled(self.conv, self.kernel, truncate)
        self.pooled = len(side)
        grid = torch.arange(window_size**2).reshape(window_size, window_size)
        # (positions, taps): cells under the kernel at each position
        self.columns = grid.unfold(0, self.kernel, 1).unfold(1, self.kernel, 1).reshape(self.conv**2, self.kernel**2)
        positions = torch.arange(self.conv**2).reshape(self.conv, self.conv)
        self.cells = [positions[a][:, b].flatten() for a in side for b in side]

    def spread(self) -> Tensor:
        """How often each tap carries each pooled cell, enlarged to the convolution's size, into each cell of the window."""
        nearest = (torch.arange(self.conv) * self.pooled) // self.conv
        cell = (nearest[:, None] * self.pooled + nearest[None, :]).flatten()
        out = torch.zeros(self.pooled**2, self.kernel**2, self.window**2)
        for tap in range(self.kernel**2):
            out.index_put_(
                (cell, torch.full_like(cell, tap), self.columns[:, tap]), torch.ones(cell.numel()), accumulate=True
            )
        return out


class _MedianOfThree(torch.autograd.Function):
    """Elementwise median by comparisons; its gradient goes to the member that it came from, to the first of equals."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
        """Sort three."""
        middle = torch.maximum(torch.minimum(a, b), torch.minimum(torch.maximum(a, b), c))
        from_a = a == middle
        ctx.save_for_backward(from_a, (b == middle).logical_and_(~from_a))
        return middle

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Deal the gradient out."""
        from_a, from_b = ctx.saved_tensors
        to_a, to_b = grads[0] * from_a, grads[0] * from_b
        return to_a, to_b, grads[0] - to_a - to_b


def _median(parts: list[Tensor]) -> Tensor:
    """Elementwise median of the members."""
    if len(parts) == 3:
        return cast("Tensor", _MedianOfThree.apply(*parts))
    return parts[0] if len(parts) == 1 else torch.stack(parts).median(0).values


class WindowEncoder(nn.Module):
    """Windows to codes: convolution, normalisation, dropout, pooling and a linear layer, the median of several members.

    The members' convolutions are one product: ``n_members * n_hidden`` channels over the cells under each kernel.
    """

    columns: Tensor

    def __init__(
        self,
        n_features: int,
        window_size: int,
        n_latent: int,
        n_members: int,
        n_hidden: int,
        dropout: float,
        truncate: bool,
    ) -> None:
        super().__init__()
        geometry = _Geometry(window_size, truncate)
        self.n_members, self.n_hidden, self.dropout = n_members, n_hidden, dropout
        self.conv = nn.Conv2d(n_features, n_members * n_hidden, geometry.kernel)
        self.norm = nn.BatchNorm1d(n_members * n_hidden)
        self.heads = nn.ModuleList(nn.Linear(n_hidden * geometry.pooled**2, n_latent) for _ in range(n_members))
        self.cells = geometry.cells
        self.register_buffer("columns", geometry.columns.flatten(), persistent=False)

    def forward(self, windows: Tensor) -> Tensor:
        """Windows (batch x cells x features) to codes (batch x latent)."""
        return self.code(self.pooled(windows))

    def pooled(self, windows: Tensor) -> Tensor:
        """Windows to pooled channels (batch x channels x pooled cells); nothing in it is random."""
        weight = self.conv.weight.permute(2, 3, 1, 0).reshape(-1, self.conv.out_channels)
        bias = self.conv.get_parameter("bias")
        if self.norm.training:
            return self._largest(self._taps(windows, weight, bias, normalised=True)).relu()
        # fixed moments are a part of the weights, and parts of a batch that stay in the cache take half the time
        scale = self.norm.weight * (self.norm.get_buffer("running_var") + self.norm.eps).rsqrt()
        shift = (bias - self.norm.get_buffer("running_mean")) * scale + self.norm.bias
        weight = weight * scale
        return torch.cat([self._largest(self._taps(part, weight, shift)).relu() for part in windows.split(PART)])

    def _taps(self, windows: Tensor, weight: Tensor, bias: Tensor, *, normalised: bool = False) -> Tensor:
        """Convolution of windows: batch x positions x channels."""
        n = windows.shape[0]
        h = torch.addmm(bias, windows.index_select(1, self.columns).reshape(-1, weight.shape[0]), weight)
        return (self.norm(h) if normalised else h).reshape(n, -1, weight.shape[1])

    def _largest(self, h: Tensor) -> Tensor:
        """Largest value of each pooled cell."""
        return torch.stack([h[:, cell].max(1).values for cell in self.cells], 2)

    def code(self, pooled: Tensor) -> Tensor:
        """Pooled channels to codes."""
        # a channel is dropped in the whole window; dropping commutes with rectifying and pooling
        pooled = F.dropout(torch.ones_like(pooled[:, :, :1]), self.dropout, self.training) * pooled
        parts = pooled.reshape(pooled.shape[0], self.n_members, -1).unbind(1)
        return _median([head(part) for head, part in zip(self.heads, parts, strict=True)])


class WindowDecoder(nn.Module):
    """Codes to windows with values between 0 and 1: the encoder's mirror image, the median of several members.

    Upsampling and transposed convolution are one linear map of the pooled cells, made from the kernel in each step.
    """

    spread: Tensor

    def __init__(
        self,
        n_features: int,
        window_size: int,
        n_input: int,
        n_members: int,
        n_hidden: int,
        dropout: float,
        truncate: bool,
    ) -> None:
        super().__init__()
        geometry = _Geometry(window_size, truncate)
        self.n_features, self.n_hidden, self.n_pooled, self.dropout = n_features, n_hidden, geometry.pooled**2, dropout
        self.stems = nn.ModuleList(nn.Linear(n_input, n_hidden * self.n_pooled) for _ in range(n_members))
        self.convs = nn.ModuleList(nn.ConvTranspose2d(n_hidden, n_features, geometry.kernel) for _ in range(n_members))
        self.norms = nn.ModuleList(nn.BatchNorm1d(n_features) for _ in range(n_members))
        self.register_buffer("spread", geometry.spread(), persistent=False)

    def _member(self, code: Tensor, stem: nn.Module, conv: nn.Module, norm: nn.Module) -> Tensor:
        h = stem(code).relu().reshape(code.shape[0], self.n_hidden, self.n_pooled)
        h = h * F.dropout(torch.ones_like(h[:, :, :1]), self.dropout, self.training)
        kernel = conv.get_parameter("weight").flatten(2)
        # hidden x pooled cells x window cells x features
        whole = torch.einsum("hft,ptu->hpuf", kernel, self.spread)
        out = h.flatten(1) @ whole.reshape(h.shape[1] * h.shape[2], -1)
        return norm(out.reshape(-1, self.n_features) + conv.get_parameter("bias")).reshape(
            code.shape[0], -1, self.n_features
        )

    def forward(self, code: Tensor) -> Tensor:
        """Codes (batch x input) to windows (batch x cells x features)."""
        parts = [self._member(code, *part) for part in zip(self.stems, self.convs, self.norms, strict=True)]
        # the median of values is the value of the median: one sigmoid for all members
        return _median(parts).sigmoid()


class WindowAutoencoder(nn.Module):
    """Encoder and decoder of windows; the decoder may be told the batch, so that the code need not hold it."""

    def __init__(
        self,
        n_features: int,
        window_size: int,
        *,
        n_latent: int = 16,
        n_members: int = 3,
        n_hidden: int = 64,
        dropout: float = 0.3,
        n_batches: int = 0,
        truncate: bool = False,
    ) -> None:
        super().__init__()
        sizes = (n_members, n_hidden, dropout, truncate)
        self.n_batches = n_batches
        self.encoder = WindowEncoder(n_features, window_size, n_latent, *sizes)
        self.decoder = WindowDecoder(n_features, window_size, n_latent + n_batches, *sizes)

    def forward(self, windows: Tensor, batch: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Codes and rebuilt windows."""
        code = self.encoder(windows)
        told = code
        if self.n_batches and batch is not None:
            told = torch.cat([code, F.one_hot(batch, self.n_batches).to(code.dtype)], dim=1)
        return code, self.decoder(told)
