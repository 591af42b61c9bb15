import anndata as ad
import numpy as np
import pytest

import stfuse


def hand():
    """Four observations; codes on the unit circle by their angle, in degrees."""

    def codes(*degrees):
        angle = np.deg2rad(np.array(degrees, dtype=float))
        return np.column_stack([np.cos(angle), np.sin(angle)])

    adata = ad.AnnData(np.zeros((4, 1)))
    adata.obs_names = list("abcd")
    adata.obsm["X_m_image"] = codes(0, 90, 180, np.nan)
    adata.obsm["X_m_rna"] = codes(10, np.nan, 60, 180)
    return adata


def test_both_ways_by_hand():
    found = stfuse.tl.retrieve(hand(), use_rep="m", k=2)
    assert list(found["query"]) == ["a", "a", "b", "b", "c", "c"]
    assert list(found["target"]) == ["a", "c", "c", "a", "d", "c"]
    assert list(found["rank"]) == [1, 2] * 3
    degrees = [10, 60, 30, 80, 0, 120]
    np.testing.assert_allclose(found["similarity"], np.cos(np.deg2rad(degrees)), atol=1e-6)
    back = stfuse.tl.retrieve(hand(), query="rna", target="image", use_rep="m", k=1)
    assert list(back["query"]) == ["a", "c", "d"] and list(back["target"]) == ["a", "b", "c"]


def test_another_reference():
    reference = hand()[["d", "a"]].copy()
    reference.obs_names = ["x", "y"]
    found = stfuse.tl.retrieve(hand(), reference, use_rep="X_m", k=1)
    assert list(found["target"]) == ["y", "y", "x"]


def test_a_model_codes_both_anew():
    adata = stfuse.datasets.synthetic_tissue(120, seed=1)
    model = stfuse.tl.pcca(adata, return_model=True)
    stored = stfuse.tl.retrieve(adata, use_rep="pcca", k=3)
    new = ad.AnnData(obs=adata.obs, obsm={k: adata.obsm[k] for k in ("X_image", "X_pca", "spatial")})
    coded = stfuse.tl.retrieve(new, model=model, k=3)
    assert coded[["query", "target"]].equals(stored[["query", "target"]])
    np.testing.assert_allclose(coded["similarity"], stored["similarity"], atol=1e-5)
    own = stored[stored["query"] == stored["target"]]
    assert len(own) > 3 * 3  # far above chance, 3 of 120


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"use_rep": "cameo"}, KeyError, r"data has no obsm\['X_cameo_image'\].*'X_m_image', 'X_m_rna'"),
        ({"query": "gene"}, ValueError, "query must be one of 'image', 'rna'"),
        ({"target": "histology"}, ValueError, "target must be one of"),
        ({"k": 4}, ValueError, "k=4 is more than the 3 observations that have a rna code"),
        ({"k": 0}, ValueError, "k must be"),
        ({"model": "m"}, TypeError, "model must be a trained stfuse model"),
    ],
)
def test_bad_input(arguments, error, message):
    with pytest.raises(error, match=message):
        stfuse.tl.retrieve(hand(), **{"use_rep": "m", "k": 1, **arguments})


def test_codes_that_are_missing_or_of_another_width():
    adata = hand()
    adata.obsm["X_m_rna"] = adata.obsm["X_m_rna"][:, :1]
    with pytest.raises(ValueError, match="2 columns, those of the reference 1"):
        stfuse.tl.retrieve(adata, use_rep="m", k=1)
    adata.obsm["X_m_image"][:] = np.nan
    with pytest.raises(ValueError, match="No observation of the data has a code of the image view"):
        stfuse.tl.retrieve(adata, use_rep="m", k=1)
