import warnings

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
from mudata import MuData
from sklearn.metrics import adjusted_rand_score

import stfuse
from stfuse.metrics import domain_scores
from stfuse.tl import _graph
from stfuse.tl._refine import OWN_VOTES, RINGS, choose_n_neighbors, refine_labels


@pytest.fixture
def tissue():
    return stfuse.datasets.synthetic_tissue(500, 2, n_classes=(3, 1, 2), n_genes=80, domain_strength=3.0, seed=4)


def lattice(side):
    y, x = np.divmod(np.arange(side * side), side)
    return np.column_stack([x, y]).astype(float)


# what is written


def test_writes_its_slots_and_nothing_else(tissue, assert_same):
    before = tissue.copy()
    assert stfuse.tl.domains(tissue, use_rep="X_pca", n_clusters=5, library_key="section") is None
    domain = tissue.obs["pca_domain"]
    assert list(domain.cat.categories) == ["0", "1", "2", "3", "4"]
    assert (np.diff(domain.value_counts()[domain.cat.categories]) <= 0).all()
    assert tissue.uns["pca_domain"]["params"]["n_clusters"] == 5
    for key, slot in [("pca_domain", tissue.obs), ("pca_domain", tissue.uns), ("pca_neighbors", tissue.uns)]:
        del slot[key]
    del tissue.obsp["pca_neighbors_connectivities"], tissue.obsp["pca_neighbors_distances"]
    assert_same(tissue, before)


@pytest.mark.parametrize("method", ["kmeans", "gmm", "leiden"])
def test_methods_find_separated_groups_and_repeat_themselves(tissue, method):
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 4, tissue.n_obs)
    tissue.obsm["X_c"] = (rng.normal(size=(4, 6)) * 8)[truth] + rng.normal(size=(tissue.n_obs, 6))
    call = {"use_rep": "X_c", "n_clusters": 4, "method": method, "refine": False, "seed": 3}
    stfuse.tl.domains(tissue, **call)
    assert adjusted_rand_score(truth, tissue.obs["c_domain"]) > 0.99
    stfuse.tl.domains(tissue, key_added="again", **call)
    pd.testing.assert_series_equal(tissue.obs["again"], tissue.obs["c_domain"], check_names=False)


def test_leiden_by_resolution_is_scanpys(tissue):
    stfuse.tl.domains(tissue, use_rep="X_pca", resolution=0.7, method="leiden", refine=False)
    sc.pp.neighbors(tissue, use_rep="X_pca", random_state=0, key_added="own")
    np.testing.assert_allclose(
        tissue.obsp["pca_neighbors_connectivities"].toarray(), tissue.obsp["own_connectivities"].toarray(), atol=1e-6
    )
    sc.tl.leiden(
        tissue, 0.7, neighbors_key="own", flavor="igraph", n_iterations=2, directed=False, random_state=0, key_added="l"
    )
    assert adjusted_rand_score(tissue.obs["l"], tissue.obs["pca_domain"]) == 1
    sc.tl.umap(tissue, neighbors_key="pca_neighbors", maxiter=5)


def test_leiden_warns_where_no_resolution_fits(tissue):
    tissue.obsm["X_c"] = np.repeat(np.eye(5) * 50, 100, axis=0) + np.random.default_rng(0).normal(size=(500, 5))
    with pytest.warns(UserWarning, match="nearest number"):
        stfuse.tl.domains(tissue, use_rep="X_c", n_clusters=2, method="leiden", refine=False)


@pytest.mark.slow  # pynndescent compiles for a minute
def test_large_graphs_are_searched_approximately(tissue, monkeypatch):
    codes = tissue.obsm["X_pca"]
    exact = _graph.code_graph(codes, n_neighbors=10, seed=0, use_rep="X")
    monkeypatch.setattr(_graph, "EXACT_SEARCH", 10)
    fast = _graph.code_graph(codes, n_neighbors=10, seed=0, use_rep="X")
    found = ((exact.distances > 0).multiply(fast.distances > 0)).sum() / (exact.distances > 0).sum()
    assert found > 0.95


