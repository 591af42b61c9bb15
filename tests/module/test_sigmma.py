"""The network on cell graphs, against literal ones."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.sparse import csr_matrix

from stfuse.module.losses import info_nce
from stfuse.module.sigmma import CellGraphEncoder, PairScorer, SageLayer, Sigmma, crops_of, pool_crops, sample_edges
from stfuse.train._tile_graphs import TileGraphs, sort_graph

SIZES = [5, 1, 7]


def problem(seed=0, d=4):
    """Three tiles with edges and pairs drawn at random, in a random order of rows."""
    rng = np.random.default_rng(seed)
    tile = rng.permutation(np.repeat(np.arange(3), SIZES))
    n = tile.size
    same = tile[:, None] == tile
    edges = np.triu(same & (rng.random((n, n)) < 0.4), 1)
    added = []
    taken = edges.copy()
    for _ in range(2):
        pairs = np.triu(same & ~taken & (rng.random((n, n)) < 0.5), 1)
        taken |= pairs
        added.append(pairs)
    features = rng.standard_normal((n, d)).astype(np.float32)
    return tile, edges | edges.T, added, features


def tensors(tile, edges, added, features, image=None):
    order = np.argsort(tile, kind="stable")
    offsets = np.r_[0, np.cumsum(np.bincount(tile, minlength=3))].astype(np.int64)
    links, pairs = sort_graph(csr_matrix(edges), [csr_matrix(a) for a in added], order, offsets)
    image = torch.zeros(3, 3, 2) if image is None else image
    empty = torch.empty(0, dtype=torch.int64)
    return TileGraphs(
        image, torch.from_numpy(features[order]), torch.from_numpy(offsets), links, pairs, empty, empty
    ), order


def dense_of(messages, n):
    matrix = torch.zeros(n, n)
    weight = torch.ones(messages.source.numel()) if messages.weight is None else messages.weight
    matrix[messages.target, messages.source] = weight
    return matrix


def test_a_batch_holds_the_graphs_of_its_tiles_only():
    tile, edges, added, features = problem()
    data, order = tensors(tile, edges, added, features)
    chosen = torch.tensor([2, 0])
    rows, graph = data.take(chosen)
    mine = np.concatenate([order[tile[order] == t] for t in chosen.tolist()])
    np.testing.assert_array_equal(rows, features[mine])
    assert graph.tiles.tolist() == [0, 7, 12]
    np.testing.assert_array_equal(dense_of(graph.edges, 12) > 0, edges[np.ix_(mine, mine)])
    for pairs, wanted in zip(graph.added, added, strict=True):
        both = (wanted | wanted.T)[np.ix_(mine, mine)]
        np.testing.assert_array_equal(dense_of(pairs.messages, 12) > 0, both)
        ends = {frozenset(pair) for pair in pairs.ends.tolist()}
        assert ends == {frozenset(pair) for pair in np.argwhere(both).tolist()} and len(ends) == len(pairs.ends)
        # each message knows its pair, and the message the other way
        for m, p in enumerate(pairs.pair.tolist()):
            assert {int(pairs.messages.source[m]), int(pairs.messages.target[m])} == set(pairs.ends[p].tolist())
        back = pairs.messages.reverse
        assert torch.equal(pairs.messages.source[back], pairs.messages.target)
        assert torch.equal(back[back], torch.arange(back.numel()))


def test_a_layer_is_the_formula():
    tile, edges, added, features = problem(d=6)
    data, _ = tensors(tile, edges, added, features)
    cells, graph = data.take(torch.arange(3))
    layer = SageLayer(6, 0.0).eval()
    matrix = dense_of(graph.edges, 13)
    mean = matrix @ cells / matrix.sum(1, keepdim=True).clamp(min=1e-6)
    wanted = cells + F.relu(layer.norm(layer.own(cells) + mean @ layer.near.weight.T))
    torch.testing.assert_close(layer(cells, [graph.edges]), wanted)


@pytest.mark.parametrize("layer", ["sage", "gatv2"])
@pytest.mark.parametrize("addition", ["sampled", "all", "none"])
def test_the_order_of_cells_and_tiles_does_not_matter(layer, addition):
    tile, edges, added, features = problem(seed=3)
    torch.manual_seed(0)
    module = CellGraphEncoder(4, 8, layer=layer, edge_addition=addition).eval()
    shuffle = np.random.default_rng(1).permutation(13)
    data, order = tensors(tile, edges, added, features)
    other_added = [(a | a.T)[np.ix_(shuffle, shuffle)] for a in added]
    other, other_order = tensors(
        tile[shuffle], edges[np.ix_(shuffle, shuffle)], [np.triu(a, 1) for a in other_added], features[shuffle]
    )
    found = [np.empty((13, 8)) for _ in range(2)]
    with torch.no_grad():
        for target, (graphs, place) in zip(found, ((data, order), (other, shuffle[other_order])), strict=True):
            target[place] = module(*graphs.take(torch.arange(3)))[0][-1]
        alone = module(*data.take(torch.tensor([1])))[0][-1]
    np.testing.assert_allclose(found[0], found[1], atol=1e-5)
    np.testing.assert_allclose(found[0][order[5:6]], alone, atol=1e-5)


def test_without_a_graph_cells_hear_nothing():
    tile, edges, added, features = problem()
    data, _ = tensors(tile, edges, added, features)
    module = CellGraphEncoder(4, 8, graph=False).eval()
    cells, graph = data.take(torch.arange(3))
    codes, weights = module(cells, graph)
    alone, _ = module(cells[:1], graph)
    torch.testing.assert_close(codes[-1][:1], alone[-1])
    assert not weights and not len(module.scorers)


def test_a_score_is_the_network_on_both_ends_in_both_orders():
    scorer = PairScorer(3, 5)
    cells = torch.randn(4, 3)
    ends = torch.tensor([[0, 1], [2, 3], [3, 0]])

    def literal(u, v):
        weight = torch.cat([scorer.first.weight, scorer.second.weight], 1)
        return F.relu(weight @ torch.cat([u, v]) + scorer.first.bias)

    wanted = [scorer.out(0.5 * (literal(cells[u], cells[v]) + literal(cells[v], cells[u])))[0] for u, v in ends]
    torch.testing.assert_close(scorer(cells, ends), torch.stack(wanted))
    torch.testing.assert_close(scorer(cells, ends), scorer(cells, ends.flip(1)))


def test_edges_are_drawn_with_their_probability_and_a_gradient():
    torch.manual_seed(0)
    logits = torch.tensor([-3.0, -1.0, 0.0, 2.0], requires_grad=True)
    drawn = torch.stack([sample_edges(logits, 0.5, None) for _ in range(4000)])
    # but for rounding
    assert set(drawn.detach().round(decimals=5).unique().tolist()) <= {0.0, 1.0}
    torch.testing.assert_close(drawn.mean(0).detach(), logits.sigmoid().detach(), atol=0.03, rtol=0)
    (slope,) = torch.autograd.grad(drawn.sum(), logits)
    assert (slope > 0).all()


def test_scorers_learn_from_the_loss():
    tile, edges, added, features = problem(seed=5)
    data, _ = tensors(tile, edges, added, features)
    torch.manual_seed(0)
    module = Sigmma(2, 4, embed_dim=6, n_hidden=8).train()
    cells, graph = data.take(torch.arange(3))
    rna, _, weights = module.encode_rna(cells, graph)
    losses = module.losses(module.encode_image(torch.randn(3, 3, 2)), rna)
    torch.stack(losses).sum().backward()
    assert all(set(w.detach().round(decimals=5).unique().tolist()) <= {0.0, 1.0} for w in weights)
    for scorer in module.cells.scorers:
        for parameter in scorer.parameters():
            assert parameter.grad is not None
        assert scorer.first.weight.grad.abs().sum() > 0
    assert (module.log_scale.grad != 0).all()


def test_weights_of_coding_are_the_probable_edges():
    tile, edges, added, features = problem(seed=6)
    data, _ = tensors(tile, edges, added, features)
    torch.manual_seed(0)
    module = CellGraphEncoder(4, 8).eval()
    with torch.no_grad():
        for scorer in module.scorers:
            scorer.out.weight *= 20
            scorer.out.bias.zero_()
        codes, weights = module(*(batch := data.take(torch.arange(3))))
        chance = module.probabilities(codes, batch[1])
    for weight, p in zip(weights, chance, strict=True):
        assert torch.equal(weight > 0, p > 0.5)
    assert 0 < torch.cat(weights).mean() < 1


def test_a_code_of_a_tile_is_a_weighted_mean_of_its_cells():
    tile, edges, added, features = problem(seed=2)
    data, _ = tensors(tile, edges, added, features)
    module = Sigmma(2, 4, scales=(0, 2), embed_dim=6, n_hidden=8).eval()
    cells, graph = data.take(torch.arange(3))
    codes, of_cells, _ = module.encode_rna(cells, graph)
    assert len(codes) == 2 and len(of_cells) == 3
    for number, code, attend, project in zip((0, 2), codes, module.attend, module.rna, strict=True):
        start = 0
        for row, size in enumerate(SIZES):
            h = of_cells[number][start : start + size]
            share = attend(h).softmax(0)
            torch.testing.assert_close(code[row], project(share @ h), atol=1e-5, rtol=1e-4)
            start += size


def test_the_loss_of_a_scale_is_that_of_its_pairs():
    module = Sigmma(2, 4, embed_dim=6)
    image, rna = ([torch.randn(5, 6) for _ in range(3)] for _ in range(2))
    for loss, a, b in zip(module.losses(image, rna), image, rna, strict=True):
        torch.testing.assert_close(loss, info_nce(a, b, torch.tensor(1 / 0.07).log()), atol=1e-4, rtol=1e-4)


def test_crops_are_cut_row_by_row():
    tiles = torch.arange(2 * 3 * 8 * 8, dtype=torch.float32).reshape(2, 3, 8, 8)
    found = crops_of(tiles, [4, 2, 1], 2)
    assert found.shape == (2, 21, 3, 2, 2)
    # crop 6 of the smallest is in row 1, column 2
    torch.testing.assert_close(found[1, 6], tiles[1, :, 2:4, 4:6])
    halves = F.interpolate(tiles[:1, :, :4, 4:], size=(2, 2), mode="bilinear", antialias=True, align_corners=False)
    torch.testing.assert_close(found[0, 17], halves[0])
    pooled = pool_crops(found.mean((3, 4)), [4, 2, 1])
    torch.testing.assert_close(pooled[0, 0], found[0, :16].mean((0, 2, 3)))
    assert pooled.shape == (2, 3, 3)


def test_an_image_encoder_sees_the_crops():
    torch.manual_seed(0)
    encoder = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 4 * 4, 5))
    module = Sigmma(5, 4, embed_dim=6, image_encoder=encoder, crop_sides=[4, 2, 1], crop_size=4)
    tiles = torch.randint(0, 255, (2, 3, 16, 16), dtype=torch.uint8)
    codes = module.encode_image(tiles)
    crops = crops_of(tiles.float() / 255, [4, 2, 1], 4)
    macro = module.image[2](encoder(crops[:, 20]))
    torch.testing.assert_close(codes[2], macro)
    torch.stack(codes).sum().backward()
    assert encoder[1].weight.grad.abs().sum() > 0
