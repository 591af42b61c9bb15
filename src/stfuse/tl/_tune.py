"""Choose parameters on some donors and test them on others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import pandas as pd

from stfuse import _read, _record
from stfuse._check import check_flag, check_number, check_seed, check_target, check_text
from stfuse._log import logger, warn
from stfuse._progress import counting
from stfuse.metrics._integration import BATCH, BIO, WITHOUT_SCIB, scib_metrics
from stfuse.pp._correct._parameters import check_method
from stfuse.pp._correct_batch import make_correction
from stfuse.tl._tune_cohort import SCORES, SCVI, Cohort, Job, evaluate, read_cohort
from stfuse.tl._tune_folds import Fold, donor_folds
from stfuse.tl._tune_grid import CORRECTION, DOMAINS, Combination, Grid, check_fixed, read_grid, signature_of

MARK = "best"  # the entry of the record by which a result of this function is told


def tune(
    data: Any,
    method: str = "aestetik",
    *,
    groups: str,
    grid: Mapping[str, Sequence[Any]] | None = None,
    label_key: str | None = None,
    n_clusters: int | None = None,
    bio_weight: float = 0.6,
    correct: Literal["harmony", "scanorama", "scvi"] | None = None,
    task: Literal["multi-donor", "single-donor"] = "multi-donor",
    n_splits: int | None = None,
    batch_key: str | None = None,
    library_key: str | None = None,
    table_key: str | None = None,
    key_added: str = "tune",
    seed: int = 0,
    progress: bool | None = None,
    copy: bool = False,
    **fixed: Any,
) -> Any:
    r"""Choose parameters by nested cross-validation over donors: on some donors, tested on others.

    Parameters that were chosen on the data they are judged by look better than they are, and spots of one donor are no
    new data. In each fold the donors are parted. On the tuning donors every combination of the grid is run (correction if
    asked for, codes learnt from all their samples together, domains of all together) and scored by

    .. math::

        \text{score} = \lambda\, \overline{(\text{ARI}, \text{NMI}, \text{silhouette})} +
        (1 - \lambda)\, \overline{(\text{iLISI}, \text{kBET})}.

    The best one is then run on the test donors alone, from the start and not with a model of the tuning donors, and
    scored there.

    Parameters
    ----------
    data
        AnnData, MuData or SpatialData with both views.
    method
        Any fusion method, by the name of its function in `stfuse.tl`.
    groups
        Column of `obs` with the donor. Donors are never torn apart.
    grid
        What to try: argument to list of values. Arguments of the method by their names, those of the domains and of the batch
        correction after a prefix, as in `{"image_weight": [0, 1.5], "domains.refine": [True, False], "correct_batch.theta":
        [1, 2]}`. None: for `"aestetik"` that of the study, `image_weight` 0, 1, 1.5, 2, 3, `window_size` 5, 7 and
        `domains.refine`, less what is given as an argument; other methods have none.
    label_key
        Column of `obs` with known labels; some may be missing. No method sees them. None: the silhouette of the domains that were
        found is all that is known of the biology.
    n_clusters
        Number of domains, also for the method if it takes one. None: the number of different labels among the donors that
        are looked at.
    bio_weight
        :math:`\lambda`, the weight of the biology against mixing, between 0 and 1.
    correct
        Correct both views by this method of :func:`stfuse.pp.correct_batch`, among the tuning donors and among the test
        donors separately; with `"scvi"` the image by Harmony. None: views are taken as they are, unless the grid has an
        argument of the correction.
    task
        `"multi-donor"`: the tuning donors are all that are not in the test set, and the test donors are run together.
        `"single-donor"`: each donor in turn is the tuning set, and every other one is tested by itself.
    n_splits
        Number of folds with `"multi-donor"`, whole donors in each. None: one donor is left out at a time. Fewer folds give
        test sets of several donors, and so a `donor_ari`.
    batch_key
        Column of `obs` with the batches that should mix: those of iLISI, kBET and the correction. It is handed to the method
        too, unless views are corrected here. None: the sections, else the donors.
    library_key
        Column of `obs` that tells sections apart. None = the column whose values are the sections in `uns["spatial"]`, or
        one section.
    table_key
        SpatialData: which table.
    key_added
        Key of the table in `uns`; the record has `_params` after it.
    seed
        Seed of every step of every combination.
    progress
        Whether to show a bar. None = in a terminal or notebook, after two seconds.
    copy
        Whether to return a changed copy instead of changing `data`.
    **fixed
        Other arguments of the method, the same for all combinations: `image_key`, `rna_key`, `max_epochs` and so on.

    Returns
    -------
    None, or the changed copy. Written are

    - `uns["tune"]`: a DataFrame, one row for each combination, fold and stage: `fold`; `stage`, `"tune"` or `"test"`;
      `donors`; one column for each name of the grid (a column that holds neither numbers only nor booleans only is text);
      `n_clusters`; `ari`, `nmi`, `silhouette`, `ilisi`, `kbet` and `score` as in
      :func:`stfuse.metrics.integration_scores`; `donor_ari`, the agreement of domains with donors (lower is better, NaN for a
      single donor); `seconds` that the combination takes by itself, without scores (the first ones load packages too)
    - `uns["tune_params"]`: `best`, the arguments that were chosen most often (of equals the one with the higher mean score on
      the tuning sets), by step: `best["aestetik"]`, `best["domains"]`, `best["correct_batch"]`; `n_chosen` of `n_folds`; all
      parameters, the column of the batches, the scores that took part, seed and versions

    Raises
    ------
    KeyError
        If a column or a view is not there: tuning makes no views.
    ValueError
        If there is one donor, a donor or batch is missing somewhere, all labels are missing, there are neither labels nor
        `n_clusters`, the grid is empty or names what can't be tuned, a number is out of range, `key_added` is the name of
        something else, or nothing that carries weight can be scored. A value that the method itself refuses is
        found when its turn comes. Nothing is written then.
    TypeError
        If an argument is of the wrong type, or the method does not take it.
    ImportError
        If Scanorama is asked for and not installed.

    Warns
    -----
    UserWarning
        If scib-metrics is not installed (`pip install 'stfuse[scores]'`) or a tuning set has one batch, so that mixing is
        not scored; if donors have no two different labels; if a batch has a single observation.

    Notes
    -----
    Test donors have no part in the choice, but features that were made from all donors together (components, a correction)
    have seen them, though not their labels. With `correct` that step at least is repeated in each set.

    Combinations that differ only in the domains share their code, and those that differ only in the method share the
    correction: the time is that of the different codes. With few donors the folds disagree easily; look at the table,
    and not at `best` alone.

    References: the cross-sample study of AESTETIK, section 3.3 and table 1; its score is that of Luecken et al. (2022).

    Examples
    --------
    >>> import stfuse
    >>> adata = stfuse.datasets.synthetic_tissue(300, 3, n_classes=(3, 1, 1))
    >>> grid = {"n_components": [5, 20], "domains.refine": [True, False]}
    >>> keys = {"groups": "section", "label_key": "domain", "library_key": "section"}
    >>> stfuse.tl.tune(adata, "concat", grid=grid, **keys)
    >>> table = adata.uns["tune"]
    >>> table["stage"].value_counts().to_dict()
    {'tune': 12, 'test': 3}
    >>> best = adata.uns["tune_params"]["best"]
    >>> stfuse.tl.concat(adata, **best["concat"])
    >>> stfuse.tl.domains(adata, use_rep="X_concat", n_clusters=3, library_key="section", **best["domains"])
    """
    params = _record.params_of(locals(), "table_key", "fixed") | dict(fixed)
    taken = signature_of(method)
    _check_arguments(groups, label_key, batch_key, library_key, n_clusters, bio_weight, n_splits, seed, progress, copy)
    check_fixed(fixed, method)
    chosen_grid = read_grid(grid, method, fixed)
    combinations = chosen_grid.combinations()
    correction = _check_correction(correct, chosen_grid, combinations, seed)
    box: Any = _read.container(data, table_key)
    _check_key(box, key_added)
    if copy:
        _record.check_copy(data)

    if batch_key is not None and correction is None and "batch_key" in taken:
        fixed = {"batch_key": batch_key} | fixed
    cohort = read_cohort(
        data,
        chosen_grid,
        fixed,
        groups=groups,
        label_key=label_key,
        batch_key=batch_key,
        library_key=library_key,
        table_key=table_key,
        counts=any(one.correction.get("method", correction) == SCVI for one in combinations),
    )
    folds = donor_folds(cohort.donor, cohort.donors, groups, task, n_splits)
    job = Job(method, fixed, correction, n_clusters, float(bio_weight), int(seed))
    _check_sets(cohort, folds, job, label_key)
    _warn_of_limits(cohort, folds, job, label_key)

    rows, choices, means = _cross_validate(cohort, folds, combinations, job, progress)
    best, n_chosen = _most_chosen(choices, means)
    table = _table(rows, chosen_grid, combinations)
    record = {
        "params": params | {"grid": chosen_grid.values, "correct": correction},
        MARK: {
            method: combinations[best].arguments,
            DOMAINS: combinations[best].domains,
            CORRECTION: ({} if correction is None else {"method": correction}) | combinations[best].correction,
        },
        "n_chosen": n_chosen,
        "n_folds": len(folds),
        "batch_column": cohort.batch_key,
        "scores": [name for name in (*BIO, *BATCH) if table[name].notna().any()],
        "seed": int(seed),
        "versions": _versions(),
    }
    target = _record.copy_of(data, table_key) if copy else data
    _record.write(target, uns={key_added: table, f"{key_added}_params": record}, table_key=table_key)
    return target if copy else None


def _versions() -> dict[str, str]:
    package = scib_metrics()
    return _record.versions() | ({} if package is None else {"scib-metrics": package.__version__})


def _check_arguments(
    groups: Any,
    label_key: Any,
    batch_key: Any,
    library_key: Any,
    n_clusters: Any,
    bio_weight: Any,
    n_splits: Any,
    seed: Any,
    *flags: Any,
) -> None:
    check_text("groups", groups)
    for name, key in (("label_key", label_key), ("batch_key", batch_key), ("library_key", library_key)):
        check_text(name, key, optional=True)
    if label_key is None and n_clusters is None:
        raise ValueError("Without label_key nothing says how many domains there are: give n_clusters=, or label_key=.")
    check_number("n_clusters", n_clusters, least=2, whole=True, optional=True)
    check_number("bio_weight", bio_weight, least=0, most=1)
    check_number("n_splits", n_splits, least=2, whole=True, optional=True)
    check_seed(seed)
    progress, copy = flags
    check_flag("progress", progress, optional=True)
    check_flag("copy", copy)


def _check_correction(correct: str | None, grid: Grid, combinations: list[Combination], seed: int) -> str | None:
    """Settle how views are corrected, None = not at all; refuse what no correction takes before anything is run."""
    varied = f"{CORRECTION}.method" in grid.values
    if correct is None and not grid.corrects:
        return None
    if correct is not None and varied:
        raise ValueError(f"correct={correct!r} is given, and {CORRECTION + '.method'!r} is in the grid: leave one out.")
    correct = "harmony" if correct is None else correct
    check_method(correct)
    for one in combinations:
        given = {name: value for name, value in one.correction.items() if name != "method"}
        make_correction(one.correction.get("method", correct), given, seed=seed)
    return correct


def _check_key(box: Any, key: str) -> None:
    check_text("key_added", key)
    record = f"{key}_params"
    check_target(box, "key_added", record, slots=("uns",), mark=MARK, inputs={}, default="tune_params")
    # the table is no mapping: what is beside it tells whose it is
    own = record in box.uns
    check_target(box, "key_added", key, slots=() if own else ("uns",), mark=MARK, inputs={}, default="tune")


def _check_sets(cohort: Cohort, folds: list[Fold], job: Job, label_key: str | None) -> None:
    """Refuse sets of donors for which a number of domains is not known or not possible."""
    for rows in (rows for fold in folds for rows in (fold.tuning, *fold.tests)):
        k = job.clusters(cohort, rows)
        who = f"{len(rows)} observation(s) of donor(s) {cohort.names(rows)}"
        if k < 2:
            raise ValueError(
                f"obs[{label_key!r}] (label_key) has {k} label(s) among the {who}, so that their number of domains is not known: "
                "give n_clusters=, or leave these donors out."
            )
        if k >= len(rows):
            raise ValueError(f"The {who} can't be put into {k} domains: leave them out, or choose fewer.")


def _warn_of_limits(cohort: Cohort, folds: list[Fold], job: Job, label_key: str | None) -> None:
    """Warn once of what can't be scored, and refuse where no weight is left."""
    alone = [fold for fold in folds if cohort.n_batches(fold.tuning) < 2]
    missing = scib_metrics() is None
    if (alone or missing) and not job.bio_weight:
        why = (
            "scib-metrics is not installed" if missing else f"the tuning set of fold {alone[0].name} has a single batch"
        )
        raise ValueError(f"bio_weight=0 scores nothing but mixing, and {why}.")
    if missing:
        warn(WITHOUT_SCIB)
    elif alone:
        warn(
            f"In {len(alone)} of {len(folds)} folds the tuning set has a single batch of obs[{cohort.batch_key!r}]: mixing is not "
            "scored there, and the score is that of the biology."
        )
    single = int((np.bincount(cohort.batch) == 1).sum())
    if single:
        warn(
            f"{single} batch(es) of obs[{cohort.batch_key!r}] have a single observation, which can't be mixed: these "
            "observations are left out of iLISI and kBET."
        )
    donors = [np.flatnonzero(cohort.donor == code) for code in range(len(cohort.donors))]
    unlabelled = [cohort.names(rows) for rows in donors if label_key is not None and cohort.n_classes(rows) < 2]
    if unlabelled:
        warn(f"obs[{label_key!r}] (label_key) has no two different labels in donor(s) {', '.join(unlabelled)}.")