def test_graph_is_optional(tissue):
    stfuse.tl.domains(tissue, use_rep="X_pca", n_clusters=3, neighbors=False)
    assert not tissue.obsp and "pca_neighbors" not in tissue.uns


def test_rows_without_code_are_unassigned(tissue):
    missing = np.arange(tissue.n_obs) % 10 == 0
    tissue.obsm["X_pca"][missing] = np.nan
    for method in ("kmeans", "leiden", "gmm"):
        stfuse.tl.domains(tissue, use_rep="X_pca", n_clusters=3, method=method, library_key="section")
        domain = tissue.obs["pca_domain"]
        assert list(domain.cat.categories) == ["0", "1", "2", "unassigned"]
        np.testing.assert_array_equal(domain == "unassigned", missing)
        graph = tissue.obsp["pca_neighbors_connectivities"]
        assert graph.shape == (500, 500) and graph[missing].nnz == 0 and graph[~missing].nnz > 0


def test_one_domain(tissue):
    stfuse.tl.domains(tissue, use_rep="X_pca", n_clusters=1)
    assert list(tissue.obs["pca_domain"].cat.categories) == ["0"]


def test_copy_and_h5ad(tissue, tmp_path, assert_same):
    before = tissue.copy()
    out = stfuse.tl.domains(tissue, use_rep="X_pca", n_clusters=3, copy=True)
    assert_same(tissue, before)
    out.write_h5ad(tmp_path / "a.h5ad")
    back = ad.read_h5ad(tmp_path / "a.h5ad")
    pd.testing.assert_series_equal(back.obs["pca_domain"], out.obs["pca_domain"])
    assert back.uns["pca_domain"]["params"]["method"] == "kmeans"


def test_mudata(tissue):
    image = ad.AnnData(
        np.zeros((300, 1)), obs=tissue.obs.iloc[:300][[]], obsm={"spatial": tissue.obsm["spatial"][:300]}
    )
    rna = ad.AnnData(np.zeros((400, 1)), obs=tissue.obs.iloc[100:][["section"]])
    rna.obsm["spatial"] = tissue.obsm["spatial"][100:]
    image.obs["section"] = tissue.obs["section"].iloc[:300]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        mdata = MuData({"image": image, "rna": rna})
    codes = pd.DataFrame(tissue.obsm["X_pca"], index=tissue.obs_names).loc[mdata.obs_names].to_numpy()
    mdata.obsm["X_pca"] = codes
    stfuse.tl.domains(mdata, use_rep="X_pca", n_clusters=4, library_key="section")
    stfuse.tl.domains(tissue, use_rep="X_pca", n_clusters=4, library_key="section")
    assert adjusted_rand_score(tissue.obs["pca_domain"].loc[mdata.obs_names], mdata.obs["pca_domain"]) > 0.95


def test_spatialdata(tissue):
    spatialdata = pytest.importorskip("spatialdata")
    sdata = spatialdata.SpatialData(tables={"spots": tissue})
    stfuse.tl.domains(sdata, use_rep="X_pca", n_clusters=3)
    assert "pca_domain" in sdata.tables["spots"].obs
    out = stfuse.tl.domains(sdata, use_rep="X_pca", n_clusters=3, key_added="d", copy=True)
    assert "d" in out.tables["spots"].obs and "d" not in sdata.tables["spots"].obs


# refinement


def test_a_lone_observation_takes_the_label_of_its_surroundings():
    spatial = lattice(9)
    labels = (spatial[:, 0] >= 5).astype(int)
    noisy = labels.copy()
    noisy[[20, 56]] = 1 - noisy[[20, 56]]
    refined, _ = refine_labels(noisy, spatial, np.zeros(81, int), None)
    np.testing.assert_array_equal(refined, labels)


def test_vote_is_the_literal_vote():
    rng = np.random.default_rng(0)
    spatial, section = rng.random((120, 2)), np.repeat([0, 1], 60)
    labels = rng.integers(0, 3, 120)
    refined, _ = refine_labels(labels, spatial, section, 6)
    for i in range(120):
        others = np.flatnonzero((section == section[i]) & (np.arange(120) != i))
        nearest = others[np.argsort(np.linalg.norm(spatial[others] - spatial[i], axis=1))[:6]]
        votes = np.bincount(labels[nearest], minlength=3).astype(float)
        votes[labels[i]] += OWN_VOTES
        best = np.flatnonzero(votes == votes.max())
        assert refined[i] == (labels[i] if labels[i] in best else best[0])


