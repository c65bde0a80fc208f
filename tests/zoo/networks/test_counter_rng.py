import pytest
import torch

from zoo.networks.counter_rng import CounterRng, at, philox, streams_of

WORD = 2**32 - 1
PI = [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344, 0xA4093822, 0x299F31D0]


@pytest.mark.parametrize(
    ("words", "expected"),
    [  # the published vectors of Random123
        ([0] * 6, [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
        ([WORD] * 6, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
        (PI, [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1]),
    ],
)
def test_philox_gives_the_published_numbers(words, expected):
    *counter, low, high = (torch.tensor(word) for word in words)
    assert [int(word) for word in philox(counter, (low, high))] == expected


def test_numbers_depend_on_seed_step_part_and_call_alone():
    stream = at(streams_of([3, 5])[1], step=7)
    rng, again = CounterRng(stream), CounterRng(at(streams_of([5])[0], step=torch.tensor(7)))
    first, second = rng.words((6,)), rng.words((6,))
    assert torch.equal(first, again.words((2, 3)).flatten())
    others = [second, *(CounterRng(one).words((6,)) for one in (at(stream, step=1), at(stream, part=1)))]
    assert len(torch.stack([first, *others]).flatten().unique()) == 24
    assert torch.equal(CounterRng(stream).words((9,))[:6], first)


def test_each_of_several_networks_draws_as_alone():
    streams = at(streams_of([1, 2, 3]), step=4)
    together = torch.vmap(lambda stream: CounterRng(stream).normal((5,)))(streams)
    for row, stream in zip(together, streams, strict=True):
        torch.testing.assert_close(row, CounterRng(stream).normal((5,)))


def test_distributions_are_as_named():
    rng = CounterRng(streams_of([0])[0])
    uniform, normal = rng.uniform((100, 400)), rng.normal((40_000,))
    assert uniform.min() >= 0
    assert uniform.max() < 1
    assert uniform.mean() == pytest.approx(0.5, abs=0.01)
    assert uniform.var() == pytest.approx(1 / 12, abs=0.005)
    assert normal.mean() == pytest.approx(0, abs=0.03)
    assert normal.std() == pytest.approx(1, abs=0.03)
    assert (normal**4).mean() == pytest.approx(3, abs=0.3)
    assert rng.keeps(0.3, (40_000,)).float().mean() == pytest.approx(0.3, abs=0.02)
    assert rng.keeps(1.0, (100,)).all()
    assert not rng.keeps(0.0, (100,)).any()
    assert rng.integers(3, (3000,)).bincount().tolist() == pytest.approx([1000] * 3, abs=150)
