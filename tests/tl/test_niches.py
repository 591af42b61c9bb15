import warnings

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
from mudata import MuData
from scipy import stats

import stfuse
from stfuse.tl._niche_null import count_cells, enrichment, moments, shuffled_counts
from stfuse.tl._niche_tables import TABLES, column_names, read_niches


@pytest.fixture
def cells():
    """Two sections; B cells are twice as common in domain "b", and gene2 is high there."""
    rng = np.random.default_rng(0)
    n = 600
    domain = rng.choice(["a", "b", "c"], n, p=[0.5, 0.3, 0.2])
    kind = np.where(rng.random(n) < 0.3, "B", rng.choice(["T/NK", "M", "B"], n))
    kind = np.where((domain == "b") & (rng.random(n) < 0.5), "B", kind)
    counts = rng.poisson(3.0, (n, 12))
    counts[domain == "b", 2] += rng.poisson(6.0, (domain == "b").sum())
    obs = pd.DataFrame({"domain": pd.Categorical(domain), "type": kind}, index=[f"c{i}" for i in range(n)])
    obs["section"] = np.where(rng.random(n) < 0.4, "x", "y/1")
    return ad.AnnData(counts.astype(np.float32), obs=obs, var=pd.DataFrame(index=[f"gene{i}" for i in range(12)]))


def run(cells, **arguments):
    return stfuse.tl.niches(cells, **{"groupby": "domain", "cell_type_key": "type", **arguments})


def table(cells, name, key="niches"):
    record = cells.uns[key]
    return record[name].set_axis(list(record["cell_types"]), axis=1)


# composition


def test_composition_is_the_crosstab(cells):
    run(cells, library_key="section")
    expected = pd.crosstab(cells.obs["domain"], cells.obs["type"], normalize="index")
    found = table(cells, "composition")
    np.testing.assert_allclose(found.loc[expected.index, expected.columns], expected)
    by_section = pd.crosstab(cells.obs["domain"], cells.obs["section"])
    record = cells.uns["niches"]
    n_cells = record["n_cells"].set_axis(list(record["sections"]), axis=1)
    np.testing.assert_array_equal(n_cells.loc[by_section.index, by_section.columns], by_section)


def test_cells_without_a_domain_or_type_are_left_out_and_counted(cells):
    extra = cells[:60].copy()
    extra.obs_names = [f"extra{i}" for i in range(60)]
    extra.obs["domain"] = [None] * 20 + ["unassigned"] * 20 + ["a"] * 20
    extra.obs["type"] = ["B"] * 40 + [None] * 10 + ["unassigned"] * 10
    both = ad.concat([cells, extra])
    for data in (cells, both):
        run(data, genes=False)
    assert both.uns["niches"]["n_obs"] == {"used": 600, "without_domain": 40, "without_type": 20}
    for name in TABLES:
        pd.testing.assert_frame_equal(both.uns["niches"][name], cells.uns["niches"][name])


# the null


def test_draws_have_the_moments_of_shuffled_labels(cells):
    """Mean and variance of the tables drawn, of labels really shuffled within sections, and scipy's closed form."""
    part = cells[:150]
    section, domain, kind = (pd.factorize(part.obs[name])[0] for name in ("section", "domain", "type"))
    counts = count_cells(section, domain, kind, (2, 3, 3))
    rng = np.random.default_rng(1)
    drawn = np.concatenate(list(shuffled_counts(counts, 4000, rng)))
    slow = np.empty((1000, 3, 3))
    for i in range(1000):
        labels = domain.copy()
        for code in range(2):
            labels[section == code] = rng.permutation(labels[section == code])
        slow[i] = [[(kind[labels == d] == t).sum() for t in range(3)] for d in range(3)]
    expected, variance = moments(counts)
    for i in range(3):
        for j in range(3):
            laws = [stats.hypergeom(c.sum(), c[i].sum(), c[:, j].sum()) for c in counts]
            assert expected[i, j] == pytest.approx(sum(law.mean() for law in laws))
            assert variance[i, j] == pytest.approx(sum(law.var() for law in laws))
    for draws in (drawn, slow):
        error = np.sqrt(variance / len(draws))
        assert (np.abs(draws.mean(axis=0) - expected) < 4 * error).all()
        np.testing.assert_allclose(draws.var(axis=0), variance, rtol=0.2)
    for margins in (1, 2):
        np.testing.assert_array_equal(
            drawn.sum(axis=margins), np.tile(counts.sum(axis=0).sum(axis=margins - 1), (4000, 1))
        )