def _cross_validate(
    cohort: Cohort, folds: list[Fold], combinations: list[Combination], job: Job, progress: bool | None
) -> tuple[list[dict[str, Any]], list[int], np.ndarray]:
    """Run all folds: rows of the table, the combination that each fold chose, and the mean tuning score of each."""
    n_tests = sum(len(fold.tests) for fold in folds)
    logger.info("%d combinations in %d folds, %d tests", len(combinations), len(folds), n_tests)
    rows: list[dict[str, Any]] = []
    choices: list[int] = []
    scores = np.empty((len(folds), len(combinations)))

    def run(fold: Fold, stage: str, where: np.ndarray, which: list[int]) -> None:
        about: dict[str, Any] = {"fold": fold.name, "stage": stage, "donors": cohort.names(where)}
        about |= {"n_clusters": job.clusters(cohort, where)}
        for i, found in zip(which, evaluate(cohort, where, [combinations[i] for i in which], job), strict=True):
            rows.append(about | {"combination": i} | found)
            advance(1)

    with counting(len(folds) * len(combinations) + n_tests, desc="tune", show=progress) as advance:
        for f, fold in enumerate(folds):
            run(fold, "tune", fold.tuning, list(range(len(combinations))))
            scores[f] = [row["score"] for row in rows[-len(combinations) :]]
            choices.append(int(scores[f].argmax()))
            for where in fold.tests:
                run(fold, "test", where, [choices[-1]])
    return rows, choices, scores.mean(axis=0)


def _most_chosen(choices: list[int], means: np.ndarray) -> tuple[int, int]:
    """Name the combination that most folds chose, of equals the one with the best mean score, and how many did."""
    often = np.bincount(choices, minlength=len(means))
    best = max(range(len(means)), key=lambda i: (often[i], means[i]))
    return best, int(often[best])


def _table(rows: list[dict[str, Any]], grid: Grid, combinations: list[Combination]) -> pd.DataFrame:
    table = pd.DataFrame(rows)
    values = grid.columns([combinations[i] for i in table["combination"]])
    first = table[["fold", "stage", "donors"]].assign(**values)
    return pd.concat([first, table[["n_clusters", *SCORES, "donor_ari", "seconds"]]], axis=1)
