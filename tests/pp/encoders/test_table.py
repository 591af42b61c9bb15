import dataclasses
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

import stfuse
from stfuse.pp._encoders._load import build
from stfuse.pp._encoders._table import ROWS
from stfuse.pp._encoders._texture import TextureEncoder

NAMES = (
    "texture efficientnet-lite0 uni uni2-h conch virchow virchow2 h-optimus-0 h-optimus-1 phikon phikon-v2 hibou-b "
    "hibou-l ctranspath resnet50 inception_v3"
)
# As their pages and papers give them, in millions; classification layers (1000 classes) added where those count them.
PUBLISHED = {
    "efficientnet-lite0": (4.652, 1280 * 1000 + 1000),
    "uni": (303.4, 0),
    "uni2-h": (681.4, 0),
    "virchow": (631.2, 0),
    "virchow2": (631.2, 0),
    "h-optimus-0": (1134.8, 0),  # a file of 4.54 GB
    "h-optimus-1": (1134.8, 0),
    "phikon": (85.8, 0),
    "phikon-v2": (303.4, 0),
    "hibou-b": (85.7, 0),
    "hibou-l": (303.7, 0),
    "ctranspath": (27.5, 0),
    "resnet50": (25.557, 2048 * 1000 + 1000),
    # torchvision counts the auxiliary classifier too, which only training uses
    "inception_v3": (27.161, 2048 * 1000 + 1000 + 3_326_696),
}


def test_the_table():
    table = stfuse.pp.encoders()
    assert list(table.index) == NAMES.split()
    assert table["dimension"].tolist() == [95, 1280, 1024, 1536, 512, *[2560] * 2, *[1536] * 2, 768, 1024] + [
        768,
        1024,
        768,
        2048,
        2048,
    ]
    assert table["gated"].dtype == bool and table["gated"].sum() == 9
    assert table["licence"].str.len().min() > 2 and table["reference"].str.len().min() > 10
    assert table.loc["uni", "mpp"] == 0.5 and table.loc["ctranspath", "magnification"] == 10
    assert pd.isna(table.loc["texture", "magnification"]) and pd.isna(table.loc["texture", "input_size"])
    np.testing.assert_allclose((table["mpp"] * table["magnification"]).dropna(), 10)
    assert table.loc["texture", "dimension"] == TextureEncoder().n_features


def test_listing_encoders_loads_no_network_library():
    code = "import stfuse, sys; stfuse.pp.encoders(); print([m for m in ('torch', 'timm') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("row", [r for r in ROWS if r.name in PUBLISHED], ids=lambda row: row.name)
def test_networks_have_the_published_size(row):
    millions, head = PUBLISHED[row.name]
    assert (sum(p.numel() for p in build(row).parameters()) + head) / 1e6 == pytest.approx(millions, abs=0.06)


def test_size_of_the_tower_of_conch():
    """Counted by hand: ViT-B/16 of 448 px, then attention of one query of 512, layer norms of query, keys, result."""
    d, w = 512, 768
    block = (w * 3 * w + 3 * w) + (w * w + w) + (w * 4 * w + 4 * w) + (4 * w * w + w) + 4 * w
    trunk = 12 * block + (3 * 16 * 16 * w + w) + w + (28 * 28 + 1) * w + 2 * w
    pool = d + (d * d + 2 * w * d + 3 * d) + (d * d + d) + 2 * d + 2 * w + 2 * d
    row = next(r for r in ROWS if r.name == "conch")
    assert sum(p.numel() for p in build(row).parameters()) == trunk + pool


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_rows_are_sound(row):
    assert row.embedding and row.source
    assert row.interpolation in {"bilinear", "bicubic"}
    assert all(0 < value < 1 for value in (*row.mean, *row.std))
    with pytest.raises(dataclasses.FrozenInstanceError):
        row.name = "other"
