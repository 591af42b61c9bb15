import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stfuse.module import windows as module
from stfuse.module.windows import WindowData, fillings

N_RNA, D = 3, 5
VIEWS = (slice(0, N_RNA), slice(N_RNA, None))


def some(n=60, cells=9, missing=0.3, holes=0.3, seed=0):
    """Features with NaN rows in either view, a table with holes and the row itself in the middle, typical values."""
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(n, D)).astype(np.float32)
    has = rng.random((n, 2)) >= missing
    for view, columns in enumerate(VIEWS):
        features[~has[:, view], columns] = np.nan
    table = rng.integers(0, n, (n, cells)).astype(np.int32)
    table[rng.random(table.shape) < holes] = -1
    table[:, cells // 2] = np.arange(n)
    return features, N_RNA, table, has, rng.normal(size=D).astype(np.float32)


def literal(features, n_rna, table, has, typical):
    """Window by window and view by view, holes filled by the median of what is there."""
    out = np.empty((*table.shape, features.shape[1]))
    for row, cells in enumerate(table):
        for view, columns in enumerate((slice(0, n_rna), slice(n_rna, None))):
            window = np.array(
                [features[c, columns] if c >= 0 and has[c, view] else np.nan * typical[columns] for c in cells]
            )
            if np.isnan(window).all():
                window[:] = typical[columns]
            out[row, :, columns] = np.where(np.isnan(window), np.nanmedian(window, axis=0), window)
    return out


@settings(max_examples=20, deadline=None)
@given(
    st.sampled_from([1, 9, 25]), st.sampled_from([0, 0.2, 0.8, 1]), st.sampled_from([0, 0.3, 0.9]), st.integers(0, 99)
)
def test_windows_are_those_of_a_literal_loop(cells, missing, holes, seed):
    arrays = some(40, cells, missing, holes, seed)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        data = WindowData.make(*arrays)
    rows = torch.from_numpy(np.random.default_rng(seed).integers(0, 40, 30))
    np.testing.assert_allclose(data.windows(rows), literal(*arrays)[rows], atol=1e-6)
    assert data.windows(rows).dtype == torch.float32


def test_blocks_change_nothing(monkeypatch):
    arrays = some(100)
    whole = fillings(*arrays)
    monkeypatch.setattr(module, "BLOCK", 7)
    np.testing.assert_array_equal(fillings(*arrays), whole)


def test_a_window_without_a_view_is_typical():
    features, n_rna, table, has, typical = some(20, missing=0)
    has[:, 1] = False  # no image anywhere, as in new data with one view
    features[:, N_RNA:] = np.nan
    windows = WindowData.make(features, n_rna, table, has, typical).windows(torch.arange(20))
    assert torch.equal(windows[..., N_RNA:], torch.from_numpy(typical[N_RNA:]).expand(20, 9, 2))
    assert torch.isfinite(windows).all()


def test_a_gathered_window_is_a_copy():
    arrays = some()
    data = WindowData.make(*arrays)
    before, rows = data.features.clone(), torch.arange(60)
    expected = data.windows(rows).clone()
    data.windows(rows).zero_()
    assert torch.equal(data.features, before) and torch.equal(data.windows(rows), expected)
    assert np.isnan(arrays[0]).any()  # nor are the given features changed


MEMORY = """
import sys
import numpy as np, torch
from stfuse.module.aestetik import WindowAutoencoder
from stfuse.module.windows import WindowData
from stfuse.train._fit import fit
from stfuse.train._window_plan import WindowBatches, WindowPlan, WindowSettings, WindowTargets
from stfuse._windows import window_table

def peak():
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmHWM")) / 1024

def epoch(side):
    n, d = side * side, 40
    xy = np.stack(np.meshgrid(np.arange(side), np.arange(side)), -1).reshape(-1, 2).astype(float)
    rng = np.random.default_rng(0)
    table = window_table(xy, np.zeros(n, dtype=int), 5).reshape(n, -1)
    features = rng.random((n, d), dtype=np.float32)
    data = WindowData.make(features, 20, table, np.ones((n, 2), dtype=bool), np.full(d, 0.5, dtype=np.float32))
    targets = WindowTargets(torch.from_numpy(rng.integers(0, 7, (n, 2))), None)
    plan = WindowPlan(WindowAutoencoder(d, 5, n_members=1), WindowSettings(1.5, 1.5), 0)
    batches = WindowBatches(data, targets, torch.arange(n), 4096, 0)
    before = peak()
    fit(plan, max_epochs=1, batches=batches, device="cpu", progress=False)
    return before

epoch(128)
small = peak()
before = epoch(317)
print(small, before, peak())
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_memory_of_an_epoch_is_bounded_by_the_batch():
    """100,489 spots need no more than 16,384 do, beside their features; their windows alone would be 400 MB."""
    done = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-3000:]
    small, before, large = (float(value) for value in done.stdout.split())
    features = 2 * 100_489 * 40 * 4 / 2**20  # and what fills holes
    assert large - small < 4 * features, (small, before, large)
