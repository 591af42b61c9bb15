"""The network beside literal versions of its parts."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.decomposition import PCA
from sklearn.linear_model import LinearRegression

from stfuse.module.losses import info_nce
from stfuse.module.mirror import Beside, Genes, Mirror, PartsLayer, RnaEncoder, heads_of
from stfuse.module.retention import hide_entries, mask_within
from stfuse.module.transmil import TransMIL

DIM = 16
OFFSETS = torch.tensor([0, 5, 6, 6, 14])


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def small(**options):
    return Mirror(6, 9, **({"dim": DIM, "n_prototypes": 20, "n_positions": 8} | options))


def test_heads_divide_every_width():
    for dim in range(8, 1025, 8):
        heads = heads_of(dim)
        assert dim % heads == 0 and 8 <= heads <= 12
        assert not any(dim % n == 0 for n in range(heads + 1, 13))
    assert heads_of(768) == 12 and heads_of(40) == 10
    assert PartsLayer(24)(torch.randn(2, 24)).shape == (2, 24)


def layer_norm(x, norm, eps):
    return (x - x.mean(1, keepdims=True)) / np.sqrt(
        x.var(1, keepdims=True) + eps
    ) * norm.weight.numpy() + norm.bias.numpy()


def linear(x, layer):
    return x @ layer.weight.numpy().T + layer.bias.numpy()


def gelu(x):
    return 0.5 * x * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


@torch.no_grad()
def test_rna_encoder_is_the_literal_network():
    """Embedding, learnt vector, two pre-norm transformer layers over the parts of the vector, norm; in numpy, sample by sample."""
    encoder = RnaEncoder(9, DIM).double().eval()
    for p in encoder.parameters():
        p.copy_(torch.randn_like(p) * 0.3)
    genes = torch.randn(4, 9, dtype=torch.float64)
    x = genes.numpy()
    first, _, norm, last = encoder.embed
    x = linear(layer_norm(gelu(linear(x, first)), norm, 1e-5), last) + encoder.gene_vector.numpy()
    *layers, final = encoder.layers
    assert len(layers) == 2
    for layer in layers:
        q, k, v = np.split(linear(layer_norm(x, layer.norm, 1e-6), layer.qkv), 3, axis=1)
        mixed = np.empty_like(x)
        for b in range(4):
            parts = [z[b].reshape(8, DIM // 8) for z in (q, k, v)]
            score = np.exp(parts[0] @ parts[1].T / math.sqrt(DIM // 8))
            mixed[b] = (score / score.sum(1, keepdims=True) @ parts[2]).ravel()
        x = x + linear(mixed, layer.out[0])
        norm, up, _, down = layer.feed.net
        assert up.out_features == 4 * DIM
        x = x + linear(gelu(linear(layer_norm(x, norm, 1e-5), up)), down)
    np.testing.assert_allclose(encoder(genes), layer_norm(x, final, 1e-6), atol=1e-10)


@torch.no_grad()
def test_beside_is_components_of_scikit_learn_plus_what_the_net_says():
    rows = torch.randn(60, 9) * torch.linspace(0.2, 3, 9) + 5
    rows = rows - rows.mean(0)
    net = RnaEncoder(4, 4).eval()
    beside = Beside(9, 4, net)
    beside.fit(rows, seed=0)
    pca = PCA(4).fit(rows.numpy())
    expected = pca.transform(rows.numpy()) / np.sqrt(pca.explained_variance_.mean())
    expected *= np.sign(pca.components_[np.arange(4), np.abs(pca.components_).argmax(1)])
    code = rows @ beside.weights
    np.testing.assert_allclose(code, expected, atol=1e-4)
    assert float(code.var(0).mean()) == pytest.approx(1, rel=1e-4)
    np.testing.assert_allclose(
        beside(rows), expected + 0.1 * net(torch.from_numpy(expected).float()).numpy(), atol=1e-4
    )


@torch.no_grad()
@pytest.mark.parametrize(("n", "width"), [(3, 2), (1, 0), (60, 6)])
def test_fewer_components_than_columns(n, width):
    """Three samples span two directions, one spans none; the other columns start at nothing and are the network's."""
    beside = Beside(6, 8, torch.nn.Identity())
    beside.weights.fill_(7)
    beside.fit(torch.randn(n, 6), seed=0)
    assert (beside.weights != 0).any(0).sum() == width and not beside.weights[:, width:].any()


