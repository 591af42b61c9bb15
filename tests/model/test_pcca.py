"""PCCA against canonical correlations, principal components and tissue of which the truth is known."""

import numpy as np
import pytest
from scipy.spatial.distance import pdist
from sklearn.cross_decomposition import CCA
from sklearn.decomposition import PCA
from sklearn.linear_model import LinearRegression

import stfuse
from stfuse.datasets import synthetic_tissue
from stfuse.model import PCCA

PLAIN = {"context": False, "matching": False, "scale": False}


def fit(adata, paired_key=None, **params):
    PCCA.setup_anndata(adata, paired_key=paired_key)
    model = PCCA(adata, **params)
    model.train()
    return model


def canonical_correlations(x, y):
    roots = [np.linalg.qr(v - v.mean(0))[0] for v in (x, y)]
    return np.linalg.svd(roots[0].T @ roots[1], compute_uv=False)


def columns_correlate(a, b):
    return np.array([np.corrcoef(a[:, j], b[:, j])[0, 1] for j in range(a.shape[1])])


def r2(x, y):
    """Out-of-sample, by linear regression."""
    half = np.arange(len(x)) % 2 == 0
    return LinearRegression().fit(x[half], y[half]).score(x[~half], y[~half])


def test_with_all_pairs_it_is_canonical_correlation_analysis(two_views):
    adata = two_views(2000)
    image, rna = adata.obsm["X_image"].astype(float), adata.obsm["X_pca"].astype(float)
    model = fit(adata, rank=8, **PLAIN)
    codes = model.codes()
    found = columns_correlate(codes.image, codes.rna)
    expected = canonical_correlations(PCA(8).fit_transform(image), rna)
    np.testing.assert_allclose(found[:4], expected[:4], atol=0.01)
    a, b = CCA(2, max_iter=5000).fit(PCA(8).fit_transform(image), rna).transform(PCA(8).fit_transform(image), rna)
    np.testing.assert_allclose(found[:2], columns_correlate(a, b), atol=0.01)
    # the same directions, not only the same correlations
    assert np.abs(columns_correlate(codes.rna[:, :2], b)).min() > 0.99
    # what held-out pairs say of the four factors is close to it, and of the rest close to nothing
    rho = model.module.rho.numpy()
    np.testing.assert_allclose(rho[:4], expected[:4], atol=0.03)
    assert rho[4:].max() < 0.15
    assert model.module.sizes.n_shared == 4


def test_codes_do_not_depend_on_the_units_of_the_features(two_views):
    adata = two_views(500)
    plain = fit(adata, rank=8, context=False, scale=True).codes()
    turned = adata.copy()
    turned.obsm["X_image"] = turned.obsm["X_image"] * np.float32(50) + np.float32(7)
    again = fit(turned, rank=8, context=False, scale=True).codes()
    for name in ("image", "rna", "fused"):
        a, b = getattr(plain, name), getattr(again, name)
        np.testing.assert_allclose(np.abs(a), np.abs(b), atol=5e-3)


@pytest.mark.parametrize("hidden", [0.0, 0.6])
def test_fused_code_is_an_isometry_of_balanced_components(two_views, hidden):
    adata = two_views(400, p=30, q=20)
    stfuse.pp.hide_pairs(adata, hidden)
    model = fit(adata, paired_key="paired", scale=False)
    blocks = []
    for key, r in (("X_image", model.module.sizes.r_image), ("X_pca", model.module.sizes.r_rna)):
        pcs = PCA(r).fit_transform(adata.obsm[key].astype(float))
        blocks.append(pcs / np.sqrt(pcs.var(0).sum()))
    codes = model.codes()
    np.testing.assert_allclose(pdist(codes.fused), pdist(np.hstack(blocks)), rtol=2e-4)
    # private codes are its tail
    tail = np.hstack([codes.private_image, codes.private_rna])
    np.testing.assert_array_equal(codes.fused[:, -tail.shape[1] :], tail)


