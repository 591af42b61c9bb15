"""Pack the data that ship with stfuse: `python scripts/pack_data.py SOURCE`, where SOURCE has mob/ and genesets/.

The photographs are copied byte for byte. The four sections go into one compressed file of counts, and the wide
PROGENy tables become long ones without their zeros.
"""

import shutil
import sys
import warnings
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd

TARGET = Path(__file__).parents[1] / "src" / "stfuse" / "datasets" / "data"


def pack_mob(source: Path) -> None:
    sections = [f"MOB{i}" for i in range(1, 5)]
    parts = []
    for section in sections:
        part = ad.read_h5ad(source / f"{section.lower()}.h5ad")
        part.obs_names = section + "_" + part.obs_names
        part.obs["section"] = section
        part.obs["individual"] = part.obs["individual"].astype(str)
        parts.append(part)
        shutil.copyfile(source / f"{section}.jpg", TARGET / "mob" / f"{section}.jpg")
    adata = ad.concat(parts, join="inner", merge="same")
    adata.X = adata.X.tocsr().astype(np.uint16)
    adata.X.indices = adata.X.indices.astype(np.uint16)
    obs = adata.obs
    adata.obs = pd.DataFrame(
        {
            "section": pd.Categorical(obs["section"], sections),
            "individual": pd.Categorical(obs["individual"]),
            "layer": pd.Categorical(obs["layer_transferred"].astype(str), ["ONL", "GL", "MCL", "GCL"]),
            "layer_probability": obs["layer_transfer_prob"].astype(np.float32),
            "array_x": obs["array_x"].astype(np.int32),
            "array_y": obs["array_y"].astype(np.int32),
        },
        index=adata.obs_names,
    )
    adata.obsm["spatial"] = adata.obsm["spatial"].astype(np.float32)
    adata.write_h5ad(TARGET / "mob" / "mob.h5ad", compression="gzip", compression_opts=9)


def pack_progeny(source: Path) -> None:
    for organism in ("human", "mouse"):
        wide = pd.read_csv(source / f"progeny_{organism}_14x100.csv", index_col=0)
        wide.index.name = "target"
        long = wide.reset_index().melt("target", var_name="source", value_name="weight").query("weight != 0")
        long = long.sort_values(["source", "weight"], key=lambda c: -c.abs() if c.name == "weight" else c)
        path = TARGET / "progeny" / f"{organism}.csv.gz"
        long[["source", "target", "weight"]].to_csv(path, index=False, compression={"method": "gzip", "mtime": 0})


if __name__ == "__main__":
    root = Path(sys.argv[1])
    for name in ("mob", "progeny"):
        (TARGET / name).mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pack_mob(root / "mob")
    pack_progeny(root / "genesets")
