"""Rows of benchmarks: recording replaces what is measured again and keeps everything else."""

import json

import pytest

from scripts.bench.record import RESULTS, read_rows, record
from scripts.bench.render import TABLES, page
from scripts.rows import Row, over_seeds, table

KEYS = {
    "topic": str,
    "question": str,
    "setting": dict,
    "figures": dict,
    "spread": dict,
    "seeds": list,
    "note": str,
    "command": str,
    "commit": str,
    "versions": dict,
    "hardware": str,
    "date": str,
}
TOPICS = sorted(path.stem for path in RESULTS.glob("*.jsonl"))


def row(network="16", rate=1234.5678, **others):
    return Row(question="How fast?", setting={"network": network}, figures={"steps/s": rate}, **others)


def test_figures_of_several_seeds_have_a_range_and_those_of_one_have_none():
    assert over_seeds([{"a": 1.0, "b": 5.0}]) == {"figures": {"a": 1.0, "b": 5.0}, "spread": {}}
    several = over_seeds([{"a": 1.0}, {"a": 4.0}, {"a": 1.0}])
    assert several == {"figures": {"a": 2.0}, "spread": {"a": (1.0, 4.0)}}


def test_rows_have_what_identifies_and_explains_them(tmp_path):
    path = record(
        "speed", [row(spread={"steps/s": (1000.0, 1500.0)}, seeds=[0, 1])], folder=tmp_path, command="python x"
    )
    (line,) = path.read_text().splitlines()
    kept = json.loads(line)
    assert {key: type(value) for key, value in kept.items()} == KEYS
    assert kept["figures"] == {"steps/s": 1234.6}
    assert kept["spread"] == {"steps/s": [1000.0, 1500.0]}
    assert kept["command"] == "python x"
    assert set(kept["versions"]) == {"python", "torch", "numpy"}


def test_measuring_again_replaces_only_the_same_setting_on_the_same_hardware(tmp_path, monkeypatch):
    record("speed", [row("16"), row("32")], folder=tmp_path)
    monkeypatch.setattr("scripts.bench.record.hardware", lambda device: "another machine")
    record("speed", [row("16", 7.0)], folder=tmp_path)
    monkeypatch.undo()
    record("speed", [row("32", 9.0), row("64")], folder=tmp_path)
    rows = read_rows("speed", tmp_path)
    assert [(one["setting"]["network"], one["figures"]["steps/s"]) for one in rows] == [
        ("16", 1234.6),
        ("32", 9.0),
        ("16", 7.0),
        ("64", 1234.6),
    ]


def test_a_spread_without_its_figure_is_refused():
    with pytest.raises(ValueError, match="needs its figure"):
        row(spread={"seconds": (1.0, 2.0)})


def test_tables_show_settings_figures_and_spreads(tmp_path):
    rows = [
        row(spread={"steps/s": (1000.0, 1500.0)}),
        Row(question="How fast?", setting={"network": "32"}, figures={"R²": 0.5}),
    ]
    record("speed", rows, folder=tmp_path)
    assert table(read_rows("speed", tmp_path)).splitlines() == [
        "| network | steps/s | R² |",
        "| --- | ---: | ---: |",
        "| 16 | 1,235 (1,000 to 1,500) |  |",
        "| 32 |  | 0.5 |",
    ]


@pytest.mark.parametrize("topic", TOPICS)
def test_recorded_rows_are_sound_and_rendered(topic):
    rows = read_rows(topic)
    for kept in rows:
        assert {key: type(value) for key, value in kept.items()} == KEYS
        assert kept["topic"] == topic
        assert kept["figures"]
        assert set(kept["spread"]) <= set(kept["figures"])
    identities = [json.dumps([kept["question"], kept["setting"], kept["hardware"]]) for kept in rows]
    assert len(set(identities)) == len(identities), "recording again would leave one of them out"
    rendered = TABLES / f"{topic}.md"
    assert rendered.read_text() == page(topic, rows), "run python -m scripts.bench.render"
