"""Attention-based multiple instance learning."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from scvi.data import AnnDataManager
from scvi.data.fields import ObsmField
from torch import Tensor

from stfuse import _keys
from stfuse._check import check_number, check_seed, check_text
from stfuse.model._base import pick
from stfuse.model._stored import StoredModel, silent_scvi
from stfuse.model._tile_bags import TileBags, encode_bags, moment_tiles, read_tile_bags
from stfuse.model._training import check_training
from stfuse.module import abmil
from stfuse.train._bags import BagBatches
from stfuse.train._fit import fit
from stfuse.train._task_plan import ClassTask, TaskPlan, TaskSettings


@dataclass(frozen=True)
class BagCodes:
    """What a model says of slides (s) and of all tiles of the data (n); NaN where a slide has no tile, or a tile none of it."""

    proba: pd.DataFrame
    embedding: pd.DataFrame
    attention: np.ndarray


class ABMIL(StoredModel):
    """Slides from their tiles by attention (Ilse et al. 2018).

    Each tile is projected and weighed by a gated attention; the weighted mean of a slide's tiles is its embedding, from which a
    linear head tells the class. A step takes some tiles of some slides, drawn anew each time; coding takes all tiles.
    :func:`stfuse.tl.mil` scores it on slides it has not seen.

    Parameters
    ----------
    adata
        Tiles prepared with `setup_anndata`. None only when loading.
    registry
        Stored set-up when a model is loaded without data (`load` passes it).
    n_hidden, n_attention
        Width of the projected tiles (and of a slide's embedding), and of the two branches of the attention.
    dropout
        Fraction dropped after the projection and in both branches.

    Notes
    -----
    Ilse, Tomczak and Welling (2018), Attention-based deep multiple instance learning. Features are standardised first, with mean
    and spread of the slides trained on.

    Examples
    --------
    >>> import stfuse
    >>> tiles = stfuse.datasets.synthetic_tissue(400, n_sections=8, seed=1)
    >>> tiles.obs["grade"] = ["low" if s[-1] in "0246" else "high" for s in tiles.obs["section"]]
    >>> stfuse.model.ABMIL.setup_anndata(tiles, slide_key="section", label_key="grade")
    >>> model = stfuse.model.ABMIL(tiles, n_hidden=16, n_attention=8)
    >>> model.train(max_epochs=3)
    >>> model.predict_proba().shape
    (8, 2)
    >>> model.attention().shape
    (400,)
    """

    _method = "abmil"
    module: abmil.ABMIL | None

    def __init__(
        self,
        adata: AnnData | None = None,
        registry: dict[str, Any] | None = None,
        *,
        n_hidden: int = 256,
        n_attention: int = 128,
        dropout: float = 0.25,
    ) -> None:
        check_number("n_hidden", n_hidden, least=1, whole=True)
        check_number("n_attention", n_attention, least=1, whole=True)
        check_number("dropout", dropout, least=0)
        if dropout >= 1:
            raise ValueError(f"dropout must be below 1, got {dropout}.")
        super().__init__(adata, registry, n_hidden=n_hidden, n_attention=n_attention, dropout=dropout)
        self.classes_: list[str] = []
        self.n_features_ = 0

    @classmethod
    def setup_anndata(
        cls,
        adata: AnnData,
        slide_key: str,
        label_key: str | None = None,
        image_key: str = _keys.IMAGE,
        **kwargs: Any,
    ) -> None:
        """Say which slide each tile belongs to, and how the slides are labelled.

        Parameters
        ----------
        adata
            Tiles, one an observation.
        slide_key
            Column of `obs` with the slide of each tile; a missing value = of none.
        label_key
            Column of `obs` with the class of the tile's slide, the same in all of its tiles; missing = not known, such a slide is
            not trained on. Training needs it, coding does not.
        image_key
            Key of the features in `obsm`, n x d; a row of NaN = left out.
        kwargs
            Passed on by scvi-tools when a model is loaded.
        """
        check_text("slide_key", slide_key)
        check_text("label_key", label_key, optional=True)
        check_text("image_key", image_key)
        setup_args = cls._get_setup_method_args(**locals())
        read_tile_bags(adata, **setup_args["setup_args"])
        # names of slides and patients stay out of the registry, which goes into the saved file
        manager = AnnDataManager(fields=[ObsmField("image", image_key)], setup_method_args=setup_args)
        with silent_scvi():
            manager.register_fields(adata, **kwargs)
        cls.register_manager(manager)

    def _tiles(self, adata: AnnData | None) -> TileBags:
        """Read the training data, or new data under the same keys, which need no labels."""
        arguments = self.setup_keys()
        if adata is None and self.adata is None:
            raise ValueError("The model was loaded without data: pass adata=.")
        data = self.adata if adata is None else adata
        if adata is not None:
            arguments["label_key"] = None
        return read_tile_bags(data, **arguments)

    # -- training -----------------------------------------------------------------------------------------------------

    def train(
        self,
        *,
        slides: Sequence[str] | pd.Index | None = None,
        held_out: Sequence[str] | pd.Index | None = None,
        max_epochs: int = 40,
        batch_size: int = 8,
        n_tiles: int | None = 2048,
        lr: float = 1e-3,
        weight_decay: float = 1e-2,
        class_weight: Literal["balanced"] | None = "balanced",
        patience: int = 10,
        seed: int = 0,
        device: str = "auto",
        progress: bool | None = None,
        **trainer_kwargs: Any,
    ) -> None:
        """Train.

        Parameters
        ----------
        slides
            Names of the slides to train on. None = all with a label and a tile, less `held_out`.
        held_out
            Names of slides with a label that are not trained on: the epoch with their lowest loss is kept. None = the last epoch
            is kept.
        max_epochs
            Epochs at most.
        batch_size
            Slides a step.
        n_tiles
            Tiles of a slide in a step, at most, drawn anew each time. None = all.
        lr, weight_decay
            Of AdamW.
        class_weight
            `"balanced"`: slides of a rare class weigh more, so that all classes weigh the same. None: all slides weigh the same.
        patience
            Epochs without a lower loss of `held_out` after which training stops.
        seed
            Seed of everything random.
        device
            `"auto"`, `"cpu"`, `"cuda"`, `"cuda:<index>"` or `"mps"`.
        progress
            Whether to show a bar. None = in a terminal or notebook.
        trainer_kwargs
            Passed to `lightning.pytorch.Trainer` (`devices=`, `strategy=`, `precision=`, `callbacks=`, `logger=`).

        Raises
        ------
        KeyError
            If a named slide has no tiles.
        ValueError
            If there are fewer than two classes, a named slide has no label or stands in both lists, or an argument is out of
            range.
        """
        for name, value, optional in (
            ("max_epochs", max_epochs, False),
            ("batch_size", batch_size, False),
            ("n_tiles", n_tiles, True),
        ):
            check_number(name, value, least=1, whole=True, optional=optional)
        check_number("patience", patience, least=1, whole=True)
        check_training(0.0, patience, weight_decay=weight_decay, lr=lr)
        check_seed(seed)
        if class_weight is not None:
            pick(("balanced",), class_weight, "class_weight")
        tiles = self._tiles(None)
        train, watch = _split(tiles, slides, held_out, self.setup_keys()["label_key"])
        self.seed_, self.n_features_ = seed, tiles.n_features
        known, labels = np.unique(tiles.labels[train], return_inverse=True)
        self.classes_ = [tiles.classes[code] for code in known]
        task, watched = self._task(tiles, train, watch, known, labels, class_weight)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            module = self._build(self._architecture())
            module.encoder.fit_moments(moment_tiles(tiles.bags, torch.from_numpy(train), seed))
            start = {k: v.clone() for k, v in module.state_dict().items()}
            plan = TaskPlan(module, task, TaskSettings(watched, seed, lr, weight_decay))
            history, keep = fit(
                plan,
                max_epochs=max_epochs,
                batches=BagBatches(tiles.bags, torch.from_numpy(train), batch_size, n_tiles, seed),
                device=device,
                seed=seed,
                patience=patience,
                progress=progress,
                desc="ABMIL",
                trainer_kwargs=trainer_kwargs,
            )
        self.report_ = {"n_slides": train.size, "n_held_out": watch.size}
        if keep is not None:
            module.load_state_dict(start if keep.state is None else keep.state)
            self.report_["epochs_kept"] = keep.best_epoch
        self._finish(module, history)

    @staticmethod
    def _task(
        tiles: TileBags,
        train: np.ndarray,
        watch: np.ndarray,
        known: np.ndarray,
        labels: np.ndarray,
        class_weight: str | None,
    ) -> tuple[ClassTask, Tensor]:
        """Classes as the head numbers them, and slides to watch: one whose class no slide shows cannot be scored."""
        of_class = np.full(max(len(tiles.classes), 1), -1)
        of_class[known] = np.arange(known.size)
        codes = np.where(tiles.labels >= 0, of_class[tiles.labels], -1)
        weights = np.ones(known.size)
        if class_weight == "balanced":
            weights = train.size / (known.size * np.bincount(labels))
        task = ClassTask(torch.from_numpy(codes), torch.from_numpy(weights.astype(np.float32)))
        return task, torch.from_numpy(watch[codes[watch] >= 0])

    # -- codes --------------------------------------------------------------------------------------------------------

    def codes(
        self, adata: AnnData | None = None, slides: Sequence[str] | pd.Index | None = None, device: str = "auto"
    ) -> BagCodes:
        """Code slides by all of their tiles, in memory that does not grow with the tiles of a slide.

        Parameters
        ----------
        adata
            Other tiles under the keys of the set-up; labels are not needed. None = the tiles of the set-up.
        slides
            Names of slides. None = all.
        device
            `"auto"`, `"cpu"`, `"cuda"`, `"cuda:<index>"` or `"mps"`.

        Returns
        -------
        Object with `proba` (DataFrame slides x classes), `embedding` (DataFrame slides x hidden, float32) and `attention` (n_tiles,
        float32, of sum one within a slide). NaN for slides without usable tiles, and for tiles that were not used.

        Raises
        ------
        RuntimeError
            If the model is not trained.
        ValueError
            If the features have another width than in training.
        KeyError
            If a named slide has no tiles.
        """
        if self.module is None:
            raise RuntimeError("ABMIL is not trained yet: call .train() first.")
        tiles = self._tiles(adata)
        if tiles.n_features != self.n_features_:
            raise ValueError(
                f"The tiles have {tiles.n_features} features, the model was trained on {self.n_features_}."
            )
        chosen = np.arange(len(tiles.names)) if slides is None else tiles.find(slides, "slides")
        bags = tiles.bags.select(torch.from_numpy(chosen))
        embedding, weights = encode_bags(self.module.encoder, bags, device)
        with torch.no_grad():
            proba: Tensor = self.module.head(embedding).softmax(1)
        attention = np.full(tiles.slide.size, np.nan, np.float32)
        attention[bags.rows.numpy()] = weights
        names = tiles.names[chosen]
        return BagCodes(
            pd.DataFrame(proba.numpy(), names, self.classes_), pd.DataFrame(embedding.numpy(), names), attention
        )

    def predict_proba(self, adata: AnnData | None = None) -> pd.DataFrame:
        """Tell the probability of each class of each slide.

        Parameters
        ----------
        adata
            Other tiles under the keys of the set-up; labels are not needed. None = the tiles of the set-up.

        Returns
        -------
        DataFrame slides x classes, rows that sum to one; NaN for a slide without usable tiles.
        """
        return self.codes(adata).proba

    def attention(self, adata: AnnData | None = None) -> np.ndarray:
        """Tell how much each tile counts in its slide.

        Parameters
        ----------
        adata
            Other tiles under the keys of the set-up; labels are not needed. None = the tiles of the set-up.

        Returns
        -------
        One value a tile, float32, that sum to one within a slide; NaN for tiles without features or slide.
        """
        return self.codes(adata).attention

    def get_latent_representation(self, adata: AnnData | None = None) -> pd.DataFrame:
        """Return the embedding of each slide: the mean of its projected tiles, weighted by attention.

        Parameters
        ----------
        adata
            Other tiles under the keys of the set-up; labels are not needed. None = the tiles of the set-up.

        Returns
        -------
        DataFrame slides x hidden, float32; NaN for a slide without usable tiles.
        """
        return self.codes(adata).embedding

    # -- what a saved model needs -------------------------------------------------------------------------------------

    def _architecture(self) -> dict[str, Any]:
        return {"n_features": self.n_features_, "n_classes": len(self.classes_)}

    def _build(self, architecture: dict[str, Any]) -> abmil.ABMIL:
        return abmil.ABMIL(**architecture, **self.params_)

    def _state(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        return {"n_features": self.n_features_, "classes": self.classes_}, {}

    def _restore(self, values: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        self.n_features_, self.classes_ = values["n_features"], values["classes"]


def _split(
    tiles: TileBags,
    slides: Sequence[str] | pd.Index | None,
    held_out: Sequence[str] | pd.Index | None,
    label_key: str | None,
) -> tuple[np.ndarray, np.ndarray]:
    """Positions of the slides to train on and of those to watch."""
    if label_key is None:
        raise ValueError("There are no labels to train on: pass label_key= to ABMIL.setup_anndata.")
    usable = (tiles.labels >= 0) & (tiles.bags.sizes.numpy() > 0)
    watch = tiles.find([] if held_out is None else held_out, "held_out")
    if slides is None:
        train = np.setdiff1d(np.flatnonzero(usable), watch)
    else:
        train = tiles.find(slides, "slides")
    both = np.intersect1d(train, watch)
    if both.size:
        raise ValueError(f"Slide {tiles.names[both[0]]!r} is both in slides and in held_out.")
    for name, chosen in (("slides", train), ("held_out", watch)):
        if not usable[chosen].all():
            bad = tiles.names[chosen[~usable[chosen]][0]]
            raise ValueError(
                f"{name} names {bad!r}, which has no label in obs[{label_key!r}] or no tile with features."
            )
    found = [tiles.classes[code] for code in np.unique(tiles.labels[train])]
    if len(found) < 2:
        there = f"only one class ({found[0]!r})" if found else "no class"
        raise ValueError(f"The slides to train on have {there} in obs[{label_key!r}]: at least two are needed.")
    return train, watch
