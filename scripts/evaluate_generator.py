"""Evaluate a generator on initial networks that it has not seen, beside everything that it must beat.

    python -m scripts.evaluate_generator pipeline=out/generator zoo=PATH
    python -m scripts.evaluate_generator pipeline=PATH zoo=PATH +others.twin=PATH +others.function_loss_only=PATH
    python -m scripts.evaluate_generator pipeline=PATH zoo=PATH train_controls=true

Inputs: the folder of a trained generator, and the zoo that it was trained on. Outputs in `out`: `report.txt` with all
tables and verdicts, `evaluation.json` with all numbers, pictures, the resolved config and `summary.json`. For small
networks it takes about five minutes; `train_controls=true` trains three more generators with the settings of the
first, three times its training, for the novelty tests C and E. A generator of a task family is evaluated in seconds, on
the tasks that its training held out. The protocol is in docs/evaluation.md.
"""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from .cli import console, run, save_run


def main(config: DictConfig) -> None:
    import torch
    from diffusers.utils.logging import disable_progress_bar
    from hydra.utils import instantiate
    from rich.console import Console

    from generator import ParameterPipeline, PipelineSampler, Testbed
    from generator.evaluation import unseen_tasks_report
    from zoo import Zoo
    from zoo.devices import resolve_device

    from .studies.generator.controls import control_reports
    from .studies.generator.plots import save_plots
    from .studies.generator.report import print_report, print_verdicts, save_report, summary, task_table
    from .studies.generator.ridge import task_rivals
    from .studies.generator.study import study

    if config.num_threads:
        torch.set_num_threads(config.num_threads)
    zoo = Zoo.open(str(config.zoo))
    trained = Path(str(config.pipeline))
    trained = trained if (trained / "pipeline").exists() else trained.parent  # folder of the training
    out = Path(str(config.out or trained / "evaluation"))
    device = resolve_device(config.device)
    paths = {"generator": config.pipeline, **config.others}
    disable_progress_bar()  # of loading three small files
    pipes = {name: ParameterPipeline.from_pretrained(str(path)).to(device) for name, path in paths.items()}
    model = pipes["generator"].model
    if model.config["num_task_bits"] or model.example_kind is not None:
        rivals = {"rivals": task_rivals} if model.config["num_task_bits"] else {}  # they know a task by its bits
        tasks = unseen_tasks_report(pipes["generator"], zoo, **rivals)
        console.print(task_table(tasks))
        save_run(out, config, tasks)
        return
    testbed = Testbed.from_zoo(zoo, device=device)
    sampling = {name: config[name] for name in ("use_start", "num_inference_steps", "eta")}
    samplers = {name: PipelineSampler(pipe, testbed.task, **sampling) for name, pipe in pipes.items()}
    generator = samplers.pop("generator")
    sizes = instantiate(config.evaluation, uses_start=generator.uses_start)

    result = study(
        generator,
        testbed,
        others=samplers,
        config=sizes,
        max_adam_steps=config.max_adam_steps,
        num_tuning_starts=config.num_tuning_starts,
        report=console.print,
    )
    text = Console(width=180, record=True, file=console.file)
    print_report(result, text)
    save_report(result, out / "evaluation.json")
    save_plots(result, out)
    if config.train_controls:
        settings = OmegaConf.load(config.training_config or trained / "config.yaml")
        halves, band = control_reports(
            testbed,
            zoo,
            generator,
            instantiate(settings.generator, _convert_="all"),
            out=out / "controls",
            device=config.device,
            trainer_options=OmegaConf.to_container(settings.trainer, resolve=True),
            seed=sizes.seed,
            report=console.print,
        )
        print_verdicts({"novelty C": halves.verdict, "novelty E": band.verdict}, text)
        save_report({"halves": halves, "band": band}, out / "controls.json")
    text.save_text(str(out / "report.txt"))
    save_run(out, config, summary(result.evaluation))
    console.print(f"report and pictures in {out}", soft_wrap=True)


if __name__ == "__main__":
    run(main, "evaluate_generator")
