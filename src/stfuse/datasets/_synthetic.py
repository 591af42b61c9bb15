"""Synthetic tissue: two views of one hidden state, with the truth kept."""

from typing import NamedTuple

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy.sparse import csr_matrix, vstack
from scipy.spatial.distance import cdist

# Shares of the variance inside a domain: a smooth field over the section, and what differs from spot to spot.
_SMOOTH, _IID = 0.4, 0.6
_PITCH = 100.0  # microns between neighbouring spots, as on a Visium slide
_BLOCK = 2_000_000  # counts drawn at once, so that the draws stay in cache-sized memory
_HIDDEN = 64  # width of the random network behind `nonlinearity`


class _Layout(NamedTuple):
    """Where the observations lie and what they belong to."""

    xy: np.ndarray  # n x 2, microns
    section: np.ndarray  # n, codes
    classes: np.ndarray  # n x 3, codes: shared, image only, rna only


def synthetic_tissue(
    n_obs: int = 2000,
    n_sections: int = 1,
    *,
    n_classes: tuple[int, int, int] = (3, 2, 2),
    n_factors: tuple[int, int, int] = (6, 4, 4),
    n_genes: int = 200,
    n_image_features: int = 64,
    shared_strength: float = 1.0,
    private_strength: float | tuple[float, float] = 1.0,
    domain_strength: float = 1.0,
    noise: float = 1.0,
    nonlinearity: float = 0.0,
    batch_effect: float = 0.0,
    missing_image: float = 0.0,
    missing_rna: float = 0.0,
    library_size: float | None = None,
    lattice: str = "hex",
    pca: bool = True,
    seed: int = 0,
) -> AnnData:
    r"""Make tissue sections seen by an image and by RNA, of which everything is known.

    Real tissue never tells which part of the expression an image can show. Here it is known: every
    observation has *shared* factors, which both views see, and *private* factors, which only one view
    sees. A fusion method is good if its codes hold all three. Three kinds of class are laid over the
    tissue, each a few contiguous patches: classes that both views see, classes that only the image
    sees and classes that only the RNA sees. A domain is one combination of the three, so no view
    alone can tell all domains apart.

    Let :math:`c` be a class and :math:`m_c` its mean. Each block of factors is

    .. math:: z = (a\, m_c + \sqrt{0.4}\, s + \sqrt{0.6}\, e) / \sqrt{a^2 + 1},

    with :math:`a` = `domain_strength`, a smooth random field :math:`s` (new in each section) and
    independent noise :math:`e`. A view observes
    :math:`\eta = \mathrm{shared\_strength}\; z_{shared} W + \mathrm{private\_strength}\; z_{private} V`
    with random :math:`W, V`; `nonlinearity` mixes in a random network of the same input. The image
    is :math:`\eta` plus Gaussian noise. The counts are negative binomial, with a log-normal library
    size and proportions :math:`\propto \exp(b_g + 0.5\, \eta_g)`.

    Parameters
    ----------
    n_obs
        Number of observations in all sections together; sections differ in size by one at most.
    n_sections
        Number of sections. Each has its own layout, smooth fields and coordinates, and the same domains.
    n_classes
        Number of classes seen by both views, by the image only and by the RNA only. Their product is
        the number of domains; `(6, 1, 1)` makes six domains that both views see.
    n_factors
        Number of factors in the shared, the image's private and the RNA's private block. 0 leaves out a
        private block.
    n_genes
        Number of genes.
    n_image_features
        Number of image features.
    shared_strength
        Weight of the shared factors in both views.
    private_strength
        Weight of the private factors; one number, or one for the image and one for the RNA.
    domain_strength
        Spread of the class means relative to the spread inside a class.
    noise
        Standard deviation of the image's noise in units of 1.5, and, for the counts, how far they are from
        Poisson: the overdispersion is `0.2 * noise**2`. 0 = noiseless image, Poisson counts.
    nonlinearity
        0 = both views are linear in the factors, 1 = both are a random one-hidden-layer network of them.
    batch_effect
        Strength of the difference between sections: the logarithm of a factor per gene, and an offset
        and (a quarter of it) the logarithm of a scale per image feature.
    missing_image
        Fraction of the observations without image.
    missing_rna
        Fraction of the observations without RNA. The two fractions concern different observations,
        so that none lacks both.
    library_size
        Median number of counts of an observation. None = 10 per gene.
    lattice
        `"hex"` (Visium) or `"square"`.
    pca
        Whether to add `obsm["X_pca"]`.
    seed
        Seed. The same arguments and the same seed give the same object.

    Returns
    -------
    AnnData
        `n_obs` x `n_genes`, counts in `X` (CSR, float32). An observation without RNA has a row of zeros there.

        - `obsm["X_image"]`: float32, image features; a row of NaN = no image
        - `obsm["X_pca"]`: float32, at most 30 principal components of the log-normalised counts (1e4, log1p);
          a row of NaN = no RNA
        - `obsm["spatial"]`: microns, 100 between neighbours; each section has its own origin
        - `obs["section"]`, `obs["has_image"]`, `obs["has_rna"]`
        - truth: `obs["domain"]`; `obs["class_shared"]`, `obs["class_image"]`, `obs["class_rna"]`;
          `obsm["shared"]`, `obsm["private_image"]`, `obsm["private_rna"]` (factors, about unit variance)
        - `uns["synthetic_tissue"]`: the arguments

    Raises
    ------
    ValueError
        If an argument is out of its range.

    Notes
    -----
    Every section is laid out anew (up to 50 times) until each domain has at least a quarter of the
    observations it would have were all domains equally large; the best layout is kept. With very few
    observations for a domain, one may be absent from a section. 100,000 observations with the default
    200 genes and 64 image features take about 7 seconds; time and memory grow with `n_obs * n_genes`.

    Examples
    --------
    >>> import stfuse
    >>> adata = stfuse.datasets.synthetic_tissue(500, n_sections=2, missing_image=0.1)
    >>> adata.shape, adata.obsm["X_image"].shape, adata.obs["domain"].nunique()
    ((500, 200), (500, 64), 12)
    >>> int((~adata.obs["has_image"]).sum())
    50
    """
    params = dict(locals())
    strengths = _pair(private_strength, "private_strength")
    _validate(params, strengths)
    rng = np.random.default_rng(seed)

    layout = _lay_out(n_obs, n_sections, n_classes, lattice, rng)
    shared, own_image, own_rna = (
        _factors(layout, layout.classes[:, i], n_classes[i], n_factors[i], domain_strength, rng) for i in range(3)
    )
    has_image, has_rna = _masks(n_obs, missing_image, missing_rna, rng)

    inputs = np.hstack([shared * shared_strength, own_image * strengths[0]])
    image = _observe(inputs, n_image_features, nonlinearity, rng)
    image = _finish_image(image, layout.section, noise, batch_effect, rng)
    image[~has_image] = np.nan

    inputs = np.hstack([shared * shared_strength, own_rna * strengths[1]])
    log_rate = _observe(inputs, n_genes, nonlinearity, rng)
    median = 10.0 * n_genes if library_size is None else float(library_size)
    counts = _count(log_rate, layout.section, noise, batch_effect, median, has_rna, rng)

    adata = AnnData(counts, obs=_obs_table(layout, n_sections, n_classes, has_image, has_rna))
    adata.var_names = [f"gene{i}" for i in range(n_genes)]
    adata.obsm["spatial"] = layout.xy
    adata.obsm["X_image"] = image
    if pca:
        adata.obsm["X_pca"] = _principal_components(counts, has_rna, seed)
    adata.obsm["shared"], adata.obsm["private_image"], adata.obsm["private_rna"] = shared, own_image, own_rna
    # h5ad can't hold tuples.
    params |= {key: np.asarray(params[key]) for key in ("n_classes", "n_factors")}
    adata.uns["synthetic_tissue"] = params | {"private_strength": np.asarray(strengths), "library_size": median}
    return adata


