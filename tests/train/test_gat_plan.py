import numpy as np
import pytest
import torch
from scipy.sparse import csr_matrix, random_array

from stfuse._neighbors import section_neighbors
from stfuse.module.gat import GraphAttention
from stfuse.train._fit import fit
from stfuse.train._gat_plan import ExpressionGraph, GraphPlan, MaskSettings, PatchBatches, compact_order

N, GENES = 120, 9


def _graph(n=N, n_neighbors=4, n_sections=2, counts=False, seed=0):
    rng = np.random.default_rng(seed)
    spatial, section = rng.random((n, 2)), rng.integers(0, n_sections, n)
    table = section_neighbors(spatial, section, n_neighbors)
    table[table == np.arange(n)[:, None]] = -1
    values = csr_matrix(random_array((n, GENES), density=0.6, rng=rng), dtype=np.float32)
    whole = csr_matrix(np.ceil(5 * values.toarray())) if counts else None
    return ExpressionGraph(values, whole, table, compact_order(spatial, section))


def _plan(graph, held_out=(), settings=MaskSettings(), **kwargs):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = GraphAttention(GENES, **({"n_latent": 3, "n_hidden": 8, "n_heads": 2} | kwargs))
    return GraphPlan(module, graph, np.array(held_out, dtype=np.int64), settings, seed=0)


def _run(plan, batches, **kwargs):
    return fit(plan, batches=batches, **({"max_epochs": 2, "device": "cpu", "progress": False} | kwargs))


def test_the_order_keeps_sections_together_and_neighbours_near():
    rng = np.random.default_rng(0)
    spatial, section = rng.random((4000, 2)) * [3, 1], rng.integers(0, 2, 4000)
    order = compact_order(spatial, section)
    np.testing.assert_array_equal(np.sort(order), np.arange(4000))
    assert (np.diff(section[order]) >= 0).all()
    patches = spatial[order][section[order] == 0][:1920].reshape(-1, 64, 2)
    random = rng.permutation(spatial)[:1920].reshape(-1, 64, 2)
    assert patches.std(axis=1).mean() < 0.3 * random.std(axis=1).mean()


def test_the_order_of_one_place():
    np.testing.assert_array_equal(np.sort(compact_order(np.zeros((5, 2)), np.zeros(5, int))), np.arange(5))


@pytest.mark.parametrize("n_layers", [1, 2, 3])
def test_a_block_holds_all_that_reaches_its_rows(n_layers):
    graph, rows = _graph(), np.array([7, 3, 50])
    nodes, hops = graph.block(rows, n_layers)
    np.testing.assert_array_equal(nodes[:3], rows)
    assert len(set(nodes)) == len(nodes) and len(hops) == n_layers and hops[-1].n_to == 3
    wanted = set(rows)
    for hop in hops[::-1]:
        assert set(nodes[: hop.n_to]) == wanted
        edges = {(int(nodes[a]), int(nodes[b])) for a, b in hop.edges.T.numpy()}
        assert edges == {(j, i) for i in wanted for j in [i, *graph.neighbors[i][graph.neighbors[i] >= 0]]}
        assert hop.edges.shape[1] == len(edges)
        wanted |= {j for j, _ in edges}
    assert set(nodes) == wanted


def test_an_epoch_deals_every_row_once_and_none_that_is_held_out(monkeypatch):
    graph, held_out = _graph(), np.array([4, 5, 100])
    dealt = []
    monkeypatch.setattr(ExpressionGraph, "batch", lambda self, rows, n_layers: dealt.append(rows) or {"rows": rows})
    batches = PatchBatches(graph, held_out, batch_size=50, n_layers=2, seed=0)
    epochs = [np.concatenate([b["rows"] for b in batches]) for _ in range(2)]
    assert len(batches) == 3 and max(map(len, dealt)) <= 50
    for epoch in epochs:
        np.testing.assert_array_equal(np.sort(epoch), np.setdiff1d(np.arange(N), held_out))
    assert not np.array_equal(*epochs)


def test_processes_share_an_epoch(monkeypatch):
    monkeypatch.setattr(ExpressionGraph, "batch", lambda self, rows, n_layers: {"rows": rows})
    seen = []
    for rank in range(2):
        batches = PatchBatches(_graph(), np.zeros(0, int), batch_size=30, n_layers=2, seed=3)
        batches.split(rank, 2)
        seen += [b["rows"] for b in batches]
    np.testing.assert_array_equal(np.sort(np.concatenate(seen)), np.arange(N))


