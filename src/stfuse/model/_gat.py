"""A graph encoder of expression."""

from __future__ import annotations

import warnings
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from scipy.sparse import csr_matrix
from scvi.data import AnnDataManager
from scvi.data.fields import CategoricalObsField, LayerField, ObsmField

from stfuse import _keys
from stfuse._check import check_number, check_seed, check_text
from stfuse._log import warn
from stfuse.model._base import pick
from stfuse.model._gat_input import GraphInput, read_input
from stfuse.model._stored import StoredModel, silent_scvi
from stfuse.model._training import check_training
from stfuse.module.gat import GraphAttention
from stfuse.train._fit import fit, resolve_device
from stfuse.train._gat_plan import GraphPlan, MaskSettings, PatchBatches

LOSSES = ("mse", "nb")
MIN_HELD_OUT, MAX_HELD_OUT = 10, 500  # observations: fewer say nothing, more say no more and bring all their neighbours
STEPS, LEAST_EPOCHS, MOST_EPOCHS = 3_000, 20, 1_000
CHUNK = 2_048  # observations coded at a time


class GAT(StoredModel):
    """Codes of expression by graph attention over neighbours in space, learnt by predicting hidden values.

    Each observation attends to itself and its nearest neighbours of the same section. In training a part of all expression
    values is hidden, everywhere and anew in each step, and predicted from what is left there and around. No labels and no image
    are needed. It is the RNA encoder of the CAMEO paper. :func:`stfuse.tl.gat` is the short way.

    Parameters
    ----------
    adata
        Data prepared with `setup_anndata`. None only when loading.
    registry
        Stored set-up when a model is loaded without data (`load` passes it).
    n_top_genes
        Number of genes that are used, those that vary most for their mean, ranked within each section. None = all.
    n_neighbors
        Nearest neighbours that an observation attends to beside itself.
    n_latent, n_hidden
        Width of the code and of the hidden layers.
    n_heads
        Heads of the attention; `n_hidden` is divided among them.
    n_layers
        Layers of attention: how many steps away an observation sees.
    dropout
        Fraction dropped before each layer of attention in training.
    loss
        `"mse"`: squared error of log-normalised values, each gene in units of its own spread. `"nb"`: negative binomial
        likelihood of counts, which have to be whole numbers.

    Notes
    -----
    Brody, Alon and Yahav (2022), How attentive are graph attention networks?; the training is that of the CAMEO paper, appendix
    E.5. The layers are torch-geometric's `GATv2Conv`.

    Examples
    --------
    >>> import stfuse
    >>> adata = stfuse.datasets.mob()
    >>> stfuse.model.GAT.setup_anndata(adata, library_key="section")
    >>> model = stfuse.model.GAT(adata, n_latent=16, n_hidden=32)
    >>> model.train(max_epochs=2)
    >>> model.get_latent_representation().shape
    (1627, 16)
    """

    _method = "gat"
    module: GraphAttention | None

    def __init__(
        self,
        adata: AnnData | None = None,
        registry: dict[str, Any] | None = None,
        *,
        n_top_genes: int | None = 2000,
        n_neighbors: int = 6,
        n_latent: int = 128,
        n_hidden: int = 128,
        n_heads: int = 4,
        n_layers: int = 2,
        dropout: float = 0.1,
        loss: Literal["mse", "nb"] = "mse",
    ) -> None:
        params = {k: v for k, v in locals().items() if k not in {"self", "adata", "registry", "__class__"}}
        check_model(**params)
        super().__init__(adata, registry, **params)
        self.genes_: list[str] = []

    @classmethod
    def setup_anndata(
        cls,
        adata: AnnData,
        layer: str | None = None,
        library_key: str | None = None,
        spatial_key: str = _keys.SPATIAL,
        **kwargs: Any,
    ) -> None:
        """Say where counts and coordinates are.

        Parameters
        ----------
        adata
            Annotated data.
        layer
            Layer that holds the counts. None = `X`.
        library_key
            Column of `obs` that tells sections apart; neighbours are of the same section.
        spatial_key
            Key of the coordinates in `obsm`.
        kwargs
            Passed on by scvi-tools when a model is loaded.
        """
        setup_args = cls._get_setup_method_args(**locals())
        # what there is to warn of is said here, and not again when the same data are trained on and coded
        read_input(adata, layer=layer, library_key=library_key, spatial_key=spatial_key, whole=False)
        fields: list[Any] = [LayerField("X", layer, is_count_data=False), ObsmField("spatial", spatial_key)]
        fields += [CategoricalObsField("section", library_key)] if library_key else []
        manager = AnnDataManager(fields=fields, setup_method_args=setup_args)
        with silent_scvi():
            manager.register_fields(adata, **kwargs)
        cls.register_manager(manager)

    def train(
        self,
        *,
        max_epochs: int | None = None,
        batch_size: int = 1024,
        mask_fraction: float = 0.4,
        lr: float = 1e-3,
        weight_decay: float = 0.0,
        gradient_clip: float | None = 1.0,
        validation_fraction: float = 0.1,
        patience: int | None = 200,
        seed: int = 0,
        device: str = "auto",
        progress: bool | None = None,
        **trainer_kwargs: Any,
    ) -> None:
        """Train.

        Parameters
        ----------
        max_epochs
            Epochs at most. None = as many as make 3,000 steps, 20 at least and 1,000 at most.
        batch_size
            Observations a step, in compact patches; their neighbours come along. All at once where there are no more.
        mask_fraction
            Fraction of the expression values that are hidden in each step.
        lr, weight_decay
            Of AdamW.
        gradient_clip
            Largest norm of the gradient. None = not clipped.
        validation_fraction
            Fraction of the observations (500 at most) whose own values are never predicted in training; the epoch that
            predicts them best is kept. They are seen, partly hidden, as neighbours.
        patience
            Epochs without improvement there after which training stops. None = no stop, and the last epoch is kept.
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
            If an argument is out of range, or counts are no whole numbers where `loss="nb"` needs them.
        RuntimeError
            If training diverged.
        """
        check_run(
            max_epochs=max_epochs,
            batch_size=batch_size,
            mask_fraction=mask_fraction,
            lr=lr,
            weight_decay=weight_decay,
            gradient_clip=gradient_clip,
            validation_fraction=validation_fraction,
            patience=patience,
            seed=seed,
            device=device,
        )
        found = self._input(None)
        self.seed_, self.report_ = seed, {}
        genes = found.top_genes(self.params_["n_top_genes"])
        self.genes_ = [str(name) for name in genes]
        graph, _ = found.graph(genes, self.params_["n_neighbors"], with_counts=self.params_["loss"] == "nb")
        held_out = _held_out(len(graph.order), validation_fraction, seed)
        n_layers = self.params_["n_layers"]
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            module = self._build({"n_genes": len(genes)})
            module.fit_moments(*_moments(graph.values))
            batches = PatchBatches(graph, held_out, batch_size, n_layers, seed)
            plan = GraphPlan(module, graph, held_out, MaskSettings(mask_fraction, lr, weight_decay), seed)
            history, keep = fit(
                plan,
                max_epochs=_epochs(len(batches)) if max_epochs is None else max_epochs,
                batches=batches,
                device=device,
                seed=seed,
                patience=patience,
                progress=progress,
                desc="GAT",
                trainer_kwargs={"gradient_clip_val": gradient_clip} | trainer_kwargs,
            )
        if keep is not None and keep.state is not None:
            module.load_state_dict(keep.state)
            self.report_ = {"best_epoch": keep.best_epoch, "held_out_masked": float(keep.best.mean())}
        if not all(bool(p.isfinite().all()) for p in module.parameters()):
            raise RuntimeError("Training diverged: weights are not finite. Use a smaller lr, or gradient_clip=1.")
        self._finish(module, history)

    @torch.no_grad()
    def get_latent_representation(self, adata: AnnData | None = None) -> np.ndarray:
        """Codes of the training data or of new sections.

        Parameters
        ----------
        adata
            Data under the same keys as in training, with the same genes. None = the training data.

        Returns
        -------
        Array, n x n_latent, float32; a row of NaN = an observation without any count.

        Raises
        ------
        KeyError
            If the layer, the coordinates or the column with the sections is missing.
        ValueError
            If fewer than half of the model's genes are there, or the data are no counts.
        RuntimeError
            If the model is not trained yet.

        Warns
        -----
        UserWarning
            If genes of the model are missing; they count as hidden.
        """
        module = self._trained()
        found = self._input(adata)
        graph, missing = found.graph(pd.Index(self.genes_), self.params_["n_neighbors"], with_counts=False)
        _tell_missing(self.genes_, missing)
        hidden = torch.from_numpy(missing)
        codes = np.empty((len(graph.order), self.params_["n_latent"]), dtype=np.float32)
        for start in range(0, len(codes), CHUNK):
            rows = graph.order[start : start + CHUNK]
            batch = graph.batch(rows, self.params_["n_layers"])
            codes[rows] = module.encode(batch["values"], batch["hops"], hidden if missing.any() else None).numpy()
        out = np.full((len(found.present), codes.shape[1]), np.nan, dtype=np.float32)
        out[found.present] = codes
        return out

    def _input(self, adata: AnnData | None) -> GraphInput:
        keys = self.setup_keys()
        if adata is None:
            if self.adata is None:
                raise ValueError("The model was loaded without data: pass adata=.")
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)
                return read_input(self.adata, **keys, whole=self.params_["loss"] == "nb")
        if keys["library_key"] is not None and keys["library_key"] not in adata.obs:
            raise KeyError(
                f"No obs column {keys['library_key']!r}: the model was trained with library_key={keys['library_key']!r}, so data "
                "to code need that column too (one value everywhere, if they are one section)."
            )
        return read_input(adata, **keys, whole=self.params_["loss"] == "nb")

    def _trained(self) -> GraphAttention:
        if self.module is None:
            raise RuntimeError("GAT is not trained yet: call .train() first.")
        return self.module

    def _state(self) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
        return {"genes": self.genes_}, {}

    def _restore(self, values: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
        self.genes_ = values["genes"]

    def _architecture(self) -> dict[str, Any]:
        return {"n_genes": len(self.genes_)}

    def _build(self, architecture: dict[str, Any]) -> GraphAttention:
        sizes = {k: v for k, v in self.params_.items() if k not in {"n_top_genes", "n_neighbors"}}
        return GraphAttention(architecture["n_genes"], **sizes)


def check_model(
    *,
    n_top_genes: int | None,
    n_neighbors: int,
    n_latent: int,
    n_hidden: int,
    n_heads: int,
    n_layers: int,
    dropout: float,
    loss: str,
) -> None:
    """Refuse what no network can be built from."""
    check_number("n_top_genes", n_top_genes, least=2, whole=True, optional=True)
    sizes = {"n_neighbors": n_neighbors, "n_latent": n_latent, "n_hidden": n_hidden, "n_heads": n_heads}
    for name, value in (sizes | {"n_layers": n_layers}).items():
        check_number(name, value, least=1, whole=True)
    if n_hidden % n_heads:
        raise ValueError(f"n_hidden={n_hidden} can't be divided among n_heads={n_heads}: choose a multiple of it.")
    check_number("dropout", dropout, least=0)
    if dropout >= 1:
        raise ValueError(f"dropout must be below 1, got {dropout}.")
    check_text("loss", loss)
    pick(LOSSES, loss, "loss")


def check_run(
    *,
    max_epochs: int | None,
    batch_size: int,
    mask_fraction: float,
    lr: float,
    weight_decay: float,
    gradient_clip: float | None,
    validation_fraction: float,
    patience: int | None,
    seed: int,
    device: str,
) -> None:
    """Refuse what no training can do."""
    check_number("max_epochs", max_epochs, least=1, whole=True, optional=True)
    check_number("batch_size", batch_size, least=2, whole=True)
    check_number("mask_fraction", mask_fraction, above=0)
    if mask_fraction >= 1:
        raise ValueError(
            f"mask_fraction must be below 1, got {mask_fraction}: something has to be left to predict from."
        )
    check_number("gradient_clip", gradient_clip, above=0, optional=True)
    check_number("patience", patience, least=1, whole=True, optional=True)
    check_training(validation_fraction, patience, weight_decay=weight_decay, lr=lr)
    check_seed(seed)
    resolve_device(device)


def _epochs(n_steps: int) -> int:
    """Epochs where none are given: a large tissue is learnt in fewer looks at it."""
    return min(MOST_EPOCHS, max(LEAST_EPOCHS, round(STEPS / n_steps)))


def _held_out(n: int, fraction: float, seed: int) -> np.ndarray:
    """Observations on which training is stopped; none where they would be too few to tell anything."""
    size = min(round(fraction * n), MAX_HELD_OUT)
    if size < MIN_HELD_OUT:
        return np.zeros(0, dtype=np.int64)
    return np.sort(np.random.default_rng(seed).permutation(n)[:size])


def _moments(values: csr_matrix) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and spread of each gene."""
    from sklearn.utils.sparsefuncs import mean_variance_axis

    mean, variance = mean_variance_axis(values.astype(np.float64), axis=0)
    return torch.from_numpy(mean).float(), torch.from_numpy(np.sqrt(variance)).float()


def _tell_missing(genes: list[str], missing: np.ndarray) -> None:
    n = int(missing.sum())
    if not n:
        return
    example = genes[int(np.flatnonzero(missing)[0])]
    if 2 * n > len(genes):
        raise ValueError(
            f"Only {len(genes) - n} of the model's {len(genes)} genes are in var_names (missing for example {example!r}): do both "
            "name genes in the same way?"
        )
    warn(f"{n} of the model's {len(genes)} genes are not in var_names (for example {example!r}): they count as hidden.")
