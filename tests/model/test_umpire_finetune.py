"""UMPIRE that trains an image encoder and a gene encoder end to end."""

import mudata
import numpy as np
import pandas as pd
import pytest
import torch
from anndata import AnnData
from torch import nn

import stfuse
from stfuse.metrics import recall_at_percent
from stfuse.model import UMPIRE
from stfuse.module.visiumformer import Visiumformer

N, GENES, LENGTH = 120, 12, 6
mark = pytest.mark.filterwarnings("ignore:.*varies from draw to draw")


class TinyConv(nn.Module):
    def __init__(self, width=8):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.AdaptiveAvgPool2d(3), nn.Flatten()
        )
        self.out = nn.Linear(54, width)

    def forward(self, x):
        return self.out(self.body(x))


class BagOfGenes(nn.Module):
    """Mean of gene embeddings, weighted by their rank; has a head that its codes do not use."""

    def __init__(self, n=GENES + 2, width=8):
        super().__init__()
        self.embedding = nn.Embedding(n, width, padding_idx=0)
        self.head = nn.Linear(width, n)

    def forward(self, tokens):
        raise AssertionError("encode is there")

    def encode(self, tokens):
        weights = 1 / torch.arange(1, tokens.shape[1] + 1, device=tokens.device)
        return (self.embedding(tokens) * weights[:, None]).sum(1)


def slides(n=N, seed=0):
    """Crops whose colour and brightness tell which genes come first."""
    rng = np.random.default_rng(seed)
    state = rng.uniform(size=(n, 3))
    crops = np.clip(60 + 150 * state[:, :, None, None] + 15 * rng.normal(size=(n, 3, 8, 8)), 0, 255).astype(np.uint8)
    expression = state @ np.random.default_rng(7).normal(size=(3, GENES)) + 0.1 * rng.normal(size=(n, GENES))
    tokens = (2 + np.argsort(-expression, axis=1)[:, :LENGTH]).astype(np.int32)
    tokens[::4, -2:] = 0
    adata = AnnData(obs=pd.DataFrame(index=[f"spot{i}" for i in range(n)]))
    adata.obsm["crops"], adata.obsm["tokens"] = crops, tokens
    adata.obsm["X_pca"] = expression.astype(np.float32)
    return adata


OPTIONS = {
    "image_key": "crops",
    "tokens_key": "tokens",
    "mode": "finetune",
    "embed_dim": 8,
    "lr": 3e-3,
    "max_epochs": 2,
    "progress": False,
    "device": "cpu",
}


