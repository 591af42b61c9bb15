"""Both views of a cohort, comparable across samples, in one call."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from stfuse import _keys, _read, _record
from stfuse._check import check_flag, check_text
from stfuse._log import logger, warn
from stfuse.pp._correct._run import correct_features
from stfuse.pp._correct_batch import MARK, holders, make_correction, read_batches
from stfuse.pp._cross_sample_steps import (
    IMAGE_COMPONENTS,
    Settings,
    Steps,
    image_components,
    read_counts,
    read_image,
    rna_components,
)

RECORD = "recipe_cross_sample"


def recipe_cross_sample(
    data: Any,
    *,
    batch_key: str,
    image_key: str = _keys.IMAGE,
    layer: str | None = None,
    min_cells: int = 10,
    n_top_genes: int = 3000,
    n_comps: int = 20,
    max_value: float | None = None,
    scale_image: bool = True,
    method: str = "harmony",
    theta: float = 2.0,
    sigma: float | None = None,
    knn: int | None = None,
    n_layers: int | None = None,
    max_epochs: int | None = None,
    library_key: str | None = None,
    table_key: str | None = None,
    seed: int = 0,
    device: str = "auto",
    progress: bool | None = None,
    copy: bool = False,
) -> Any:
    """Make both views of several samples comparable: components of each, corrected for the sample.

    The preparation of the cross-sample study of AESTETIK, in one call and on a copy of the counts. RNA: genes that few
    observations have are left out, genes are ranked by variance within each sample, counts are scaled to 10,000 an
    observation, log1p-transformed, each gene is brought to mean 0 and variance 1, and principal components are taken. Image: principal
    components of the features of all samples together. Both are corrected for the sample as
    :func:`stfuse.pp.correct_batch` does, the image always by Harmony.

    Parameters
    ----------
    data
        AnnData or SpatialData with raw counts of all samples, or a MuData with modalities `rna` and `image`.
    batch_key
        Column of `obs` that says which sample an observation comes from.
    image_key
        Key of the image features in `obsm`; a row of NaN = no image. Where it is left at its default and is not there, they are
        made by :func:`stfuse.pp.image_features` and written.
    layer
        Layer that holds the counts. None = `X`.
    min_cells
        Least number of observations in which a gene must be seen.
    n_top_genes
        Number of genes that are used; all that are left where there are no more.
    n_comps
        Number of components of either view; fewer where there are fewer genes, image features or observations.
    max_value
        Scaled expression is clipped at this many standard deviations. None = not at all. Clipping needs a dense
        matrix of observations x genes.
    scale_image
        Whether each image feature is brought to variance 1 before components are taken.
    method
        How the RNA is corrected: `"harmony"` or `"scanorama"`, which correct its components, or `"scvi"`, which learns
        `n_comps` numbers from the counts of the chosen genes.
    theta
        Harmony, hence always the image: see :func:`stfuse.pp.correct_batch`, as for the next four.
    sigma
        Scanorama. None = 15.
    knn
        Scanorama. None = 20.
    n_layers
        scVI. None = 1.
    max_epochs
        scVI. None = scvi-tools' rule.
    library_key
        Column of `obs` that names the section of each observation, where image features have to be made. None = found when
        one column fits `uns["spatial"]`.
    table_key
        SpatialData: which table.
    seed
        Seed of Harmony and scVI.
    device
        scVI: where it is trained.
    progress
        scVI: whether to show a progress bar.
    copy
        Whether to return a changed copy instead of changing `data`.

    Returns
    -------
    None, or the changed copy. Written are, in a MuData globally,

    - `obsm["X_pca"]`, `obsm["X_image_pca"]`: n x n_comps, float32, not corrected
    - `obsm[f"X_pca_{method}"]`, `obsm["X_image_pca_harmony"]`: the same, corrected
    - `uns["recipe_cross_sample"]`: `steps`, a DataFrame that names each step in order with its parameters and what it
      writes; the `genes` that were used, all parameters, the seed, versions and numbers of observations
    - `uns` of each corrected key, as :func:`stfuse.pp.correct_batch` writes it, and of `"X_pca"`
    - `obsm[image_key]`, if the features had to be made

    A row of NaN means that the view is missing: no image, or no counts. `X`, layers and `var` stay as they are.
    An `obsm["X_pca"]` that was there is replaced, which the log says.

    Raises
    ------
    KeyError
        If the column, the layer, the image features or a modality is missing, or there is no image to make features from.
    ValueError
        If there are no counts, too few genes are left, the column has missing values, the image features are infinite or
        missing in part of a row, a parameter belongs to another method or is out of its range, or one of the keys holds
        something that neither this function nor `correct_batch` wrote.
    TypeError
        If an argument is of the wrong type.
    ImportError
        If Scanorama is not installed: `pip install 'stfuse[correction]'`.

    Warns
    -----
    UserWarning
        If there is one batch only, a batch has a single observation or too few to rank genes in, observations have no counts,
        the counts are not whole numbers, or, in a MuData, the RNA modality keeps an `X_pca` of its own.

    Notes
    -----
    RNA equals `scanpy.pp.filter_genes`, `highly_variable_genes` (`seurat_v3` with the batch key), `normalize_total`, `log1p`,
    `scale` and `pca`, in this order; genes are ranked within batches of ten observations or more. The size of an observation is its
    sum over all genes that pass the filter, not over the chosen ones, so that it does not depend on the choice. The study does
    not say which it used.

    The study takes components of the image features as they are. Features of networks differ little in scale, and
    standardising changes little there; named features such as those of the `"texture"` encoder have units of their own, and
    the largest would be the only one seen. `scale_image=False` does as the study.

    References: Nonchev et al., cross-sample AESTETIK, appendix A.5.

    Examples
    --------
    >>> import stfuse
    >>> adata = stfuse.datasets.synthetic_tissue(600, 3, batch_effect=1.0)
    >>> stfuse.pp.recipe_cross_sample(adata, batch_key="section")
    >>> [key for key in adata.obsm if key.endswith("_harmony")]
    ['X_pca_harmony', 'X_image_pca_harmony']
    >>> list(adata.uns["recipe_cross_sample"]["steps"]["step"])[:3]
    ['filter_genes', 'highly_variable_genes', 'normalize_total']
    """
    settings = Settings(min_cells, n_top_genes, n_comps, max_value, scale_image, layer, image_key, library_key)
    settings.check()
    check_text("batch_key", batch_key)
    check_flag("copy", copy)
    image_correction = make_correction("harmony", {"theta": theta}, seed=seed, progress=progress)
    given: dict[str, Any] = {"sigma": sigma, "knn": knn, "n_layers": n_layers, "max_epochs": max_epochs}
    given |= {"theta": theta if method == "harmony" else None, "n_latent": n_comps if method == "scvi" else None}
    given["layer"] = layer if method == "scvi" else None
    rna_correction = make_correction(method, given, seed=seed, device=device, progress=progress)
    corrected = f"{_keys.RNA}_{method}"
    keys = [_keys.RNA, IMAGE_COMPONENTS, corrected, f"{IMAGE_COMPONENTS}_harmony"]
    box: Any = _read.container(data, table_key)
    _check_free(box, keys, image_key)
    if copy:
        _record.check_copy(data)

    batches = read_batches(data, batch_key, table_key)
    counts = read_counts(box, settings, whole=method == "scvi")
    image, made = read_image(data, settings, table_key)
    steps = Steps()
    obsm: dict[str, np.ndarray] = dict(made)
    uns: dict[str, Any] = {}
    scores, rna, record, genes = rna_components(counts, batches, settings, rna_correction, steps)
    obsm |= {_keys.RNA: scores, corrected: rna}
    uns[corrected] = record
    components = image_components(image, settings, steps)
    obsm[IMAGE_COMPONENTS] = components
    key = f"{IMAGE_COMPONENTS}_harmony"
    obsm[key], uns[key] = correct_features(components, batches, image_correction, IMAGE_COMPONENTS)
    steps.add("image", "correct_batch", key, batch_key=batch_key, method="harmony", theta=theta)

    params = {"batch_key": batch_key, "method": method, **vars(settings), "theta": theta, **record["params"]}
    # what rna_features would tell of its own components; those of scaled genes lead to no expression
    about = {"n_comps": scores.shape[1], "n_top_genes": n_top_genes, "batch_key": batch_key, "layer": layer}
    uns[_keys.RNA] = about | {"recipe": RECORD}
    has = {"total": box.n_obs, "rna": int(counts.rows.sum()), "image": int((~np.isnan(image[:, 0])).sum())}
    uns[RECORD] = {
        "params": params,
        "steps": steps.table(),
        "genes": np.asarray(genes, dtype=str),
        "obsm": keys,
        "n_obs": has,
        "seed": int(seed),
        "versions": image_correction.versions | rna_correction.versions,
    }
    _tell_replaced(box)
    target = _record.copy_of(data, table_key) if copy else data
    _record.write(target, obsm=obsm, uns=uns, table_key=table_key)
    return target if copy else None


def _check_free(box: Any, keys: list[str], image_key: str) -> None:
    """Refuse to replace what is no earlier result, `X_pca` apart."""
    if image_key in keys:
        raise ValueError(f"image_key={image_key!r} is a key that is written: copy the features to another one first.")
    earlier = box.uns.get(RECORD)
    if earlier is not None and not (isinstance(earlier, Mapping) and "steps" in earlier):
        raise ValueError(f"uns[{RECORD!r}] is there and no record of this function: rename or delete it first.")
    own = set(earlier["obsm"]) if isinstance(earlier, Mapping) and "obsm" in earlier else set()
    for key in keys:
        hiding = holders(box, key)
        if key != _keys.RNA and hiding:
            raise ValueError(
                f"mdata[{hiding[0]!r}].obsm[{key!r}] is there already and would be read instead of the result, which is "
                "written into the global obsm: rename or delete it first."
            )
        record = box.uns.get(key)
        known = key in own or (isinstance(record, Mapping) and MARK in record)
        if key != _keys.RNA and not known and (key in box.obsm or key in box.uns):
            slot = "obsm" if key in box.obsm else "uns"
            raise ValueError(
                f"{slot}[{key!r}] is there and was not written by recipe_cross_sample or correct_batch: rename or delete it "
                "first."
            )


def _tell_replaced(box: Any) -> None:
    if _keys.RNA in box.obsm:
        logger.info("obsm[%r] is replaced by the components of recipe_cross_sample", _keys.RNA)
    for name in holders(box, _keys.RNA):
        warn(
            f"mdata[{name!r}].obsm[{_keys.RNA!r}] stays, and is what fusion methods read under that name; the components of "
            "recipe_cross_sample, not corrected, are in the global obsm."
        )