def test_components_stay_as_they_are_in_training():
    beside = Beside(6, 4, torch.nn.Linear(4, 4))
    beside.fit(torch.randn(30, 6), seed=0)
    before = beside.weights.clone()
    beside(torch.randn(5, 6)).square().sum().backward()
    assert beside.weights.grad is None and beside.gain.grad is not None and torch.equal(beside.weights, before)


def test_genes_are_standardised_first():
    genes = Genes(9, DIM, linear_start=False).eval()
    rows = torch.randn(40, 9) * 3 + 2
    rows[:, 4] = 1.0  # constant: left as it is but for its mean
    genes.fit_moments(rows)
    sd = rows.std(0, correction=0)
    sd[4] = 1
    np.testing.assert_allclose(
        genes(rows[:5]).detach(), genes.encode((rows[:5] - rows.mean(0)) / sd).detach(), atol=1e-5
    )


def test_alignment_is_the_contrastive_loss_of_aligned_codes():
    module, image, rna = small(), torch.randn(7, DIM), torch.randn(7, DIM)
    a, b = (
        layer(F.normalize(code, dim=1)) for layer, code in ((module.align["image"], image), (module.align["rna"], rna))
    )
    found = module.alignment_loss(image, rna)
    assert float(found.detach()) == pytest.approx(float(info_nce(a, b, module.log_scale).detach()), rel=1e-5)
    assert float(module.log_scale.detach()) == pytest.approx(math.log(1 / 0.07))
    with torch.no_grad():
        module.log_scale.fill_(9.0)  # a scale above 100 counts as 100
        assert float(module.alignment_loss(image, rna)) == pytest.approx(
            float(info_nce(a, b, torch.tensor(9.0))), rel=1e-5
        )


@torch.no_grad()
def test_published_alignment_compares_heads_as_they_come():
    module, image, rna = small(unit=False), torch.randn(5, DIM), torch.randn(5, DIM)
    module.log_scale.fill_(math.log(250))
    a, b = (
        module.align[view](F.normalize(code, dim=1)).double().numpy() for view, code in (("image", image), ("rna", rna))
    )
    total = 0.0
    for i in range(5):
        logits = [250 * a[i] @ b[j] for j in range(5)], [250 * a[j] @ b[i] for j in range(5)]
        for row in logits:
            total += np.log(np.exp(np.array(row) - max(row)).sum()) + max(row) - row[i]
    assert float(module.alignment_loss(image, rna)) == pytest.approx(total / 10, rel=1e-4)
    assert (np.abs(np.linalg.norm(a, axis=1) - 1) > 0.01).all()


@torch.no_grad()
@pytest.mark.parametrize("unit", [True, False])
def test_fused_code_has_mean_zero_and_one_scale_a_part(unit):
    module = small(unit=unit)
    own = {"image": torch.randn(50, DIM) * 3 + 4, "rna": torch.randn(30, DIM) * torch.linspace(0.1, 9, DIM)}
    module.fit_fusion(own, {view: code[:20] for view, code in own.items()})
    shared = {view: module.shared(view, code) for view, code in own.items()}
    found = module.fuse({v: c[:10] for v, c in shared.items()}, {v: c[:10] for v, c in own.items()}).numpy()
    parts = [shared["image"], shared["rna"]] if unit else []  # aligned codes of the published network are no part
    parts += [own["image"], own["rna"]]
    assert found.shape == (10, DIM * len(parts))
    for part, code in zip(np.split(found, len(parts), axis=1), parts, strict=True):
        code = code.double().numpy()
        expected = (code - code.mean(0)) / np.sqrt(code.var(0).mean())
        np.testing.assert_allclose(part, expected[:10], atol=1e-4)


