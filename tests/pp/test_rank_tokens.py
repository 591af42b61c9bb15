"""Gene tokens against a loop over observations, and what counts and vocabularies must not be."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import coo_matrix, csc_matrix, csr_matrix

from stfuse._tokens import Vocabulary, read_tokens
from stfuse.datasets import mob
from stfuse.pp import _token_ranks, rank_tokens


def section(n=60, genes=40, seed=0, density=0.3):
    rng = np.random.default_rng(seed)
    values = rng.poisson(rng.gamma(1, 3, (n, 1)) * rng.gamma(1, 1, genes)) * (rng.random((n, genes)) < density)
    values[0] = np.maximum(values[0], 1)  # every gene occurs, and no observation is empty
    values[:, 0] = np.maximum(values[:, 0], 1)
    return AnnData(
        csr_matrix(values.astype(np.float32)),
        obs=pd.DataFrame(index=[f"spot{i}" for i in range(n)]),
        var=pd.DataFrame(index=[f"g{i}" for i in range(genes)]),
    )


def literal_means(dense):
    scaled = [row / row.sum() * 1e4 if row.sum() else row for row in dense.astype(float)]
    columns = np.array(scaled).T
    return [column[column > 0].mean() if (column > 0).any() else None for column in columns]


def literal(dense, means, n_tokens):
    """One observation after the other; `means` and tokens by column, None = no token. Python's sort is stable."""
    index = {gene: i for i, gene in enumerate(g for g, mean in enumerate(means) if mean is not None)}
    out = np.zeros((len(dense), n_tokens), int)
    for i, row in enumerate(dense):
        genes = [g for g in index if row[g] > 0]
        genes.sort(key=lambda g: -np.float32(float(row[g]) / means[g]))
        for k, g in enumerate(genes[:n_tokens]):
            out[i, k] = index[g] + 2
    return out


counts = st.integers(1, 12).flatmap(
    lambda n: st.integers(2, 9).flatmap(
        lambda g: st.lists(
            st.lists(st.sampled_from([0, 0, 0, 1, 1, 2, 3, 7]), min_size=g, max_size=g), min_size=n, max_size=n
        )
    )
)


@pytest.mark.filterwarnings("ignore:.*no counts of these genes")
@settings(max_examples=60, deadline=None)
@given(counts, st.integers(1, 12), st.booleans(), st.sampled_from([1, 7, 1 << 17]))
def test_is_a_literal_loop(values, n_tokens, rounded, block):
    """With ties, empty observations and genes that never occur, in blocks of whatever size."""
    dense = np.array(values, dtype=np.float32)
    adata = AnnData(csr_matrix(dense))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_token_ranks, "KEYS", block)
        patch.setattr(_token_ranks, "ENTRIES", block)
        if not dense.any():
            with pytest.raises(ValueError, match="There are no counts"):
                rank_tokens(adata)
            return
        rank_tokens(adata, n_tokens=n_tokens, rounded=rounded)
    own = literal_means(dense)
    seen = [g for g, mean in enumerate(own) if mean is not None]
    record = adata.uns["tokens"]
    assert list(record["vocabulary"]) == [str(g) for g in seen]
    expected = [own[g] for g in seen]
    if rounded:
        expected = [max(1, round(mean)) for mean in expected]
    np.testing.assert_allclose(record["means"], expected, rtol=1e-12)
    # by the means that were found: their last digit may turn a tie
    means = [None if own[g] is None else float(record["means"][seen.index(g)]) for g in range(dense.shape[1])]
    tokens = adata.obsm["tokens"]
    assert tokens.dtype == np.int32 and tokens.shape == (len(dense), n_tokens)
    np.testing.assert_array_equal(tokens, literal(dense, means, n_tokens))


