"""Labels of slides from their tiles, with attention, scored on patients not seen."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import pandas as pd
from anndata import AnnData

from stfuse import _keys, _record
from stfuse._check import check_flag, check_number, check_seed, check_text
from stfuse._labels import read_classes
from stfuse._log import warn
from stfuse._slides import Cohort, check_anndata, column_of, read_cohort
from stfuse.tl._mil_folds import LABEL, SLIDE, LabelledSlides, Predictions, assign_folds, cross_validate

METHOD = "abmil"  # by which the records of this function are told


def mil(
    slides: AnnData,
    tiles: AnnData,
    *,
    slide_key: str,
    label_key: str,
    image_key: str = _keys.IMAGE,
    groups: str | None = None,
    n_splits: int = 5,
    n_tiles: int | None = 2048,
    n_hidden: int = 256,
    n_attention: int = 128,
    dropout: float = 0.25,
    max_epochs: int = 40,
    batch_size: int = 8,
    lr: float = 1e-3,
    weight_decay: float = 1e-2,
    class_weight: Literal["balanced"] | None = "balanced",
    patience: int | None = None,
    key_added: str = "mil",
    seed: int = 0,
    device: str = "auto",
    copy: bool = False,
    return_model: bool = False,
    progress: bool | None = None,
) -> Any:
    """Predict a label of slides from their tiles: mutation, subtype, grade (attention-based multiple instance learning).

    A slide is a bag of tiles of which only the slide's label is known. The network learns how much each tile counts. Every
    labelled slide is predicted by a model that has seen neither it nor another slide of its patient.

    Parameters
    ----------
    slides
        One row a slide; `obs_names` are the names that tiles refer to.
    tiles
        One row a tile, of any number a slide.
    slide_key
        Column of `tiles.obs` with the name of each tile's slide.
    label_key
        Column of `slides.obs` with classes (categorical, text, whole numbers or boolean). A slide whose label is missing is
        predicted, but not trained on.
    image_key
        Key of the features in `tiles.obsm`, n x d. A row of NaN = the tile is left out.
    groups
        Column of `slides.obs` whose values must not be torn apart, usually the patient. None = each slide is its own.
    n_splits
        Number of folds: whole groups, with about the same share of each class.
    n_tiles
        Tiles of a slide in a step, at most, drawn anew each time. None = all. Predictions always take all.
    n_hidden, n_attention
        Width of a slide's embedding, and of the two branches of the attention.
    dropout
        Fraction dropped after the projection and in both branches.
    max_epochs
        Epochs of each of the `n_splits + 1` trainings, at most.
    batch_size
        Slides a step.
    lr, weight_decay
        Of AdamW.
    class_weight
        `"balanced"`: slides of a rare class weigh more in training, so that all classes weigh the same. None: all slides weigh the
        same.
    patience
        Epochs without a lower loss after which training stops, and the best one is kept. The loss is that of a fifth of the
        training slides, whole groups, which are not trained on then; test slides have no part in it. None = train `max_epochs`.
    key_added
        Name under which everything is written.
    seed
        Seed of folds and training: the same data, arguments and machine give the same numbers.
    device
        `"auto"`, `"cpu"`, `"cuda"`, `"cuda:<index>"` or `"mps"`.
    copy
        Whether to leave both objects alone and return changed copies.
    return_model
        Whether to return the model of all labelled slides.
    progress
        Whether to show a bar. None = in a terminal or notebook.

    Returns
    -------
    pandas.DataFrame; with `copy` or `return_model` a tuple `(slides, tiles, scores)`, `(scores, model)` or
    `(slides, tiles, scores, model)`.
        One row a fold and a last row `"pooled"` over all out-of-fold predictions: `fold`, `n_slides`, `auroc` (two classes or the
        mean of one against the rest; NaN where a fold has one class), `balanced_accuracy` and `macro_f1` (over the classes that
        occur there, F1 also over those predicted there).

        Sets, for `key_added="mil"`:

        - `slides.obsm["mil_proba"]`: DataFrame n x classes, the probability of each class (a slash in a name becomes `_`). Of a
          labelled slide out of fold, of one without a label by the model of all labelled slides
        - `slides.obs["mil_predicted"]`: the most probable class, `"unassigned"` for slides without tiles
        - `slides.obs["mil_fold"]`: the fold in which the slide was held out, -1 for those that no model was trained on
        - `slides.obsm["X_mil"]`: embedding of each slide, n x hidden, by the model of all labelled slides, so that all lie in
          one space. It has seen the labels: look at it, but do not measure on it how well they can be predicted
        - `tiles.obs["mil_attention"]`: how much each tile counts, of sum one within a slide, by the model that predicted the slide
        - `slides.uns["mil"]`: parameters, scores, history of the model of all labelled slides, seed, versions, and how many slides
          and tiles could be used; `tiles.uns["mil"]`: parameters, seed, versions

        Rows are NaN for slides without tiles, and for tiles without features or of slides that are not in `slides`.

    Raises
    ------
    KeyError
        If a key is not there.
    ValueError
        If no tile belongs to a slide, if there are fewer than two classes or fewer groups than folds, if a fold leaves one class
        to train on, if a row of features has NaN next to values or infinite ones, if `key_added` is the name of something
        else, or if a number is out of range. Nothing is written then.
    TypeError
        If an argument is of the wrong type.

    Warns
    -----
    UserWarning
        If there are slides without tiles or tiles of unknown slides, or if a class occurs in one group only, so that no model
        that predicts it has seen it.

    Notes
    -----
    Ilse, Tomczak and Welling (2018), Attention-based deep multiple instance learning; the gated variant. Attention is not a
    probability that a tile shows what the label means: it says which tiles the decision rests on, whatever the class.

    Probabilities of different folds come from different models, so that the pooled AUROC may lie below that of each fold.

    Examples
    --------
    >>> import anndata, pandas as pd, stfuse
    >>> tiles = stfuse.datasets.synthetic_tissue(400, n_sections=8, seed=1)
    >>> table = pd.DataFrame({"grade": ["low", "high"] * 4}, index=tiles.obs["section"].unique().astype(str))
    >>> slides = anndata.AnnData(obs=table)
    >>> scores = stfuse.tl.mil(
    ...     slides, tiles, slide_key="section", label_key="grade", n_splits=2, max_epochs=2, n_hidden=8
    ... )
    >>> list(scores["fold"])
    ['0', '1', 'pooled']
    >>> slides.obsm["X_mil"].shape
    (8, 8)
    """
    run = _record.params_of(locals(), "slides", "tiles")
    _check(run, copy, return_model, progress)
    check_anndata("slides", slides)
    check_anndata("tiles", tiles)
    _check_free(slides, tiles, run)
    if copy:
        _record.check_copy(slides)
        _record.check_copy(tiles)
    cohort = read_cohort(slides, tiles, slide_key, image_key)
    labelled = _read_labels(slides, cohort, label_key, groups)
    fold = assign_folds(labelled, slides.n_obs, n_splits, seed, label_key)
    _tell(cohort)
    found, scores, model = cross_validate(_private(cohort, labelled, tiles.obs_names), labelled, fold, run, progress)

    record = {
        "method": METHOD,
        "params": {k: v for k, v in run.items() if k != "seed"},
        "seed": seed,
        "versions": _record.versions(),
        "classes": labelled.classes,
        "n_obs": cohort.counts() | {"slides_labelled": int((fold >= 0).sum())},
        "scores": scores,
        "history": pd.concat(list(model.history_.values()), axis=1),
    }
    if copy:
        slides, tiles = slides.copy(), tiles.copy()
    _write(slides, tiles, key_added, record, found, fold, labelled.classes)
    given = [slides, tiles] if copy else []
    given += [scores.copy(), *([model] if return_model else [])]
    return given[0] if len(given) == 1 else tuple(given)


def _check(run: Mapping[str, Any], *flags: Any) -> None:
    from stfuse.train._fit import resolve_device

    for name in ("slide_key", "label_key", "image_key", "key_added"):
        check_text(name, run[name])
    check_text("groups", run["groups"], optional=True)
    check_number("n_splits", run["n_splits"], least=2, whole=True)
    check_number("patience", run["patience"], least=1, whole=True, optional=True)
    check_seed(run["seed"])
    copy, return_model, progress = flags
    check_flag("copy", copy)
    check_flag("return_model", return_model)
    check_flag("progress", progress, optional=True)
    resolve_device(run["device"])


def _check_free(slides: AnnData, tiles: AnnData, run: Mapping[str, Any]) -> None:
    """Refuse to write over what is read, and over what is no earlier result of this function."""
    key = run["key_added"]
    if "/" in key:
        raise ValueError(f"key_added={key!r} holds a slash, which h5ad cannot store: choose another name.")
    for where, adata, names, inputs in (
        ("slides", slides, (f"{key}_predicted", f"{key}_fold", f"{key}_proba", f"X_{key}"), ("label_key", "groups")),
        ("tiles", tiles, (f"{key}_attention",), ("slide_key", "image_key")),
    ):
        there = adata.uns.get(key)
        own = isinstance(there, Mapping) and there.get("method") == METHOD
        foreign = [] if own else [name for name in names if name in adata.obs or name in adata.obsm]
        read = [name for name in names if name in {run[argument] for argument in inputs}]
        taken = [f"{where}.uns[{key!r}]"] if there is not None and not own else []
        taken += [f"{where}'s {name!r}" for name in foreign]
        if read or taken:
            what = f"{read[0]!r}, which is read" if read else f"{taken[0]}, which this function did not write"
            raise ValueError(f"key_added={key!r} would overwrite {what}: choose another name, or delete it first.")


def _read_labels(slides: AnnData, cohort: Cohort, label_key: str, groups: str | None) -> LabelledSlides:
    """Read labels and groups of the slides that can be trained on: those with a label and a tile."""
    codes, classes = read_classes(column_of(slides, "slides", "label_key", label_key), label_key)
    rows = np.flatnonzero((codes >= 0) & (cohort.n_tiles > 0))
    # numbered by name, so that folds do not depend on the order of the rows
    of_rows = pd.factorize(slides.obs_names[rows], sort=True)[0]
    if groups is not None:
        column = column_of(slides, "slides", "groups", groups).iloc[rows]
        if column.isna().any():
            raise ValueError(
                f"slides.obs[{groups!r}] (groups) has {int(column.isna().sum())} missing value(s) among labelled slides: fill "
                "them first."
            )
        of_rows = pd.factorize(column.astype(str), sort=True)[0]
    return LabelledSlides(rows, codes[rows], of_rows, classes, "slide" if groups is None else f"group in {groups!r}")


def _tell(cohort: Cohort) -> None:
    """Warn of what does not join up, as when names are written in two ways."""
    counts = cohort.counts()
    if counts["slides_without_tiles"]:
        warn(
            f"{counts['slides_without_tiles']} of {counts['slides']} slide(s) have no tile with features (for example "
            f"{cohort.names[cohort.n_tiles == 0][0]!r}): they are not predicted."
        )
    if counts["tiles_of_unknown_slides"]:
        warn(
            f"{counts['tiles_of_unknown_slides']} of {cohort.slide.size} tile(s) are of slides that are not in slides.obs_names: "
            "they are left out."
        )


def _private(cohort: Cohort, labelled: LabelledSlides, tile_names: pd.Index) -> AnnData:
    """Tiles with slide and label: scvi-tools leaves its bookkeeping there and not in the user's object."""
    label = np.full(len(cohort.names) + 1, -1)  # the last one is that of tiles without a slide
    label[labelled.rows] = labelled.labels
    table: dict[str, Any] = {
        SLIDE: pd.Categorical.from_codes(cohort.slide, cohort.names),
        LABEL: pd.Categorical.from_codes(label[cohort.slide], labelled.classes),
    }
    if not tile_names.is_unique:
        tile_names = pd.Index(np.arange(cohort.slide.size).astype(str))
    private = AnnData(obs=pd.DataFrame(table, tile_names))
    private.obsm[_keys.IMAGE] = cohort.features
    return private


def _write(
    slides: AnnData,
    tiles: AnnData,
    key: str,
    record: dict[str, Any],
    found: Predictions,
    fold: np.ndarray,
    classes: list[str],
) -> None:
    there = ~np.isnan(found.proba).any(1)
    names = classes if there.all() or _keys.UNASSIGNED in classes else [*classes, _keys.UNASSIGNED]
    predicted = np.where(
        there, np.nan_to_num(found.proba).argmax(1), names.index(_keys.UNASSIGNED) if not there.all() else 0
    )
    columns = [name.replace("/", "_") for name in classes]
    _record.write(
        slides,
        obs={f"{key}_predicted": pd.Categorical.from_codes(predicted, names), f"{key}_fold": fold},
        obsm={f"{key}_proba": pd.DataFrame(found.proba, slides.obs_names, columns), f"X_{key}": found.embedding},
        uns={key: record},
    )
    told = {name: record[name] for name in ("method", "params", "seed", "versions")}
    _record.write(tiles, obs={f"{key}_attention": found.attention}, uns={key: told})
