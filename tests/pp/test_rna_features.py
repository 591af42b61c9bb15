import numpy as np
import pytest
import scanpy as sc
from anndata import AnnData
from scipy.sparse import csc_matrix, csr_matrix

from stfuse.datasets import mob, synthetic_tissue
from stfuse.pp import _recipe, rna_features


def rna_pca(*args, **kwargs):
    return _recipe.rna_pca(*args, **kwargs)[0]


def counts(n=60, genes=40, seed=0):
    rng = np.random.default_rng(seed)
    means = rng.gamma(1, 3, (n, 1)) * rng.gamma(1, 1, genes) + 0.05
    return AnnData(csr_matrix(rng.poisson(means).astype(np.float32)))


def distances(scores):
    return np.linalg.norm(scores[:, None] - scores[None], axis=2)


@pytest.mark.parametrize("n_top_genes", [2000, 300])
def test_equals_the_steps_of_scanpy(n_top_genes):
    adata = mob()[::3].copy()
    ours = rna_pca(adata, 10, n_top_genes)
    if n_top_genes < adata.n_vars:
        sc.pp.highly_variable_genes(adata, flavor="seurat_v3", n_top_genes=n_top_genes)
    sc.pp.normalize_total(adata, target_sum=1e4)
    sc.pp.log1p(adata)
    sc.pp.pca(adata, n_comps=10)  # of the highly variable genes, where these were chosen
    assert ours.shape == (adata.n_obs, 10) and ours.dtype == np.float32
    # distances do not depend on the signs of components
    np.testing.assert_allclose(distances(ours[:200]), distances(adata.obsm["X_pca"][:200]), rtol=0.02, atol=0.02)


def test_writes_and_leaves_the_counts():
    adata = mob()
    before = adata.X.copy()
    assert rna_features(adata, n_comps=5) is None
    assert adata.obsm["X_pca"].shape == (1627, 5)
    record = dict(adata.uns["X_pca"])
    assert record.pop("loadings").shape == (adata.n_vars, 6)
    assert record == {"n_comps": 5, "n_top_genes": 2000, "batch_key": None, "layer": None, "reference": False}
    assert (adata.X != before).nnz == 0 and "highly_variable" not in adata.var and "log1p" not in adata.uns
    changed = rna_features(adata, key_added="X_other", copy=True)
    assert "X_other" in changed.obsm and "X_other" not in adata.obsm


def test_same_features_twice_and_in_every_form():
    adata = counts()
    expected = rna_pca(adata, 5)
    np.testing.assert_array_equal(rna_pca(adata, 5), expected)
    for form in (csc_matrix(adata.X), adata.X.toarray(), adata.X.astype(np.int64)):
        other = AnnData(form)
        np.testing.assert_allclose(np.abs(rna_pca(other, 5)), np.abs(expected), rtol=1e-3, atol=1e-4)
    layered = AnnData(np.zeros(adata.shape, dtype=np.float32), layers={"counts": adata.X})
    np.testing.assert_array_equal(rna_pca(layered, 5, layer="counts"), expected)


def test_observations_without_counts():
    adata = counts()
    expected = rna_pca(adata, 4)
    padded = AnnData(csr_matrix(np.insert(adata.X.toarray(), [0, 30], 0, axis=0)))
    with pytest.warns(UserWarning, match="2 of 62 observations have no counts"):
        scores = rna_pca(padded, 4)
    np.testing.assert_array_equal(np.flatnonzero(np.isnan(scores).any(axis=1)), [0, 31])
    np.testing.assert_allclose(np.delete(scores, [0, 31], axis=0), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("n", "genes", "expected"), [(2, 5, 1), (5, 40, 4), (40, 3, 2), (30, 2, 1)])
def test_fewer_components_in_small_data(n, genes, expected):
    adata = counts(n, genes)
    adata.X = csr_matrix(adata.X.toarray() + 1)
    scores = rna_pca(adata)
    assert scores.shape == (n, expected) and np.isfinite(scores).all()


def test_few_observations_of_many_genes():
    adata = synthetic_tissue(25, n_genes=2500, library_size=3000, pca=False)
    scores = rna_pca(adata)
    assert scores.shape == (25, 24) and np.isfinite(scores).all()


def test_genes_are_ranked_within_batches():
    adata = synthetic_tissue(400, 2, n_genes=120, batch_effect=1.0, pca=False)
    ours = distances(rna_pca(adata, 10, 30, "section")[:100])
    assert not np.allclose(ours, distances(rna_pca(adata, 10, 30)[:100]), rtol=0.1)
    sc.pp.highly_variable_genes(adata, flavor="seurat_v3", n_top_genes=30, batch_key="section")
    sc.pp.normalize_total(adata, target_sum=1e4)
    sc.pp.log1p(adata)
    sc.pp.pca(adata, n_comps=10)
    np.testing.assert_allclose(ours, distances(adata.obsm["X_pca"][:100]), rtol=0.02, atol=0.02)


def negative(adata):
    adata.X.data[3] = -1


def missing(adata):
    adata.X.data[3] = np.nan


def empty(adata):
    adata.X.data[:] = 0


