"""Weighted sums over neighbours, forth and back, against a matrix."""

import numpy as np
import pytest
import torch

from stfuse.module.messages import CHUNK, Messages


def messages_of(adjacency: np.ndarray, weight: torch.Tensor | None = None) -> Messages:
    """Messages of a symmetric pattern, by a literal loop."""
    n = len(adjacency)
    pairs = [(t, s) for t in range(n) for s in range(n) if adjacency[t, s]]
    number = {pair: i for i, pair in enumerate(pairs)}
    offsets = [sum(t < row for t, _ in pairs) for row in range(n + 1)]
    reverse = [number[s, t] for t, s in pairs]
    source = [s for _, s in pairs]
    return Messages(torch.tensor(source), torch.tensor(offsets), torch.tensor(reverse), weight)


def pattern(n: int, share: float, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    upper = np.triu(rng.random((n, n)) < share, 1)
    return upper | upper.T


@pytest.mark.parametrize("weighted", [False, True])
def test_a_sum_is_a_matrix_product_and_so_is_its_gradient(weighted):
    adjacency = pattern(12, 0.3)
    adjacency[3] = adjacency[:, 3] = False  # a cell that hears nothing
    weight = torch.rand(int(adjacency.sum()), dtype=torch.float64, requires_grad=True) if weighted else None
    messages = messages_of(adjacency, weight)
    cells = torch.randn(12, 5, dtype=torch.float64, requires_grad=True)
    matrix = torch.zeros(12, 12, dtype=torch.float64)
    there = torch.from_numpy(np.argwhere(adjacency))
    matrix = matrix.index_put(
        (there[:, 0], there[:, 1]), torch.ones(len(there), dtype=torch.float64) if weight is None else weight
    )
    torch.testing.assert_close(messages.gather(cells), matrix @ cells)
    torch.testing.assert_close(messages.total(cells), matrix.sum(1))
    inputs = [cells] if weight is None else [cells, weight]
    probe = torch.randn(12, 5, dtype=torch.float64)
    found = torch.autograd.grad((messages.gather(cells) * probe).sum(), inputs, retain_graph=True)
    wanted = torch.autograd.grad(((matrix @ cells) * probe).sum(), inputs)
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other)
    assert found[0][3].abs().sum() == 0


def test_the_gradient_is_that_of_finite_differences():
    adjacency = pattern(6, 0.6, seed=1)
    cells = torch.randn(6, 2, dtype=torch.float64, requires_grad=True)
    weight = torch.rand(int(adjacency.sum()), dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda c, w: messages_of(adjacency, w).gather(c), (cells, weight))


def test_many_messages_are_looked_at_in_parts():
    n = int(np.sqrt(CHUNK)) + 20
    adjacency = pattern(n, 1.0)
    weight = torch.rand(int(adjacency.sum()), requires_grad=True)
    assert weight.numel() > CHUNK
    cells = torch.randn(n, 3)
    messages = messages_of(adjacency, weight)
    (found,) = torch.autograd.grad(messages.gather(cells).sum(), [weight])
    torch.testing.assert_close(found, cells.sum(1)[messages.source], rtol=1e-4, atol=1e-5)


def test_no_messages_at_all():
    messages = messages_of(np.zeros((4, 4), bool))
    cells = torch.randn(4, 3, requires_grad=True)
    assert messages.gather(cells).abs().sum() == 0 and messages.total(cells).tolist() == [0] * 4