def test_values_descend_and_the_first_are_the_highest():
    """The whole formula in double precision, of real counts."""
    adata = mob()[::10].copy()
    rank_tokens(adata, n_tokens=50)
    dense = adata.X.toarray().astype(float)
    scaled = dense / dense.sum(1, keepdims=True) * 1e4
    means = np.array([column[column > 0].mean() for column in scaled.T])
    np.testing.assert_allclose(adata.uns["tokens"]["means"], means, rtol=1e-9)
    values = scaled / means
    found = np.take_along_axis(values, adata.obsm["tokens"] - 2, axis=1)
    np.testing.assert_allclose(found, -np.sort(-values, axis=1)[:, :50], rtol=1e-6)


def test_ties_stand_in_the_order_of_the_vocabulary():
    adata = AnnData(csr_matrix(np.array([[2, 2, 4, 0], [2, 2, 0, 4]], dtype=np.float32)))
    rank_tokens(adata, n_tokens=5)
    # each gene is as high as its mean
    np.testing.assert_array_equal(adata.obsm["tokens"], [[2, 3, 4, 0, 0], [2, 3, 5, 0, 0]])


def test_published_means_make_ties():
    adata = section(200, 30)
    rank_tokens(adata, n_tokens=30)
    rank_tokens(adata, n_tokens=30, rounded=True, key_added="published")
    assert adata.uns["published"]["params"]["rounded"]
    means = adata.uns["published"]["means"]
    np.testing.assert_array_equal(means, np.maximum(1, np.rint(adata.uns["tokens"]["means"])))
    values = adata.X.toarray() / means
    tokens = adata.obsm["published"]
    for row, token in zip(values, tokens, strict=True):
        np.testing.assert_array_equal(
            token[: (row > 0).sum()] - 2, np.argsort(-row.astype(np.float32), kind="stable")[: (row > 0).sum()]
        )


def test_writes_its_two_entries_and_nothing_else(contents):
    adata = section()
    before = contents(adata)
    assert rank_tokens(adata, n_tokens=10) is None
    tokens, record = adata.obsm.pop("tokens"), adata.uns.pop("tokens")
    np.testing.assert_equal(contents(adata), before)
    assert record["n_obs"] == {"total": 60, "tokens": 60} and record["params"]["n_tokens"] == 10
    changed = rank_tokens(adata, n_tokens=10, key_added="other", copy=True)
    np.testing.assert_array_equal(changed.obsm["other"], tokens)
    assert "other" not in adata.obsm


def test_same_tokens_in_every_form():
    adata = section()
    x = adata.X
    x.data[x.indptr[3] : x.indptr[4]] = 0  # stored zeros
    x.data[x.indptr[5]] = 0
    with pytest.warns(UserWarning, match="1 of 60 observations have no counts of these genes"):
        rank_tokens(adata, n_tokens=20)
    expected = adata.obsm["tokens"]
    assert not expected[3].any() and expected[4].any()
    dense = adata.X.toarray()
    halves = coo_matrix(np.floor(dense / 2)), coo_matrix(dense - np.floor(dense / 2))
    twice = csr_matrix(adata.shape, dtype=np.float32)
    parts = [csr_matrix(half) for half in halves]
    order = np.concatenate([np.repeat(np.arange(60), np.diff(p.indptr)) for p in parts])
    by_row = np.argsort(order, kind="stable")[::-1]
    by_row = by_row[np.argsort(order[by_row], kind="stable")]
    twice.indices = np.concatenate([p.indices for p in parts])[by_row]
    twice.data = np.concatenate([p.data for p in parts])[by_row]
    twice.indptr = np.append(0, np.cumsum(np.bincount(order, minlength=60))).astype(np.int32)
    assert not twice.has_canonical_format
    content = twice.data.copy()
    for form in (dense, csc_matrix(dense), dense.astype(np.int64), csr_matrix(dense.astype(np.uint16)), twice):
        other = AnnData(form, var=adata.var)
        with pytest.warns(UserWarning, match="no counts"):
            rank_tokens(other, n_tokens=20)
        np.testing.assert_array_equal(other.obsm["tokens"], expected)
    np.testing.assert_array_equal(twice.data, content)  # the user's memory
    layered = AnnData(np.zeros(adata.shape, np.float32), var=adata.var, layers={"counts": adata.X})
    with pytest.warns(UserWarning, match="no counts"):
        rank_tokens(layered, n_tokens=20, layer="counts")
    np.testing.assert_array_equal(layered.obsm["tokens"], expected)