def _pair(value: float | tuple[float, float], name: str) -> tuple[float, float]:
    if np.ndim(value) == 0:
        return float(value), float(value)  # type: ignore[arg-type]
    if np.shape(value) != (2,):
        raise ValueError(f"{name} must be a number or two numbers (image, rna), not {value!r}.")
    return float(value[0]), float(value[1])  # type: ignore[index]


def _validate(params: dict, strengths: tuple[float, float]) -> None:
    for name in ("n_obs", "n_sections", "n_genes", "n_image_features"):
        if params[name] < 1:
            raise ValueError(f"{name} must be at least 1, not {params[name]}.")
    if params["n_sections"] > params["n_obs"]:
        raise ValueError(f"n_sections = {params['n_sections']} needs at least as many observations as sections.")
    for name, least in (("n_classes", (1, 1, 1)), ("n_factors", (1, 0, 0))):
        values = params[name]
        if np.shape(values) != (3,) or any(v < m for v, m in zip(values, least, strict=True)):
            raise ValueError(f"{name} must be three numbers (shared, image, rna), at least {least}, not {values!r}.")
    for i, view in ((1, "image"), (2, "rna")):
        if params["n_classes"][i] > 1 and params["n_factors"][i] == 0:
            raise ValueError(f"n_classes has classes that only the {view} sees, but n_factors gives it no factors.")
    for name in ("shared_strength", "domain_strength", "noise", "batch_effect"):
        if params[name] < 0:
            raise ValueError(f"{name} must not be negative, but is {params[name]}.")
    if min(strengths) < 0:
        raise ValueError(f"private_strength must not be negative, but is {strengths}.")
    for name in ("nonlinearity", "missing_image", "missing_rna"):
        if not 0 <= params[name] <= 1:
            raise ValueError(f"{name} must lie between 0 and 1, but is {params[name]}.")
    if params["missing_image"] + params["missing_rna"] > 1:
        raise ValueError("missing_image + missing_rna is more than 1: some observations would have no view at all.")
    if params["library_size"] is not None and params["library_size"] <= 0:
        raise ValueError(f"library_size must be positive, not {params['library_size']}.")
    if params["lattice"] not in ("hex", "square"):
        raise ValueError(f'lattice must be "hex" or "square", not {params["lattice"]!r}.')


