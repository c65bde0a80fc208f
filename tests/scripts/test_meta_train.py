"""What a meta-training leaves: theta of each stage, with the record of how it came to be."""

from omegaconf import OmegaConf

from learned_opt.meta_training import (
    FullUnrollConfig,
    MetaTrainConfig,
    MetaTrainStage,
    TaskDistributionConfig,
    ThetaOptimizerConfig,
    outer_curves,
    recipe,
)
from learned_opt.pretrained.files import load_theta
from scripts import meta_train


def stage(name: str, *, network: bool) -> MetaTrainStage:
    tasks = TaskDistributionConfig(families={"mlp": 1.0}, horizon=(5, 5), batch_sizes=(8,))
    return MetaTrainStage(
        name=name,
        rule="normalized",
        rule_options={"network": network},
        training=MetaTrainConfig(num_outer_steps=2, optimizer=ThetaOptimizerConfig(learning_rate=0.1)),
        estimator=FullUnrollConfig(num_pairs=2, std=0.1, tasks=tasks),
    )


class Curves(list):
    def log_metrics(self, metrics, step=None):
        self.append((step, metrics))


def test_a_file_of_theta_records_every_stage_that_led_to_it(tmp_path, monkeypatch):
    monkeypatch.setattr(recipe, "validation_tasks", lambda: [])
    monkeypatch.setattr(recipe.Validation, "__call__", lambda self, theta: 0.0)
    stages = [stage("first", network=False), stage("second", network=True)]
    curves = Curves()
    results = recipe.run_recipe(stages, seed=3, out=tmp_path, on_outer_step=outer_curves(curves))
    meta_train._save(results, tmp_path, OmegaConf.create({"name": "a-rule", "seed": 3}))
    first, second = (load_theta(tmp_path / f"{name}.safetensors").info for name in ("first", "second"))
    assert first["before"] == []
    assert second["before"] == [{key: value for key, value in first.items() if key != "before"}]
    assert second["command"] == "python -m scripts.meta_train experiment=a_rule seed=3"
    assert len(second["meta_loss"]) == 2
    steps, shown = zip(*curves, strict=True)
    assert steps == (1, 2, 1, 2)
    assert [metrics["second/meta_loss"] for metrics in shown[2:]] == results[1].result.history.meta_loss
    assert ["first/validation" in metrics for metrics in shown[:2]] == [False, True]  # validated after the last step
