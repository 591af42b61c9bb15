"""Linear maps of two views: components, ridge CCA, and how its penalty is chosen."""

import numpy as np
import pytest
from scipy.linalg import eigh
from sklearn.decomposition import PCA

from stfuse.module.linear_start import PENALTIES, choose_penalty, components, linear_maps, nearest_mean, ridge_cca


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def test_components_are_those_of_each_block(rng):
    x = (rng.normal(size=(80, 5)) @ rng.normal(size=(5, 12)) + 0.1 * rng.normal(size=(80, 12)) + 3).astype(np.float32)
    rows = np.arange(60)
    found = components(x, rows, (4, 2))
    scale = x[rows, :6].std(0), x[rows, 6:].std(0)
    for block, k, sd, columns in ((x[:, :6], 4, scale[0], slice(0, 4)), (x[:, 6:], 2, scale[1], slice(4, 6))):
        scaled = (block - block[rows].mean(0)) / sd
        expected = PCA(k).fit(scaled[rows]).transform(scaled)
        np.testing.assert_allclose(np.abs(found(x)[:, columns]), np.abs(expected), atol=1e-4)


def test_uncorrelated_features_keep_their_variances(rng):
    x = np.linalg.qr(rng.normal(size=(50, 4)))[0]
    x = (x - x.mean(0)) * [8, 4, 2, 1]
    x = PCA(4).fit_transform(x)
    found = components(x, np.arange(50), (4,))(x)
    np.testing.assert_allclose(np.abs(found), np.abs(x), atol=1e-8)


def test_a_constant_feature_counts_nowhere(rng):
    x = rng.normal(size=(30, 3))
    x[:20, 1] = 5  # constant where the fit looks
    found = components(x, np.arange(20), (3,))
    assert not found.weights[1].any() and np.isfinite(found(x)).all()


def test_ridge_cca_solves_its_eigenproblem(rng):
    """The first directions maximise correlation under the penalised variances: a generalised eigenproblem."""
    a = rng.normal(size=(200, 5)) * [3, 2, 1, 1, 0.5]
    b = a[:, :3] @ rng.normal(size=(3, 4)) + rng.normal(size=(200, 4))
    a, b = a - a.mean(0), b - b.mean(0)
    fit = ridge_cca(a, b, 0.3)
    ca, cb = a.T @ a / 200, b.T @ b / 200
    ca += 0.3 * np.trace(ca) / 5 * np.eye(5)
    cb += 0.3 * np.trace(cb) / 4 * np.eye(4)
    cross = a.T @ b / 200
    values, vectors = eigh(cross @ np.linalg.solve(cb, cross.T), ca)
    np.testing.assert_allclose(fit.rho[0] ** 2, values[-1], rtol=1e-6)
    np.testing.assert_allclose(np.abs(fit.u[:, 0]), np.abs(vectors[:, -1]), rtol=1e-5)


def test_the_penalty_with_the_least_error(rng):
    """Literal: each fold from the others, every penalty."""
    shared = rng.normal(size=(60, 2))
    a = np.hstack([shared, rng.normal(size=(60, 6))])
    b = np.hstack([shared @ rng.normal(size=(2, 3)), rng.normal(size=(60, 9))])
    fold = np.arange(60) % 3
    found = choose_penalty(a, b, fold)
    assert list(found) == list(PENALTIES)
    error = floor = 0
    for f in range(3):
        rest = fold != f
        fit = ridge_cca(a[rest] - a[rest].mean(0), b[rest] - b[rest].mean(0), 0.1)
        h = (a[~rest] - a[rest].mean(0)) @ fit.u * fit.rho
        g = (b[rest] - b[rest].mean(0)) @ fit.v * fit.rho
        for i, row in enumerate(b[~rest]):
            cosine = g @ h[i] / np.linalg.norm(g, axis=1) / np.linalg.norm(h[i])
            near = np.argsort(-cosine)[:13]  # a third of forty
            weight = np.clip(cosine[near], 1e-6, None)
            error += ((row - weight @ b[rest][near] / weight.sum())[:10] ** 2).sum()
            floor += ((row - b[rest].mean(0))[:10] ** 2).sum()
    np.testing.assert_allclose(found[0.1], error / floor, rtol=1e-8)


def test_maps_bring_pairs_together(rng):
    shared = rng.normal(size=(300, 3))
    x = {
        "image": (shared @ rng.normal(size=(3, 20)) + rng.normal(size=(300, 20)) + 7).astype(np.float32),
        "rna": (shared @ rng.normal(size=(3, 9)) + 0.5 * rng.normal(size=(300, 9))).astype(np.float32),
    }
    has = {"image": np.ones(300, bool), "rna": np.arange(300) < 280}
    x["rna"][280:] = np.nan
    maps = linear_maps(x, has, np.arange(200), {"image": (10,), "rna": (5,)}, 0.1, 0)
    h, g = (maps[v](x[v][200:280]) for v in x)
    cosine = (h @ g.T) / np.linalg.norm(h, axis=1)[:, None] / np.linalg.norm(g, axis=1)
    assert (cosine.argmax(1) == np.arange(80)).mean() > 0.1  # by chance .0125
    np.testing.assert_allclose(maps["image"](x["image"][:200]).mean(0), 0, atol=1e-4)


def test_the_mean_of_the_nearest(rng):
    values = rng.normal(size=(4, 2))
    pool = np.array([[1.0, 0], [0, 1], [-1, 0], [0, -1]])
    found = nearest_mean(np.array([[1.0, 0.1]]), pool, values)  # one neighbour of four
    np.testing.assert_allclose(found[0], values[0])
