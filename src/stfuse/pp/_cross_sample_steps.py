"""The steps of the cross-sample recipe: counts and image features in, components out."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy.sparse import csr_matrix

from stfuse import _keys, _read
from stfuse._check import check_flag, check_number, check_text, did_you_mean
from stfuse._log import warn
from stfuse.pp._correct._run import Batches, Correction, correct_counts, correct_features
from stfuse.pp._correct_batch import holders, mend
from stfuse.pp._default_views import make_view
from stfuse.pp._recipe import gene_components, log_normalise, present_counts, variable_genes

IMAGE_COMPONENTS = "X_image_pca"


@dataclass
class Steps:
    """What was done, in order."""

    rows: list[dict[str, Any]] = field(default_factory=list)

    def add(self, view: str, step: str, writes: str = "", **parameters: Any) -> None:
        """Name a step, its parameters, and the key that it writes."""
        text = ", ".join(f"{name}={value}" for name, value in parameters.items())
        self.rows.append({"view": view, "step": step, "parameters": text, "writes": writes})

    def table(self) -> pd.DataFrame:
        """Give the steps as h5ad can hold them."""
        return pd.DataFrame(self.rows, index=pd.RangeIndex(1, len(self.rows) + 1).astype(str))


@dataclass(frozen=True)
class Settings:
    """Arguments of the recipe that concern no correction."""

    min_cells: int
    n_top_genes: int
    n_comps: int
    max_value: float | None
    scale_image: bool
    layer: str | None
    image_key: str
    library_key: str | None

    def check(self) -> None:
        """Refuse values that are wrong whatever the data."""
        check_number("min_cells", self.min_cells, least=1, whole=True)
        check_number("n_top_genes", self.n_top_genes, least=2, whole=True)
        check_number("n_comps", self.n_comps, least=1, whole=True)
        check_number("max_value", self.max_value, above=0, optional=True)
        check_flag("scale_image", self.scale_image)
        check_text("layer", self.layer, optional=True)
        check_text("image_key", self.image_key)
        check_text("library_key", self.library_key, optional=True)


@dataclass(frozen=True)
class Counts:
    """Counts of the genes that are kept, of the observations ``rows`` that have any, with their sums over these genes."""

    kept: csr_matrix
    total: np.ndarray
    names: pd.Index
    rows: np.ndarray


def read_counts(box: Any, settings: Settings, *, whole: bool) -> Counts:
    """Read the counts and leave rare genes out; ``whole`` refuses values that are no whole numbers."""
    source: AnnData = box
    if _read.is_mudata(box):
        if "rna" not in box.mod:
            raise KeyError(f"The MuData has no modality 'rna' with counts; it has {_read.listing(box.mod)}.")
        source = box.mod["rna"]
        _read.check_names(source.obs_names, "modality 'rna'")
    words = mend(source, "scVI" if whole else "The recipe")
    counts, _, present = present_counts(source, settings.layer, mend=words, whole=whole)
    seen = np.bincount(counts.indices[counts.data > 0], minlength=counts.shape[1])
    kept = np.flatnonzero(seen >= settings.min_cells)
    if kept.size < 2:
        raise ValueError(
            f"{kept.size} of {len(seen)} genes are seen in {settings.min_cells} or more observations (min_cells), and at least "
            f"two are needed; the most frequent one is seen in {seen.max()}."
        )
    where = box.obs_names.get_indexer(source.obs_names[present])
    # rows in the order of all observations
    counts = counts[np.argsort(where)][:, kept]
    total = np.asarray(counts.sum(axis=1), dtype=np.float64).ravel()
    rows = np.zeros(box.n_obs, dtype=bool)
    rows[where] = True
    if (total == 0).any():
        warn(f"{(total == 0).sum()} observations have counts of rare genes only: their expression features are NaN.")
        rows[np.flatnonzero(rows)[total == 0]] = False
        counts, total = counts[total > 0], total[total > 0]
    return Counts(counts, total, source.var_names[kept], rows)


def read_image(data: Any, settings: Settings, table_key: str | None) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Image features, and those that had to be made, by key."""
    box: Any = _read.container(data, table_key)
    key, made = settings.image_key, {}
    if "image" in holders(box, key):
        values = _read.as_matrix(box.mod["image"].obsm[key], f"mdata['image'].obsm[{key!r}]")
        image = _read.spread(box, "image", values)
    elif key in box.obsm or holders(box, key):
        image = _read.read_rep(data, key, table_key)
    elif key == _keys.IMAGE:
        if _read.is_mudata(box) and "image" not in box.mod:
            raise KeyError(f"The MuData has no modality 'image' with image features; it has {_read.listing(box.mod)}.")
        library_key = settings.library_key or _read.find_library_key(data, table_key)
        image, _ = make_view(data, "image", key, library_key, table_key)
        made[key] = image
    else:
        there = [*box.obsm.keys()]
        raise KeyError(
            f"No obsm[{key!r}] (image_key).{did_you_mean(key, there)} There is {_read.listing(there)}. "
            "stfuse.pp.image_features(adata) makes image features."
        )
    if image.shape[1] == 0:
        raise ValueError(f"obsm[{key!r}] (image_key) has no columns.")
    present = _read.check_values(image, f"obsm[{key!r}] (image_key)")
    if present.sum() < 2:
        raise ValueError(f"obsm[{key!r}] (image_key) is there in {present.sum()} observation(s): all others are NaN.")
    return image, made


