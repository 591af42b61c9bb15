"""Synthetic slides of patients: bags of tiles and bulk RNA that share some signals, with labels and survival, the truth kept."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from anndata import AnnData

from stfuse._check import check_number, check_seed

TILE = 256.0  # pixels along a side
TUMOUR = "tumour"
KINDS = (TUMOUR, "stroma", "fat", "immune")
_STAIN = 4  # directions in which whole slides differ
_WAVES = 3  # of the field that says where the tumour lies
FOLLOW_UP = 60.0  # months until half of the patients would be lost to follow-up


def synthetic_tiles(
    signal: np.ndarray,
    names: Sequence[str] | pd.Index | None = None,
    *,
    n_tiles: tuple[int, int] = (40, 120),
    n_features: int = 64,
    tumour_share: float = 0.3,
    strength: float = 1.0,
    stain: float = 0.5,
    noise: float = 1.0,
    slide_key: str = "slide",
    seed: int = 0,
) -> AnnData:
    r"""Make tiles of slides whose tumour tells the signals that are given, for benchmarks on real or synthetic RNA.

    A tile shows one of four kinds of tissue. Only tumour tiles, a part of each slide that lies together, tell the slide's signals
    :math:`s_i`; how much of a slide is tumour, and what the rest is, differs between slides and tells nothing, and neither does the
    stain, an offset of the whole slide. A mean over tiles blurs the signal, a method that finds the tumour sees it:

    .. math:: x_{ij} = k_{kind(ij)} + [ij \text{ is tumour}] \, W s_i + V b_i + e_{ij} .

    Parameters
    ----------
    signal
        What each slide shows, n_slides x signals, each of variance about 1.
    names
        Names of the slides. None = `"slide0"`, `"slide1"`, ...
    n_tiles
        Least and largest number of tiles a slide; each number between them is as likely.
    n_features
        Number of features of a tile.
    tumour_share
        Mean share of tumour tiles of a slide (a beta distribution; at least one tile).
    strength
        Length of a signal's effect on a tumour tile, in standard deviations of one feature's noise times its root.
    stain, noise
        Standard deviation of the slides' offset and of each tile's features.
    slide_key
        Column of `obs` with the slide of each tile.
    seed
        Seed. The same arguments and the same seed give the same tiles.

    Returns
    -------
    AnnData without genes, one row a tile: `obs[slide_key]`, `obs["tissue"]` (kind), `obsm["X_image"]` (n x n_features, float32) and
    `obsm["spatial"]` (centres in pixels of the slide, tiles of 256 side by side).

    Raises
    ------
    ValueError
        If the signal is not a matrix of finite numbers, names are not one each, or a number is out of range.
    TypeError
        If an argument is of the wrong type.

    Examples
    --------
    >>> import numpy as np, stfuse
    >>> tiles = stfuse.datasets.synthetic_tiles(np.random.default_rng(0).normal(size=(10, 2)))
    >>> tiles.obsm["X_image"].shape[1], tiles.obs["slide"].nunique()
    (64, 10)
    """
    signal = np.asarray(signal, np.float64)
    if signal.ndim != 2 or not signal.size or not np.isfinite(signal).all():
        raise ValueError(f"signal must be slides x signals of finite numbers, its shape is {signal.shape}.")
    index = pd.Index([f"slide{i}" for i in range(len(signal))] if names is None else names).astype(str)
    if len(index) != len(signal) or not index.is_unique:
        raise ValueError(
            f"names must be {len(signal)} different ones, got {len(index)}, {index.nunique()} of them different."
        )
    fewest, most = _check_sizes(n_tiles)
    check_number("n_features", n_features, least=1, whole=True)
    check_number("tumour_share", tumour_share, above=0, most=0.95)
    for name, number in (("strength", strength), ("stain", stain), ("noise", noise)):
        check_number(name, number, least=0)
    check_seed(seed)
    rng = np.random.default_rng(seed)
    sizes = rng.integers(fewest, most + 1, len(signal))
    slide = np.repeat(np.arange(len(signal)), sizes)
    spatial, inside = _places(sizes, rng)
    kind = _kinds(slide, inside, sizes, rng.beta(4 * tumour_share, 4 * (1 - tumour_share), len(signal)), rng)
    looks = rng.normal(size=(len(KINDS), n_features))
    effect = rng.normal(size=(signal.shape[1], n_features)) * strength / np.sqrt(signal.shape[1])
    offset = rng.normal(size=(len(signal), _STAIN)) @ rng.normal(size=(_STAIN, n_features)) * stain / np.sqrt(_STAIN)
    features = looks[kind] + offset[slide] + noise * rng.normal(size=(slide.size, n_features))
    features += np.where(kind == 0, 1.0, 0.0)[:, None] * (signal @ effect)[slide]
    position = np.arange(slide.size) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    tiles = AnnData(
        obs=pd.DataFrame(
            {
                slide_key: pd.Categorical.from_codes(slide, index),
                "tissue": pd.Categorical.from_codes(kind, list(KINDS)),
            },
            index=index[slide] + "_" + position.astype(str),
        )
    )
    tiles.obsm["X_image"] = features.astype(np.float32)
    tiles.obsm["spatial"] = spatial
    return tiles


def _check_sizes(n_tiles: tuple[int, int]) -> tuple[int, int]:
    try:
        fewest, most = n_tiles
    except (TypeError, ValueError):
        raise TypeError(
            f"n_tiles must be a pair of whole numbers, the least and the largest, got {n_tiles!r}."
        ) from None
    check_number("n_tiles", fewest, least=1, whole=True)
    check_number("n_tiles", most, least=fewest, whole=True)
    return int(fewest), int(most)


def _places(sizes: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Centres of tiles row by row, and a smooth field over each slide whose highest places are tumour."""
    start = np.repeat(np.cumsum(sizes) - sizes, sizes)
    position = np.arange(sizes.sum()) - start
    width = np.repeat(np.ceil(np.sqrt(sizes)).astype(int), sizes)
    column, row = position % width, position // width
    field = np.zeros(position.size)
    for _ in range(_WAVES):
        angle, phase = rng.uniform(0, 2 * np.pi, (2, sizes.size)).repeat(sizes, axis=1)
        field += np.cos(1.5 * np.pi * (np.cos(angle) * column + np.sin(angle) * row) / width + phase)
    return np.column_stack([column + 0.5, row + 0.5]) * TILE, field + 0.2 * rng.normal(size=field.size)