# -- the vocabulary of other data ------------------------------------------------------------------------------------


def genes_of(adata, key="tokens"):
    names = np.array(["", "", *adata.uns[key]["vocabulary"]])
    return names[adata.obsm[key]]


def test_new_data_get_the_tokens_of_the_training_data(tmp_path):
    train, new = section(), section(seed=1)
    rank_tokens(train, n_tokens=40)
    train.write_h5ad(tmp_path / "train.h5ad")
    mixed = new[:, np.random.default_rng(0).permutation(40)].copy()
    series = pd.Series(train.uns["tokens"]["means"], index=train.uns["tokens"]["vocabulary"])
    for reference in (train, series, ad.read_h5ad(tmp_path / "train.h5ad")):
        for other in (new, mixed):
            rank_tokens(other, n_tokens=40, gene_means=reference)
            np.testing.assert_array_equal(other.obsm["tokens"], literal(new.X.toarray(), list(series.to_numpy()), 40))
            assert Vocabulary.of_record(other.uns["tokens"]).digest == Vocabulary.of_record(train.uns["tokens"]).digest
    rank_tokens(new, n_tokens=40, key_added="own")
    assert (new.obsm["own"] != new.obsm["tokens"]).any()


def test_genes_that_only_one_side_has():
    train = section()
    rank_tokens(train, n_tokens=40)
    new = section(seed=1)[:, 10:].copy()
    new.var_names = [*new.var_names[:25], *(f"new{i}" for i in range(5))]
    with pytest.warns(UserWarning) as said:
        rank_tokens(new, n_tokens=40, gene_means=train)
    texts = [str(w.message) for w in said]
    assert any("15 of the vocabulary's 40 genes are not in var_names" in text for text in texts)
    assert any("5 of 30 genes are not in the vocabulary" in text for text in texts)
    names = genes_of(new)
    assert not np.isin(names, [f"new{i}" for i in range(5)] + [f"g{i}" for i in range(10)]).any()
    assert (names[:, 0] != "").sum() > 50


def test_what_is_no_reference():
    train, new = section(), section(seed=1)
    with pytest.raises(KeyError, match=r"The reference has no uns\['tokens'\] with a vocabulary"):
        rank_tokens(new, gene_means=train)
    rank_tokens(train)
    other = new.copy()
    other.var_names = [f"ENSG{i}" for i in range(40)]
    with pytest.raises(ValueError, match="Only 0 of the vocabulary's 40 genes.*'g0'.*'ENSG0'.*in the same way"):
        rank_tokens(other, gene_means=train)
    means = pd.Series(np.arange(40.0), index=new.var_names)
    with pytest.raises(ValueError, match=r"1 mean\(s\) that are not above zero.*'g0'"):
        rank_tokens(new, gene_means=means)
    with pytest.raises(ValueError, match="names a gene twice"):
        rank_tokens(new, gene_means=pd.Series([1.0, 2.0], index=["g0", "g0"]))
    with pytest.raises(ValueError, match="must hold numbers"):
        rank_tokens(new, gene_means=pd.Series(["a"], index=["g0"]))
    with pytest.raises(TypeError, match="gene_means must be a Series, an AnnData or None, got ndarray"):
        rank_tokens(new, gene_means=np.ones(40))
    assert "tokens" not in new.obsm and "tokens" not in new.uns


# -- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: np.log1p(x), "not whole numbers.*layer="),
        (lambda x: x - 1, "negative values"),
        (lambda x: np.where(x > 3, np.nan, x), "missing or infinite values"),
        (lambda x: np.where(x > 3, np.inf, x), "missing or infinite values"),
        (lambda x: x * 0, "There are no counts: all 60 observations are empty"),
        (lambda x: x[:0], "is empty"),
    ],
    ids=["log", "negative", "NaN", "infinite", "nothing", "no rows"],
)
@pytest.mark.parametrize("form", [csr_matrix, np.asarray])
def test_what_are_no_counts(change, message, form, contents):
    adata = section()
    values = change(adata.X.toarray())
    adata = AnnData(form(values), var=adata.var)
    before = contents(adata)
    with pytest.raises(ValueError, match=message):
        rank_tokens(adata)
    np.testing.assert_equal(contents(adata), before)


