import math

import pytest
import torch

from generator.prompts.prompt import MetricRange, Prompt, PromptEncoder, canonical_metric

METRICS = ["val_error", "val_loss", "val_return"]
RANGES = {
    "val_error": MetricRange(0.02, 0.9),
    "val_loss": MetricRange(0.1, 2.3),
    "val_return": MetricRange(-5.0, 200.0),
}


def encode(prompt, num_task_bits=0):
    return PromptEncoder(RANGES, num_task_bits)(prompt)


def test_short_names_mean_validation_metrics():
    one = Prompt.of({"loss": 0.3, "error": 0.1}, METRICS, 2)
    other = Prompt.of({"val_loss": 0.3, "val_error": 0.1}, METRICS, 2)
    assert torch.equal(one.target.nan_to_num(-1), other.target.nan_to_num(-1))
    with pytest.raises(ValueError, match="it knows"):
        canonical_metric("train_loss", METRICS)


def test_what_is_not_given_is_marked_and_changes_nothing_else():
    nothing, loss, both = (
        encode(Prompt.of(values, METRICS, 1)) for values in ({}, {"loss": 0.3}, {"loss": 0.3, "error": 0.1})
    )
    assert not nothing.any()
    assert (loss != nothing).sum() <= (both != nothing).sum()
    shared = loss != 0
    assert torch.equal(both[shared], loss[shared])


def test_features_are_finite_for_every_value_a_metric_can_have():
    for name, values in {"loss": (0.0, 1e-9, 50.0), "error": (0.0, 1.0), "return": (-1e4, 1e4)}.items():
        for value in values:
            assert encode(Prompt.of({name: value}, METRICS, 1)).isfinite().all()


def test_neighbouring_losses_can_be_told_apart():
    losses = torch.logspace(math.log10(0.08), math.log10(2.2), 16)
    features = encode(Prompt.of({"loss": losses}, METRICS, 16))
    assert torch.pdist(features).min() > 0.1


def test_task_bits_and_starts_are_part_of_the_prompt():
    bits = torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 1.0]])
    prompt = Prompt.of({"loss": 0.3, "task_bits": bits}, METRICS, 2, start={"loss": 2.0}, num_task_bits=3)
    features = encode(prompt, 3)
    assert not torch.equal(features[0], features[1])
    free = encode(prompt.empty(), 3)
    assert free.any()  # what is known of the start stays
    assert torch.equal(free[0], free[1])


def test_task_bits_are_refused_where_none_were_trained_on():
    with pytest.raises(ValueError, match="was not trained on task_bits"):
        Prompt.of({"task_bits": [1, 0]}, METRICS, 1)


def test_batches_can_be_cut():
    prompt = Prompt.of({"loss": torch.tensor([0.1, 0.2, 0.3])}, METRICS, 3)
    assert prompt[torch.tensor([2])].target[0, 1].item() == pytest.approx(0.3)
