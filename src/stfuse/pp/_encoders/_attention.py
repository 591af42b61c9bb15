"""Where a vision transformer looks: the attention of its class token to the patches of a crop."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor, nn

from stfuse.pp._encoders._attention_networks import NOT_POSSIBLE, POSSIBLE, Network, find_network
from stfuse.pp._encoders._torch import CallableEncoder, TorchEncoder


@dataclass(frozen=True)
class PatchAttention:
    """Attention to the patches of n crops in one block.

    The softmax of a row is spread over class token, registers and patches, which together sum to one.
    """

    weights: np.ndarray  # n x heads x h x w, float32: rows of patches from top to bottom, columns from left to right
    prefix: np.ndarray  # n x heads: what goes to class token and registers instead
    class_token: bool  # whether the class token attends; else the mean over all patches that attend
    n_blocks: int
    covered: tuple[float, float]  # part of the crop's width and height that the patches cover; above 1 = padded

    @property
    def relative(self) -> np.ndarray:
        """Attention times the number of patches: 1 = what each patch has where all get the same, and they all of it."""
        return self.weights * (self.weights.shape[2] * self.weights.shape[3])


class _SeenError(Exception):
    """Ends a network's work once the attention is there: what comes after it is not needed."""


def class_attention(encoder: Any, crops: np.ndarray, *, layer: int = -1) -> PatchAttention:
    """Compute the attention of the class token to the patches of crops (n x h x w x 3, uint8) in one block.

    The crops take the encoder's own way (resizing, normalisation, precision, evaluation mode). Where features are an
    average over patches, so that no class token says what the network makes of a crop, it is the mean over all patches
    that attend. Nothing of the network is changed.
    """
    module = _module(encoder)
    network = find_network(module, encoder.name)
    block = _block(layer, len(network.blocks), encoder.name)
    found = []
    # One crop at a time: some networks give the attention of all blocks at once, a gigabyte for a large crop.
    for start in range(len(crops)):
        seen = _Seen()
        with _watching(network, block, seen):
            try:
                encoder(crops[start : start + 1])
            except _SeenError:
                pass
        found.append(_read(seen, network, encoder.name))
    weights, prefix, covered = zip(*found, strict=True)
    return PatchAttention(
        np.concatenate(weights), np.concatenate(prefix), network.class_token, len(network.blocks), covered[0]
    )


def _module(encoder: Any) -> nn.Module:
    module = getattr(encoder, "module", None) if isinstance(encoder, TorchEncoder) else None
    if isinstance(encoder, CallableEncoder):
        module = encoder.function
    if isinstance(module, nn.Module):
        return module
    what = "function" if isinstance(encoder, CallableEncoder) else type(encoder).__name__
    mend = " If it calls a network, pass that, or a torch.nn.Module around it." if what == "function" else ""
    raise ValueError(f"Encoder {encoder.name!r} is no network ({what}), so there is {NOT_POSSIBLE}.{mend} {POSSIBLE}")


def _block(layer: int, n: int, name: str) -> int:
    if not -n <= layer < n:
        raise ValueError(f"layer={layer}: {name!r} has {n} blocks, 0 to {n - 1} from its input on, -1 = the last.")
    return layer % n


@dataclass
class _Seen:
    """What hooks saw while one crop went through the network."""

    attention: Tensor | None = None  # 1 x heads x tokens x tokens
    image: tuple[int, int] | None = None  # height and width
    grid: tuple[int, int] | None = None  # rows and columns of patches


@contextmanager
def _watching(network: Network, block: int, seen: _Seen) -> Iterator[None]:
    """Watch one pass; hooks and changed attributes are undone whatever happens."""

    def see_image(_: nn.Module, inputs: tuple[Any, ...]) -> None:
        height, width = inputs[0].shape[-2:]
        seen.image = int(height), int(width)

    def see_grid(_: nn.Module, __: Any, output: Tensor) -> None:
        if isinstance(output, Tensor) and output.ndim == 4:
            seen.grid = int(output.shape[2]), int(output.shape[3])

    def see_attention(attention: Tensor) -> None:
        seen.attention = attention.detach().float().cpu()
        raise _SeenError

    with ExitStack() as stack:
        stack.callback(network.patches.register_forward_pre_hook(see_image).remove)
        stack.callback(network.projection.register_forward_hook(see_grid).remove)
        stack.enter_context(network.watch(block, see_attention))
        yield


def _read(seen: _Seen, network: Network, name: str) -> tuple[np.ndarray, np.ndarray, tuple[float, float]]:
    """Lay the attention out as the patches lie in the crop: 1 x heads x h x w, and what the prefix gets."""
    if seen.attention is None or seen.grid is None or seen.image is None:
        raise ValueError(
            f"Encoder {name!r} holds a {network.kind}, but its attention did not show while a crop went through: it is "
            f"called by its parts, compiled, or has attention of another kind. Pass the network as it is. {POSSIBLE}"
        )
    rows, columns = seen.grid
    attention = seen.attention
    n_prefix = attention.shape[-1] - rows * columns
    whole = attention.ndim == 4 and len(attention) == 1 and attention.shape[2] == attention.shape[3]
    known = network.n_prefix is None or n_prefix == network.n_prefix
    if not whole or not known or n_prefix < int(network.class_token):
        raise ValueError(
            f"Encoder {name!r} ({network.kind}) has attention of the shape {tuple(attention.shape)} for {rows} x {columns} "
            f"patches: it is not attention of all tokens to all others, so there is {NOT_POSSIBLE}. {POSSIBLE}"
        )
    attends = attention[:, :, 0] if network.class_token else attention[:, :, n_prefix:].mean(dim=2)
    weights = attends[:, :, n_prefix:].reshape(1, attention.shape[1], rows, columns)
    height, width = network.patch_size
    covered = columns * width / seen.image[1], rows * height / seen.image[0]
    return weights.numpy(), attends[:, :, :n_prefix].sum(dim=2).numpy(), covered
