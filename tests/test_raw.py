"""Tokens as an encoder of the user's and as the Visiumformer read them: the same reader, wherever they lie."""

import anndata as ad
import dask.array as da
import numpy as np
import pandas as pd
import pytest

from stfuse._raw import read_token_view
from stfuse._tokens import read_tokens

mudata = pytest.importorskip("mudata")

N, GENES = 12, 5
TOKENS = np.array([[2 + i % GENES, 2 + (i + 1) % GENES, 0] for i in range(N)], np.int64)
TOKENS[4] = 0
RECORD = {"vocabulary": np.array([f"g{i}" for i in range(GENES)]), "means": np.arange(1.0, GENES + 1)}


def box(tokens=TOKENS, record=RECORD, start=0):
    found = ad.AnnData(obs=pd.DataFrame(index=[f"spot{i:02d}" for i in range(start, start + len(tokens))]))
    found.obsm["tokens"] = tokens
    if record:
        found.uns["tokens"] = dict(record)
    return found


@pytest.mark.parametrize("turn", [np.asarray, da.from_array, pd.DataFrame], ids=["numpy", "dask", "data frame"])
def test_both_read_the_same(turn):
    adata = box()
    adata.obsm["tokens"] = turn(TOKENS) if turn is not pd.DataFrame else turn(TOKENS, index=adata.obs_names)
    view, (tokens, vocabulary) = read_token_view(adata, "tokens"), read_tokens(adata, "tokens")
    np.testing.assert_array_equal(view.values, TOKENS)
    np.testing.assert_array_equal(tokens, TOKENS)
    assert view.values.dtype == tokens.dtype == np.int32
    assert view.vocabulary.digest == vocabulary.digest
    np.testing.assert_array_equal(view.has, np.arange(N) != 4)


def test_tokens_of_a_modality_are_laid_out_and_bring_their_vocabulary():
    rna = box(TOKENS[3:], start=3)
    image = ad.AnnData(obs=pd.DataFrame(index=[f"spot{i:02d}" for i in range(N)]))
    view = read_token_view(mudata.MuData({"image": image, "rna": rna}), "tokens")
    np.testing.assert_array_equal(view.values[3:], TOKENS[3:])
    assert not view.values[:3].any() and not view.has[:3].any()
    assert list(view.vocabulary.genes) == list(RECORD["vocabulary"])


def test_tokens_of_the_whole_mudata_without_a_modality_of_rna():
    both = mudata.MuData({"image": ad.AnnData(obs=pd.DataFrame(index=[f"spot{i:02d}" for i in range(N)]))})
    both.obsm["tokens"], both.uns["tokens"] = TOKENS, dict(RECORD)
    view = read_token_view(both, "tokens")
    np.testing.assert_array_equal(view.values, TOKENS)
    assert len(view.vocabulary) == GENES


def test_a_vocabulary_may_be_missing_for_an_encoder_of_the_users_only():
    adata = box(record=None)
    assert read_token_view(adata, "tokens").vocabulary is None
    holes = TOKENS[:, ::-1].copy()  # what padding is, and where, is the encoder's own then
    np.testing.assert_array_equal(read_token_view(box(holes, None), "tokens").values, holes)
    with pytest.raises(KeyError, match="holds no vocabulary"):
        read_tokens(adata, "tokens")


def test_no_tokens():
    assert read_token_view(box(), "token") is None
    with pytest.raises(KeyError, match="Did you mean 'tokens'.*rank_tokens"):
        read_tokens(box(), "token")


@pytest.mark.parametrize("record", [RECORD, None], ids=["vocabulary", "none"])
@pytest.mark.parametrize(
    "tokens", [TOKENS + 0.5, TOKENS - 5, TOKENS[:, :0], TOKENS[:, :, None]], ids=["floats", "negative", "empty", "3-d"]
)
def test_what_are_no_tokens_is_refused_in_the_same_words(tokens, record):
    adata = box(tokens, record)
    with pytest.raises(ValueError, match=r"obsm\['tokens'\] \(tokens_key\) .*rank_tokens makes them") as first:
        read_token_view(adata, "tokens")
    with pytest.raises(ValueError, match="written by stfuse.pp.rank_tokens") as second:
        read_tokens(adata, "tokens")
    said = (
        str(first.value).removeprefix("obsm['tokens'] (tokens_key)").removesuffix("stfuse.pp.rank_tokens makes them.")
    )
    assert str(second.value).startswith(f"obsm['tokens']{said}")


@pytest.mark.parametrize(
    "spoil", [lambda t: t + GENES, lambda t: t.clip(1), lambda t: t[:, ::-1]], ids=["large", "hidden", "holes"]
)
def test_what_are_no_tokens_of_the_vocabulary(spoil):
    adata = box(spoil(TOKENS))
    for read in (read_token_view, read_tokens):
        with pytest.raises(ValueError, match="stand for no gene|before a gene"):
            read(adata, "tokens")
