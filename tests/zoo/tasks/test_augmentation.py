from dataclasses import dataclass, replace

import pytest
import torch
from torch.nn import functional as F

from zoo.networks.architectures import MLP
from zoo.networks.counter_rng import CounterRng, at, streams_of
from zoo.tasks.augmentation import Affine, Crop, Flip, Noise, Spans, make_augmentations, recorded
from zoo.tasks.registry import get_task
from zoo.tasks.task import Task
from zoo.training.optimizers import Sgd
from zoo.training.population import train_population

IMAGES = torch.rand(30, 2, 6, 9, generator=torch.Generator().manual_seed(0))
ALL = ["flip", {"name": "crop", "padding": 1}, {"name": "affine", "degrees": 20, "translate": 0.1}, "noise"]


def rng():
    return CounterRng(streams_of([0])[0])


@pytest.mark.parametrize("augmentation", [Affine(), Affine(10, 0.1, (0.9, 1.1), 5), Crop(2), Flip(), Noise(0.2)])
def test_images_keep_their_shape_and_follow_from_the_stream(augmentation):
    once, again = augmentation(IMAGES, rng()), augmentation(IMAGES, rng())
    assert once.shape == IMAGES.shape
    assert once.dtype == IMAGES.dtype
    assert torch.equal(once, again)
    other = augmentation(IMAGES, CounterRng(streams_of([1])[0]))
    assert augmentation == Affine() or not torch.equal(once, other)


def test_an_affine_map_that_does_nothing_leaves_images_as_they_are():
    torch.testing.assert_close(Affine()(IMAGES, rng()), IMAGES)


def test_affine_maps_are_those_of_torch():
    """Rotation by a known angle about the centre, of square images, where torch's grid is in units of both sides."""
    images = IMAGES[..., :6]
    out = Affine(degrees=90.0)(images, rng())
    angles = (2 * rng().uniform((4, 30))[0] - 1) * torch.pi / 2
    matrix = torch.stack((angles.cos(), angles.sin(), 0 * angles, -angles.sin(), angles.cos(), 0 * angles), -1)
    grid = F.affine_grid(matrix.view(-1, 2, 3), list(images.shape), align_corners=False)
    torch.testing.assert_close(out, F.grid_sample(images, grid, align_corners=False), rtol=1e-4, atol=1e-5)


def test_shifts_are_shares_of_the_size_and_scales_are_kept_within_their_range():
    spot = torch.zeros(200, 1, 21, 21)
    spot[:, 0, 10, 10] = 1
    places = Affine(translate=0.2)(spot, rng())[:, 0].clamp(min=0)
    rows = (places.sum(2) * torch.arange(21)).sum(1) / places.sum((1, 2))
    assert (rows - 10).abs().max() < 0.2 * 21 + 0.1
    assert (rows - 10).abs().max() > 0.15 * 21
    square = torch.zeros(200, 1, 20, 20)
    square[:, :, 5:15, 5:15] = 1
    areas = Affine(scale=(0.8, 1.25))(square, rng()).sum((1, 2, 3))
    assert areas.min() > 0.6 * 100
    assert areas.max() < 1.6 * 100
    assert areas.max() > 1.3 * 100


def test_crops_are_windows_of_the_padded_image_each_at_its_place():
    out = Crop(2)(IMAGES, rng())
    padded = F.pad(IMAGES, [2] * 4)
    for image, source in zip(out, padded, strict=True):
        windows = [source[:, i : i + 6, j : j + 9] for i in range(5) for j in range(5)]
        assert any(torch.equal(image, window) for window in windows)


def test_about_half_of_the_images_are_mirrored():
    out = Flip()(IMAGES, rng())
    is_mirrored = [torch.equal(one, image.flip(-1)) for one, image in zip(out, IMAGES, strict=True)]
    is_same = [torch.equal(one, image) for one, image in zip(out, IMAGES, strict=True)]
    assert all(mirrored != same for mirrored, same in zip(is_mirrored, is_same, strict=True))
    assert 5 < sum(is_mirrored) < 25


def test_spans_begin_anywhere_and_targets_are_the_next_symbols():
    text = torch.randint(50, (4 * 8 + 1,), generator=torch.Generator().manual_seed(1))
    inputs, targets = text[:-1].view(4, 8), text[1:].view(4, 8)
    Spans().check(inputs, targets)
    begin = set()
    for seed in range(20):
        x, y = Spans().sample(inputs, targets, torch.arange(4), CounterRng(streams_of([seed])[0]))
        assert torch.equal(x[:, 1:], y[:, :-1])
        for window in x:
            begin |= {i for i in range(25) if torch.equal(text[i : i + 8], window)}
    assert len(begin) > 15


