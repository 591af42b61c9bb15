import numpy as np
import pandas as pd
import pytest
from scipy.sparse import issparse


def _same(a, b, where):
    assert type(a) is type(b), where
    if hasattr(a, "keys") and not isinstance(a, pd.DataFrame):
        assert list(a.keys()) == list(b.keys()), where
        for key in a.keys():
            _same(a[key], b[key], f"{where}[{key!r}]")
    elif isinstance(a, pd.DataFrame):
        pd.testing.assert_frame_equal(a, b)
    elif issparse(a):
        np.testing.assert_array_equal(a.toarray(), b.toarray(), err_msg=where)
    else:
        np.testing.assert_array_equal(a, b, err_msg=where)


@pytest.fixture(scope="session")
def assert_same():
    """Compare two AnnData, every slot."""

    def compare(a, b):
        for slot in ("X", "obs", "var", "obsm", "varm", "obsp", "uns"):
            _same(getattr(a, slot), getattr(b, slot), slot)

    return compare
