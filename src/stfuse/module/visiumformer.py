"""Transformer encoder of ranked gene tokens: tensors only."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stfuse._tokens import FIRST, MASK, PAD

# sizes by name: for a CPU, and as published
PRESETS: dict[str, dict[str, int]] = {
    "small": {"d_model": 128, "n_layers": 4, "n_heads": 8, "d_ff": 256, "context": 256},
    "base": {"d_model": 512, "n_layers": 12, "n_heads": 16, "d_ff": 1024, "context": 1500},
}
EPS = 1e-12  # of the layers' normalisation, as published
SPREAD = 0.02  # standard deviation with which embeddings begin


class Attention(nn.Module):
    """Self-attention of several heads; its weights have the names of `torch.nn.MultiheadAttention`."""

    def __init__(self, d_model: int, n_heads: int) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * d_model, d_model))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * d_model))
        self.out_proj = nn.Linear(d_model, d_model)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """Batch x length x width to the same; ``mask`` is True where there is something to attend to."""
        n, length, width = x.shape
        joint = F.linear(x, self.in_proj_weight, self.in_proj_bias)
        query, key, value = joint.view(n, length, 3, self.n_heads, -1).permute(2, 0, 3, 1, 4)
        found = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        return self.out_proj(found.transpose(1, 2).reshape(n, length, width))


class Layer(nn.Module):
    """Attention and a rectified hidden layer, each added and then normalised (post-norm); names as `nn.TransformerEncoderLayer`."""

    def __init__(self, d_model: int, n_heads: int, d_ff: int) -> None:
        super().__init__()
        self.self_attn = Attention(d_model, n_heads)
        self.linear1 = nn.Linear(d_model, d_ff)
        self.linear2 = nn.Linear(d_ff, d_model)
        self.norm1 = nn.LayerNorm(d_model, eps=EPS)
        self.norm2 = nn.LayerNorm(d_model, eps=EPS)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """Batch x length x width to the same."""
        x = self.norm1(x + self.self_attn(x, mask))
        return self.norm2(x + self.linear2(F.relu(self.linear1(x))))


class Visiumformer(nn.Module):
    """Ranked genes to codes: gene embedding plus a learned position, transformer layers, mean over the genes.

    Tokens are 0 (padding, at the end of a row), 1 (a hidden gene) and 2 + the gene's place in the vocabulary.
    """

    def __init__(
        self, n_vocabulary: int, *, d_model: int, n_layers: int, n_heads: int, d_ff: int, context: int
    ) -> None:
        super().__init__()
        self.context = context
        self.embedding = nn.Embedding(FIRST + n_vocabulary, d_model, padding_idx=PAD)
        self.positions = nn.Embedding(context, d_model)
        self.layers = nn.ModuleList(Layer(d_model, n_heads, d_ff) for _ in range(n_layers))
        self.head = nn.Linear(d_model, n_vocabulary)
        # torch's variance of 1 would drown what attention adds: training takes twice the steps
        nn.init.normal_(self.embedding.weight, std=SPREAD)
        nn.init.normal_(self.positions.weight, std=SPREAD)
        with torch.no_grad():
            self.embedding.weight[PAD] = 0
        for part in self.modules():
            if isinstance(part, nn.Linear):
                nn.init.xavier_normal_(part.weight)
                nn.init.zeros_(part.bias)
            elif isinstance(part, Attention):
                nn.init.xavier_normal_(part.in_proj_weight)

    def hidden(self, tokens: Tensor) -> Tensor:
        """Tokens (n x length) to n x length x width, of at most `context` positions; rows of padding alone give NaN."""
        tokens = tokens[:, : self.context]
        return self.attend(self.embedding(tokens) + self.positions.weight[: tokens.shape[1]], _mask(tokens))

    def attend(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """All layers."""
        for layer in self.layers:
            x = layer(x, mask)
        return x

    def encode(self, tokens: Tensor) -> Tensor:
        """Tokens (n x length) to codes, n x width; rows of padding alone give NaN."""
        return mean_of_genes(self.hidden(tokens), tokens)

    def logits(self, hidden: Tensor) -> Tensor:
        """Scores of every gene of the vocabulary, for hidden states of whatever shape x width."""
        return self.head(hidden)


def _mask(tokens: Tensor) -> Tensor | None:
    """True where there is a gene, n x 1 x 1 x length; None where there is one everywhere, for which attention is faster."""
    there = tokens != PAD
    return None if bool(there.all()) else there[:, None, None, :]


def mean_of_genes(hidden: Tensor, tokens: Tensor) -> Tensor:
    """Mean of each row's hidden states over the positions that hold a gene."""
    there = (tokens[:, : hidden.shape[1]] != PAD).unsqueeze(-1)
    # what stands at padding may be NaN, which no weight of zero makes vanish
    total = hidden.masked_fill(~there, 0).sum(1)
    return total / there.sum(1)


def hide(tokens: Tensor, n_vocabulary: int, fraction: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Hide genes to be guessed: the changed tokens, and which positions were chosen, one at least.

    Of the chosen, 80 % become the hidden token, 10 % a gene drawn at random, and 10 % stay.
    """
    draw = torch.rand(tokens.shape, generator=generator, device=tokens.device)
    draw = draw.masked_fill(tokens == PAD, 2.0)
    # a batch without a target would have no loss
    limit = draw.min().clamp(min=fraction)
    chosen = (draw < fraction) | (draw == limit)
    other = torch.randint(
        FIRST, FIRST + n_vocabulary, tokens.shape, generator=generator, device=tokens.device, dtype=tokens.dtype
    )
    changed = torch.where(draw < 0.9 * fraction, other, tokens)
    changed = torch.where(draw < 0.8 * fraction, MASK, changed)
    return changed, chosen


def masked_loss(model: Visiumformer, hidden: Tensor, tokens: Tensor, chosen: Tensor) -> Tensor:
    """Cross-entropy of the genes at the chosen positions."""
    target = tokens[chosen].long() - FIRST
    return F.cross_entropy(model.logits(hidden[chosen]).float(), target)
