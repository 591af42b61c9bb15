import os
from pathlib import Path

import matplotlib
import pytest

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
