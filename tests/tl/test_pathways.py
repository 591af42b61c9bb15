import gzip
import logging

import anndata as ad
import decoupler as dc
import numpy as np
import pandas as pd
import pytest
from mudata import MuData
from scipy import stats
from scipy.sparse import csc_matrix, csr_matrix

import stfuse
from stfuse.tl import _pathway_genes


def normalised(counts):
    """log1p of 10,000 x share, the slow way."""
    return np.array([[np.log1p(1e4 * value / row.sum()) for value in row] for row in np.asarray(counts, float)])


def slope_t(y, x):
    """T-value and p-value of the slope of y on x, by the normal equations."""
    design = np.column_stack([np.ones(len(x)), x])
    beta = np.linalg.solve(design.T @ design, design.T @ y)
    df = len(y) - design.shape[1]
    variance = ((y - design @ beta) ** 2).sum() / df * np.linalg.inv(design.T @ design)
    t = beta[1:] / np.sqrt(np.diag(variance)[1:])
    return t, 2 * stats.t.sf(np.abs(t), df)


def make_counts(n=30, n_genes=60, seed=0):
    rng = np.random.default_rng(seed)
    adata = ad.AnnData(rng.poisson(3, (n, n_genes)).astype(np.float32) + np.eye(n, n_genes, dtype=np.float32))
    adata.var_names = [f"G{i}" for i in range(n_genes)]
    return adata


@pytest.fixture
def counts():
    return make_counts()


@pytest.fixture(scope="module")
def net():
    rng = np.random.default_rng(5)
    rows = [(p, f"G{g}", rng.normal()) for p in "CAB" for g in rng.choice(60, 8, replace=False)]
    return pd.DataFrame(rows, columns=["source", "target", "weight"])


def wide(net, genes):
    table = net.pivot(index="target", columns="source", values="weight")
    return table.reindex(genes).fillna(0.0)


@pytest.fixture
def hallmarks(shared_data):
    return shared_data / "genesets" / "h.all.v7.0.symbols.gmt"


@pytest.fixture
def tumour(shared_data):
    return ad.read_h5ad(shared_data / "her2st" / "her2st_A1.h5ad")


# scores


def test_ulm_is_the_t_value_of_a_slope(counts, net):
    stfuse.tl.pathways(counts, net)
    score, padj = counts.obsm["score_pathways"], counts.obsm["padj_pathways"]
    weights = wide(net, counts.var_names)
    assert list(score.columns) == ["A", "B", "C"]
    assert list(score.index) == list(counts.obs_names)
    for i, y in enumerate(normalised(counts.X)):
        fits = [slope_t(y, weights[p].to_numpy()) for p in "ABC"]
        np.testing.assert_allclose(score.iloc[i], [t[0] for t, _ in fits], rtol=1e-5)
        np.testing.assert_allclose(padj.iloc[i], stats.false_discovery_control([p[0] for _, p in fits]), rtol=1e-4)


def test_mlm_is_one_regression_and_its_p_values_are_adjusted(counts, net):
    stfuse.tl.pathways(counts, net, method="mlm", key_added="common")
    weights = wide(net, counts.var_names)
    for i, y in enumerate(normalised(counts.X)):
        t, p = slope_t(y, weights.to_numpy())
        np.testing.assert_allclose(counts.obsm["score_common"].iloc[i], t, rtol=1e-5)
        np.testing.assert_allclose(counts.obsm["padj_common"].iloc[i], stats.false_discovery_control(p), rtol=1e-4)


