import numpy as np
import pytest
from anndata import read_h5ad
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import issparse
from scipy.spatial import cKDTree
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.metrics import f1_score, r2_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from stfuse.datasets import synthetic_tissue


def probe(features, labels):
    train = np.arange(len(labels)) % 3 > 0
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=500)).fit(features[train], labels[train])
    return f1_score(labels[~train], model.predict(features[~train]), average="macro")


def explained(features, truth):
    """R2 of the best linear prediction on rows that were not fitted."""
    train = np.arange(len(truth)) % 3 > 0
    model = LinearRegression().fit(features[train], truth[train])
    return r2_score(truth[~train], model.predict(features[~train]))


def assert_same(a, b):
    assert (a.X != b.X).nnz == 0
    assert a.obs.equals(b.obs)
    assert set(a.obsm) == set(b.obsm)
    for key in a.obsm:
        np.testing.assert_array_equal(a.obsm[key], b.obsm[key])


def test_layout_of_the_object(tmp_path):
    adata = synthetic_tissue(301, 3, n_genes=40, n_image_features=10)
    assert adata.shape == (301, 40)
    assert issparse(adata.X) and adata.X.format == "csr" and adata.X.dtype == np.float32
    assert (adata.X.data == np.rint(adata.X.data)).all() and (adata.X.data > 0).all()
    assert adata.obsm["X_image"].shape == (301, 10) and adata.obsm["X_image"].dtype == np.float32
    assert adata.obsm["X_pca"].shape == (301, 30) and adata.obsm["X_pca"].dtype == np.float32
    assert [adata.obsm[k].shape[1] for k in ("shared", "private_image", "private_rna")] == [6, 4, 4]
    assert adata.obs["section"].value_counts(sort=False).tolist() == [101, 100, 100]
    assert adata.obs_names.is_unique and adata.var_names.is_unique
    adata.write_h5ad(tmp_path / "tissue.h5ad")
    assert_same(read_h5ad(tmp_path / "tissue.h5ad"), adata)


def test_same_seed_gives_same_object():
    kwargs = {"n_sections": 2, "nonlinearity": 0.5, "batch_effect": 0.5, "missing_image": 0.1, "missing_rna": 0.1}
    assert_same(synthetic_tissue(200, seed=3, **kwargs), synthetic_tissue(200, seed=3, **kwargs))
    other = synthetic_tissue(200, seed=4, **kwargs)
    assert (other.X != synthetic_tissue(200, seed=3, **kwargs).X).nnz > 0


@pytest.mark.parametrize(("lattice", "n_neighbors"), [("hex", 6), ("square", 4)])
def test_lattice(lattice, n_neighbors):
    xy = synthetic_tissue(900, lattice=lattice).obsm["spatial"]
    distance = cKDTree(xy).query(xy, k=9)[0][:, 1:]
    near = np.isclose(distance, 100).sum(axis=1)
    assert distance.min() == pytest.approx(100)
    assert near.max() == n_neighbors and np.mean(near == n_neighbors) > 0.8


def test_domains_are_contiguous_and_in_every_section():
    adata = synthetic_tissue(4000, 2)
    crossed = adata.obs["class_shared"].astype(str) + adata.obs["class_image"].astype(str)
    crossed += adata.obs["class_rna"].astype(str)
    assert (adata.obs["domain"].astype(str) == crossed).all()
    for _, section in adata.obs.groupby("section", observed=True):
        assert section["domain"].nunique() == 12
        xy, domain = adata[section.index].obsm["spatial"], section["domain"].to_numpy()
        neighbors = cKDTree(xy).query(xy, k=7)[1][:, 1:]
        # by chance about one neighbour in ten would be of the same domain
        assert (domain[neighbors] == domain[:, None]).mean() > 0.7


def test_each_view_shows_what_it_should():
    adata = synthetic_tissue(3000)
    views = {"private_image": adata.obsm["X_image"], "private_rna": adata.obsm["X_pca"]}
    for own, other in (("private_image", "private_rna"), ("private_rna", "private_image")):
        assert explained(views[own], adata.obsm["shared"]) > 0.5
        assert explained(views[own], adata.obsm[own]) > 0.5
        # Layouts and smooth fields of one section resemble each other by chance; a view shows no more than that.
        by_chance = explained(np.hstack([adata.obsm["shared"], adata.obsm[own]]), adata.obsm[other])
        assert explained(views[own], adata.obsm[other]) < by_chance + 0.02


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_both_views_together_tell_domains_better_than_either(seed):
    adata = synthetic_tissue(seed=seed)
    image, rna, domain = adata.obsm["X_image"], adata.obsm["X_pca"], adata.obs["domain"].to_numpy()
    better = max(probe(image, domain), probe(rna, domain))
    assert probe(np.hstack([image, rna]), domain) > better + 0.1


def test_strengths_of_zero_hide_factors():
    adata = synthetic_tissue(2000, shared_strength=0, private_strength=(0, 1))
    assert explained(adata.obsm["X_image"], adata.obsm["shared"]) < 0.05
    assert explained(adata.obsm["X_image"], adata.obsm["private_image"]) < 0.05
    assert explained(adata.obsm["X_pca"], adata.obsm["private_rna"]) > 0.5


