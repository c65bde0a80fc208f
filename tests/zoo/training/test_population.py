import pytest
import torch
from torch.nn import functional as F

from tests.ambient import AMBIENTS
from zoo.building.hyperparameters import make_optimizer
from zoo.networks.initialization import run_seed
from zoo.tasks.registry import get_task
from zoo.training.optimizers import Adam, Sgd
from zoo.training.population import quadratic_steps, train_population

TASK = get_task("digits", hidden=(5,))
SEEDS = [run_seed(0, i) for i in range(6)]
OPTIONS = {"num_steps": 40, "batch_size": 16, "snapshot_steps": (0, 7, 40)}


def train(seeds=SEEDS, optimizer=None, task=TASK, **options):
    return list(train_population(task, optimizer or Adam(lr=0.01), seeds, **(OPTIONS | options)))


def test_default_snapshots_are_initial_quadratically_spaced_and_final():
    steps = quadratic_steps(1280)
    assert steps[:4] == (0, 3, 13, 29)
    assert steps[-1] == 1280
    assert len(steps) == 21
    assert quadratic_steps(3) == (0, 1, 2, 3)
    assert [s.inner_step for s in train_population(TASK, Sgd(), SEEDS[:1], num_steps=9, batch_size=4)][-1] == 9


@pytest.mark.parametrize("shared_batches", [True, False])
def test_repeats_bit_for_bit(shared_batches):
    first, again = (train(shared_batches=shared_batches) for _ in range(2))
    for a, b in zip(first, again, strict=True):
        assert a.inner_step == b.inner_step
        assert torch.equal(a.params, b.params)
        assert a.alive.all()


@pytest.mark.parametrize("name", AMBIENTS)
def test_a_population_is_the_same_whatever_a_program_has_set_for_torch(name):
    expected, optimizer = train()[-1].params, Adam(lr=0.01)
    with AMBIENTS[name]():
        params = train(optimizer=optimizer)[-1].params
    assert torch.equal(params, expected)


@pytest.mark.parametrize("shared_batches", [True, False])
@pytest.mark.parametrize("architecture", [{"hidden": (5,)}, {"architecture": "cnn", "channels": (3,)}])
def test_a_run_does_not_depend_on_its_population(shared_batches, architecture):
    """Same initial parameters to the bit, same training to rounding, alone and among others.

    By SGD: biases before BatchNorm have no gradient but rounding, which Adam would blow up.
    """
    task = get_task("digits", **architecture)
    together = train(task=task, optimizer=Sgd(lr=0.1), shared_batches=shared_batches)
    for i in (0, 4):
        alone = train([SEEDS[i]], task=task, optimizer=Sgd(lr=0.1), shared_batches=shared_batches)
        assert torch.equal(alone[0].params[0], together[0].params[i])
        for a, b in zip(alone, together, strict=True):
            torch.testing.assert_close(a.params[0], b.params[i], rtol=1e-3, atol=1e-4)


def test_shared_batches_follow_the_data_seed_and_own_ones_the_run_seed():
    final = train()[-1].params
    assert not torch.equal(final, train(data_seed=1)[-1].params)
    own = train(shared_batches=False)[-1].params
    assert torch.equal(own, train(shared_batches=False, data_seed=1)[-1].params)
    assert not torch.equal(own, final)


def test_equals_a_plain_training_loop_with_the_same_batches():
    from zoo.training.batches import shared_indices

    final = train()[-1].params[2]
    torch.manual_seed(SEEDS[2])
    model = TASK.make_model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.0)
    batches = shared_indices(0, len(TASK.dataset.train), 16, torch.device("cpu"))
    for _ in range(40):
        indices = next(batches)
        optimizer.zero_grad()
        F.cross_entropy(model(TASK.dataset.train.inputs[indices]), TASK.dataset.train.targets[indices]).backward()
        optimizer.step()
    torch.testing.assert_close(final, TASK.layout.flatten(model), rtol=1e-3, atol=1e-4)


def test_training_learns_and_batchnorm_statistics_advance():
    task = get_task("digits", architecture="cnn", channels=(8,))
    snapshots = train(task=task, optimizer=Adam(lr=0.02), num_steps=60, snapshot_steps=(0, 60))
    losses = [task.loss(s.params, task.batch(torch.arange(200), 6)) for s in snapshots]
    assert (losses[1] < losses[0] - 0.05).all()
    counter = task.layout["norms.0.num_batches_tracked"].span
    assert (snapshots[-1].params[:, counter] == 60).all()


