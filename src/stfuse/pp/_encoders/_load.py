"""Build the network of a row and fill it with weights."""

from pathlib import Path
from typing import Any

from torch import Tensor, nn

from stfuse.pp._encoders import _conch, _ctranspath, _efficientnet, _timm, _transformers
from stfuse.pp._encoders._table import Row
from stfuse.pp._encoders._weights import fetch, fill, provenance, read_checkpoint

_BUILDERS = {
    "timm": _timm.build,
    "conch": _conch.build,
    "ctranspath": _ctranspath.build,
    "efficientnet-lite": _efficientnet.build,
}
_LAYOUTS = {"transformers": _transformers.to_timm, "conch": _conch.image_tower, "ctranspath": _ctranspath.to_timm}


def build(row: Row) -> nn.Module:
    """Build the network of a row, without weights where all of them come from a file."""
    return _BUILDERS[row.build](row)


def load(row: Row, checkpoint: str | Path | None, *, allow_pickle: bool) -> tuple[nn.Module, dict[str, Any]]:
    """Build the network of a row and fill it, from the local file if there is one; also the record of the weights."""
    network = build(row)  # first: a missing package should not show after a long download
    if checkpoint is not None:
        path, record = Path(checkpoint), {"source": "file"}
        state = read_checkpoint(path, allow_pickle=allow_pickle)
    elif row.build == "efficientnet-lite":
        path, record = _efficientnet.weights(), {"source": "package", "weights": row.source}
        state = read_checkpoint(path, allow_pickle=True)
    else:
        path = fetch(row.source)
        record = {"source": "hub", "weights": row.source, "revision": path.parent.name}
        # Released pickles are read too: as everywhere, only if they hold nothing but tensors.
        state = read_checkpoint(path, allow_pickle=True)
    state = _in_our_layout(row, state)
    if any(parameter.is_meta for parameter in network.parameters()):
        network = network.to_empty(device="cpu")
    fill(network, state, name=row.name, source=str(path))
    module = _efficientnet.AveragedFeatures(network) if row.build == "efficientnet-lite" else _timm.embed(row, network)
    return module, {**record, **provenance(path)}


def _in_our_layout(row: Row, state: dict[str, Tensor]) -> dict[str, Tensor]:
    return _LAYOUTS[row.layout](state) if row.layout in _LAYOUTS else state
