"""SIGMMA: tiles and the graphs of their cells, aligned at three scales."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import torch
from anndata import AnnData
from scvi.data import AnnDataManager
from scvi.data.fields import ObsmField
from torch import Tensor, nn

from stfuse import _keys
from stfuse._cell_graph import SCALES, Scale
from stfuse._check import check_seed, check_text
from stfuse._log import warn
from stfuse.model._base import pick
from stfuse.model._sigmma_codes import TileCodes, beside, code_tiles
from stfuse.model._sigmma_parts import check_architecture, check_run, fit_moments, image_width
from stfuse.model._stored import StoredModel, silent_scvi
from stfuse.model._tile_cells import TileCells, join, read_cells, read_image
from stfuse.model._training import split_pairs
from stfuse.model._umpire_encoders import torch_device
from stfuse.module import sigmma
from stfuse.train._batches import StepBatches
from stfuse.train._fit import fit
from stfuse.train._sigmma_plan import SigmmaPlan

EPOCHS, EPOCHS_BLIND = 200, 50  # with tiles held out to stop on, and without
MIN_PAIRS = 4


class SIGMMA(StoredModel):
    """Alignment of image tiles with the graphs of their cells, at three scales that both views have in common.

    A network on the graph of a tile's cells codes each cell; first along edges inside small blocks (micro), then edges are added inside
    blocks four times as large (meso), then in the whole tile (macro). Attention pools cells to a code of the tile at each scale, which
    has to meet the mean of the image's crops of the same size. See :func:`stfuse.tl.sigmma`.

    Parameters
    ----------
    cells
        Cells registered with `setup_anndata`. None only when loading.
    tiles
        Their tiles, with image features or crops in `obsm`.
    registry
        Stored set-up when a model is loaded without data (`load` passes it).
    scales
        Scales at which tiles are aligned.
    graph
        Whether cells hear of each other. False = a tile is a bag of cells.
    edge_addition
        `"sampled"` (edges are drawn by a learnt score), `"all"` (all candidates) or `"none"` (the smallest blocks' at all scales).
    layer
        `"sage"` (mean of neighbours) or `"gatv2"` (attention).
    embed_dim
        Width of a tile's code at each scale.
    n_hidden
        Width of a cell's code.
    gumbel_temperature
        Temperature of the relaxed draw of edges.
    dropout
        Fraction dropped in the layers and before the projection of the image.
    image_encoder
        Module from crops (n x channels x size x size, floats; bytes become 0 to 1) to n x any width, trained with the rest. None = the
        image view is features.
    crop_size
        With `image_encoder`: pixels to which every crop is brought. None = the size of a tile.

    Notes
    -----
    Jeong et al. (2025), SIGMMA: Hierarchical graph-based multi-scale multi-modal contrastive alignment.

    Examples
    --------
    >>> import stfuse
    >>> cells, tiles = stfuse.datasets.synthetic_cells(40)
    >>> stfuse.pp.cell_graph(cells, tile_key="tile", tiles=tiles)
    >>> stfuse.model.SIGMMA.setup_anndata(cells, tile_key="tile")
    >>> model = stfuse.model.SIGMMA(cells, tiles, embed_dim=32, n_hidden=32)
    >>> model.train(max_epochs=2)
    >>> model.get_latent_representation(view="rna").shape
    (40, 96)
    """

    _method = "sigmma"
    module: sigmma.Sigmma | None

    def __init__(
        self,
        cells: AnnData | None = None,
        tiles: AnnData | None = None,
        registry: dict[str, Any] | None = None,
        *,
        scales: Sequence[Scale] = SCALES,
        graph: bool = True,
        edge_addition: Literal["sampled", "all", "none"] = "sampled",
        layer: Literal["sage", "gatv2"] = "sage",
        embed_dim: int = 128,
        n_hidden: int = 128,
        gumbel_temperature: float = 0.5,
        dropout: float = 0.1,
        image_encoder: nn.Module | None = None,
        crop_size: int | None = None,
    ) -> None:
        params = {
            "scales": scales,
            "graph": graph,
            "edge_addition": edge_addition,
            "layer": layer,
            "embed_dim": embed_dim,
            "n_hidden": n_hidden,
            "gumbel_temperature": gumbel_temperature,
            "dropout": dropout,
            "crop_size": crop_size,
        }
        super().__init__(cells, registry, **check_architecture(params, image_encoder))
        self.tiles = tiles
        self.encoder_ = image_encoder
        self.n_features_ = {"image": 0, "rna": 0}
        self.n_blocks_ = 0
        self.crop_shape_: list[int] | None = None
        self.device_ = "cpu"

    @classmethod
    def setup_anndata(
        cls,
        adata: AnnData,
        tile_key: str,
        image_key: str = _keys.IMAGE_GRID,
        rna_key: str = _keys.RNA,
        graph_key: str = _keys.CELL_GRAPH,
        paired_key: str | None = None,
        **kwargs: Any,
    ) -> None:
        """Say where everything is.

        Parameters
        ----------
        adata
            Cells.
        tile_key
            Column of the cells' `obs` with names of tiles.
        image_key
            Key in the tiles' `obsm`: features of crops, t x crops x d (:func:`stfuse.pp.image_features` with a `grid`), or, for an
            `image_encoder`, the tiles themselves, t x channels x height x width. A row of NaN = no image.
        rna_key
            Key of the cells' features in their `obsm`, n x d; a row of NaN = the cell is left out.
        graph_key
            Name of the graph that :func:`stfuse.pp.cell_graph` made.
        paired_key
            Boolean column of the tiles' `obs`: which may be trained on.
        kwargs
            Passed on by scvi-tools when a model is loaded.
        """
        setup_args = cls._get_setup_method_args(**locals())
        for name, key in (
            ("tile_key", tile_key),
            ("image_key", image_key),
            ("rna_key", rna_key),
            ("graph_key", graph_key),
        ):
            check_text(name, key)
        check_text("paired_key", paired_key, optional=True)
        read_cells(adata, None, tile_key, rna_key, graph_key)
        manager = AnnDataManager(fields=[ObsmField("rna", rna_key)], setup_method_args=setup_args)
        with silent_scvi():
            manager.register_fields(adata, **kwargs)
        cls.register_manager(manager)

    @property
    def scale_numbers(self) -> tuple[int, ...]:
        """Scales at which tiles are aligned, by their place in micro, meso, macro."""
        return tuple(SCALES.index(name) for name in self.params_["scales"])

    def _per_side(self, n_blocks: int) -> list[int]:
        """Crops along a side at each scale asked for."""
        return [(n_blocks, 2, 1)[number] for number in self.scale_numbers]

    def _data(self, cells: AnnData | None, tiles: AnnData | None, *, training: bool = False) -> TileCells:
        """Read both views; new data may lack one."""
        keys = self.setup_keys()
        found = None
        if cells is not None:
            found = read_cells(cells, tiles, keys["tile_key"], keys["rna_key"], keys["graph_key"])
            if self.n_blocks_ not in (0, found.n_blocks):
                raise ValueError(
                    f"The cells' graph has {found.n_blocks} x {found.n_blocks} blocks a tile, that of the training had "
                    f"{self.n_blocks_}: call stfuse.pp.cell_graph with n_blocks={self.n_blocks_}."
                )
        n_blocks = found.n_blocks if found is not None else self.n_blocks_
        image = None
        if tiles is not None and (training or found is None or keys["image_key"] in tiles.obsm):
            image = read_image(tiles, keys["image_key"], self._per_side(n_blocks), self.encoder_ is not None)
        data = join(found, tiles, image, keys["paired_key"] if training else None)
        if not training:
            self._check_new(data, image is not None)
        return data

    def _check_new(self, data: TileCells, has_image: bool) -> None:
        width = data.image.shape[2] if self.encoder_ is None else None
        if has_image and width not in (None, self.n_features_["image"]):
            raise ValueError(
                f"The image view has {width} features, the model was trained on {self.n_features_['image']}."
            )
        if has_image and self.encoder_ is not None and list(data.image.shape[1:]) != self.crop_shape_:
            raise ValueError(f"Tiles are {list(data.image.shape[1:])}, the model was trained on {self.crop_shape_}.")
        if data.cells is not None and data.n_features != self.n_features_["rna"]:
            raise ValueError(
                f"The cells have {data.n_features} features, the model was trained on {self.n_features_['rna']}."
            )

    # -- training -----------------------------------------------------------------------------------------------------

    def train(
        self,
        *,
        max_epochs: int | None = None,
        batch_size: int = 64,
        lr: float = 1e-3,
        weight_decay: float = 0.01,
        warmup: float = 0.1,
        validation_fraction: float = 0.2,
        patience: int = 20,
        seed: int = 0,
        device: str = "auto",
        progress: bool | None = None,
        **trainer_kwargs: Any,
    ) -> None:
        """Train.

        Parameters
        ----------
        max_epochs
            Epochs at most. None = 200, or 50 where there are too few tiles to hold some out.
        batch_size
            Tiles a step, on all devices together; all of them when there are fewer.
        lr
            Highest learning rate.
        weight_decay
            Of AdamW.
        warmup
            Fraction of all steps over which the learning rate rises; over the rest it falls to zero as a cosine.
        validation_fraction
            Fraction of the tiles with both views (2,000 at most) held out to stop on. 0 = train blindly.
        patience
            Epochs after which training stops, if held-out tiles do not find their partners better.
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
            If there are no tiles, fewer than four have both views, or an argument is out of range.
        """
        check_run(
            max_epochs=max_epochs, batch_size=batch_size, lr=lr, weight_decay=weight_decay, warmup=warmup,
            validation_fraction=validation_fraction, patience=patience,
        )  # fmt: skip
        check_seed(seed)
        if self.adata is None or self.tiles is None:
            raise ValueError("There is nothing to train on: SIGMMA takes cells and tiles.")
        self.n_blocks_ = 0
        data = self._data(self.adata, self.tiles, training=True)
        n_pairs = int(data.paired.sum())
        if n_pairs < MIN_PAIRS:
            raise ValueError(
                f"SIGMMA needs {MIN_PAIRS} tiles with both an image and three cells at least, and there are {n_pairs} "
                f"({int(data.has_image.sum())} of {len(data.names)} tiles have an image, {int(data.has_rna.sum())} enough cells)."
            )
        self._measure(data)
        self.seed_, self.device_ = seed, torch_device(device)
        pairs, held_out = split_pairs(data.paired, validation_fraction, seed)
        tensors = data.tensors(pairs, held_out)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            module = self._build(self._architecture())
            fit_moments(module, data)
            plan = SigmmaPlan(module, tensors, self.params_["scales"], seed, lr, weight_decay, float(warmup))
            batches = StepBatches(tensors, batch_size, seed, pairs_only=True)
            default = EPOCHS if held_out.size else EPOCHS_BLIND
            history, keep = fit(
                plan,
                max_epochs=max_epochs if max_epochs is not None else default,
                batches=batches,
                device=device,
                seed=seed,
                patience=patience,
                progress=progress,
                desc="SIGMMA",
                trainer_kwargs=trainer_kwargs,
            )
        self.report_ = {"n_trained_on": float(pairs.size), "n_held_out": float(held_out.size)}
        if keep is not None and keep.state is not None:
            module.load_state_dict(keep.state)
            self.report_["epochs_kept"] = float(keep.best_epoch)
        elif keep is not None:
            self.report_["epochs_kept"] = float(len(history))
            warn(
                "Held-out tiles found their partners no better after any epoch than before training, and the last epoch is kept: there are "
                "too few tiles or epochs to tell, or image and cells have nothing in common."
            )
        self._finish(module, history)

    def _measure(self, data: TileCells) -> None:
        """Take down what the module has to fit."""
        self.n_blocks_ = 0 if data.cells is None else data.cells.n_blocks
        width, self.crop_shape_ = data.image.shape[-1], None
        if self.encoder_ is not None:
            self.crop_shape_ = [int(n) for n in data.image.shape[1:]]
            width = image_width(self.encoder_, data.image, data.has_image, self._crop_size(), self.n_blocks_)
        self.n_features_ = {"image": int(width), "rna": data.n_features}

    def _crop_size(self) -> int:
        """Pixels to which crops are brought."""
        return int(self.params_["crop_size"] or min((self.crop_shape_ or [0, 0, 0])[1:]))

    # -- codes --------------------------------------------------------------------------------------------------------

    def codes(self, cells: AnnData | None = None, tiles: AnnData | None = None) -> TileCodes:
        """Compute every code of the data.

        Parameters
        ----------
        cells, tiles
            New data under the keys of the set-up; either may be left out. None for both = the training data.

        Returns
        -------
        Object with the `names` of the tiles and dictionaries by scale: `image`, `rna`, `fused` (tiles x width), `cells` (n x hidden) and
        `edges` (n x n, CSR; none without `graph`). Rows of NaN where a view is missing: of tiles with fewer than three cells, of cells outside of all tiles.

        Raises
        ------
        RuntimeError
            If the model is not trained.
        ValueError
            If the data have another width, or other blocks, than in training.
        """
        if self.module is None:
            raise RuntimeError("SIGMMA is not trained yet: call .train() first.")
        if cells is None and tiles is None:
            if self.adata is None:
                raise ValueError("The model was loaded without data: pass cells=, tiles= or both.")
            cells, tiles = self.adata, self.tiles
        if (
            tiles is None
            and cells is not None
            and "tile_size" in cells.obs
            and self.setup_keys()["tile_key"] not in cells.obs
        ):
            raise ValueError("This is a table of tiles (it has obs['tile_size']): pass it as tiles=.")
        data = self._data(cells, tiles)
        module = self.module.to(self.device_)
        try:
            return code_tiles(module, data, self.params_["scales"], torch.device(self.device_))
        finally:
            module.to("cpu")

    def get_latent_representation(
        self,
        cells: AnnData | None = None,
        tiles: AnnData | None = None,
        view: Literal["fused", "image", "rna"] = "fused",
        scale: Scale | None = None,
    ) -> np.ndarray:
        """Return one code of the tiles.

        Parameters
        ----------
        cells, tiles
            New data under the keys of the set-up; either may be left out. None for both = the training data.
        view
            `"fused"`, `"image"` or `"rna"`.
        scale
            `"micro"`, `"meso"` or `"macro"`. None = all side by side.

        Returns
        -------
        Tiles x width, float32; rows of NaN where the view is missing.
        """
        pick(("fused", "image", "rna"), view, "view")
        if scale is not None:
            pick(tuple(self.params_["scales"]), scale, "scale")
        found = self.codes(cells, tiles)
        if scale is not None:
            code: np.ndarray = getattr(found, view)[scale]
            return code
        return beside(found)[view]

    # -- what a saved model needs -------------------------------------------------------------------------------------

    def _architecture(self) -> dict[str, Any]:
        return {"n_features": self.n_features_, "n_blocks": self.n_blocks_, "crop_shape": self.crop_shape_, "encoder": self.encoder_ is not None}  # fmt: skip

    def _build(self, architecture: dict[str, Any]) -> sigmma.Sigmma:
        p = {k: v for k, v in self.params_.items() if k not in {"scales", "crop_size"}}
        widths = architecture["n_features"]
        options: dict[str, Any] = {}
        if self.encoder_ is not None:
            self.crop_shape_ = architecture["crop_shape"]
            options = {"image_encoder": copy.deepcopy(self.encoder_).cpu(), "crop_size": self._crop_size()}
            options["crop_sides"] = self._per_side(architecture["n_blocks"])
        return sigmma.Sigmma(widths["image"], widths["rna"], scales=self.scale_numbers, **options, **p)

    def _restore(self, values: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        a = values["architecture"]
        self.n_features_, self.n_blocks_, self.crop_shape_ = a["n_features"], a["n_blocks"], a["crop_shape"]
        if a["encoder"] != (self.encoder_ is not None):
            raise ValueError(
                f"The model was trained with {'an image_encoder' if a['encoder'] else 'no encoder'}: give a module of the same kind, into "
                "which the weights are put."
            )

    @classmethod
    def load(
        cls,
        dir_path: str | Path,
        adata: AnnData | None = None,
        tiles: AnnData | None = None,
        *,
        image_encoder: nn.Module | None = None,
        **kwargs: Any,
    ) -> Self:
        """Load a saved model; the training data are not needed.

        Parameters
        ----------
        dir_path
            Folder written by `save`.
        adata, tiles
            Cells and tiles to attach, under the same keys as in training. None = pass data to each call.
        image_encoder
            Module of the kind that was trained, where there was one; its weights are taken from the file.
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
            If a file is truncated or altered, the folder holds another class of model, or the encoder is not that of the training.
        TypeError
            If an option is given that is not one of these.
        """
        if kwargs:
            return super().load(dir_path, adata, **kwargs)
        try:
            model = cls._load(dir_path, adata, tiles=tiles, image_encoder=image_encoder)
        except RuntimeError as error:  # torch's word for weights that do not fit
            raise ValueError(f"The encoder is not of the kind that was trained: {error}") from error
        return model
