import numpy as np
import pandas as pd
import pytest
import torch

from generator.prompts.examples import NO_LABEL, ExampleKind, Examples, load_examples
from zoo.tasks.registry import get_task

KIND = ExampleKind((1, 2, 3), 0, 4)
INPUTS, TARGETS = torch.randn(6, 1, 2, 3, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 2, 3, 0, 1])


def test_one_set_serves_all_networks_and_each_may_have_its_own():
    shared = Examples.read((INPUTS, TARGETS), KIND, 3)
    assert shared.inputs.shape == (3, 6, 1, 2, 3)
    assert torch.equal(shared.targets[2], TARGETS)
    own = Examples.read((torch.stack((INPUTS, -INPUTS)), torch.stack((TARGETS, TARGETS.flip(0)))), KIND, 2)
    assert torch.equal(own.inputs[1], -INPUTS)
    flat = Examples.read((INPUTS.flatten(1).numpy(), TARGETS.tolist()), KIND, 1)
    assert torch.equal(flat.inputs, shared.inputs[:1])


@pytest.mark.parametrize("kind", ["uint16", "uint8", "float64"])
def test_examples_come_in_any_container_and_dtype(kind):
    expected = Examples.read((INPUTS, TARGETS), KIND, 1)
    targets = pd.Series(TARGETS.numpy().astype(kind))
    for inputs in (list(INPUTS), list(INPUTS.numpy()), pd.DataFrame(INPUTS.flatten(1).numpy())):
        got = Examples.read((inputs, targets), KIND, 1)
        assert torch.equal(got.inputs, expected.inputs)
        assert torch.equal(got.targets, expected.targets)


@pytest.mark.parametrize("value", [(INPUTS, None), INPUTS, (INPUTS, torch.full((6,), NO_LABEL))])
def test_examples_may_lack_labels(value):
    assert (Examples.read(value, KIND, 2).targets == NO_LABEL).all()


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ((INPUTS[:3], TARGETS[:3]), "4 to 512, got 3"),
        ((INPUTS[..., :2], TARGETS), r"must be \(E, 1, 2, 3\).*got \(6, 1, 2, 2\)"),
        ((torch.stack([INPUTS] * 3), TARGETS), "or 2 such sets"),
        ((INPUTS, TARGETS[:5]), r"must be \(6,\).*got \(5,\)"),
        ((INPUTS, TARGETS + 1), "from 0 to 3.*got 4"),
        ((INPUTS, TARGETS + 0.5), "from 0 to 3.*got 0.5"),
        ((INPUTS * torch.nan, TARGETS), "must be finite"),
        ((INPUTS.double() * 1e39, TARGETS), "must be finite in float32"),
        ("words", "must be"),
        ((INPUTS, [None, 1, 1, 1, 1, 1]), "targets must be numbers, got None; -1 is a target that is not known"),
        ((INPUTS, list("abcdef")), "targets must be numbers, got 'a'"),
        (([[1, 2], [3]], None), "inputs must be of one length"),
        ((INPUTS[:0], TARGETS[:0]), r"inputs of examples must be \(E, 1, 2, 3\).*got \(0, 1, 2, 3\)"),
        ((INPUTS + 1j, TARGETS), "inputs must be real numbers, got torch.complex64"),
        ({"inputs": INPUTS, "targets": TARGETS}, "got a dict"),
        ((INPUTS, TARGETS, TARGETS), "got a tuple"),
        (iter(INPUTS), r"must be \(inputs, targets\) or \(inputs, None\), got a"),
    ],
)
def test_what_does_not_fit_is_refused_in_a_line(value, message):
    with pytest.raises(ValueError, match=message) as caught:
        Examples.read(value, KIND, 2)
    assert "\n" not in str(caught.value)


def test_inputs_on_another_scale_are_refused_and_outliers_warned_of():
    kind = ExampleKind((1, 2, 3), 0, 4, (-1.0, 3.0))
    pixels = INPUTS.clamp(-1, 3)
    assert torch.equal(Examples.read((pixels, TARGETS), kind, 1).inputs[0], pixels)
    with pytest.raises(ValueError, match="from 0 to 255, those of the training went from -1 to 3; are they scaled"):
        Examples.read((torch.arange(36.0).view(6, 1, 2, 3) * 255 / 35, TARGETS), kind, 1)
    pixels[0] = 100
    with pytest.warns(UserWarning, match="to 100, those of the training"):
        Examples.read((pixels, TARGETS), kind, 1)