def test_sections_do_not_vote_for_each_other():
    spatial = np.vstack([lattice(5), lattice(5)])  # the second lies on the first
    section = np.repeat([0, 1], 25)
    refined, _ = refine_labels(section.copy(), spatial, section, 8)
    np.testing.assert_array_equal(refined, section)


@pytest.mark.parametrize(("width", "expected"), [(2, RINGS[0]), (15, RINGS[-1])])
def test_neighbourhood_follows_the_width_of_the_layers(width, expected):
    rng = np.random.default_rng(0)
    spatial = lattice(60) + rng.normal(size=(3600, 2)) * 0.01
    truth = (spatial[:, 0].round().astype(int) // width) % 4
    labels = np.where(rng.random(3600) < 0.15, rng.integers(0, 4, 3600), truth)
    refined, chosen = refine_labels(labels, spatial, np.zeros(3600, int), None)
    assert chosen == expected
    assert adjusted_rand_score(truth, refined) > adjusted_rand_score(truth, labels)


def test_tiny_sections():
    labels = np.array([0, 1, 1, 0])
    refined, _ = refine_labels(labels, np.zeros((4, 2)), np.array([0, 1, 2, 3]), None)
    np.testing.assert_array_equal(refined, labels)
    table = np.repeat(np.arange(4)[:, None], 18, axis=1)
    assert choose_n_neighbors(labels, table) == RINGS[0]


@pytest.mark.parametrize("kind", ["none", "nan"])
def test_without_coordinates_a_warning_tells(tissue, kind):
    tissue.obsm["spatial"][:] = np.nan
    if kind == "none":
        del tissue.obsm["spatial"]
    with pytest.warns(UserWarning, match="not refined in space") as caught:
        stfuse.tl.domains(tissue, use_rep="X_pca", n_clusters=3, library_key="section", neighbors=False)
    assert caught[0].filename == __file__
    assert tissue.obs["pca_domain"].notna().all()
    assert tissue.uns["pca_domain"]["params"]["refine"] is False


def test_sections_that_share_an_origin_are_noticed(tissue):
    call = {"use_rep": "X_pca", "n_clusters": 3, "neighbors": False}
    with pytest.warns(UserWarning, match="500 of 500 observations lie exactly.*library_key="):
        stfuse.tl.domains(tissue, **call)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        stfuse.tl.domains(tissue, refine=False, **call)
        stfuse.tl.domains(tissue, library_key="section", **call)
        tissue.uns["spatial"] = {name: {} for name in tissue.obs["section"].unique()}
        stfuse.tl.domains(tissue, **call)


def test_domains_that_the_refinement_removes_are_warned_of():
    spatial = lattice(12)
    adata = ad.AnnData(np.zeros((144, 1)), obsm={"spatial": spatial})
    adata.obsm["X_c"] = np.column_stack([spatial[:, 0] >= 6, np.zeros(144)]).astype(float)
    adata.obsm["X_c"][70] = 9
    call = {"use_rep": "X_c", "n_clusters": 3, "neighbors": False}
    with pytest.warns(UserWarning, match="2 domains are left of n_clusters=3.*refine=False"):
        stfuse.tl.domains(adata, **call)
    assert adata.obs["c_domain"].nunique() == 2


def test_only_results_of_its_own_are_replaced(tissue, assert_same):
    tissue.uns["hvg"] = {"flavor": "seurat"}
    tissue.obs["old_domain"] = "a"
    before = tissue.copy()
    call = {"use_rep": "X_pca", "n_clusters": 3, "neighbors": False, "library_key": "section"}
    for key in ("section", "domain", "hvg", "old_domain"):
        with pytest.raises(ValueError, match=f"key_added='{key}' would overwrite"):
            stfuse.tl.domains(tissue, key_added=key, **call)
    assert_same(tissue, before)
    for n in (3, 4):
        stfuse.tl.domains(tissue, key_added="mine", **call | {"n_clusters": n})
    assert tissue.obs["mine"].nunique() == 4
    tissue.obsm["X_old"] = tissue.obsm["X_pca"]
    stfuse.tl.domains(tissue, **call | {"use_rep": "X_old"})  # its usual name, after a concat without uns


def test_observations_without_position_keep_their_label(tissue):
    stfuse.tl.domains(tissue, use_rep="X_pca", n_clusters=3, refine=False, key_added="plain")
    tissue.obsm["spatial"] = tissue.obsm["spatial"].astype(float)
    tissue.obsm["spatial"][:50] = np.nan
    stfuse.tl.domains(tissue, use_rep="X_pca", n_clusters=3, library_key="section")
    assert adjusted_rand_score(tissue.obs["plain"][:50], tissue.obs["pca_domain"][:50]) == 1


def test_refinement_helps_on_synthetic_tissue():
    adata = stfuse.datasets.synthetic_tissue(1500, 2, n_classes=(6, 1, 1), seed=2)
    for refine in (False, True):
        stfuse.tl.domains(
            adata, use_rep="X_pca", n_clusters=6, refine=refine, library_key="section", key_added=f"r{refine}"
        )
    plain, refined = (domain_scores(adata.obs["domain"], adata.obs[f"r{r}"])["ari"] for r in (False, True))
    assert refined > plain + 0.05


def _pca(adata):
    small = adata.copy()
    sc.pp.normalize_total(small, target_sum=1e4)
    sc.pp.log1p(small)
    sc.pp.pca(small, n_comps=20, random_state=0)
    adata.obsm["X_pca"] = small.obsm["X_pca"]
    return adata


def _gain(adata, label, n, **kwargs):
    """Mean gain in ARI by the refinement over three seeds."""
    gains = []
    for seed in range(3):
        scores = []
        for refine in (False, True):
            stfuse.tl.domains(adata, use_rep="X_pca", n_clusters=n, refine=refine, seed=seed, neighbors=False, **kwargs)
            scores.append(domain_scores(adata.obs[label], adata.obs["pca_domain"])["ari"])
        gains.append(scores[1] - scores[0])
    return float(np.mean(gains))


def test_refinement_does_not_wear_thin_layers_away():
    adata = _pca(stfuse.datasets.mob())
    assert _gain(adata, "layer", 4, library_key="section") > -0.02


def test_refinement_helps_on_visium_and_st(shared_data):
    cortex = _pca(ad.read_h5ad(shared_data / "dlpfc" / "dlpfc_151673.h5ad"))
    assert _gain(cortex, "layer", 7) > 0.05
    tumour = _pca(ad.read_h5ad(shared_data / "her2st" / "her2st_A1.h5ad"))
    tumour = tumour[tumour.obs["pathologist_label"].notna()].copy()
    assert _gain(tumour, "pathologist_label", tumour.obs["pathologist_label"].nunique()) > 0.03


# the result in other tools


def test_result_goes_into_squidpy_and_scanpy(tissue):
    import squidpy as sq

    stfuse.tl.domains(tissue, use_rep="X_pca", n_clusters=4, library_key="section")
    sq.gr.spatial_neighbors_knn(tissue, n_neighs=6, library_key="section")
    sq.gr.nhood_enrichment(tissue, cluster_key="pca_domain", n_perms=20, seed=0, show_progress_bar=False)
    zscore = tissue.uns["pca_domain_nhood_enrichment"]["zscore"]
    assert zscore.shape == (4, 4) and np.isfinite(zscore).all() and (np.diag(zscore) > 2).all()
    tissue.layers["counts"] = tissue.X.copy()
    sc.pp.normalize_total(tissue)
    sc.pp.log1p(tissue)
    sc.tl.rank_genes_groups(tissue, "pca_domain", method="wilcoxon")
    table = sc.get.rank_genes_groups_df(tissue, group="0")
    assert table["pvals_adj"].min() < 1e-3


# bad input


@pytest.mark.parametrize(
    ("kwargs", "error", "match"),
    [
        ({}, ValueError, "neither"),
        ({"n_clusters": 3, "resolution": 1.0}, ValueError, "both"),
        ({"resolution": 1.0}, ValueError, "needs n_clusters"),
        ({"resolution": -1.0, "method": "leiden"}, ValueError, "above 0"),
        ({"resolution": "1", "method": "leiden"}, TypeError, "resolution must be a number.*'1'"),
        ({"n_clusters": 3, "method": "louvain"}, ValueError, "kmeans, leiden, gmm"),
        ({"n_clusters": 0}, ValueError, "n_clusters"),
        ({"n_clusters": 2.5}, TypeError, "n_clusters"),
        ({"n_clusters": 3.0}, TypeError, "whole number of at least 1 or None, got 3.0"),
        ({"n_clusters": 3, "n_neighbors": "15"}, TypeError, "n_neighbors must be a whole number.*'15'"),
        ({"n_clusters": 3, "refine": "no"}, TypeError, "refine must be True or False, got 'no'"),
        ({"n_clusters": 3, "neighbors": 1}, TypeError, "neighbors must be True, False or None"),
        ({"n_clusters": 3, "seed": "a"}, TypeError, "seed"),
        ({"n_clusters": 3, "key_added": 5}, TypeError, "key_added must be a string, got 5"),
        ({"n_clusters": 3, "use_rep": None}, TypeError, "use_rep must be a string"),
        ({"n_clusters": 3, "spatial_key": "spatail"}, KeyError, "Did you mean 'spatial'"),
        ({"n_clusters": 3, "use_rep": "X_pcaa"}, KeyError, "Did you mean 'X_pca'"),
        ({"n_clusters": 3, "library_key": "sections"}, KeyError, "Did you mean 'section'"),
        ({"n_clusters": 501}, ValueError, "500"),
        ({"n_clusters": 3, "n_neighbors_refine": 0}, ValueError, "n_neighbors_refine"),
        ({"n_clusters": 3, "use_rep": "X_nothing"}, KeyError, "X_pca"),
        ({"n_clusters": 3, "library_key": "slide"}, KeyError, "section"),
        ({"n_clusters": 3, "key_added": "pca"}, ValueError, "record"),
        ({"n_clusters": 3, "key_added": "a/b"}, ValueError, "slash"),
        ({"n_clusters": 3, "use_rep": "X_partly"}, ValueError, "NaN inside"),
        ({"n_clusters": 3, "use_rep": "X_inf"}, ValueError, "infinite"),
        ({"n_clusters": 3, "use_rep": "X_empty"}, ValueError, "no observation has a code"),
        ({"n_clusters": 3, "use_rep": "X_same"}, ValueError, "distinct"),
        ({"n_clusters": 3, "table_key": None, "use_rep": "X_lost"}, ValueError, "more than the 2"),
        ({"resolution": 1.0, "method": "leiden", "use_rep": "X_lost"}, ValueError, "at least 3"),
    ],
)
def test_errors_leave_the_object_alone(tissue, kwargs, error, match, assert_same):
    n = tissue.n_obs
    tissue.obsm["X_partly"] = np.ones((n, 3))
    tissue.obsm["X_partly"][4, 1] = np.nan
    tissue.obsm["X_inf"] = np.ones((n, 3))
    tissue.obsm["X_inf"][4, 1] = np.inf
    tissue.obsm["X_empty"] = np.full((n, 3), np.nan)
    tissue.obsm["X_same"] = np.ones((n, 3))
    tissue.obsm["X_lost"] = np.full((n, 3), np.nan)
    tissue.obsm["X_lost"][:2] = [[0, 0, 1], [1, 0, 0]]
    before = tissue.copy()
    with pytest.raises(error, match=match):
        stfuse.tl.domains(tissue, **{"use_rep": "X_pca", **kwargs})
    assert_same(tissue, before)


def test_other_containers_are_refused():
    with pytest.raises(TypeError, match="AnnData"):
        stfuse.tl.domains(np.ones((3, 3)), n_clusters=2)
