"""Draw coordinate checks: does training change activations equally at every width, and at every depth?

    python -m scripts.coordinate_check theta=mulo-norm [widths=[64,128,256]] [depths=[2,4,8]] [out=PATH]

Inputs: meta-parameters of the package, or a file. Outputs in `out`: `width.png`, `depth.png`, and `summary.json` with
the change of each layer at each size and its exponent of growth. Typical run time: 2 minutes to width 2048.
"""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig
from rich.table import Table

from .cli import console, run, save_run
from .studies.optimizers.coordinate_check import check_depths, check_pretrained, plot


def main(config: DictConfig) -> None:
    out, seeds = Path(str(config.out)), range(config.num_seeds)
    out.mkdir(parents=True, exist_ok=True)
    summary = {}
    for size, check_all in (("width", check_pretrained), ("depth", check_depths)):
        sizes = [int(value) for value in config[f"{size}s"]]
        if len(set(sizes)) < 2:
            raise ValueError(f"an exponent of growth needs at least two {size}s, got {sizes}")
        checks = check_all(str(config.theta), sizes, seeds, config.device)
        table = Table(f"exponent of {size} in the change of", *next(iter(checks.values())).layers)
        for title, check in checks.items():
            table.add_row(title, *(f"{growth:.2f}" for growth in check.growth.values()))
        console.print(table)
        plot(checks, out / f"{size}.png", size)
        found = {title: {"growth": check.growth, "change": check.change.tolist()} for title, check in checks.items()}
        summary[size] = {"sizes": sizes, "checks": found}
    save_run(out, config, summary)
    console.print(f"width.png, depth.png and summary.json in {out.absolute()}", soft_wrap=True)


if __name__ == "__main__":
    run(main, "coordinate_check")
