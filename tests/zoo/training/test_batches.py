import itertools

import pytest
import torch

from zoo.training.batches import own_indices, shared_indices

CPU = torch.device("cpu")


def test_an_epoch_sees_each_example_once():
    batches = list(itertools.islice(own_indices([5, 6], 23, 5, CPU), 8))
    for epoch in (batches[:4], batches[4:]):
        seen = torch.cat(epoch, 1)
        assert all(len(row.unique()) == 20 for row in seen)
    assert not torch.equal(torch.cat(batches[:4], 1), torch.cat(batches[4:], 1))


def test_a_run_draws_from_its_own_seed():
    together = list(itertools.islice(own_indices([5, 6, 7], 23, 5, CPU), 9))
    alone = list(itertools.islice(own_indices([7], 23, 5, CPU), 9))
    for a, b in zip(together, alone, strict=True):
        assert torch.equal(a[2], b[0])
    assert not torch.equal(together[0][0], together[0][1])


def test_shared_batches_are_those_of_one_run():
    shared = next(shared_indices(5, 23, 5, CPU))
    assert torch.equal(shared, next(own_indices([5], 23, 5, CPU))[0])


def test_batch_size_must_fit_the_training_split():
    with pytest.raises(ValueError, match="batch_size must be an integer from 1 to 23"):
        own_indices([5], 23, 24, CPU)
