"""On another device: the numbers of the CPU, and no step waits for the device."""

from contextlib import nullcontext

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from learned_opt import LearnedOptimizer, MlpRule, MuLO, NormalizedRule, Pretrained
from learned_opt.evaluation.comparison import evaluate
from learned_opt.evaluation.learned_methods import learned_methods, untrained_frame
from learned_opt.evaluation.rivals import rivals
from learned_opt.evaluation.tasks import EvaluationTask
from learned_opt.meta_training import synthetic_data
from learned_opt.meta_training.estimators import PES, FullUnrollES, TruncatedBackprop, TruncatedES
from learned_opt.meta_training.objective import LogLossObjective
from learned_opt.meta_training.task_distribution import TaskDistribution, TaskDistributionConfig, mlp_task
from learned_opt.meta_training.task_family import TaskFamily
from learned_opt.meta_training.theta_optimizer import ThetaOptimizerConfig
from learned_opt.meta_training.train import MetaTrainConfig, meta_train
from learned_opt.meta_training.truncated_step import LogUniformHorizon, TruncatedStep
from learned_opt.rules.celo2 import Celo2Rule
from learned_opt.rules.rule import UpdateRule
from learned_opt.rules.velo import VeloRule
from scripts.studies.optimizers.coordinate_check import check_pretrained
from zoo.networks.architectures import CNN, MLP, ByteTransformer

from ..devices import never_waiting

RULES = {  # in plain torch: the kernel in C is the CPU's alone
    "mulo": MlpRule(4, native=False),
    "mulo reference": MlpRule(4, reference=True),
    "mulo-norm": NormalizedRule(),
    "mulo-norm reference": NormalizedRule(reference=True),
    "celo2": Celo2Rule(),
    "velo": VeloRule(lstm=6, bank=4),
}
ROOM = 100 if torch.cuda.is_available() else 1  # a GPU rounds in another way, a pretended device as the CPU does
every_rule = pytest.mark.parametrize("rule", RULES.values(), ids=RULES)


def random_theta(rule: UpdateRule) -> Tensor:
    rng = torch.Generator().manual_seed(0)
    theta = rule.init_theta(rng)
    return theta + 0.01 * torch.randn(theta.shape, generator=rng)


def assert_equal(there: Tensor, here: Tensor) -> None:
    torch.testing.assert_close(there.cpu(), here.cpu(), rtol=ROOM * 1e-6, atol=ROOM * 1e-7)


def family() -> TaskFamily:
    tasks = [mlp_task(synthetic_data.teacher_student(seed, 6, 5, 0.1, 200), [5]) for seed in range(2)]
    return TaskFamily(tasks, batch_size=4, param_scale=2.0)


def model_and_batch(kind: str) -> tuple[nn.Module, Tensor, Tensor]:
    torch.manual_seed(0)
    targets = torch.randint(3, (8,))
    if kind == "mlp":
        return MLP(6, (8, 8), 3), torch.randn(8, 6), targets
    if kind == "cnn":
        return CNN(1, (4, 4), 3), torch.randn(8, 1, 6, 6), targets
    symbols = torch.randint(16, (2, 9))
    return ByteTransformer(16, 8, 8, 1, 2), symbols[:, :-1], symbols[:, 1:]


def train(models, optimizers, inputs, targets, steps=range(20), *, spoil=()):
    """Train a model, and twins of it on its gradients, without waiting: rounding is then the optimizers' alone.

    Some gradients are not finite at the steps `spoil`; at others they are zero in one tensor and absent in another.
    """
    for i in steps:
        models[0].zero_grad()
        loss = F.cross_entropy(models[0](inputs).flatten(0, -2), targets.flatten())
        loss.backward()
        first, second, *_ = models[0].parameters()
        if i in spoil:
            second.grad[0] = float("nan")
        elif i % 5 == 3:
            first.grad.zero_()
            second.grad = None
        for twin in models[1:]:
            for mine, its in zip(models[0].parameters(), twin.parameters(), strict=True):
                its.grad = None if mine.grad is None else mine.grad.to(its.device)
        for model, optimizer in zip(models, optimizers, strict=True):
            its_loss = loss.detach().to(next(model.parameters()).device)
            with never_waiting():
                optimizer.step(loss=its_loss)


def pair(kind: str, pretrained: Pretrained | str, *places):
    """Equal models in these places with their optimizers, inputs and targets."""
    models = [model_and_batch(kind)[0].to(place) for place in places]
    optimizers = [LearnedOptimizer(model, pretrained, num_training_steps=40, weight_decay=0.1) for model in models]
    return models, optimizers, *model_and_batch(kind)[1:]


def assert_twins(models) -> None:
    for here, there in zip(models[0].parameters(), models[1].parameters(), strict=True):
        assert_equal(there, here)


@every_rule
def test_an_optimizer_step_gives_the_numbers_of_the_cpu_without_waiting(device, rule):
    models, optimizers, *batch = pair("mlp", Pretrained(rule, random_theta(rule)), "cpu", device)
    train(models, optimizers, *batch, range(7), spoil=(0, 5))
    assert_twins(models)
    for optimizer in optimizers:
        assert (optimizer.num_skipped_steps, optimizer.inner_step) == (2, 5)


