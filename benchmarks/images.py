"""Speed and memory of image features, as ratios inside one run (asv style: ``track_*`` and ``time_*`` methods).

``asv run`` finds the classes; ``python benchmarks/images.py [Class ...]`` prints every figure once.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
from anndata import AnnData
from running import print_all

CROP, CHUNK = 224, 1024


def write_slide(path: Path, side: int, n_spots: int) -> None:
    """Write a SpatialData of a square image of side x side pixels and spots anywhere on it; chunk by chunk."""
    import dask.array as da
    import spatialdata
    from spatialdata.models import Image2DModel, ShapesModel, TableModel

    # noise under smooth colours compresses about as badly as tissue
    tile = np.random.default_rng(0).integers(120, 255, (3, CHUNK, CHUNK), dtype=np.uint8)
    repeats = -(-side // CHUNK)
    image = da.tile(da.from_array(tile, chunks=tile.shape), (1, repeats, repeats))[:, :side, :side]
    adata = AnnData(np.ones((n_spots, 1), np.float32))
    adata.obs["region"], adata.obs["instance"] = pd.Categorical(["spots"] * n_spots), np.arange(n_spots)
    places = np.random.default_rng(1).random((n_spots, 2)) * side
    spatialdata.SpatialData(
        images={"he": Image2DModel.parse(image.rechunk((3, CHUNK, CHUNK)), dims=("c", "y", "x"))},
        shapes={"spots": ShapesModel.parse(places, geometry=0, radius=50.0)},
        tables={"table": TableModel.parse(adata, region="spots", region_key="region", instance_key="instance")},
    ).write(path)


def crops_of(path: Path) -> object:
    """Give a function that reads all crops of a slide once, as `image_features` does, and returns their number."""
    import spatialdata

    from stfuse._image._bands import in_background, read_crops
    from stfuse._image._plan import plan_section
    from stfuse._image._section import Choice
    from stfuse._image._sections import find_sections

    sdata = spatialdata.read_zarr(path)

    def read() -> int:
        (section,) = find_sections(sdata, Choice())
        (part,) = plan_section(section, (CROP, CROP), [1], CROP, None)
        batches = in_background(read_crops(section.image, part.level, [part.group], [20]))
        return sum(len(which) for _, which, _ in batches)

    return read


class Reading:
    """Crops of 224 pixels out of a lazy image of 20,000 x 20,000 (target: under 1 ms a crop; floor: reading each chunk once)."""

    timeout = 1200
    side, n_spots = 20_000, 10_000

    def setup(self) -> None:
        """Write the slide."""
        self.folder = tempfile.TemporaryDirectory()
        self.path = Path(self.folder.name) / "slide.zarr"
        write_slide(self.path, self.side, self.n_spots)
        self.read = crops_of(self.path)
        self.read()  # the file is in the system's cache from here on, for both

    def track_ms_a_crop(self) -> float:
        """Milliseconds a crop."""
        start = time.perf_counter()
        n = self.read()
        return (time.perf_counter() - start) / n * 1e3

    def track_over_chunks_alone(self) -> float:
        """Time against computing every chunk of the image once, with nothing done with it."""
        import dask
        import spatialdata

        blocks = spatialdata.read_zarr(self.path)["he"].data
        start = time.perf_counter()
        for row in range(blocks.numblocks[1]):
            dask.compute(*(blocks.blocks[0, row, column] for column in range(blocks.numblocks[2])), scheduler="threads")
        alone = time.perf_counter() - start
        start = time.perf_counter()
        self.read()
        return (time.perf_counter() - start) / alone

    def track_bounding_box_ms(self) -> float:
        """Milliseconds a crop of spatialdata's own query, computed, for comparison (100 crops)."""
        import spatialdata

        sdata = spatialdata.read_zarr(self.path)
        places = np.random.default_rng(2).random((100, 2)) * (self.side - CROP)
        start = time.perf_counter()
        for x, y in places:
            spatialdata.bounding_box_query(
                sdata["he"],
                axes=("x", "y"),
                min_coordinate=[x, y],
                max_coordinate=[x + CROP, y + CROP],
                target_coordinate_system="global",
            ).data.compute()
        return (time.perf_counter() - start) / len(places) * 1e3