@pytest.mark.parametrize("method", ["ulm", "mlm"])
def test_same_as_decoupler_by_hand(tumour, method):
    tumour = tumour[:60].copy()
    stfuse.tl.pathways(tumour, method=method)
    by_hand = tumour.copy()
    by_hand.X = csr_matrix(by_hand.X.multiply(1e4 / by_hand.X.sum(axis=1)).log1p())
    getattr(dc.mt, method)(by_hand, stfuse.datasets.progeny())
    np.testing.assert_allclose(tumour.obsm["score_progeny"], by_hand.obsm[f"score_{method}"], rtol=1e-3, atol=1e-4)
    if method == "ulm":
        np.testing.assert_allclose(tumour.obsm["padj_progeny"], by_hand.obsm["padj_ulm"], rtol=1e-3, atol=1e-6)


def test_raised_genes_are_found(counts):
    sets = pd.DataFrame({"source": "up", "target": counts.var_names[:8]})
    loud = counts.X + 20
    loud[:15, :8] *= 2
    adata = ad.AnnData(loud, var=counts.var)
    stfuse.tl.pathways(adata, sets)
    score = adata.obsm["score_pathways"]["up"]
    assert score[:15].min() > max(score[15:].max(), 3)


def test_known_tissue(tumour, hallmarks):
    """Interferon where immune cells are, the collagens of the transition set in connective tissue, growth in the cancer."""
    stfuse.tl.pathways(tumour, hallmarks, key_added="hallmark")
    stfuse.tl.pathways(tumour)
    label = tumour.obs["pathologist_label"]
    hallmark = tumour.obsm["score_hallmark"].groupby(label, observed=True).mean()
    assert hallmark.shape[1] == 50
    assert hallmark["HALLMARK_INTERFERON_GAMMA_RESPONSE"].idxmax() == "immune infiltrate"
    transition = hallmark["HALLMARK_EPITHELIAL_MESENCHYMAL_TRANSITION"]
    assert transition["connective tissue"] > transition["invasive cancer"] + 0.5
    growth = hallmark.loc["invasive cancer"] - hallmark.loc["adipose tissue"]
    assert growth["HALLMARK_MYC_TARGETS_V1"] > 0.5
    hypoxia = tumour.obsm["score_progeny"]["Hypoxia"]
    assert stats.mannwhitneyu(hypoxia[label == "invasive cancer"], hypoxia[label == "cancer in situ"]).pvalue < 0.001


# expression


def test_counts_and_log_normalised_agree_and_stay(counts, net, caplog):
    counts.layers["logged"] = normalised(counts.X)
    before = counts.copy()
    with caplog.at_level(logging.INFO, "stfuse"):
        stfuse.tl.pathways(counts, net)
    assert "X holds counts" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.INFO, "stfuse"):
        stfuse.tl.pathways(counts, net, layer="logged", key_added="again")
    assert "counts" not in caplog.text
    np.testing.assert_allclose(counts.obsm["score_pathways"], counts.obsm["score_again"], rtol=1e-4)
    np.testing.assert_array_equal(counts.X, before.X)
    np.testing.assert_array_equal(counts.layers["logged"], before.layers["logged"])
    assert counts.uns["score_pathways"]["expression"].startswith("log1p")
    assert counts.uns["score_again"]["expression"] == "layers['logged']"


@pytest.mark.parametrize("kind", [csr_matrix, csc_matrix, np.asarray, lambda x: x.astype(np.int64), "dask"])
def test_every_kind_of_matrix_in_small_blocks(counts, net, kind, monkeypatch):
    stfuse.tl.pathways(counts, net)
    if kind == "dask":
        import dask.array

        def kind(x):
            return dask.array.from_array(x, chunks=(7, 60))

    other = ad.AnnData(kind(counts.X), var=counts.var)
    monkeypatch.setattr(_pathway_genes, "BLOCK", 60 * 4)
    stfuse.tl.pathways(other, net)
    np.testing.assert_allclose(other.obsm["score_pathways"], counts.obsm["score_pathways"], rtol=1e-5)


