"""What fusion is for, where the truth is known: quick versions of the benchmark, with a margin."""

import numpy as np
import pytest
from sklearn.cluster import KMeans
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import adjusted_rand_score, f1_score
from sklearn.model_selection import LeaveOneGroupOut, StratifiedKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import stfuse
from stfuse.datasets import mob, synthetic_tissue
from stfuse.metrics import recall_at_percent

N, TEST = 800, 160
SEEDS = (0, 1, 2)


def domains(code, labels):
    """ARI of K-means on the code as it comes out."""
    found = KMeans(labels.nunique(), n_init=5, random_state=0).fit_predict(code)
    return adjusted_rand_score(labels, found)


def probe(code, labels, groups=None):
    """Macro F1 of a linear head, out of fold."""
    head = make_pipeline(StandardScaler(), LogisticRegression(max_iter=200))
    folds = LeaveOneGroupOut() if groups is not None else StratifiedKFold(3, shuffle=True, random_state=0)
    return f1_score(labels, cross_val_predict(head, code, labels, groups=groups, cv=folds), average="macro")


def standard(x):
    return StandardScaler().fit_transform(x)


@pytest.fixture(scope="module", params=SEEDS)
def fused(request):
    """Tissue in which each view alone knows a part, fused by CAMEO and CLIP from all pairs and from 40 % of them.

    A fifth of the observations never counts as a pair; on them partners are looked for.
    """
    seed = request.param
    adata = synthetic_tissue(N, seed=seed)
    test = np.random.default_rng(seed).permutation(N)[:TEST]
    recall = {}
    for level in (1.0, 0.4):
        stfuse.pp.hide_pairs(adata, 1 - level, seed=seed)
        adata.obs.loc[adata.obs_names[test], "paired"] = False
        options = {"paired_key": "paired", "seed": seed, "progress": False}
        stfuse.tl.cameo(adata, key_added=f"cameo{level:.0%}", max_epochs=5, **options)
        stfuse.tl.clip(adata, key_added=f"clip{level:.0%}", **options)
        for name in ("cameo", "clip"):
            image, rna = (adata.obsm[f"X_{name}{level:.0%}_{view}"][test] for view in ("image", "rna"))
            recall[name, level] = 0.5 * (recall_at_percent(image, rna) + recall_at_percent(rna, image))
    return adata, recall


@pytest.mark.parametrize("level", ["100%", "40%"])
def test_domains_of_the_fused_code_beat_the_better_view(fused, level):
    adata, _ = fused
    labels = adata.obs["domain"]
    alone = [domains(x, labels) for x in (standard(adata.obsm["X_image"]), adata.obsm["X_image"], adata.obsm["X_pca"])]
    assert domains(adata.obsm[f"X_cameo{level}"], labels) > max(alone) + 0.05


@pytest.mark.parametrize("level", ["100%", "40%"])
def test_a_linear_probe_of_the_fused_code_beats_the_better_view(fused, level):
    adata, _ = fused
    labels = adata.obs["domain"]
    alone = [probe(adata.obsm[key], labels) for key in ("X_image", "X_pca")]
    assert probe(adata.obsm[f"X_cameo{level}"], labels) > max(alone) + 0.1


def test_fewer_pairs_cost_less_than_they_cost_clip(fused):
    _, recall = fused
    kept = {name: recall[name, 0.4] / recall[name, 1.0] for name in ("cameo", "clip")}
    assert kept["cameo"] > kept["clip"] + 0.05
    assert recall["cameo", 0.4] > recall["clip", 1.0]


@pytest.fixture(scope="module")
def bulb():
    adata = mob()
    keys = {"batch_key": "section", "library_key": "section"}
    stfuse.pp.image_features(adata, library_key="section", progress=False)
    stfuse.tl.cameo(adata, max_epochs=3, progress=False, **keys)
    stfuse.tl.concat(adata, **keys)
    for key in ("X_image", "X_pca"):
        x = adata.obsm[key].astype(float)
        for name in adata.obs["section"].cat.categories:
            rows = (adata.obs["section"] == name).to_numpy()
            x[rows] -= x[rows].mean(0)
        adata.obsm[key + "_centred"] = standard(x) if key == "X_image" else x
    return adata


def test_on_real_tissue_the_weak_view_does_no_harm(bulb):
    """The layers of the olfactory bulb are in its expression: the image adds little, and must not take away."""
    labels, sections = bulb.obs["layer"].astype(str), bulb.obs["section"].astype(str)
    found = {key: domains(bulb.obsm[key], labels) for key in ("X_cameo", "X_image_centred", "X_pca_centred")}
    assert found["X_cameo"] > found["X_image_centred"] + 0.15
    assert found["X_cameo"] > found["X_pca_centred"] - 0.03
    found = {key: probe(bulb.obsm[key], labels, sections) for key in found}
    assert found["X_cameo"] > found["X_image_centred"] + 0.1
    assert found["X_cameo"] > found["X_pca_centred"] - 0.02
    assert found["X_cameo"] > probe(bulb.obsm["X_concat"], labels, sections) - 0.02


def test_on_real_tissue_images_find_their_expression(bulb):
    """Of sections that the model has not seen."""
    rest = bulb[bulb.obs["section"] != "MOB4"].copy()
    new = bulb[bulb.obs["section"] == "MOB4"].copy()
    model = stfuse.tl.pcca(rest, batch_key="section", library_key="section", return_model=True)
    codes = model.codes(new)
    assert recall_at_percent(codes.image, codes.rna) > 0.3  # by chance 0.05
    guess = model.translate(new, source="image", target="rna")
    truth, mean = new.obsm["X_pca"], new.obsm["X_pca"].mean(0)
    assert ((truth - guess) ** 2).sum() < 0.95 * ((truth - mean) ** 2).sum()