def test_augmentations_are_recorded_and_made_again():
    task = get_task("digits", augment=ALL)
    again = get_task(**task.config)
    assert again.dataset.augmentations == task.dataset.augmentations
    assert recorded(make_augmentations(["crop"])) == [{"name": "crop", "padding": 4}]
    assert "augment" not in get_task("digits").config


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize(
    "config",
    [
        {"name": "digits", "hidden": (5,), "augment": ALL},
        {"name": "python_source", "size": 20_000, "context": 8, "width": 8, "num_blocks": 1, "augment": ["spans"]},
    ],
)
def test_runs_that_see_augmented_examples_do_not_depend_on_their_block(config, shared):
    task = get_task(**config)
    options = {"num_steps": 3, "batch_size": 8, "snapshot_steps": (3,), "shared_batches": shared}
    (together,) = train_population(task, Sgd(lr=0.3), [1, 2, 3], **options)
    (alone,) = train_population(task, Sgd(lr=0.3), [3], **options)
    torch.testing.assert_close(together.params[2:], alone.params)
    (plain,) = train_population(get_task(**config | {"augment": []}), Sgd(lr=0.3), [3], **options)
    assert not torch.allclose(plain.params, alone.params, atol=1e-4)


def test_examples_are_changed_anew_in_each_step_and_never_in_evaluation():
    task = get_task("digits", augment=["noise"])
    stream, indices = streams_of([3])[0], torch.arange(5)
    first, second = (task.batch(indices, 2, stream=stream + torch.tensor([0, 0, step, 0])) for step in (0, 1))
    assert not torch.equal(first.inputs, second.inputs)
    assert torch.equal(task.batch(indices, 2).inputs, task.dataset.train.inputs[:5])
    params = task.init_runs([1])
    assert torch.equal(task.evaluate(params, "train")["loss"], get_task("digits").evaluate(params, "train")["loss"])


@dataclass(frozen=True)
class Darker:
    """An augmentation of one's own."""

    name = "darker"
    factor: float = 0.5

    def check(self, inputs, targets):
        pass

    def __call__(self, inputs, rng):
        return inputs * (1 - self.factor * rng.uniform((len(inputs), 1, 1, 1)))


def test_an_augmentation_of_your_own_is_used_and_recorded():
    data = get_task("digits").dataset
    task = Task("own", replace(data, augmentations=(Darker(0.3),)), lambda: MLP(64, (4,), 10), "cross_entropy")
    assert task.description["augment"] == [{"name": "darker", "factor": 0.3}]
    batch = task.batch(torch.arange(4), 2, stream=streams_of([0])[0])
    ratio = batch.inputs.sum((1, 2, 3)) / data.train.inputs[:4].sum((1, 2, 3))
    torch.testing.assert_close(ratio, 1 - 0.3 * CounterRng(at(streams_of([0])[0], part=2**31)).uniform((4,)))
    with pytest.raises(ValueError, match="augmentations must be dataclasses"):
        Task("own", replace(data, augmentations=(torch.sin,)), lambda: MLP(64, (4,), 10), "cross_entropy")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"name": "digits", "augment": ["blur"]}, r"augmentations must be some of \['affine', .* got 'blur'"),
        ({"name": "digits", "augment": "flip"}, r"augment must be a list such as .* got 'flip'"),
        ({"name": "digits", "augment": [{"name": "flip", "q": 1}]}, "augmentation 'flip' does not take {'q': 1}"),
        ({"name": "digits", "augment": [{"name": "flip", "p": 2}]}, "p of 'flip' must be a probability"),
        ({"name": "digits", "augment": [{"name": "affine", "scale": [0, 1]}]}, "scale of 'affine' must be a range"),
        ({"name": "digits", "augment": [{"name": "crop", "padding": 0}]}, "padding of 'crop' must be 1 pixel or more"),
        ({"name": "mnist1d", "augment": ["flip"]}, r"'flip' takes images .* got torch.float32 inputs of shape"),
        ({"name": "digits", "augment": ["spans"]}, "'spans' takes windows"),
        ({"name": "python_source", "size": 20_000, "augment": ["noise"]}, "'noise' takes real numbers"),
        ({"name": "cartpole", "augment": ["noise"]}, "takes no other objective than its own"),
        ({"name": "digits_subset", "objective": "cross_entropy"}, "takes no other objective than its own"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(config, message):
    with pytest.raises(ValueError, match=f"^[^\n]*{message}[^\n]*$"):
        get_task(**config)
