import logging
import signal
import warnings

import lightning.pytorch as lp
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import Callback

from stfuse.module.cameo import PublishedTranslator
from stfuse.module.clip import TwoTowers
from stfuse.train._batches import ViewTensors
from stfuse.train._fit import KeepBest, fit, resolve_device
from stfuse.train._plans import Adversarial, AdversarialPlan, JointPlan, warm_cosine


def _data(n=60, n_pairs=30, held_out=10, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shared = torch.randn(n, 3, generator=generator)
    image = torch.cat([shared, torch.randn(n, 5, generator=generator)], 1)
    rna = torch.cat([torch.randn(n, 3, generator=generator), -shared], 1)
    rows = torch.arange(n)
    return ViewTensors(image, rna, rows, rows, rows[:n_pairs], rows[n_pairs : n_pairs + held_out])


def _joint(lr=1e-3, **kwargs):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return JointPlan(TwoTowers(8, 6, 4, 16), _data(**kwargs), 0, lr, 0.0)


def _adversarial(settings=None, **kwargs):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return AdversarialPlan(PublishedTranslator(8, 6), _data(**kwargs), 0, settings or Adversarial())


def _run(plan, **kwargs):
    return fit(plan, **({"max_epochs": 2, "batch_size": 16, "device": "cpu", "progress": False} | kwargs))


@pytest.mark.parametrize("device", ["tpu", "cuda:x", "cpu0", None, 3])
def test_unknown_device(device):
    with pytest.raises(ValueError, match="device must be 'auto', 'cpu'"):
        resolve_device(device)


def test_known_devices(monkeypatch):
    assert resolve_device("cpu") == ("cpu", 1)
    assert resolve_device(torch.device("cpu")) == ("cpu", 1)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert resolve_device("auto") == ("cpu", 1)
    with pytest.raises(ValueError, match="no CUDA device"):
        resolve_device("cuda:1")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert resolve_device("auto") == ("gpu", 1)
    assert resolve_device("cuda:1") == ("gpu", [1])
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(ValueError, match="no Apple GPU"):
        resolve_device("mps")


def test_history_of_the_joint_plan():
    history, keep = _run(_joint(), max_epochs=4, patience=50, pairs_only=True)
    assert list(history.columns) == ["contrastive", "held_out_rank"]
    assert list(history.index) == [1, 2, 3, 4] and history.index.name == "epoch"
    assert history["contrastive"].is_monotonic_decreasing
    assert np.isfinite(history).all(axis=None)
    assert isinstance(keep, KeepBest)


def test_the_rate_rises_and_falls_to_zero():
    rates = [warm_cosine(step, 100, 0.1) for step in range(101)]
    assert 0 < rates[0] < 0.1 and all(a < b for a, b in zip(rates[:10], rates[1:11], strict=True))
    assert rates[10] == max(rates) == 1 and rates[55] == pytest.approx(0.5) and rates[100] == 0
    assert all(a > b for a, b in zip(rates[10:100], rates[11:], strict=True))
    assert warm_cosine(250, 100, 0.1) == 0  # no way up again
    assert warm_cosine(0, 100, 0) == 1 and 0 < warm_cosine(99, 100, 1) < 1


def test_the_schedule_covers_all_steps():
    rates = []

    class Watch(Callback):
        def on_train_batch_start(self, trainer, module, batch, index):
            rates.append(trainer.optimizers[0].param_groups[0]["lr"])

    with torch.random.fork_rng():
        plan = JointPlan(TwoTowers(8, 6, 4, 16), _data(), 0, 1e-3, 0.0, warmup=0.25)
    _run(plan, max_epochs=4, pairs_only=True, trainer_kwargs={"callbacks": [Watch()]})
    np.testing.assert_allclose(rates, [1e-3 * warm_cosine(step, 16, 0.25) for step in range(16)])


def test_no_held_out_pairs_no_verdict():
    history, keep = _run(_joint(held_out=0), patience=3, pairs_only=True)
    assert keep is None and "held_out_rank" not in history


def test_history_is_the_mean_over_the_steps_a_loss_was_computed_in(monkeypatch):
    seen = {"critic": [], "cycle": []}
    plan = _adversarial(Adversarial(n_critic=3))
    collect = plan.collect

    def spy(**values):
        for name in seen:
            if name in values:
                seen[name].append(values[name].item())
        collect(**values)

    monkeypatch.setattr(plan, "collect", spy)
    history, _ = _run(plan, max_epochs=3)  # 4 steps an epoch: the translators move once, once, twice
    assert len(seen["critic"]) == 12 and len(seen["cycle"]) == 4
    np.testing.assert_allclose(history["critic"], np.reshape(seen["critic"], (3, 4)).mean(1), rtol=1e-5)
    a, b, c, d = seen["cycle"]
    np.testing.assert_allclose(history["cycle"], [a, b, (c + d) / 2], rtol=1e-5)


@pytest.mark.parametrize("n_critic", [1, 5])
def test_the_generator_moves_once_in_n_critic_steps(n_critic):
    plan = _adversarial(Adversarial(n_critic=n_critic))
    moved = []

    class Watch(Callback):
        def on_train_batch_start(self, trainer, module, batch, index):
            self.before = [p.detach().clone() for p in module.module.generator_parameters()]
            self.critics = [p.detach().clone() for p in module.module.critics.parameters()]

        def on_train_batch_end(self, trainer, module, outputs, batch, index):
            after = module.module.generator_parameters()
            moved.append(any(not torch.equal(a, b) for a, b in zip(self.before, after, strict=True)))
            critics = list(module.module.critics.parameters())
            assert any(not torch.equal(a, b) for a, b in zip(self.critics, critics, strict=True))

    _run(plan, max_epochs=3, trainer_kwargs={"callbacks": [Watch()]})
    assert moved == [(i + 1) % n_critic == 0 for i in range(12)]


def test_wgan_clips_and_uses_rmsprop_others_do_not():
    plan = _adversarial(Adversarial(critic="wgan"))
    assert all(isinstance(o, torch.optim.RMSprop) for o in plan.configure_optimizers())
    assert [o.param_groups[0]["lr"] for o in plan.configure_optimizers()] == [1e-4, 5e-5]  # appendix E.4
    _run(plan)
    assert plan.module.critic("image").first.weight.abs().max() <= 0.01
    for kind in ("gan", "wgan-gp"):
        plan = _adversarial(Adversarial(critic=kind))
        assert all(isinstance(o, torch.optim.AdamW) for o in plan.configure_optimizers())
        history, _ = _run(plan, max_epochs=3)
        assert plan.module.critic("image").first.weight.abs().max() > 0.01
        assert np.isfinite(history["critic"]).all()


def test_a_loss_of_weight_zero_is_not_computed():
    history, _ = _run(_adversarial(Adversarial(adversarial=0, n_critic=5)))
    assert list(history.columns) == ["cycle", "align", "held_out_rank"]
    history, _ = _run(_adversarial(Adversarial(cycle=0, align=0, n_critic=1)))
    assert list(history.columns) == ["critic", "adversarial", "held_out_rank"]


def test_training_without_pairs():
    history, _ = _run(_adversarial(Adversarial(n_critic=1), n_pairs=0, held_out=0))
    assert list(history.columns) == ["critic", "cycle", "adversarial"]


def test_keep_best_keeps_the_best_and_stops(monkeypatch):
    scores = iter([0.0, -1.0, -3.0, -2.0, -2.5, -2.9])
    plan = _joint()
    kept = {}
    monkeypatch.setattr(plan, "held_out", lambda: np.full(4, next(scores)))

    class Watch(Callback):
        def on_train_epoch_end(self, trainer, module):
            kept[trainer.current_epoch + 1] = {k: v.clone() for k, v in module.module.state_dict().items()}

    history, keep = _run(plan, max_epochs=50, patience=2, pairs_only=True, trainer_kwargs={"callbacks": [Watch()]})
    assert len(history) == 4
    assert keep.best_epoch == 2 and keep.best.mean() == -3 and keep.start.mean() == 0
    # scored once for the start and once an epoch, for the record and for what is kept
    assert history["held_out_rank"].tolist() == [-1, -3, -2, -2.5] and next(scores) == -2.9
    for name, value in keep.state.items():
        assert torch.equal(value, kept[2][name])


def test_training_that_never_improves_keeps_nothing():
    plan = _joint(lr=1e10)
    _, keep = _run(plan, max_epochs=8, patience=3, pairs_only=True)
    assert keep.state is None or keep.best.mean() < keep.start.mean()


def test_a_network_that_diverged_is_not_the_best():
    plan = _joint()

    class Spoil(Callback):
        def on_train_epoch_start(self, trainer, module):
            with torch.no_grad():
                for p in module.module.parameters():
                    p.fill_(torch.nan)

    _, keep = _run(plan, patience=3, pairs_only=True, trainer_kwargs={"callbacks": [Spoil()]})
    assert keep.state is None


def test_held_out_score_is_that_of_the_codes_in_evaluation():
    plan = _adversarial()
    plan.train()
    one, two = plan.held_out(), plan.held_out()
    np.testing.assert_array_equal(one, two)
    assert one.shape == (10,) and plan.module.training


def test_same_seed_same_weights_and_nothing_else_moves():
    states = []
    for _ in range(2):
        plan = _adversarial(Adversarial(critic="wgan-gp", n_critic=1))
        _run(plan)
        states.append(plan.module.state_dict())
    for name in states[0]:
        assert torch.equal(states[0][name], states[1][name]), name


def test_an_interrupt_is_a_keyboard_interrupt_and_leaves_the_interpreter_running():
    """Lightning itself ends in sys.exit with the keyboard shut out."""

    class Interrupt(Callback):
        def on_train_batch_end(self, *args):
            raise KeyboardInterrupt

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt, match="nothing was written"):
        _run(_joint(), pairs_only=True, trainer_kwargs={"callbacks": [Interrupt()]})
    assert signal.getsignal(signal.SIGINT) is before


