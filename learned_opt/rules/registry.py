"""Update rules by the names that files of meta-parameters give them."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TypeVar

from learned_opt.rules.celo2 import Celo2Rule
from learned_opt.rules.mlp import MlpRule
from learned_opt.rules.normalized import NormalizedRule
from learned_opt.rules.rule import RuleOption, UpdateRule
from learned_opt.rules.velo import VeloRule
from zoo.settings import digest

RULES: dict[str, Callable[..., UpdateRule]] = {
    Celo2Rule.name: Celo2Rule,
    MlpRule.name: MlpRule,
    NormalizedRule.name: NormalizedRule.from_config,
    VeloRule.name: VeloRule,
}

_RuleClass = TypeVar("_RuleClass", bound=Callable[..., UpdateRule])


def register_rule(name: str) -> Callable[[_RuleClass], _RuleClass]:
    """Class decorator that makes a rule of your own known to `get_rule`."""

    def register(rule: _RuleClass) -> _RuleClass:
        RULES[name] = rule
        return rule

    return register


def get_rule(name: str, **options: RuleOption) -> UpdateRule:
    """Update rule of that name, its options as in its `config`.

    Raises:
        KeyError: for an unknown name; it says which there are.
    """
    if name not in RULES:
        raise KeyError(f"no update rule {name!r}; there are {sorted(RULES)}, and register_rule adds your own")
    return RULES[name](**options)


@cache
def rules_digest() -> str:
    """Short digest of the code of this package's rules: results of another version of it are not theirs."""
    folder = Path(__file__).parent
    return digest([path.read_text() for path in sorted(folder.rglob("*.py"))])[:12]