def test_arguments():
    adata = section()
    for arguments, error, message in [
        ({"n_tokens": 0}, ValueError, "n_tokens must be a whole number of at least 1"),
        ({"n_tokens": 2.0}, TypeError, "n_tokens must be a whole number"),
        ({"layer": "none"}, KeyError, "No layer 'none'"),
        ({"rounded": "yes"}, TypeError, "rounded must be True or False"),
        ({"key_added": "a/b"}, ValueError, "slash"),
        ({"key_added": "spatial"}, ValueError, "would overwrite what is read"),
    ]:
        with pytest.raises(error, match=message):
            rank_tokens(adata, **arguments)
    adata.obsm["mine"] = np.ones((60, 2))
    with pytest.raises(ValueError, match=r"would overwrite obsm\['mine'\]"):
        rank_tokens(adata, key_added="mine")
    adata.var_names = ["same"] * 40
    with pytest.raises(ValueError, match="var_names of the data are not unique"):
        rank_tokens(adata)
    mudata = pytest.importorskip("mudata")
    with pytest.raises(TypeError, match=r'pass the modality, for example mdata\["rna"\]'):
        rank_tokens(mudata.MuData({"rna": section()}))
    with pytest.raises(TypeError, match="Expected AnnData"):
        rank_tokens(np.ones((3, 3)))


# -- reading ---------------------------------------------------------------------------------------------------------


def test_read_back(tmp_path):
    adata = section()
    rank_tokens(adata, n_tokens=12)
    adata.write_h5ad(tmp_path / "a.h5ad")
    for box in (adata, ad.read_h5ad(tmp_path / "a.h5ad")):
        tokens, vocabulary = read_tokens(box, "tokens")
        np.testing.assert_array_equal(tokens, adata.obsm["tokens"])
        assert list(vocabulary.genes) == list(adata.var_names) and len(vocabulary) == 40


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda a: a.obsm.pop("tokens"), KeyError, "No obsm.*rank_tokens"),
        (lambda a: a.uns.pop("tokens"), KeyError, "holds no vocabulary"),
        (lambda a: a.uns["tokens"].update(means=np.ones(3)), KeyError, "holds no vocabulary"),
        (lambda a: a.obsm.update(tokens=a.obsm["tokens"].astype(float)), ValueError, "whole numbers"),
        (lambda a: a.obsm.update(tokens=a.obsm["tokens"] + 40), ValueError, "stand for no gene"),
        (lambda a: a.obsm.update(tokens=np.ones_like(a.obsm["tokens"])), ValueError, "stand for no gene"),
        (lambda a: a.obsm.update(tokens=-a.obsm["tokens"]), ValueError, "stand for no gene"),
        (lambda a: a.obsm.update(tokens=np.tile([0, 2], (60, 1))), ValueError, "padding .0. before a gene"),
    ],
    ids=["no tokens", "no record", "other record", "floats", "too large", "hidden", "negative", "holes"],
)
def test_what_are_no_tokens(change, error, message):
    adata = section()
    rank_tokens(adata, n_tokens=12)
    change(adata)
    with pytest.raises(error, match=message):
        read_tokens(adata, "tokens")


def test_a_vocabulary_is_its_names_their_order_and_their_means():
    genes, means = pd.Index(["a", "b"]), np.array([1.0, 2.0])
    digest = Vocabulary(genes, means).digest
    assert digest == Vocabulary(pd.Index(["a", "b"]), means.copy()).digest
    for other in (
        Vocabulary(genes[::-1], means),
        Vocabulary(genes, means[::-1]),
        Vocabulary(pd.Index(["a", "c"]), means),
    ):
        assert other.digest != digest
