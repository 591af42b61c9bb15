"""Products of gated features, and the branches that make them."""

import numpy as np
import torch

from stfuse.module.bilinear import Bilinear, SelfNormalising, products


def test_products_are_a_kronecker_product():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(5, 3)), rng.normal(size=(5, 4))
    literal = np.stack([np.kron(np.append(x, 1), np.append(y, 1)) for x, y in zip(a, b, strict=True)])
    found = products(torch.from_numpy(a), torch.from_numpy(b))
    assert found.shape == (5, 4 * 5)
    np.testing.assert_allclose(found.numpy(), literal, rtol=1e-12)
    # each view also stands alone
    np.testing.assert_array_equal(found[:, 4:20:5].numpy()[:, :3], a)
    np.testing.assert_array_equal(found[:, 15:19].numpy(), b)


def test_network_is_what_it_says():
    """Written out: each view's features times a gate that sees both, multiplied, and a dense head."""
    torch.manual_seed(0)
    net = Bilinear(6, 5, 3, n_hidden=8, n_attention=4, n_gated=2).eval()
    tiles, offsets, genes = torch.randn(7, 6), torch.tensor([0, 3, 7]), torch.randn(2, 5)
    found = net(tiles, offsets, genes)
    image, rna = net.encoder(tiles, offsets)[0], net.genes(genes)

    def gated(part, own):
        h = torch.relu(own @ part.feature[0].weight.T + part.feature[0].bias)
        z = torch.sigmoid(torch.cat([image, rna], 1) @ part.gate[0].weight.T + part.gate[0].bias)
        return torch.relu((z * h) @ part.out[0].weight.T + part.out[0].bias)

    a, b = gated(net.gated_image, image), gated(net.gated_rna, rna)
    kron = torch.stack([torch.kron(torch.cat([x, torch.ones(1)]), torch.cat([y, torch.ones(1)])) for x, y in zip(a, b, strict=True)])  # fmt: skip
    dense, last = net.multiplied[1], net.fuse[0]
    multiplied = torch.relu(kron @ dense.weight.T + dense.bias)
    fused = torch.relu(torch.cat([multiplied, a, b], 1) @ last.weight.T + last.bias)
    literal = fused @ net.head.weight.T + net.head.bias
    torch.testing.assert_close(found, literal)
    found.sum().backward()
    assert all(p.grad is not None for p in net.parameters())


def test_layers_on_genes_keep_mean_and_variance():
    torch.manual_seed(0)
    net = SelfNormalising(300, 400, 0.25).train()
    rows = torch.randn(400, 300) * 7 + 3
    net.fit_moments(rows)
    out = net(rows).detach()
    assert abs(float(out.mean())) < 0.1 and 0.8 < float(out.var()) < 1.2
