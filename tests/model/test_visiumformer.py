"""Visiumformer: what it learns, how it is stored, and weights from elsewhere."""

import numpy as np
import pandas as pd
import pytest
import torch
from anndata import AnnData
from safetensors.torch import save_file
from scipy.sparse import csr_matrix
from torch import nn

from stfuse.model import CLIP, Visiumformer
from stfuse.pp import rank_tokens

SIZES = {"d_model": 16, "n_layers": 2, "n_heads": 4, "d_ff": 24, "context": 20}
GENES = 30


def two_tissues(n=240, seed=0, empty=(5, 17)):
    """Half of the genes belong to either kind of observation, and are in an order of their own there."""
    rng = np.random.default_rng(seed)
    kind = np.arange(n) % 2
    level = np.tile(np.exp(np.linspace(0, 3, GENES // 2)), 2)
    level = np.where(np.arange(GENES) % 2 == kind[:, None], level, 0.02)
    counts = rng.poisson(level * rng.uniform(0.5, 2, (n, 1)))
    counts[list(empty)] = 0
    adata = AnnData(
        csr_matrix(counts.astype(np.float32)),
        obs=pd.DataFrame({"kind": kind}, index=[f"spot{i}" for i in range(n)]),
        var=pd.DataFrame(index=[f"g{i}" for i in range(GENES)]),
    )
    with pytest.warns(UserWarning, match="no counts"):
        rank_tokens(adata, n_tokens=24)
    return adata


def make(adata, **sizes):
    Visiumformer.setup_anndata(adata)
    return Visiumformer(adata, **(SIZES | sizes))


@pytest.fixture(scope="module")
def adata():
    return two_tissues()


@pytest.fixture(scope="module")
def trained(adata):
    model = make(adata)
    model.train(max_epochs=12, batch_size=16, lr=5e-3, device="cpu", progress=False)
    return model


def test_it_learns_which_genes_go_together(adata, trained):
    loss = trained.history["loss"]["loss"].to_numpy()
    assert loss[0] < 1.2 * np.log(GENES)
    # the other half of the genes is out of the question
    assert loss[-1] < np.log(GENES / 2) + 0.1 and loss[-1] < loss[0] - 0.5
    codes = trained.get_latent_representation()
    has = adata.obsm["tokens"].any(1)
    assert codes.dtype == np.float32 and codes.shape == (240, 16)
    np.testing.assert_array_equal(np.isnan(codes).all(1), ~has)
    np.testing.assert_array_equal(np.isfinite(codes).all(1), has)
    kind = adata.obs["kind"].to_numpy()
    centers = np.stack([codes[has & (kind == k)].mean(0) for k in (0, 1)])
    nearest = ((codes[has, None] - centers) ** 2).sum(2).argmin(1)
    assert (nearest == kind[has]).mean() > 0.95


def test_seeds_repeat(adata):
    codes = []
    for seed in (1, 1, 2):
        model = make(adata)
        model.train(max_epochs=1, seed=seed, device="cpu", progress=False)
        codes.append(model.get_latent_representation())
    np.testing.assert_array_equal(codes[0], codes[1])
    assert np.nanmax(np.abs(codes[0] - codes[2])) > 0.01


def test_how_many_at_a_time_does_not_matter(trained):
    expected = trained.get_latent_representation()
    for batch_size in (7, 1000):
        np.testing.assert_allclose(trained.get_latent_representation(batch_size=batch_size), expected, atol=1e-5)


def test_the_code_is_the_module_s(adata, trained):
    codes = trained.get_latent_representation()
    for i in (0, 1, 50):
        tokens = torch.from_numpy(adata.obsm["tokens"][i : i + 1])
        with torch.no_grad():
            np.testing.assert_allclose(codes[i], trained.module.encode(tokens)[0], atol=1e-5)


def test_more_training_goes_on_from_what_there_is(adata):
    model = make(adata)
    train = {"max_epochs": 4, "batch_size": 16, "lr": 5e-3, "device": "cpu", "progress": False}
    with pytest.raises(RuntimeError, match="not trained yet: call .train"):
        model.train(**train, resume=True)
    model.train(**train)
    first = model.history["loss"]["loss"].to_numpy()
    model.train(**train, resume=True)
    again = model.history["loss"]["loss"].to_numpy()
    assert again[0] < first[0] - 0.2
    model.train(**train)
    np.testing.assert_array_equal(model.history["loss"]["loss"], first)


@pytest.mark.parametrize("precision", ["bf16-mixed", "64-true"])
def test_precision(adata, precision):
    model = make(adata)
    model.train(max_epochs=1, precision=precision, device="cpu", progress=False)
    codes = model.get_latent_representation()
    assert codes.dtype == np.float32 and np.isfinite(codes).any(1).sum() == 238


def test_compiled_is_the_same(adata, monkeypatch):
    # traced as ever, but run by torch: the compiler takes minutes
    asked = []
    whole = torch.compile
    monkeypatch.setattr(torch, "compile", lambda f, **options: asked.append(1) or whole(f, backend="eager", **options))
    codes = []
    for compiled in (False, True):
        model = make(adata, n_layers=1)
        model.train(max_epochs=1, compile=compiled, device="cpu", progress=False)
        codes.append(model.get_latent_representation())
        assert len(asked) == compiled and set(model.module.state_dict()) == set(
            make(adata, n_layers=1)._build(model._architecture()).state_dict()
        )
    np.testing.assert_allclose(codes[0], codes[1], atol=1e-4)


# -- stored, and new data --------------------------------------------------------------------------------------------


def test_saved_and_loaded(adata, trained, tmp_path):
    trained.save(tmp_path / "model")
    loaded = Visiumformer.load(tmp_path / "model")
    expected = trained.get_latent_representation()
    np.testing.assert_array_equal(loaded.get_latent_representation(adata), expected)
    np.testing.assert_array_equal(loaded.gene_means.to_numpy(), trained.gene_means.to_numpy())
    with pytest.raises(ValueError, match="loaded without data: pass adata="):
        loaded.get_latent_representation()
    attached = Visiumformer.load(tmp_path / "model", adata)
    np.testing.assert_array_equal(attached.get_latent_representation(), expected)
    with pytest.raises(ValueError, match="holds a Visiumformer model"):
        CLIP.load(tmp_path / "model")
    # new data by what the model knows
    new = two_tissues(40, seed=3, empty=(2,))
    order = np.random.default_rng(0).permutation(GENES)
    with pytest.raises(ValueError, match="made with another vocabulary.*gene_means=model.gene_means"):
        loaded.get_latent_representation(new)
    codes = []
    for other in (new, new[:, order].copy()):
        with pytest.warns(UserWarning, match="no counts"):
            rank_tokens(other, n_tokens=24, gene_means=loaded.gene_means)
        codes.append(loaded.get_latent_representation(other))
    np.testing.assert_array_equal(codes[0], codes[1])
    kind = new.obs["kind"].to_numpy()[np.isfinite(codes[0]).all(1)]
    there = codes[0][np.isfinite(codes[0]).all(1)]
    apart = np.linalg.norm(there[:, None] - there[None], axis=2)
    same = kind[:, None] == kind
    assert apart[~same].mean() > 1.5 * apart[same].mean()


def test_no_tokens_at_all(trained):
    new = AnnData(obs=pd.DataFrame(index=["a", "b"]))
    new.obsm["tokens"] = np.zeros((2, 9), np.int32)
    means = trained.gene_means
    new.uns["tokens"] = {"vocabulary": means.index.to_numpy(str), "means": means.to_numpy()}
    assert np.isnan(trained.get_latent_representation(new)).all()


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"preset": "large"}, ValueError, "preset must be one of 'small', 'base'"),
        ({"n_heads": 3}, ValueError, "d_model must be a multiple of n_heads, got 16 and 3"),
        ({"n_layers": 0}, ValueError, "n_layers must be a whole number of at least 1"),
        ({"context": 2.5}, TypeError, "context must be a whole number"),
    ],
)
def test_sizes(adata, arguments, error, message):
    with pytest.raises(error, match=message):
        make(adata, **arguments)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"max_epochs": 0}, ValueError, "max_epochs must be"),
        ({"batch_size": 0}, ValueError, "batch_size must be"),
        ({"mask_fraction": 0}, ValueError, "mask_fraction must be"),
        ({"mask_fraction": 1.5}, ValueError, "mask_fraction must be"),
        ({"lr": -1}, ValueError, "lr must be"),
        ({"warmup": 2}, ValueError, "warmup must be"),
        ({"compile": 1}, TypeError, "compile must be True or False"),
        ({"device": "tpu"}, ValueError, "device must be"),
        ({"lr": 1e30, "max_epochs": 2}, RuntimeError, "diverged"),
    ],
    ids=lambda value: "" if not isinstance(value, dict) else "-".join(f"{k} {v}" for k, v in value.items()),
)
def test_a_training_that_fails_changes_nothing(adata, trained, arguments, error, message):
    before = dict(vars(trained))
    with pytest.raises(error, match=message):
        trained.train(**arguments, progress=False)
    assert all(vars(trained)[name] is value for name, value in before.items())