@pytest.mark.parametrize(
    "section",
    [
        [[0, 0], [3, 5]],
        [[3, 0], [5, 0]],
        [[1, 2], [0, 0]],
        [[0, 0], [0, 0]],
        [[4, 4], [0, 0]],
    ],
)
def test_a_section_with_one_domain_or_type_cannot_vary(section):
    counts = np.array([section, [[0, 0], [0, 7]]])
    drawn = np.concatenate(list(shuffled_counts(counts, 50, np.random.default_rng(0))))
    np.testing.assert_array_equal(drawn, np.broadcast_to(counts.sum(axis=0), drawn.shape))
    found = enrichment(counts, 50, np.random.default_rng(0))
    np.testing.assert_allclose(found.fold, 0, atol=1e-12)
    assert (found.z == 0).all()
    assert (found.p == 1).all()


def test_empty_domains_of_a_section_stay_empty():
    counts = np.array([[[5, 0, 4], [0, 0, 0], [2, 0, 6]], [[1, 1, 0], [4, 2, 0], [0, 0, 0]]])
    drawn = np.concatenate(list(shuffled_counts(counts, 200, np.random.default_rng(0))))
    assert (drawn >= 0).all()
    np.testing.assert_array_equal(drawn.sum(axis=2), np.tile(counts.sum(axis=(0, 2)), (200, 1)))
    np.testing.assert_array_equal(drawn[:, 1, 2], 0)  # no section has both


def test_many_draws_are_made_in_parts(monkeypatch):
    counts = np.array([[[5, 3], [2, 6]]])
    expected = np.concatenate(list(shuffled_counts(counts, 100, np.random.default_rng(0))))
    monkeypatch.setattr("stfuse.tl._niche_null.BLOCK", 120)
    parts = list(shuffled_counts(counts, 100, np.random.default_rng(0)))
    assert [len(part) for part in parts] == [30, 30, 30, 10]
    assert np.concatenate(parts).sum() == expected.sum()


# enrichment


def test_fold_z_and_p_by_hand(cells):
    run(cells, library_key="section", n_perms=400, seed=3)
    both = cells.obs.groupby("section", observed=True)
    observed = pd.crosstab(cells.obs["domain"], cells.obs["type"])
    expected, variance = observed * 0.0, observed * 0.0
    for _, part in both:
        n = len(part)
        for d in observed.index:
            for t in observed.columns:
                r, c = (part["domain"] == d).sum(), (part["type"] == t).sum()
                expected.loc[d, t] += r * c / n
                variance.loc[d, t] += r * c * (n - r) * (n - c) / (n**2 * (n - 1))
    where = observed.index, observed.columns
    np.testing.assert_allclose(table(cells, "enrichment").loc[where], np.log2((observed + 0.5) / (expected + 0.5)))
    np.testing.assert_allclose(table(cells, "zscore").loc[where], (observed - expected) / np.sqrt(variance))
    p = table(cells, "pvalue")
    normal = 2 * stats.norm.sf((np.abs(observed - expected) - 0.5).clip(0) / np.sqrt(variance))
    np.testing.assert_allclose(p.loc[where], np.minimum(normal, 1), atol=0.1)
    assert p.loc["b", "B"] == pytest.approx(2 / 401)
    padj = table(cells, "padj")
    order = np.argsort(p.to_numpy().ravel())
    slow = np.minimum.accumulate((p.to_numpy().ravel()[order] * 9 / np.arange(1, 10))[::-1])[::-1]
    np.testing.assert_allclose(padj.to_numpy().ravel()[order], slow)
    assert padj.loc["b", "B"] < 0.05


def test_p_of_one_section_is_fishers(cells):
    """Two domains and two types: the doubled tail of the hypergeometric."""
    small = cells[:40].copy()
    small.obs["domain"] = small.obs["domain"].astype(str).replace("c", "a")
    small.obs["type"] = small.obs["type"].replace("M", "T/NK")
    run(small, n_perms=20_000, genes=False)
    observed = pd.crosstab(small.obs["domain"], small.obs["type"]).to_numpy()
    less, greater = (stats.fisher_exact(observed, side).pvalue for side in ("less", "greater"))
    expected = min(1, 2 * min(less, greater))
    np.testing.assert_allclose(table(small, "pvalue"), expected, atol=0.02)


