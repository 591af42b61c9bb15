"""CAMEO's networks: the published generator, and the one that stands on the linear anchor.

Both give codes of a view (``encode``), features of a view from a code (``decode``), and critics. They work on the *native*
tensors of a view: standardised features in the published one, whitened components beside neighbour means in the anchored one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from stfuse.module.anchor import OTHER, LinearAnchor
from stfuse.module.scaling import StandardViews

SLOPE = 0.2
CLIP = 0.01


def _layer(n_in: int, n_out: int) -> list[nn.Module]:
    return [nn.Linear(n_in, n_out), nn.BatchNorm1d(n_out), nn.LeakyReLU(SLOPE)]


class Critic(nn.Module):
    """One hidden layer, a score per row. With ``norm`` real and generated rows must go through in one batch.

    In separate batches a BatchNorm hides a shift of the mean, which is what the critic is to see.
    """

    def __init__(self, n_in: int, n_hidden: int, norm: bool) -> None:
        super().__init__()
        self.first = nn.Linear(n_in, n_hidden)
        self.norm = nn.BatchNorm1d(n_hidden) if norm else nn.Identity()
        self.last = nn.Linear(n_hidden, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Scores, n."""
        return self.last(nn.functional.leaky_relu(self.norm(self.first(x)), SLOPE)).squeeze(1)

    def joint(self, real: Tensor, fake: Tensor) -> tuple[Tensor, Tensor]:
        """Scores of real and generated rows, in one batch."""
        score = self(torch.cat([real, fake]))
        return score[: real.shape[0]], score[real.shape[0] :]

    @torch.no_grad()
    def clip(self) -> None:
        """Clip the weights of the linear layers; BatchNorm gains stay, or the critic goes blind."""
        for layer in (self.first, self.last):
            layer.weight.clamp_(-CLIP, CLIP)
            layer.bias.clamp_(-CLIP, CLIP)


class Translator(nn.Module):
    """What a training plan and a model need of either network."""

    critics: nn.ModuleDict
    n_code: int

    def native(self, view: str, x: Tensor) -> Tensor:
        """Rows as they lie in memory to the tensors on which the networks work."""
        raise NotImplementedError(view)

    def encode(self, view: str, t: Tensor) -> Tensor:
        """Native rows to shared codes."""
        raise NotImplementedError(view)

    def decode(self, view: str, code: Tensor) -> Tensor:
        """Shared codes to native rows of ``view``."""
        raise NotImplementedError(view)

    def cycle(self, view: str, t: Tensor, code: Tensor, translated: Tensor) -> Tensor:
        """Cycle loss of rows of ``view`` whose translation into the other view is given (L1, mean over columns)."""
        raise NotImplementedError(view)

    def translate(self, source: str, t: Tensor) -> Tensor:
        """Native rows of the other view."""
        return self.decode(OTHER[source], self.encode(source, t))

    def critic(self, view: str) -> Critic:
        """The critic that tells real rows of ``view`` from generated ones."""
        part = self.critics[view]
        if not isinstance(part, Critic):
            raise TypeError(view)
        return part

    def generator_parameters(self) -> list[nn.Parameter]:
        """Everything that is trained, without the critics."""
        critics = {id(p) for p in self.critics.parameters()}
        return [p for p in self.parameters() if id(p) not in critics and p.requires_grad]


@dataclass(frozen=True)
class Widths:
    """Widths of the published network, from the widths of the views (CAMEO, appendix E.3)."""

    n_image: int
    n_rna: int

    @property
    def d(self) -> int:
        """Common width."""
        return max(8, min(self.n_image, self.n_rna))