def _kinds(
    slide: np.ndarray, field: np.ndarray, sizes: np.ndarray, share: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Tumour where the field is highest, something else elsewhere, in proportions of the slide's own."""
    order = np.lexsort((-field, slide))
    rank = np.empty(slide.size)
    rank[order] = np.arange(slide.size) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    tumour = rank < np.maximum(1, share * sizes)[slide]
    upto = rng.dirichlet(np.ones(len(KINDS) - 1), sizes.size).cumsum(axis=1)
    other = 1 + (rng.random(slide.size)[:, None] > upto[slide, :-1]).sum(axis=1)
    return np.where(tumour, 0, other)


def synthetic_slides(
    n_slides: int = 200,
    *,
    n_genes: int = 300,
    n_tiles: tuple[int, int] = (40, 120),
    n_image_features: int = 64,
    n_shared: int = 4,
    n_private: int = 2,
    paired: float = 1.0,
    noise: float = 1.0,
    seed: int = 0,
) -> tuple[AnnData, AnnData]:
    """Make slides with bulk RNA, their tiles, a subtype and survival, in which both views tell a part.

    Signals are normal. The shared ones are seen by the tumour tiles and by the genes, the private ones of a view by that view alone.
    The subtype is the sign of a sum of the first shared signal, the first private ones of both views, and chance; the logarithm of the hazard
    likewise is a sum of the second shared signal and the last private ones. So neither view tells all, and a code that keeps
    only what views share loses a part: the case of MIRROR (:func:`stfuse.tl.mirror`).

    Parameters
    ----------
    n_slides
        Number of slides, one a patient.
    n_genes
        Number of genes; a third of them tell nothing.
    n_tiles, n_image_features
        Least and largest number of tiles a slide, and features of a tile, see :func:`stfuse.datasets.synthetic_tiles`.
    n_shared, n_private
        Number of signals both views see, and of those that each sees alone.
    paired
        Share of slides with both views. Half of the others have no tiles, half no RNA.
    noise
        Strength of the noise of both views.
    seed
        Seed. The same arguments and the same seed give the same objects.

    Returns
    -------
    slides, tiles
        `slides` (AnnData, n_slides x n_genes, log expression in `X`, float32; rows of NaN = no RNA)

        - `obs["subtype"]` (`"A"`, `"B"`), `obs["months"]` and `obs["event"]` (time until death or end of follow-up, and whether
          it was death), `obs["risk"]` (true logarithm of the hazard), `obs["age"]`
        - `obsm["shared"]`, `obsm["private_image"]`, `obsm["private_rna"]`: the true signals

        `tiles`: as :func:`stfuse.datasets.synthetic_tiles` makes them, `obs["slide"]` names the slide

    Raises
    ------
    ValueError
        If a number is out of range.
    TypeError
        If an argument is of the wrong type.

    Examples
    --------
    >>> import stfuse
    >>> slides, tiles = stfuse.datasets.synthetic_slides(30, seed=1)
    >>> slides.shape, bool(tiles.obs["slide"].isin(slides.obs_names).all())
    ((30, 300), True)
    """
    for name, number, least in (
        ("n_slides", n_slides, 1),
        ("n_genes", n_genes, 1),
        ("n_shared", n_shared, 2),
        ("n_private", n_private, 1),
    ):
        check_number(name, number, least=least, whole=True)
    check_number("paired", paired, least=0, most=1)
    check_number("noise", noise, least=0)
    check_seed(seed)
    rng = np.random.default_rng(seed)
    shared = rng.normal(size=(n_slides, n_shared))
    private = {view: rng.normal(size=(n_slides, n_private)) for view in ("image", "rna")}
    loadings = rng.normal(size=(n_shared + n_private, n_genes)) * (rng.random(n_genes) > 1 / 3)
    rna = 5 + np.hstack([shared, private["rna"]]) @ loadings + 2 * noise * rng.normal(size=(n_slides, n_genes))
    score = shared[:, 0] + private["image"][:, 0] + private["rna"][:, 0] + 0.5 * rng.normal(size=n_slides)
    risk = (shared[:, 1] + private["image"][:, -1] + private["rna"][:, -1]) / np.sqrt(3)
    age = rng.normal(60, 10, n_slides)
    death = rng.exponential(FOLLOW_UP * np.exp(-1.5 * risk))
    lost = rng.exponential(FOLLOW_UP / np.log(2), n_slides)
    slides = AnnData(
        obs=pd.DataFrame(
            {
                "subtype": pd.Categorical(np.where(score > 0, "A", "B"), ["A", "B"]),
                "months": np.minimum(death, lost) + 0.1,
                "event": death <= lost,
                "risk": risk,
                "age": age,
            },
            index=[f"slide{i}" for i in range(n_slides)],
        ),
        var=pd.DataFrame(index=[f"gene{i}" for i in range(n_genes)]),
    )
    slides.obsm["shared"] = shared
    for view, signals in private.items():
        slides.obsm[f"private_{view}"] = signals
    tiles = synthetic_tiles(
        np.hstack([shared, private["image"]]),
        slides.obs_names,
        n_tiles=n_tiles,
        n_features=n_image_features,
        noise=noise,
        strength=2.0,
        seed=int(rng.integers(2**31)),
    )
    single = rng.permutation(n_slides)[: round((1 - paired) * n_slides)]
    rna[single[::2]] = np.nan
    slides.X = rna.astype(np.float32)
    return slides, tiles[~tiles.obs["slide"].isin(slides.obs_names[single[1::2]])].copy()
