import pytest
import torch
from torch import nn
from torch.nn import functional as F

from zoo.tasks.datasets import get_dataset
from zoo.tasks.objectives import OBJECTIVES
from zoo.tasks.registry import get_task
from zoo.tasks.task import Task
from zoo.training.precision import PRECISIONS, check_precision, gradients_in, products_in

CPU = torch.device("cpu")


class Image(nn.Module):
    """A convolution without normalisation, whose rounding is not magnified."""

    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv2d(1, 6, 3, stride=2), nn.Linear(54, 10)

    def forward(self, x):
        return self.head(F.gelu(self.conv(x)).flatten(1))


TASKS = {
    "mlp": lambda: get_task("digits", hidden=(32,)),
    "convolution": lambda: Task("image", get_dataset("digits"), Image, OBJECTIVES["cross_entropy"]),
    "batch_norm": lambda: get_task("digits", architecture="cnn", channels=(4, 4)),
    "transformer": lambda: get_task("python_source", size=20_000, context=8, width=16, num_blocks=1, num_heads=2),
}


@pytest.mark.parametrize("name", TASKS)
def test_mixed_precision_rounds_as_autocast_does_in_a_plain_loop(name):
    task = TASKS[name]()
    params = task.init_runs([1, 2])
    batch = task.batch(torch.arange(32), 2)
    exact = task.loss_and_grad(params.clone(), batch)[1]
    with gradients_in("bf16-mixed", CPU):
        loss, grads = task.loss_and_grad(params.clone(), batch)
    assert (loss.dtype, grads.dtype) == (torch.float32, torch.float32)
    for i in range(2):
        model = task.make_model().train()
        model.load_state_dict(task.layout.unflatten(params[i]))
        with torch.autocast("cpu", torch.bfloat16):
            outputs = model(batch.inputs)
        F.cross_entropy(outputs.float().flatten(0, -2), batch.targets.flatten()).backward()
        named = dict(model.named_parameters())
        plain = torch.cat([named[slot.name].grad.flatten() for slot in task.layout if slot.kind == "param"])
        rounding, usual = (grads[i] - exact[i]).norm(), (plain - exact[i]).norm()
        assert usual / 5 < rounding < 5 * usual


def test_float32_is_what_it_was_and_flags_are_put_back():
    task = TASKS["mlp"]()
    params, batch = task.init_runs([1, 2]), task.batch(torch.arange(8), 2)
    with gradients_in("32", CPU), products_in("32"):
        grads = task.loss_and_grad(params, batch)[1]
    assert torch.equal(grads, task.loss_and_grad(params, batch)[1])
    before = torch.get_float32_matmul_precision()
    with products_in("tf32"):
        assert torch.get_float32_matmul_precision() == "high"
    assert torch.get_float32_matmul_precision() == before


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_program_may_have_set_tf32_by_the_newer_of_two_ways(precision):
    products = torch.backends.cuda.matmul
    before, products.fp32_precision = products.fp32_precision, "tf32"
    try:
        with products_in(precision):
            assert products.fp32_precision == "tf32"
        assert products.fp32_precision == "tf32"
    finally:
        products.fp32_precision = before


def test_precisions_that_there_are_not_are_refused():
    with pytest.raises(ValueError, match=r"precision must be one of \('32', 'tf32', 'bf16-mixed'\), got 'fp8'"):
        check_precision("fp8", CPU)
    with pytest.raises(ValueError, match="'tf32' is of CUDA devices, but the task is on cpu"):
        check_precision("tf32", CPU)
    check_precision("tf32", torch.device("cuda"))