@pytest.mark.parametrize("sparse", [True, False])
def test_backed(counts, net, sparse, tmp_path):
    stfuse.tl.pathways(counts, net)
    small = ad.AnnData(csr_matrix(counts.X) if sparse else counts.X, var=counts.var)
    small.write_h5ad(tmp_path / "x.h5ad")
    backed = ad.read_h5ad(tmp_path / "x.h5ad", backed="r")
    stfuse.tl.pathways(backed, net)
    np.testing.assert_allclose(backed.obsm["score_pathways"], counts.obsm["score_pathways"], rtol=1e-5)
    with pytest.raises(ValueError, match="to_memory"):
        stfuse.tl.pathways(backed, net, copy=True)
    backed.file.close()


def test_memory_is_bounded_by_a_block(monkeypatch):
    import tracemalloc

    genes = [f"G{i}" for i in range(2000)]
    adata = ad.AnnData(csr_matrix((np.ones(20_000), np.arange(20_000) % 2000, np.arange(0, 20_001, 10))))
    adata.var_names = genes
    sets = pd.DataFrame({"source": np.repeat(["a", "b"], 50), "target": genes[:100]})
    stfuse.tl.pathways(adata[:10].copy(), sets, tmin=1)
    monkeypatch.setattr(_pathway_genes, "BLOCK", 200_000)
    tracemalloc.start()
    stfuse.tl.pathways(adata, sets)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 0.5 * 2000 * 2000 * 8  # of the dense matrix


def test_observations_without_expression_are_nan(counts, net):
    counts.X[[3, 20]] = 0
    with pytest.warns(UserWarning, match="2 of 30 observations have no expression"):
        stfuse.tl.pathways(counts, net)
    missing = counts.obsm["score_pathways"].isna()
    assert missing.all(axis=1).sum() == missing.any(axis=1).sum() == 2
    assert missing.iloc[[3, 20]].all(axis=None)
    assert counts.obsm["padj_pathways"].isna().equals(missing)
    assert counts.uns["score_pathways"]["n_obs"] == {"total": 30, "scored": 28}


def test_scaled_expression_is_used_with_a_warning(counts, net):
    counts.X = stats.zscore(normalised(counts.X), axis=0)
    with pytest.warns(UserWarning, match="negative values"):
        stfuse.tl.pathways(counts, net)
    t = slope_t(counts.X[0], wide(net, counts.var_names)["A"].to_numpy())[0]
    assert counts.obsm["score_pathways"]["A"].iloc[0] == pytest.approx(t[0])


def test_expression_without_logarithm_is_warned_of(counts, net):
    counts.X = counts.X * 1000 / counts.X.sum(axis=1, keepdims=True)
    with pytest.warns(UserWarning, match="not log-transformed"):
        stfuse.tl.pathways(counts, net)


def test_bad_expression(counts, net, assert_same):
    for value in (np.nan, np.inf):
        bad = counts.copy()
        bad.X[2, 3] = value
        before = bad.copy()
        with pytest.raises(ValueError, match="missing or infinite"):
            stfuse.tl.pathways(bad, net)
        assert_same(bad, before)
    with pytest.raises(ValueError, match="zero throughout"):
        stfuse.tl.pathways(ad.AnnData(np.zeros((3, 60), np.float32), var=counts.var), net)
    with pytest.raises(ValueError, match="X is empty"):
        stfuse.tl.pathways(ad.AnnData(obs=counts.obs), net)
    with pytest.raises(KeyError, match="No layer 'counts'.*Did you mean 'Counts'.*There is 'Counts'"):
        counts.layers["Counts"] = counts.X
        stfuse.tl.pathways(counts, net, layer="counts")


# names of genes


