"""Crops through an encoder: here, or on the workers of a dask cluster."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from stfuse._image._bands import in_background, read_crops
from stfuse._image._lazy import holder
from stfuse._image._plan import Part
from stfuse._image._pyramid import Pyramid
from stfuse.pp._encoders import check_features, get_encoder

_PIXELS = 1_000_000  # of crops encoded at once: small enough for the processor's cache, large enough for speed
# of a network: layers of more than 32 MB are given back to the system after each call and fetched again, page by page,
# which takes twice as long as the arithmetic; eight crops of 224 pixels stay below
_NETWORK_PIXELS = 8 * 224**2
_TASKS = 4  # per worker of a cluster, so that none waits long for the last


@dataclass(frozen=True)
class EncoderCall:
    """What makes an encoder, so that workers can make it too."""

    encoder: Any
    checkpoint: Any = None
    allow_pickle: bool = False
    device: str = "auto"
    token: str | None = None  # of the encoder that was made here

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
        # pixels that the cluster holds already can't be sent to it once more
        there = [work for work in works if not any(holder(level.pixels) for level in work.image.levels)]
        yield from _on_cluster(client, there, call, encoder)
        works = [work for work in works if not any(work is other for other in there)]
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
    """As many as the encoder likes, or as have so many pixels together as it works on fastest."""
    if encoder.input_size is None:
        return getattr(encoder, "batch_size", None) or max(1, _PIXELS // (size[0] * size[1]))
    side = encoder.input_size
    return getattr(encoder, "batch_size", None) or max(1, _NETWORK_PIXELS // max(side * side, size[0] * size[1]))


def connected_client() -> Any:
    """Find the dask.distributed client of this process; None where there is none. Never starts one."""
    distributed = sys.modules.get("distributed")
    if distributed is None:
        return None
    try:
        client = distributed.default_client()
    except ValueError:
        return None
    return None if client.asynchronous else client


def _on_cluster(client: Any, works: Sequence[Work], call: EncoderCall, encoder: Any) -> Iterator[Encoded]:
    from distributed import as_completed

    if not works:
        return
    _check_sendable(call, encoder)
    call = replace(call, token=encoder.token)

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


def _check_sendable(call: EncoderCall, encoder: Any) -> None:
    from distributed.protocol.serialize import serialize

    # what can't be pickled comes back as a serialised error, not as one that is raised
    if not isinstance(call.encoder, str) and serialize(call.encoder)[0].get("serializer") == "error":
        raise TypeError(
            f"Encoder {encoder.name!r} can't be sent to the workers of the dask cluster, as it can't be pickled: close the "
            "client to compute features in this process, or make it from things that can be pickled."
        )


_ON_WORKER: dict[str, Any] = {}


def _made(call: EncoderCall) -> Any:
    """Keep the last encoder of a worker: loading its weights takes longer than a piece of work."""
    if call.token is None:
        return call.make()
    if call.token not in _ON_WORKER:
        made = call.make()
        if made.token != call.token:
            raise RuntimeError(
                f"A worker has another encoder {made.name!r} than this process (other weights under the same name, or other "
                f"versions or devices): {made.token} instead of {call.token}."
            )
        _ON_WORKER.clear()
        _ON_WORKER[call.token] = made
    return _ON_WORKER[call.token]
