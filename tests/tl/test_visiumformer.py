"""`tl.visiumformer`: tokens to codes in one call, and nothing else in the object."""

import logging

import numpy as np
import pytest

from stfuse.datasets import mob
from stfuse.model import Visiumformer
from stfuse.pp import rank_tokens
from stfuse.tl import visiumformer

SMALL = {"d_model": 16, "n_layers": 1, "n_heads": 2, "d_ff": 16, "context": 24, "max_epochs": 1, "device": "cpu"}


@pytest.fixture
def adata():
    data = mob()[::20].copy()
    dense = data.X.toarray()
    dense[4] = 0
    data.X = type(data.X)(dense)
    return data


def with_tokens(adata, **arguments):
    with pytest.warns(UserWarning, match="no counts"):
        rank_tokens(adata, n_tokens=30, **arguments)
    return adata


def test_writes_codes_and_record(adata, contents):
    before = contents(with_tokens(adata))
    assert visiumformer(adata, **SMALL) is None
    codes, record = adata.obsm.pop("X_visiumformer"), adata.uns.pop("visiumformer")
    np.testing.assert_equal(contents(adata), before)
    assert codes.shape == (82, 16) and codes.dtype == np.float32
    np.testing.assert_array_equal(np.flatnonzero(np.isnan(codes).any(1)), [4])
    assert record["n_obs"] == {"total": 82, "rna": 81} and record["seed"] == 0
    assert list(record["history"].columns) == ["loss"] and len(record["history"]) == 1
    assert record["params"]["d_model"] == 16 and record["params"]["tokens_key"] == "tokens"


def test_tokens_are_made_where_there_are_none(adata, caplog, tmp_path):
    with caplog.at_level(logging.INFO, "stfuse"), pytest.warns(UserWarning, match="no counts"):
        changed, model = visiumformer(adata, **SMALL, copy=True, return_model=True)
    assert "obsm['tokens'] is made by stfuse.pp.rank_tokens" in caplog.text
    assert not {"tokens", "X_visiumformer"} & set(adata.obsm) and "tokens" not in adata.uns
    with pytest.warns(UserWarning, match="no counts"):
        rank_tokens(adata)
    np.testing.assert_array_equal(changed.obsm["tokens"], adata.obsm["tokens"])
    assert not [key for key in changed.uns if key.startswith("_scvi")]
    changed.write_h5ad(tmp_path / "a.h5ad")
    # the model codes what else has tokens of its vocabulary
    assert isinstance(model, Visiumformer)
    np.testing.assert_array_equal(model.get_latent_representation(adata), changed.obsm["X_visiumformer"])
    visiumformer(changed, **SMALL, seed=3)  # an own result is replaced
    assert changed.uns["visiumformer"]["seed"] == 3


def test_other_names(adata):
    with_tokens(adata, key_added="mine")
    visiumformer(adata, **SMALL, tokens_key="mine", key_added="vf")
    assert {"mine", "X_vf"} <= set(adata.obsm) and "tokens" not in adata.obsm
    visiumformer(adata, **SMALL, tokens_key="mine", key_added="vf")
    with pytest.raises(KeyError, match=r"No obsm\['other'\].*rank_tokens"):
        visiumformer(adata, **SMALL, tokens_key="other")


def test_refused_before_anything_is_written(adata, contents):
    mudata = pytest.importorskip("mudata")
    with_tokens(adata)
    adata.obsm["X_there"], adata.uns["taken"] = np.ones((82, 2)), {"a": 1}
    before = contents(adata)
    for arguments, error, message in [
        ({"key_added": "tokens"}, ValueError, "would overwrite an input"),
        ({"key_added": "there"}, ValueError, r"would overwrite obsm\['X_there'\]"),
        ({"key_added": "taken"}, ValueError, r"would overwrite uns\['taken'\]"),
        ({"key_added": "a/b"}, ValueError, "slash"),
        ({"tokens_key": None}, TypeError, "tokens_key must be a string"),
        ({"preset": "huge"}, ValueError, "preset must be one of"),
        ({"max_epochs": 0}, ValueError, "max_epochs must be"),
        ({"device": "tpu"}, ValueError, "device must be"),
        ({"seed": -1}, ValueError, "seed must be"),
        ({"copy": "yes"}, TypeError, "copy must be True or False"),
        ({"lr": 1e30, "max_epochs": 2}, RuntimeError, "diverged"),
    ]:
        with pytest.raises(error, match=message):
            visiumformer(adata, **(SMALL | arguments))
    np.testing.assert_equal(contents(adata), before)
    with pytest.raises(TypeError, match=r'pass the modality, for example mdata\["rna"\]'):
        visiumformer(mudata.MuData({"rna": adata}))
    adata.layers["log"] = np.log1p(adata.X)
    adata.X = adata.layers["log"]
    del adata.obsm["tokens"]
    with pytest.raises(ValueError, match="not whole numbers.*layer="):
        visiumformer(adata, **SMALL)