@pytest.mark.parametrize("private_dim", [0, 1, 3, None])
def test_private_dim(two_views, private_dim):
    adata = two_views(400, p=30, q=20)
    whole = fit(adata).codes()
    model = fit(adata, private_dim=private_dim)
    k, codes = model.module.sizes.n_shared, model.codes()
    if private_dim == 0:
        assert codes.private_image is None and codes.private_rna is None
        assert codes.fused.shape[1] == 2 * k
    elif private_dim is not None:
        assert codes.private_image.shape[1] == codes.private_rna.shape[1] == private_dim
        np.testing.assert_array_equal(codes.private_rna, whole.private_rna[:, :private_dim])
        assert codes.fused.shape[1] == 2 * k + 2 * private_dim
    np.testing.assert_array_equal(codes.fused[:, : 2 * k], whole.fused[:, : 2 * k])


@pytest.mark.parametrize("hidden", [0.0, 0.6])
def test_private_codes_hold_what_the_other_view_cannot_see(hidden):
    """Neighbours share more dimensions than a spot has; those must not use up the private ones."""
    adata = synthetic_tissue(900, seed=1)
    stfuse.pp.hide_pairs(adata, hidden)
    model = fit(adata, paired_key="paired")
    sizes, codes = model.module.sizes, model.codes()
    assert sizes.context > 0
    assert 4 <= sizes.n_shared <= 8  # the truth has six factors
    for view, at_least in (("image", 0.35), ("rna", 0.5)):
        private = getattr(codes, f"private_{view}")
        start = 0 if view == "image" else sizes.n_shared
        shared = codes.fused[:, start : start + sizes.n_shared]
        assert r2(private, adata.obsm[f"private_{view}"]) > at_least
        assert r2(private, adata.obsm["shared"]) < 0.1
        assert r2(shared, adata.obsm["shared"]) > 0.6


@pytest.mark.parametrize("view", ["image", "rna"])
def test_a_missing_view_is_its_translation_in_the_fused_code(two_views, view):
    adata = two_views(400)
    key, other = ("X_image", "rna") if view == "image" else ("X_pca", "image")
    adata.obsm[key][:50] = np.nan
    model = fit(adata, scale=False)
    filled = adata.copy()
    filled.obsm[key][:50] = model.translate(source=other, target=view)[:50]
    np.testing.assert_allclose(model.codes(filled).fused, model.codes().fused, atol=1e-4)


def test_translation_is_regression_on_what_is_shared(two_views):
    adata = two_views(2000)
    train, test = adata[:1000].copy(), adata[1000:].copy()
    model = fit(train, rank=8, **PLAIN)
    for source, target, x, y in (("image", "rna", "X_image", "X_pca"), ("rna", "image", "X_pca", "X_image")):
        truth, mean = test.obsm[y], train.obsm[y].mean(0)
        error = ((model.translate(test, source=source, target=target) - truth) ** 2).sum()
        best = LinearRegression().fit(train.obsm[x], train.obsm[y]).predict(test.obsm[x])
        assert error < 1.05 * ((best - truth) ** 2).sum()
        assert error < 0.7 * ((mean - truth) ** 2).sum()


def test_unpaired_observations_help(two_views):
    """With 25 pairs, soft matching finds more of the truth than the pairs alone."""
    recalls = {True: [], False: []}
    for seed in range(3):
        adata = two_views(1000, seed=seed)
        adata.obs["known"] = np.arange(1000) < 25
        for matching in recalls:
            codes = fit(adata, paired_key="known", rank=8, matching=matching, context=False).codes()
            recalls[matching].append(stfuse.metrics.recall_at_percent(codes.image[25:], codes.rna[25:]))
    assert np.mean(recalls[True]) > np.mean(recalls[False]) + 0.05


