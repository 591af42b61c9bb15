"""UMPIRE: contrastive alignment of images and expression, on frozen features or through encoders trained end to end."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any, Literal, Self, get_args

from anndata import AnnData
from torch import Tensor, nn

from stfuse import _keys
from stfuse._check import check_flag, check_number
from stfuse._log import warn
from stfuse._raw import CROPS
from stfuse._tokens import Vocabulary
from stfuse._views import Views
from stfuse.model._alignment import Alignment, Run, align, presence, unit_codes
from stfuse.model._base import Codes, FusionModel, pick
from stfuse.model._context import with_neighbors
from stfuse.model._linear_start import LinearStart, targets_of
from stfuse.model._pcca import check_pairs
from stfuse.model._stored import StoredModel
from stfuse.model._training import check_training
from stfuse.model._umpire_encoders import NAMES, Mode, check_choice, encoders_of, output_width, torch_device
from stfuse.module.umpire import OBJECTIVES, AlignedViews, Objective

MODES: tuple[Mode, ...] = get_args(Mode)
INITS = ("linear", "random")
LR, LR_ENCODERS = 1e-3, 1e-4


class UMPIRE(FusionModel):
    """Alignment of images and expression in one space by their pairs.

    Projections bring the two codes of a pair together and keep the others apart. They stand on frozen features, bent by
    small residual adapters or as they are, or on encoders that are trained with them. With few pairs the opponent is
    overfitting: training stops on held-out pairs, of which it keeps the best epoch.

    Parameters
    ----------
    adata
        Data registered with `setup_anndata`.
    registry
        Record of a set-up, in place of data (`load` passes it).
    mode
        `"adapter"` (residual adapters on frozen features, then a projection), `"linear"` (the projection alone) or
        `"finetune"` (encoders trained end to end).
    objective
        `"contrastive"`, `"reconstruction"`, `"infonce"`, `"one-sided"` or `"bleep"`; see :func:`stfuse.tl.umpire`.
    embed_dim
        Width of the shared code of each view.
    adapter_dim, adapter_weight
        Width of the bottleneck of the adapters, and the share w of what they add: (1 - w) x + w ReLU(W2 ReLU(W1 x)).
    temperature
        Where the learnt temperature of the contrastive losses starts; it stays above 0.01.
    init
        `"linear"` (training starts at a regularised canonical correlation, and has to beat it on held-out pairs) or `"random"`.
    context
        Whether the mean of each view over an observation and its six nearest in the section is read beside it, where there are
        coordinates; data to code need them then.
    image_encoder
        With `mode="finetune"`: module from crops (n x channels x height x width, floats; bytes become 0 to 1) to n x any width.
        None = the image view is features, and gets a projection.
    gene_encoder
        With `mode="finetune"`: module from tokens (n x length, 0 fills up) to n x any width, called by its method `encode` where
        it has one. None = the RNA view is features, and gets a projection.

    Notes
    -----
    Encoders that are given stay as they are: copies of them are trained, and are found in `module.encoders`.

    Han et al., Towards unified molecule-enhanced pathology image representation learning via integrating spatial
    transcriptomics (UMPIRE).

    Examples
    --------
    >>> import stfuse
    >>> adata = stfuse.datasets.synthetic_tissue(200)
    >>> stfuse.model.UMPIRE.setup_anndata(adata)
    >>> model = stfuse.model.UMPIRE(adata, embed_dim=64)
    >>> model.train(max_epochs=2)
    >>> model.get_latent_representation(view="rna").shape
    (200, 64)
    """

    _method = "umpire"
    takes_crops = True
    module: AlignedViews | None

    def __init__(
        self,
        adata: AnnData | None = None,
        registry: dict[str, Any] | None = None,
        *,
        mode: Mode = "adapter",
        objective: Objective = "contrastive",
        embed_dim: int = 512,
        adapter_dim: int = 128,
        adapter_weight: float = 0.2,
        temperature: float = 0.2,
        init: Literal["linear", "random"] = "linear",
        context: bool = True,
        image_encoder: nn.Module | None = None,
        gene_encoder: nn.Module | StoredModel | None = None,
    ) -> None:
        pick(MODES, mode, "mode")
        pick(INITS, init, "init")
        check_flag("context", context)
        pick(OBJECTIVES, objective, "objective")
        check_number("embed_dim", embed_dim, least=1, whole=True)
        check_number("adapter_dim", adapter_dim, least=1, whole=True)
        check_number("adapter_weight", adapter_weight, least=0, most=1)
        check_number("temperature", temperature, least=0.01)
        super().__init__(
            adata,
            registry,
            mode=mode,
            objective=objective,
            embed_dim=embed_dim,
            adapter_dim=adapter_dim,
            adapter_weight=adapter_weight,
            temperature=temperature,
            init=init,
            context=context,
        )
        self.encoders_ = encoders_of(image_encoder, gene_encoder)
        self.known_genes_: Vocabulary | None = getattr(
            gene_encoder, "vocabulary_", None
        )  # of a model that reads tokens
        check_choice(mode, objective, self.encoders_)
        self.widths_: dict[str, int] = {}  # of what the projections get
        self.crop_shape_: list[int] | None = None
        self.vocabulary_: str | None = None  # digest of the tokens' vocabulary
        self.device_ = "cpu"
        self.context_ = False  # whether each observation's neighbours are read beside it

    @classmethod
    def setup_anndata(
        cls,
        adata: AnnData,
        image_key: str = _keys.IMAGE,
        rna_key: str = _keys.RNA,
        batch_key: str | None = None,
        library_key: str | None = None,
        paired_key: str | None = None,
        tokens_key: str | None = None,
        **kwargs: Any,
    ) -> None:
        """Say where the two views are.

        Parameters
        ----------
        adata
            Annotated data.
        image_key, rna_key
            Keys of the features in `obsm`, n x d each; a row of NaN = that view is missing there. For an `image_encoder`,
            `obsm[image_key]` holds crops, n x channels x height x width (uint8, or floats with NaN where there is none).
        batch_key
            Column of `obs`; features are centred within each batch before anything else, crops and tokens are not.
        library_key
            Column of `obs` that tells sections apart.
        paired_key
            Boolean column of `obs`: which observations with both views may be used as pairs in training.
        tokens_key
            Key of gene tokens in `obsm` (:func:`stfuse.pp.rank_tokens`), n x length, which a `gene_encoder` reads in place of
            `obsm[rna_key]`; a row of zeros = no RNA there.
        kwargs
            Passed on by scvi-tools when a model is loaded.
        """
        cls._register(adata, cls._get_setup_method_args(**locals()), **kwargs)

    def train(
        self,
        *,
        max_epochs: int | None = None,
        batch_size: int = 256,
        lr: float | None = None,
        weight_decay: float = 0.1,
        warmup: float = 0.1,
        validation_fraction: float = 0.2,
        patience: int = 15,
        seed: int = 0,
        device: str = "auto",
        progress: bool | None = None,
        **trainer_kwargs: Any,
    ) -> None:
        """Train.

        Parameters
        ----------
        max_epochs
            Epochs at most. None = 100, or 20 where there are too few pairs to hold some out.
        batch_size
            Pairs a step, on all devices together; all of them when there are fewer. A contrastive loss compares all of them.
        lr
            Highest learning rate. None = 0.001, or 0.0001 where encoders are trained.
        weight_decay
            Of AdamW.
        warmup
            Fraction of all steps over which the learning rate rises; over the rest it falls to zero as a cosine.
        validation_fraction
            Fraction of the pairs (2,000 at most) held out to stop on: round pieces of each section, or random pairs with
            `init="random"` or without coordinates. 0 = train blindly.
        patience
            Epochs without improvement after which training stops.
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
            If there are fewer than four pairs, a view is not what its encoder needs, or an argument is out of range.
        """
        lr = lr if lr is not None else (LR_ENCODERS if self.encoders_ else LR)
        check_training(validation_fraction, patience, weight_decay=weight_decay, lr=lr)
        check_number("warmup", warmup, least=0, most=1)
        objective: Objective = self.params_["objective"]
        settings = Alignment(
            max_epochs, batch_size, lr, weight_decay, validation_fraction, patience, objective, float(warmup)
        )
        views = self._begin(seed)
        check_pairs(views, 4, "UMPIRE")
        self.context_ = bool(self.params_["context"] and not self.encoders_ and views.spatial is not None)
        views = self._beside(views)
        self._measure(views)
        self.device_ = torch_device(device)
        start = LinearStart.of(views, self.context_, seed) if self._starts_linear() else None
        self.report_ = {} if start is None else start.report
        targets = None if start is None else targets_of(views, self.context_)
        module, history = align(Run(self, views, settings, seed, device, progress, trainer_kwargs, start, targets))
        self._finish(module, history)

    def _codes(self, views: Views) -> Codes:
        if self.module is None:
            raise RuntimeError("UMPIRE is not trained yet: call .train() first.")
        return unit_codes(self.module, self._beside(views), self.params_["embed_dim"], self.device_)

    def _beside(self, views: Views) -> Views:
        """The views as the module reads them: with the neighbours beside each observation, where it was trained so."""
        return with_neighbors(views) if self.context_ else views

    def _starts_linear(self) -> bool:
        """Whether there is something to start from: features, and maps that are linear to begin with."""
        p = self.params_
        bent = p["mode"] == "adapter" and p["adapter_weight"] == 1
        return p["init"] == "linear" and not self.encoders_ and not bent

    # -- what the encoders need ---------------------------------------------------------------------------------------

    def _measure(self, views: Views) -> None:
        """Check that the views are what the encoders need, and take down how wide their output is."""
        keys = self.setup_keys()
        if "image" in self.encoders_ and "image" not in views.raw:
            raise ValueError(
                f"image_encoder= needs crops ({CROPS}) in obsm[{keys['image_key']!r}], which holds features, {views.image.shape[1]} "
                "an observation: name the crops with image_key=, or leave the encoder out."
            )
        if "image" in views.raw and "image" not in self.encoders_:
            raise ValueError(
                f"obsm[{keys['image_key']!r}] must be two-dimensional (observations x features) without an encoder, its shape is "
                f"{views.raw['image'].shape}: pass mode='finetune' and image_encoder=, or features (stfuse.pp.image_features)."
            )
        if "rna" in self.encoders_ and "rna" not in views.raw:
            raise ValueError(
                "gene_encoder= needs gene tokens: call stfuse.pp.rank_tokens(data) and name their obsm key with tokens_key=."
            )
        if "rna" in views.raw and "rna" not in self.encoders_:
            raise ValueError("tokens_key= needs an encoder that reads them: pass mode='finetune' and gene_encoder=.")
        known, given = self.known_genes_, views.vocabulary
        if known is not None and given is not None and known.digest != given.digest:
            raise ValueError(
                f"The tokens in obsm[{keys['tokens_key']!r}] are of another vocabulary ({len(given)} genes) or other means than those "
                f"that gene_encoder was trained on ({len(known)} genes): call stfuse.pp.rank_tokens(data, "
                f"gene_means=gene_encoder.gene_means, key_added={keys['tokens_key']!r}) first."
            )
        has = presence(views)
        self.widths_ = {
            v: output_width(v, self.encoders_[v], views.raw[v], has[v])
            if v in views.raw
            else getattr(views, v).shape[1]
            for v in _keys.VIEWS
        }
        self.crop_shape_ = [int(n) for n in views.raw["image"].shape[1:]] if "image" in views.raw else None
        self.vocabulary_ = views.vocabulary.digest if views.vocabulary is not None else None

    def _check_new(self, views: Views) -> None:
        for view, has in presence(views).items():
            if has.any() and (view in self.encoders_) != (view in views.raw):
                wanted = NAMES[view][1] if view in self.encoders_ else "features"
                given = "features" if view in self.encoders_ else NAMES[view][1]
                raise ValueError(f"The {view} view holds {given}, the model was trained on {wanted}.")
        crops = views.raw.get("image")
        if crops is not None and list(crops.shape[1:]) != self.crop_shape_:
            raise ValueError(f"Crops are {list(crops.shape[1:])}, the model was trained on {self.crop_shape_}.")
        if self.vocabulary_ is not None and views.vocabulary is None and "rna" in views.raw:
            warn(
                "The tokens come without the record of their vocabulary, which stfuse.pp.rank_tokens writes into uns: whether they "
                "stand for the genes of the training cannot be told."
            )
        if views.vocabulary is not None and self.vocabulary_ not in (None, views.vocabulary.digest):
            raise ValueError(
                "The tokens are of another vocabulary than those of the training: make them with its genes and means, as "
                "stfuse.pp.rank_tokens does with gene_means=."
            )
        super()._check_new(views)

    # -- storing ------------------------------------------------------------------------------------------------------

    def _architecture(self) -> dict[str, Any]:
        return {
            "widths": self.widths_,
            "encoders": sorted(self.encoders_),
            "crop_shape": self.crop_shape_,
            "vocabulary": self.vocabulary_,
            "context": self.context_,
        }

    def _build(self, architecture: dict[str, Any]) -> AlignedViews:
        p = self.params_
        return AlignedViews(
            architecture["widths"],
            embed_dim=p["embed_dim"],
            adapter_dim=p["adapter_dim"] if p["mode"] == "adapter" else None,
            adapter_weight=p["adapter_weight"],
            objective=p["objective"],
            temperature=p["temperature"],
            encoders={view: copy.deepcopy(encoder).cpu() for view, encoder in self.encoders_.items()},
        )

    def _restore(self, values: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        super()._restore(values, tensors)
        architecture = values["architecture"]
        self.widths_, self.crop_shape_ = architecture["widths"], architecture["crop_shape"]
        self.vocabulary_, self.context_ = architecture["vocabulary"], architecture["context"]
        if sorted(self.encoders_) != architecture["encoders"]:
            wanted = " and ".join(f"{NAMES[view][0]}=" for view in architecture["encoders"]) or "no encoder"
            raise ValueError(
                f"The model was trained with {wanted}: give modules of the same kind, into which the weights are put."
            )
        if self.encoders_:
            self.device_ = torch_device("auto")

    @classmethod
    def load(
        cls,
        dir_path: str | Path,
        adata: AnnData | None = None,
        *,
        image_encoder: nn.Module | None = None,
        gene_encoder: nn.Module | StoredModel | None = None,
        **kwargs: Any,
    ) -> Self:
        """Load a saved model; the training data are not needed.

        Parameters
        ----------
        dir_path
            Folder written by `save`.
        adata
            Data to attach, under the same keys as in training. None = pass data to each call.
        image_encoder, gene_encoder
            Modules of the kind that was trained, where there were any: no file says how to build them. Their weights are
            taken from the file, and the modules that are given stay as they are.
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
            If a file is truncated or altered, the folder holds another class of model, or the encoders are not those of the
            training.
        TypeError
            If an option is given that is not one of these.
        """
        if kwargs:
            return super().load(dir_path, adata, **kwargs)
        try:
            return cls._load(dir_path, adata, image_encoder=image_encoder, gene_encoder=gene_encoder)
        except RuntimeError as error:  # torch's word for weights that do not fit
            raise ValueError(f"The encoders are not of the kind that was trained: {error}") from error
