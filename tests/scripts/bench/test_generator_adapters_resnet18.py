"""The one command: what it runs are settings that the experiments have, and each stands on what was built before."""

import pytest

from scripts.bench import generator_adapters, generator_adapters_resnet18
from scripts.cli import compose


@pytest.mark.parametrize("size", generator_adapters_resnet18.SIZES)
def test_each_part_is_built_on_those_before(size, monkeypatch, tmp_path):
    commands = []
    monkeypatch.setattr(generator_adapters_resnet18.subprocess, "run", lambda command, check: commands.append(command))
    asked = {}
    monkeypatch.setattr(generator_adapters, "rows", lambda *names, **options: asked.update(options) or names)
    (named,) = generator_adapters_resnet18.rows(device="cpu", size=size, out=str(tmp_path), seeds=2)
    base, start, zoo, *generators = [compose(script[8:], list(rest)) for _, _, script, *rest in commands]
    assert start.task.adapter.base == zoo.task.adapter.base == base.out
    assert zoo.init_from == start.out
    assert all(one.zoo == zoo.out == asked["zoo"] for one in generators)
    assert named.partition("=")[2] == ",".join(one.out for one in generators)
    assert [one.generator.optimization.seed for one in generators] == [0, 1]
    for one in generators:
        assert one.generator.optimization.num_steps % one.generator.optimization.num_epochs == 0