class PublishedTranslator(Translator):
    """CAMEO as published: view encoders, a shared encoder and decoder, view decoders, one critic a view.

    Readings of what the paper leaves open: a generator decodes through the shared decoder and the other view's decoder,
    networks take and give features in the view's own width, and the last layer is linear (a LeakyReLU there shrinks negative
    values five times, so that standardised features could not be met).
    """

    def __init__(self, n_image: int, n_rna: int) -> None:
        super().__init__()
        self.widths = Widths(n_image, n_rna)
        d = self.widths.d
        self.n_code = d // 4
        width = {"image": n_image, "rna": n_rna}
        self.encoders = nn.ModuleDict({v: nn.Sequential(*_layer(w, d), *_layer(d, d // 2)) for v, w in width.items()})
        self.shared_encoder = nn.Sequential(*_layer(d // 2, d // 4))
        self.shared_decoder = nn.Sequential(*_layer(d // 4, d // 2))
        self.decoders = nn.ModuleDict({v: nn.Sequential(*_layer(d // 2, d), nn.Linear(d, w)) for v, w in width.items()})
        self.critics = nn.ModuleDict({v: Critic(w, max(2, w // 4), norm=True) for v, w in width.items()})
        self.standard = StandardViews(n_image, n_rna)

    def native(self, view: str, x: Tensor) -> Tensor:
        """Standardised features."""
        return self.standard.standard(view, x)

    def encode(self, view: str, t: Tensor) -> Tensor:
        """Shared code E_sh(E_view(z))."""
        return self.shared_encoder(self.encoders[view](t))

    def decode(self, view: str, code: Tensor) -> Tensor:
        """Features of ``view`` from a code."""
        return self.decoders[view](self.shared_decoder(code))

    def cycle(self, view: str, t: Tensor, code: Tensor, translated: Tensor) -> Tensor:
        """There and back again in features."""
        return (self.decode(view, self.encode(OTHER[view], translated)) - t).abs().mean()


def _residual(n_in: int, n_hidden: int, n_out: int, dropout: float) -> nn.Sequential:
    last = nn.Linear(n_hidden, n_out)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    return nn.Sequential(
        nn.Linear(n_in, n_hidden),
        nn.GELU(),
        nn.Dropout(dropout),
        nn.Linear(n_hidden, n_hidden),
        nn.GELU(),
        nn.Dropout(dropout),
        last,
    )


class AnchoredTranslator(Translator):
    """Linear maps of the anchor plus a nonlinear residual that starts at zero.

    At the start it is the anchor, code for code. Native rows are [whitened components | context columns].
    """

    def __init__(self, anchor: LinearAnchor, n_hidden: int = 128, dropout: float = 0.2) -> None:
        super().__init__()
        self.anchor = anchor
        for buffer in anchor.buffers():
            buffer.requires_grad_(False)
        self.n_code = anchor.sizes.n_canonical
        p = {"image": anchor.sizes.p_image, "rna": anchor.sizes.p_rna}
        width = {view: p[view] + anchor.sizes.context for view in p}
        self.encoders = nn.ModuleDict({v: _residual(w, n_hidden, self.n_code, dropout) for v, w in width.items()})
        self.decoders = nn.ModuleDict({v: _residual(self.n_code, n_hidden, w, dropout) for v, w in width.items()})
        self.critics = nn.ModuleDict({v: Critic(w, n_hidden, norm=False) for v, w in width.items()})
        self.log_scale = nn.Parameter(torch.tensor(math.log(10.0)))
        self.n_components = p
        for view, w in width.items():
            # context columns follow from the code by regression, as the components do
            self.register_buffer(f"near_loading_{view}", torch.zeros(self.n_code, w - p[view]))
            self.register_buffer(f"trust_{view}", torch.ones(p[view]))

    def native(self, view: str, x: Tensor) -> Tensor:
        """Rows are kept ready-made."""
        return x

    def split(self, view: str, t: Tensor) -> tuple[Tensor, Tensor]:
        """Native rows to whitened components and context columns."""
        return t[:, : self.n_components[view]], t[:, self.n_components[view] :]

    def linear_code(self, view: str, t: Tensor) -> Tensor:
        """The anchor's code."""
        z, near = self.split(view, t)
        part = self.anchor.view(view)
        return torch.cat([z[:, : part.rank], near], 1) @ part.code_map

    def encode(self, view: str, t: Tensor) -> Tensor:
        """Anchor's code plus residual."""
        return self.linear_code(view, t) + self.encoders[view](t)

    def decode(self, view: str, code: Tensor) -> Tensor:
        """Expected native rows plus residual."""
        factor = code / self.anchor.weights * self.anchor.rho
        linear = torch.cat(
            [factor @ self.anchor.view(view).loading, factor @ self.get_buffer(f"near_loading_{view}")], 1
        )
        return linear + self.decoders[view](code)

    def cycle(self, view: str, t: Tensor, code: Tensor, translated: Tensor) -> Tensor:
        """There and back in the code: what a view keeps to itself cannot come back through the other one."""
        return (self.encode(OTHER[view], translated) - code).abs().mean()

    @torch.no_grad()
    def fit_context(self, view: str, t: Tensor) -> None:
        """Regress the context columns of a view on its own variates, so that codes decode to them as well."""
        variates = self.linear_code(view, t) / self.anchor.weights
        self.get_buffer(f"near_loading_{view}").copy_(variates.T @ self.split(view, t)[1] / t.shape[0])

    def _translations(self, source: str, t: Tensor) -> tuple[Tensor, Tensor]:
        """Components of the other view by the anchor, and by the network."""
        target = OTHER[source]
        return self.anchor.expected(self.linear_code(source, t), target), self.split(target, self.translate(source, t))[
            0
        ]

    def components(self, source: str, t: Tensor) -> Tensor:
        """Expected whitened components of the other view: the anchor's, moved towards the network's as far as it is trusted."""
        linear, network = self._translations(source, t)
        return linear + self.get_buffer(f"trust_{OTHER[source]}") * (network - linear)

    @torch.no_grad()
    def fit_trust(self, native: dict[str, Tensor], rows: Tensor) -> None:
        """For each component, let pairs not used in training say how far from the anchor towards the network the truth lies.

        An adversary asks for translations that look real, which are farther from the truth than their mean; retrieval, by which
        the epoch is chosen, does not see it. The step is the least-squares one less its standard error, within 0 and 1.
        """
        for source, target in OTHER.items():
            linear, network = self._translations(source, native[source][rows])
            step, miss = network - linear, self.split(target, native[target][rows])[0] - linear
            power = step.square().sum(0).clamp_min(1e-12)
            slope = (step * miss).sum(0) / power
            error = ((miss - slope * step).square().sum(0) / power / max(1, rows.numel() - 1)).sqrt()
            self.get_buffer(f"trust_{target}").copy_((slope - error).clamp(0, 1))