def test_other_errors_and_exits_pass_through():
    class Fail(Callback):
        def __init__(self, error):
            self.error = error

        def on_train_batch_end(self, *args):
            raise self.error

    for error in (RuntimeError("mine"), SystemExit(3)):
        with pytest.raises(type(error)) as caught:
            _run(_joint(), pairs_only=True, trainer_kwargs={"callbacks": [Fail(error)]})
        assert caught.value is error


def test_quiet_and_without_traces(tmp_path, monkeypatch, capfd, caplog):
    monkeypatch.chdir(tmp_path)
    levels = {name: logging.getLogger(name).level for name in ("lightning.pytorch", "lightning.fabric")}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message=".*(infer_string|chained_assignment)")
        _run(_joint(), pairs_only=True)
    assert not list(tmp_path.iterdir())
    assert capfd.readouterr() == ("", "")
    assert {name: logging.getLogger(name).level for name in levels} == levels


def test_the_trainer_is_the_users():
    class Watch(Callback):
        def on_train_start(self, trainer, module):
            self.trainer = trainer

    watch = Watch()
    options = {"callbacks": [watch], "gradient_clip_val": 0.5, "enable_progress_bar": False}
    _run(_joint(), pairs_only=True, trainer_kwargs=options)
    assert isinstance(watch.trainer, lp.Trainer) and watch.trainer.gradient_clip_val == 0.5
    assert options["callbacks"] == [watch]  # the user's dict is not eaten
