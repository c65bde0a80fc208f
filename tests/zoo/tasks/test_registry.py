import numpy as np
import pytest
import torch
from torch.nn import functional as F

from zoo.tasks.registry import get_task
from zoo.tasks.task import Batch

CONFIGS = {
    "mlp": {"name": "digits", "hidden": (6, 5)},
    "mlp_mup": {"name": "digits", "hidden": (6,), "activation": "tanh", "parametrization": "mup"},
    "cnn": {"name": "digits", "architecture": "cnn", "channels": (3, 4)},
    "transformer": {
        "name": "python_source",
        "size": 20_000,
        "context": 16,
        "width": 8,
        "num_blocks": 1,
        "num_heads": 2,
    },
}
SEEDS = [5, 2**61 + 1, 7]


@pytest.fixture(params=CONFIGS, scope="module")
def task(request):
    return get_task(**CONFIGS[request.param])


def modules(task, params):
    for row in params:
        model = task.make_model()
        model.load_state_dict(task.layout.unflatten(row))
        yield model


def module_loss(model, inputs, targets):
    return F.cross_entropy(model(inputs).flatten(0, -2), targets.flatten())


def test_config_is_complete_and_rebuilds_the_task(task):
    again = get_task(**task.config)
    assert again.config == task.config
    assert again.layout == task.layout
    assert again.dataset.data_hash == task.dataset.data_hash


def test_each_row_is_the_module_built_under_its_seed(task):
    state = torch.random.get_rng_state()
    params = task.init_runs(SEEDS)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(params[[2, 0]], task.init_runs([SEEDS[2], SEEDS[0]]))
    torch.manual_seed(SEEDS[1])
    assert torch.equal(params[1], task.layout.flatten(task.make_model()))


def test_init_draws_from_the_given_rng_alone(task):
    first, again = (task.init(torch.Generator().manual_seed(3), 4) for _ in range(2))
    assert torch.equal(first, again)
    assert len(first.unique(dim=0)) == 4