def test_too_few_observations():
    adata = two_tissues(20, empty=range(1, 20))
    with pytest.raises(ValueError, match="Only 1 of 20 observations have tokens"):
        make(adata).train()


def test_a_model_without_data():
    with pytest.raises(KeyError, match="No obsm.*rank_tokens"):
        Visiumformer.setup_anndata(AnnData(np.ones((3, 3))))


# -- weights from elsewhere ------------------------------------------------------------------------------------------


class Elsewhere(nn.Module):
    """The published layout: torch's encoder, some reserved numbers before the genes, and heads for other tasks."""

    def __init__(self, n_rows, reserved):
        super().__init__()
        self.encoder_layer = nn.TransformerEncoderLayer(16, 4, 24, dropout=0.0, batch_first=True, layer_norm_eps=1e-12)
        self.encoder = nn.TransformerEncoder(self.encoder_layer, 2, enable_nested_tensor=False)
        self.embeddings = nn.Embedding(n_rows + 5, 16, padding_idx=1)
        self.positional_embedding = nn.Embedding(20, 16)
        self.classifier_head = nn.Linear(16, n_rows)
        self.pooler_head = nn.Linear(16, 16)
        self.reserved = reserved

    def code(self, genes):
        """Mean of the last layer for one observation's genes, in order."""
        x = self.embeddings(torch.tensor([genes]) + self.reserved) + self.positional_embedding.weight[: len(genes)]
        return self.encoder(x)[0].mean(0).detach().numpy()


