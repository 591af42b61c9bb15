"""What every predictor of expression is given, and what it gives back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from stfuse import _keys
from stfuse._check import did_you_mean
from stfuse._log import warn
from stfuse._read import container, find_column, is_mudata, listing
from stfuse._views import Views, read_views
from stfuse.pp._default_views import make_view
from stfuse.tl._predictors_expression import Expression

UNLIKE = 1.25  # times as large a crop shows other things


@dataclass(frozen=True)
class Neighbors:
    """How many neighbours are averaged, with which weights, and by which of the reference's codes they are found."""

    n_neighbors: int = 50
    weights: str = "cosine"
    temperature: float = 0.1
    approximate: bool | None = None
    reference_view: str = "both"


@dataclass(frozen=True)
class Keys:
    """Where views, batches and sections lie, in query and reference alike."""

    image_key: str = _keys.IMAGE
    rna_key: str = _keys.RNA
    batch_key: str | None = None
    library_key: str | None = None


class Images(NamedTuple):
    """Image features of all observations, NaN where there are none, and which have any."""

    query: np.ndarray
    reference: np.ndarray
    has_query: np.ndarray
    has_reference: np.ndarray


@dataclass
class Prediction:
    """Expression of all observations of the query, n x genes; NaN where it has no image.

    ``std`` and ``uncertainty`` (n x genes, n) are the neighbours' spread and ``unmatched`` marks observations to which none is
    similar, where a method has neighbours. ``note`` goes into the record.
    """

    mean: np.ndarray
    std: np.ndarray | None = None
    uncertainty: np.ndarray | None = None
    unmatched: np.ndarray | None = None
    note: dict[str, Any] = field(default_factory=dict)


@dataclass
class Task:
    """Predict the expression of ``query`` from what is known of ``reference``; neither is changed."""

    query: Any
    reference: Any
    expression: Expression
    keys: Keys
    neighbors: Neighbors
    std: bool = False
    seed: int = 0
    device: str = "auto"
    progress: bool | None = None
    table_key: str | None = None
    made: dict[str, np.ndarray] = field(default_factory=dict)

    def keep(self, views: Views) -> None:
        """Keep image features of the query that had to be made, so that they are written."""
        self.made.update(views.made)

    @cached_property
    def images(self) -> Images:
        """Image features of both, centred within batches."""
        check_same_encoder(self.query, self.reference, self.keys.image_key, self.table_key)
        query = read_images(self.query, vars(self.keys), "query", table_key=self.table_key)
        self.keep(query)
        reference = read_images(self.reference, vars(self.keys), "reference", table_key=self.table_key)
        if query.image.shape[1] != reference.image.shape[1]:
            raise ValueError(
                f"obsm[{self.keys.image_key!r}] has {query.image.shape[1]} features in the query and "
                f"{reference.image.shape[1]} in the reference: make both with the same encoder, stfuse.pp.image_features."
            )
        return Images(*_centred(query, reference), query.has_image, reference.has_image)

    @cached_property
    def usable(self) -> np.ndarray:
        """Rows of the reference with image and expression."""
        rows = np.flatnonzero(self.images.has_reference & self.expression.has)
        if rows.size < 2:
            raise ValueError(
                f"{rows.size} observation(s) of the reference have image features and expression: two are needed."
            )
        return rows

    def spread(self, values: np.ndarray) -> np.ndarray:
        """Lay rows of observations with an image out over all of the query, NaN elsewhere."""
        out = np.full((len(self.images.has_query), *values.shape[1:]), np.nan, np.float32)
        out[self.images.has_query] = values
        return out


def read_images(data: Any, keys: Mapping[str, Any], who: str, *, table_key: str | None, crops: bool = False) -> Views:
    """Read views of which the image has to be there (or is made, under the default key) and the RNA is not asked for."""
    box = container(data, table_key)
    keys = dict(keys)
    if who != "reference" and keys.get("library_key") and find_column(data, keys["library_key"], table_key) is None:
        keys["library_key"] = None  # one section needs no column that says so

    def recipe(
        data: Any, role: str, key: str, library_key: str | None, table_key: str | None
    ) -> tuple[np.ndarray, Any]:
        if role == "rna":
            return np.empty((box.n_obs, 0), np.float32), None
        if is_mudata(box) and role not in box.mod:
            raise KeyError(f"The {who} has no modality 'image'; it has {listing(box.mod)}.")
        if key != _keys.IMAGE:
            there = list(box.mod[role].obsm) if is_mudata(box) else list(box.obsm)
            raise KeyError(
                f"The {who} has no obsm[{key!r}] with image features.{did_you_mean(key, there)} There is {listing(there)}. "
                "stfuse.pp.image_features makes them."
            )
        return make_view(data, role, key, library_key, table_key)

    views = read_views(data, **keys, table_key=table_key, crops=crops, recipe=recipe, min_views=1)
    views.made = {key: values for key, values in views.made.items() if key == keys["image_key"]}
    n_missing = int((~views.has_image).sum())
    if n_missing == views.n_obs:
        raise ValueError(
            f"No observation of the {who} has image features: all rows of obsm[{keys['image_key']!r}] are NaN."
        )
    if n_missing and who == "query":
        warn(f"{n_missing} of {views.n_obs} observations of the query have no image: their prediction is NaN.")
    return views


