import math

import pytest
import torch

from zoo.tasks.datasets import get_dataset
from zoo.tasks.families.warped_images import WarpedImages
from zoo.tasks.registry import get_task


@pytest.fixture(scope="module")
def family():
    return WarpedImages(get_dataset("digits"), seed=3)


def with_warp(family, monkeypatch, **changes):
    """Member 0 under a warp of which all is left out that is not named."""
    plain = {"rotation": 0.0, "scale": 1.0, "shear": 0.0, "mirrored": 0, "inverted": 0}
    values = {name: torch.tensor([value]) for name, value in (plain | changes).items()}
    monkeypatch.setattr(WarpedImages, "attributes", lambda self, members: {"member": members, **values})
    return family.bind(torch.zeros(1, dtype=torch.int64)).examples(torch.arange(50))


def test_labels_stay_and_the_strength_of_nothing_is_the_base(family):
    batch = family.bind(torch.arange(3)).examples(torch.arange(50), "test")
    assert torch.equal(batch.targets, family.dataset.test.targets[:50].expand(3, -1))
    unwarped = WarpedImages(get_dataset("digits"), strength=0.0)
    inputs = unwarped.bind(torch.arange(2)).examples(torch.arange(50)).inputs
    torch.testing.assert_close(inputs, unwarped.dataset.train.inputs[:50].expand(2, -1, -1, -1, -1), atol=1e-5, rtol=0)
    torch.testing.assert_close(unwarped.dataset.train.inputs.std().item(), 1.0, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("warp", "expected"),
    [
        ({"mirrored": 1}, lambda x: x.flip(-1)),
        ({"rotation": math.pi}, lambda x: x.flip(-1, -2)),
        ({"rotation": math.pi / 2}, lambda x: torch.rot90(x, 1, (-2, -1))),
        ({"inverted": 1}, lambda x: 1 - x),
    ],
)
def test_a_warp_does_what_it_is_called(family, monkeypatch, warp, expected):
    inputs = with_warp(family, monkeypatch, **warp).inputs[0] * family.std + family.mean
    pixels = get_dataset("digits").train.inputs[:50]
    torch.testing.assert_close(inputs, expected(pixels), atol=1e-4, rtol=0)


def test_warps_are_spread_over_their_ranges(family):
    warps = family.attributes(torch.arange(2000))
    assert warps["rotation"].min() < -3 < 3 < warps["rotation"].max()
    assert warps["scale"].log().abs().max() == pytest.approx(0.3, abs=0.01)
    assert warps["shear"].abs().max() == pytest.approx(0.4, abs=0.01)
    for name in ("mirrored", "inverted"):
        assert warps[name].float().mean() == pytest.approx(0.5, abs=0.05)
    weak = WarpedImages(get_dataset("digits"), strength=0.2, seed=3).attributes(torch.arange(2000))
    torch.testing.assert_close(weak["rotation"], 0.2 * warps["rotation"])
    assert weak["inverted"].float().mean() == pytest.approx(0.1, abs=0.03)


def test_images_are_brought_to_a_size():
    family = WarpedImages(get_dataset("digits"), image_size=4)
    pixels = get_dataset("digits").train.inputs[:3].unflatten(-1, (4, 2)).unflatten(-3, (4, 2)).mean((-1, -3))
    torch.testing.assert_close(family.dataset.train.inputs[:3] * family.std + family.mean, pixels)


def test_what_cannot_be_warped_is_refused():
    with pytest.raises(ValueError, match=r"warps are of images .* 'mnist1d' has examples \(40,\)"):
        get_task("warped_images", base={"name": "mnist1d", "num_examples": 100})
    with pytest.raises(ValueError, match="strength must be from 0 to 1, got 2"):
        get_task("warped_images", base="digits", strength=2)


def test_pooled_members_are_all_images_each_in_a_warp_of_its_own(family):
    pooled = WarpedImages(get_dataset("digits"), seed=3, pooled=True)
    inputs = pooled.bind(torch.arange(2)).examples(torch.arange(50)).inputs
    torch.testing.assert_close(inputs[0], inputs[1])
    torch.testing.assert_close(inputs[0], pooled.dataset.train.inputs[:50], atol=1e-5, rtol=0)
    assert torch.equal(pooled.dataset.train.targets, family.dataset.train.targets)
    changed = (pooled.dataset.train.inputs - family.dataset.train.inputs).abs().amax((1, 2, 3))
    assert (changed > 0.1).float().mean() > 0.95
    inverted = pooled.dataset.train.inputs.mean((1, 2, 3)) > 0.3
    assert inverted.float().mean() == pytest.approx(0.5, abs=0.1)