def encoders(seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return {"image_encoder": TinyConv(), "gene_encoder": BagOfGenes()}


def run(data, **kwargs):
    return stfuse.tl.umpire(data, **(OPTIONS | encoders() | kwargs))


def test_both_encoders_are_trained():
    given = encoders()
    before = {v: {k: t.clone() for k, t in m.state_dict().items()} for v, m in given.items()}
    adata = slides()
    model = run(adata, **given, max_epochs=25, return_model=True)
    for view, name in (("image", "image_encoder"), ("rna", "gene_encoder")):
        trained = model.module.encoders[view].state_dict()
        for key in ("body.0.weight", "out.weight") if view == "image" else ("embedding.weight",):
            assert not torch.allclose(trained[key], before[name][key], atol=1e-3), key
        # the modules that were given are nobody else's
        assert all(torch.equal(t, before[name][k]) for k, t in given[name].state_dict().items())
        assert given[name].training
    test = slides(100, seed=1)
    codes = model.codes(test)
    assert recall_at_percent(codes.image, codes.rna) > 0.2  # by chance 0.05
    assert adata.obsm["X_umpire_image"].shape == (N, 8)
    record = adata.uns["umpire"]["params"]
    assert record["tokens_key"] == "tokens" and record["image_encoder"] == "TinyConv"
    assert set(adata.obsm) == {"crops", "tokens", "X_pca", "X_umpire", "X_umpire_image", "X_umpire_rna"}


def test_bytes_are_floats_up_to_one():
    adata = slides(60)
    floats = adata.copy()
    floats.obsm["crops"] = adata.obsm["crops"].astype(np.float64) / 255
    run(adata), run(floats)
    np.testing.assert_allclose(adata.obsm["X_umpire"], floats.obsm["X_umpire"], atol=1e-4)


def test_missing_crops_and_tokens():
    adata = slides()
    adata.obsm["crops"] = adata.obsm["crops"].astype(np.float32) / 255
    adata.obsm["crops"][:10] = np.nan
    adata.obsm["tokens"][5:20] = 0
    run(adata)
    image, rna, fused = (adata.obsm[f"X_umpire{part}"] for part in ("_image", "_rna", ""))
    assert np.isnan(image[:10]).all() and np.isfinite(image[10:]).all()
    assert np.isnan(rna[5:20]).all() and np.isfinite(rna[20:]).all() and np.isfinite(rna[:5]).all()
    assert np.isnan(fused[5:10]).all() and np.isfinite(fused[10:]).all()
    assert adata.uns["umpire"]["n_obs"] == {
        "total": N,
        "image": N - 10,
        "rna": N - 15,
        "both": N - 20,
        "paired": N - 20,
    }


@pytest.mark.parametrize("view", ["image", "rna"])
def test_one_encoder_and_features_of_the_other_view(view):
    adata = slides()
    adata.obsm["X_image"] = adata.obsm["crops"].mean((2, 3)).astype(np.float32)
    if view == "image":
        model = run(adata, gene_encoder=None, tokens_key=None, return_model=True, objective="reconstruction")
    else:
        model = run(adata, image_encoder=None, image_key="X_image", return_model=True)
    assert set(model.module.encoders) == {view}
    assert np.isfinite(adata.obsm["X_umpire"]).all()


def test_modalities_with_observations_of_their_own():
    whole = slides()
    image = AnnData(obs=whole.obs.iloc[:100].copy(), obsm={"crops": whole.obsm["crops"][:100]})
    rna = AnnData(obs=whole.obs.iloc[30:].copy(), obsm={"tokens": whole.obsm["tokens"][30:]})
    mdata = mudata.MuData({"image": image, "rna": rna})
    run(mdata)
    has_image, has_rna = mdata.obs_names.isin(image.obs_names), mdata.obs_names.isin(rna.obs_names)
    np.testing.assert_array_equal(np.isfinite(mdata.obsm["X_umpire_image"]).all(1), has_image)
    np.testing.assert_array_equal(np.isfinite(mdata.obsm["X_umpire_rna"]).all(1), has_rna)
    # the same as one object whose rows are missing
    gaps = whole[mdata.obs_names].copy()
    gaps.obsm["crops"] = gaps.obsm["crops"].astype(np.float32) / 255
    gaps.obsm["crops"][~has_image] = np.nan
    gaps.obsm["tokens"][~has_rna] = 0
    run(gaps)
    np.testing.assert_allclose(gaps.obsm["X_umpire"], mdata.obsm["X_umpire"], atol=1e-5)


def test_new_data_and_files(tmp_path):
    model = run(slides(), return_model=True)
    test = slides(40, seed=3)
    codes = model.codes(test)
    model.save(tmp_path / "model")
    with pytest.raises(ValueError, match="got none: pass image_encoder=.*also to load"):
        UMPIRE.load(tmp_path / "model")
    with pytest.raises(
        ValueError, match="trained with image_encoder= and gene_encoder=: give modules of the same kind"
    ):
        UMPIRE.load(tmp_path / "model", image_encoder=TinyConv())
    with pytest.raises(ValueError, match="(?s)not of the kind that was trained.*size mismatch"):
        UMPIRE.load(tmp_path / "model", image_encoder=TinyConv(), gene_encoder=BagOfGenes(n=30))
    with pytest.raises(TypeError, match="takes no accelerator"):
        UMPIRE.load(tmp_path / "model", accelerator="cpu")
    loaded = UMPIRE.load(tmp_path / "model", **encoders(seed=5))
    loaded.device_ = "cpu"
    again = loaded.codes(test)
    np.testing.assert_array_equal(again.fused, codes.fused)
    # one view is enough, and features lying about are not taken for tokens
    del test.obsm["tokens"]
    alone = loaded.codes(test)
    np.testing.assert_array_equal(alone.image, codes.image)
    assert np.isnan(alone.rna).all()

    small = test.copy()
    small.obsm["crops"] = small.obsm["crops"][:, :, :6]
    with pytest.raises(ValueError, match=r"Crops are \[3, 6, 8\], the model was trained on \[3, 8, 8\]"):
        loaded.codes(small)
    flat = test.copy()
    flat.obsm["crops"] = flat.obsm["crops"].reshape(40, -1).astype(np.float32)
    with pytest.raises(ValueError, match="The image view holds features, the model was trained on crops"):
        loaded.codes(flat)


def counted(n=N, seed=0):
    rng = np.random.default_rng(seed)
    adata = slides(n, seed)
    counts = rng.poisson(np.exp(adata.obsm["X_pca"])).astype(np.float32)
    counts[:, 0] += 1
    full = AnnData(counts, obs=adata.obs, var=pd.DataFrame(index=[f"g{i}" for i in range(GENES)]))
    full.obsm["crops"] = adata.obsm["crops"]
    return full


def test_tokens_of_counts_and_the_visiumformer():
    adata = counted()
    stfuse.pp.rank_tokens(adata, n_tokens=8)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        genes = Visiumformer(GENES, d_model=8, n_layers=1, n_heads=2, d_ff=8, context=8)
    model = run(adata, gene_encoder=genes, return_model=True)
    before = genes.embedding.weight.detach()
    assert not torch.allclose(model.module.encoders["rna"].embedding.weight, before, atol=1e-4)
    same, other = counted(40, 1), counted(40, 1)
    stfuse.pp.rank_tokens(same, n_tokens=8, gene_means=adata)
    assert np.isfinite(model.codes(same).rna).all()
    stfuse.pp.rank_tokens(other, n_tokens=8)
    with pytest.raises(ValueError, match="another vocabulary than those of the training.*gene_means="):
        model.codes(other)


def test_a_gene_encoder_knows_its_vocabulary():
    adata, other = counted(60), counted(60, 3)
    stfuse.pp.rank_tokens(adata, n_tokens=8)
    genes = stfuse.tl.visiumformer(
        adata, d_model=8, n_layers=1, n_heads=2, d_ff=8, context=8, max_epochs=1, return_model=True
    )
    stfuse.pp.rank_tokens(other, n_tokens=8)
    with pytest.raises(
        ValueError, match=r"those that gene_encoder was trained on \(12 genes\).*gene_means=gene_encoder"
    ):
        run(other, gene_encoder=genes)
    assert "X_umpire" not in other.obsm
    stfuse.pp.rank_tokens(other, n_tokens=8, gene_means=genes.gene_means)
    run(other, gene_encoder=genes)


def test_an_encoder_that_is_a_model_of_stfuse():
    adata = counted()
    stfuse.pp.rank_tokens(adata, n_tokens=8)
    stfuse.model.Visiumformer.setup_anndata(adata)
    genes = stfuse.model.Visiumformer(adata)
    with pytest.raises(ValueError, match="gene_encoder is a Visiumformer that is not trained yet"):
        run(adata, gene_encoder=genes)


def spoil(key, change):
    def apply(adata):
        adata.obsm[key] = change(adata.obsm[key])

    return apply


BAD = {
    "flat crops": (
        spoil("crops", lambda x: x.reshape(N, -1)),
        {},
        r"image_encoder= needs crops \(observations x channels x height x width\) in obsm\['crops'\]",
    ),
    "grey crops": (
        spoil("crops", lambda x: x[:, 0]),
        {},
        r"must be two-dimensional.*or hold crops.*its shape is \(120, 8, 8\)",
    ),
    "channels last": (
        spoil("crops", lambda x: np.moveaxis(x, 1, -1)),
        {},
        r"channels come first, so use np.moveaxis\(crops, -1, 1\)",
    ),
    "crops of text": (spoil("crops", lambda x: x.astype(np.int64)), {}, "bytes .uint8. or floats, its dtype is int64"),
    "NaN in a crop": (
        spoil("crops", lambda x: np.where(np.arange(x.size).reshape(x.shape) == 5, np.nan, x)),
        {},
        "NaN inside 1 row",
    ),
    "no encoder for crops": (
        None,
        {"image_encoder": None},
        r"must be two-dimensional .* without an encoder.*pass mode='finetune' and image_encoder=",
    ),
    "no encoder for tokens": (None, {"gene_encoder": None}, "tokens_key= needs an encoder that reads them"),
    "tokens of fractions": (
        spoil("tokens", lambda x: x + 0.5),
        {},
        "must hold gene tokens.*stfuse.pp.rank_tokens makes them",
    ),
    "negative tokens": (spoil("tokens", lambda x: x - 5), {}, "whole numbers from 0.*stfuse.pp.rank_tokens makes them"),
    "no tokens at all": (spoil("tokens", np.zeros_like), {}, "The rna view is missing in every observation"),
    "small vocabulary": (
        None,
        {"gene_encoder": BagOfGenes(n=9)},
        "gene_encoder fails on gene tokens .* largest token 13: IndexError",
    ),
    "wrong channels": (
        None,
        {"image_encoder": nn.Conv2d(4, 2, 3)},
        r"image_encoder fails on crops of shape \(2, 3, 8, 8\)",
    ),
    "no features": (
        None,
        {"image_encoder": nn.Conv2d(3, 2, 3)},
        r"one row of features for each observation.*made \(2, 2, 6, 6\)",
    ),
}


@pytest.mark.parametrize(("change", "kwargs", "words"), BAD.values(), ids=BAD)
def test_what_does_not_fit_changes_nothing(change, kwargs, words, contents):
    adata = slides()
    if change:
        change(adata)
    before = contents(adata)
    with pytest.raises(ValueError, match=words):
        run(adata, **kwargs)
    np.testing.assert_equal(contents(adata), before)


def test_keys_that_are_not_there():
    adata = slides()
    with pytest.raises(
        KeyError, match=r"No obsm\['token'\] with gene tokens. Did you mean 'tokens'.*Call stfuse.pp.rank_tokens"
    ):
        run(adata, tokens_key="token")
    with pytest.raises(KeyError, match=r"No obsm\['X_image'\] with crops .* for the image_encoder. There is 'crops'"):
        run(adata, image_key="X_image")


def test_other_methods_take_no_crops():
    adata = slides()
    with pytest.raises(ValueError, match="must be two-dimensional"):
        stfuse.tl.clip(adata, image_key="crops", max_epochs=1)
