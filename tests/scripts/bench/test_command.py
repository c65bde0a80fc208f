"""A benchmark's options are the parameters of the function that measures."""

import sys

import pytest
import torch

from scripts.bench import command
from scripts.rows import Row


def rows(
    zoo: str, *names: str, sizes: tuple[int, ...] = (1, 2), rate: float = 0.1, device: str = "cpu", quick: bool = False
):
    """What was given.

    Args:
        zoo: that is measured
    """
    setting = {"zoo": zoo, "names": " ".join(names), "device": f"{device}", "quick": quick}
    yield Row(question="What was given?", setting=setting, figures={"sizes": sum(sizes), "rate": rate})


def run(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["bench", *arguments])
    recorded = []
    monkeypatch.setattr(command, "record", lambda topic, rows, **options: recorded.append((topic, rows, options)))
    threads = torch.get_num_threads()
    try:
        command.bench("topic", rows, num_threads=threads)
    finally:
        torch.set_num_threads(threads)
    return recorded


def test_what_is_given_is_measured_printed_and_recorded(monkeypatch, capsys):
    assert run(monkeypatch, "out/zoo") == []
    assert "| out/zoo |  | cpu | no | 3 | 0.1 |" in capsys.readouterr().out
    options = ["--sizes", "3", "4", "--rate", "2", "--quick", "--record"]
    ((topic, (row,), others),) = run(monkeypatch, "out/zoo", "a", "b", *options)
    assert (topic, others["device"]) == ("topic", torch.device("cpu"))
    assert row.setting == {"zoo": "out/zoo", "names": "a b", "device": "cpu", "quick": True}
    assert row.figures == {"sizes": 7, "rate": 2.0}


@pytest.mark.parametrize("arguments", [[], ["out/zoo", "--sizes", "x"], ["out/zoo", "--unknown", "1"]])
def test_what_does_not_fit_is_refused(monkeypatch, arguments):
    with pytest.raises(SystemExit) as error:
        run(monkeypatch, *arguments)
    assert error.value.code == 2


def test_help_says_what_the_docstrings_say(monkeypatch, capsys):
    with pytest.raises(SystemExit):
        run(monkeypatch, "--help")
    said = capsys.readouterr().out
    assert __doc__ in said
    assert "that is measured" in said
