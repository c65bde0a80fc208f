"""Who may import whom: zoo imports no sibling, generator and learned_opt only zoo, scripts all of them."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MAY_IMPORT = {
    "zoo": {"zoo"},
    "generator": {"generator", "zoo"},
    "learned_opt": {"learned_opt", "zoo"},
    "scripts": {"scripts", "zoo", "generator", "learned_opt"},
}
FILES = sorted(path for package in MAY_IMPORT for path in (ROOT / package).rglob("*.py"))


def imported_packages(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} uses a relative import"
            names.add(node.module or "")
    return {name.partition(".")[0] for name in names}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_downwards(path):
    package = path.relative_to(ROOT).parts[0]
    siblings = imported_packages(path) & MAY_IMPORT.keys()
    assert siblings <= MAY_IMPORT[package]


def test_importing_zoo_loads_nothing_heavy():
    heavy = ("diffusers", "lightning", "hydra", "ray", "obstore", "matplotlib", "sklearn", "mlxtend")
    program = f"import sys, zoo; print([name for name in {heavy} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


@pytest.mark.parametrize("package", ["zoo", "generator", "learned_opt"])
def test_public_names_exist_and_are_few(package):
    module = __import__(package)
    public = getattr(module, "__all__", [])
    assert len(public) <= 16
    assert list(public) == sorted(public, key=lambda name: (not name.isupper(), not name[0].isupper(), name))
    for name in public:
        assert getattr(module, name).__doc__ or name.isupper(), f"{package}.{name} has no docstring"
