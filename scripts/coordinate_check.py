"""Draw a coordinate check: does training change activations equally at every width?

    python -m scripts.coordinate_check theta=mulo-norm [widths=[64,128,256]] [out=PATH]

Inputs: meta-parameters of the package, or a file. Outputs in `out`: `coordinate_check.png`, and `summary.json` with the
change of each layer at each width and its exponent of growth. Typical run time: 2 minutes to width 2048.
"""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig
from rich.table import Table

from .cli import console, run, save_run
from .studies.optimizers.coordinate_check import check_pretrained, plot


def main(config: DictConfig) -> None:
    out, widths = Path(str(config.out)), [int(width) for width in config.widths]
    if len(set(widths)) < 2:
        raise ValueError(f"an exponent of growth needs at least two widths, got {widths}")
    checks = check_pretrained(str(config.theta), widths, range(config.num_seeds), config.device)
    layers = next(iter(checks.values())).layers
    table = Table("exponent of width in the change of", *layers)
    for title, check in checks.items():
        table.add_row(title, *(f"{check.growth[layer]:.2f}" for layer in layers))
    console.print(table)
    out.mkdir(parents=True, exist_ok=True)
    plot(checks, out / "coordinate_check.png")
    summary = {title: {"growth": check.growth, "change": check.change.tolist()} for title, check in checks.items()}
    save_run(out, config, {"widths": widths, "checks": summary})
    console.print(f"coordinate_check.png and summary.json in {out.absolute()}", soft_wrap=True)


if __name__ == "__main__":
    run(main, "coordinate_check")
