import copy

import numpy as np
import pytest
from scipy.sparse import issparse


@pytest.fixture(scope="session")
def contents():
    """Take down all that an AnnData holds, as numpy compares it."""

    def take(adata):
        held = {"X": {"X": adata.X}, "layers": adata.layers, "obsm": adata.obsm, "varm": adata.varm, "obsp": adata.obsp}
        arrays = {
            slot: {str(k): v.toarray() if issparse(v) else np.array(v) for k, v in values.items() if v is not None}
            for slot, values in held.items()
        }
        tables = {slot: getattr(adata, slot).to_dict("list") for slot in ("obs", "var")}
        return (
            arrays
            | tables
            | {"uns": copy.deepcopy(dict(adata.uns)), "names": [list(adata.obs_names), list(adata.var_names)]}
        )

    return take