@pytest.fixture
def elsewhere(tmp_path):
    torch.manual_seed(3)
    network = Elsewhere(GENES + 6 + 4, 6).eval()
    for parameter in network.encoder.parameters():
        nn.init.normal_(parameter, std=0.3)  # the layers of torch begin alike
    # its genes: four that are not here, and ours backwards
    genes = [None] * 6 + [f"x{i}" for i in range(4)] + [f"g{i}" for i in reversed(range(GENES))]
    save_file(network.state_dict(), tmp_path / "weights.safetensors")
    torch.save({"state_dict": {f"model.{k}": v for k, v in network.state_dict().items()}}, tmp_path / "weights.pt")
    return network, genes, tmp_path


@pytest.mark.parametrize("file", ["weights.safetensors", "weights.pt"])
def test_published_layout_with_genes_in_another_order(adata, elsewhere, file):
    network, genes, folder = elsewhere
    model = make(adata)
    model.load_weights(folder / file, "published", genes=genes)
    codes = model.get_latent_representation()
    place = {gene: row - 6 for row, gene in enumerate(genes) if gene}
    names = adata.uns["tokens"]["vocabulary"]
    for i in (0, 1, 33):
        tokens = adata.obsm["tokens"][i, :20]
        expected = network.code([place[names[t - 2]] for t in tokens if t])
        np.testing.assert_allclose(codes[i], expected, atol=1e-5)
    module = model.module
    torch.testing.assert_close(module.embedding.weight[1], network.embeddings.weight[0])
    hidden = torch.randn(3, 16)
    theirs = network.classifier_head(hidden)[:, [place[name] + 6 for name in names]]
    torch.testing.assert_close(module.logits(hidden), theirs)


