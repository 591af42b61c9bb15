import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stfuse.datasets import synthetic_tissue
from stfuse.pp import hide_pairs


def tissue(n=200, **kwargs):
    return synthetic_tissue(n, n_genes=8, n_image_features=4, **kwargs)


def hidden(adata, fraction, **kwargs):
    return ~hide_pairs(adata, fraction, copy=True, **kwargs).obs["paired"].to_numpy()


@pytest.mark.parametrize(("fraction", "left"), [(0, 200), (0.25, 150), (0.6, 80), (0.98, 4), (1, 0)])
def test_fraction_is_what_is_hidden(fraction, left):
    adata = tissue()
    assert hide_pairs(adata, fraction) is None
    assert adata.obs["paired"].dtype == bool
    assert adata.obs["paired"].sum() == left
    assert np.isfinite(adata.obsm["X_image"]).all() and np.isfinite(adata.obsm["X_pca"]).all()


def test_two_pairs_are_left():
    adata = tissue(30)
    assert (~hidden(adata, 0.999)).sum() == 2
    assert (~hidden(tissue(1), 0.9)).sum() == 1
    assert (~hidden(adata, 1)).sum() == 0


def test_seed_and_nesting():
    adata = tissue()
    np.testing.assert_array_equal(hidden(adata, 0.5), hidden(adata, 0.5))
    assert (hidden(adata, 0.5) != hidden(adata, 0.5, seed=1)).any()


@settings(max_examples=30, deadline=None)
@given(low=st.floats(0, 1), high=st.floats(0, 1), seed=st.integers(0, 5))
def test_more_is_hidden_of_the_same(low, high, seed):
    low, high = sorted((low, high))
    adata = SMALL
    less, more = hidden(adata, low, seed=seed), hidden(adata, high, seed=seed)
    assert not (less & ~more).any()


SMALL = tissue(23)


def test_only_observations_with_both_views_are_pairs():
    adata = tissue(missing_image=0.2, missing_rna=0.3)
    hide_pairs(adata, 0.5, key="known")
    both = adata.obs["has_image"] & adata.obs["has_rna"]
    assert adata.obs["known"].sum() == 50 and both.sum() == 100
    assert not (adata.obs["known"] & ~both).any()


def test_views_that_are_not_computed_yet():
    adata = tissue()
    del adata.obsm["X_image"], adata.obsm["X_pca"]
    hide_pairs(adata, 0.5)
    assert adata.obs["paired"].sum() == 100


def test_the_same_fraction_in_each_section():
    adata = tissue(300, n_sections=3)
    hide_pairs(adata, 0.3, library_key="section")
    assert adata.obs.groupby("section", observed=True)["paired"].sum().tolist() == [70, 70, 70]


def test_mudata_with_partly_overlapping_modalities():
    mudata = pytest.importorskip("mudata")
    adata = tissue(100)
    image, rna = adata[:70].copy(), adata[40:].copy()
    image.obsm["X_image"][0] = np.nan
    image.obsm["X_image"][69] = np.nan
    mdata = mudata.MuData({"image": image, "rna": rna})
    hide_pairs(mdata, 0)
    # rows 40 to 69 are in both modalities, and row 69 lacks its image
    assert mdata.obs.index[mdata.obs["paired"]].tolist() == adata.obs_names[40:69].tolist()
    hide_pairs(mdata, 0.5)
    assert mdata.obs["paired"].sum() == 15
    with pytest.raises(KeyError, match="no modality 'image'"):
        hide_pairs(mudata.MuData({"he": image, "rna": rna}), 0.5)
    # a view that a fusion made lies in the global obsm
    mdata["image"].obsm.clear()
    mdata.obsm["X_image"] = np.where(mdata.obs_names.isin(adata.obs_names[:50])[:, None], 1.0, np.nan)
    hide_pairs(mdata, 0)
    assert mdata.obs.index[mdata.obs["paired"]].tolist() == adata.obs_names[40:50].tolist()


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        ({"fraction": -0.1}, ValueError, "between 0 and 1"),
        ({"fraction": 1.1}, ValueError, "between 0 and 1"),
        ({"fraction": float("nan")}, ValueError, "between 0 and 1"),
        ({"fraction": "0.5"}, TypeError, "fraction must be a number.*'0.5'"),
        ({"fraction": 0.5, "seed": "a"}, TypeError, "seed must be"),
        ({"fraction": 0.5, "copy": "yes"}, TypeError, "copy must be True or False"),
        ({"fraction": 0.5, "image_key": None}, TypeError, "image_key must be a string, got None"),
        ({"fraction": 0.5, "image_key": "X_uni"}, KeyError, "X_uni.*X_image.*image_key=.*pp.image_features"),
        ({"fraction": 0.5, "rna_key": "X_PCA"}, KeyError, "Did you mean 'X_pca'.*rna_features"),
        ({"fraction": 0.5, "key": "section"}, ValueError, "key='section' would overwrite"),
        ({"fraction": 0.5, "key": "new", "library_key": "new"}, ValueError, "key='new' would overwrite"),
        ({"fraction": 0.5, "library_key": "slide"}, KeyError, "slide.*section"),
        ({"fraction": 0.5, "key": "a/b"}, ValueError, "slash"),
    ],
)
def test_bad_input_changes_nothing(kwargs, error, message):
    adata = tissue()
    before = adata.obs.copy()
    with pytest.raises(error, match=message):
        hide_pairs(adata, **kwargs)
    assert adata.obs.equals(before)


def test_no_pairs_at_all():
    adata = tissue(missing_image=0.5, missing_rna=0.5)
    with pytest.raises(ValueError, match="No observation has both views.*image: 100, rna: 100"):
        hide_pairs(adata, 0.5)
    assert "paired" not in adata.obs