MEMORY = """
import resource, sys
from pathlib import Path
sys.path.insert(0, {folder!r})
from images import crops_of, write_slide
small = Path({scratch!r}) / "small.zarr"
write_slide(small, 2048, 100)
crops_of(small)()
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
before = peak()
crops_of(Path({scratch!r}) / "slide.zarr")()
print(peak() - before)
"""


class Memory:
    """Growth of the peak (MiB) while crops are read, for slides of different sizes with the same density of spots."""

    timeout = 1800
    params = (5_000, 10_000, 20_000, 40_000)
    param_names = ("side",)

    def track_peak(self, side: int) -> float:
        """Mebibytes above a process that has read a small slide."""
        with tempfile.TemporaryDirectory() as scratch:
            write_slide(Path(scratch) / "slide.zarr", side, 10_000 * side**2 // 20_000**2)
            code = MEMORY.format(folder=str(Path(__file__).parent), scratch=scratch)
            out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        return float(out.stdout.strip().splitlines()[-1])


class EncoderTime:
    """`image_features` with EfficientNet-Lite0 against the bare network on ready batches (target: at most 1.10)."""

    timeout = 1800
    n_spots, batch = 600, 8

    def setup(self) -> None:
        """A slide with spots, and all its batches ready in memory as the network takes them."""
        import torch

        from stfuse._image._pyramid import pyramid
        from stfuse.pp._encoders import get_encoder

        rng = np.random.default_rng(0)
        self.pixels = rng.integers(100, 255, (4000, 4000, 3), dtype=np.uint8)
        self.adata = AnnData(np.ones((self.n_spots, 1), np.float32))
        self.adata.obsm["spatial"] = rng.random((self.n_spots, 2)) * 4000
        self.encoder = get_encoder("efficientnet-lite0", device="cpu")
        assert pyramid([self.pixels], name="image", kind="array").size == (4000, 4000)
        self.module = self.encoder.module
        batch = torch.randn(self.batch, 3, CROP, CROP).contiguous(memory_format=torch.channels_last)
        self.batches = [batch] * (self.n_spots // self.batch)
        self.ours()

    def ours(self) -> None:
        """The whole call."""
        import stfuse

        stfuse.pp.image_features(
            self.adata,
            self.encoder,
            image=self.pixels,
            crop_px=CROP,
            batch_size=self.batch,
            progress=False,
            overwrite=True,
        )

    def bare(self) -> None:
        """The network alone."""
        import torch

        with torch.inference_mode():
            for batch in self.batches:
                self.module(batch)

    def track_ratio(self) -> float:
        """Median of five pairs of runs, one after the other."""
        ratios = []
        for _ in range(5):
            start = time.perf_counter()
            self.bare()
            middle = time.perf_counter()
            self.ours()
            ratios.append((time.perf_counter() - middle) / (middle - start))
        return float(np.median(ratios))


class Texture:
    """Seconds of `texture` on 3,600 spots (target: under 20 s on two cores)."""

    timeout = 600
    params = (48, 95, 414)
    param_names = ("crop_px",)

    def setup(self) -> None:
        """A slide in memory."""
        rng = np.random.default_rng(0)
        self.pixels = rng.integers(100, 255, (4000, 4000, 3), dtype=np.uint8)
        self.adata = AnnData(np.ones((3600, 1), np.float32))
        self.adata.obsm["spatial"] = rng.random((3600, 2)) * 4000

    def time_features(self, crop_px: int) -> None:
        """The whole call."""
        import stfuse

        stfuse.pp.image_features(self.adata, image=self.pixels, crop_px=crop_px, progress=False, overwrite=True)


if __name__ == "__main__":
    print_all(Reading, Memory, EncoderTime, Texture)
