"""Networks as encoders: device, resizing, normalisation, precision."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stfuse.pp._encoders._interface import check_features


def choose_device(device: str) -> torch.device:
    """Turn "auto", "cpu", "cuda", "cuda:1" or "mps" into a device that is there."""
    kind, _, index = str(device).partition(":")
    if kind not in {"auto", "cpu", "cuda", "mps"} or (index and not index.isdigit()):
        raise ValueError(f"device must be 'auto', 'cpu', 'cuda', 'cuda:<index>' or 'mps', got {device!r}.")
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if kind == "auto":
        return torch.device(next(kind for kind, is_there in there.items() if is_there))
    if not there[kind] or (kind == "cuda" and index and int(index) >= torch.cuda.device_count()):
        raise ValueError(f"device={device!r}, but torch does not see it here: use device='auto' or 'cpu'.")
    return torch.device(device)


def precision_on(device: torch.device) -> torch.dtype:
    """Half precision on CUDA (bfloat16 where there is), single precision elsewhere."""
    if device.type != "cuda":
        return torch.float32
    return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16


def to_images(crops: np.ndarray, device: torch.device, size: int | None, interpolation: str) -> Tensor:
    """Bring crops (b x h x w x 3, uint8) to the device as b x 3 x h x w, or as squares of the size; not yet floats.

    Nothing is copied for it: the result lies in memory as crops do, which is torch's channels-last order.
    """
    images = torch.from_numpy(np.ascontiguousarray(crops)).permute(0, 3, 1, 2)
    if device.type == "cuda":
        images = images.pin_memory().to(device, non_blocking=True)
    return resize(images, size, interpolation).to(device)


def resize(images: Tensor, size: int | None, interpolation: str) -> Tensor:
    """Resize uint8 images to a square as PIL does: antialiased, in whole values."""
    if size is None or images.shape[-2:] == (size, size):
        return images
    options: dict[str, Any] = {"size": (size, size), "mode": interpolation, "antialias": True, "align_corners": False}
    if images.device.type == "cpu":
        return F.interpolate(images, **options)
    return F.interpolate(images.float(), **options).round_().clamp_(0, 255)


class TorchEncoder:
    """A network that gets resized, normalised images and gives one row of features for each."""

    feature_names: list[str] | None = None

    def __init__(
        self,
        module: nn.Module,
        *,
        name: str,
        n_features: int,
        input_size: int,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        interpolation: str,
        record: dict[str, Any],
        device: str,
    ) -> None:
        self.name = name
        self.n_features: int | None = n_features
        self.input_size: int | None = input_size
        self.interpolation = interpolation
        self.device = choose_device(device)
        self.precision = precision_on(self.device)
        self.batch_size = 64 if self.device.type == "cuda" else None  # fewer leave a GPU idle
        self.module = module.eval().requires_grad_(False).to(memory_format=torch.channels_last).to(self.device)
        # Colours of 0 to 255 are normalised by one product and one sum.
        self.scale = 1 / (255 * torch.tensor(std, device=self.device)).view(3, 1, 1)
        self.shift = -(torch.tensor(mean, device=self.device) / torch.tensor(std, device=self.device)).view(3, 1, 1)
        self.record = {
            **record,
            "input_size": input_size,
            "interpolation": interpolation,
            "precision": str(self.precision).removeprefix("torch."),
        }
        self.token: str | None = "; ".join(f"{key}={value}" for key, value in {"name": name, **self.record}.items())

    def prepare(self, crops: np.ndarray) -> Tensor:
        """Turn crops (b x h x w x 3, uint8) into what the network gets: b x 3 x input_size x input_size, float32."""
        images = to_images(crops, self.device, self.input_size, self.interpolation)
        return torch.addcmul(self.shift, images.float(), self.scale)

    def __call__(self, crops: np.ndarray) -> np.ndarray:
        """Turn crops into features."""
        with torch.inference_mode(), self._autocast():
            features = self.module(self.prepare(crops))
        return check_features(features.float().cpu().numpy(), self.name, len(crops))

    def _autocast(self) -> AbstractContextManager[Any]:
        if self.precision is torch.float32:
            return nullcontext()
        return torch.autocast(self.device.type, dtype=self.precision)


class CallableEncoder:
    """A user's module or function: gets images of b x 3 x h x w floats in [0, 1] and gives b x d features.

    A module gets them on its own device and in its own precision, in evaluation mode, which is undone after each call.
    A function gets float32 on ``device`` ("auto" = the CPU: nobody can tell where a function works). Either may have an
    attribute ``input_size`` (side in pixels), to which crops are then resized.
    """

    feature_names: list[str] | None = None
    token: str | None = None

    def __init__(self, function: Callable[[Tensor], Any], *, device: str = "auto") -> None:
        self.function = function
        self.name = str(getattr(function, "__name__", type(function).__name__))
        self.n_features: int | None = None
        self.input_size = _input_size(function, self.name)
        self.device = torch.device("cpu") if device == "auto" else choose_device(device)
        self.record: dict[str, Any] = {"source": "user"}

    def __call__(self, crops: np.ndarray) -> np.ndarray:
        """Turn crops into features."""
        module = self.function if isinstance(self.function, nn.Module) else None
        parameter = torch.empty(0, device=self.device) if module is None else next(module.parameters(), torch.empty(0))
        dtype = parameter.dtype if parameter.is_floating_point() else torch.float32
        training = [] if module is None else [part for part in module.modules() if part.training]
        if module is not None:
            module.eval()
        try:
            with torch.inference_mode():
                images = to_images(crops, parameter.device, self.input_size, "bilinear")
                features = self.function(images.to(dtype) / 255)
                if isinstance(features, Tensor):
                    features = features.float().cpu().numpy()
        finally:
            for part in training:  # not module.train(): parts of it may have been frozen in evaluation mode
                part.training = True
        checked = check_features(features, self.name, len(crops))
        self.n_features = checked.shape[1]
        return checked


def _input_size(function: Any, name: str) -> int | None:
    size = getattr(function, "input_size", None)
    if size is None:
        return None
    if isinstance(size, bool) or not isinstance(size, int | np.integer) or size < 1:
        raise ValueError(f"input_size of encoder {name!r} must be a whole number of pixels, got {size!r}.")
    return int(size)
