"""Two processes on the CPU, as a script would start them."""

import json
import subprocess
import sys

import numpy as np
import pytest

from stfuse.datasets import synthetic_tissue
from stfuse.model import CLIP

SCRIPT = """
import json, os, sys
import numpy as np
import stfuse
import stfuse.model._cameo as cameo

if __name__ == "__main__":
    cameo._verdict = lambda keep, report: 2  # the second training, on all pairs, is to run as well
    adata = stfuse.datasets.synthetic_tissue(200, n_genes=30, n_image_features=12, seed=1)
    found = {}
    windows = {"n_clusters": 3, "image_weight": 3.0, "clustering": "kmeans", "n_encoders": 1}
    for name, cls, params in (
        ("published", stfuse.model.CAMEO, {"faithful": True}),
        ("anchored", stfuse.model.CAMEO, {}),
        ("clip", stfuse.model.CLIP, {}),
        ("windows", stfuse.model.AESTETIK, windows),
    ):
        cls.setup_anndata(adata)
        model = cls(adata, **params)
        model.train(max_epochs=3, batch_size=32, progress=False, device="cpu", devices=2, strategy="ddp")
        history = {k: v.iloc[:, 0].tolist() for k, v in model.history.items()}
        codes = model.codes()
        code = codes.fused if codes.image is None else codes.image
        found[name] = {"history": history, "code": code.astype(float).tolist()}
    rank = os.environ.get("LOCAL_RANK", "0")
    with open(os.path.join(sys.argv[1], rank + ".json"), "w") as file:
        json.dump(found, file)
"""


@pytest.mark.slow
def test_two_processes_end_with_the_same_model(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    command = [sys.executable, str(tmp_path / "script.py"), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    assert first.keys() == second.keys() == {"published", "anchored", "clip", "windows"}
    for name in first:
        assert first[name]["history"] == second[name]["history"], name
        assert all(len(column) == 3 for column in first[name]["history"].values())
        np.testing.assert_array_equal(first[name]["code"], second[name]["code"], err_msg=name)
        assert np.isfinite(first[name]["code"]).all()


@pytest.mark.parametrize("strategy", ["ddp_spawn", "ddp_fork", "ddp_notebook"])
def test_processes_of_which_nothing_comes_back(strategy):
    adata = synthetic_tissue(60, n_genes=10, n_image_features=8)
    CLIP.setup_anndata(adata)
    with pytest.raises(ValueError, match=f"strategy='{strategy}' trains in processes.*use strategy='ddp'"):
        CLIP(adata).train(max_epochs=1, device="cpu", devices=2, strategy=strategy, progress=False)
