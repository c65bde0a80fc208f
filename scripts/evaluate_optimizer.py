"""Compare learned optimizers with tuned and learning-rate-free ones: tables and plots.

    python -m scripts.evaluate_optimizer
    python -m scripts.evaluate_optimizer groups=[main] 'theta.mulo-norm=[A.safetensors,B.safetensors]' record=true
    python -m scripts.evaluate_optimizer groups=[main] '+theta.mine=[A.safetensors]'

Inputs: for each learned optimizer names of the package or files that differ in their meta-seed, in the same order;
`celo2` a file of PyLO. Outputs in `out`: `report.md`, `ratios-<group>.png`, `curves-<group>.png`, and `results/` with a
file for each task, method and learning rate, so that a rerun trains only what is new, and nothing with `train=false`.
`record=true` also puts the figures into `scripts/bench/results`, and `cards=learned_opt/pretrained` new tables into the
cards NAME.md of a folder.

Main and far tasks take about 20 CPU-minutes, the others an hour. Rivals need prodigyopt, schedulefree, lion-pytorch.
"""

from __future__ import annotations

from pathlib import Path

import torch
from omegaconf import DictConfig, OmegaConf
from rich.progress import Progress

from learned_opt.evaluation import Result, Results, evaluate, evaluation_tasks
from learned_opt.evaluation.learned_methods import learned_methods, named_rivals, shipped

from . import cli
from .allocator import keep_freed_memory
from .rows import tables
from .studies.optimizers.cards import write_cards
from .studies.optimizers.comparison import Comparison
from .studies.optimizers.goals import goal_rows
from .studies.optimizers.plots import plot_all
from .studies.optimizers.report import HOW_TO_READ, card_rows, comparison_rows

_PACKAGES = ("torch", "prodigyopt", "schedulefree", "lion-pytorch")


def main(config: DictConfig) -> None:
    if config.record and __name__ == "weightfoundry.evaluate_optimizer":
        raise ValueError("record=true writes into a clone: run python -m scripts.evaluate_optimizer there")
    torch.set_num_threads(config.num_threads)
    keep_freed_memory()
    out = Path(config.out)
    out.mkdir(parents=True, exist_ok=True)
    learned = learned_methods(OmegaConf.to_container(config.theta))
    methods = [method for group in learned.values() for method in group]
    tasks = evaluation_tasks(tuple(config.groups))
    results: Results = {}
    with Progress() as progress:
        bar = progress.add_task("training", total=(len(config.rivals) + len(methods)) * len(tasks))

        def show(method: str, task: str, result: Result | None) -> None:
            if result:
                results.setdefault(method, {})[task] = result
            progress.update(bar, advance=1, description=f"{task}, {method}")

        for group in config.groups:
            compared = [*named_rivals(config.rivals, tuple(config.learning_rates[group]), config.celo2), *methods]
            chosen = [task for task in tasks if task.group == group]
            options = {"num_seeds": config.num_seeds, "device": config.device, "train_missing": config.train}
            evaluate(compared, chosen, cache=out / "results", on_result=show, **options)
    names = {name: [method.name for method in group] for name, group in learned.items()}
    comparison = Comparison(results, tasks, names, shipped(methods))
    rows = [*goal_rows(comparison), *comparison_rows(comparison)]
    text = f"{HOW_TO_READ}\n\n{tables(rows)}"
    (out / "report.md").write_text(text + "\n")
    plot_all(comparison, out)
    cli.console.print(text, soft_wrap=True, markup=False)
    if config.record:
        from .bench.record import record  # a wheel has no benchmarks

        rows += [row for method in comparison.shipped.values() for row in card_rows(comparison, method)]
        cli.console.print(f"recorded in {record('learned_opt', rows, packages=_PACKAGES)}")
    if config.cards:
        cli.console.print(f"wrote {', '.join(map(str, write_cards(comparison, Path(config.cards))))}")
    cli.save_run(out, config, {"tasks": len(tasks), "methods": list(results)})


if __name__ == "__main__":
    cli.run(main, "evaluate_optimizer")
