"""Compare learned optimizers with tuned and learning-rate-free ones: tables and plots.

    python -m scripts.evaluate_optimizer
    python -m scripts.evaluate_optimizer groups=[conv,language] learning_rates=[3e-3,1e-2,3e-2]

Inputs: meta-parameters of the package or files in `theta`. Outputs in `out`: `report-<groups>.md`,
`ratios-<group>.png`, `curves-<group>.png`, and `cache/` with a file for each task and method, so that a rerun computes
only what is new. Main and far tasks take about 15 CPU-minutes, conv and language as long again. Prodigy,
Schedule-Free and Lion need `pip install prodigyopt schedulefree lion-pytorch`.
"""

from __future__ import annotations

from pathlib import Path

import torch
from omegaconf import DictConfig
from rich.progress import Progress

from learned_opt.allocator import keep_freed_memory
from learned_opt.evaluate import Result, evaluate
from learned_opt.evaluation_report import plot_curves, plot_ratios, report, with_tuned_muon
from learned_opt.evaluation_tasks import evaluation_tasks
from learned_opt.rivals import learned_methods, rivals, untrained_frame
from scripts import cli

_REFERENCE = "AdamW cosine"


def main(config: DictConfig) -> None:
    torch.set_num_threads(config.num_threads)
    keep_freed_memory()
    out, rates = Path(config.out), tuple(config.learning_rates)
    known = {method.name: method for method in [*rivals(rates), untrained_frame()]}
    if unknown := sorted(set(config.rivals) - set(known)):
        raise ValueError(f"rivals must be among {sorted(known)}, got {unknown}")
    methods = [known[name] for name in config.rivals] + learned_methods(list(config.theta))
    tasks = evaluation_tasks(tuple(config.groups))
    with Progress() as progress:
        bar = progress.add_task("training", total=len(methods) * len(tasks))

        def show(method: str, task: str, result: Result) -> None:
            progress.update(bar, advance=1, description=f"{task}, {method}")

        results = evaluate(methods, tasks, num_seeds=config.num_seeds, cache=out / "cache", on_result=show)
    results = with_tuned_muon(results)
    text = report(results, tasks, _REFERENCE)
    out.mkdir(parents=True, exist_ok=True)
    (out / f"report-{'-'.join(config.groups)}.md").write_text(text + "\n")
    for group in config.groups:
        chosen = [task for task in tasks if task.group == group]
        plot_ratios(results, chosen, _REFERENCE, out / f"ratios-{group}.png")
        plot_curves(results, chosen, list(results), out / f"curves-{group}.png")
    cli.console.print(text)
    cli.save_run(out, config, {"tasks": len(tasks), "methods": list(results)})


if __name__ == "__main__":
    cli.run(main, "evaluate_optimizer")
