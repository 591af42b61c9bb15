"""Methods on slides and RNA side by side, each trained on the same folds and asked about slides it has not seen."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd
from anndata import AnnData

from stfuse import _keys, _read, _record
from stfuse._check import check_flag, check_number, check_seed, check_target, check_text, did_you_mean
from stfuse._log import logger, warn
from stfuse._progress import counting
from stfuse._survival import check_event_value, need_sksurv
from stfuse.tl._mirror_tables import SlideTables, find_slides, tell_read

if TYPE_CHECKING:
    from stfuse.model._slide_views import SlideViews
    from stfuse.tl._compare_folds import Comparison
    from stfuse.tl._slide_methods import FoldData, Method

MARK = "comparison"  # the entry of a record by which a result of this function is told
METHODS = ("mirror", "tangle", "concat", "rna", "image", "abmil", "bilinear")
SELECTION = ("label_key", "method", "curated", "n_genes", "step", "n_splits", "scale")


def compare_slides(
    slides: Any,
    tiles: AnnData | None = None,
    *,
    slide_key: str,
    label_key: str | None = None,
    time_key: str | None = None,
    event_key: str | None = None,
    event_value: Any = True,
    methods: Sequence[str] = METHODS,
    image_key: str = _keys.IMAGE,
    rna_key: str | None = None,
    mask_var: str | None = None,
    groups: str | None = None,
    slides_table: str | None = None,
    tiles_table: str | None = None,
    n_splits: int = 5,
    shots: int | None | Sequence[int | None] = None,
    n_draws: int = 5,
    select_genes: Mapping[str, Any] | None = None,
    n_bins: int = 4,
    params: Mapping[str, Mapping[str, Any]] | None = None,
    key_added: str | None = None,
    seed: int = 0,
    device: str = "auto",
    progress: bool | None = None,
) -> pd.DataFrame:
    r"""Compare methods that tell subtype or survival of slides from their tiles, their RNA, or both.

    Every method is trained anew in every fold, on the same slides, and is scored on slides of patients of whom it has seen nothing: no label, no
    tile, no gene. So are the genes chosen, features standardised, components taken, bins of time cut and penalties chosen, all on
    the training part of the fold.

    ============== ======= ===================================================================================================
    method         reads   what it is
    ============== ======= ===================================================================================================
    `"mirror"`     both    fused code of :class:`stfuse.model.MIRROR`; linear head
    `"tangle"`     both    codes of an attention encoder of tiles and a perceptron of genes, made alike by contrast alone (TANGLE);
                           linear head
    `"concat"`     both    components of the mean tile and components of the RNA side by side; linear head
    `"rna"`        RNA     genes, of more than 2,048 components; linear head
    `"image"`      tiles   mean tile; linear head
    `"abmil"`      tiles   gated attention over tiles, trained on the labels from end to end
    `"bilinear"`   both    gated attention over tiles and self-normalising layers on genes, fused by all products of their gated features
                           (PORPOISE), trained on the labels from end to end
    `"obsm:<key>"` a code  `slides.obsm[key]` as it is; linear head. For codes made elsewhere; one that was learnt on the slides held out
                           is flattered
    ============== ======= ===================================================================================================

    Parameters
    ----------
    slides
        AnnData with one row a patient, slide or region, log expression in `X`; or a SpatialData or MuData that holds slides and tiles.
        A row of NaN = no RNA. Slides with tiles, RNA and an answer are compared; of the others, those that share no group with the
        slides held out are learnt from by methods that need no label, as far as they have the views these read.
    tiles
        AnnData with one row a tile, of any number a slide.
    slide_key
        Column of `tiles.obs` with the name of each tile's slide, a name in `slides.obs_names`.
    label_key
        Column of `slides.obs` with classes (subtypes). Either this is asked for, or survival.
    time_key, event_key, event_value
        Survival: columns of `slides.obs` with the time until event or end of follow-up, above 0, and whether the event happened, and
        the value that means that it did, as in :func:`stfuse.tl.survival`.
    methods
        Names of methods, see above.
    image_key
        Key of the features in `tiles.obsm`, n x d. A row of NaN = the tile is left out. May lie on disk.
    rna_key
        Key of the RNA in `slides.obsm`, s x g. None = `slides.X`.
    mask_var
        Boolean column of `slides.var`: which genes of `X` are used. One that labels of all slides have chosen flatters every method that
        reads RNA: pass `select_genes` instead.
    groups
        Column of `slides.obs` whose values must not be torn apart, usually the patient. None = each slide is its own.
    slides_table, tiles_table
        SpatialData, MuData: the tables or modalities of slides and of tiles. None = found by `slide_key`.
    n_splits
        Number of folds: whole groups, with about the same share of each class, or as many events in each.
    shots
        Train heads, and methods from end to end, on so many slides of each class (survival: of each bin of time) only, drawn without
        replacement, as far as possible of different groups. Codes are learnt, without labels, on the whole training part. None = all.
        Several, such as `[None, 10]`, take hardly longer than one, as codes are learnt once.
    n_draws
        How often shots are drawn in each fold, the same for all methods. Scores are means over draws.
    select_genes
        Choose genes in each fold by :func:`stfuse.pp.select_genes` on its training part: a dict of `method`, `curated`, `n_genes`, `step`,
        `n_splits`, `scale`, and `label_key` where another label than the one asked for shall choose (survival needs one). `{}` =
        its defaults. None = all genes are used. With `shots` the label asked for may not choose: it is known of the shots alone.
    n_bins
        Survival: number of bins of time, with equally many events of the training part in each.
    params
        Further arguments by method, such as `{"mirror": {"max_epochs": 20}, "concat": {"n_components": 64}}`: of `"mirror"` those of
        :class:`stfuse.model.MIRROR` and its `train`; of `"concat"`, `"rna"` and `"image"` `n_components` (a view: 32, 64, 64), taken where there are more
        than `max_features` (32, 2,048, 2,048); of the networks `n_tiles`, `max_epochs`, `batch_size`, `lr`, `weight_decay`, `n_attention`, of
        `"tangle"` also `dim` and `warmup`, of `"abmil"` and `"bilinear"` `n_hidden`, `dropout` and `patience`, and of the last `n_gated`.
    key_added
        Name in `slides.uns` under which table and parameters are kept. None = nothing is written.
    seed
        Seed of folds, shots and methods.
    device
        `"auto"`, `"cpu"`, `"cuda"`, `"cuda:<index>"` or `"mps"`.
    progress
        Whether to show a bar. None = in a terminal or notebook.

    Returns
    -------
    pandas.DataFrame
        A row for each method and fold (`method`, of several `shots` these with 0 for all, `fold`, `n_slides` held out), then for each method `"mean"` and `"sd"` over folds:
        `table[table["fold"] == "mean"]` is the comparison. Scores of classes are `accuracy`, `balanced_accuracy`, `macro_f1` and
        `auroc` (of several classes the mean of one against the rest; NaN where a fold holds one class). Of survival they are
        `n_events` held out and `c_index`, Harrell's C. Folds share their training slides, so the standard error of a mean is larger than its
        `sd` suggests: compare on several seeds.

        Sets, with `key_added`, `slides.uns[key_added]`: the table as `"comparison"`, parameters, versions and counts.

    Raises
    ------
    KeyError
        If a key, a column or a table is not there.
    ValueError
        If a method is unknown, neither or both of class and survival are asked for, there is one class, a fold has one to train on or
        no event, there are fewer groups than folds or fewer slides of a class than shots, features hold infinite values or NaN beside
        values, a number is out of range, or `key_added` is the name of something else. Nothing is written then.
    TypeError
        If an argument is of the wrong type, or a method does not take it.
    ImportError
        If survival is asked for and scikit-survival is not installed (`pip install 'stfuse[survival]'`).

    Warns
    -----
    UserWarning
        If slides lack a view and are not compared, tiles are of unknown slides, or `X` looks like counts.

    See Also
    --------
    stfuse.tl.mirror : code all slides with MIRROR.
    stfuse.tl.mil : attention on tiles, with predictions and attention written.

    Notes
    -----
    Heads: logistic regression on standardised codes, or hazards of bins as in :func:`stfuse.tl.survival`; the penalty is the power of ten
    under which groups of the training slides (or shots), held out in turn, are the likeliest. No class weighs more than it has slides, in
    any method. Networks are trained by cross-entropy or the likelihood of hazards; `"abmil"` and `"bilinear"` stop by a fifth of the training
    groups, and with `shots` run for all of `max_epochs`. `"tangle"` runs for all of them, `"mirror"` stops by pairs of its training slides.

    Of the published methods: TANGLE's encoders, temperature (0.01) and batches of 64; its code is both embeddings, as MIRROR's authors compare
    it. It is trained at 4e-4 for 50 epochs instead of 1e-4 for 100, as cohorts here have a tenth of its slides. PORPOISE's branches, gates, products,
    way past them and learning rate (2e-4), in batches with AdamW instead of slide after slide.

    References
    ----------
    Wang et al. (2025), MIRROR. Jaume et al. (2024), Transcriptomics-guided slide representation learning in computational pathology.
    Ilse et al. (2018), Attention-based deep multiple instance learning. Chen et al. (2022), Pan-cancer integrative histology-genomic analysis
    via multimodal deep learning. Chen et al. (2020), Pathomic fusion. Klambauer et al. (2017), Self-normalizing neural networks.

    Examples
    --------
    >>> import stfuse
    >>> slides, tiles = stfuse.datasets.synthetic_slides(60, seed=1)
    >>> table = stfuse.tl.compare_slides(
    ...     slides, tiles, slide_key="slide", label_key="subtype", methods=("concat", "rna", "image"), n_splits=3
    ... )
    >>> list(table.columns)
    ['method', 'fold', 'n_slides', 'accuracy', 'balanced_accuracy', 'macro_f1', 'auroc']
    >>> list(table.loc[table["method"] == "rna", "fold"])
    ['0', '1', '2', 'mean', 'sd']
    """
    given = _record.params_of(locals(), "slides", "tiles")
    names = _check_arguments(given, progress)
    from stfuse.model._slide_networks import Run, mean_tiles
    from stfuse.model._slide_views import read_slides
    from stfuse.tl._compare_folds import Question, read_comparison
    from stfuse.tl._slide_methods import FoldData, make_methods

    made = make_methods(names, params)
    tables = find_slides(slides, tiles, slide_key, slides_table, tiles_table)
    if key_added is not None:
        check_target(tables.slides, "key_added", key_added, slots=("uns",), mark=MARK, inputs={})
    views = read_slides(
        tables.slides, tables.tiles, slide_key=slide_key, image_key=image_key, rna_key=rna_key, mask_var=mask_var
    )
    question = Question(label_key, time_key, event_key, event_value, n_bins)
    several = _read_shots(shots)
    found = read_comparison(tables.slides, views.paired, question, groups, n_splits, several, n_draws, seed)
    _tell(views, rna_key, found)
    data = FoldData(
        views=views,
        means=mean_tiles(views.bags),
        slides=tables.slides,
        tiles=tables.tiles,
        slide_key=slide_key,
        image_key=image_key,
        groups=found.target.groups,
        outside=np.ones(len(views.names), bool),
        asked=found.compared,
        run=Run(seed, device),
    )
    selection = _Selection(select_genes, label_key, _names_of_genes(tables, rna_key, mask_var, views.genes.shape[1]))
    table = _compare(data, found, made, selection, several, progress)
    if shots is None or isinstance(shots, int | np.integer):
        table = table.drop(columns="shots")
    if key_added is not None:
        record = {
            MARK: table,
            "params": given | {"methods": list(names)},
            "versions": _record.versions(),
            "n_obs": views.counts() | {"compared": int(found.compared.size)},
        }
        _record.write(tables.slides, uns={key_added: record})
    return table.copy()


class _Selection(NamedTuple):
    """Options of the selection of genes, if they are selected; the label asked for, and the names of genes."""

    options: Mapping[str, Any] | None
    label_key: str | None
    genes: pd.Index

    def apply(self, data: FoldData) -> SlideViews:
        """Views with the genes that slides outside of the fold choose."""
        from stfuse.tl._compare_folds import choose_genes

        if self.options is None:
            return data.views
        options = {"label_key": self.label_key} | dict(self.options)
        return choose_genes(data.views, self.genes, data.slides, options, data.groups, data.outside, data.run.seed)


def _check_arguments(given: Mapping[str, Any], progress: bool | None) -> tuple[str, ...]:
    """Refuse what no comparison can do; return the names of methods."""
    from stfuse.train._fit import resolve_device

    names = _read_names(given["methods"])
    for name in ("slide_key", "image_key"):
        check_text(name, given[name])
    for name in ("label_key", "time_key", "event_key", "rna_key", "mask_var", "groups", "key_added"):
        check_text(name, given[name], optional=True)
    of_survival = [given[name] is not None for name in ("time_key", "event_key")]
    if all(of_survival) == (given["label_key"] is not None) or any(of_survival) != all(of_survival):
        raise ValueError(
            "Give either label_key (classes) or both time_key and event_key (survival); got "
            + ", ".join(f"{name}={given[name]!r}" for name in ("label_key", "time_key", "event_key"))
            + "."
        )
    if all(of_survival):
        check_event_value(given["event_value"])
        need_sksurv()
    check_number("n_splits", given["n_splits"], least=2, whole=True)
    several = _read_shots(given["shots"])
    check_number("n_draws", given["n_draws"], least=1, whole=True)
    check_number("n_bins", given["n_bins"], least=2, whole=True)
    check_seed(given["seed"])
    check_flag("progress", progress, optional=True)
    resolve_device(given["device"])
    if given["params"] is not None and not isinstance(given["params"], Mapping):
        raise TypeError(f"params must be a dict of arguments by method or None, got {given['params']!r}.")
    _check_selection(given["select_genes"], given["label_key"], next((k for k in several if k is not None), None))
    return names


def _read_shots(shots: Any) -> tuple[int | None, ...]:
    several = tuple(shots) if isinstance(shots, list | tuple) else (shots,)
    for k in several:
        check_number("shots", k, least=1, whole=True, optional=True)
    if not several or len(set(several)) < len(several):
        raise ValueError(f"shots must be different numbers, or None, got {shots!r}.")
    return several


def _read_names(methods: Any) -> tuple[str, ...]:
    names = (methods,) if isinstance(methods, str) else tuple(methods)
    for name in names:
        check_text("methods", name)
    if not names or len(set(names)) < len(names):
        raise ValueError(f"methods must be different names, one at least, got {methods!r}.")
    return names


def _check_selection(options: Any, label_key: str | None, shots: int | None) -> None:
    if options is None:
        return
    if not isinstance(options, Mapping):
        raise TypeError(f"select_genes must be a dict of arguments of stfuse.pp.select_genes or None, got {options!r}.")
    for name in options:
        if name not in SELECTION:
            raise TypeError(
                f"select_genes has {name!r}.{did_you_mean(name, SELECTION)} It takes {_read.listing(SELECTION)}."
            )
    if options.get("method") == "curated":
        return
    chooses = options.get("label_key", label_key)
    if chooses is None:
        raise ValueError(
            "Genes are selected by classes, and survival has none: pass select_genes={'label_key': ...} with another column, or "
            "{'method': 'curated', 'curated': ...}."
        )
    if shots is not None and chooses == label_key:
        raise ValueError(
            f"With shots={shots} the label {label_key!r} is known of these alone, and select_genes would read it of every training slide: pass "
            "{'method': 'curated', 'curated': ...}, or mask_var with genes that were chosen on other data."
        )


def _names_of_genes(tables: SlideTables, rna_key: str | None, mask_var: str | None, n_genes: int) -> pd.Index:
    from stfuse.model._slide_views import read_mask

    if rna_key is not None:
        return pd.RangeIndex(n_genes).astype(str)
    names = tables.slides.var_names
    return names if mask_var is None else names[read_mask(tables.slides, mask_var)]


def _tell(views: SlideViews, rna_key: str | None, found: Comparison) -> None:
    """Say which slides are compared, and warn where names do not join up."""
    tell_read(views, rna_key)
    n, total = found.compared.size, len(views.names)
    single = (views.has_image != views.has_rna).sum()
    if single:
        warn(
            f"{single} of {total} slide(s) have tiles or RNA only (for example {views.names[views.has_image != views.has_rna][0]!r}): they are not "
            "compared. Methods that need no label learn from them in the folds where no slide of their group is held out."
        )
    logger.info("%d of %d slides have tiles, RNA and an answer and are compared, in %d folds", n, total, found.n_splits)


def _compare(
    data: FoldData,
    found: Comparison,
    methods: Mapping[str, Method],
    selection: _Selection,
    shots: Sequence[int | None],
    show: bool | None,
) -> pd.DataFrame:
    """Train and score every method in every fold."""
    rows: dict[tuple[str, int | None], list[dict[str, Any]]] = {(name, k): [] for name in methods for k in shots}
    with counting(len(methods) * found.n_splits, desc="compare_slides", show=show) as done:
        for i in range(found.n_splits):
            of_fold = replace(data, outside=found.outside(i))
            of_fold = replace(of_fold, views=selection.apply(of_fold))
            test = found.test(i)
            for name, method in methods.items():
                for k, predictions in _predictions(method, of_fold, found, i):
                    scores = [found.target.score(test, told) for told in predictions]
                    told = {"method": name, "shots": k or 0, "fold": str(i), "n_slides": test.size}
                    told |= found.target.count(test)
                    rows[name, k].append(told | pd.DataFrame(scores).mean().to_dict())
                done(1)
    return pd.concat([_with_mean(of_method, found) for of_method in rows.values()], ignore_index=True)


def _predictions(
    method: Method, data: FoldData, found: Comparison, i: int
) -> Iterator[tuple[int | None, list[np.ndarray]]]:
    """Predictions of the slides held out, for each number of shots one for each draw of slides to train on."""
    from stfuse.tl._slide_methods import Network

    test, seed = found.test(i), data.run.seed
    if isinstance(method, Network):
        for k, draws in found.draws[i].items():
            yield k, [method.predict(data, found.target, i, train, test, watch=k is None) for train in draws]
        return
    code = method.code(data)
    for k, draws in found.draws[i].items():
        yield k, [found.target.head(code, train, test, i, seed) for train in draws]


def _with_mean(rows: list[dict[str, Any]], found: Comparison) -> pd.DataFrame:
    """Scores of a method in folds, and below them mean and standard deviation over folds."""
    table = pd.DataFrame(rows)
    every = {name: rows[0][name] for name in ("method", "shots")}
    every |= {"n_slides": found.compared.size, **found.target.count(found.compared)}
    scores = table.drop(columns=["fold", *every])
    below = [every | {"fold": "mean"} | scores.mean().to_dict(), every | {"fold": "sd"} | scores.std().to_dict()]
    return pd.concat([table, pd.DataFrame(below)[table.columns]], ignore_index=True)
