import copy
import os
import sys
from functools import cache
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from scipy.sparse import issparse

matplotlib.use("agg")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder with the data sets that may not be shipped; tests that ask for it are skipped where there is none."""
    folder = os.environ.get("STFUSE_DATA")
    if not folder:
        pytest.skip("STFUSE_DATA is not set: this test needs data that is not part of the package")
    path = Path(folder)
    if not path.is_dir():
        pytest.fail(f"STFUSE_DATA is set to {folder!r}, which is no folder")
    return path


@pytest.fixture(scope="session", autouse=True)
def packages_are_listed_once():
    """Lightning looks through all installed packages for every trainer; none comes or goes while tests run."""
    registry = sys.modules.get("lightning.fabric.utilities.registry")
    with pytest.MonkeyPatch.context() as patch:
        if registry is not None:
            patch.setattr(registry, "entry_points", cache(registry.entry_points))
        yield


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