def test_symbols_in_a_column(counts, net):
    stfuse.tl.pathways(counts, net)
    ids = counts.copy()
    ids.var["gene_symbols"] = pd.Categorical(ids.var_names)
    ids.var_names = [f"ENSG{i:011d}" for i in range(ids.n_vars)]
    with pytest.raises(ValueError, match="gene_key='gene_symbols'"):
        stfuse.tl.pathways(ids, net)
    stfuse.tl.pathways(ids, net, gene_key="gene_symbols")
    pd.testing.assert_frame_equal(ids.obsm["score_pathways"], counts.obsm["score_pathways"])
    with pytest.raises(KeyError, match="Did you mean 'gene_symbols'"):
        stfuse.tl.pathways(ids, net, gene_key="gene_symbol")
    ids.var["number"] = [f"n{i}" for i in range(ids.n_vars)]
    with pytest.raises(ValueError, match="gene_key='gene_symbols'"):
        stfuse.tl.pathways(ids, net, gene_key="number")


def test_other_organism():
    mouse = stfuse.datasets.mob()
    with pytest.raises(ValueError, match=r"Acsl3 in the data\): organism='mouse'"):
        stfuse.tl.pathways(mouse)
    upper = mouse.copy()
    upper.var_names = upper.var_names.str.upper()
    with pytest.raises(ValueError, match="organism='human'"):
        stfuse.tl.pathways(upper, organism="mouse")
    mixed = mouse.copy()
    net = stfuse.datasets.progeny("human")
    here = [g for g in mouse.var_names if g.upper() in set(net["target"])]
    mixed.var_names = [g.upper() if g in here[:15] else g for g in mouse.var_names]
    with pytest.warns(UserWarning, match=r"Only 15 of the .* organism='mouse'"):
        stfuse.tl.pathways(mixed, tmin=1)


def test_sets_of_another_organism_from_a_file(hallmarks):
    with pytest.raises(ValueError, match="give gene sets of this organism"):
        stfuse.tl.pathways(stfuse.datasets.mob(), hallmarks)


def test_of_genes_with_one_name_the_most_expressed_counts(counts, net, caplog):
    twice = counts.copy()
    twice.X[:, 10] += 20  # more expressed, so it is the one that counts
    alone = twice[:, [i for i in range(60) if i != 4]].copy()
    alone.var_names = ["G4" if name == "G10" else name for name in alone.var_names]
    alone.layers["logged"] = normalised(twice.X)[:, [i for i in range(60) if i != 4]]
    twice.var["symbol"] = ["G4" if name == "G10" else name for name in twice.var_names]
    with caplog.at_level(logging.INFO, "stfuse"):
        stfuse.tl.pathways(twice, net, gene_key="symbol")
    assert "1 of 60 genes share the name of a more expressed one" in caplog.text
    stfuse.tl.pathways(alone, net, layer="logged")
    np.testing.assert_allclose(twice.obsm["score_pathways"], alone.obsm["score_pathways"], rtol=1e-4)


def test_genes_without_a_name_are_left_out(counts, net):
    counts.var["symbol"] = [None if i > 50 else name for i, name in enumerate(counts.var_names)]
    stfuse.tl.pathways(counts, net, gene_key="symbol", tmin=1)
    assert counts.uns["score_pathways"]["n_genes"] == 51
    y, weights = normalised(counts.X)[0, :51], wide(net, counts.var_names[:51])
    assert counts.obsm["score_pathways"]["A"].iloc[0] == pytest.approx(slope_t(y, weights["A"].to_numpy())[0][0], 1e-4)


# nets


def test_few_targets(counts, net, caplog):
    more = pd.concat([net, pd.DataFrame({"source": "few", "target": ["G1", "G2", "X1"], "weight": 1.0})])
    with caplog.at_level(logging.INFO, "stfuse"):
        stfuse.tl.pathways(counts, more)
    assert "fewer than tmin=5 measured genes and are left out: few (2)" in caplog.text
    assert "few" not in counts.obsm["score_pathways"]
    targets = counts.uns["score_pathways"]["targets"]
    assert targets.loc["few"].tolist() == [3, 2, False]
    assert targets.loc["A"].tolist() == [8, 8, True]
    stfuse.tl.pathways(counts, more, tmin=2)
    assert "few" in counts.obsm["score_pathways"]
    with pytest.raises(
        ValueError, match=r"tmin=9 genes: \d+ of the \d+ genes of 'pathways'.*the most, 8: tmin=8 would"
    ):
        stfuse.tl.pathways(counts, more, tmin=9)
    foreign = more.assign(target="Z" + more["target"])
    with pytest.raises(ValueError, match="0 of the .*name genes in the same way"):
        stfuse.tl.pathways(counts, foreign)


