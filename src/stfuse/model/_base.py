"""What every fusion model shares: reading data, coding, translating."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from anndata import AnnData
from scvi.data import AnnDataManager
from scvi.data.fields import CategoricalObsField, NumericalObsField, ObsmField
from torch import Tensor

from stfuse import _keys
from stfuse._log import warn
from stfuse._views import Views, read_views
from stfuse.model._stored import StoredModel, silent_scvi

SMALL_BATCH = 3
MEANS = "batch_means."  # before the names of their tensors in a file

ViewName = Literal["image", "rna"]
CodeName = Literal["fused", "image", "rna", "private_image", "private_rna"]


@dataclass
class Codes:
    """Codes of n observations; NaN rows where a view is missing (fused: where both are)."""

    fused: np.ndarray
    image: np.ndarray | None = None
    rna: np.ndarray | None = None
    private_image: np.ndarray | None = None
    private_rna: np.ndarray | None = None


def pick(options: tuple[str, ...], value: str, name: str) -> str:
    """Check a choice."""
    if value not in options:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, options))}, got {value!r}.")
    return value


def fill_other(image: np.ndarray, rna: np.ndarray, views: Views) -> tuple[np.ndarray, np.ndarray]:
    """The fused code's two halves where no translation exists: a missing view takes the other view's shared code."""
    return (
        np.where(views.has_image[:, None], image, rna),
        np.where(views.has_rna[:, None], rna, image),
    )


class FusionModel(StoredModel):
    """Base of the fusion models; see the subclasses."""

    takes_crops: ClassVar[bool] = False  # whether the image view may be crops, for an encoder of the user's

    def __init__(self, adata: AnnData | None = None, registry: dict[str, Any] | None = None, **params: Any) -> None:
        super().__init__(adata, registry, **params)
        self.batch_means_: dict[str, np.ndarray] = {}
        self.batches_: list[str] = []

    # -- data ---------------------------------------------------------------------------------------------------------

    @classmethod
    def setup_anndata(
        cls,
        adata: AnnData,
        image_key: str = _keys.IMAGE,
        rna_key: str = _keys.RNA,
        batch_key: str | None = None,
        library_key: str | None = None,
        paired_key: str | None = None,
        **kwargs: Any,
    ) -> None:
        """Say where the two views are.

        Parameters
        ----------
        adata
            Annotated data.
        image_key, rna_key
            Keys of the features in `obsm`, n x d each; a row of NaN = that view is missing there.
        batch_key
            Column of `obs`; features are centred within each batch before anything else.
        library_key
            Column of `obs` that tells sections apart; neighbours are looked for inside a section.
        paired_key
            Boolean column of `obs`: which observations with both views may be used as pairs in training.
        kwargs
            Passed on by scvi-tools when a model is loaded.
        """
        cls._register(adata, cls._get_setup_method_args(**locals()), **kwargs)

    @classmethod
    def _register(cls, adata: AnnData, setup_args: dict[str, Any], **kwargs: Any) -> None:
        """Read the views once, and leave the keys with scvi-tools, which wants to know of matrices only."""
        keys = setup_args["setup_args"]
        raw = read_views(adata, **keys, crops=cls.takes_crops).raw
        fields: list[Any] = [ObsmField(view, keys[f"{view}_key"]) for view in _keys.VIEWS if view not in raw]
        fields += [CategoricalObsField("batch", keys["batch_key"])] if keys["batch_key"] else []
        fields += [CategoricalObsField("section", keys["library_key"])] if keys["library_key"] else []
        fields += [NumericalObsField("paired", keys["paired_key"], required=False)] if keys["paired_key"] else []
        manager = AnnDataManager(fields=fields, setup_method_args=setup_args)
        with silent_scvi():
            manager.register_fields(adata, **kwargs)
        cls.register_manager(manager)

    def _views(self, adata: AnnData | None) -> Views:
        """Read the training data, or new data under the same keys (new data may lack one view and the pairs)."""
        arguments = self.setup_keys()
        if adata is None:
            if self.adata is None:
                raise ValueError("The model was loaded without data: pass adata=.")
            return read_views(self.adata, **arguments, crops=self.takes_crops)
        if arguments["paired_key"] not in adata.obs:
            arguments["paired_key"] = None
        for name in ("batch_key", "library_key"):
            if arguments[name] is not None and arguments[name] not in adata.obs:
                raise KeyError(
                    f"No obs column {arguments[name]!r}: the model was trained with {name}={arguments[name]!r}, so data to code "
                    "need that column too (one value everywhere, if they are one section)."
                )
        return read_views(adata, **arguments, crops=self.takes_crops, min_views=1)

    def _centred(self, views: Views, *, fit: bool = False) -> Views:
        """Centre features within each batch; a batch not seen in training is centred on its own mean."""
        if views.batch is None:
            return views
        if fit:
            self.batches_ = views.batches
            _tell_small_batches(views)
        arrays = {}
        for name, x, has in (("image", views.image, views.has_image), ("rna", views.rna, views.has_rna)):
            rows = [np.flatnonzero(has & (views.batch == code)) for code in range(len(views.batches))]
            own = np.array([x[r].mean(0, dtype=np.float64) if r.size else np.full(x.shape[1], np.nan) for r in rows])
            if fit:
                self.batch_means_[name] = np.vstack([own, x[has].mean(0, dtype=np.float64)[None]])
            known = dict(zip(self.batches_, self.batch_means_[name][:-1], strict=True))
            arrays[name] = x.copy()
            for batch, r, mean in zip(views.batches, rows, own, strict=True):
                if r.size:
                    trained = known.get(batch, mean)
                    # a batch that never showed this view in training is as new as one with another name
                    mean = mean if np.isnan(trained).any() else trained
                    arrays[name][r] -= (mean - self.batch_means_[name][-1]).astype(np.float32)
        return Views(**{**vars(views), **arrays})

    def _check_new(self, views: Views) -> None:
        """Refuse new data whose features have another width than those of the training data."""
        for name, x in (("image", views.image), ("rna", views.rna)):
            expected = self.n_features_[name]
            if x.shape[1] not in (0, expected):
                raise ValueError(f"The {name} view has {x.shape[1]} features, the model was trained on {expected}.")

    # -- training and codes -------------------------------------------------------------------------------------------

    @abstractmethod
    def _codes(self, views: Views) -> Codes:
        """Compute all codes."""

    def _translate(self, views: Views, source: str) -> np.ndarray:
        """Predict the features of the other view from ``source``, n x d, NaN where the source is missing."""
        raise NotImplementedError(f"{type(self).__name__} has no translation from {source}.")

    def _begin(self, seed: int) -> Views:
        self.seed_, self.report_, self.batch_means_ = seed, {}, {}
        views = self._views(None)
        self.n_features_ = {"image": views.image.shape[1], "rna": views.rna.shape[1]}
        return self._centred(views, fit=True)

    def _state(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        means = {f"{MEANS}{k}": torch.from_numpy(v) for k, v in self.batch_means_.items()}
        return {"n_features": self.n_features_, "batches": self.batches_}, means

    def _restore(self, values: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        self.n_features_, self.batches_ = values["n_features"], values["batches"]
        self.batch_means_ = {k.removeprefix(MEANS): v.numpy() for k, v in tensors.items() if k.startswith(MEANS)}

    def _ready(self, adata: AnnData | None) -> Views:
        if self.module is None:
            raise RuntimeError(f"{type(self).__name__} is not trained yet: call .train() first.")
        views = self._views(adata)
        self._check_new(views)
        return self._centred(views)

    def codes(self, adata: AnnData | None = None) -> Codes:
        """Compute every code of the data.

        Parameters
        ----------
        adata
            New data under the keys of the set-up (one view may be absent altogether). None = the training data.

        Returns
        -------
        Object with `fused`, `image`, `rna`, `private_image`, `private_rna`: arrays n x width (float32), or None where the
        method has no such code. Rows of NaN where the view is missing.

        Raises
        ------
        RuntimeError
            If the model is not trained.
        ValueError
            If the features have another width than in training.
        """
        return self._codes(self._ready(adata))

    def get_latent_representation(self, adata: AnnData | None = None, view: CodeName = "fused") -> np.ndarray:
        """Return one code of the data.

        Parameters
        ----------
        adata
            New data under the keys of the set-up. None = the training data.
        view
            `"fused"`, `"image"`, `"rna"` (shared codes), `"private_image"` or `"private_rna"`.

        Returns
        -------
        n x width, float32; rows of NaN where the view is missing.

        Raises
        ------
        ValueError
            If the method has no such code.
        """
        pick(("fused", "image", "rna", "private_image", "private_rna"), view, "view")
        found = getattr(self.codes(adata), view)
        if found is None:
            raise ValueError(f"{type(self).__name__} has no code named {view!r}.")
        return found

    def translate(
        self, adata: AnnData | None = None, *, source: ViewName = "image", target: ViewName = "rna"
    ) -> np.ndarray:
        """Predict the features of one view from the other.

        Parameters
        ----------
        adata
            New data under the keys of the set-up; only the source view is needed. None = the training data.
        source, target
            `"image"` and `"rna"`, one each.

        Returns
        -------
        n x d, float32, in the units of the target view's features; rows of NaN where the source view is missing. With a
        `batch_key` they are centred as the batch is; of a batch that training did not see, as all of the training data are.

        Raises
        ------
        ValueError
            If source and target are not the two views, or no observation has the source.
        NotImplementedError
            If the method cannot translate.
        """
        pick(_keys.VIEWS, source, "source")
        pick(_keys.VIEWS, target, "target")
        if source == target:
            raise ValueError(f"source and target are both {source!r}: one is 'image', the other 'rna'.")
        views = self._ready(adata)
        if not (views.has_image if source == "image" else views.has_rna).any():
            raise ValueError(f"No observation has the {source} view, from which to translate into {target}.")
        return self._translate(views, source) + self._offset(views, target)

    def _offset(self, views: Views, target: str) -> np.ndarray:
        """What centring took from the target features of each observation's batch: its mean, where training saw it."""
        offset = np.zeros((views.n_obs, self.n_features_[target]), np.float32)
        if views.batch is None:
            return offset
        means = self.batch_means_[target]
        for code, batch in enumerate(views.batches):
            if batch in self.batches_ and np.isfinite(shift := means[self.batches_.index(batch)] - means[-1]).all():
                offset[views.batch == code] = shift
        return offset


def _tell_small_batches(views: Views) -> None:
    """A batch of one observation is centred on itself: nothing of it is left."""
    if views.batch is None:
        return
    both = np.stack(
        [np.bincount(views.batch[has], minlength=len(views.batches)) for has in (views.has_image, views.has_rna)]
    )
    small = [name for name, n in zip(views.batches, both.T, strict=True) if ((n > 0) & (n < SMALL_BATCH)).any()]
    if small:
        warn(
            f"{len(small)} batch(es) have fewer than {SMALL_BATCH} observations with a view (for example {small[0]!r}): centring within "
            "a batch leaves little of them. Use a coarser batch_key."
        )


def masked(code: Tensor | np.ndarray, has: np.ndarray) -> np.ndarray:
    """float32 rows, NaN where the view is missing."""
    out = code.detach().cpu().numpy() if isinstance(code, Tensor) else code
    return np.where(has[:, None], out, np.nan).astype(np.float32)
