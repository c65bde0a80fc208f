"""Look at a zoo, and verify it.

    python -m scripts.inspect_zoo zoo=PATH [verify=true] [out=PATH]

Inputs: a zoo, in a folder or at an s3:// address. Outputs: tables in the terminal; in `out`, by default the folder
PATH-inspect, the same as `summary.json`, and pictures: metrics over training, final metrics, distances between final
networks with their units matched, principal components of the trajectories. The tables end with what training changed
in each tensor: the share of its numbers, norm, and effective rank. With verify=true all of the zoo is read first; if
anything is wrong, it is listed, no picture is drawn, and the exit code is 1. Typical run time: 10 s, and 1 s for each
GB to verify.
"""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig

from zoo.inspection import draw_zoo, summarize, summary_tables
from zoo.storage.zoo import Zoo

from .cli import console, run, save_run


def main(config: DictConfig) -> int:
    zoo = Zoo.open(str(config.zoo))
    out = _out_folder(str(config.zoo), config.out)
    if config.verify:
        findings = [str(finding) for finding in zoo.verify()]
        if findings:
            console.print("\n".join(findings), markup=False, highlight=False, soft_wrap=True)
            console.print(f"{len(findings)} findings")
            save_run(out, config, {"zoo": str(config.zoo), "findings": findings})
            return 1
        console.print("verified: every number is there and has its checksum")
    summary = summarize(zoo)
    for table in summary_tables(summary):
        console.print(table)
    pictures = draw_zoo(zoo, out)
    save_run(out, config, summary | ({"findings": []} if config.verify else {}))
    console.print(
        f"summary.json and {', '.join(path.name for path in pictures) or 'no picture'} in {out}", soft_wrap=True
    )
    return 0


def _out_folder(zoo: str, out: str | None) -> Path:
    if out is not None:
        return Path(str(out))
    if "://" in zoo:
        raise ValueError(f"{zoo} is not on this disk: say with out=PATH where the pictures go")
    path = Path(zoo).absolute()
    return path.with_name(f"{path.name}-inspect")


if __name__ == "__main__":
    run(main, "inspect_zoo")