def _lay_out(
    n_obs: int, n_sections: int, n_classes: tuple[int, int, int], lattice: str, rng: np.random.Generator
) -> _Layout:
    sizes = np.full(n_sections, n_obs // n_sections)
    sizes[: n_obs % n_sections] += 1
    xy = [_lattice(size, lattice) for size in sizes]
    classes = [_draw_classes(points, n_classes, rng) for points in xy]
    return _Layout(np.vstack(xy), np.repeat(np.arange(n_sections), sizes), np.vstack(classes))


def _lattice(n: int, kind: str) -> np.ndarray:
    """Give n points, row by row, in a square as nearly as the lattice allows."""
    height = np.sqrt(3) / 2 if kind == "hex" else 1.0
    columns = max(1, int(np.ceil(np.sqrt(n * height))))
    row, column = np.divmod(np.arange(n), columns)
    x = column + (row % 2) / 2 if kind == "hex" else column
    return np.column_stack([x, row * height]) * _PITCH


def _draw_classes(xy: np.ndarray, n_classes: tuple[int, int, int], rng: np.random.Generator) -> np.ndarray:
    """Cover a section with three partitions, drawn again until every combination has room."""
    n_domains = int(np.prod(n_classes))
    extent = _extent(xy)
    # Layouts are judged on about 2,000 points; only the chosen one is made for all of them.
    sample = xy[:: max(1, len(xy) // 2000)]
    best, best_size = 0, -1
    for attempt in rng.integers(2**63, size=50).tolist():
        classes = _partitions(sample, extent, n_classes, attempt)
        smallest = int(np.bincount(np.ravel_multi_index(classes.T, n_classes), minlength=n_domains).min())
        if smallest > best_size:
            best, best_size = attempt, smallest
        if best_size >= len(sample) // (4 * n_domains):
            break
    return _partitions(xy, extent, n_classes, best)


def _partitions(xy: np.ndarray, extent: np.ndarray, n_classes: tuple[int, int, int], seed: int) -> np.ndarray:
    """Give each point the class of the nearest of 2 seeds a class, in smoothly warped coordinates, three times."""
    rng = np.random.default_rng(seed)
    classes = np.zeros((len(xy), 3), dtype=int)
    for column, k in enumerate(n_classes):
        if k > 1:
            warped = xy / extent.max() + 0.06 * _smooth(xy, extent, 2, rng)
            seeds = rng.random((2 * k, 2)) * (extent / extent.max())
            classes[:, column] = cdist(warped, seeds, "sqeuclidean").argmin(axis=1) % k
    return classes


def _extent(xy: np.ndarray) -> np.ndarray:
    return np.maximum(np.ptp(xy, axis=0), _PITCH)


def _smooth(xy: np.ndarray, extent: np.ndarray, n_fields: int, rng: np.random.Generator) -> np.ndarray:
    """Random fields of unit variance, Gaussian kernel with a length of 0.12 sides (random Fourier features)."""
    n_waves = 24
    frequency = rng.standard_normal((2, n_waves)) / (0.12 * extent.max())
    phase = rng.random(n_waves) * 2 * np.pi
    waves = np.cos(xy @ frequency + phase) * np.sqrt(2 / n_waves)
    return waves @ rng.standard_normal((n_waves, n_fields))


def _factors(
    layout: _Layout, classes: np.ndarray, n_classes: int, n_factors: int, strength: float, rng: np.random.Generator
) -> np.ndarray:
    means = rng.standard_normal((n_classes, n_factors))
    means -= means.mean(axis=0)
    # Few means differ a lot in spread from draw to draw; a known spread makes the strengths comparable.
    means /= np.sqrt(np.mean(means**2)) if n_classes > 1 and n_factors else 1.0
    parts = np.split(layout.xy, np.flatnonzero(np.diff(layout.section)) + 1)
    smooth = np.vstack([_smooth(xy, _extent(xy), n_factors, rng) for xy in parts])
    iid = rng.standard_normal(smooth.shape)
    inside = np.sqrt(_SMOOTH) * smooth + np.sqrt(_IID) * iid
    spread = strength if n_classes > 1 else 0.0
    return ((spread * means[classes] + inside) / np.sqrt(spread**2 + 1)).astype(np.float32)


def _observe(inputs: np.ndarray, n_out: int, nonlinearity: float, rng: np.random.Generator) -> np.ndarray:
    """Map factors to features: linear, a random network, or a mixture, all of the same spread."""
    n_in = inputs.shape[1]
    linear = inputs @ (rng.standard_normal((n_in, n_out)) * np.sqrt(2 / n_in)).astype(np.float32)
    weights = (rng.standard_normal((n_in, _HIDDEN)) * np.sqrt(6 / n_in)).astype(np.float32)
    bias = rng.standard_normal(_HIDDEN).astype(np.float32)
    out = rng.standard_normal((_HIDDEN, n_out)).astype(np.float32)
    if nonlinearity == 0:
        return linear
    bent = np.tanh(inputs @ weights + bias) @ out
    bent -= bent.mean(axis=0)
    bent *= linear.std() / (bent.std() or 1.0)
    mixed = (1 - nonlinearity) * linear + nonlinearity * bent
    # Two independent signals partly cancel when mixed: restore the spread so that only the form changes.
    return mixed * (linear.std() / (mixed.std() or 1.0))


def _finish_image(
    image: np.ndarray, section: np.ndarray, noise: float, batch_effect: float, rng: np.random.Generator
) -> np.ndarray:
    image = image + 1.5 * noise * rng.standard_normal(image.shape, dtype=np.float32)
    shape = (section.max() + 1, image.shape[1])
    offset, log_scale = rng.standard_normal(shape), rng.standard_normal(shape)
    if batch_effect:
        image *= np.exp(0.25 * batch_effect * log_scale).astype(np.float32)[section]
        image += (batch_effect * offset).astype(np.float32)[section]
    return image


def _count(
    log_rate: np.ndarray,
    section: np.ndarray,
    noise: float,
    batch_effect: float,
    library_size: float,
    has_rna: np.ndarray,
    rng: np.random.Generator,
) -> csr_matrix:
    n, n_genes = log_rate.shape
    base = rng.standard_normal(n_genes)
    batch = batch_effect * rng.standard_normal((section.max() + 1, n_genes))
    library = library_size * np.exp(0.3 * rng.standard_normal(n)) * has_rna
    overdispersion = np.float32(0.2 * noise**2)
    level = (base + batch).astype(np.float32)
    rows = max(1, _BLOCK // n_genes)
    blocks = []
    for start in range(0, n, rows):
        part = slice(start, start + rows)
        mean = np.exp(level[section[part]] + 0.5 * log_rate[part])
        mean *= (library[part] / mean.sum(axis=1))[:, None].astype(np.float32)
        if overdispersion:
            mean *= rng.standard_gamma(1 / overdispersion, mean.shape, dtype=np.float32) * overdispersion
        blocks.append(csr_matrix(rng.poisson(mean).astype(np.float32)))
    return vstack(blocks, format="csr")


def _masks(n: int, missing_image: float, missing_rna: float, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    order = rng.permutation(n)
    n_image = round(missing_image * n)
    n_rna = min(round(missing_rna * n), n - n_image)
    has_image, has_rna = np.ones(n, dtype=bool), np.ones(n, dtype=bool)
    has_image[order[:n_image]] = False
    has_rna[order[n_image : n_image + n_rna]] = False
    return has_image, has_rna


def _principal_components(counts: csr_matrix, has_rna: np.ndarray, seed: int) -> np.ndarray:
    from sklearn.decomposition import PCA

    n_comps = min(30, counts.shape[1], int(has_rna.sum()))
    scores = np.full((counts.shape[0], n_comps), np.nan, dtype=np.float32)
    if has_rna.sum() == 1:
        scores[has_rna] = 0
    elif n_comps:
        values = counts[has_rna].toarray()
        values *= 1e4 / np.maximum(values.sum(axis=1, keepdims=True), 1)
        scores[has_rna] = PCA(n_comps, random_state=seed).fit_transform(np.log1p(values, out=values))
    return scores


def _obs_table(
    layout: _Layout, n_sections: int, n_classes: tuple[int, int, int], has_image: np.ndarray, has_rna: np.ndarray
) -> pd.DataFrame:
    index = pd.Index([f"spot{i}" for i in range(len(has_image))])
    shared, image, rna = layout.classes.T
    grid = np.indices(n_classes).reshape(3, -1).T
    names = [f"S{s}I{i}R{r}" for s, i, r in grid]
    domain = pd.Categorical.from_codes(np.ravel_multi_index(layout.classes.T, n_classes), names)
    columns = {
        "section": pd.Categorical.from_codes(layout.section, [f"section{s + 1}" for s in range(n_sections)]),
        "domain": domain.remove_unused_categories(),
        "has_image": has_image,
        "has_rna": has_rna,
    }
    for name, codes, letter, k in zip(("shared", "image", "rna"), (shared, image, rna), "SIR", n_classes, strict=True):
        columns[f"class_{name}"] = pd.Categorical.from_codes(codes, [f"{letter}{c}" for c in range(k)])
    return pd.DataFrame(columns, index=index)