def test_nonlinearity_bends_the_image():
    linear, bent = (synthetic_tissue(3000, nonlinearity=x, noise=0) for x in (0.0, 1.0))
    for adata, low, high in ((linear, 0.999, 1.001), (bent, 0.2, 0.95)):
        factors = np.hstack([adata.obsm["shared"], adata.obsm["private_image"]])
        assert low < explained(factors, adata.obsm["X_image"]) < high


def test_counts_are_negative_binomial_with_the_stated_moments():
    # no factors' influence: each gene has one mean per library size, so the moments can be checked directly
    adata = synthetic_tissue(
        20_000, n_classes=(1, 1, 1), n_genes=5, shared_strength=0, private_strength=0, library_size=500, pca=False
    )
    counts = adata.X.toarray().astype(float)
    share = counts.mean(axis=0) / counts.sum(axis=1).mean()
    # log-normal library of median L: E = L exp(s2 / 2), E of the square = L2 exp(2 s2)
    mean = 500 * np.exp(0.045) * share
    variance = mean + 1.2 * (500 * share) ** 2 * np.exp(0.18) - mean**2
    np.testing.assert_allclose(counts.mean(axis=0).sum(), 500 * np.exp(0.045), rtol=0.02)
    np.testing.assert_allclose(counts.var(axis=0), variance, rtol=0.06)


def test_noise_free_counts_are_poisson():
    adata = synthetic_tissue(20_000, n_classes=(1, 1, 1), n_genes=1, noise=0, library_size=50, pca=False)
    counts = adata.X.toarray().ravel()
    # one gene gets the whole library: the variance is that of a Poisson with a log-normal mean
    expected = 50 * np.exp(0.045) + 50**2 * (np.exp(0.18) - np.exp(0.09))
    assert counts.var() == pytest.approx(expected, rel=0.06)


def test_batch_effect_separates_sections():
    def gap(adata, key):
        values, second = adata.obsm[key], adata.obs["section"].to_numpy() == "section2"
        return np.linalg.norm(values[second].mean(axis=0) - values[~second].mean(axis=0)) / values.std()

    plain, shifted = synthetic_tissue(1000, 2), synthetic_tissue(1000, 2, batch_effect=1)
    for key in ("X_image", "X_pca"):
        assert gap(shifted, key) > 2 * gap(plain, key)
    # the truth is the same tissue
    np.testing.assert_array_equal(plain.obsm["shared"], shifted.obsm["shared"])


@settings(max_examples=25, deadline=None)
@given(
    n=st.integers(1, 120),
    missing_image=st.floats(0, 1),
    share=st.floats(0, 1),
    seed=st.integers(0, 1000),
)
def test_missing_views(n, missing_image, share, seed):
    missing_rna = share * (1 - missing_image)
    adata = synthetic_tissue(
        n, n_genes=8, n_image_features=3, missing_image=missing_image, missing_rna=missing_rna, seed=seed
    )
    has_image, has_rna = adata.obs["has_image"].to_numpy(), adata.obs["has_rna"].to_numpy()
    assert (has_image | has_rna).all()
    assert (~has_image).sum() == round(missing_image * n)
    assert abs((~has_rna).sum() - missing_rna * n) <= 1
    np.testing.assert_array_equal(np.isnan(adata.obsm["X_image"]).all(axis=1), ~has_image)
    np.testing.assert_array_equal(np.isnan(adata.obsm["X_image"]).any(axis=1), ~has_image)
    np.testing.assert_array_equal(np.isnan(adata.obsm["X_pca"]).all(axis=1), ~has_rna)
    assert not adata.X[~has_rna].nnz
    for key in ("shared", "private_image", "private_rna", "spatial"):
        assert np.isfinite(adata.obsm[key]).all()


def test_pca_is_that_of_scanpy():
    import scanpy as sc

    adata = synthetic_tissue(300, n_genes=60)
    ours = adata.obsm.pop("X_pca")
    sc.pp.normalize_total(adata, target_sum=1e4)
    sc.pp.log1p(adata)
    sc.pp.pca(adata, n_comps=30)
    theirs = adata.obsm["X_pca"]
    np.testing.assert_allclose(np.abs(ours[:, :10]), np.abs(theirs[:, :10]), rtol=0.01, atol=0.01)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"n_obs": 0}, "n_obs must be at least 1"),
        ({"n_obs": 3, "n_sections": 4}, "n_sections = 4"),
        ({"n_genes": 0}, "n_genes"),
        ({"n_classes": (3, 0, 1)}, "n_classes must be three numbers"),
        ({"n_classes": 4}, "n_classes must be three numbers"),
        ({"n_factors": (0, 1, 1)}, "n_factors must be three numbers"),
        ({"n_factors": (2, 0, 1)}, "only the image sees"),
        ({"private_strength": (1, 2, 3)}, "private_strength must be a number or two"),
        ({"private_strength": -1}, "private_strength must not be negative"),
        ({"noise": -1}, "noise must not be negative"),
        ({"nonlinearity": 2}, "nonlinearity must lie between 0 and 1"),
        ({"missing_image": 0.6, "missing_rna": 0.6}, "no view at all"),
        ({"library_size": 0}, "library_size must be positive"),
        ({"lattice": "triangle"}, 'lattice must be "hex" or "square"'),
    ],
)
def test_bad_arguments(kwargs, message):
    with pytest.raises(ValueError, match=message):
        synthetic_tissue(**kwargs)