def test_a_set_of_all_genes_has_no_score(counts, net, caplog):
    everything = pd.DataFrame({"source": "all", "target": counts.var_names, "weight": 1.0})
    with caplog.at_level(logging.INFO, "stfuse"):
        stfuse.tl.pathways(counts, pd.concat([net, everything]))
    assert list(counts.obsm["score_pathways"]) == ["A", "B", "C"]
    assert "hold every gene measured" in caplog.text
    with pytest.raises(ValueError, match="'all' holds all of them"):
        stfuse.tl.pathways(counts, everything)


def test_gmt_file(tumour, hallmarks, tmp_path):
    tumour = tumour[:20].copy()
    stfuse.tl.pathways(tumour, str(hallmarks))
    name = "h.all.v7.0.symbols"
    by_hand = dc.pp.read_gmt(str(hallmarks))
    stfuse.tl.pathways(tumour, by_hand)
    pd.testing.assert_frame_equal(tumour.obsm[f"score_{name}"], tumour.obsm["score_pathways"])
    packed = tmp_path / "packed.gmt.gz"
    packed.write_bytes(gzip.compress(hallmarks.read_bytes()))
    stfuse.tl.pathways(tumour, packed)
    pd.testing.assert_frame_equal(tumour.obsm["score_packed"], tumour.obsm["score_pathways"])


def test_gmt_with_spaces_in_names_and_empty_descriptions(counts, tmp_path):
    path = tmp_path / "sets.gmt"
    path.write_text("Set one\t\tG1\tG2\tG3\n\nSet two (x/y)\tof this and that\tG4\tG5\tG5\t\r\n")
    stfuse.tl.pathways(counts, path, tmin=1)
    assert counts.uns["score_sets"]["targets"]["in_net"].to_dict() == {"Set one": 3, "Set two (x_y)": 2}


def test_files_that_are_no_gmt(counts, tmp_path):
    path = tmp_path / "sets.csv"
    path.write_text("source,target\nA,G1\n")
    with pytest.raises(ValueError, match="no GMT file: line 1 has 1 field"):
        stfuse.tl.pathways(counts, path)
    for name in ("x.gmt", "x.gmt.gz"):
        (tmp_path / name).write_bytes(b"\xff\xfe\x80PK")
        with pytest.raises(ValueError, match="it is no text"):
            stfuse.tl.pathways(counts, tmp_path / name)
    (tmp_path / "empty.gmt").write_text("")
    with pytest.raises(ValueError, match="no rows"):
        stfuse.tl.pathways(counts, tmp_path / "empty.gmt")
    with pytest.raises(FileNotFoundError, match="Did you mean 'progeny'"):
        stfuse.tl.pathways(counts, "Progeny")


def test_hallmarks_without_network(counts, monkeypatch):
    import requests

    def offline(*args, **kwargs):
        raise requests.exceptions.ConnectionError("no route")

    monkeypatch.setattr(requests, "get", offline)
    with pytest.raises(ConnectionError, match="GMT file .* give its path"):
        stfuse.tl.pathways(counts, "hallmark")
    with pytest.raises(ValueError, match="No hallmarks for organism 'unicorn'"):
        stfuse.tl.pathways(counts, "hallmark", organism="unicorn")