@pytest.mark.parametrize(("name", "kind"), [("mulo", "cnn"), ("mulo-norm", "transformer")])
def test_convolutions_and_transformers(device, name, kind):
    models, optimizers, *batch = pair(kind, Pretrained(RULES[name], random_theta(RULES[name])), "cpu", device)
    train(models, optimizers, *batch, range(3), spoil=(2,))
    assert_twins(models)


@pytest.mark.parametrize("horizon", [None, 20])
def test_the_recommended_optimizers_train_there(device, horizon):
    weights = []
    for place in ("cpu", device):
        model, inputs, targets = model_and_batch("mlp")
        model.to(place)
        train([model], [MuLO(model, num_training_steps=horizon)], inputs.to(place), targets.to(place), range(8))
        weights.append(torch.cat([p.detach().cpu().flatten() for p in model.parameters()]))
    torch.testing.assert_close(*weights, rtol=ROOM * 1e-5, atol=ROOM * 1e-6)


@every_rule
def test_a_stack_of_which_some_matrices_have_no_gradient(device, rule):
    stacks = []
    for place in ("cpu", device):
        torch.manual_seed(0)
        model = nn.Module()
        model.experts = nn.Parameter(torch.randn(3, 4, 6).to(place))
        pretrained = Pretrained(rule, random_theta(rule))
        optimizer = LearnedOptimizer(
            model, pretrained, num_training_steps=9, weight_decay=0.1, roles={"experts": "hidden"}, depth=2
        )
        for i in range(4):
            grad = torch.randn(3, 4, 6, generator=torch.Generator().manual_seed(i))
            grad[i % 2] = 0.0
            before, model.experts.grad = model.experts.detach().clone(), grad.to(place)
            with never_waiting():
                optimizer.step(loss=1.0)
            assert torch.equal(before[i % 2].cpu(), model.experts[i % 2].detach().cpu())
        stacks.append(model.experts.detach())
    assert_equal(stacks[1], stacks[0])


@pytest.mark.parametrize("name", ["mulo", "mulo-norm"])
def test_a_model_on_two_devices(device, name):
    """Then a step has to wait: what one device finds out decides about tensors on the other."""
    models = [model_and_batch("mlp")[0] for _ in range(2)]
    models[1].layers[0].to(device)
    pretrained = Pretrained(RULES[name], random_theta(RULES[name]))
    optimizers = [LearnedOptimizer(model, pretrained, average=8) for model in models]
    rng = torch.Generator().manual_seed(0)
    for i in range(4):
        for pair_of_params in zip(*(model.parameters() for model in models), strict=True):
            grad = torch.randn(pair_of_params[0].shape, generator=rng) * (i != 2 or pair_of_params[0].ndim > 1)
            for p in pair_of_params:
                p.grad = grad.to(p.device)
        for optimizer in optimizers:
            optimizer.step()
    assert_twins(models)
    assert [optimizer.inner_step for optimizer in optimizers] == [4, 4]


def test_gradients_that_are_not_finite_raise_if_asked_to(device):
    model = model_and_batch("mlp")[0].to(device)
    optimizer = MuLO(model, nonfinite="raise")
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    optimizer.step()
    next(model.parameters()).grad[0, 0] = float("inf")
    with pytest.raises(RuntimeError, match=r"\['layers\.0\.weight'\] are not finite, or above 1e\+15, at step 1"):
        optimizer.step()


def test_a_run_that_skips_every_step_says_so_when_asked(device):
    models, optimizers, *batch = pair("mlp", "mulo-norm", device)
    train(models, optimizers, *(part.to(device) for part in batch), range(12), spoil=range(12))
    with pytest.warns(UserWarning, match=r"last 12 steps were skipped, because gradients of \['layers.0.bias"):
        assert optimizers[0].num_skipped_steps == 12
    assert optimizers[0].inner_step == 0


def test_steps_beyond_the_horizon_are_reported(device):
    model = nn.Linear(2, 2).to(device)
    optimizer = MuLO(model, num_training_steps=5)
    for i in range(7):
        model.weight.grad = torch.full((2, 2), float("nan") if i == 1 else 1.0, device=device)
        with pytest.warns(UserWarning, match="step 5 is beyond num_training_steps=5") if i == 6 else nullcontext():
            optimizer.step()


@pytest.mark.parametrize(("name", "to_device"), [("mulo", True), ("mulo-norm", False)])
def test_a_state_is_loaded_on_another_device(device, name, to_device):
    places = ("cpu", device) if to_device else (device, "cpu")
    pretrained = Pretrained(RULES[name], random_theta(RULES[name]))
    models, optimizers, *batch = pair("mlp", pretrained, "cpu", *places)
    train(models[:2], optimizers[:2], *batch, range(5), spoil=(2,))
    models[2].load_state_dict({name: value.to("cpu") for name, value in models[1].state_dict().items()})
    saved = optimizers[1].state_dict()
    assert [type(saved["param_groups"][0][name]) for name in ("inner_step", "num_skipped_steps")] == [int, int]
    optimizers[2].load_state_dict(saved)
    train(models[::2], optimizers[::2], *batch, range(5, 9))
    assert_twins(models[::2])
    assert optimizers[2].inner_step == 8


