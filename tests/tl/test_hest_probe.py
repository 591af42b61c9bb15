import numpy as np
import pytest
import scanpy as sc
from anndata import AnnData
from scipy.stats import pearsonr
from sklearn.decomposition import PCA
from sklearn.linear_model import Ridge
from sklearn.preprocessing import StandardScaler

import stfuse


@pytest.fixture
def tissue():
    return stfuse.datasets.synthetic_tissue(240, 3, n_genes=40, n_image_features=16, seed=1)


@pytest.mark.parametrize(
    ("n_comps", "intercept", "normalize"), [(8, False, False), (None, True, True), (256, True, False)]
)
def test_is_the_benchmarks_steps(tissue, n_comps, intercept, normalize):
    scores = stfuse.tl.hest_probe(
        tissue, groups="section", n_genes=10, n_comps=n_comps, fit_intercept=intercept, normalize=normalize
    )
    counts = tissue.X.toarray().astype(float)
    values = np.log1p(counts / counts.sum(1, keepdims=True) * 1e4 if normalize else counts)
    section = tissue.obs["section"].astype(str).to_numpy()
    assert list(scores["fold"].unique()) == sorted(set(section))
    for held, table in scores.groupby("fold"):
        train, test = section != held, section == held
        often = np.all([(counts[section == s] > 0).mean(0) >= 0.1 for s in set(section) - {held}], axis=0)
        chosen = sc.pp.highly_variable_genes(AnnData(values[train][:, often]), n_top_genes=10, inplace=False)
        chosen.index = tissue.var_names[often]
        # scanpy's mark takes in all that tie with the tenth
        assert set(table["gene"]) <= set(chosen.index[chosen["highly_variable"]]) and len(table) == 10
        tenth = chosen["dispersions_norm"].nlargest(10).min()
        assert set(chosen.index[chosen["dispersions_norm"] > tenth]) <= set(table["gene"])
        columns = tissue.var_names.get_indexer(table["gene"])
        scale = StandardScaler().fit(tissue.obsm["X_image"][train])
        x, z = (scale.transform(tissue.obsm["X_image"][rows].astype(float)) for rows in (train, test))
        if n_comps:
            axes = PCA(min(n_comps, 16), random_state=1).fit(x)
            x, z = axes.transform(x), axes.transform(z)
        model = Ridge(alpha=100 / (x.shape[1] * 10), fit_intercept=intercept, solver="lsqr", max_iter=1000, tol=1e-10)
        predicted = model.fit(x, values[train][:, columns]).predict(z)
        true = values[test][:, columns]
        expected = [pearsonr(true[:, i], predicted[:, i]).statistic for i in range(10)]
        np.testing.assert_allclose(table["pearson"], expected, atol=1e-4)
        np.testing.assert_allclose(table["mse"], ((true - predicted) ** 2).mean(0), rtol=1e-4)


def test_without_intercept_only_the_error_changes(tissue):
    call = {"groups": "section", "genes": list(tissue.var_names[:6])}
    plain, quirk = (stfuse.tl.hest_probe(tissue, fit_intercept=flag, **call) for flag in (True, False))
    np.testing.assert_allclose(plain["pearson"], quirk["pearson"], atol=1e-6)
    mean = np.log1p(tissue.X.toarray())[:, :6].mean(0)
    excess = (quirk["mse"] - plain["mse"]).groupby(plain["gene"]).mean()[call["genes"]]
    np.testing.assert_allclose(excess, mean**2, rtol=0.2)


def test_genes_are_chosen_without_the_held_out(tissue):
    held = (tissue.obs["section"] == tissue.obs["section"].cat.categories[0]).to_numpy()
    before = stfuse.tl.hest_probe(tissue, groups="section", n_genes=8)
    tissue.X = tissue.X.toarray()
    tissue.X[held] = np.random.default_rng(0).poisson(3, (held.sum(), 40))
    after = stfuse.tl.hest_probe(tissue, groups="section", n_genes=8)
    first = before["fold"] == str(tissue.obs["section"].cat.categories[0])
    assert list(before["gene"][first]) == list(after["gene"][first])
    assert list(before["gene"][~first]) != list(after["gene"][~first])


def test_controls_and_missing_rows_are_left_out(tissue):
    names = list(tissue.var_names)
    names[:20] = [f"BLANK_{i}" if i % 2 else f"NegControl{i}" for i in range(20)]
    tissue.var_names = names
    tissue.obsm["X_image"][:7] = np.nan
    tissue.X = tissue.X.toarray() * (~np.isin(np.arange(240), [7, 8]))[:, None]
    scores = stfuse.tl.hest_probe(tissue, groups="section", n_genes=20, n_splits=2, min_fraction=0)
    assert set(scores["gene"]) == set(names[20:]) and list(scores["fold"].unique()) == ["0", "1"]
    kept = tissue[9:].copy()
    again = stfuse.tl.hest_probe(kept, groups="section", n_genes=20, n_splits=2, min_fraction=0)
    np.testing.assert_allclose(scores[["pearson", "mse"]], again[["pearson", "mse"]], atol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"groups": None}, ValueError, "Name the obs column with patients or sections"),
        ({"groups": "one"}, ValueError, "has one group with features and expression"),
        ({"groups": "donor"}, KeyError, "No obs column 'donor'"),
        ({"n_genes": 41}, ValueError, "fewer than n_genes=41"),
        ({"genes": ["nothing"]}, KeyError, "var_names of the data"),
        ({"use_rep": "X_uni"}, KeyError, "X_uni"),
        ({"alpha": -1.0}, ValueError, "alpha must be a number of at least 0"),
        ({"n_comps": 0}, ValueError, "n_comps must be"),
        ({"min_fraction": 2}, ValueError, "min_fraction must be"),
        ({"n_splits": 4}, ValueError, "3 groups, fewer than n_splits=4"),
        ({"layer": "counts"}, KeyError, "The data has no layer 'counts'"),
    ],
)
def test_bad_input(tissue, arguments, error, message):
    tissue.obs["one"] = "a"
    with pytest.raises(error, match=message):
        stfuse.tl.hest_probe(tissue, **{"groups": "section", **arguments})
