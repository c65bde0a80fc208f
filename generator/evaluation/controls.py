"""Generators trained on a part of a zoo, for the novelty tests that need them.

Test (C) takes two generators of disjoint halves of the training runs, test (E) one that never saw a band of losses.
Each costs a whole training.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np

from generator.evaluation.novelty import BandReport, HalvesReport, halves_report, middle_band, withheld_band_report
from generator.evaluation.testbed import METRIC, PipelineSampler, Testbed
from generator.pipeline import ParameterPipeline
from generator.training.train import GeneratorConfig, train_generator
from generator.trajectories import Trajectories
from zoo.storage.selection import SelectedZoo
from zoo.storage.zoo import Zoo

FIRST_HALF, SECOND_HALF, WITHOUT_BAND = CONTROLS = ("first_half", "second_half", "without_band")
_NUM_BAND_PROMPTS: Final = 8


@dataclass(frozen=True)
class ControlReports:
    """Tests (C) and (E)."""

    halves: HalvesReport
    band: BandReport


def control_zoos(testbed: Testbed, zoo: Zoo) -> dict[str, Zoo]:
    """The parts of a zoo that the controls are trained on, by name.

    Both halves have every second training run, and all runs of other splits, on which models are selected. The band
    is the middle third of the range of prompts.
    """
    train = zoo.split("train")
    losses = zoo.metric(METRIC)
    low, high = band_of(testbed)
    return {
        FIRST_HALF: SelectedZoo(zoo, runs=np.setdiff1d(np.arange(zoo.num_runs), train[1::2])),
        SECOND_HALF: SelectedZoo(zoo, runs=np.setdiff1d(np.arange(zoo.num_runs), train[0::2])),
        WITHOUT_BAND: SelectedZoo(zoo, keep=~((losses > low) & (losses < high))),
    }


def band_of(testbed: Testbed) -> tuple[float, float]:
    """Losses that are withheld for test (E)."""
    return middle_band(testbed.prompts(2))


def train_controls(
    testbed: Testbed,
    zoo: Zoo,
    config: GeneratorConfig,
    *,
    out: Path,
    trainer_options: Mapping[str, Any] | None = None,
    report: Callable[[str], None] = print,
) -> dict[str, ParameterPipeline]:
    """Pipelines of the three controls, trained where they are not in `out` already.

    Their prompts are not calibrated: that would measure the answers inside the withheld band.

    Args:
        testbed: of the zoo.
        zoo: that the evaluated generator was trained on.
        config: settings of its training.
        out: folder of the controls.
        trainer_options: see `train_generator`.
        report: told which control is trained.
    """
    pipelines = {}
    config = replace(config, calibrate_prompts=False)
    for name, part in control_zoos(testbed, zoo).items():
        path = out / name / "pipeline"
        if path.exists():
            pipelines[name] = ParameterPipeline.from_pretrained(path)
            continue
        report(f"training the control {name!r}")
        pipelines[name] = train_generator([part], config, out=out / name, trainer_options=trainer_options)
        pipelines[name].save_pretrained(path)
    return pipelines


def control_reports(
    testbed: Testbed,
    zoo: Zoo,
    pipelines: Mapping[str, ParameterPipeline],
    sampler: PipelineSampler,
    *,
    num_starts: int = 64,
    seed: int = 0,
) -> ControlReports:
    """Tests (C) and (E).

    Args:
        testbed: of the zoo.
        zoo: of whose parts the controls were made.
        pipelines: from `train_controls`.
        sampler: of the evaluated generator; controls are sampled as it is.
        num_starts: unseen starts.
        seed: of the noise.
    """
    parts = control_zoos(testbed, zoo)
    samplers = {name: replace(sampler, pipeline=pipelines[name]) for name in CONTROLS}
    starts = testbed.starts(num_starts)
    halves = halves_report(
        (samplers[FIRST_HALF], samplers[SECOND_HALF]),
        (
            Trajectories.from_zoo(parts[FIRST_HALF], "train", (METRIC,)),
            Trajectories.from_zoo(parts[SECOND_HALF], "train", (METRIC,)),
        ),
        starts=starts,
        prompt=testbed.floor,
        seed=seed,
    )
    band = withheld_band_report(
        testbed,
        samplers[WITHOUT_BAND],
        band_of(testbed),
        starts=starts,
        num_prompts=_NUM_BAND_PROMPTS,
        seed=seed,
    )
    return ControlReports(halves, band)
