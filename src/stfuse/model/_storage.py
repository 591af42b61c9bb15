"""A model on disk: a folder with weights.safetensors and model.json, neither of which can run code."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

WEIGHTS, DESCRIPTION, FORMAT = "weights.safetensors", "model.json", 1


def _plain(value: Any) -> Any:
    if hasattr(value, "tolist"):
        return value.tolist()
    return str(value)


def _body_digest(body: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True, default=_plain).encode()).hexdigest()


def write(path: str | Path, body: dict[str, Any], tensors: dict[str, torch.Tensor], overwrite: bool) -> None:
    """Write a model folder."""
    from safetensors.torch import save

    folder = Path(path)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())) and not overwrite:
        raise FileExistsError(f"{folder} exists already: pass overwrite=True, or choose another folder.")
    folder.mkdir(parents=True, exist_ok=True)
    weights = save({k: v.detach().cpu().contiguous() for k, v in tensors.items()})
    body = json.loads(json.dumps(body, default=_plain))
    description = {
        "format": FORMAT,
        "sha256": {"weights": hashlib.sha256(weights).hexdigest(), "body": _body_digest(body)},
        "body": body,
    }
    (folder / WEIGHTS).write_bytes(weights)
    (folder / DESCRIPTION).write_text(json.dumps(description, indent=1))


def read(path: str | Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Read a model folder; a truncated or altered file is an error."""
    from safetensors.torch import load

    folder = Path(path)
    missing = [name for name in (DESCRIPTION, WEIGHTS) if not (folder / name).is_file()]
    if missing:
        raise FileNotFoundError(f"{folder} is not a saved stfuse model: {' and '.join(missing)} missing.")
    try:
        description = json.loads((folder / DESCRIPTION).read_text())
        body, version = description["body"], description["format"]
        digests = {name: str(description["sha256"][name]) for name in ("weights", "body")}
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{folder / DESCRIPTION} is damaged or truncated: save the model again.") from error
    if version != FORMAT:
        raise ValueError(f"{folder} has format {version}; this version of stfuse reads format {FORMAT}.")
    weights = (folder / WEIGHTS).read_bytes()
    if hashlib.sha256(weights).hexdigest() != digests["weights"]:
        raise ValueError(
            f"{folder / WEIGHTS} is truncated or was altered (its checksum differs): save the model again."
        )
    if _body_digest(body) != digests["body"]:
        raise ValueError(f"{folder / DESCRIPTION} was altered (its checksum differs): save the model again.")
    return body, load(weights)


def history_to_plain(history: dict[str, Any]) -> dict[str, list[float | None]]:
    """History frames as lists; what is not a number becomes null."""
    return {k: [None if np.isnan(v) else float(v) for v in frame.iloc[:, 0]] for k, frame in history.items()}