@pytest.mark.parametrize("fraction", [0.1, 0.4, 0.9])
def test_the_asked_fraction_is_hidden_and_only_that_is_predicted(fraction, monkeypatch):
    graph = _graph()
    plan, masks, sizes = _plan(graph, settings=MaskSettings(fraction)), [], []
    encode, errors = plan.module.encode, plan.module.errors

    def spy_encode(values, hops, hidden=None):
        masks.append(hidden)
        return encode(values, hops, hidden)

    def spy_errors(codes, values, counts, hidden):
        out = errors(codes, values, counts, hidden)
        sizes.append((out.numel(), int(masks[-1][: len(codes)].sum())))
        assert torch.equal(hidden, masks[-1][: len(codes)])
        return out

    monkeypatch.setattr(plan.module, "encode", spy_encode)
    monkeypatch.setattr(plan.module, "errors", spy_errors)
    _run(plan, PatchBatches(graph, plan.rows, 50, 2, 0), max_epochs=4)
    hidden = torch.cat([m.flatten() for m in masks]).float()
    assert abs(hidden.mean() - fraction) < 4 * (fraction * (1 - fraction) / hidden.numel()) ** 0.5
    assert all(a == b for a, b in sizes)
    assert not torch.equal(masks[0][:30], masks[1][:30])


def test_no_gradient_from_what_is_not_hidden():
    """The target enters through hidden entries only."""
    graph = _graph()
    plan = _plan(graph)
    batch = graph.batch(np.arange(40), 2)
    values = batch["values"].requires_grad_()
    hidden = torch.rand(values.shape, generator=torch.Generator().manual_seed(0)) < 0.4
    codes = plan.module.encode(values.detach(), batch["hops"], hidden)
    plan.module.errors(codes.detach(), values[:40], None, hidden[:40]).sum().backward()
    assert ((values.grad != 0) <= (hidden & (torch.arange(len(values)) < 40)[:, None])).all()


def test_held_out_scores_are_fixed_and_those_of_a_loop():
    graph, rows = _graph(counts=True), [3, 60, 90, 91]
    plan = _plan(graph, rows, loss="nb")
    plan.train()
    one = plan.held_out()
    np.testing.assert_array_equal(one, plan.held_out())
    assert plan.watched() and plan.module.training and one.shape == (4,)
    module = plan.module.eval()
    batch = graph.batch(plan.rows, 2)
    hidden = torch.rand(batch["values"].shape, generator=torch.Generator().manual_seed(0)) < 0.4
    with torch.no_grad():
        codes = module.encode(batch["values"], batch["hops"], hidden)
        expected = [
            module.errors(codes[i, None], batch["values"][i, None], batch["counts"][i, None], hidden[i, None]).mean()
            for i in range(4)
        ]
    np.testing.assert_allclose(one, expected, rtol=1e-5)


def test_training_stops_and_keeps_the_best_epoch(monkeypatch):
    scores = iter([3.0, 2.0, 1.0, 1.5, 1.2, 1.1])
    graph = _graph()
    plan = _plan(graph, [0, 1, 2])
    monkeypatch.setattr(plan, "held_out", lambda: np.full(3, next(scores)))
    history, keep = _run(plan, PatchBatches(graph, plan.rows, 50, 2, 0), max_epochs=50, patience=2)
    assert len(history) == 4 and keep.best_epoch == 2 and keep.best.mean() == 1


def test_nothing_held_out_is_not_watched():
    graph = _graph()
    plan = _plan(graph)
    history, keep = _run(plan, PatchBatches(graph, plan.rows, 500, 2, 0), patience=2)
    assert keep is None and list(history.columns) == ["masked"]


def test_training_learns():
    """Genes that are copies of each other tell each other's hidden values."""
    rng = np.random.default_rng(0)
    base = _graph()
    x = np.repeat(rng.normal(size=(N, 1)), GENES, axis=1).astype(np.float32)
    graph = ExpressionGraph(csr_matrix(x), None, base.neighbors, base.order)
    history, _ = _run(
        _plan(graph, settings=MaskSettings(lr=1e-2)), PatchBatches(graph, np.zeros(0, int), 60, 2, 0), max_epochs=40
    )
    assert history["masked"].iloc[-1] < 0.3 * history["masked"].iloc[0]


def test_the_held_out_loss_in_the_history_is_scored_once_an_epoch(monkeypatch):
    graph, calls = _graph(), []
    plan = _plan(graph, [0, 1, 2])
    score = plan._score
    monkeypatch.setattr(plan, "_score", lambda rows, generator: calls.append(1) or score(rows, generator))
    history, keep = _run(plan, PatchBatches(graph, plan.rows, 50, 2, 0), max_epochs=3, patience=10)
    assert len(calls) == 4  # the start and three epochs
    assert keep.best.mean() == pytest.approx(history["held_out_masked"].min())
