import numpy as np
import pytest
from anndata import read_h5ad

from stfuse._image._microns import microns_from_spots
from stfuse._image._section import Choice
from stfuse._image._sections import find_sections
from stfuse.datasets import mob


def hexagons(n, pitch):
    y, x = np.mgrid[:n, :n].astype(float)
    return np.column_stack([(x + 0.5 * (y % 2)).ravel(), (y * np.sqrt(3) / 2).ravel()]) * pitch


def squares(n, pitch):
    return np.stack(np.mgrid[:n, :n], axis=-1).reshape(-1, 2) * float(pitch)


@pytest.mark.parametrize("angle", [0, 0.4])
def test_lattices_of_known_arrays(angle):
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    assert microns_from_spots(hexagons(20, 138.0) @ turn, 96.4) == pytest.approx(100 / 138, rel=1e-6)
    # the same squares are 200 µm apart in Spatial Transcriptomics and 20 µm in DBiT-seq: nothing is told
    assert microns_from_spots(squares(20, 276.0) @ turn, 138.0) is None


def test_what_is_no_known_array():
    rng = np.random.default_rng(0)
    assert microns_from_spots(rng.random((500, 2)) * 1000, 10.0) is None  # cells
    assert microns_from_spots(squares(20, 29.0), 29.0) is None  # bins of Visium HD touch: 2, 8 or 16 µm
    assert microns_from_spots(squares(20, 32.0), 22.8) is None  # every other spot of an array: 141 µm
    assert microns_from_spots(hexagons(20, 138.0), None) is None
    assert microns_from_spots(hexagons(3, 138.0), 96.4) is None


def test_real_arrays(shared_data):
    """Spots of Space Ranger are no 55 µm: 96.4 pixels are 70 µm by the 100 µm between the spots."""
    visium = read_h5ad(shared_data / "dlpfc" / "dlpfc_151673.h5ad")
    (section,) = find_sections(visium, Choice())
    assert section.mpp[0] == pytest.approx(0.7245, rel=1e-3) and section.spot * section.mpp[0] == pytest.approx(
        70, abs=1
    )
    st = read_h5ad(shared_data / "her2st" / "her2st_B4.h5ad")
    assert find_sections(st, Choice())[0].mpp is None


def test_order_of_sources():
    adata = mob()
    names = list(adata.uns["spatial"])
    adata.uns["spatial"][names[1]]["scalefactors"]["microns_per_pixel"] = 5.0
    sections = find_sections(adata, Choice(mpp=None))
    assert sections[0].mpp == (4.386, 4.386) and sections[1].mpp == (5.0, 5.0)
    assert [s.mpp for s in find_sections(adata, Choice(mpp=2))] == [(2.0, 2.0)] * 4
    said = find_sections(adata, Choice(mpp=dict.fromkeys(names, 3.0)))
    assert said[3].mpp == (3.0, 3.0)
    with pytest.raises(KeyError, match=f"mpp has nothing for section '{names[1]}'"):
        find_sections(adata, Choice(mpp={names[0]: 3.0}))
    with pytest.raises(ValueError, match="above 0"):
        find_sections(adata, Choice(mpp=-1))
