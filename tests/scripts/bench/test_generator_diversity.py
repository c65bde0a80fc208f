import torch

from generator.evaluation.testbed import METRIC
from scripts.bench.generator_diversity import AsksFurther


def test_a_further_metric_is_drawn_of_training_networks_of_the_loss_that_is_asked_for():
    losses = torch.linspace(0.1, 2.0, 4096)
    losses[7] = torch.nan
    seen = []
    asked = torch.tensor([1.0, 0.1, 1.0]).repeat(20)
    sampler = AsksFurther(lambda start, prompt, rng: seen.append(prompt) or start, "train_loss", losses / 2, losses)
    sampler(None, {METRIC: asked}, torch.Generator().manual_seed(0))
    drawn = seen[0]["train_loss"]
    assert torch.equal(seen[0][METRIC], asked)
    assert ((2 * drawn - asked).abs() < 0.15).all()
    assert len(drawn[asked == 1.0].unique()) > 30  # of 40: each network its own