def test_what_is_not_paired_is_not_used_as_a_pair(two_views):
    """Shuffling the partners of rows that are not known pairs changes nothing but the rows themselves."""
    adata = two_views(600)
    adata.obs["known"] = np.arange(600) < 200
    order = np.r_[np.arange(200), 200 + np.random.default_rng(0).permutation(400)]
    shuffled = adata.copy()
    shuffled.obsm["X_pca"] = shuffled.obsm["X_pca"][order]
    one = fit(adata, paired_key="known", rank=8, context=False, matching=False).codes()
    two = fit(shuffled, paired_key="known", rank=8, context=False, matching=False).codes()
    np.testing.assert_allclose(two.image, one.image, atol=1e-3)
    np.testing.assert_allclose(two.rna, one.rna[order], atol=1e-3)


def test_context_needs_coordinates():
    adata = synthetic_tissue(300, seed=1)
    model = fit(adata)
    assert model.module.sizes.context > 0
    del adata.obsm["spatial"]
    with pytest.raises(ValueError, match="needs obsm\\['spatial'\\].*train with context=False"):
        model.codes(adata)


@pytest.mark.parametrize(
    ("params", "words"),
    [
        ({"n_components": 0}, "n_components must be a whole number of at least 1"),
        ({"rank": 0}, "rank must be a whole number of at least 1"),
        ({"private_dim": -1}, "private_dim must be"),
        ({"private_dim": 1.5}, "private_dim must be"),
    ],
)
def test_bad_parameters(two_views, params, words):
    adata = two_views(50)
    PCCA.setup_anndata(adata)
    with pytest.raises(ValueError, match=words):
        PCCA(adata, **params)


def test_no_code_of_that_name(two_views):
    model = fit(two_views(60), private_dim=0)
    with pytest.raises(ValueError, match="PCCA has no code named 'private_rna'"):
        model.get_latent_representation(view="private_rna")
    with pytest.raises(ValueError, match="view must be one of 'fused'"):
        model.get_latent_representation(view="both")
    with pytest.raises(ValueError, match="source and target are both 'rna'"):
        model.translate(source="rna", target="rna")
    with pytest.raises(ValueError, match="target must be one of 'image', 'rna'"):
        model.translate(target="protein")


def test_translations_come_back_in_the_units_of_their_batch():
    adata = stfuse.datasets.synthetic_tissue(300, n_sections=2, seed=3)
    first = (adata.obs["section"] == adata.obs["section"].cat.categories[0]).to_numpy()
    adata.obsm["X_pca"][first] += 50
    stfuse.model.PCCA.setup_anndata(adata, batch_key="section", library_key="section")
    model = stfuse.model.PCCA(adata)
    model.train()
    predicted = model.translate(source="image", target="rna")
    for part in (first, ~first):
        np.testing.assert_allclose(predicted[part].mean(0), adata.obsm["X_pca"][part].mean(0), atol=0.5)
    new = adata.copy()
    new.obs["section"] = "another"
    expected = adata.obsm["X_pca"].mean(0)
    np.testing.assert_allclose(model.translate(new, source="image", target="rna").mean(0), expected, atol=1.0)
    del new.obs["section"]
    with pytest.raises(KeyError, match="trained with batch_key='section'"):
        model.codes(new)


def test_few_pairs_are_told():
    adata = stfuse.datasets.synthetic_tissue(200, seed=3)
    adata.obs["known"] = np.arange(200) < 5
    with pytest.warns(UserWarning, match="PCCA stands on 5 pairs") as caught:
        stfuse.tl.pcca(adata, paired_key="known")
    assert caught[0].filename == __file__


@pytest.mark.parametrize("params", [{"context": "no"}, {"matching": 1}, {"scale": "yes"}, {"n_components": "50"}])
def test_flags_and_numbers_are_told_from_text(params):
    adata = stfuse.datasets.synthetic_tissue(100)
    with pytest.raises(TypeError, match=f"{next(iter(params))} must be"):
        stfuse.tl.pcca(adata, **params)


def test_batches_of_one_are_told():
    adata = stfuse.datasets.synthetic_tissue(200, seed=3)
    adata.obs["slide"] = np.where(np.arange(200) < 1, "lone", "other")
    with pytest.warns(UserWarning, match="1 batch.*'lone'.*coarser batch_key"):
        stfuse.tl.pcca(adata, batch_key="slide")
