import anndata as ad
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csc_matrix, csr_matrix, vstack
from scipy.stats import pearsonr

import stfuse
from stfuse.metrics import _expression, gene_pearson, top_genes


def case(n=60, n_genes=7, seed=0):
    rng = np.random.default_rng(seed)
    true = rng.poisson(2, (n, n_genes)) * 1.5
    return true, true + rng.normal(size=true.shape) * np.linspace(0.1, 5, n_genes)


def scipys(true, pred):
    return [pearsonr(t, p).statistic for t, p in zip(true.T, pred.T, strict=True)]


# gene_pearson


@pytest.mark.parametrize("block_rows", [1, 7, 60, 1000])
@pytest.mark.parametrize("form", [np.asarray, csr_matrix, csc_matrix, pd.DataFrame, np.ndarray.tolist])
def test_each_gene_is_scipys_in_one_and_in_many_blocks(monkeypatch, block_rows, form):
    true, pred = case()
    monkeypatch.setattr(_expression, "_BLOCK_BYTES", 8 * 7 * block_rows)
    np.testing.assert_allclose(gene_pearson(form(true), pred), scipys(true, pred), rtol=1e-12)


def test_by_hand():
    # deviations -1 0 1 and -1 1 0: 1 / (sqrt 2 sqrt 2)
    assert gene_pearson([[1], [2], [3]], [[5], [7], [6]])[0] == pytest.approx(0.5)


def test_slides_count_the_same_and_each_by_itself():
    true, pred = case()
    slides = np.array(["a"] * 40 + ["b"] * 20)
    expected = (np.array(scipys(true[:40], pred[:40])) + scipys(true[40:], pred[40:])) / 2
    shuffled = np.random.default_rng(1).permutation(60)
    found = gene_pearson(csr_matrix(true)[shuffled], pred[shuffled], groups=pd.Categorical(slides[shuffled]))
    np.testing.assert_allclose(found, expected)
    # nothing but the slides' means is predicted
    means = np.where((slides == "a")[:, None], 100.0, 0) + np.zeros_like(true)
    apart = true + means
    assert (gene_pearson(apart, means) > 0.99).all()
    np.testing.assert_array_equal(gene_pearson(apart, means, groups=slides), 0)


def test_constant_genes():
    true, pred = case()
    slides = np.repeat(["a", "b"], 30)
    true[:, 0], true[:30, 1], pred[:, 2], pred[30:, 3] = 0.1, 3, 0.7, -5
    found = gene_pearson(true, pred)
    assert np.isnan(found[0]) and found[2] == 0
    by_slide = gene_pearson(true, pred, groups=slides)
    assert np.isnan(by_slide[0]) and by_slide[2] == 0
    assert by_slide[1] == pytest.approx(pearsonr(true[30:, 1], pred[30:, 1]).statistic)
    assert by_slide[3] == pytest.approx(pearsonr(true[:30, 3], pred[:30, 3]).statistic / 2)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_rounding_is_no_prediction(dtype):
    true, _ = case()
    steps = np.random.default_rng(0).integers(-1, 2, true.shape)
    level = np.full(true.shape, 3, dtype)
    np.testing.assert_array_equal(gene_pearson(true, level + (steps * np.spacing(level)).astype(dtype)), 0)
    # while differences that are small beside a large mean do count
    offset = gene_pearson(true, (1000 + 0.1 * true).astype(dtype))
    np.testing.assert_allclose(offset, 1, atol=1e-3 if dtype == np.float32 else 1e-10)


def test_entries_that_are_missing_are_left_out_of_their_gene(monkeypatch):
    true, pred = case()
    true[3, 1], pred[5:40, 1], pred[:, 2], pred[1:, 4] = np.nan, np.nan, np.nan, np.nan
    pred[7] = np.nan
    for rows in (1000, 3):
        monkeypatch.setattr(_expression, "_BLOCK_BYTES", 8 * 7 * rows)
        found = gene_pearson(true, pred)
        for gene in range(7):
            both = np.isfinite(true[:, gene]) & np.isfinite(pred[:, gene])
            expected = pearsonr(true[both, gene], pred[both, gene]).statistic if both.sum() > 1 else np.nan
            assert found[gene] == pytest.approx(expected, nan_ok=True)
    assert np.isnan(found[[2, 4]]).all()


@settings(deadline=None, max_examples=30)
@given(st.floats(-1e6, 1e6), st.floats(1e-3, 1e3))
def test_shift_and_scale_do_not_matter(shift, scale):
    true, pred = case()
    np.testing.assert_allclose(gene_pearson(true, pred * scale + shift), gene_pearson(true, pred), atol=1e-6)


def test_whole_numbers_and_inputs_stay_as_they_are():
    true, pred = case()
    counts, kept = true.astype(np.int32), pred.copy()
    np.testing.assert_allclose(gene_pearson(counts, pred), scipys(counts.astype(float), pred))
    np.testing.assert_array_equal(pred, kept)
    np.testing.assert_array_equal(counts, true.astype(np.int32))