def test_p_of_shuffled_labels_is_uniform(cells):
    """No more small values than there should be, as p of counts are a little too large."""
    rng = np.random.default_rng(5)
    found = []
    for _ in range(60):
        domain, kind = rng.integers(0, 2, 400), rng.integers(0, 2, 400)
        counts = count_cells(np.zeros(400, int), domain, kind, (1, 2, 2))
        found.append(enrichment(counts, 300, rng).p[0, 0])
    assert stats.kstest(found, "uniform", alternative="greater").pvalue > 0.01
    assert np.quantile(found, 0.3) < 0.5


def test_what_only_shares_a_section_is_not_enriched():
    """Domain "far" and type "rare" are of the same section, in which they have nothing to do with each other."""
    rng = np.random.default_rng(2)
    section = np.repeat(["x", "y"], 1000)
    domain = np.where(section == "x", rng.choice(["near", "mid"], 2000), rng.choice(["far", "mid"], 2000))
    kind = np.where(section == "x", rng.choice(["usual", "M"], 2000), rng.choice(["rare", "M"], 2000))
    obs = pd.DataFrame({"section": section, "domain": domain, "type": kind}, index=map(str, range(2000)))
    cells = ad.AnnData(obs=obs)
    run(cells, library_key="section", genes=False)
    run(cells, key_added="pooled", genes=False)
    assert table(cells, "enrichment").abs().max().max() < 0.2
    assert table(cells, "padj").min().min() > 0.01
    assert table(cells, "enrichment", "pooled").loc["far", "rare"] > 0.9
    assert table(cells, "padj", "pooled").loc["far", "rare"] < 0.01
    cells.uns["spatial"] = {"x": {}, "y": {}}
    run(cells, key_added="found", genes=False)  # sections are found
    pd.testing.assert_frame_equal(cells.uns["found"]["enrichment"], cells.uns["niches"]["enrichment"])


def test_seed(cells):
    first, again, other = (run(cells, seed=seed, genes=False, copy=True).uns["niches"] for seed in (0, 0, 1))
    pd.testing.assert_frame_equal(first["pvalue"], again["pvalue"])
    assert not first["pvalue"].equals(other["pvalue"])
    pd.testing.assert_frame_equal(first["zscore"], other["zscore"])


# genes


def log_normalised(cells):
    """The slow way; scanpy's own normalisation rounds otherwise, which breaks other ties."""
    copied = cells.copy()
    scale = (1e4 / copied.X.sum(axis=1, dtype=float)).astype(np.float32)
    copied.X = np.log1p(copied.X * scale[:, None])
    return copied


def test_genes_are_those_of_scanpy(cells):
    before = cells.X.copy()
    run(cells)
    np.testing.assert_array_equal(cells.X, before)
    expected = log_normalised(cells)
    sc.tl.rank_genes_groups(expected, "domain", method="wilcoxon", key_added="theirs")
    ours = sc.get.rank_genes_groups_df(cells, None, key="niches_genes")
    theirs = sc.get.rank_genes_groups_df(expected, None, key="theirs")
    pd.testing.assert_frame_equal(ours, theirs, rtol=1e-4)
    assert ours[ours["group"] == "b"]["names"].iloc[0] == "gene2"
    assert cells.uns["niches_genes"]["params"]["groupby"] == "domain"

    usual = cells.copy()
    sc.pp.normalize_total(usual, target_sum=1e4)
    sc.pp.log1p(usual)
    sc.tl.rank_genes_groups(usual, "domain", method="wilcoxon", key_added="theirs")
    usual = sc.get.rank_genes_groups_df(usual, None, key="theirs").set_index(["group", "names"])
    usual = usual.loc[pd.MultiIndex.from_frame(ours[["group", "names"]])]
    np.testing.assert_allclose(ours["scores"], usual["scores"], atol=0.05)
    np.testing.assert_allclose(ours["logfoldchanges"], usual["logfoldchanges"], atol=1e-4)

    expected.layers["log"] = expected.X.copy()
    expected.X = before
    run(expected, layer="log", n_genes=4)
    fewer = sc.get.rank_genes_groups_df(expected, "b", key="niches_genes")
    assert list(fewer["names"]) == list(ours[ours["group"] == "b"]["names"][:4])
    assert expected.uns["niches_genes"]["params"]["layer"] == "log"


