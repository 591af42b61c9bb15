"""Vision transformers of timm, torchvision and transformers: where their parts are, and how they show their attention."""

import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

NOT_POSSIBLE = "no attention of a class token to patches"
POSSIBLE = (
    "Possible are vision transformers (ViT, DeiT, DINOv2, EVA, BEiT, CLIP...) of timm, torchvision or transformers: "
    "by name, or as a torch.nn.Module that is one or holds one."
)
_AVERAGES = ("avg", "avgmax", "max")  # how timm calls features that are made of patches alone
_CLASS = ("cls_token", "class_token", "class_embedding")

type Show = Callable[[Tensor], None]


@dataclass(frozen=True)
class Network:
    """The parts of a vision transformer that tell where it looks."""

    kind: str
    blocks: list[nn.Module]  # from the input on; what ``watch`` needs of each
    watch: Callable[[int, Show], AbstractContextManager[None]]  # hands on the attention of a block while it is entered
    patches: nn.Module  # gets the image
    projection: nn.Module  # gives 1 x width x rows x columns
    patch_size: tuple[int, int]  # height and width in pixels of the image
    class_token: bool
    n_prefix: int | None  # class token and registers; None = what is left of the tokens without the patches


def find_network(module: nn.Module, name: str) -> Network:
    """Find the vision transformer that a module is or holds."""
    for find in (_in_timm, _in_torchvision, _in_transformers):
        found = _outermost(module, find)
        if len(found) > 1:
            kinds = " and ".join(network.kind for network in found)
            raise ValueError(f"Encoder {name!r} holds {len(found)} vision transformers ({kinds}): pass one of them.")
        if found:
            return found[0]
    raise ValueError(
        f"No vision transformer in encoder {name!r} ({_what(module)}): there is {NOT_POSSIBLE}. {POSSIBLE}"
    )


def _outermost(module: nn.Module, find: Callable[[nn.Module], Network | None]) -> list[Network]:
    found = find(module)
    if found is not None:
        return [found]
    return [network for child in module.children() for network in _outermost(child, find)]


def _what(module: nn.Module) -> str:
    """Name a module, and what is in it where that says more: a wrapper's own name does not."""
    inner = [type(child).__name__ for child in module.children()]
    return type(module).__name__ + (f" of {', '.join(inner[:3])}{'...' if inner[3:] else ''}" if inner else "")


def _in_timm(module: nn.Module) -> Network | None:
    parts = (getattr(module, name, None) for name in ("blocks", "patch_embed", "num_prefix_tokens"))
    blocks, patches, n_prefix = parts
    projection = getattr(patches, "proj", None)
    if not isinstance(blocks, nn.Sequential | nn.ModuleList) or not isinstance(n_prefix, int):
        return None
    if not isinstance(patches, nn.Module) or not isinstance(projection, nn.Module):
        return None
    found = [[part for part in block.modules() if _can_unfuse(part)] for block in blocks]
    if not found or any(len(attentions) != 1 for attentions in found):
        return None
    attentions = [attention for (attention,) in found]
    height, width = _pair(patches.feat_ratio(as_scalar=False) if hasattr(patches, "feat_ratio") else patches.patch_size)  # type: ignore[operator]
    has_class = getattr(module, "cls_token", None) is not None
    return Network(
        kind=type(module).__name__,
        blocks=attentions,
        watch=lambda block, show: _unfused(attentions[block], show),
        patches=patches,
        projection=projection,
        patch_size=(height, width),
        class_token=has_class and getattr(module, "global_pool", "token") not in _AVERAGES,
        n_prefix=n_prefix,
    )


def _can_unfuse(part: nn.Module) -> bool:
    return isinstance(getattr(part, "fused_attn", None), bool) and isinstance(
        getattr(part, "attn_drop", None), nn.Module
    )


@contextmanager
def _unfused(attention: nn.Module, show: Show) -> Iterator[None]:
    """Let timm take the slow way, which alone makes the attention: positions, masks and norms of its own included."""
    fused = attention.fused_attn
    drop: Any = attention.attn_drop
    with ExitStack() as stack:
        stack.callback(setattr, attention, "fused_attn", fused)
        stack.callback(drop.register_forward_pre_hook(lambda _, inputs: show(inputs[0])).remove)
        attention.fused_attn = False  # type: ignore[assignment]
        yield


def _in_torchvision(module: nn.Module) -> Network | None:
    torchvision = sys.modules.get("torchvision")  # whoever has such a network has imported it
    if torchvision is None or not isinstance(module, torchvision.models.VisionTransformer):
        return None
    attentions = [part for part in module.encoder.modules() if isinstance(part, nn.MultiheadAttention)]
    projections = [part for part in module.conv_proj.modules() if isinstance(part, nn.Conv2d)]
    patch = int(module.patch_size)
    return Network(
        kind=type(module).__name__,
        blocks=list(attentions),
        watch=lambda block, show: _with_weights(attentions[block], show),
        patches=module.conv_proj,
        projection=projections[-1],
        patch_size=(patch, patch),
        class_token=True,
        n_prefix=1,
    )


@contextmanager
def _with_weights(attention: nn.Module, show: Show) -> Iterator[None]:
    """Ask torch's own attention for its weights, each head by itself."""

    def ask(_: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return inputs[:3], {**named, "need_weights": True, "average_attn_weights": False}

    with ExitStack() as stack:
        stack.callback(attention.register_forward_pre_hook(ask, with_kwargs=True).remove)
        stack.callback(attention.register_forward_hook(lambda _, __, output: show(output[1])).remove)
        yield


def _in_transformers(module: nn.Module) -> Network | None:
    transformers = sys.modules.get("transformers")
    if transformers is None or not isinstance(module, transformers.PreTrainedModel):
        return None
    if module.main_input_name != "pixel_values":
        return None
    projections = [part for part in module.modules() if isinstance(part, nn.Conv2d)]
    n_blocks = getattr(module.config, "num_hidden_layers", None)
    if len(projections) != 1 or not isinstance(n_blocks, int):
        return None
    names = {name.rpartition(".")[2] for name, _ in module.named_parameters()}
    return Network(
        kind=type(module).__name__,
        blocks=[module] * n_blocks,
        watch=lambda block, show: _eager(module, block, show),
        patches=projections[0],
        projection=projections[0],
        patch_size=_pair(projections[0].stride),
        class_token=not names.isdisjoint(_CLASS),
        n_prefix=None,
    )


@contextmanager
def _eager(module: Any, block: int, show: Show) -> Iterator[None]:
    """Let transformers take the slow way, which alone makes the attention, and wait for that of a block."""
    seen: list[Tensor] = []

    def see(_: nn.Module, __: Any, output: Any) -> None:
        weights = output[1] if isinstance(output, tuple) and len(output) > 1 else None
        # a part that only hands on the attention of the one inside gives the same tensor again
        if not isinstance(weights, Tensor) or weights.ndim != 4 or (seen and seen[-1] is weights):
            return
        seen.append(weights)
        if len(seen) == block + 1:
            show(weights)

    implementation = module.config._attn_implementation
    with ExitStack() as stack:
        # not output_attentions=True, with which transformers leaves hooks of its own behind
        stack.callback(module.set_attn_implementation, implementation)
        module.set_attn_implementation("eager")
        for part in module.modules():
            stack.callback(part.register_forward_hook(see).remove)
        yield


def _pair(size: Any) -> tuple[int, int]:
    height, width = (size, size) if isinstance(size, int) else size
    return int(height), int(width)
