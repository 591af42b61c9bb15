"""The methods that are compared on slides: what each learns from one fold's training slides, and says of the slides asked about."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Protocol

import numpy as np
import pandas as pd
from anndata import AnnData

from stfuse import _read
from stfuse._check import check_number, did_you_mean
from stfuse._folds import stratified_group_folds
from stfuse.model._mirror import MIRROR
from stfuse.model._mirror_settings import check_architecture, check_run
from stfuse.model._slide_networks import (
    AbmilSettings,
    BilinearSettings,
    Run,
    TangleSettings,
    network_logits,
    new_network,
    tangle_codes,
    train_network,
    train_tangle,
)
from stfuse.model._slide_views import SlideViews
from stfuse.module.scaling import varies
from stfuse.tl._slide_heads import Target

FROZEN = "obsm:"  # before the key of a code that was made elsewhere
WATCHED = 5  # one of so many parts of the training groups is watched
GROUP = "group"
NOT_GIVEN = {"seed", "device", "progress"}  # of a method's arguments: those of the comparison


@dataclass(frozen=True)
class FoldData:
    """What methods get of a fold: no labels.

    ``views`` hold the genes chosen in this fold, ``means`` (s x d) the mean tile of each slide. Slides ``outside`` (boolean) share no
    group with those held out, and may be learnt from; a code of those ``asked`` (numbers) is wanted. MIRROR reads the tiles itself.
    """

    views: SlideViews
    means: np.ndarray
    slides: AnnData
    tiles: AnnData
    slide_key: str
    image_key: str
    groups: np.ndarray
    outside: np.ndarray
    asked: np.ndarray
    run: Run


class Representation(Protocol):
    """Learnt without labels; a linear head reads its code."""

    def code(self, data: FoldData) -> np.ndarray:
        """Code of each slide, s x d; rows of slides that are not asked for may be NaN."""
        ...


def spread(code: np.ndarray, rows: np.ndarray, n_slides: int) -> np.ndarray:
    """Lay codes of some slides out over all."""
    out = np.full((n_slides, code.shape[1]), np.nan, code.dtype)
    out[rows] = code
    return out


@dataclass(frozen=True)
class Mirror:
    """MIRROR, trained on every slide outside, with one view or both."""

    architecture: dict[str, Any]
    training: dict[str, Any]

    def code(self, data: FoldData) -> np.ndarray:
        """Fused code."""
        views = data.views
        learn = np.flatnonzero(data.outside & (views.has_image | views.has_rna))
        slides = _table(data, learn)
        alone = np.unique(data.groups).size == data.groups.size
        MIRROR.setup_anndata(slides, data.slide_key, data.image_key, groups=None if alone else GROUP)
        model = MIRROR(slides, data.tiles, **self.architecture)
        model.train(seed=data.run.seed, device=data.run.device, progress=False, **self.training)
        codes = model.codes(_table(data, data.asked), data.tiles).fused
        return spread(codes, data.asked, len(views.names))


def _table(data: FoldData, rows: np.ndarray) -> AnnData:
    """Some slides as a model reads them; names of groups sort as their numbers do."""
    width = len(str(data.groups.max()))
    table = pd.DataFrame({GROUP: [f"{group:0{width}d}" for group in data.groups[rows]]}, data.views.names[rows])
    return AnnData(data.views.genes[rows], obs=table)


@dataclass(frozen=True)
class Tangle:
    """TANGLE, trained on every pair outside."""

    settings: TangleSettings

    def code(self, data: FoldData) -> np.ndarray:
        """Embeddings of both encoders side by side."""
        model = train_tangle(data.views, np.flatnonzero(data.outside & data.views.paired), self.settings, data.run)
        codes = tangle_codes(model, data.views, data.asked, data.run.device)
        return spread(codes, data.asked, len(data.views.names))


@dataclass(frozen=True)
class Components:
    """Mean tile, genes, or both side by side; of more features than ``max_features`` components, from every slide outside."""

    views: tuple[str, ...]
    n_components: int
    max_features: int

    def code(self, data: FoldData) -> np.ndarray:
        """Components, or features as they are where there are few."""
        x = {"image": data.means, "rna": data.views.genes}
        has = {"image": data.views.has_image, "rna": data.views.has_rna}
        return np.hstack([self._of_view(x[v], np.flatnonzero(data.outside & has[v]), data) for v in self.views])

    def _of_view(self, x: np.ndarray, learn: np.ndarray, data: FoldData) -> np.ndarray:
        n_components = self.n_components if x.shape[1] > self.max_features else None
        return components(x, learn, data.asked, n_components, data.run.seed)


def components(x: np.ndarray, learn: np.ndarray, asked: np.ndarray, n_components: int | None, seed: int) -> np.ndarray:
    """Standardised features that vary, or principal components of these, each of variance one."""
    from sklearn.decomposition import PCA

    mean, sd = x[learn].mean(0, dtype=np.float64), x[learn].std(0, dtype=np.float64)
    usable = varies(mean, sd)
    scale = np.where(usable, sd, np.inf).astype(np.float32)

    def standard(rows: np.ndarray) -> np.ndarray:
        return (x[rows] - mean.astype(np.float32)) / scale

    n = min(n_components or x.shape[1], int(usable.sum()), learn.size - 1)
    if n_components is None or n < 1:
        return spread(standard(asked)[:, usable], asked, len(x))
    found = PCA(n, whiten=True, random_state=seed).fit(standard(learn))
    return spread(found.transform(standard(asked)), asked, len(x))


@dataclass(frozen=True)
class Frozen:
    """A code that was made elsewhere."""

    key: str

    def code(self, data: FoldData) -> np.ndarray:
        """It is what it is."""
        code = _read.read_rep(data.slides, self.key)
        lost = ~_read.check_values(code, f"slides.obsm[{self.key!r}]")[data.asked]
        if lost.any():
            raise ValueError(
                f"slides.obsm[{self.key!r}] is NaN in {int(lost.sum())} of the {lost.size} slides that are compared, for example "
                f"{data.views.names[data.asked[lost]][0]!r}: set their label to missing, or leave this code out of methods."
            )
        return code


@dataclass(frozen=True)
class Network:
    """Attention over tiles, alone or fused with genes, trained on labels from end to end."""

    settings: AbmilSettings

    def predict(
        self, data: FoldData, target: Target, fold: int, train: np.ndarray, test: np.ndarray, *, watch: bool
    ) -> np.ndarray:  # fmt: skip
        """Train on some slides, with ``watch`` on four fifths of them while the rest says when to stop, and predict others."""
        task, n_out = target.task(fold)
        watched = watched_part(target, train, data.run.seed) if watch else np.zeros(train.size, bool)
        module = new_network(data.views, n_out, self.settings, data.run.seed)
        train_network(module, data.views, train[~watched], train[watched], task, self.settings, data.run)
        return target.of_logits(network_logits(module, data.views, test, data.run.device))


def watched_part(target: Target, train: np.ndarray, seed: int) -> np.ndarray:
    """Mark a fifth of the slides, whole groups, without which no class and not all events are lost; none where there is none such."""
    strata, groups = target.strata[train].astype(np.int64), target.groups[train]
    if min(np.unique(groups).size, int(np.bincount(strata).max())) >= WATCHED:
        part = stratified_group_folds(strata, groups, WATCHED, seed)
        for i in range(WATCHED):
            if (part == i).any() and np.isin(strata, strata[part != i]).all():
                return part == i
    return np.zeros(train.size, bool)


type Method = Representation | Network


def _mirror(given: Mapping[str, Any]) -> Mirror:
    both = [
        {name: p.default for name, p in inspect.signature(f).parameters.items() if p.kind is p.KEYWORD_ONLY and name not in NOT_GIVEN}
        for f in (MIRROR.__init__, MIRROR.train)
    ]  # fmt: skip
    _check_options("mirror", given, [*both[0], *both[1]])
    architecture, training = ({name: given.get(name, default) for name, default in part.items()} for part in both)
    architecture = check_architecture(architecture)
    return Mirror(architecture, check_run(training, architecture["faithful"]))


def _tangle(given: Mapping[str, Any]) -> Tangle:
    _check_options("tangle", given, [field.name for field in fields(TangleSettings)])
    settings = TangleSettings(**given)
    settings.check()
    return Tangle(settings)


def _components(name: str, default: Components) -> Callable[[Mapping[str, Any]], Components]:
    def make(given: Mapping[str, Any]) -> Components:
        _check_options(name, given, ["n_components", "max_features"])
        for option, value in given.items():
            check_number(f"params[{name!r}][{option!r}]", value, least=1, whole=True)
        return replace(default, **given)

    return make


def _network(name: str, kind: type[AbmilSettings]) -> Callable[[Mapping[str, Any]], Network]:
    def make(given: Mapping[str, Any]) -> Network:
        _check_options(name, given, [field.name for field in fields(kind)])
        settings = kind(**given)
        settings.check()
        return Network(settings)

    return make


METHODS: dict[str, Callable[[Mapping[str, Any]], Method]] = {
    "mirror": _mirror,
    "tangle": _tangle,
    # side by side, components are as many in each view, or the wider one would drown the other
    "concat": _components("concat", Components(("image", "rna"), 32, 32)),
    "rna": _components("rna", Components(("rna",), 64, 2048)),
    "image": _components("image", Components(("image",), 64, 2048)),
    "abmil": _network("abmil", AbmilSettings),
    "bilinear": _network("bilinear", BilinearSettings),
}


def make_methods(names: Sequence[str], params: Mapping[str, Mapping[str, Any]] | None) -> dict[str, Method]:
    """Make each method by name, with its arguments checked."""
    given = dict(params or {})
    for name in given:
        if name not in names or name.startswith(FROZEN):
            raise ValueError(
                f"params has arguments of {name!r}, which is none of the methods compared that take any: {_read.listing(names)}."
            )
        if not isinstance(given[name], Mapping):
            raise TypeError(f"params[{name!r}] must be a dict of arguments, got {given[name]!r}.")
    return {name: _make(name, given.get(name, {})) for name in names}


def _make(name: str, given: Mapping[str, Any]) -> Method:
    if name.startswith(FROZEN):
        return Frozen(name.removeprefix(FROZEN))
    if name not in METHODS:
        raise ValueError(
            f"No method {name!r}.{did_you_mean(name, METHODS)} There is {_read.listing(METHODS)}, and 'obsm:<key>' for a code of your own."
        )
    return METHODS[name](given)


def _check_options(method: str, given: Mapping[str, Any], known: Sequence[str]) -> None:
    for name in given:
        if name not in known:
            raise TypeError(
                f"params[{method!r}] has {name!r}.{did_you_mean(name, known)} It takes {_read.listing(known)}."
            )
