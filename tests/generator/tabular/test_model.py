"""Generated networks do not depend on the order of rows, features or classes, nor on scales."""

import pytest
import torch
from torch.nn import functional as F

from generator.tabular.files import load_tabular, save_tabular
from generator.tabular.model import TabularGenerator
from generator.tabular.network import TabularMLP
from zoo.tasks.families.tabular_prior import TabularPrior

NUM_CLASSES = 5


@pytest.fixture(scope="module")
def model():
    """That of the package, in float64, where rounding does not hide what breaks a symmetry."""
    return load_tabular().double()


@pytest.fixture(scope="module")
def tables():
    members = TabularPrior(num_features=7, num_classes=NUM_CLASSES, num_train=60, num_val=20, seed=3).bind(
        torch.arange(8)
    )
    return members.inputs["train"].double(), members.targets["train"], members.inputs["val"].double()


@pytest.fixture(scope="module")
def logits(model, tables):
    inputs, labels, queries = tables
    return model(inputs, labels, NUM_CLASSES).logits(queries)


def test_the_order_of_rows_is_nothing(model, tables, logits):
    inputs, labels, queries = tables
    order = torch.randperm(inputs.shape[1], generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(model(inputs[:, order], labels[:, order], NUM_CLASSES).logits(queries), logits)


def test_the_order_of_features_is_nothing(model, tables, logits):
    inputs, labels, queries = tables
    order = torch.randperm(inputs.shape[2], generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(model(inputs[..., order], labels, NUM_CLASSES).logits(queries[..., order]), logits)


def test_names_of_classes_are_nothing(model, tables, logits):
    inputs, labels, queries = tables
    order = torch.randperm(NUM_CLASSES, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(model(inputs, order[labels], NUM_CLASSES).logits(queries)[..., order], logits)


def test_scales_constant_features_and_absent_classes_are_nothing(model, tables, logits):
    inputs, labels, queries = tables
    scale, shift = torch.logspace(-3, 3, inputs.shape[2]), 5 * torch.randn(inputs.shape[2])

    def changed(rows):
        return F.pad(rows * scale + shift, (0, 2), value=3.0)

    others = model(changed(inputs), labels, NUM_CLASSES + 2).logits(changed(queries))
    torch.testing.assert_close(others[..., :NUM_CLASSES], logits)
    assert not others.softmax(-1)[..., NUM_CLASSES:].any()


def test_tables_of_a_batch_do_not_see_each_other(model, tables, logits):
    inputs, labels, queries = tables
    torch.testing.assert_close(model(inputs[3:4], labels[3:4], NUM_CLASSES).logits(queries[3:4]), logits[3:4])


def test_the_module_has_the_logits_and_means_are_means(model, tables):
    inputs, labels, queries = tables
    whole = model(inputs[:1], labels[:1], NUM_CLASSES)
    scaling = (whole.mean, whole.scale)
    halves = [model(inputs[:1, part], labels[:1, part], NUM_CLASSES, scaling) for part in (slice(30), slice(30, 60))]
    for members in ([whole], halves):
        module = TabularMLP.mean_of([type(one)(*(tensor.float() for tensor in one)) for one in members])
        wanted = torch.stack([one.logits(queries[:1])[0] for one in members]).mean(0)
        torch.testing.assert_close(module(queries[0].float()).double(), wanted, atol=1e-3, rtol=1e-3)


def test_it_has_learned(tables):
    """Random tables that training did not draw: better than its own form untrained."""
    members = TabularPrior(num_features=12, num_classes=4, num_train=96, num_val=128, seed=77).bind(torch.arange(64))
    inputs, labels = members.inputs["train"], members.targets["train"]
    queries, answers = members.inputs["val"], members.targets["val"]
    losses = []
    torch.manual_seed(0)
    for generator in (load_tabular(), TabularGenerator(**load_tabular().options)):
        with torch.no_grad():
            logits = generator(inputs, labels, 4).logits(queries).clamp(min=-20)
        losses.append(F.cross_entropy(logits.flatten(0, 1), answers.flatten()).item())
    assert losses[0] < losses[1] - 0.01


def test_few_rows_and_single_classes_do_no_harm(model):
    for num_rows in (2, 3):
        inputs = torch.randn(4, num_rows, 3, dtype=torch.float64)
        for labels in (torch.zeros(4, num_rows, dtype=torch.int64), torch.arange(num_rows).expand(4, -1)):
            assert model(inputs, labels, 3).logits(inputs).isfinite().all()


def test_files_hold_the_generator(tmp_path, tables):
    made = TabularGenerator(width=32, num_blocks=1)
    save_tabular(tmp_path / "own.safetensors", made, {"seed": 0})
    read = load_tabular(tmp_path / "own.safetensors")
    inputs, labels, queries = (part.float() if part.is_floating_point() else part for part in tables)
    torch.testing.assert_close(read(inputs, labels, 5).logits(queries), made(inputs, labels, 5).logits(queries))