@torch.no_grad()
def test_one_view_is_told_by_the_other_as_pairs_taught():
    """Codes that are linear in each other: told as an ordinary regression on many pairs tells them."""
    module = small()
    image = torch.randn(400, DIM)
    rna = image @ torch.randn(DIM, DIM) + 2 + 0.1 * torch.randn(400, DIM)
    module.fit_fusion({"image": image, "rna": rna}, {"image": image[:300], "rna": rna[:300]})
    for view, source, target in (("rna", image, rna), ("image", rna, image)):
        expected = LinearRegression().fit(source[:300].numpy(), target[:300].numpy()).predict(source[300:].numpy())
        np.testing.assert_allclose(module.translate(view, source[300:]), expected, atol=0.05)
    # where nothing is in common, what is told is the mean
    other = torch.randn(400, DIM) + 3
    module.fit_fusion({"image": image, "rna": other}, {"image": image[:300], "rna": other[:300]})
    np.testing.assert_allclose(module.translate("rna", image[:9]), torch.full((9, DIM), 3.0), atol=0.5)


@torch.no_grad()
def test_constant_codes_do_not_divide_by_zero():
    module = small()
    flat = {view: torch.ones(6, DIM) for view in ("image", "rna")}
    module.fit_fusion(flat, flat)
    assert module.translate("rna", flat["rna"]).isfinite().all()
    assert module.fuse({v: module.shared(v, c) for v, c in flat.items()}, flat).isfinite().all()


@pytest.mark.parametrize("encoder", ["abmil", "transmil"])
def test_a_detached_target_gets_no_gradient(encoder):
    """What is to be reconstructed is hidden, so that a gradient at hidden tokens can only come from the target."""
    module = small(slide_encoder=encoder).train()
    hidden_gradient = {}
    for detach in (True, False):
        tokens = torch.randn(14, DIM, requires_grad=True)
        torch.manual_seed(3)
        module.retain_tiles(torch.randn(4, DIM), tokens, OFFSETS, 0.75, detach).backward()
        torch.manual_seed(3)
        torch.randn(4, DIM)
        hidden = mask_within(OFFSETS, 0.75)
        hidden_gradient[detach] = tokens.grad[hidden].abs().sum(1)
        assert tokens.grad[~hidden].abs().sum() > 0 and hidden.sum() == 3 + 0 + 6
    assert (hidden_gradient[True] == 0).all() and (hidden_gradient[False] > 0).all()


def test_a_detached_vector_gets_no_gradient():
    module, code = small(), torch.randn(6, DIM)
    module.retain_rna.project = torch.nn.Identity()  # after it, hidden entries are not looked at
    hidden = {}
    for detach in (True, False):
        entries = code.clone().requires_grad_(True)
        torch.manual_seed(5)
        module.retain_genes(entries, 0.75, detach).backward()
        hidden[detach] = (entries.grad == 0).sum(1)
    assert (hidden[True] == 12).all() and (hidden[False] == 0).all()


@torch.no_grad()
def test_retention_losses_by_hand():
    module, codes, tokens = small().eval(), torch.randn(4, DIM), torch.randn(14, DIM)
    torch.manual_seed(1)
    found = float(module.retain_tiles(codes, tokens, OFFSETS, 0.6, True))
    torch.manual_seed(1)
    hidden = mask_within(OFFSETS, 0.6)
    told = module.retain_image(codes, tokens, hidden, OFFSETS)
    assert found == pytest.approx(float((tokens - told)[hidden].square().mean()), rel=1e-5)
    torch.manual_seed(1)
    found = float(module.retain_genes(codes, 0.6, True))
    torch.manual_seed(1)
    hidden = hide_entries(codes, 0.6)
    assert found == pytest.approx(float((codes - module.retain_rna(codes, hidden))[hidden].square().mean()), rel=1e-5)


def test_parts_of_either_encoder():
    ours, published = small(), small(slide_encoder="transmil", linear_start=False, unit=False)
    assert isinstance(ours.slides.project, Beside) and isinstance(ours.genes.encode, Beside)
    assert isinstance(published.slides, TransMIL) and isinstance(published.genes.encode, RnaEncoder)
    tiles = torch.randn(14, 6)
    for module in (ours.eval(), published.eval()):
        code, tokens, attention = module.encode_tiles(tiles, OFFSETS)
        assert code.shape == (4, DIM) and tokens.shape == (14, DIM) and attention.shape == (14,)
    code, _, attention = ours.encode_tiles(tiles, OFFSETS)
    np.testing.assert_allclose(attention.split([5, 1, 8])[2].sum().detach(), 1, rtol=1e-5)
    again, weights = ours.slides(tiles, OFFSETS)
    assert torch.equal(code, again) and torch.equal(attention, weights)
