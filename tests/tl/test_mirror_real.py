"""Regions of real sections as slides, their spots as tiles."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
from matplotlib import pyplot as plt
from sklearn.cluster import KMeans
from sklearn.linear_model import LogisticRegression

import stfuse

FAST = {"dim": 32, "n_prototypes": 50, "max_epochs": 12, "lr": 3e-3, "progress": False}
KEY = "section_layer_block"


def regions(spots, groupby, n_blocks):
    """Sum spots of each group, in blocks of neighbouring ones, into slides of log expression."""
    block = np.empty(spots.n_obs, int)
    for rows in spots.obs.groupby(groupby, observed=True).indices.values():
        block[rows] = KMeans(n_blocks, n_init=1, random_state=0).fit_predict(spots.obsm["spatial"][rows])
    spots.obs["block"] = pd.Categorical(block.astype(str))
    slides = stfuse.pp.pseudobulk(spots, [*groupby, "block"], min_obs=4)
    sc.pp.normalize_total(slides, target_sum=1e4)
    sc.pp.log1p(slides)
    return slides


def rank_of_own(image, rna):
    """Share of regions whose RNA is nearer to the image than its own; 0.5 by chance."""
    similar = image @ rna.T
    return (similar > np.diag(similar)[:, None]).mean()


@pytest.fixture(scope="module")
def bulb():
    spots = stfuse.datasets.mob()
    stfuse.pp.image_features(spots, encoder="texture", progress=False)
    return regions(spots, ["section", "layer"], 3), spots


def test_regions_of_the_olfactory_bulb(bulb):
    """Layers of a section are told by a head that has not seen the section; attention is drawn over the tissue."""
    slides, spots = (adata.copy() for adata in bulb)
    assert slides.n_obs == 48
    stfuse.tl.mirror(slides, spots, slide_key=KEY, groups="section", validation_fraction=0, **FAST)
    assert slides.uns["mirror"]["n_obs"]["tiles"] == spots.n_obs
    found = {
        rep: stfuse.tl.probe(slides, use_rep=rep, label_key="layer", groups="section", n_splits=4)[
            "balanced_accuracy"
        ].mean()
        for rep in ("X_mirror", "X_mirror_image")
    }
    assert found["X_mirror"] > 0.85 and found["X_mirror_image"] > 0.5  # four layers
    assert rank_of_own(slides.obsm["X_mirror_image"], slides.obsm["X_mirror_rna"]) < 0.2
    names = list(slides.obs_names[:2])
    axes = stfuse.pl.attention(
        spots, names, attention_key="mirror_attention", slide_key=KEY, library_key="section", top=3
    )
    assert [ax.get_title() for ax in axes[::2]] == names and all(ax.images for ax in axes)
    plt.close("all")


def test_a_section_that_was_not_trained_on(bulb):
    """Its regions find their own RNA by their image, and its layers are told by heads trained on the others."""
    slides, spots = bulb
    own, seen = (slides.obs["section"] == "MOB4").to_numpy(), (spots.obs["section"] != "MOB4").to_numpy()
    model = stfuse.tl.mirror(
        slides[~own].copy(), spots[seen].copy(), slide_key=KEY, validation_fraction=0, return_model=True, **FAST
    )
    trained, new = model.codes(), model.codes(slides[own].copy(), spots[~seen].copy())
    assert rank_of_own(new.image, new.rna) < 0.3
    head = LogisticRegression(max_iter=2000).fit(trained.fused, slides.obs["layer"][~own])
    assert head.score(new.fused, slides.obs["layer"][own]) > 0.8
    # of the image alone, the RNA as it tells it
    image_only = model.codes(None, spots[~seen].copy())
    rows = image_only.names.get_indexer(slides.obs_names[own])
    assert head.score(image_only.fused[rows], slides.obs["layer"][own]) > 0.5


def test_regions_of_two_patients(shared_data):
    patients = {name: ad.read_h5ad(shared_data / "her2st" / f"her2st_{name}.h5ad") for name in ("A1", "B4")}
    spots = ad.concat(patients, index_unique="-")
    spots.uns["spatial"] = {name: adata.uns["spatial"][name] for name, adata in patients.items()}
    stfuse.pp.image_features(spots, encoder="texture", progress=False)
    slides = regions(spots, ["section"], 15)
    sc.pp.highly_variable_genes(slides, n_top_genes=2000)
    model = stfuse.tl.mirror(
        slides,
        spots,
        slide_key="section_block",
        mask_var="highly_variable",
        groups="patient",
        return_model=True,
        **FAST,
    )
    assert model.n_features_["rna"] == 2000 and np.isfinite(slides.obsm["X_mirror"]).all()
    assert rank_of_own(slides.obsm["X_mirror_image"], slides.obsm["X_mirror_rna"]) < 0.3
    sums = spots.obs.groupby("section_block", observed=True)["mirror_attention"].sum()
    np.testing.assert_allclose(sums[slides.obs_names], 1, rtol=1e-5)