@pytest.mark.parametrize(
    ("spoil", "kwargs", "error", "message"),
    [
        (negative, {}, ValueError, "negative values.*rna_key="),
        (missing, {}, ValueError, "missing or infinite.*rna_key="),
        (empty, {}, ValueError, "Only 0 of 60 observations have counts"),
        (None, {"layer": "counts"}, KeyError, "No layer 'counts'"),
        (None, {"batch_key": "batch"}, KeyError, "'batch'"),
        (None, {"n_comps": 0}, ValueError, "n_comps must be a whole number of at least 1"),
        (None, {"key_added": "a/b"}, ValueError, "slash"),
    ],
)
def test_bad_input_changes_nothing(spoil, kwargs, error, message):
    adata = counts()
    if spoil is not None:
        spoil(adata)
    before = adata.X.copy()
    with pytest.raises(error, match=message):
        rna_features(adata, **kwargs)
    assert not adata.obsm and not adata.uns
    np.testing.assert_array_equal(adata.X.toarray(), before.toarray())


def test_normalised_values_are_noticed():
    adata = counts()
    sc.pp.log1p(adata)
    with pytest.warns(UserWarning, match="not whole numbers"):
        rna_features(adata)


def test_no_expression_and_other_containers():
    mudata = pytest.importorskip("mudata")
    with pytest.raises(ValueError, match="at least two genes"):
        rna_features(counts(genes=1))
    with pytest.raises(ValueError, match="X is empty"):
        rna_features(AnnData(obs=counts().obs))
    with pytest.raises(TypeError, match=r'mdata\["rna"\]'):
        rna_features(mudata.MuData({"rna": counts()}))


def test_loadings_lead_back_to_expression():
    adata = synthetic_tissue(200, n_genes=40)
    rna_features(adata, n_comps=39)
    loadings = adata.uns["X_pca"]["loadings"]
    assert list(loadings.index) == list(adata.var_names) and list(loadings)[:2] == ["mean", "PC1"]
    counts = adata.X.toarray()
    expected = np.log1p(counts / counts.sum(1, keepdims=True) * 1e4)
    back = adata.obsm["X_pca"] @ loadings.iloc[:, 1:].T.to_numpy() + loadings["mean"].to_numpy()
    # all that is lost is the last of 40 directions
    assert ((back - expected) ** 2).sum() < 0.01 * ((expected - expected.mean(0)) ** 2).sum()
    assert np.linalg.matrix_rank(back - expected, tol=0.1) == 1


def test_reference():
    adata = synthetic_tissue(300, n_genes=60)
    known, new = adata[:200].copy(), adata[200:].copy()
    rna_features(known, n_comps=8)
    rna_features(known, n_comps=8, key_added="X_again", reference=_with_key(known, "X_again"))
    np.testing.assert_allclose(known.obsm["X_again"], known.obsm["X_pca"], atol=1e-4)
    # other order of genes, more genes: the same components
    both = known.copy()
    order = np.random.default_rng(0).permutation(60)
    rna_features(new, reference=known)
    shuffled = new[:, order].copy()
    rna_features(shuffled, reference=known)
    np.testing.assert_allclose(shuffled.obsm["X_pca"], new.obsm["X_pca"], atol=1e-4)
    loadings = both.uns["X_pca"]["loadings"]
    counts = new.X.toarray()
    values = np.log1p(counts / counts.sum(1, keepdims=True) * 1e4)
    expected = (values - loadings["mean"].to_numpy()) @ loadings.iloc[:, 1:].to_numpy()
    np.testing.assert_allclose(new.obsm["X_pca"], expected, atol=1e-3)


def _with_key(adata, key):
    out = adata.copy()
    out.uns[key] = out.uns["X_pca"]
    return out


def test_reference_with_other_genes():
    adata = synthetic_tissue(200, n_genes=60)
    rna_features(adata, n_comps=5)
    part = adata[:, :50].copy()
    with pytest.warns(UserWarning, match="10 of the reference's 60 genes are not in var_names"):
        rna_features(part, reference=adata)
    assert part.obsm["X_pca"].shape == (200, 5)
    part.var_names = [f"other{i}" for i in range(50)]
    with pytest.raises(ValueError, match="Only 0 of the reference's 60 genes.*do both name genes"):
        rna_features(part, reference=adata)
    with pytest.raises(KeyError, match=r"no uns\['X_mine'\]\['loadings'\]: call stfuse.pp.rna_features"):
        rna_features(part, reference=adata, key_added="X_mine")
    with pytest.raises(TypeError, match="reference must be an AnnData"):
        rna_features(part, reference="adata")


def test_backed(tmp_path):
    adata = synthetic_tissue(100, n_genes=60)
    adata.write_h5ad(tmp_path / "x.h5ad")
    expected = rna_pca(adata, 5)
    import anndata as ad

    backed = ad.read_h5ad(tmp_path / "x.h5ad", backed="r")
    np.testing.assert_allclose(rna_pca(backed, 5), expected, atol=1e-4)


def test_dask_and_half_precision():
    import dask.array as da

    adata = synthetic_tissue(100, n_genes=60)
    expected = rna_pca(adata, 5)
    dense = adata.X.toarray()
    chunks = da.from_array(dense, chunks=(30, 60))
    for values in (chunks, chunks.map_blocks(csr_matrix), dense.astype(np.float16)):
        adata.X = values
        np.testing.assert_allclose(rna_pca(adata, 5), expected, atol=1e-4)


@pytest.mark.parametrize("key", ["spatial", "X_image"])
def test_what_others_keep_is_not_written_over(key):
    adata = synthetic_tissue(100, n_genes=60)
    before = adata.obsm[key].copy()
    with pytest.raises(ValueError, match=f"key_added='{key}' would overwrite"):
        rna_features(adata, key_added=key)
    np.testing.assert_array_equal(adata.obsm[key], before)
    rna_features(adata, key_added="X_mine")
    rna_features(adata, n_comps=3, key_added="X_mine")
    assert adata.obsm["X_mine"].shape == (100, 3)
