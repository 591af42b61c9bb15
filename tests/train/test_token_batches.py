"""Batches of tokens: each row once, little padding, and a step that is the loss of hidden genes."""

import numpy as np
import pytest
import torch

from stfuse.module.visiumformer import Visiumformer, hide, masked_loss
from stfuse.train._fit import fit
from stfuse.train._token_batches import BUCKET, MaskedPlan, MaskedSettings, TokenBatches

GENES = 40


def some_tokens(n=300, width=200, seed=0):
    """Rows of all lengths; the first token tells the row."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(2, GENES + 2, (n, width)).astype(np.int32)
    lengths = rng.integers(1, width + 1, n)
    tokens[np.arange(width) >= lengths[:, None]] = 0
    tokens[:, 0] = np.arange(n) + 2
    return torch.from_numpy(tokens), lengths


@pytest.mark.parametrize("batch_size", [1, 7, 64, 300, 1000])
def test_each_row_once_and_whole(batch_size):
    tokens, lengths = some_tokens()
    batches = TokenBatches(tokens, batch_size, 3)
    for _ in range(2):
        seen = []
        for batch in batches:
            part = batch["tokens"]
            rows = (part[:, 0] - 2).numpy()
            assert len(rows) <= batch_size and part.shape[1] == lengths[rows].max()
            assert torch.equal(part, tokens[rows, : part.shape[1]])
            seen.append(rows)
        assert len(seen) == len(batches)
        np.testing.assert_array_equal(np.sort(np.concatenate(seen)), np.arange(300))


def test_rows_of_a_batch_are_of_like_length():
    tokens, lengths = some_tokens(2000)
    padded = sum(batch["tokens"].numel() for batch in TokenBatches(tokens, 32, 0))
    assert padded < 1.25 * lengths.sum() < 0.7 * tokens.numel()
    # one batch may lie across the border of two classes
    spread = [np.ptp(lengths[(batch["tokens"][:, 0] - 2).numpy()]) for batch in TokenBatches(tokens, 32, 0)]
    assert np.mean(np.array(spread) < BUCKET) > 0.8


def test_epochs_differ_and_seeds_repeat():
    tokens, _ = some_tokens()

    def order(batches):
        return torch.cat([batch["tokens"][:, 0] for batch in batches])

    one, two = TokenBatches(tokens, 16, 0), TokenBatches(tokens, 16, 0)
    first, second = order(one), order(one)
    assert not torch.equal(first, second)
    assert torch.equal(order(two), first) and torch.equal(order(two), second)
    assert not torch.equal(order(TokenBatches(tokens, 16, 1)), first)


def test_processes_share_an_epoch():
    tokens, _ = some_tokens(100)
    parts = []
    for rank in range(3):
        batches = TokenBatches(tokens, 16, 0)
        batches.split(rank, 3)
        parts.append([batch["tokens"][:, 0] for batch in batches])
        assert len(parts[-1]) == len(batches) == 3  # 7 batches, two of them twice
    seen = torch.cat([rows for part in parts for rows in part]).unique()
    assert len(seen) == 100


def small_module(seed=0):
    torch.manual_seed(seed)
    return Visiumformer(GENES, d_model=16, n_layers=1, n_heads=2, d_ff=16, context=16)


def test_a_step_is_the_loss_of_hidden_genes():
    module = small_module()
    plan = MaskedPlan(module, MaskedSettings(GENES, 0.3), seed=5)
    plan._generator.manual_seed(5)
    tokens = torch.randint(2, GENES + 2, (6, 16))
    changed, chosen = hide(tokens, GENES, 0.3, torch.Generator().manual_seed(5))
    expected = masked_loss(module, module.hidden(changed), tokens, chosen)
    torch.testing.assert_close(plan.training_step({"tokens": tokens}, 0), expected)


def test_learning_rate_rises_and_falls():
    rates = []

    class Watching(MaskedPlan):
        def training_step(self, batch, batch_idx):
            rates.append(self.optimizers().param_groups[0]["lr"])
            return super().training_step(batch, batch_idx)

    tokens = torch.randint(2, GENES + 2, (40, 16))
    plan = Watching(small_module(), MaskedSettings(GENES, lr=0.01, warmup=0.2), 0)
    history, _ = fit(plan, max_epochs=5, batches=TokenBatches(tokens, 10, 0), device="cpu", progress=False)
    top = int(np.argmax(rates))
    assert len(rates) == 20 and 3 <= top <= 5 and max(rates) == pytest.approx(0.01)
    assert (np.diff(rates[: top + 1]) > 0).all() and (np.diff(rates[top:]) < 0).all() and rates[-1] < 2e-4
    assert list(history.columns) == ["loss"] and np.isfinite(history["loss"]).all()
