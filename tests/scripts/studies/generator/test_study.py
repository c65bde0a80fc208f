"""A study of a sampler that knows everything: rivals stand beside, and all tables, numbers and pictures are made."""

import json

import pytest
from rich.console import Console

from generator.evaluation.protocol import GENERATOR
from generator.evaluation.testbed import Testbed
from scripts.studies.generator.plots import save_plots
from scripts.studies.generator.report import print_report, save_report, summary
from scripts.studies.generator.study import study
from tests.generator.evaluation.test_protocol import SMALL, make_testbed, outcomes


@pytest.fixture(scope="module")
def testbed() -> Testbed:
    return make_testbed()


@pytest.fixture(scope="module")
def result(testbed):
    return study(outcomes(testbed), testbed, config=SMALL, max_adam_steps=20, num_tuning_starts=2)


def test_rivals_stand_beside(result):
    results = result.evaluation.results
    assert next(iter(results)) == GENERATOR
    assert {"retrieval", "ridge", "matched ridge", "rank-1 extrapolation", "tuned Adam"} < set(results)
    assert results["matched ridge"].foretelling.cosines.mean() < results[GENERATOR].foretelling.cosines.mean()
    assert result.adam.val_loss.shape == (8, len(result.adam.steps))


def test_tables_numbers_and_pictures(result, tmp_path):
    console = Console(width=200, record=True, file=(tmp_path / "log").open("w"))
    print_report(result, console)
    text = console.export_text()
    assert "matched ridge" in text
    assert "PASS" in text
    save_report(result, tmp_path / "evaluation.json")
    stored = json.loads((tmp_path / "evaluation.json").read_text())
    assert len(stored["evaluation"]["results"][GENERATOR]["alignment"]["val"]["loss"]) == 8
    assert json.loads(json.dumps(summary(result.evaluation)))["samplers"][GENERATOR]["r2_log"] > 0.9
    files = save_plots(result, tmp_path / "pictures")
    assert len(files) == 2 + 2 * len(result.evaluation.novelty)
    assert all(file.stat().st_size > 10_000 for file in files)
