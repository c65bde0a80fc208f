import pytest

from generator import GeneratorConfig, ObjectiveConfig, OptimizationConfig, Testbed, train_generator
from generator.evaluation import alignment_report
from zoo import build_zoo, get_task

MODEL = {"width": 16, "num_blocks": 1, "num_heads": 2, "edge_width": 8}
OPTIMIZATION = OptimizationConfig(num_steps=4, num_epochs=2, precision="float32")
OBJECTIVE = ObjectiveConfig(function_examples=8, function_episodes=2)


@pytest.fixture(scope="module")
def zoo(tmp_path_factory):
    task = get_task("cartpole", hidden=(4,), horizon=40)
    return build_zoo(
        tmp_path_factory.mktemp("zoo") / "zoo",
        task,
        num_runs=12,
        num_steps=6,
        batch_size=4,
        split_fractions={"train": 0.4, "val": 0.3, "test": 0.3},
    )


def test_policies_are_prompted_by_return(zoo, tmp_path):
    config = GeneratorConfig(metrics=("return",), model=MODEL, objective=OBJECTIVE, optimization=OPTIMIZATION)
    pipe = train_generator([zoo], config, out=tmp_path, trainer_options={"enable_progress_bar": False})
    report = alignment_report(pipe, zoo, config, num_starts=3)
    assert set(report) == {"start", "noise"}
    for figures in report.values():
        assert figures["r2"] <= 1
        assert figures["best_prompt"] == pytest.approx(pipe.model.ranges["val_return"].high, rel=0.3)
        assert 1 <= figures["test_return"] <= 40
        assert figures["finals"] == pytest.approx(zoo.metric("test_return")[zoo.split("test"), -1].mean())
    policy = get_task(**zoo.task_config).make_model()
    with pytest.warns(UserWarning, match="val_return = 1000 is outside"):
        pipe(start=policy, prompt={"return": 1000.0})


def test_the_protocol_of_losses_refuses_returns(zoo):
    with pytest.raises(ValueError, match=r"compares networks by val_loss, the zoo records .*val_return"):
        Testbed.from_zoo(zoo)
