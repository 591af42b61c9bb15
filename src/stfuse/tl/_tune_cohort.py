"""What tuning works on: private data that methods see, and apart from it what only the scores may see."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData

from stfuse import _keys, _read, tl
from stfuse._views import read_views
from stfuse.metrics._domains import domain_scores
from stfuse.metrics._integration import BATCH, BIO, score_parts
from stfuse.pp._correct_batch import correct_batch
from stfuse.tl._probe import _read_labels
from stfuse.tl._tune_grid import Combination, Grid, signature_of

SCVI = "scvi"
DOMAIN = "tune_domain"
SCORES = (*BIO, *BATCH, "score")


@dataclass(frozen=True)
class Cohort:
    """Private data, and as integer codes what no method may see: ``labels`` are -1 where missing, None without a key."""

    adata: AnnData
    views: dict[str, list[str]]
    library_key: str | None
    batch_key: str
    batch: np.ndarray
    donor: np.ndarray
    donors: list[str]
    labels: np.ndarray | None

    def names(self, rows: np.ndarray) -> str:
        """Name the donors of some rows."""
        return ", ".join(self.donors[i] for i in np.unique(self.donor[rows]))

    def n_classes(self, rows: np.ndarray) -> int:
        """Count the different labels of some rows."""
        return 0 if self.labels is None else len(np.unique(self.labels[rows][self.labels[rows] >= 0]))

    def n_batches(self, rows: np.ndarray) -> int:
        """Count the batches of some rows that have more than one observation."""
        return int((np.bincount(self.batch[rows]) > 1).sum())


@dataclass(frozen=True)
class Job:
    """How any combination is run on any donors."""

    method: str
    fixed: dict[str, Any]
    correct: str | None
    n_clusters: int | None
    bio_weight: float
    seed: int

    def clusters(self, cohort: Cohort, rows: np.ndarray) -> int:
        """Give the number of domains for some rows: what the user says, or as many as there are labels."""
        return self.n_clusters or cohort.n_classes(rows)


def read_cohort(
    data: Any,
    grid: Grid,
    fixed: Mapping[str, Any],
    *,
    groups: str,
    label_key: str | None,
    batch_key: str | None,
    library_key: str | None,
    table_key: str | None,
    counts: bool,
) -> Cohort:
    """Read all that methods and scores need; ``counts`` says whether a correction starts from them."""
    box: Any = _read.container(data, table_key)
    if box.n_obs == 0:
        raise ValueError("There are no observations.")
    _read.check_names(box.obs_names, "the data")
    donor, donors = _read.read_codes(_read.read_column(data, groups, table_key), groups, "groups")
    library_key = library_key or _read.find_library_key(data, table_key)
    roles = {"batch_key": batch_key, "library_key": library_key, "groups": groups}
    role, column = next((role, str(key)) for role, key in roles.items() if key is not None)
    batch, batches = _read.read_codes(_read.read_column(data, column, table_key), column, role)
    adata = _with_counts(box) if counts else AnnData(obs=pd.DataFrame(index=box.obs_names))
    for key in _columns(grid, fixed, library_key):
        adata.obs[key] = _read.read_column(data, key, table_key).to_numpy()
    adata.obs[column] = pd.Categorical.from_codes(batch, batches)
    views = {key: _tried(key, grid, fixed) for key in ("image_key", "rna_key")}
    for image_key in views["image_key"]:
        for rna_key in views["rna_key"]:
            adata.obsm.update(_read_both(data, image_key, rna_key, table_key))
    _place(adata, data, table_key)
    labels = None if label_key is None else _read_labels(data, label_key, table_key).values
    if labels is not None and not (labels >= 0).any():
        raise ValueError(f"Every value of obs[{label_key!r}] (label_key) is missing: leave label_key away, or fill it.")
    return Cohort(adata, views, library_key, column, batch, donor, donors, labels)


def _with_counts(box: Any) -> AnnData:
    if _read.is_mudata(box):
        raise ValueError(
            "Tuning with scVI reads counts from an AnnData, not from a MuData: call stfuse.pp.correct_batch first and tune on "
            "its result, or give an AnnData that holds both views in obsm."
        )
    return AnnData(X=box.X, obs=pd.DataFrame(index=box.obs_names), var=box.var[[]], layers=dict(box.layers))


def _tried(key: str, grid: Grid, fixed: Mapping[str, Any]) -> list[Any]:
    """Values that an argument takes: from the grid, as given, or by default."""
    return grid.values.get(key) or [fixed.get(key, signature_of(grid.method)[key].default)]


def _columns(grid: Grid, fixed: Mapping[str, Any], library_key: str | None) -> list[str]:
    """Columns of `obs` that the method reads."""
    names = [p for p in signature_of(grid.method) if p.endswith("_key") and p not in {"image_key", "rna_key"}]
    tried = [key for name in names for key in _tried(name, grid, fixed)]
    return list(dict.fromkeys(key for key in [*tried, library_key] if key is not None))


def _read_both(data: Any, image_key: str, rna_key: str, table_key: str | None) -> dict[str, np.ndarray]:
    try:
        views = read_views(data, image_key=image_key, rna_key=rna_key, table_key=table_key)
    except KeyError as error:
        raise KeyError(
            f"{error.args[0]} Tuning makes no views by itself: stfuse.pp.recipe_cross_sample, or stfuse.pp.image_features and "
            "stfuse.pp.rna_features, write them."
        ) from error
    return {image_key: views.image, rna_key: views.rna}


def _place(adata: AnnData, data: Any, table_key: str | None) -> None:
    spatial, array = _read.read_coordinates(data, _keys.SPATIAL, table_key), _read.read_array(data, table_key)
    if spatial is not None:
        adata.obsm[_keys.SPATIAL] = spatial
    if array is not None:
        for name, values in zip(_keys.ARRAY[0], array.T, strict=True):
            adata.obs[name] = values


def evaluate(
    cohort: Cohort, rows: np.ndarray, combinations: Sequence[Combination], job: Job
) -> Iterator[dict[str, Any]]:
    """Run combinations on some donors alone and score them; steps that two in a row share are taken once.

    ``seconds`` is what a combination takes without such sharing.
    """
    small = cohort.adata[rows].copy()
    last: Combination | None = None
    corrected, codes = small, np.empty((0, 0))
    spent = {"correction": 0.0, "method": 0.0}
    for one in combinations:
        fresh = last is None or one.correction != last.correction
        if fresh:
            start = perf_counter()
            corrected = _correct(small, one.correction, cohort, job)
            spent["correction"] = perf_counter() - start
        if fresh or last is None or one.arguments != last.arguments:
            start = perf_counter()
            codes = _codes(corrected, one.arguments, cohort, job, rows)
            spent["method"] = perf_counter() - start
        start = perf_counter()
        found = _domains(corrected, codes, one.domains, cohort, job, rows)
        seconds = sum(spent.values()) + perf_counter() - start
        last = one
        yield _scores(cohort, rows, codes, found, job.bio_weight) | {"seconds": seconds}


def _correct(small: AnnData, arguments: dict[str, Any], cohort: Cohort, job: Job) -> AnnData:
    if job.correct is None:
        return small
    corrected = small.copy()
    chosen = {"method": job.correct} | arguments
    keys = [(key, role) for role, tried in cohort.views.items() for key in tried]
    for key, role in keys:
        # scVI is a model of counts: images are left to Harmony
        how = {"method": "harmony"} if chosen["method"] == SCVI and role == "image_key" else chosen
        correct_batch(
            corrected, key, batch_key=cohort.batch_key, key_added=DOMAIN, seed=job.seed, progress=False, **how
        )
        corrected.obsm[key] = corrected.obsm.pop(DOMAIN)
    return corrected


def _codes(small: AnnData, arguments: dict[str, Any], cohort: Cohort, job: Job, rows: np.ndarray) -> np.ndarray:
    shared = {"n_clusters": job.clusters(cohort, rows), "library_key": cohort.library_key, "seed": job.seed}
    taken = {name: value for name, value in (shared | {"progress": False}).items() if name in signature_of(job.method)}
    work = small.copy()
    getattr(tl, job.method)(work, **{**taken, **job.fixed, **arguments})
    return np.asarray(work.obsm[_keys.slots(job.method).fused])


def _domains(
    small: AnnData, codes: np.ndarray, arguments: dict[str, Any], cohort: Cohort, job: Job, rows: np.ndarray
) -> np.ndarray:
    work = AnnData(obs=small.obs)
    work.obsm["X_tune"] = codes
    if _keys.SPATIAL in small.obsm:
        work.obsm[_keys.SPATIAL] = small.obsm[_keys.SPATIAL]
    tl.domains(
        work,
        use_rep="X_tune",
        n_clusters=job.clusters(cohort, rows),
        neighbors=False,
        library_key=cohort.library_key,
        key_added=DOMAIN,
        seed=job.seed,
        **arguments,
    )
    return work.obs[DOMAIN].cat.codes.to_numpy()


def _scores(
    cohort: Cohort, rows: np.ndarray, codes: np.ndarray, found: np.ndarray, bio_weight: float
) -> dict[str, Any]:
    coded = ~np.isnan(codes).any(axis=1)
    where, found = rows[coded], found[coded]
    labels = cohort.labels[where] if cohort.labels is not None and cohort.n_classes(where) > 1 else None
    scores = score_parts(codes[coded], cohort.batch[where], labels, found, bio_weight)
    donor = cohort.donor[where]
    scores["donor_ari"] = domain_scores(donor, found)["ari"] if len(np.unique(donor)) > 1 else float("nan")
    return scores