def test_genes_need_two_cells_a_domain_and_no_type(cells):
    cells.obs["domain"] = cells.obs["domain"].astype(str)
    cells.obs.loc["c0", "domain"] = "lonely"
    cells.obs.loc["c1", "domain"] = "unassigned"
    cells.obs.loc[["c2", "c3"], "type"] = None
    with pytest.warns(UserWarning, match="no differential genes: 'lonely'"):
        run(cells)
    found = cells.uns["niches_genes"]
    assert found["names"].dtype.names == ("a", "b", "c")
    assert "lonely" in cells.uns["niches"]["composition"].index
    part = log_normalised(cells[cells.obs["domain"] != "unassigned"])
    sc.tl.rank_genes_groups(part, "domain", groups=["a", "b", "c"], method="wilcoxon")
    np.testing.assert_allclose(found["scores"]["a"], part.uns["rank_genes_groups"]["scores"]["a"], rtol=1e-4)


def test_genes_of_an_earlier_call_do_not_stay(cells):
    run(cells)
    assert "niches_genes" in cells.uns
    run(cells, genes=False)
    assert "niches_genes" not in cells.uns
    run(cells, genes=False, key_added="other")
    cells.uns["other_genes"] = "mine"
    run(cells, genes=False, key_added="other")
    assert cells.uns["other_genes"] == "mine"
    with pytest.raises(ValueError, match="'other_genes' would overwrite"):
        run(cells, key_added="other")


# files and containers


def test_record_and_files(cells, tmp_path, assert_same):
    before = cells.copy()
    cells.obs["type"] = cells.obs["type"].replace("M", "T_NK")
    before.obs["type"] = cells.obs["type"]
    copied = run(cells, library_key="section", seed=4, copy=True)
    assert_same(cells, before)
    assert list(copied.obs) == list(before.obs)
    copied.write_h5ad(tmp_path / "x.h5ad")
    back = ad.read_h5ad(tmp_path / "x.h5ad")
    first, second = (read_niches(adata, "niches", None) for adata in (copied, back))
    for name in ("composition", "enrichment", "padj", "n_cells"):
        pd.testing.assert_frame_equal(
            getattr(first, name), getattr(second, name), check_index_type=False, check_column_type=False
        )
    assert list(second.composition.columns) == ["B", "T/NK", "T_NK"]
    assert list(back.uns["niches"]["composition"].columns) == ["B", "T_NK_", "T_NK"]
    assert list(second.n_cells.columns) == ["x", "y/1"]
    assert back.uns["niches"]["seed"] == 4
    assert back.uns["niches"]["params"]["n_perms"] == 1000
    assert "scanpy" in back.uns["niches"]["versions"]
    ours = [sc.get.rank_genes_groups_df(adata, None, key="niches_genes") for adata in (copied, back)]
    np.testing.assert_array_equal(ours[0]["names"], ours[1]["names"])
    run(back)  # its own is replaced


def test_names_that_h5ad_takes_for_columns():
    assert column_names(["a/b", "a_b", "a/b_", "", ".", "_index", "c"]) == [
        *("a_b_", "a_b", "a_b__", "_", "._", "_index_", "c"),
    ]


def test_mudata(cells):
    run(cells, library_key="section")
    rna = cells[::-1].copy()
    rna.uns.clear()
    other = ad.AnnData(np.ones((600, 2)), obs=pd.DataFrame(index=cells.obs_names))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        mdata = MuData({"image": other, "rna": rna})
    run(mdata, groupby="rna:domain", cell_type_key="rna:type", library_key="rna:section")
    for name in TABLES:
        pd.testing.assert_frame_equal(mdata.uns["niches"][name], cells.uns["niches"][name])
    ours, theirs = (sc.get.rank_genes_groups_df(data, None, key="niches_genes") for data in (mdata, cells))
    pd.testing.assert_frame_equal(ours, theirs, rtol=1e-4)


def test_spatialdata(cells):
    spatialdata = pytest.importorskip("spatialdata")
    sdata = spatialdata.SpatialData(tables={"cells": cells})
    changed = run(sdata, table_key="cells", copy=True)
    assert "niches" not in sdata["cells"].uns
    assert "niches_genes" in changed["cells"].uns


def test_whole_numbers_are_groups_in_their_order(cells):
    cells.obs["cluster"] = cells.obs["domain"].astype(str).map({"a": 2.0, "b": 10.0, "c": 1.0})
    run(cells, groupby="cluster", genes=False)
    assert list(cells.uns["niches"]["composition"].index) == ["1", "2", "10"]


# bad input