def rna_components(
    counts: Counts, batches: Batches, settings: Settings, correction: Correction, steps: Steps
) -> tuple[np.ndarray, np.ndarray, dict[str, Any], pd.Index]:
    """Components, the corrected representation with its record, and the genes."""
    key, corrected = _keys.RNA, f"{_keys.RNA}_{correction.method}"
    steps.add("rna", "filter_genes", min_cells=settings.min_cells, left=len(counts.names))
    genes = np.arange(len(counts.names))
    if genes.size > settings.n_top_genes:
        sample = pd.Series(batches.codes[counts.rows]).map(dict(enumerate(batches.names)))
        genes = variable_genes(counts.kept, settings.n_top_genes, sample)
    ranked: dict[str, Any] = {"flavor": "seurat_v3", "n_top_genes": settings.n_top_genes, "batch_key": batches.key}
    steps.add("rna", "highly_variable_genes", **ranked, left=genes.size)
    chosen = counts.kept[:, genes]
    steps.add("rna", "normalize_total", target_sum=10_000, over="all genes left by filter_genes")
    steps.add("rna", "log1p")
    steps.add("rna", "scale", max_value=settings.max_value)
    matrix = _scale_genes(log_normalise(chosen, counts.total), settings.max_value)
    found, _ = gene_components(matrix, settings.n_comps)
    scores = np.full((len(counts.rows), found.shape[1]), np.nan, dtype=np.float32)
    scores[counts.rows] = found
    steps.add("rna", "pca", key, n_comps=found.shape[1])
    if correction.method == "scvi":
        result, record = _scvi(chosen, counts.rows, batches, correction)
    else:
        result, record = correct_features(scores, batches, correction, key)
    of = "counts of the genes" if correction.method == "scvi" else key
    told = {"batch_key": batches.key, "method": correction.method, **record["params"], "of": of}
    steps.add("rna", "correct_batch", corrected, **told)
    return scores, result, record, counts.names[genes]


def _scvi(
    counts: csr_matrix, rows: np.ndarray, batches: Batches, correction: Correction
) -> tuple[np.ndarray, dict[str, Any]]:
    """Represent the observations that have counts of the chosen genes; without any, scVI knows no size."""
    some = np.asarray(counts.sum(axis=1)).ravel() > 0
    seen = rows.copy()
    seen[np.flatnonzero(rows)[~some]] = False
    return correct_counts(counts[some], seen, batches, correction, _keys.RNA)


def _scale_genes(matrix: csr_matrix, max_value: float | None) -> csr_matrix | np.ndarray:
    """Bring each gene to variance 1; the mean is taken off by the components, unless values are clipped about it."""
    from sklearn.utils.sparsefuncs import mean_variance_axis

    if max_value is not None:
        import scanpy as sc

        clipped: np.ndarray = sc.pp.scale(matrix.toarray(), max_value=max_value)
        return clipped
    n = matrix.shape[0]
    spread = np.sqrt(mean_variance_axis(matrix.astype(np.float64), axis=0)[1] * n / (n - 1))
    spread[spread == 0] = 1
    scaled = matrix.copy()
    scaled.data /= spread.astype(np.float32)[scaled.indices]
    return scaled


def image_components(image: np.ndarray, settings: Settings, steps: Steps) -> np.ndarray:
    """Components of the image features; rows of NaN stay."""
    import scanpy as sc

    present = ~np.isnan(image[:, 0])
    values = image[present].astype(np.float64)
    values -= values.mean(axis=0)
    if settings.scale_image:
        spread = values.std(axis=0, ddof=1)
        values /= np.where(spread > 0, spread, 1)
        steps.add("image", "scale", of=settings.image_key)
    width = min(settings.n_comps, values.shape[1], len(values) - 1)
    # the quick solver can't give all components
    solver = "arpack" if width < min(values.shape) and min(values.shape) > 50 else "full"
    out = np.full((len(image), width), np.nan, dtype=np.float32)
    out[present] = sc.pp.pca(values, n_comps=width, svd_solver=solver, random_state=0)
    steps.add("image", "pca", IMAGE_COMPONENTS, n_comps=width)
    return out