def check_same_encoder(query: Any, reference: Any, key: str, table_key: str | None) -> None:
    """Refuse features of different encoders or crops, where the records tell; what is not there is made by the default one."""
    check_same_crops(query, reference, key, table_key)
    from stfuse.pp._feature_job import Request

    found = []
    for data in (query, reference):
        box = container(data, table_key)
        source = box.mod["image"] if is_mudata(box) and "image" in box.mod else box
        record = source.uns.get(key)
        default = Request().call.encoder if key == _keys.IMAGE and key not in source.obsm else None
        found.append(record.get("encoder", default) if isinstance(record, Mapping) else default)
    if None not in found and found[0] != found[1]:
        raise ValueError(
            f"obsm[{key!r}] is made by the encoder {found[0]!r} in the query and by {found[1]!r} in the reference: such features "
            "cannot be compared. Call stfuse.pp.image_features with one encoder on both."
        )


def check_same_crops(query: Any, reference: Any, key: str, table_key: str | None) -> None:
    """Refuse features of crops of unlike size, where both records tell how large their crops are."""
    sizes = []
    for data in (query, reference):
        box = container(data, table_key)
        source = box.mod["image"] if is_mudata(box) and "image" in box.mod else box
        record = source.uns.get(key)
        um = record.get("crop_um") if isinstance(record, Mapping) else None
        if not isinstance(um, Mapping) or not um:
            return
        sizes.append(float(np.median([float(size) for size in um.values()])))
    if max(sizes) > UNLIKE * min(sizes):
        raise ValueError(
            f"obsm[{key!r}] was made of crops of {sizes[0]:.4g} µm in the query and {sizes[1]:.4g} µm in the reference: such "
            "features cannot be compared. Call stfuse.pp.image_features with one crop_um= on both."
        )


def warn_of_copies(query: Any, reference: Any, key: str, table_key: str | None) -> None:
    """Warn where observations of the query are in the reference too: they are predicted from themselves."""
    one, other = container(query, table_key), container(reference, table_key)
    shared = one.obs_names.intersection(other.obs_names)
    if query is not reference:
        if not len(shared) or key not in one.obsm or key not in other.obsm:
            return
        a = np.asarray(one.obsm[key])[one.obs_names.get_indexer(shared)]
        b = np.asarray(other.obsm[key])[other.obs_names.get_indexer(shared)]
        shared = shared[(a == b).reshape(len(shared), -1).all(axis=1)] if a.shape == b.shape else shared[:0]
    if len(shared):
        warn(
            f"{len(shared)} observations of the query are in the reference too (for example {str(shared[0])!r}): they are predicted "
            "from themselves, which says nothing of new tissue."
        )


def _centred(query: Views, reference: Views) -> tuple[np.ndarray, np.ndarray]:
    """Take each batch's mean from its features; a batch that the reference lacks has its own."""
    if query.batch is None or reference.batch is None:
        return query.image, reference.image
    means = {name: reference.image[rows].mean(0) for name, rows in _batches(reference)}
    out = []
    for views in (query, reference):
        values = views.image.copy()
        for name, rows in _batches(views):
            values[rows] -= means.get(name, views.image[rows].mean(0))
        out.append(values)
    return out[0], out[1]


def _batches(views: Views) -> list[tuple[str, np.ndarray]]:
    """Names and rows of the batches that have images."""
    batch = views.batch if views.batch is not None else np.zeros(views.n_obs, np.int64)
    rows = [np.flatnonzero(views.has_image & (batch == code)) for code in range(len(views.batches))]
    return [(name, where) for name, where in zip(views.batches, rows, strict=True) if where.size]