@every_rule
def test_truncated_steps_do_not_wait_between_resets(device, rule):
    results = []
    for place in ("cpu", device):
        step = TruncatedStep(rule, family().to(place), LogUniformHorizon(4, 4), num_groups=3)
        rng = torch.Generator().manual_seed(0)
        state, theta = step.start(rng), random_theta(rule).to(place)
        with never_waiting(), torch.no_grad():
            first = step.advance(theta, state, 4, rng)
        with torch.no_grad():
            second = step.advance(theta, state, 2, rng)  # after a reset
        results.append((first.losses, second.losses, state.params, *step.evaluate(state)))
    for here, there in zip(*results, strict=True):
        assert_equal(there, here)


ESTIMATORS = [
    *((PES, name) for name in ("mulo", "mulo-norm")),
    (TruncatedES, "mulo-norm"),
    (TruncatedBackprop, "mulo reference"),
]


@pytest.mark.parametrize(("kind", "name"), ESTIMATORS, ids=[f"{kind.__name__}, {name}" for kind, name in ESTIMATORS])
def test_meta_training_is_resumed_on_another_device(device, tmp_path, kind, name):
    rule = RULES[name]
    results = []
    for places in (("cpu", "cpu"), ("cpu", device), (device, "cpu")):
        out = tmp_path / str(places).replace(":", "")
        for num_outer_steps, place in zip((1, 2), places, strict=True):
            horizon = LogUniformHorizon(2, 9)
            steps = [TruncatedStep(rule, family(), horizon, num_groups=2, num_copies=kind.num_copies)]
            estimator = kind(steps, truncation_length=3, **({} if kind is TruncatedBackprop else {"std": 0.01}))
            config = MetaTrainConfig(
                num_outer_steps=2, checkpoint_every=1, optimizer=ThetaOptimizerConfig(learning_rate=0.1)
            )
            stop = Stop(num_outer_steps)
            try:
                result = meta_train(
                    estimator,
                    random_theta(rule),
                    config,
                    unit=0.01,
                    out=out,
                    settings="these",
                    on_outer_step=stop,
                    device=place,
                )
            except InterruptedError:
                continue
        results.append((result.theta, torch.tensor(result.history.meta_loss)))
    for other in results[1:]:
        for here, there in zip(results[0], other, strict=True):
            torch.testing.assert_close(there, here, rtol=ROOM * 1e-5, atol=ROOM * 1e-6)


class Stop:
    def __init__(self, at: int) -> None:
        self.at = at

    def __call__(self, done: int, _: object) -> None:
        if done == self.at < 2:
            raise InterruptedError


def test_full_unrolls_of_every_kind_of_task(device):
    rule = RULES["mulo-norm"]
    objective = LogLossObjective(validation_weight=0.3, error_weight=0.1)
    gradients = []
    for place in ("cpu", device):
        gradients.append([])
        for kind in ("mlp", "cnn", "language"):
            tasks = TaskDistribution(TaskDistributionConfig(families={kind: 1.0}, horizon=(2, 2)))
            estimator = FullUnrollES(rule, tasks, objective, num_pairs=2, std=0.1)
            estimator.to(torch.device(place))
            estimate = estimator.estimate(random_theta(rule), torch.Generator().manual_seed(3))
            gradients[-1].append(estimate.grad)
    for here, there in zip(*gradients, strict=True):
        torch.testing.assert_close(there.cpu(), here, rtol=ROOM * 1e-4, atol=ROOM * 1e-5)


def test_a_comparison_of_optimizers(device):
    methods = [method for method in rivals((1e-3, 1e-2)) if method.name.split()[0] in ("AdamW", "Muon", "Adafactor")]
    learned = learned_methods({"mulo-norm": ["mulo-norm"], "mulo-wsd": ["mulo"]})
    methods += [untrained_frame(), *(method for group in learned.values() for method in group)]
    task = EvaluationTask("tiny", "main", family(), 5)
    here, there = (evaluate(methods, [task], num_seeds=2, device=place) for place in ("cpu", device))
    for name in here:
        for measure in ("mean_loss", "final_loss", "val_loss", "test_loss", "test_error"):
            expected, found = (results[name]["tiny"].measure(measure) for results in (here, there))
            assert found == pytest.approx(expected, rel=ROOM * 1e-4, abs=ROOM * 1e-6), (name, measure)


def test_the_coordinate_check(device):
    rule = RULES["mulo-norm"]
    pretrained = Pretrained(rule, random_theta(rule), "tiny")
    here, there = (check_pretrained(pretrained, (8, 16), (0,), place) for place in ("cpu", device))
    for title, check in here.items():
        assert there[title].change == pytest.approx(check.change, rel=ROOM * 1e-4)
