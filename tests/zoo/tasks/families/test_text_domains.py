import argparse
import inspect

import pytest
import torch

from zoo.storage.splits import SplitRule
from zoo.tasks.families.family import members_of
from zoo.tasks.families.text_domains import TextDomains
from zoo.tasks.registry import get_task

TEXTS = {name: f"{name} says {i} ".encode() * 40 for i, name in enumerate("abcdefghijkl")}


def domains(texts=TEXTS, **options):
    return TextDomains(texts, **{"context": 8, "num_windows": 16, "min_bytes": 200} | options)


def words(inputs):
    return bytes(inputs.flatten().tolist())


def test_members_are_the_domains_by_name_cut_into_windows():
    family = domains()
    assert family.names == tuple("abcdefghijkl")
    for split, count in (("train", 16), ("val", 4), ("test", 4)):
        inputs, targets, _ = family.bind(torch.tensor([2, 5])).examples(torch.arange(count), split)
        assert inputs.shape == (2, count, 8)
        assert torch.equal(inputs[..., 1:], targets[..., :-1])
        for row, name in zip(inputs, "cf", strict=True):
            assert all(words(window) in TEXTS[name] for window in row)
    text = TEXTS["c"]
    end = int(0.8 * len(text))
    train = family.bind(torch.tensor([2])).examples(torch.tensor([0, 15])).inputs[0]
    assert words(train[0]) == text[:8]
    assert words(train[1]) == text[end - 9 : end - 1]


def test_another_domain_moves_none_to_another_split():
    more = domains({**TEXTS, "bb": b"something else " * 40})
    for split in ("train", "val", "test"):
        before = {domains().names[i] for i in members_of(domains(), split)}
        after = {more.names[i] for i in members_of(more, split)}
        assert before == after - {"bb"}


@pytest.mark.parametrize("fractions", [None, {"train": 0.6, "test": 0.4}])
def test_pooled_text_is_that_of_the_training_members_alone(fractions):
    texts = {f"domain{i}": f"<{i}>".encode() * 100 for i in range(60)}
    family = domains(texts, pooled=True, num_windows=2000, split_fractions=fractions)
    rule = SplitRule(fractions) if fractions else SplitRule()
    train = {family.names[i] for i in members_of(family, "train", rule=rule)}
    held_out = set(family.names) - train
    assert len(held_out) > (15 if fractions else 0)
    text = words(family.bind(torch.tensor([0])).examples(torch.arange(2000)).inputs)
    for name in family.names:
        assert (f"<{name.removeprefix('domain')}>".encode() in text) == (name not in held_out)


def test_folders_and_files_are_domains_and_copies_are_in_one(tmp_path):
    for name, text in TEXTS.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "text.txt").write_bytes(text)
    (tmp_path / "l.txt").write_bytes(TEXTS["a"])
    (tmp_path / "single.txt").write_bytes(b"a file beside folders " * 30)
    (tmp_path / "short.txt").write_bytes(b"short")
    options = {"path": tmp_path, "context": 8, "num_windows": 16, "min_bytes": 200, "width": 8, "num_heads": 2}
    with pytest.warns(UserWarning, match="1 of 14 domains have less than 200 bytes and are left out"):
        task = get_task("text_domains", **options)
    assert task.family.names == (*TEXTS, "single.txt")
    assert task.layout["head.weight"].shape[0] == 256
    with pytest.raises(FileNotFoundError, match="no folder at"):
        get_task("text_domains", path=tmp_path / "nothing")


def test_modules_of_the_standard_library_are_domains():
    family = get_task("text_domains", context=16, num_windows=16, width=8, num_blocks=1, num_heads=2).family
    assert family.num_members > 100
    assert {"argparse", "asyncio", "json"} <= set(family.names)
    windows = family.bind(torch.tensor([family.names.index("argparse")])).examples(torch.arange(16)).inputs[0]
    source = inspect.getsource(argparse).encode()
    assert all(words(window) in source for window in windows)


def test_too_little_text_is_refused():
    with pytest.raises(ValueError, match="two domains or more with 9,000 bytes of text, got 0 of 12"):
        domains(min_bytes=9000)
    with pytest.raises(ValueError, match=r"min_bytes >= 20 \* \(context \+ 1\)"):
        domains(context=64)