def test_predictions_equal_the_modules(task):
    params = task.init_runs(SEEDS)
    inputs = task.dataset.val.inputs[:9]
    outputs = task.predict(params, inputs)
    own = task.predict(params, torch.stack([inputs, inputs.flip(0), inputs]))
    for i, model in enumerate(modules(task, params)):
        model.eval()
        torch.testing.assert_close(outputs[i], model(inputs), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(own[i], model(inputs.flip(0) if i == 1 else inputs), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shared", [True, False])
def test_losses_gradients_and_buffers_equal_the_modules(task, shared):
    params = task.init_runs(SEEDS)
    start = params.clone()
    indices = torch.arange(20) if shared else torch.arange(60).view(3, 20)
    batch = task.batch(indices, len(params))
    losses, grads = task.loss_and_grad(params, batch)
    torch.testing.assert_close(task.loss(start, batch), losses)
    for i, model in enumerate(modules(task, start)):
        inputs, targets = (value if shared else value[i] for value in batch[:2])
        loss = module_loss(model.train(), inputs, targets)
        loss.backward()
        named = dict(model.named_parameters())
        expected = torch.cat([named[slot.name].grad.flatten() for slot in task.layout if slot.kind == "param"])
        torch.testing.assert_close(losses[i], loss.detach())
        torch.testing.assert_close(grads[i], expected, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(params[i], task.layout.flatten(model))  # BatchNorm statistics have advanced


def test_loss_is_differentiable_and_leaves_buffers(task):
    params = task.init_runs(SEEDS)
    batch = task.batch(torch.arange(20), len(params))
    leaf = params.clone().requires_grad_()
    (grads,) = torch.autograd.grad(task.loss(leaf, batch).sum(), leaf)
    assert torch.equal(leaf, params)
    expected = task.loss_and_grad(params.clone(), batch)[1]
    torch.testing.assert_close(grads[:, : task.layout.num_trainable], expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("share_at_once", [0.3, 2.0, 100.0])
def test_evaluation_covers_the_whole_split_whatever_the_chunks(task, share_at_once):
    params = task.init_runs(SEEDS)
    memory_budget = int(share_at_once * len(task.dataset.val) * task.bytes_per_example)
    metrics = task.evaluate(params, "val", memory_budget)
    for i, model in enumerate(modules(task, params)):
        inputs, targets = task.dataset.val.inputs, task.dataset.val.targets
        with torch.no_grad():
            outputs = model.eval()(inputs)
        torch.testing.assert_close(metrics["loss"][i], F.cross_entropy(outputs.flatten(0, -2), targets.flatten()))
        torch.testing.assert_close(metrics["error"][i], (outputs.argmax(-1) != targets).float().mean())


def test_train_metrics_are_over_at_most_2048_fixed_examples():
    task = get_task("mnist1d")
    params = task.init_runs(SEEDS)
    chosen = torch.linspace(0, 3499, 2048, dtype=torch.float64).long()
    batch = task.batch(chosen, 3)
    torch.testing.assert_close(task.evaluate(params, "train")["loss"], task.loss(params, batch))


def test_mup_makes_output_matrices_small_and_biases_zero():
    widths = [64, 1024]
    for width in widths:
        task = get_task("digits", hidden=(width, width), parametrization="mup")
        views = task.layout.views(task.init_runs([0])[0])
        assert views["layers.0.weight"].std() == pytest.approx(64**-0.5, rel=0.1)
        assert views["layers.1.weight"].std() == pytest.approx(width**-0.5, rel=0.1)
        assert views["layers.2.weight"].std() == pytest.approx(1 / width, rel=0.1)
        assert not views["layers.1.bias"].any()


def test_init_scale_is_one_factor_per_network():
    task = get_task("digits", architecture="cnn", channels=(3,))
    plain = task.layout.views(task.init_runs(SEEDS))
    scaled = task.layout.views(task.init_runs(SEEDS, torch.tensor([1.0, 2.0, 0.5])))
    for name in ("convs.0.weight", "head.weight"):
        assert torch.equal(scaled[name][1], 2 * plain[name][1])
        assert torch.equal(scaled[name][2], 0.5 * plain[name][2])
    for name in ("convs.0.bias", "norms.0.weight", "norms.0.running_var"):
        assert torch.equal(scaled[name], plain[name])


def test_a_task_moves_to_another_device_without_changing_the_first():
    task = get_task("digits")
    moved = task.to("meta")
    assert moved.device.type == "meta"
    assert task.device.type == "cpu"
    assert moved.layout == task.layout


def test_regression_on_arrays(tmp_path):
    import numpy as np

    rng = np.random.default_rng(0)
    np.savez(tmp_path / "data.npz", x=rng.normal(size=(40, 3)), y=rng.normal(size=(40, 2)))
    task = get_task("arrays", path=tmp_path / "data.npz", hidden=(4,))
    assert task.config["path"] == str(tmp_path / "data.npz")  # a zoo records it as JSON
    params = task.init_runs(SEEDS)
    batch = task.batch(torch.arange(8), 3)
    losses, grads = task.loss_and_grad(params, batch)
    expected = torch.stack([F.mse_loss(model(batch.inputs), batch.targets) for model in modules(task, params)])
    torch.testing.assert_close(losses, expected.detach())
    leaf = params.requires_grad_()
    (autograd,) = torch.autograd.grad(task.loss(leaf, batch).sum(), leaf)
    torch.testing.assert_close(grads, autograd)


def test_subset_tasks_train_one_target_per_network():
    masks = [0b0000000001, 0b1111111110, 0b0101010101]
    task = get_task("digits_subset", hidden=(5,), masks=masks)
    params = task.init_runs(SEEDS)
    indices = torch.arange(30)
    batch = task.batch(indices, 3)
    labels = task.dataset.train.targets[indices]
    assert torch.equal(batch.targets[0], (labels == 0).long())
    assert torch.equal(batch.targets[1], (labels != 0).long())
    assert torch.equal(batch.targets[2], (labels % 2 == 0).long())
    losses, grads = task.loss_and_grad(params, batch)
    for i, model in enumerate(modules(task, params)):
        loss = F.binary_cross_entropy_with_logits(model(batch.inputs)[:, 0], batch.targets[i].float())
        torch.testing.assert_close(losses[i], loss.detach())
    leaf = params.clone().requires_grad_()
    (autograd,) = torch.autograd.grad(task.loss(leaf, batch).sum(), leaf)
    torch.testing.assert_close(grads, autograd)
    metrics = task.evaluate(params, "test", memory_budget=1)
    alone = [get_task("digits_subset", hidden=(5,), masks=[mask]) for mask in masks]
    single = [task.evaluate(params[[i]], "test") for i, task in enumerate(alone)]
    torch.testing.assert_close(metrics["error"], torch.cat([value["error"] for value in single]))


def test_subset_task_of_a_run_does_not_depend_on_its_block():
    task = get_task("digits_subset")
    runs = [1021, 1022, 1025]
    assert task.run_attributes(runs)["mask"].tolist() == [1022, 1, 4]
    bound = task.for_runs(runs)
    whole = task.for_runs(range(1030)).batch(torch.arange(7), 1030)
    assert torch.equal(bound.batch(torch.arange(7), 3).targets, whole.targets[runs])
    with pytest.raises(ValueError, match="bound to 3 runs, got 4 networks"):
        bound.batch(torch.arange(7), 4)


def test_label_subsets_see_own_or_shared_examples():
    task = get_task("digits_subset").for_runs([0, 1])  # the tasks "is it 0" and "is it 1"
    shared, own = torch.tensor([0, 3, 9]), torch.tensor([[0, 3], [9, 4]])
    labels = task.dataset.train.targets
    for indices in (shared, own):
        inputs, targets, _ = task.batch(indices, 2)
        assert torch.equal(inputs, task.dataset.train.inputs[indices])
        assert torch.equal(targets, torch.stack([labels[indices.expand(2, -1)[i]] == i for i in range(2)]).long())


def test_ordinary_tasks_are_the_same_for_all_runs():
    task = get_task("digits")
    assert task.for_runs([3, 4]) is task
    assert task.run_attributes([3, 4]) == {}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"name": "cifar"}, r"task must be one of \['arrays', 'cartpole', 'digits'"),
        ({"name": "digits", "architecture": "resnet"}, "architecture must be one of .* got 'resnet'"),
        ({"name": "digits", "channels": (3,)}, r"has the options \['activation', 'hidden'\], got \['channels'\]"),
        ({"name": "digits", "parametrization": "ntk"}, "parametrization must be one of"),
        ({"name": "digits", "hidden": 16}, r"hidden must be a list of integers such as \[16\], got 16"),
        ({"name": "digits", "hidden": ["a"]}, "hidden must be a list of integers"),
        ({"name": "digits", "hidden": [True]}, "hidden must be a list of integers"),
        ({"name": "digits", "architecture": "cnn", "channels": 8}, "channels must be a list of integers"),
        ({"name": "cartpole", "horizon": "long"}, "horizon must be an integer such as 500, got 'long'"),
        ({"name": "digits", "activation": "sine"}, "activation must be one of"),
        ({"name": "mnist1d", "architecture": "cnn"}, r"a CNN takes images .* has examples of shape \(40,\)"),
        ({"name": "python_source", "architecture": "mlp", "size": 20_000}, "use architecture='transformer'"),
        ({"name": "digits", "architecture": "transformer"}, "takes sequences of symbols"),
        ({"name": "arrays"}, r"needs the options \['path'\]"),
        ({"name": "digits_subset", "masks": [0, 5]}, r"masks must be numbers from 1 to 1022, got \[0\]"),
        ({"name": "digits_subset", "masks": []}, "masks must be numbers"),
    ],
)
def test_bad_options_are_refused(config, message):
    with pytest.raises(ValueError, match=message):
        get_task(**config)


def test_images_with_their_channels_last_are_refused(tmp_path):
    np.savez(tmp_path / "data.npz", x=np.ones((20, 8, 8, 3)), y=np.arange(20) % 2)
    with pytest.raises(ValueError, match=r"with the channels last: inputs.transpose\(0, 3, 1, 2\) brings them first"):
        get_task("arrays", path=tmp_path / "data.npz", architecture="cnn")


def test_bad_vectors_and_splits_are_refused():
    task = get_task("digits")
    with pytest.raises(ValueError, match="1,210 parameters, got a vector of 7"):
        task.loss(torch.zeros(2, 7), Batch(task.dataset.train.inputs[:4], task.dataset.train.targets[:4]))
    with pytest.raises(ValueError, match="split must be one of"):
        task.evaluate(task.init_runs([0]), "holdout")
