import numpy as np
import pytest

from zoo.storage.splits import SplitRule, uniform_hash


def test_every_run_is_in_one_split():
    rule = SplitRule()
    keys = np.arange(20_000)
    member = np.stack([rule.members(name, keys) for name in rule.fractions])
    assert (member.sum(axis=0) == 1).all()
    assert np.allclose(member.mean(axis=1), list(rule.fractions.values()), atol=0.01)


def test_a_run_stays_on_its_side_whatever_else_is_in_the_zoo():
    rule = SplitRule()
    keys = np.random.default_rng(0).integers(-(2**63), 2**63 - 1, 1000)
    order = np.random.default_rng(1).permutation(1000)
    assert np.array_equal(rule.members("val", keys)[order], rule.members("val", keys[order]))
    assert np.array_equal(rule.members("val", keys)[:10], rule.members("val", keys[:10]))


def test_the_order_of_the_fractions_does_not_matter():
    keys = np.arange(1000)
    one = SplitRule({"train": 0.7, "test": 0.3})
    other = SplitRule({"test": 0.3, "train": 0.7})
    assert np.array_equal(one.members("test", keys), other.members("test", keys))


def splitmix64(state):
    mask = 2**64 - 1
    z = (state + 0x9E3779B97F4A7C15) & mask
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
    return z ^ (z >> 31)


def test_the_hash_is_splitmix64():
    assert splitmix64(0) == 0xE220A8397B1DCDAF  # first output of the published generator with seed 0
    keys = [0, 1, -1, 2**63 - 1, -(2**63)]
    expected = [(splitmix64(key % 2**64) >> 11) / 2**53 for key in keys]
    assert uniform_hash(np.array(keys)).tolist() == expected


def test_splits_are_a_fixed_part_of_the_format():
    assert np.flatnonzero(SplitRule().members("val", np.arange(100))).tolist() == [44, 45, 52, 87, 91, 93, 94, 95]


def test_round_trip():
    rule = SplitRule({"train": 0.5, "test": 0.5}, "mask")
    assert SplitRule.from_dict(rule.to_dict()) == rule


@pytest.mark.parametrize("fractions", [{}, {"train": 0.5}, {"train": 1.5, "test": -0.5}])
def test_impossible_fractions_are_refused(fractions):
    with pytest.raises(ValueError, match="sum to 1"):
        SplitRule(fractions)


def test_unknown_names_are_refused():
    with pytest.raises(KeyError, match="declares"):
        SplitRule().members("nonsense", np.arange(3))
    with pytest.raises(ValueError, match="splitmix64"):
        SplitRule.from_dict({**SplitRule().to_dict(), "hash": "md5"})