def test_hallmarks_as_decoupler_gives_them(counts, monkeypatch):
    served = pd.DataFrame(
        {"geneset": "HALLMARK_X", "genesymbol": [f"G{i}" for i in range(6)], "collection": "hallmark"}
    )

    def download(url, verbose=False):
        assert "hallmark" in url
        return url

    module = __import__("decoupler.op._hallmark", fromlist=["x"])
    monkeypatch.setattr(module, "_download", download)
    monkeypatch.setattr(module, "_bytes_to_pandas", lambda *args, **kwargs: served)
    stfuse.tl.pathways(counts, "hallmark")
    assert list(counts.obsm["score_hallmark"]) == ["X"]


def test_bad_tables(counts, net):
    progeny_as_published = wide(net, counts.var_names)
    with pytest.raises(ValueError, match=r"no column 'source'; there is A, B, C.*stack\(\)"):
        stfuse.tl.pathways(counts, progeny_as_published)
    # the mend that the message gives
    long = progeny_as_published.rename_axis(index="target", columns="source").stack().rename("weight").reset_index()
    stfuse.tl.pathways(counts, long)
    stfuse.tl.pathways(counts, net, key_added="net")
    pd.testing.assert_frame_equal(counts.obsm["score_pathways"], counts.obsm["score_net"])
    for change, error, message in (
        ({"weight": np.nan}, ValueError, "24 missing or infinite"),
        ({"weight": np.inf}, ValueError, "24 missing or infinite"),
        ({"weight": "much"}, TypeError, "numbers in 'weight'"),
        ({"source": None}, ValueError, "missing values in 'source' or 'target'"),
    ):
        with pytest.raises(error, match=message):
            stfuse.tl.pathways(counts, net.assign(**change))
    with pytest.raises(ValueError, match="no rows"):
        stfuse.tl.pathways(counts, net[:0])
    with pytest.raises(ValueError, match="1 pair.* with more than one weight"):
        stfuse.tl.pathways(counts, pd.concat([net, net[:1].assign(weight=9.0)]))
    with pytest.raises(TypeError, match="net must be"):
        stfuse.tl.pathways(counts, {"A": ["G1"]})


def test_repeated_rows_and_zero_weights_change_nothing(counts, net):
    stfuse.tl.pathways(counts, net)
    zeros = pd.DataFrame({"source": "A", "target": [f"Z{i}" for i in range(9)], "weight": 0.0})
    stfuse.tl.pathways(counts, pd.concat([net, net[:3], zeros]), key_added="same")
    pd.testing.assert_frame_equal(counts.obsm["score_pathways"], counts.obsm["score_same"])
    assert counts.uns["score_same"]["targets"].equals(counts.uns["score_pathways"]["targets"])


def test_slashes_in_names(counts, net, tmp_path):
    slashed = net.assign(source=net["source"].replace({"A": "JAK/STAT"}))
    stfuse.tl.pathways(counts, slashed)
    assert "JAK_STAT" in counts.obsm["score_pathways"]
    counts.write_h5ad(tmp_path / "x.h5ad")
    with pytest.raises(ValueError, match="differ only in a slash"):
        stfuse.tl.pathways(counts, slashed.replace({"B": "JAK_STAT"}))


def test_mlm_needs_sets_that_differ(counts, net):
    twin = net[net["source"] == "A"].assign(source="twin", weight=lambda t: 2 * t["weight"])
    with pytest.raises(ValueError, match="can't tell pathways apart .*: (A|twin)\\."):
        stfuse.tl.pathways(counts, pd.concat([net, twin]), method="mlm")
    stfuse.tl.pathways(counts, pd.concat([net, twin]))
    score = counts.obsm["score_pathways"]
    np.testing.assert_allclose(score["A"], score["twin"])
    many = pd.DataFrame({"source": [f"P{i}" for i in range(59)], "target": [f"G{i}" for i in range(59)]})
    with pytest.raises(ValueError, match="needs at least 61 genes"):
        stfuse.tl.pathways(counts, many, method="mlm", tmin=1)


# containers, records, keys