def test_weights_of_our_own_names(adata, trained, tmp_path):
    save_file(trained.module.state_dict(), tmp_path / "own.safetensors")
    model = make(adata)
    model.load_weights(tmp_path / "own.safetensors")
    np.testing.assert_array_equal(model.get_latent_representation(), trained.get_latent_representation())
    model.save(tmp_path / "saved")
    again = Visiumformer.load(tmp_path / "saved").get_latent_representation(adata)
    np.testing.assert_array_equal(again, trained.get_latent_representation())
    # by a dict of names and beginnings, and by a function; without a head
    state = {f"net/{k}": v for k, v in trained.module.state_dict().items() if not k.startswith("head")}
    save_file(state, tmp_path / "other.safetensors")
    for names in (
        {"net/embedding.weight": "embedding.weight", "net/layers.": "layers.", "net/positions.": "positions."},
        lambda name: name[4:],
    ):
        model = make(adata)
        model.load_weights(tmp_path / "other.safetensors", names)
        np.testing.assert_array_equal(model.get_latent_representation(), trained.get_latent_representation())


def test_genes_that_the_file_does_not_have(adata, elsewhere):
    network, genes, folder = elsewhere
    model = make(adata)
    fewer = [None if gene in {"g3", "g4"} else gene for gene in genes]
    with pytest.warns(UserWarning, match="2 of the vocabulary's 30 genes are not in genes="):
        model.load_weights(folder / "weights.safetensors", "published", genes=fewer)
    known = network.embeddings.weight[[row for row, gene in enumerate(fewer) if gene and gene.startswith("g")]]
    torch.testing.assert_close(model.module.embedding.weight[2 + 3], known.mean(0))


def test_weights_that_do_not_fit(adata, trained, elsewhere):
    _, genes, folder = elsewhere
    before, file = dict(vars(trained)), folder / "weights.safetensors"
    for names, options, message in [
        (None, {}, "missing: embedding.weight, positions.weight.*unexpected: classifier_head.bias"),
        ("published", {}, r"of another shape: embedding.weight \(45x16, not 32x16\)"),
        ("torch", {}, "names must be 'published'"),
        ("published", {"genes": ["a", "b"]}, "Only 0 of the vocabulary's 30 genes"),
        ("published", {"genes": [*genes, "g3"]}, "names a gene twice: 'g3'"),
        ("published", {"genes": [None] * 9 + genes}, "the file's embedding.weight has 45 rows"),
        ("published", {"genes": genes, "mask_row": 45}, "mask_row must be"),
        (lambda name: "same", {}, "two tensors of the file the name 'same'"),
    ]:
        with pytest.raises(ValueError, match=message):
            trained.load_weights(file, names, **options)
    with pytest.raises(TypeError, match="names must be 'published', a dict, a function or None, got int"):
        trained.load_weights(file, 3)
    with pytest.raises(FileNotFoundError):
        trained.load_weights(folder / "nowhere.safetensors")
    wide = make(adata, d_ff=25)
    with pytest.raises(ValueError, match=r"layers.0.linear1.weight \(24x16, not 25x16\)"):
        wide.load_weights(file, "published", genes=genes)
    assert wide.module is None
    torch.save({"weights": trained}, folder / "code.pt")
    with pytest.raises(ValueError, match="more than tensors"):
        trained.load_weights(folder / "code.pt")
    assert all(vars(trained)[name] is value for name, value in before.items())
