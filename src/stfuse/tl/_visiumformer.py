"""Code expression by a transformer on ranked genes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import pandas as pd
from anndata import AnnData

from stfuse import _keys, _read, _record
from stfuse._check import check_flag, check_seed, check_text
from stfuse._log import logger
from stfuse._tokens import TOKENS, read_tokens
from stfuse.pp._rank_tokens import make_tokens


def visiumformer(
    data: Any,
    *,
    tokens_key: str = TOKENS,
    table_key: str | None = None,
    key_added: str = "visiumformer",
    preset: Literal["small", "base"] = "small",
    d_model: int | None = None,
    n_layers: int | None = None,
    n_heads: int | None = None,
    d_ff: int | None = None,
    context: int | None = None,
    max_epochs: int | None = None,
    batch_size: int = 64,
    mask_fraction: float = 0.15,
    lr: float | None = None,
    weight_decay: float = 0.1,
    warmup: float = 0.1,
    precision: str = "32-true",
    compile: bool = False,
    seed: int = 0,
    device: str = "auto",
    copy: bool = False,
    return_model: bool = False,
    progress: bool | None = None,
) -> Any:
    """Code expression by a transformer on ranked genes (Visiumformer): an RNA view for the fusion methods.

    It learns by itself: some genes of an observation are hidden and guessed from the others and their ranks. Its codes go to the
    fusion methods as `rna_key="X_visiumformer"`.

    Parameters
    ----------
    data
        AnnData or SpatialData with tokens or raw counts; of a MuData pass the modality, `mdata["rna"]`.
    tokens_key
        Key of the tokens in `obsm`. The default key, where it is not there, is made from the counts in `X` as
        :func:`stfuse.pp.rank_tokens` does, and written too.
    table_key
        SpatialData: which table.
    key_added
        Name under which everything is written.
    preset
        Sizes: `"small"` (width 128, 4 layers, 8 heads, 256 genes), which a CPU can train, or `"base"` (width 512, 12 layers, 16 heads,
        1,500 genes), the published one, for a GPU.
    d_model, n_layers, n_heads, d_ff, context
        Width, number of layers, attention heads, hidden width of a layer, and how many genes of an observation are read. None = the preset's.
    max_epochs
        Number of epochs. None = 20.
    batch_size
        Observations a step; those of like length come together.
    mask_fraction
        Fraction of the genes that are guessed.
    lr, weight_decay
        Of AdamW. None = 1e-3, and 1e-4 for widths above 256.
    warmup
        Fraction of the steps over which the learning rate rises; then it falls to zero as a cosine.
    precision
        Numbers that are calculated with, as Lightning names them: `"bf16-mixed"` is fast on a GPU.
    compile
        Whether to compile the network (`torch.compile`): pays in long trainings.
    seed
        Seed: the same data, arguments and machine give the same codes.
    device
        `"auto"`, `"cpu"`, `"cuda"`, `"cuda:<index>"` or `"mps"`.
    copy
        Whether to return a changed copy instead of changing `data`.
    return_model
        Whether to return the trained model, which codes new data.
    progress
        Whether to show a bar. None = in a terminal or notebook.

    Returns
    -------
    None; the copy, the model, or both as `(data, model)`, where asked for. Written are

    - `obsm["X_visiumformer"]`: n x d_model, float32; a row of NaN = no counts
    - `uns["visiumformer"]`: parameters, history, seed, versions, how many observations had tokens
    - `obsm["tokens"]` and `uns["tokens"]`, where they had to be made

    Raises
    ------
    KeyError
        If a named key is not there.
    ValueError
        If the tokens are none of their vocabulary, fewer than two observations have any, counts are no counts, an argument is out of
        range, or `key_added` is the name of something else. Nothing is written then.
    TypeError
        If an argument is of the wrong type.

    Warns
    -----
    UserWarning
        If tokens are made and observations have no counts.

    Notes
    -----
    On a CPU one epoch of 1,000 observations takes about half a minute with the small preset; the published size needs a GPU.

    The RNA encoder of UMPIRE; see :class:`stfuse.model.Visiumformer` for what differs, and for weights trained elsewhere.

    Examples
    --------
    >>> import stfuse
    >>> adata = stfuse.datasets.mob()[::20].copy()
    >>> stfuse.pp.rank_tokens(adata, n_tokens=64)
    >>> stfuse.tl.visiumformer(adata, d_model=32, n_layers=1, max_epochs=1)
    >>> adata.obsm["X_visiumformer"].shape
    (82, 32)
    """
    model_params: dict[str, Any] = {
        "preset": preset,
        "d_model": d_model,
        "n_layers": n_layers,
        "n_heads": n_heads,
        "d_ff": d_ff,
        "context": context,
    }
    train_params: dict[str, Any] = {
        "max_epochs": max_epochs,
        "batch_size": batch_size,
        "mask_fraction": mask_fraction,
        "lr": lr,
        "weight_decay": weight_decay,
        "warmup": warmup,
        "precision": precision,
        "compile": compile,
        "device": device,
    }
    for name, text in (("tokens_key", tokens_key), ("device", device), ("precision", precision)):
        check_text(name, text)
    check_seed(seed)
    for name, flag in (("copy", copy), ("return_model", return_model)):
        check_flag(name, flag)
    slots = _keys.slots(key_added)
    box: Any = _read.container(data, table_key)
    if _read.is_mudata(box):
        raise TypeError('visiumformer takes AnnData or SpatialData: pass the modality, for example mdata["rna"].')
    _check_free(box, slots, tokens_key)
    if copy:
        _record.check_copy(data)
    from stfuse.model._visiumformer import Visiumformer, sizes_of
    from stfuse.train._fit import resolve_device

    resolve_device(device)
    sizes_of(**model_params)
    private, made = _private(box, tokens_key)
    Visiumformer.setup_anndata(private, tokens_key)
    model = Visiumformer(private, **model_params)
    model.train(**train_params, seed=seed, progress=progress)
    codes = model.get_latent_representation(device=device, progress=progress)
    record = {
        "method": "visiumformer",
        "params": {"tokens_key": tokens_key} | model_params | train_params,
        "seed": seed,
        "versions": _record.versions(),
        "n_obs": {"total": len(codes), "rna": int((~np.isnan(codes[:, 0])).sum())},
        "history": pd.concat(list(model.history_.values()), axis=1),
    }
    obsm, uns = {slots.fused: codes}, {slots.record: record}
    if made:
        obsm[tokens_key], uns[tokens_key] = private.obsm[tokens_key], made
    target = _record.copy_of(data, table_key) if copy else data
    _record.write(target, obsm=obsm, uns=uns, table_key=table_key)
    found = [value for value, asked in ((target, copy), (model, return_model)) if asked]
    return tuple(found) if len(found) == 2 else (found[0] if found else None)


def _private(box: AnnData, key: str) -> tuple[AnnData, dict[str, Any] | None]:
    """Tokens in a small AnnData, where scvi-tools leaves its bookkeeping; and the record of those that had to be made."""
    private, made = AnnData(obs=pd.DataFrame(index=box.obs_names)), None
    if key == TOKENS and key not in box.obsm:
        logger.info("obsm[%r] is made by stfuse.pp.rank_tokens", key)
        private.obsm[key], made = make_tokens(box)
        private.uns[key] = made
    else:
        private.obsm[key], vocabulary = read_tokens(box, key)
        private.uns[key] = vocabulary.record()
    return private, made


def _check_free(box: Any, slots: _keys.Slots, tokens_key: str) -> None:
    """Refuse a name under which results would overwrite the tokens or what somebody else keeps."""
    there = box.uns.get(slots.record)
    own = isinstance(there, Mapping) and there.get("method") == "visiumformer"
    what = None
    if {slots.record, slots.fused} & {tokens_key, _keys.SPATIAL}:
        what = "an input"
    elif there is not None and not own:
        what = f"uns[{slots.record!r}], which is no record of this function"
    elif slots.fused in box.obsm and not own and slots.record != "visiumformer":
        what = f"obsm[{slots.fused!r}], of which uns[{slots.record!r}] has no record"
    if what:
        raise ValueError(f"key_added={slots.record!r} would overwrite {what}: choose another name, or delete it first.")