def test_mudata_has_rows_for_all(counts, net):
    stfuse.tl.pathways(counts, net)
    image = ad.AnnData(np.ones((10, 2), np.float32))
    image.obs_names = [f"extra{i}" for i in range(5)] + list(counts.obs_names[:5])
    rna = make_counts()[::-1].copy()
    mdata = MuData({"image": image, "rna": rna})
    stfuse.tl.pathways(mdata, net)
    score = mdata.obsm["score_pathways"]
    assert list(score.index) == list(mdata.obs_names)
    np.testing.assert_allclose(score.loc[counts.obs_names], counts.obsm["score_pathways"], rtol=1e-5)
    assert score.loc[image.obs_names[:5]].isna().all(axis=None)
    assert "score_pathways" not in rna.obsm
    with pytest.raises(KeyError, match="no modality 'rna'"):
        stfuse.tl.pathways(MuData({"image": image}), net)


def test_spatialdata(counts, net):
    from spatialdata import SpatialData

    sdata = SpatialData(tables={"table": counts})
    stfuse.tl.pathways(sdata, net)
    assert sdata.tables["table"].obsm["score_pathways"].shape == (30, 3)
    copied = stfuse.tl.pathways(sdata, net, key_added="new", copy=True)
    assert "score_new" in copied.tables["table"].obsm
    assert "score_new" not in sdata.tables["table"].obsm


def test_written_and_read_again(counts, net, tmp_path, assert_same):
    stfuse.tl.pathways(counts, net)
    for name, write, read in (
        ("x.h5ad", counts.write_h5ad, ad.read_h5ad),
        ("x.zarr", counts.write_zarr, ad.read_zarr),
    ):
        write(tmp_path / name)
        back = read(tmp_path / name)
        for key in ("score_pathways", "padj_pathways"):
            pd.testing.assert_frame_equal(back.obsm[key], counts.obsm[key])
        record = back.uns["score_pathways"]
        assert record["params"]["method"] == "ulm"
        assert record["versions"]["decoupler"]
        assert record["targets"]["measured"].tolist() == [8, 8, 8]


def test_copy_leaves_the_object(counts, net, assert_same):
    before = counts.copy()
    changed = stfuse.tl.pathways(counts, net, copy=True)
    assert_same(counts, before)
    assert list(changed.obsm) == ["score_pathways", "padj_pathways"]


def test_results_replace_their_own_kind_only(counts, net):
    stfuse.tl.pathways(counts, net, key_added="mine")
    stfuse.tl.pathways(counts, net, key_added="mine", method="mlm")
    assert counts.uns["score_mine"]["params"]["method"] == "mlm"
    counts.obsm["padj_other"] = np.ones((30, 1))
    with pytest.raises(ValueError, match=r"would overwrite obsm\['padj_other'\]"):
        stfuse.tl.pathways(counts, net, key_added="other")
    with pytest.raises(ValueError, match="slash"):
        stfuse.tl.pathways(counts, net, key_added="a/b")


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"method": "gsea"}, ValueError, "method must be one of ulm, mlm"),
        ({"organism": "rat", "net": "progeny"}, ValueError, "No PROGENy pathways for organism 'rat'"),
        ({"organism": 1}, TypeError, "organism"),
        ({"tmin": 0}, ValueError, "tmin"),
        ({"tmin": 2.5}, TypeError, "tmin"),
        ({"layer": 1}, TypeError, "layer"),
        ({"gene_key": ""}, ValueError, "gene_key"),
        ({"copy": "no"}, TypeError, "copy"),
        ({"key_added": 3}, TypeError, "key_added"),
    ],
)
def test_bad_arguments(counts, net, arguments, error, message, assert_same):
    before = counts.copy()
    with pytest.raises(error, match=message):
        stfuse.tl.pathways(counts, **{"net": net, **arguments})
    assert_same(counts, before)


def test_repeated_observation_names(counts, net):
    counts.obs_names = ["a"] * 30
    with pytest.raises(ValueError, match="not unique"):
        stfuse.tl.pathways(counts, net)