@pytest.mark.parametrize(
    ("true", "pred", "groups", "match"),
    [
        (np.ones((3, 2)), np.ones((3, 3)), None, r"one shape .*\(3, 2\) and \(3, 3\)"),
        (np.ones(3), np.ones(3), None, "values_true must be a matrix"),
        (np.ones((3, 0)), np.ones((3, 0)), None, "values_true must be a matrix"),
        (np.ones((3, 2)), np.full((3, 2), "a"), None, "values_pred must hold numbers"),
        (np.ones((3, 2)), np.full((3, 2), np.inf), None, "values_pred holds infinite"),
        (np.ones((3, 2)), np.ones((3, 2)), ["a"], "groups has 1 entries, values_true has 3 rows"),
        (np.ones((3, 2)), np.ones((3, 2)), ["a", None, "a"], r"groups has 1 missing value\(s\)"),
    ],
)
def test_correlation_of_bad_input(true, pred, groups, match):
    with pytest.raises(ValueError, match=match):
        gene_pearson(true, pred, groups=groups)


# top_genes


@pytest.fixture(scope="module")
def counts():
    rng = np.random.default_rng(3)
    return csr_matrix(rng.poisson(rng.gamma(0.5, 4, (1, 40)) * rng.gamma(2, 0.5, (90, 40))))


def log_normalised(counts):
    import scanpy as sc

    adata = ad.AnnData(counts.astype(np.float64))
    sc.pp.normalize_total(adata, target_sum=1e4)
    sc.pp.log1p(adata)
    return adata.X


@pytest.mark.parametrize("kind", ["hvg", "heg"])
def test_the_highest_variances_and_means_of_log_normalised_counts(counts, kind, monkeypatch):
    values = log_normalised(counts).toarray()
    expected = np.argsort(-(values.var(0) if kind == "hvg" else values.mean(0)), kind="stable")
    np.testing.assert_array_equal(top_genes(counts, 40, kind), expected)
    np.testing.assert_array_equal(top_genes(counts, 5, kind), expected[:5])
    for same in (values, csr_matrix(values), csc_matrix(counts), counts.toarray().astype(np.uint16)):
        np.testing.assert_array_equal(top_genes(same, 40, kind), expected)
    monkeypatch.setattr(_expression, "_BLOCK_BYTES", 8 * 40 * 7)
    np.testing.assert_array_equal(top_genes(counts, 40, kind), expected)


def test_batches_count_the_same_and_their_difference_does_not():
    rng = np.random.default_rng(0)
    values = rng.normal(5, [0.1, 1, 2], (120, 3))
    batch = np.array(["x"] * 100 + ["y"] * 20)
    values[batch == "y", 0] += 50
    assert list(top_genes(values, 3)) == [0, 2, 1]
    assert list(top_genes(values, 3, batch=batch)) == [2, 1, 0]
    values[batch == "y", 1] = rng.normal(5, 9, 20)  # 1 and 81 on average, however few
    assert list(top_genes(values, 3, batch=batch)) == [1, 2, 0]
    assert top_genes(values, 1, "heg", batch=batch)[0] == 0


def test_observations_without_counts_do_not_count(counts):
    empty = csr_matrix((30, counts.shape[1]), dtype=counts.dtype)
    more = vstack([empty, counts]).tocsr()
    np.testing.assert_array_equal(top_genes(more, 40), top_genes(counts, 40))
    batch = ["empty"] * 30 + ["full"] * 90
    np.testing.assert_array_equal(top_genes(more, 40, batch=batch), top_genes(counts, 40))


def test_equal_genes_keep_their_order():
    values = np.tile(np.random.default_rng(0).normal(size=(20, 1)), (1, 6))
    assert list(top_genes(values, 6)) == list(range(6))


def test_genes_of_a_real_section_lie_in_space():
    adata = stfuse.datasets.mob()
    train, test = (adata[(adata.obs["section"] == "MOB4") == there] for there in (False, True))
    genes = top_genes(train.X, 50, batch=train.obs["section"])
    other = top_genes(test.X, 50)
    assert len(set(genes) & set(other)) > 25


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ({"n_genes": 41}, ValueError, "n_genes=41, but expression has 40 gene"),
        ({"n_genes": 2.0}, TypeError, "n_genes must be a whole number"),
        ({"kind": "svg"}, ValueError, r'"hvg" \(highly variable\)'),
        ({"batch": ["a"]}, ValueError, "batch has 1 entries, expression has 90 rows"),
        ({"batch": np.arange(90)}, ValueError, "No batch has two observations"),
        ({"expression": np.full((3, 40), np.nan)}, ValueError, "missing or infinite"),
        ({"expression": np.zeros((3, 40))}, ValueError, "No batch has two"),
    ],
)
def test_genes_of_bad_input(counts, arguments, error, match):
    with pytest.raises(error, match=match):
        top_genes(**{"expression": counts, "n_genes": 5, **arguments})


def test_data_frames_have_to_say_the_same():
    rng = np.random.default_rng(0)
    true = pd.DataFrame(rng.normal(size=(8, 3)), columns=list("abc"), index=list("stuvwxyz"))
    pred = true + rng.normal(size=(8, 3))
    expected = gene_pearson(true.to_numpy(), pred.to_numpy())
    np.testing.assert_allclose(gene_pearson(true, pred), expected)
    np.testing.assert_allclose(gene_pearson(true, pred.to_numpy()), expected)
    with pytest.raises(ValueError, match=r"different genes \(columns\), or in another order: call values_pred.loc"):
        gene_pearson(true, pred[["b", "a", "c"]])
    with pytest.raises(ValueError, match=r"different observations \(index\)"):
        gene_pearson(true, pred.iloc[::-1])