def test_bad_input(cells, assert_same):
    cells.obs["one"] = "a"
    cells.obs["none"] = "unassigned"
    cells.obs["area"] = np.linspace(0, 1, 600)
    cells.obs["n_counts"] = np.arange(600)
    cells.obs["name"] = cells.obs_names
    cells.obs["apart"] = np.where(cells.obs["domain"] == "a", cells.obs["type"], None)
    cells.uns["mine"] = 1
    cells.uns["domain"] = {"params": {}}
    before = cells.copy()
    for arguments, error, message in (
        ({"groupby": "domian"}, KeyError, "Did you mean 'domain'"),
        ({"cell_type_key": "typ"}, KeyError, "Did you mean 'type'"),
        ({"library_key": "slide"}, KeyError, "No obs column 'slide'"),
        ({"groupby": "type"}, ValueError, "both 'type'"),
        ({"groupby": "one"}, ValueError, r"obs\['one'\] has 1 domain\(s\) \('a'\)"),
        ({"cell_type_key": "one"}, ValueError, r"1 cell type\(s\) \('a'\)"),
        ({"groupby": "none"}, ValueError, r"of 600 cells 600 have .* in obs\['none'\], and 0 in obs\['type'\]"),
        ({"cell_type_key": "none"}, ValueError, r"No cell has both.*0 have .* and 600 in obs\['none'\]"),
        ({"cell_type_key": "apart"}, ValueError, r"obs\['domain'\] has 1 domain\(s\)"),
        ({"groupby": "area"}, ValueError, "decimal numbers"),
        ({"groupby": "n_counts"}, ValueError, "600 different numbers in 600 cells, as a measurement"),
        ({"cell_type_key": "name"}, ValueError, "600 different values"),
        ({"n_perms": 0}, ValueError, "n_perms must be a whole number of at least 1"),
        ({"n_perms": 10.0}, TypeError, "n_perms"),
        ({"n_genes": 0}, ValueError, "n_genes"),
        ({"genes": "all"}, TypeError, "genes must be True or False"),
        ({"layer": "counts"}, KeyError, "no layer 'counts'"),
        ({"seed": -1}, ValueError, "seed"),
        ({"groupby": 3}, TypeError, "groupby"),
        ({"copy": 1}, TypeError, "copy"),
        ({"key_added": "a/b"}, ValueError, "slash"),
        ({"key_added": "mine"}, ValueError, "did not write"),
        ({"key_added": "domain"}, ValueError, "read as groupby"),
    ):
        with pytest.raises(error, match=message):
            run(cells, **arguments)
    assert_same(cells, before)
    cells.uns["niches_genes"] = {"names": 1}
    with pytest.raises(ValueError, match="'niches_genes' would overwrite"):
        run(cells)


def test_without_expression(cells, assert_same):
    bare = ad.AnnData(obs=cells.obs)
    before = bare.copy()
    with pytest.raises(ValueError, match="no expression"):
        run(bare)
    assert_same(bare, before)
    run(bare, genes=False)
    assert list(bare.uns) == ["niches"]
    with pytest.raises(ValueError, match=r"genes=False leaves these out"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        few = cells[[0, 1, 2, 3]].copy()
        few.obs["domain"], few.obs["type"] = ["a", "a", "b", "c"], ["B", "M", "B", "M"]
        run(few)


def test_numbers_of_a_categorical_are_groups_however_many(cells):
    cells.obs["tile"] = pd.Categorical(np.arange(600) // 4)
    run(cells, groupby="tile", genes=False, n_perms=10)
    assert len(cells.uns["niches"]["composition"]) == 150


def test_breast_section(shared_data):
    cells = ad.read_h5ad(shared_data / "xenium_breast_17k.h5ad")
    x, y = cells.obsm["spatial"].T
    cells.obs["square"] = pd.Categorical((np.digitize(x, np.quantile(x, [0.5])) * 2 + (y > np.median(y))).astype(str))
    marker = pd.DataFrame(cells[:, ["EPCAM", "PTPRC", "LUM"]].X.toarray(), columns=["epithelial", "immune", "stromal"])
    cells.obs["type"] = pd.Categorical(marker.idxmax(axis=1).where(marker.max(axis=1) > 0).to_numpy())
    stfuse.tl.niches(cells, "square", cell_type_key="type")
    record = cells.uns["niches"]
    assert record["n_obs"]["used"] + record["n_obs"]["without_type"] == cells.n_obs
    np.testing.assert_allclose(record["composition"].sum(axis=1), 1)
    assert len(sc.get.rank_genes_groups_df(cells, None, key="niches_genes")) == 4 * cells.n_vars
