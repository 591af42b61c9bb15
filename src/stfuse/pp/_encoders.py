"""Image encoders: by name, as objects, or as torch modules."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np

from stfuse.pp._texture import TextureEncoder

if TYPE_CHECKING:
    from torch import nn


@runtime_checkable
class Encoder(Protocol):
    """What `stfuse.pp.image_features` asks of an encoder.

    `name` goes into the record, `n_features` is the width of the result, and a call turns crops (b x h x w x 3,
    uint8) into features (b x n_features, float32). Crops of one call have the same size; sections may differ.
    """

    name: str
    n_features: int

    def __call__(self, crops: np.ndarray) -> np.ndarray:
        """Turn crops into features."""
        ...


ENCODERS: dict[str, Callable[[], Encoder]] = {"texture": TextureEncoder}


class ModuleEncoder:
    """A torch module as an encoder: gets b x 3 x h x w floats in [0, 1] on its own device, in evaluation mode."""

    def __init__(self, module: "nn.Module") -> None:
        self.module = module
        self.name = type(module).__name__

    def __call__(self, crops: np.ndarray) -> np.ndarray:
        """Turn b x h x w x 3 crops (uint8) into b x d features (float32)."""
        import torch

        parameter = next(self.module.parameters(), torch.empty(0))
        was_training = self.module.training
        self.module.eval()
        try:
            with torch.inference_mode():
                images = torch.from_numpy(crops).to(parameter.device).permute(0, 3, 1, 2)
                dtype = parameter.dtype if parameter.is_floating_point() else torch.float32
                return self.module(images.to(dtype) / 255).float().cpu().numpy()
        finally:
            self.module.train(was_training)


def get_encoder(encoder: Any) -> Any:
    """Find an encoder by its name, or take the object or torch module that was given."""
    import sys

    if isinstance(encoder, str):
        if encoder not in ENCODERS:
            raise ValueError(f"No encoder {encoder!r}. There are: {', '.join(ENCODERS)}; or pass an encoder object.")
        return ENCODERS[encoder]()
    torch = sys.modules.get("torch")  # whoever has a module has imported torch
    if torch is not None and isinstance(encoder, torch.nn.Module):
        return ModuleEncoder(encoder)
    if isinstance(encoder, type) or not isinstance(encoder, Encoder):
        raise TypeError(
            f"encoder must be a name ({', '.join(ENCODERS)}), a torch.nn.Module, or an object with name, n_features "
            f"and a call from crops to features, not {encoder!r}."
        )
    return encoder
