"""Crops through an encoder: here, or on the workers of a dask cluster."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from stfuse._image._bands import in_background, read_crops
from stfuse._image._plan import Part
from stfuse._image._pyramid import Pyramid
from stfuse.pp._encoders import check_features, get_encoder

_PIXELS = 1_000_000  # of crops encoded at once: small enough for the processor's cache, large enough for speed
_TASKS = 4  # per worker of a cluster, so that none waits long for the last


@dataclass(frozen=True)
class EncoderCall:
    """What makes an encoder, so that workers can make it too."""

    encoder: Any
    checkpoint: Any = None
    allow_pickle: bool = False
    device: str = "auto"

    def make(self) -> Any:
        """Find or build the encoder."""
        return get_encoder(self.encoder, checkpoint=self.checkpoint, allow_pickle=self.allow_pickle, device=self.device)


@dataclass(frozen=True)
class Work:
    """Crops of one image, to be encoded."""

    image: Pyramid
    parts: tuple[Part, ...]
    stain: Callable[[np.ndarray], np.ndarray] | None
    batch_size: int | None

    def __len__(self) -> int:
        return sum(len(part.slots) for part in self.parts)

    def without(self, done: np.ndarray) -> Work:
        """Leave out what is done already: a mask over slots."""
        return self._subset([np.flatnonzero(~done[part.slots]) for part in self.parts])

    def split(self, n: int) -> list[Work]:
        """Part the crops by their place from top to bottom, so that few chunks of the image are in two pieces."""
        orders = [np.argsort(part.group.first[:, 1], kind="stable") for part in self.parts]
        pieces = [self._subset([np.array_split(order, n)[i] for order in orders]) for i in range(n)]
        return [piece for piece in pieces if len(piece)]

    def _subset(self, rows: Sequence[np.ndarray]) -> Work:
        parts = (
            replace(part, group=part.group.subset(which), slots=part.slots[which])
            for part, which in zip(self.parts, rows, strict=True)
        )
        return replace(self, parts=tuple(parts))


type Encoded = tuple[np.ndarray, np.ndarray]  # slots and their features, b x d


def encode(works: Sequence[Work], encoder: Any, call: EncoderCall) -> Iterator[Encoded]:
    """Encode all crops, on a dask cluster when one is connected."""
    client = connected_client()
    if client is not None:
        yield from _on_cluster(client, works, call)
        return
    for work in works:
        yield from encode_here(work, encoder)


def encode_here(work: Work, encoder: Any) -> Iterator[Encoded]:
    """Encode crops in this process while the next ones are read."""
    for level in sorted({part.level for part in work.parts}):
        parts = [part for part in work.parts if part.level == level]
        steps = [work.batch_size or _batch_size(encoder, part.group.size) for part in parts]
        crops = read_crops(work.image, level, [part.group for part in parts], steps)
        for index, which, batch in in_background(crops):
            stained = batch if work.stain is None else work.stain(batch)
            yield parts[index].slots[which], check_features(encoder(stained), encoder.name, len(which))


def _batch_size(encoder: Any, size: tuple[int, int]) -> int:
    """As many as the encoder likes, or as have a million pixels together."""
    return getattr(encoder, "batch_size", None) or max(1, _PIXELS // (size[0] * size[1]))


def connected_client() -> Any:
    """Find the dask.distributed client of this process; None where there is none. Never starts one."""
    distributed = sys.modules.get("distributed")
    if distributed is None:
        return None
    try:
        return distributed.default_client()
    except ValueError:
        return None


def _on_cluster(client: Any, works: Sequence[Work], call: EncoderCall) -> Iterator[Encoded]:
    from distributed import as_completed

    n_workers = max(1, len(client.scheduler_info(n_workers=-1)["workers"]))
    shared_call = client.scatter(call, hash=False)
    futures = []
    for work in works:
        image = client.scatter(work.image, hash=False)  # once, not with every piece
        n = max(1, round(_TASKS * n_workers * len(work) / max(1, sum(map(len, works)))))
        for piece in work.split(n):
            futures.append(
                client.submit(_task, image, piece.parts, work.stain, work.batch_size, shared_call, pure=False)
            )
    try:
        for _, result in as_completed(futures, with_results=True):
            yield from result
    finally:
        client.cancel(futures)


def _task(
    image: Pyramid,
    parts: tuple[Part, ...],
    stain: Callable[[np.ndarray], np.ndarray] | None,
    batch_size: int | None,
    call: EncoderCall,
) -> list[Encoded]:
    """Encode one piece on a worker; its batches go back as one."""
    found = list(encode_here(Work(image, parts, stain, batch_size), _made(call)))
    slots, features = zip(*found, strict=True)
    return [(np.concatenate(slots), np.concatenate(features))]


_ON_WORKER: dict[Any, Any] = {}


def _made(call: EncoderCall) -> Any:
    """Keep the last encoder of a worker: loading its weights takes longer than a piece of work."""
    if not isinstance(call.encoder, str):
        return call.make()
    key = (call.encoder, str(call.checkpoint), call.device)
    if key not in _ON_WORKER:
        _ON_WORKER.clear()
        _ON_WORKER[key] = call.make()
    return _ON_WORKER[key]
