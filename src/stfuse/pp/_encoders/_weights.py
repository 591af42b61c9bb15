"""Weights: from a local file or from the hub, and whether they fit."""

import hashlib
import pickle
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

_HUB_FILES = ("model.safetensors", "pytorch_model.bin")
_NESTS = ("state_dict", "model_state_dict", "model", "module", "teacher")
_PREFIXES = ("module.", "_orig_mod.", "model.", "backbone.")
_HEADS = ("head.", "fc.", "_fc.", "classifier.", "last_linear.", "AuxLogits.")  # what a network has above its features


class WeightsUnavailableError(OSError):
    """Weights could not be fetched: no access, no connection, or no such model."""


def read_checkpoint(path: str | Path, *, allow_pickle: bool) -> dict[str, Tensor]:
    """Read named tensors from a safetensors file, or, if allowed, from a pickle that holds nothing but tensors."""
    path = Path(path)
    if path.is_dir():
        raise IsADirectoryError(f"checkpoint={str(path)!r} is a folder: name the file of weights in it.")
    if not path.is_file():
        raise FileNotFoundError(f"There is no file checkpoint={str(path)!r}.")
    with path.open("rb") as file:
        start = file.read(9)
    if path.suffix == ".safetensors" or start[8:] == b"{":
        return _read_safetensors(path)
    if not allow_pickle:
        raise ValueError(
            f"{path.name} is no safetensors file. A pickle (.pt, .pth, .bin, .ckpt) is read with allow_pickle=True, and "
            "then only if it holds nothing but tensors, so that it can't run code."
        )
    return _read_pickle(path)


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return unwrap(load_file(path), path.name)
    except SafetensorError as error:
        raise ValueError(f"{path.name} can't be read as safetensors ({error}): is it complete?") from error


def _read_pickle(path: Path) -> dict[str, Tensor]:
    try:
        return unwrap(torch.load(path, map_location="cpu", weights_only=True), path.name)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path.name} is no file of torch weights, is not complete, or holds more than tensors. The last is not "
            "read, as it could run code: if you trust the file, load it with torch yourself and save its tensors with "
            f"safetensors.torch.save_file. ({str(error).splitlines()[0]})"
        ) from error
    except (RuntimeError, EOFError, OSError) as error:
        raise ValueError(f"{path.name} can't be read as torch weights ({error}): is it complete?") from error


def unwrap(content: Any, name: str) -> dict[str, Tensor]:
    """Find the named tensors in what a file of weights holds, without the prefix that all of them share."""
    while isinstance(content, dict):
        inner = next((content[nest] for nest in _NESTS if isinstance(content.get(nest), dict)), None)
        if inner is None:
            break
        content = inner
    state = {k: v for k, v in content.items() if isinstance(v, Tensor)} if isinstance(content, dict) else {}
    if not state:
        raise ValueError(f"{name} holds no named tensors.")
    while (prefix := next((p for p in _PREFIXES if all(key.startswith(p) for key in state)), None)) is not None:
        state = {key.removeprefix(prefix): tensor for key, tensor in state.items()}
    return state


def fill(module: nn.Module, state: dict[str, Tensor], *, name: str, source: str) -> None:
    """Copy weights into a module; every one must be there with its shape, classification heads aside."""
    own = module.state_dict()
    missing = [k for k in own if k not in state and not k.endswith("num_batches_tracked")]
    unexpected = [k for k in state if k not in own and not k.startswith(_HEADS)]
    shapes = [k for k in own if k in state and own[k].shape != state[k].shape]
    if missing or unexpected or shapes:
        raise ValueError(
            f"{source} does not seem to hold weights of {name!r}. Of its {len(own)} tensors {len(missing)} are missing"
            f"{_first(missing)}, {len(shapes)} have another shape{_first(shapes)}, and {len(unexpected)} of the file "
            f"are unexpected{_first(unexpected)}."
        )
    module.load_state_dict({k: v for k, v in state.items() if k in own}, strict=False)


def _first(keys: list[str]) -> str:
    return f" (first: {keys[0]})" if keys else ""


def provenance(path: Path) -> dict[str, Any]:
    """Name a file of weights so that it can be told from others."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"file": path.name, "size": path.stat().st_size, "sha256": digest[:16]}


def fetch(repository: str) -> Path:
    """Download a repository's weights, or find them in the local cache; safetensors if there are."""
    hub = import_extra("huggingface_hub")
    error: Exception | None = None
    for file in _HUB_FILES:
        try:
            return Path(hub.hf_hub_download(repository, file))
        except hub_errors() as latest:
            error = latest
    raise unavailable(repository, error) from error


def hub_errors() -> tuple[type[Exception], ...]:
    """What may go wrong between here and the hub."""
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError

    http_error = HfHubHTTPError.__bases__[0]  # of the library for HTTP, which changes from release to release
    return (OSError, http_error, EntryNotFoundError, HFValidationError)


def unavailable(repository: str, error: Exception | None) -> WeightsUnavailableError:
    """Say how to get at weights that could not be fetched."""
    from huggingface_hub.errors import GatedRepoError, RemoteEntryNotFoundError, RepositoryNotFoundError

    page = f"https://huggingface.co/{repository}"
    if isinstance(error, GatedRepoError):
        reason = "access to it must be granted first"
    elif isinstance(error, RepositoryNotFoundError):
        reason = "there is no such repository, or it is not open to you"
    elif isinstance(error, RemoteEntryNotFoundError):
        reason = f"it holds none of the files {', '.join(_HUB_FILES)}"
    else:
        reason = "it is not in the local cache, and the hub can't be reached (or HF_HUB_OFFLINE is set)"
    cause = "" if error is None else f" ({type(error).__name__}: {(str(error).splitlines() or [''])[0]})"
    return WeightsUnavailableError(
        f"The weights of {repository} could not be fetched: {reason}{cause}. If {page} asks you to accept a licence, ask for "
        "access there and log in with `hf auth login` or the environment variable HF_TOKEN. Without a network, "
        "HF_HUB_OFFLINE=1 ends the waiting; download the file of weights elsewhere and pass its path: checkpoint=."
    )


def import_extra(module: str) -> Any:
    """Import a package that comes with the extra "encoders"."""
    from importlib import import_module

    try:
        return import_module(module)
    except ImportError as error:
        raise ImportError(
            f'This encoder needs the package {module}: pip install "stfuse[encoders]". ({error})'
        ) from error
