from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stfuse import _record

scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**40), 2**40),
    st.floats(allow_nan=False),
    st.text(st.characters(codec="ascii", exclude_characters="\0"), max_size=5),
    st.sampled_from([np.float32(2), np.int64(3), np.bool_(True), Path("a/b"), float, 3 + 4j]),
)
values = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.tuples(inner, inner),
        st.dictionaries(st.one_of(st.sampled_from(["a", "b/c", "d e"]), st.integers(0, 3)), inner, max_size=3),
    ),
    max_leaves=6,
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(value=values)
def test_whatever_the_parameters_h5ad_takes_them(value, tmp_path):
    safe = _record.h5ad_safe({"params": value})
    adata = ad.AnnData(obs=pd.DataFrame(index=["a"]), uns={"record": safe})
    adata.write_h5ad(tmp_path / "x.h5ad")
    ad.read_h5ad(tmp_path / "x.h5ad")


def test_h5ad_safe():
    frame = pd.DataFrame({"loss": [1.0]})
    safe = _record.h5ad_safe(
        {"a/b": 1, 3: (1, 2.5), "set": {"x"}, "none": None, "np": np.float32(0.5), "mixed": [1, "b"], "frame": frame}
    )
    assert safe["a_b"] == 1 and safe["3"] == [1, 2.5] and safe["set"] == ["x"] and safe["none"] is None
    assert type(safe["np"]) is float and safe["mixed"] == ["1", "b"] and safe["frame"] is frame
    assert safe == _record.h5ad_safe(safe)


def test_versions():
    found = _record.versions()
    assert {"stfuse", "torch", "numpy", "anndata"} <= set(found)
    assert found["numpy"] == np.__version__


@pytest.fixture
def adata():
    out = ad.AnnData(obs=pd.DataFrame({"a": [1, 2, 3]}, index=list("xyz")))
    out.obsm["X_old"] = np.ones((3, 2))
    out.obsm["X_keep"] = np.ones((3, 2))
    return out


def test_write(adata):
    _record.write(
        adata,
        obsm={"X_new": np.zeros((3, 1))},
        obs={"label": pd.Categorical(["u", "v", "u"]), "score": np.arange(3.0)},
        obsp={"graph": np.eye(3)},
        uns={"new": {"a/b": (1, 2)}},
        drop_obsm=("X_old", "X_never"),
    )
    assert set(adata.obsm) == {"X_keep", "X_new"}
    assert isinstance(adata.obs["label"].dtype, pd.CategoricalDtype)
    assert adata.uns["new"] == {"a_b": [1, 2]}
    np.testing.assert_array_equal(adata.obsp["graph"], np.eye(3))


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        ({"obsm": {"X_new": np.zeros((3, 1)), "X_short": np.zeros((2, 1))}}, "'X_short' has 2 rows, the object 3"),
        ({"obs": {"score": np.zeros(4)}}, "'score' has 4 rows"),
        ({"obsp": {"graph": np.eye(2)}}, "'graph' has 2 rows"),
        ({"obsm": {"a/b": np.zeros((3, 1))}}, "slash"),
    ],
)
def test_nothing_is_half_written(adata, bad, words):
    before = adata.copy()
    with pytest.raises(ValueError, match=words):
        _record.write(adata, **({"uns": {"record": {}}, "drop_obsm": ("X_old",)} | bad))
    assert set(adata.obsm) == set(before.obsm) and not adata.uns
    pd.testing.assert_frame_equal(adata.obs, before.obs)


def test_params_of():
    assert _record.params_of({"data": 1, "copy": True, "progress": None, "seed": 3, "x": 2}, "seed") == {"x": 2}
