import hashlib

import numpy as np
import pytest
import torch

from zoo.tasks.datasets import SPLIT_NAMES, Split, get_dataset

# The hashes are part of the contract: a zoo built today is comparable with one built next year.
HASHES = {
    "digits": "sha256:c8f088104d750777783f24f13068dbc54c716d949be37f0f7528af91a62a0361",
    "mnist5k": "sha256:1d4f31d91fbabc55f878164c2ac2deffa2031c7dda498cddedf53537089a0890",
}


@pytest.fixture(scope="module")
def digits():
    return get_dataset("digits")


def test_digits_are_split_once_and_for_all(digits):
    assert [len(digits.split(name)) for name in SPLIT_NAMES] == [1257, 270, 270]
    assert digits.train.inputs.shape == (1257, 1, 8, 8)
    assert (digits.train.inputs.min(), digits.train.inputs.max()) == (0, 1)
    assert digits.num_classes == 10
    assert digits.data_hash == HASHES["digits"]


def test_splits_hold_every_example_once(digits):
    from sklearn.datasets import load_digits

    raw = load_digits()
    inputs = torch.cat([digits.split(name).inputs for name in SPLIT_NAMES]).flatten(1) * 16
    targets = torch.cat([digits.split(name).targets for name in SPLIT_NAMES])
    ours = sorted(map(tuple, torch.cat([inputs, targets[:, None]], 1).int().tolist()))
    assert ours == sorted(map(tuple, np.c_[raw.data, raw.target].astype(int).tolist()))


def test_mnist5k_has_all_classes_in_every_split():
    dataset = get_dataset("mnist5k")
    assert dataset.train.inputs.shape == (3500, 1, 28, 28)
    for name in SPLIT_NAMES:
        assert dataset.split(name).targets.unique().tolist() == list(range(10))
    assert dataset.data_hash == HASHES["mnist5k"]


def test_the_hash_is_over_all_arrays():
    small = get_dataset("mnist1d", num_examples=100)
    assert small.data_hash == get_dataset("mnist1d", num_examples=100).data_hash
    assert small.data_hash != get_dataset("mnist1d", num_examples=100, seed=1).data_hash
    digest = hashlib.sha256()
    for name in SPLIT_NAMES:
        for tensor in (small.split(name).inputs, small.split(name).targets):
            array = tensor.numpy()
            digest.update(f"{array.dtype.str}{array.shape}".encode() + array.tobytes())
    assert small.data_hash == f"sha256:{digest.hexdigest()}"


def test_python_source_predicts_the_next_byte():
    dataset = get_dataset("python_source", size=50_000, context=32)
    assert dataset.num_classes == 128
    assert [len(dataset.split(name)) for name in SPLIT_NAMES] == [39_999 // 32, 4_999 // 32, 4_999 // 32]
    for name in SPLIT_NAMES:
        split = dataset.split(name)
        assert torch.equal(split.inputs.flatten()[1:], split.targets.flatten()[:-1])
        assert split.inputs.dtype == torch.int64
        assert 0 <= split.inputs.min() <= split.inputs.max() < 128
    text = bytes(dataset.train.inputs.flatten().tolist()).decode()
    assert "import" in text
    assert "def " in text


def test_documents_of_different_splits_do_not_overlap():
    """No long window of validation text occurs in the training text."""
    dataset = get_dataset("python_source", size=200_000, context=200)
    train = bytes(dataset.train.inputs.flatten().tolist())
    repeated = sum(bytes(row.tolist()) in train for row in dataset.val.inputs)
    assert repeated == 0


def test_examples_of_arrays_that_are_in_two_splits_are_said(tmp_path):
    x = np.random.RandomState(0).randn(30, 2)
    np.savez(tmp_path / "data.npz", x=np.concatenate([x, x]), y=np.arange(60) % 2)
    with pytest.warns(UserWarning, match=r"data\.npz: \d+ examples of val and test are in train, too"):
        get_dataset("arrays", path=tmp_path / "data.npz")


def test_a_larger_size_only_adds_text():
    small, large = (get_dataset("python_source", size=size, context=32) for size in (20_000, 40_000))
    assert torch.equal(large.train.inputs[: len(small.train)], small.train.inputs)


def test_arrays_of_ones_own(tmp_path):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(40, 3)), rng.integers(4, size=40)
    np.savez(tmp_path / "two.npz", x=x, y=y)
    dataset = get_dataset("arrays", path=str(tmp_path / "two.npz"))
    assert [len(dataset.split(name)) for name in SPLIT_NAMES] == [28, 6, 6]
    assert dataset.num_classes == y.max() + 1
    assert dataset.train.inputs.dtype == torch.float32
    parts = {f"{letter}_{name}": array[:8] for letter, array in (("x", x), ("y", y)) for name in SPLIT_NAMES}
    np.savez(tmp_path / "six.npz", **parts)
    dataset = get_dataset("arrays", path=str(tmp_path / "six.npz"))
    assert torch.equal(dataset.val.inputs, torch.from_numpy(x[:8]).float())
    assert torch.equal(dataset.test.targets, torch.from_numpy(y[:8]))


def test_real_targets_are_a_regression(tmp_path):
    np.savez(tmp_path / "data.npz", x=np.ones((20, 2)), y=np.linspace(0, 1, 20))
    dataset = get_dataset("arrays", path=str(tmp_path / "data.npz"))
    assert dataset.num_classes == 0
    assert dataset.train.targets.shape == (14, 1)
    assert dataset.train.targets.dtype == torch.float32


def test_splits_move_between_devices(digits):
    moved = digits.to("meta")
    assert moved.val.targets.device.type == "meta"
    assert moved.data_hash == digits.data_hash
    assert isinstance(moved.test, Split)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("cifar10", {}, r"data set must be one of \['arrays', 'cartpole', 'digits', .* got 'cifar10'"),
        ("digits", {"seed": 1}, r"'digits' has the options \[\], got \['seed'\]"),
        ("mnist1d", {"num_examples": 5}, "num_examples must be at least 10, got 5"),
        ("python_source", {"size": 100}, "size must be at least 100 windows"),
        ("python_source", {"context": 0}, "size must be at least"),
    ],
)
def test_bad_options_are_refused(name, options, message):
    with pytest.raises(ValueError, match=message):
        get_dataset(name, **options)


def test_too_few_examples_are_refused(tmp_path):
    np.savez(tmp_path / "data.npz", x=np.ones((3, 2)), y=np.zeros(3, int))
    with pytest.raises(ValueError, match="at least 4 examples"):
        get_dataset("arrays", path=str(tmp_path / "data.npz"))
    with pytest.raises(ValueError, match="split must be one of"):
        get_dataset("digits").split("validation")
