"""Visiumformer: a transformer on ranked genes, trained by guessing hidden ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from scvi.data import AnnDataManager
from scvi.data.fields import ObsmField

from stfuse._check import check_flag, check_number
from stfuse._progress import counting
from stfuse._tokens import TOKENS, Vocabulary, lengths, read_tokens
from stfuse.model._base import pick
from stfuse.model._external_weights import external_state
from stfuse.model._stored import StoredModel, silent_scvi
from stfuse.module import visiumformer as net
from stfuse.train._fit import fit, resolve_device
from stfuse.train._token_batches import MaskedPlan, MaskedSettings, TokenBatches

EPOCHS = 20
WIDE = 256  # width above which the published learning rate is taken


def sizes_of(preset: str, **given: int | None) -> dict[str, int]:
    """Sizes of a preset, with those that are given in place of its own."""
    pick(tuple(net.PRESETS), preset, "preset")
    for name, value in given.items():
        check_number(name, value, least=1, whole=True, optional=True)
    sizes = net.PRESETS[preset] | {name: value for name, value in given.items() if value is not None}
    if sizes["d_model"] % sizes["n_heads"]:
        raise ValueError(f"d_model must be a multiple of n_heads, got {sizes['d_model']} and {sizes['n_heads']}.")
    return sizes


class Visiumformer(StoredModel):
    """Codes of expression by a transformer that reads genes in the order of their rank (UMPIRE's RNA encoder).

    It learns by itself: some genes are hidden and guessed from the others and their ranks. The code of an observation is the mean of
    the last layer over its genes. Weights trained elsewhere are taken by `load_weights`.

    Parameters
    ----------
    adata
        Data registered with `setup_anndata`, with tokens of :func:`stfuse.pp.rank_tokens`.
    registry
        Record of a set-up, in place of data (`load` passes it).
    preset
        Sizes: `"small"` (width 128, 4 layers, 8 heads, 256 genes), which a CPU can train, or `"base"` (width 512, 12 layers, 16 heads,
        1,500 genes), the published one, for a GPU.
    d_model, n_layers, n_heads, d_ff, context
        Width, number of layers, attention heads, hidden width of a layer, and how many genes of an observation are read. None = the preset's.

    Notes
    -----
    Layers are normalised after each addition, positions are learnt, nothing is dropped. Unlike the published code, the mean is
    taken over all genes and not over padding; the code there leaves the three highest genes out.

    References: UMPIRE (the encoder, named Visiumformer there); Nicheformer, whose layout it shares.

    Examples
    --------
    >>> import stfuse
    >>> adata = stfuse.datasets.mob()[::20].copy()
    >>> stfuse.pp.rank_tokens(adata, n_tokens=64)
    >>> stfuse.model.Visiumformer.setup_anndata(adata)
    >>> model = stfuse.model.Visiumformer(adata, d_model=32, n_layers=1, context=64)
    >>> model.train(max_epochs=1)
    >>> model.get_latent_representation().shape
    (82, 32)
    """

    _method = "visiumformer"
    module: net.Visiumformer | None

    def __init__(
        self,
        adata: AnnData | None = None,
        registry: dict[str, Any] | None = None,
        *,
        preset: Literal["small", "base"] = "small",
        d_model: int | None = None,
        n_layers: int | None = None,
        n_heads: int | None = None,
        d_ff: int | None = None,
        context: int | None = None,
    ) -> None:
        given = {"d_model": d_model, "n_layers": n_layers, "n_heads": n_heads, "d_ff": d_ff, "context": context}
        self.sizes_ = sizes_of(preset, **given)
        super().__init__(adata, registry, preset=preset, **given)
        self.vocabulary_: Vocabulary | None = None
        if adata is not None:
            self.vocabulary_ = read_tokens(adata, self.setup_keys()["tokens_key"])[1]

    # -- data ---------------------------------------------------------------------------------------------------------

    @classmethod
    def setup_anndata(cls, adata: AnnData, tokens_key: str = TOKENS, **kwargs: Any) -> None:
        """Say where the tokens are.

        Parameters
        ----------
        adata
            Annotated data.
        tokens_key
            Key of the tokens in `obsm` and of their vocabulary in `uns`, as :func:`stfuse.pp.rank_tokens` writes them.
        kwargs
            Passed on by scvi-tools when a model is loaded.

        Raises
        ------
        KeyError
            If there are no tokens, or no vocabulary of theirs.
        ValueError
            If they are no tokens of that vocabulary.
        """
        setup_args = cls._get_setup_method_args(**locals())
        read_tokens(adata, tokens_key)
        manager = AnnDataManager(fields=[ObsmField("tokens", tokens_key)], setup_method_args=setup_args)
        with silent_scvi():
            manager.register_fields(adata, **kwargs)
        cls.register_manager(manager)

    @property
    def gene_means(self) -> pd.Series:
        """Means of the vocabulary's genes: `stfuse.pp.rank_tokens(new, gene_means=model.gene_means)` makes tokens that the model knows."""
        vocabulary = self._vocabulary()
        return pd.Series(vocabulary.means, index=vocabulary.genes, name="mean")

    def _vocabulary(self) -> Vocabulary:
        if self.vocabulary_ is None:
            raise RuntimeError("The model has no vocabulary: make it with data, Visiumformer(adata), or load it.")
        return self.vocabulary_

    def _tokens(self, adata: AnnData | None) -> np.ndarray:
        """Tokens of the training data or of new ones, which must have the same vocabulary, cut to what is read."""
        if adata is None:
            if self.adata is None:
                raise ValueError("The model was loaded without data: pass adata=.")
            adata = self.adata
        key = self.setup_keys()["tokens_key"]
        tokens, vocabulary = read_tokens(adata, key)
        if vocabulary.digest != self._vocabulary().digest:
            raise ValueError(
                f"The tokens in obsm[{key!r}] were made with another vocabulary ({len(vocabulary)} genes) or other means than those the "
                f"model knows ({len(self._vocabulary())} genes): call stfuse.pp.rank_tokens(data, gene_means=model.gene_means, "
                f"key_added={key!r}) first."
            )
        return tokens[:, : self.sizes_["context"]]

    # -- training -----------------------------------------------------------------------------------------------------

    def train(
        self,
        *,
        max_epochs: int | None = None,
        batch_size: int = 64,
        mask_fraction: float = 0.15,
        lr: float | None = None,
        weight_decay: float = 0.1,
        warmup: float = 0.1,
        precision: str = "32-true",
        compile: bool = False,
        resume: bool = False,
        seed: int = 0,
        device: str = "auto",
        progress: bool | None = None,
        **trainer_kwargs: Any,
    ) -> None:
        """Train: guess hidden genes.

        Parameters
        ----------
        max_epochs
            Number of epochs. None = 20.
        batch_size
            Observations a step; those of like length come together.
        mask_fraction
            Fraction of the genes that are guessed. Of these 80 % are hidden, 10 % replaced by a gene drawn at random, and 10 % shown.
        lr, weight_decay
            Of AdamW. None = 1e-3, and 1e-4 for widths above 256.
        warmup
            Fraction of the steps over which the learning rate rises; then it falls to zero as a cosine.
        precision
            Numbers that are calculated with, as Lightning names them: `"bf16-mixed"` is fast on a GPU.
        compile
            Whether to compile the network (`torch.compile`): pays in long trainings.
        resume
            Whether to go on from the weights that are there, trained or loaded, instead of new ones.
        seed
            Seed of everything random.
        device
            `"auto"`, `"cpu"`, `"cuda"`, `"cuda:<index>"` or `"mps"`.
        progress
            Whether to show a bar. None = in a terminal or notebook.
        trainer_kwargs
            Passed to `lightning.pytorch.Trainer` (`devices=`, `strategy=`, `callbacks=`, `logger=`).

        Raises
        ------
        ValueError
            If fewer than two observations have tokens, or an argument is out of range.
        RuntimeError
            If the loss is no number any more: take a lower learning rate.
        """
        check_number("max_epochs", max_epochs, least=1, whole=True, optional=True)
        check_number("batch_size", batch_size, least=1, whole=True)
        check_number("mask_fraction", mask_fraction, above=0, most=1)
        check_number("lr", lr, above=0, optional=True)
        check_number("weight_decay", weight_decay, least=0)
        check_number("warmup", warmup, least=0, most=1)
        for name, flag in (("compile", compile), ("resume", resume)):
            check_flag(name, flag)
        tokens = self._tokens(None)
        rows = np.flatnonzero(lengths(tokens))
        if rows.size < 2:
            raise ValueError(f"Only {rows.size} of {len(tokens)} observations have tokens: there is nothing to learn.")
        if lr is None:
            lr = 1e-3 if self.sizes_["d_model"] <= WIDE else 1e-4
        settings = MaskedSettings(len(self._vocabulary()), mask_fraction, lr, weight_decay, warmup, compile)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            module = self._build(self._architecture())
            if resume:
                module.load_state_dict(self._trained().state_dict())
            history, _ = fit(
                MaskedPlan(module, settings, seed),
                max_epochs=EPOCHS if max_epochs is None else max_epochs,
                batches=TokenBatches(torch.from_numpy(tokens[rows]), batch_size, seed),
                device=device,
                seed=seed,
                progress=progress,
                desc="Visiumformer",
                trainer_kwargs={"precision": precision} | trainer_kwargs,
            )
        if not np.isfinite(history.to_numpy()).all():
            raise RuntimeError("The training diverged: its loss is not finite. Take a lower lr=.")
        self.seed_, self.report_ = seed, {"observations": float(rows.size)}
        self._finish(module, history)

    def load_weights(
        self,
        path: str | Path,
        names: Literal["published"] | Mapping[str, str | None] | Callable[[str], str | None] | None = None,
        *,
        genes: Sequence[str | None] | None = None,
        mask_row: int = 0,
    ) -> None:
        """Take weights that were trained elsewhere.

        Tokens must be ranked as in that training: pass its means to `rank_tokens(data, gene_means=means)`.

        Parameters
        ----------
        path
            File of weights: safetensors, or a torch file that holds nothing but tensors (nothing else is read from it).
        names
            Names here by the names in the file, or a function from one to the other. A name that ends with a dot stands for all that
            begin with it; the longest that fits counts; what is not named keeps its name; None leaves a tensor out. `"published"` is
            the layout of Nicheformer and of the published Visiumformer, a `torch.nn.TransformerEncoder`:
            `{"embeddings.": "embedding.", "positional_embedding.": "positions.", "encoder.layers.": "layers.", "classifier_head.":
            "head.", "encoder_layer.": None, "pooler_head.": None, "cls_head.": None}`. None = the names are those here. The names within a layer are
            torch's (`self_attn.in_proj_weight`, `linear1.weight`, ...) on both sides.
        genes
            Gene of each row of the file's embedding and head, None for a row that is no gene: `[None] * 30 + genes` where numbers
            begin at 30. Rows after the last are left out. None = rows are those of this vocabulary: padding, hidden gene, then the genes.
        mask_row
            Row of the file's embedding that stands for a hidden gene; with `genes` only.

        Raises
        ------
        FileNotFoundError
            If there is no such file.
        ValueError
            If tensors are missing, unexpected or of another shape (they are named), fewer than half of the vocabulary's genes are in
            `genes`, or the file is damaged or holds more than tensors. A head may be missing: it is for training only. The model stays as it was.

        Warns
        -----
        UserWarning
            If genes of the vocabulary are not in `genes`: they get the mean of the others' embeddings.
        """
        with torch.random.fork_rng():
            torch.manual_seed(0)
            module = self._build(self._architecture())
        state = external_state(path, module, names, self._vocabulary().genes, genes, mask_row)
        module.load_state_dict(state)
        self.seed_, self.report_ = 0, {}
        self._finish(module)

    # -- codes --------------------------------------------------------------------------------------------------------

    def _trained(self) -> net.Visiumformer:
        if self.module is None:
            raise RuntimeError("Visiumformer is not trained yet: call .train() or .load_weights() first.")
        return self.module

    @torch.no_grad()
    def get_latent_representation(
        self,
        adata: AnnData | None = None,
        *,
        batch_size: int = 64,
        device: str = "auto",
        progress: bool | None = None,
    ) -> np.ndarray:
        """Return the codes of the data.

        Parameters
        ----------
        adata
            New data with tokens of the same vocabulary (`rank_tokens(new, gene_means=model.gene_means)`). None = the training data.
        batch_size
            Observations at a time.
        device
            Where it is calculated: `"auto"`, `"cpu"`, `"cuda"`, `"cuda:<index>"` or `"mps"`.
        progress
            Whether to show a bar. None = in a terminal or notebook.

        Returns
        -------
        n x d_model, float32; rows of NaN where an observation has no tokens.

        Raises
        ------
        RuntimeError
            If the model is not trained.
        ValueError
            If the tokens are of another vocabulary.
        """
        check_number("batch_size", batch_size, least=1, whole=True)
        kind, index = resolve_device(device)
        where = torch.device({"gpu": "cuda"}.get(kind, kind) + (f":{index[0]}" if isinstance(index, list) else ""))
        module, tokens = self._trained(), self._tokens(adata)
        out = np.full((len(tokens), self.sizes_["d_model"]), np.nan, dtype=np.float32)
        rows = np.flatnonzero(lengths(tokens))
        if not rows.size:
            return out
        batches = TokenBatches(torch.from_numpy(tokens[rows]), batch_size, 0)
        module.to(where)
        try:
            with counting(rows.size, desc="Visiumformer", show=progress) as count:
                for part, longest in batches.deal():
                    out[rows[part.numpy()]] = module.encode(batches.tokens[part, :longest].to(where)).cpu().numpy()
                    count(len(part))
        finally:
            module.to("cpu")
        return out

    # -- what is stored -----------------------------------------------------------------------------------------------

    def _architecture(self) -> dict[str, Any]:
        return {"n_vocabulary": len(self._vocabulary()), **self.sizes_}

    def _build(self, architecture: dict[str, Any]) -> net.Visiumformer:
        return net.Visiumformer(**architecture)

    def _state(self) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
        vocabulary = self._vocabulary()
        return {"genes": list(map(str, vocabulary.genes))}, {"gene_means": torch.from_numpy(vocabulary.means)}

    def _restore(self, values: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
        self.vocabulary_ = Vocabulary(pd.Index(values["genes"]), tensors["gene_means"].numpy())
