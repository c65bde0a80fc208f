"""The whole evaluation on a tiny zoo: a sampler that knows everything passes it, a pipeline is a sampler."""

from dataclasses import replace

import pytest
import torch

from generator.alignment import Alignment
from generator.evaluation.baselines import Retrieval
from generator.evaluation.generalization import Generalization
from generator.evaluation.novelty import Foretelling
from generator.evaluation.protocol import GENERATOR, EvaluationConfig, SamplerResult, evaluate, saturation_verdict
from generator.evaluation.testbed import METRIC, PipelineSampler, Testbed
from generator.pipeline import ParameterPipeline
from generator.sampler import make_scheduler
from generator.training.assembly import assemble
from generator.training.config import GeneratorConfig
from generator.trajectories import Trajectories, nearest_snapshots
from zoo.networks.metrics import euclidean_distances
from zoo.tasks.registry import get_task
from zoo.training.optimizers import Adam
from zoo.training.population import train_population

TASK = get_task("digits", hidden=(6,))
NUM_UNSEEN = 10
SMALL = EvaluationConfig(num_starts=8, num_novelty_starts=8, num_prompts=4, num_updates=2)


def make_testbed() -> Testbed:
    """24 real runs of 6 hidden units to learn from and 10 unseen ones, 13 snapshots of 120 steps each."""
    snapshots = train_population(
        TASK, Adam(lr=0.01), range(34), num_steps=120, snapshot_steps=range(0, 121, 10), compile=False
    )
    params = torch.stack([one.params for one in snapshots], dim=1)
    losses = TASK.evaluate(params.flatten(0, 1), "val")["loss"].view(params.shape[:2])
    unseen, train = (
        Trajectories(TASK.layout, params[rows], {METRIC: losses[rows]})
        for rows in (slice(NUM_UNSEEN), slice(NUM_UNSEEN, None))
    )
    return Testbed(TASK, train, unseen)


def outcomes(testbed: Testbed):
    """A sampler that knows what every unseen start became, and leaves all others as they are."""

    def sampler(start, prompt, rng):
        gaps, rows = euclidean_distances(start, testbed.starts(NUM_UNSEEN)).min(1)
        found = testbed.unseen.read(rows, nearest_snapshots(testbed.unseen.metrics[METRIC][rows], prompt[METRIC]))
        return torch.where(gaps[:, None] == 0, found, start)

    return sampler


@pytest.fixture(scope="module")
def testbed() -> Testbed:
    return make_testbed()


@pytest.fixture(scope="module")
def evaluation(testbed):
    return evaluate(outcomes(testbed), testbed, config=SMALL)


def test_who_knows_everything_passes(evaluation):
    result = evaluation.results[GENERATOR]
    assert result.alignment.r2_log > 0.9
    assert result.foretelling.cosines.min() > 0.999
    diversity = ("errors differ", "outputs differ", "same examples are hard")
    assert result.generalization.gap.mean(0).abs().max() < 0.05
    for claim in ("below the floor", "no template", *diversity, "novelty D"):
        assert evaluation.verdicts[claim].passed, evaluation.verdicts[claim].text


def test_simple_baselines_stand_beside(evaluation):
    assert next(iter(evaluation.results)) == GENERATOR
    assert {"retrieval", "mean of 8 nearest", "noisy copy"} < set(evaluation.results)
    assert all(result.alignment.val["loss"].shape == (8, 4) for result in evaluation.results.values())
    assert evaluation.results["retrieval"].foretelling.cosines.mean() < 0.5


def test_prompts_run_from_the_floor_upwards_and_others_lie_below(evaluation, testbed):
    result = evaluation.results[GENERATOR]
    assert result.alignment.prompts[0].item() == pytest.approx(testbed.floor, rel=1e-5)
    assert (result.below.prompts < testbed.floor).all()


def test_feeding_back_changes_nothing_for_who_leaves_networks_as_they_are(evaluation):
    first, second = evaluation.recursion
    torch.testing.assert_close(first.val["loss"], second.val["loss"])


def test_a_generator_from_noise_is_not_asked_to_foretell(testbed):
    config = replace(SMALL, uses_start=False, baselines=False)
    evaluation = evaluate(outcomes(testbed), testbed, others={"retrieval": Retrieval(testbed.train)}, config=config)
    assert len(evaluation.recursion) == 1
    assert "novelty D" not in evaluation.verdicts


def test_overconfident_networks_below_the_floor_fail():
    def result(loss_below: float) -> SamplerResult:
        def alignment(prompts, loss):
            values = {"loss": torch.full((8, len(prompts)), loss), "error": torch.zeros(8, len(prompts))}
            return Alignment(torch.tensor(prompts), values, values)

        known = Foretelling(torch.zeros(8), torch.zeros(8))
        gaps = Generalization(torch.ones(8, 2), torch.zeros(8, 2))
        return SamplerResult(alignment([0.1, 0.2], 0.1), alignment([0.03], loss_below), (), known, gaps, 0.0)

    assert saturation_verdict(result(0.11)).passed
    assert not saturation_verdict(result(0.28)).passed


@pytest.mark.parametrize("fingerprints", [False, True])
def test_a_pipeline_is_a_sampler(testbed, fingerprints):
    config = GeneratorConfig(model={"width": 16, "num_blocks": 1, "num_heads": 2}, fingerprints=fingerprints)
    model, normalizer, _ = assemble([testbed.train], [TASK], config)
    pipe = ParameterPipeline(model.eval(), normalizer, make_scheduler("sample"))
    sampler = PipelineSampler(pipe, TASK, num_inference_steps=2)
    starts, prompt = testbed.starts(3), {METRIC: torch.tensor([0.5, 1.0, 1e-3])}

    def sampled(sampler, starts):
        return sampler(starts, prompt, torch.Generator().manual_seed(0))

    assert sampled(sampler, starts).shape == starts.shape
    torch.testing.assert_close(sampled(sampler, starts), sampled(sampler, starts))
    from_noise = PipelineSampler(pipe, TASK, use_start=False, num_inference_steps=2)
    torch.testing.assert_close(sampled(from_noise, starts), sampled(from_noise, starts + 1))


def test_another_architecture_is_refused(testbed):
    with pytest.raises(ValueError, match="another architecture"):
        Testbed(get_task("digits", hidden=(7,)), testbed.train, testbed.unseen)


def test_a_missing_metric_is_named(testbed):
    bare = Trajectories(TASK.layout, testbed.starts(2)[:, None], {"train_loss": torch.ones(2, 1)})
    with pytest.raises(ValueError, match="train must have the metric 'val_loss'"):
        Testbed(TASK, bare, testbed.unseen)
