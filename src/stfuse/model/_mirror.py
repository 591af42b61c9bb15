"""MIRROR: slides and RNA, aligned without losing what is their own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import torch
from anndata import AnnData
from scvi.data import AnnDataManager
from torch import Tensor

from stfuse import _keys, _read
from stfuse._check import check_seed, check_text
from stfuse._log import warn
from stfuse.model._base import pick
from stfuse.model._mirror_codes import MirrorCodes, code_slides, encode_slides
from stfuse.model._mirror_settings import check_architecture, check_run
from stfuse.model._slide_views import SlideViews, gene_names, read_genes, read_slides
from stfuse.model._stored import StoredModel, silent_scvi
from stfuse.model._tile_bags import moment_tiles
from stfuse.model._training import split_groups
from stfuse.module.mirror import Beside, Mirror
from stfuse.train._bags import BagBatches
from stfuse.train._fit import fit
from stfuse.train._mirror_plan import MirrorPlan, MirrorSettings, SlideRna, Weights

MIN_PAIRS = 4
WARMUP = 0.1  # share of all steps over which the learning rate rises


class MIRROR(StoredModel):
    """Alignment of slides with RNA that keeps what each view has of its own.

    A slide encoder pools tiles to a code (attention, or a transformer), an RNA encoder turns expression into one. Heads align both, each
    view has to reconstruct what is hidden of itself (retention), and both have to agree on prototypes through a small distribution
    (style). Slides with one view take part in what they can. See :func:`stfuse.tl.mirror`.

    Parameters
    ----------
    slides
        Slides registered with `setup_anndata`. None only when loading.
    tiles
        Their tiles, with features in `obsm`, in memory or on disk (zarr, dask).
    registry
        Stored set-up when a model is loaded without data (`load` passes it).
    slide_encoder
        `"abmil"` (gated attention, cost linear in the tiles) or `"transmil"` (Nystrom attention, as published). None = `"abmil"`, with
        `faithful` `"transmil"`.
    dim
        Width of both codes, a multiple of 8. None = 256, with `faithful` 768.
    n_prototypes
        Number of prototypes.
    mask_ratio
        Share of tokens of a slide, and of entries of the RNA code, that is hidden for retention.
    weights
        Weights of the losses `align`, `retain_image`, `retain_rna`, `style`, `cluster`: five numbers, or a dict of some. None = 0.5, 0.15,
        0.15, 0.1, 0.1.
    detach
        Whether retention takes what it has to reconstruct as it is, and cannot make its task easier by shrinking it. None = True, with
        `faithful` False.
    n_tiles
        Tiles of a slide in a step, at most, drawn anew each time. None = all. Coding takes all.
    faithful
        Every published choice that is not given: TransMIL of width 768; networks on features as they are, not beside principal components;
        codes not brought to unit length after their head, and no part of the fused code; slides with fewer than `n_tiles` tiles give some twice; and in training Adam at
        2e-5, 100 epochs of batches of 16, with nothing held out.

    Notes
    -----
    Wang et al. (2025), MIRROR: Multi-modal pathological self-supervised representation learning via modality alignment and retention.

    Examples
    --------
    >>> import stfuse
    >>> slides, tiles = stfuse.datasets.synthetic_slides(40, seed=1)
    >>> stfuse.model.MIRROR.setup_anndata(slides, slide_key="slide")
    >>> model = stfuse.model.MIRROR(slides, tiles, dim=32, n_prototypes=50)
    >>> model.train(max_epochs=2)
    >>> model.get_latent_representation().shape
    (40, 128)
    """

    _method = "mirror"
    module: Mirror | None

    def __init__(
        self,
        slides: AnnData | None = None,
        tiles: AnnData | None = None,
        registry: dict[str, Any] | None = None,
        *,
        slide_encoder: Literal["abmil", "transmil"] | None = None,
        dim: int | None = None,
        n_prototypes: int = 3000,
        mask_ratio: float = 0.75,
        weights: Sequence[float] | Mapping[str, float] | None = None,
        detach: bool | None = None,
        n_tiles: int | None = 2048,
        faithful: bool = False,
    ) -> None:
        params = {
            "slide_encoder": slide_encoder,
            "dim": dim,
            "n_prototypes": n_prototypes,
            "mask_ratio": mask_ratio,
            "weights": weights,
            "detach": detach,
            "n_tiles": n_tiles,
            "faithful": faithful,
        }
        super().__init__(slides, registry, **check_architecture(params))
        self.tiles = tiles
        self.n_features_ = {"image": 0, "rna": 0}
        self.n_positions_ = 0
        self.genes_: list[str] | None = None
        self.device_ = "cpu"

    @classmethod
    def setup_anndata(
        cls,
        adata: AnnData,
        slide_key: str,
        image_key: str = _keys.IMAGE,
        rna_key: str | None = None,
        mask_var: str | None = None,
        groups: str | None = None,
        paired_key: str | None = None,
        **kwargs: Any,
    ) -> None:
        """Say where everything is.

        Parameters
        ----------
        adata
            Slides, one an observation.
        slide_key
            Column of the tiles' `obs` with names of slides.
        image_key
            Key of the features in the tiles' `obsm`, n x d; a row of NaN = the tile is left out.
        rna_key
            Key of the RNA in the slides' `obsm`, s x g; a row of NaN = no RNA. None = `X`.
        mask_var
            Boolean column of the slides' `var`: which genes of `X` are used. None = all.
        groups
            Column of the slides' `obs`, usually the patient, whose slides are held out together.
        paired_key
            Boolean column of the slides' `obs`: which slides with both views may be used as pairs.
        kwargs
            Passed on by scvi-tools when a model is loaded.
        """
        setup_args = cls._get_setup_method_args(**locals())
        check_text("slide_key", slide_key)
        check_text("image_key", image_key)
        for name, key in (("rna_key", rna_key), ("mask_var", mask_var), ("groups", groups), ("paired_key", paired_key)):
            check_text(name, key, optional=True)
        _read.check_names(adata.obs_names, "slides")
        _, has = read_genes(adata, rna_key, mask_var)
        if not has.any():
            where = "X" if rna_key is None else f"obsm[{rna_key!r}] (rna_key)"
            raise ValueError(f"No slide has RNA: all rows of slides.{where} are NaN.")
        # names of patients stay out of the registry, which goes into the saved file
        manager = AnnDataManager(fields=[], setup_method_args=setup_args)
        with silent_scvi():
            manager.register_fields(adata, **kwargs)
        cls.register_manager(manager)

    def _data(self, slides: AnnData | None, tiles: AnnData | None, *, training: bool = False) -> SlideViews:
        """Read both views; new data may lack one."""
        keys = self.setup_keys()
        keys.pop("groups")
        if not training:
            keys["paired_key"] = None
        # new slides are read by the names of genes, whatever their order and whatever a mask says of them
        views = read_slides(slides, tiles, **keys, names=None if training else self.genes_)
        if not training:
            for view, there in (("image", tiles is not None), ("rna", slides is not None)):
                if there and views.widths[view] != self.n_features_[view]:
                    raise ValueError(
                        f"The {view} view has {views.widths[view]} features, the model was trained on {self.n_features_[view]}."
                    )
        return views

    # -- training -----------------------------------------------------------------------------------------------------

    def train(
        self,
        *,
        max_epochs: int | None = None,
        batch_size: int | None = None,
        lr: float | None = None,
        weight_decay: float | None = None,
        validation_fraction: float | None = None,
        patience: int = 10,
        seed: int = 0,
        device: str = "auto",
        progress: bool | None = None,
        **trainer_kwargs: Any,
    ) -> None:
        """Train.

        Parameters
        ----------
        max_epochs
            Epochs at most. None = 30, with `faithful` 100.
        batch_size
            Slides a step. None = 32, with `faithful` 16.
        lr
            Highest learning rate; with `faithful` it is constant. None = 1e-3, with `faithful` 2e-5.
        weight_decay
            Of AdamW. None = 0.01, with `faithful` 0.
        validation_fraction
            Fraction of the pairs (whole `groups`) held out to stop on. 0 = train blindly. None = 0.1, with `faithful` 0.
        patience
            Epochs after which training stops, if held-out slides do not find their partners better. The best epoch is kept.
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
        ValueError
            If there are no tiles, fewer than four slides have both views, or an argument is out of range.
        """
        p = self.params_
        run = check_run(
            {
                "max_epochs": max_epochs,
                "batch_size": batch_size,
                "lr": lr,
                "weight_decay": weight_decay,
                "validation_fraction": validation_fraction,
                "patience": patience,
            },
            p["faithful"],
        )
        check_seed(seed)
        if self.adata is None or self.tiles is None:
            raise ValueError("There is nothing to train on: MIRROR takes slides and tiles.")
        views = self._data(self.adata, self.tiles, training=True)
        if views.paired.sum() < MIN_PAIRS:
            counts = views.counts()
            raise ValueError(
                f"MIRROR needs {MIN_PAIRS} slides with both tiles and RNA, and there are {counts['paired']} (of {counts['total']} slides "
                f"{counts['image']} have tiles, {counts['rna']} RNA)."
            )
        pairs, held_out, unseen = self._split(views, run["validation_fraction"], seed)
        self.seed_, self.n_features_ = seed, views.widths
        self.genes_ = gene_names(self.adata, self.setup_keys()["rna_key"], self.setup_keys()["mask_var"])
        sizes = views.bags.sizes
        self.n_positions_ = int(min(sizes.max(), p["n_tiles"] or sizes.max()))
        if p["faithful"]:
            self.n_positions_ = p["n_tiles"]
        known = (views.has_image | views.has_rna) & ~unseen
        settings = MirrorSettings(
            Weights(**p["weights"]), p["mask_ratio"], p["detach"], run["lr"], run["weight_decay"],
            None if p["faithful"] else WARMUP, seed,
        )  # fmt: skip
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            module = self._build(self._architecture())
            if not p["faithful"]:
                fit_start(module, views, known, seed)
            paired = torch.zeros(len(views.names), dtype=torch.bool)
            paired[torch.from_numpy(pairs)] = True
            rna = SlideRna(
                torch.from_numpy(views.genes), torch.from_numpy(views.has_rna), paired, torch.from_numpy(held_out)
            )
            history, keep = fit(
                MirrorPlan(module, rna, settings),
                max_epochs=run["max_epochs"],
                batches=BagBatches(
                    views.bags,
                    torch.from_numpy(np.flatnonzero(known)),
                    run["batch_size"],
                    p["n_tiles"],
                    seed,
                    fill=p["faithful"],
                ),
                device=device,
                seed=seed,
                patience=run["patience"],
                progress=progress,
                desc="MIRROR",
                trainer_kwargs=trainer_kwargs,
            )
        self.report_ = {
            "n_pairs": float(pairs.size),
            "n_held_out": float(held_out.size),
            "epochs_kept": float(len(history)),
        }
        if keep is not None and keep.state is not None:
            module.load_state_dict(keep.state)
            self.report_["epochs_kept"] = float(keep.best_epoch)
        elif keep is not None:
            warn(
                "Held-out slides found their partners no better after any epoch than before training, and the last epoch is kept: there are "
                "too few slides or epochs to tell, or tiles and RNA have nothing in common."
            )
        self.device_ = device
        module.style.normalize()
        fit_fusion(module.eval(), views, known, pairs, device)
        self._finish(module, history)

    def _split(self, views: SlideViews, fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Pairs to train on, pairs held out, and which slides are not seen: all of the groups of these, pairs or not."""
        groups = self.setup_keys()["groups"]
        group = np.arange(len(views.names))
        if groups is not None:
            group, _ = _read.read_codes(_read.read_column(self.adata, groups), groups, "groups")
        pairs, held_out = split_groups(views.paired, None if groups is None else group, fraction, seed)
        return pairs, held_out, np.isin(group, group[held_out])

    # -- codes --------------------------------------------------------------------------------------------------------

    def codes(
        self, slides: AnnData | None = None, tiles: AnnData | None = None, device: str | None = None
    ) -> MirrorCodes:
        """Compute every code of the data, from all tiles of each slide.

        Parameters
        ----------
        slides, tiles
            New data under the keys of the set-up; either may be left out. None for both = the training data. Genes of `X` are found by
            name.
        device
            Where slides are encoded. None = where the model was trained, of a loaded one the CPU.

        Returns
        -------
        Object with the `names` of the slides; `image`, `rna` (s x dim, of unit length, comparable), `fused` (s x 4 dim, with `faithful`
        s x 2 dim); `private_image`, `private_rna` (what the encoders give); `prototype` (number of the likest, -1 = none) and `attention` (one value a tile, of sum one
        within a slide). NaN where a view is missing.

        Raises
        ------
        RuntimeError
            If the model is not trained.
        ValueError
            If the data have another width than in training, or lack one of its genes.
        """
        if self.module is None:
            raise RuntimeError("MIRROR is not trained yet: call .train() first.")
        if slides is None and tiles is None:
            if self.adata is None and self.tiles is None:
                raise ValueError("The model was loaded without data: pass slides=, tiles= or both.")
            slides, tiles = self.adata, self.tiles
        return code_slides(self.module, self._data(slides, tiles), device or self.device_)

    def get_latent_representation(
        self,
        slides: AnnData | None = None,
        tiles: AnnData | None = None,
        view: Literal["fused", "image", "rna", "private_image", "private_rna"] = "fused",
    ) -> np.ndarray:
        """Return one code of the slides.

        Parameters
        ----------
        slides, tiles
            New data under the keys of the set-up. None for both = the training data.
        view
            `"fused"`, `"image"` or `"rna"` (what both views are compared by), `"private_image"` or `"private_rna"` (what the encoders give).

        Returns
        -------
        s x width, float32, a row of NaN where the view is missing.
        """
        pick(("fused", "image", "rna", "private_image", "private_rna"), view, "view")
        return getattr(self.codes(slides, tiles), view)

    def attention(self, tiles: AnnData | None = None) -> np.ndarray:
        """Tell how much each tile counts in its slide.

        Parameters
        ----------
        tiles
            Other tiles under the keys of the set-up. None = the tiles of the training.

        Returns
        -------
        One value a tile, float32, that sum to one within a slide; NaN for tiles without features or slide.
        """
        return self.codes(None, tiles).attention

    # -- what a saved model needs -------------------------------------------------------------------------------------

    def _architecture(self) -> dict[str, Any]:
        return {"n_features": self.n_features_, "n_positions": self.n_positions_}

    def _build(self, architecture: dict[str, Any]) -> Mirror:
        p, widths = self.params_, architecture["n_features"]
        return Mirror(
            widths["image"],
            widths["rna"],
            slide_encoder=p["slide_encoder"],
            dim=p["dim"],
            n_prototypes=p["n_prototypes"],
            n_positions=architecture["n_positions"],
            linear_start=not p["faithful"],
            unit=not p["faithful"],
        )

    def _state(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        return {"genes": self.genes_}, {}

    def _restore(self, values: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        a = values["architecture"]
        self.n_features_, self.n_positions_, self.genes_ = a["n_features"], a["n_positions"], values["genes"]

    @classmethod
    def load(
        cls, dir_path: str | Path, adata: AnnData | None = None, tiles: AnnData | None = None, **kwargs: Any
    ) -> Self:  # fmt: skip
        """Load a saved model; the training data are not needed.

        Parameters
        ----------
        dir_path
            Folder written by `save`.
        adata, tiles
            Slides and tiles to attach, under the same keys as in training. None = pass data to each call.
        kwargs
            None; other options of scvi-tools are refused.

        Returns
        -------
        The model, ready to code.

        Raises
        ------
        FileNotFoundError
            If the folder holds no model.
        ValueError
            If a file is truncated or altered, or the folder holds another class of model.
        TypeError
            If an option is given that is not one of these.
        """
        if kwargs:
            return super().load(dir_path, adata, **kwargs)
        return cls._load(dir_path, adata, tiles=tiles)


def fit_start(module: Mirror, views: SlideViews, known: np.ndarray, seed: int) -> None:
    """Standardise by the slides trained on, and take components of their tiles and of their RNA."""
    some = moment_tiles(views.bags, torch.from_numpy(np.flatnonzero(known & views.has_image)), seed)
    genes = torch.from_numpy(views.genes[known & views.has_rna])
    for part, rows in ((module.slides, some), (module.genes, genes)):
        part.fit_moments(rows)
        start = part.project if part is module.slides else part.encode
        if isinstance(start, Beside):
            start.fit(part.standard(rows), seed)


@torch.no_grad()
def fit_fusion(module: Mirror, views: SlideViews, known: np.ndarray, pairs: np.ndarray, device: str) -> None:
    """Scale the fused code by the slides trained on, and learn what one view's code tells of the other's."""
    image = np.flatnonzero(known & views.has_image)
    codes, _ = encode_slides(module, views.bags.select(torch.from_numpy(image)), device)
    own = {"image": codes, "rna": module.genes(torch.from_numpy(views.genes[known & views.has_rna]))}
    of_pairs = {
        "image": codes[np.searchsorted(image, pairs)],
        "rna": module.genes(torch.from_numpy(views.genes[pairs])),
    }
    module.fit_fusion(own, of_pairs)