def test_a_generator_without_examples_says_so():
    with pytest.raises(ValueError, match="not trained on examples"):
        Examples.read((INPUTS, TARGETS), None, 1)


def test_the_kind_of_examples_follows_from_the_task():
    digits = get_task("digits", hidden=(2,))
    inputs = digits.dataset.train.inputs
    assert ExampleKind.of(digits) == ExampleKind((1, 8, 8), 0, 10, (inputs.min().item(), inputs.max().item()))
    assert ExampleKind.of(get_task("digits_subset", hidden=(2,))).num_classes == 2
    text = ExampleKind.of(get_task("python_source", width=4, num_blocks=1, num_heads=1))
    assert text.num_symbols == text.num_classes == text.num_features


def test_examples_are_read_from_files(tmp_path):
    np.savez(tmp_path / "some.npz", inputs=INPUTS.numpy(), targets=TARGETS.numpy())
    inputs, targets = load_examples(str(tmp_path / "some.npz"))
    assert torch.equal(torch.from_numpy(inputs), INPUTS)
    assert targets.tolist() == TARGETS.tolist()
    (tmp_path / "some.csv").write_text("a,target,b\n1,0,2\n3,1,4.5\n")
    inputs, targets = load_examples(str(tmp_path / "some.csv"))
    assert inputs.tolist() == [[1, 2], [3, 4.5]]
    assert targets.tolist() == [0, 1]
    (tmp_path / "some.csv").write_text("a,target\n1,0\n3,\n")
    assert load_examples(str(tmp_path / "some.csv"))[1].tolist() == [0, NO_LABEL]
    (tmp_path / "some.csv").write_text("")
    with pytest.raises(ValueError, match="has no rows"):
        load_examples(str(tmp_path / "some.csv"))
    (tmp_path / "some.txt").write_text("a text")
    assert load_examples(str(tmp_path / "some.txt")) == b"a text"
    with pytest.raises(ValueError, match=r"x\.npz, x\.csv or x\.txt"):
        load_examples(str(tmp_path / "some.json"))


@pytest.mark.parametrize("as_given", [bytes, bytes.decode])
def test_a_text_is_examples_of_the_next_byte(as_given):
    text = bytes(range(100, 127))
    read = Examples.read(as_given(text), ExampleKind((6,), 128, 128), 2)
    assert read.inputs.shape == read.targets.shape == (2, 4, 6)
    assert bytes(read.inputs[1].flatten().tolist()) == text[:24]
    assert torch.equal(read.targets, read.inputs + 1)


def test_a_text_that_is_too_short_or_for_other_generators_is_refused():
    with pytest.raises(ValueError, match="must have 25 bytes or more, 4 windows and one, got 24"):
        Examples.read("x" * 24, ExampleKind((6,), 128, 128), 1)
    with pytest.raises(ValueError, match=r"inputs of shape \(1, 2, 3\), got a text"):
        Examples.read("x" * 99, ExampleKind((1, 2, 3), 0, 10), 1)


def test_names_in_files_are_read_as_spreadsheets_write_them_and_none_is_passed_over(tmp_path):
    (tmp_path / "some.csv").write_text('\ufeff"target", "a"\n1,2\n', encoding="utf-8")
    inputs, targets = load_examples(str(tmp_path / "some.csv"))
    assert (inputs.tolist(), targets.tolist()) == ([[2]], [1])
    (tmp_path / "some.csv").write_text("1,2\n3,4\n")  # its first line would be lost
    with pytest.raises(ValueError, match="must name its columns"):
        load_examples(str(tmp_path / "some.csv"))
    np.savez(tmp_path / "some.npz", inputs=INPUTS.numpy(), labels=TARGETS.numpy())
    with pytest.raises(ValueError, match=r"`inputs` and perhaps `targets`, got \['inputs', 'labels'\]"):
        load_examples(str(tmp_path / "some.npz"))


def test_parts_of_examples_are_all_of_them_in_turn():
    inputs = torch.arange(10.0).expand(2, 10)[..., None]
    examples = Examples(inputs, inputs[..., 0].long(), torch.ones(2, dtype=torch.bool))
    parts = [examples.part(number, 4) for number in range(4)]
    assert parts[0].targets[1].tolist() == [0, 2, 4, 6, 8]
    assert parts[1].targets[1].tolist() == [1, 3, 5, 7, 9]
    assert torch.equal(parts[2].inputs, parts[0].inputs)
    for size in (0, 8, 100):
        assert torch.equal(examples.part(3, size).inputs, inputs)
