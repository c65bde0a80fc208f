"""All three jobs on real data in one run: a zoo, a generator, prompts, a learned optimizer, both together, tables.

    python -m scripts.demo [out=out/demo] [seed=0] [device=auto] [stages=[zoo,generator,...]] [skip=[optimizer]]

Inputs: none, all data ship with the dependencies. Outputs in `out`: `report.html`, one page that needs nothing
else, in which the generator runs;
`summary.json`; the zoo; the generator; a record of each stage. Ctrl-C loses nothing: finished stages are kept, the
interrupted one is resumed. Stages:

    zoo        2,048 networks trained at once
    generator  learns from them to make networks that have a prompted loss
    prompting  prompts it with losses, from unseen networks, and tests whether the answers are new
    optimizer  trains another network by learned optimizers, beside AdamW
    join       trains generated networks further by a learned optimizer
    tables     generates networks for tables never seen, beside gradient boosting

Typical run time: five minutes on two cores.
"""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig

from .cli import console, run, save_run


def main(config: DictConfig) -> None:
    from .demo_report.live import live_file
    from .demo_report.page import write_report
    from .demo_report.summary import summarize, summary_table
    from .demo_stages.all import STAGES
    from .demo_stages.stage import Record, choose_stages, record_path, run_stage

    chosen = choose_stages(STAGES, config)
    for stage in STAGES.values():
        if stage in chosen:
            console.rule(f"[bold]{stage.title}", align="left")
            run_stage(stage, STAGES, config)
    read = {name: Record.read(record_path(config, name)) for name in STAGES}
    records = {name: record for name, record in read.items() if record is not None and record.result is not None}
    out = Path(str(config.out)).absolute()
    summary = summarize(records, config)
    save_run(out, config, summary)
    live = live_file(config) if {"generator", "prompting"} <= set(records) else None
    write_report(records, summary, out, live)
    console.rule(align="left")
    console.print(summary_table(records, summary))
    console.print(f"report in {out / 'report.html'}, numbers in {out / 'summary.json'}", soft_wrap=True)


if __name__ == "__main__":
    run(main, "demo")
