"""Find or build the encoder that a user asks for."""

import re
import sys
from pathlib import Path
from typing import Any

from stfuse._check import check_flag, did_you_mean
from stfuse.pp._encoders._interface import Encoder, GivenEncoder
from stfuse.pp._encoders._table import ROWS, Row


def get_encoder(
    encoder: Any, *, checkpoint: str | Path | None = None, allow_pickle: bool = False, device: str = "auto"
) -> Encoder:
    """Find an encoder by its name, or take the object, torch module or function that was given.

    ``encoder`` is a name of the table (:func:`encoders`; case, ``-`` and ``_`` do not matter) or of timm; a module or
    function, which gets b x 3 x h x w floats in [0, 1] and gives b x d; or an object with ``name``, ``n_features`` and
    a call from crops (b x h x w x 3, uint8) to features. ``checkpoint`` is a local file to take a named network's
    weights from: safetensors, or, with ``allow_pickle``, a pickle that holds tensors alone.
    """
    check_flag("allow_pickle", allow_pickle)
    if not (checkpoint is None or isinstance(checkpoint, str | Path)):
        raise TypeError(f"checkpoint must be the path of a file or None, got {checkpoint!r}.")
    if isinstance(encoder, str):
        row = _find(encoder)
        if row is None:
            return _timm_encoder(encoder, checkpoint, allow_pickle, device)
        return _row_encoder(row, checkpoint, allow_pickle, device)
    if checkpoint is not None:
        raise ValueError("checkpoint= goes with the name of an encoder; load the weights of your own module yourself.")
    torch = sys.modules.get("torch")  # whoever has a module has imported torch
    if torch is None or not isinstance(encoder, torch.nn.Module):
        if isinstance(encoder, type) or not callable(encoder):
            raise TypeError(
                f"encoder must be a name ({', '.join(row.name for row in ROWS)}, or one of timm's), a torch.nn.Module, "
                f"a function or an encoder object, not {encoder!r}."
            )
        if isinstance(encoder, Encoder):
            return encoder
        if hasattr(encoder, "name") and hasattr(encoder, "n_features"):
            return GivenEncoder(encoder)
    from stfuse.pp._encoders._torch import CallableEncoder

    return CallableEncoder(encoder, device=device)


def _find(name: str) -> Row | None:
    rows = {_plain(row.name): row for row in ROWS}
    return rows.get(_plain(name))


def _plain(name: str) -> str:
    return re.sub(r"[-_\s]", "", name.lower())


def _row_encoder(row: Row, checkpoint: str | Path | None, allow_pickle: bool, device: str) -> Encoder:
    if row.build == "texture":
        from stfuse.pp._encoders._texture import TextureEncoder

        if checkpoint is not None:
            raise ValueError("Encoder 'texture' has no weights, hence no checkpoint.")
        return TextureEncoder()
    import torch

    from stfuse.pp._encoders._load import load
    from stfuse.pp._encoders._torch import TorchEncoder, choose_device

    choose_device(device)  # before gigabytes are read
    with torch.random.fork_rng(devices=[]):  # networks are built with random weights before they are filled
        module, record = load(row, checkpoint, allow_pickle=allow_pickle)
    return TorchEncoder(
        module,
        name=row.name,
        n_features=row.dimension,
        input_size=row.input_size or 0,
        mean=row.mean,
        std=row.std,
        interpolation=row.interpolation,
        record={**record, "embedding": row.embedding},
        device=device,
    )


def _timm_encoder(name: str, checkpoint: str | Path | None, allow_pickle: bool, device: str) -> Encoder:
    import torch

    from stfuse.pp._encoders import _timm
    from stfuse.pp._encoders._torch import TorchEncoder, choose_device

    name = name.removeprefix("timm/")  # as the hub calls them
    if not _timm.is_name(name):
        names = [row.name for row in ROWS]
        raise ValueError(
            f"No encoder {name!r}.{did_you_mean(name, names)} There are: {', '.join(names)}; every model of timm by its "
            'name (after pip install "stfuse[encoders]" timm.list_models() lists them; hf-hub:owner/name is one of the '
            "hub); or pass a torch.nn.Module or a function."
        )
    choose_device(device)
    with torch.random.fork_rng(devices=[]):
        network, record = _timm.load_named(name, checkpoint, allow_pickle=allow_pickle)
    return TorchEncoder(
        network,
        name=name,
        n_features=int(network.num_features),  # type: ignore[arg-type]
        record={**record, "embedding": "timm's pooled features"},
        device=device,
        **_timm.transform_of(network),
    )
