"""Networks of timm: those of the table, and all others under their own names."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from stfuse.pp._encoders._table import CLASS_AND_PATCHES, Row
from stfuse.pp._encoders._weights import fill, hub_errors, import_extra, provenance, read_checkpoint, unavailable


class ClassAndPatches(nn.Module):
    """Class token and mean of the patch tokens, side by side; registers between them are left out."""

    def __init__(self, trunk: nn.Module) -> None:
        super().__init__()
        self.trunk = trunk
        self.first_patch = int(trunk.num_prefix_tokens)  # type: ignore[arg-type]

    def forward(self, images: Tensor) -> Tensor:
        """Turn images into features (b x 2d)."""
        tokens = self.trunk(images)
        return torch.cat([tokens[:, 0], tokens[:, self.first_patch :].mean(dim=1)], dim=1)


def build(row: Row) -> nn.Module:
    """Build the network of a row without weights: on the meta device, since all of them are read."""
    timm = import_extra("timm")
    kwargs: dict[str, Any] = {"num_classes": 0, **row.kwargs}
    if row.architecture.startswith("vit_"):
        kwargs["img_size"] = row.input_size
    if row.swiglu:
        kwargs |= {"mlp_layer": timm.layers.SwiGLUPacked, "act_layer": nn.SiLU}
    if row.embedding == CLASS_AND_PATCHES:
        kwargs["global_pool"] = ""
    with torch.device("meta"):
        return timm.create_model(row.architecture, **kwargs)


def embed(row: Row, network: nn.Module) -> nn.Module:
    """Make the network give the row's embedding."""
    return ClassAndPatches(network) if row.embedding == CLASS_AND_PATCHES else network


def is_name(name: str) -> bool:
    """Whether timm has a network of that name."""
    try:
        timm = import_extra("timm")
    except ImportError:
        return name.startswith(("hf-hub:", "hf_hub:"))
    return name.startswith(("hf-hub:", "hf_hub:")) or timm.is_model(name)


def load_named(name: str, checkpoint: str | Path | None, *, allow_pickle: bool) -> tuple[nn.Module, dict[str, Any]]:
    """Load any network of timm, with its hub's weights or those of a local file; also its record."""
    timm = import_extra("timm")
    repository = name.partition(":")[2].partition("@")[0]  # empty for names that are timm's own
    try:
        network = timm.create_model(name, pretrained=False, num_classes=0)
        repository = repository or str(network.pretrained_cfg.get("hf_hub_id") or "")
        if checkpoint is None:
            if not repository:
                raise ValueError(f"There are no weights of {name!r} on the hub: pass a local file with checkpoint=.")
            network = timm.create_model(name, pretrained=True, num_classes=0)
    except hub_errors() as error:
        raise unavailable(repository, error) from error
    except RuntimeError as error:  # an unknown tag
        raise ValueError(f"timm can't build {name!r}: {error}") from error
    if checkpoint is None:
        return network, {"source": "hub", "weights": repository, **_cached(repository)}
    fill(network, read_checkpoint(checkpoint, allow_pickle=allow_pickle), name=name, source=str(checkpoint))
    return network, {"source": "file", **provenance(Path(checkpoint))}


def _cached(repository: str) -> dict[str, Any]:
    """Say which file of a repository was downloaded, and of which revision."""
    hub = import_extra("huggingface_hub")
    for file in ("model.safetensors", "pytorch_model.bin"):
        path = hub.try_to_load_from_cache(repository, file)
        if isinstance(path, str):
            return {"revision": Path(path).parent.name, **provenance(Path(path))}
    return {}


def transform_of(network: nn.Module) -> dict[str, Any]:
    """Read how timm says a network's images must be made."""
    timm = import_extra("timm")
    config = timm.data.resolve_model_data_config(network)
    interpolation = config["interpolation"]
    return {
        "input_size": int(config["input_size"][-1]),
        "mean": tuple(config["mean"]),
        "std": tuple(config["std"]),
        "interpolation": interpolation if interpolation in {"bilinear", "bicubic"} else "bicubic",
    }