def test_diverged_runs_keep_their_last_sound_snapshot_and_leave_the_others_alone():
    rates = torch.tensor([0.1, 1e20, 0.1, 0.1, 1e4, 0.1], dtype=torch.float64)
    snapshots = train(optimizer=Sgd(lr=rates), snapshot_steps=(0, 2, 40))
    calm = train(optimizer=Sgd(lr=0.1), snapshot_steps=(0, 2, 40))
    sound = [0, 2, 3, 5]
    assert snapshots[0].alive.all()
    assert snapshots[-1].alive.tolist() == [i in sound for i in range(6)]
    for snapshot, reference in zip(snapshots, calm, strict=True):
        assert snapshot.params.isfinite().all()
        assert torch.equal(snapshot.params[sound], reference.params[sound])
    assert torch.equal(snapshots[-1].params[1], snapshots[0].params[1])


def test_the_loss_cap_freezes_a_run():
    snapshots = train(max_loss=2.0)
    assert not snapshots[-1].alive.any()
    assert torch.equal(snapshots[-1].params, snapshots[0].params)


def test_snapshots_are_not_changed_by_later_training():
    kept = []
    for snapshot in train_population(TASK, Adam(lr=0.01), SEEDS, **OPTIONS):
        kept.append((snapshot, snapshot.params.clone(), snapshot.alive.clone()))
    for snapshot, params, alive in kept:
        assert torch.equal(snapshot.params, params)
        assert torch.equal(snapshot.alive, alive)


def test_may_start_from_given_networks():
    start = TASK.init_runs([1, 2])
    before = start.clone()
    snapshots = train(SEEDS[:2], init_params=start)
    assert torch.equal(snapshots[0].params, before)
    assert torch.equal(start, before)
    with pytest.raises(ValueError, match=r"init_params must be of shape \(6, P\)"):
        train(init_params=start)


def test_init_scales_and_hyperparameters_differ_between_runs():
    config = {"name": "adam", "lr": {"log_uniform": [1e-3, 1e-1]}, "schedule": "cosine", "warmup_steps": 3}
    optimizer, drawn = make_optimizer(config, SEEDS)
    alone, alone_drawn = make_optimizer(config, SEEDS[3:4])
    assert torch.equal(drawn["lr"][3:4], alone_drawn["lr"])
    together = train(optimizer=optimizer, init_scales=torch.linspace(0.5, 2, 6))[-1].params[3]
    single = train(SEEDS[3:4], optimizer=alone, init_scales=torch.linspace(0.5, 2, 6)[3:4])[-1].params[0]
    torch.testing.assert_close(together, single, rtol=1e-3, atol=1e-4)


class HalvingOptimizer:
    """The least that is an InnerOptimizer, as a learned optimizer would be passed."""

    def init_state(self, layout, params):
        return {"count": torch.zeros(len(params), 1)}

    def update(self, layout, params, grads, state, *, inner_step, num_steps):
        state["count"] += 1
        params[:, : layout.num_trainable] *= 0.5


def test_any_inner_optimizer_may_train_a_population():
    snapshots = train(optimizer=HalvingOptimizer(), num_steps=2, snapshot_steps=(0, 2))
    assert torch.equal(snapshots[1].params, 0.25 * snapshots[0].params)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"snapshot_steps": (0, 50)}, r"snapshot_steps must be integers that increase within 0 ... 40, got \(0, 50\)"),
        ({"snapshot_steps": (5, 5)}, "snapshot_steps must be"),
        ({"snapshot_steps": (0.5, 3)}, "snapshot_steps must be integers"),
        ({"snapshot_steps": ()}, "snapshot_steps must be"),
        ({"batch_size": 0}, r"batch_size must be an integer from 1 to 1257 \(the training split\), got 0"),
        ({"batch_size": 2000}, "batch_size must be an integer from 1"),
        ({"compile": "yes"}, "compile must be"),
        ({"seeds": []}, "one or more integers"),
        ({"seeds": [1.5]}, "one or more integers"),
        ({"seeds": [2**70]}, "integers of 64 bits"),
        ({"init_scales": torch.ones(2)}, "one scale, or one for each of 6 networks, got 2"),
    ],
)
def test_bad_arguments_are_refused_before_training(options, message):
    with pytest.raises(ValueError, match=message):
        train_population(TASK, Adam(), **({"seeds": SEEDS} | OPTIONS | options))
