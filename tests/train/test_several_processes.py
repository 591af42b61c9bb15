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
    cameo.verdict = lambda keep, report: 2  # the second training, on all pairs, is to run as well
    adata = stfuse.datasets.synthetic_tissue(200, n_genes=30, n_image_features=12, seed=1)
    found = {}
    windows = {"n_clusters": 3, "image_weight": 3.0, "clustering": "kmeans", "n_encoders": 1}
    for name, cls, params in (
        ("published", stfuse.model.CAMEO, {"faithful": True}),
        ("anchored", stfuse.model.CAMEO, {}),
        ("clip", stfuse.model.CLIP, {}),
        ("umpire", stfuse.model.UMPIRE, {"embed_dim": 8, "objective": "reconstruction"}),
        ("windows", stfuse.model.AESTETIK, windows),
    ):
        cls.setup_anndata(adata)
        model = cls(adata, **params)
        model.train(max_epochs=3, batch_size=32, progress=False, device="cpu", devices=2, strategy="ddp")
        history = {k: v.iloc[:, 0].tolist() for k, v in model.history.items()}
        codes = model.codes()
        code = codes.fused if codes.image is None else codes.image
        found[name] = {"history": history, "code": code.astype(float).tolist()}
    cells, tiles = stfuse.datasets.synthetic_cells(40, cells_per_tile=12, n_image_features=6, seed=1)
    stfuse.pp.cell_graph(cells, tile_key="tile", tiles=tiles)
    stfuse.model.SIGMMA.setup_anndata(cells, tile_key="tile")
    for name, params in (("cells", {}), ("bags", {"graph": False})):
        model = stfuse.model.SIGMMA(cells, tiles, embed_dim=4, n_hidden=6, **params)
        model.train(max_epochs=3, batch_size=8, progress=False, device="cpu", devices=2, strategy="ddp")
        history = {k: v.iloc[:, 0].tolist() for k, v in model.history.items()}
        found[name] = {"history": history, "code": model.codes().rna["macro"].astype(float).tolist()}
    slides, bags = stfuse.datasets.synthetic_slides(30, n_tiles=(3, 12), n_genes=8, n_image_features=6, paired=0.6, seed=1)
    stfuse.model.MIRROR.setup_anndata(slides, slide_key="slide")
    for name, params in (("slides", {"dim": 8}), ("slides published", {"dim": 8, "faithful": True})):
        model = stfuse.model.MIRROR(slides, bags, n_tiles=6, n_prototypes=10, **params)
        model.train(max_epochs=3, batch_size=4, progress=False, device="cpu", devices=2, strategy="ddp")
        history = {k: v.iloc[:, 0].tolist() for k, v in model.history.items()}
        found[name] = {"history": history, "code": model.codes().fused.astype(float).tolist()}
    rank = os.environ.get("LOCAL_RANK", "0")
    with open(os.path.join(sys.argv[1], rank + ".json"), "w") as file:
        json.dump(found, file)
"""


@pytest.mark.slow
def test_two_processes_end_with_the_same_model(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    command = [sys.executable, str(tmp_path / "script.py"), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=560, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    of_spots, of_more = (
        {"published", "anchored", "clip", "umpire", "windows"},
        {"cells", "bags", "slides", "slides published"},
    )
    assert first.keys() == second.keys() == of_spots | of_more
    for name in first:
        assert first[name]["history"] == second[name]["history"], name
        assert all(len(column) == 3 for column in first[name]["history"].values())
        np.testing.assert_array_equal(first[name]["code"], second[name]["code"], err_msg=name)
        assert np.isfinite(first[name]["code"]).all()


GATHERED = """
import json, os, sys
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback
import stfuse


class Watch(Callback):
    def __init__(self):
        self.steps = []

    def on_before_optimizer_step(self, trainer, plan, optimizer):
        self.steps.append({name: p.grad.flatten().tolist() for name, p in plan.module.named_parameters()})


if __name__ == "__main__":
    adata = stfuse.datasets.synthetic_tissue(120, n_genes=8, n_image_features=6, seed=1)
    cells, tiles = stfuse.datasets.synthetic_cells(40, cells_per_tile=12, n_image_features=6, seed=1)
    stfuse.pp.cell_graph(cells, tile_key="tile", tiles=tiles)
    found = {}
    for objective in ("contrastive", "one-sided", "bleep", "sigmma"):
        for devices in (2, 1) if os.environ.get("LOCAL_RANK", "0") == "0" else (2,):
            torch.manual_seed(0)
            options = {"devices": 2, "strategy": "ddp"} if devices == 2 else {"devices": 1}
            if objective == "sigmma":
                stfuse.model.SIGMMA.setup_anndata(cells, tile_key="tile")
                options |= {"validation_fraction": 0}
                model = stfuse.model.SIGMMA(cells, tiles, embed_dim=4, n_hidden=6, dropout=0.0, edge_addition="all")
            else:
                stfuse.model.UMPIRE.setup_anndata(adata)
                model = stfuse.model.UMPIRE(adata, objective=objective, embed_dim=4, adapter_dim=3)
            watch = Watch()
            model.train(max_epochs=1, batch_size=24, progress=False, device="cpu", callbacks=[watch], **options)
            loss = {k: v.iloc[:, 0].tolist() for k, v in model.history.items()}
            code = model.codes().image
            code = code["meso"] if objective == "sigmma" else code
            found[f"{objective} {devices}"] = {"steps": watch.steps, "loss": loss, "code": code.tolist()}
    if len(found) == 8:
        with open(os.path.join(sys.argv[1], "found.json"), "w") as file:
            json.dump(found, file)
"""


@pytest.mark.slow
def test_a_batch_on_two_devices_is_the_batch_on_one(tmp_path):
    """Codes are gathered with their gradients: the same loss, and the same gradients, as of one process with all pairs."""
    (tmp_path / "script.py").write_text(GATHERED)
    command = [sys.executable, str(tmp_path / "script.py"), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=560, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads((tmp_path / "found.json").read_text())
    for objective in ("contrastive", "one-sided", "bleep", "sigmma"):
        two, one = found[f"{objective} 2"], found[f"{objective} 1"]
        assert len(two["steps"]) == len(one["steps"]) == 4
        for a, b in zip(two["steps"], one["steps"], strict=True):
            assert a.keys() == b.keys()
            for name in a:
                np.testing.assert_allclose(a[name], b[name], rtol=1e-3, atol=1e-5, err_msg=f"{objective} {name}")
        for name in one["loss"]:
            np.testing.assert_allclose(two["loss"][name], one["loss"][name], rtol=1e-4, err_msg=objective)
        np.testing.assert_allclose(two["code"], one["code"], atol=1e-3, err_msg=objective)


@pytest.mark.parametrize("strategy", ["ddp_spawn", "ddp_fork", "ddp_notebook"])
def test_processes_of_which_nothing_comes_back(strategy):
    adata = synthetic_tissue(60, n_genes=10, n_image_features=8)
    CLIP.setup_anndata(adata)
    with pytest.raises(ValueError, match=f"strategy='{strategy}' trains in processes.*use strategy='ddp'"):
        CLIP(adata).train(max_epochs=1, device="cpu", devices=2, strategy=strategy, progress=False)
