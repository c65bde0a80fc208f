"""Who may import whom: zoo imports no sibling, generator and learned_opt only zoo, scripts all of them.

Within a package nothing that runs is imported in a circle, neither among files nor among rooms (folders): what a room
stands on never imports the room. Names for annotations may come from above.
"""

import ast
import graphlib
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


def imported_modules(path: Path, *, for_types: bool = True) -> set[str]:
    """Full names of the modules that a file imports, wherever in the file, with or without those for type checkers.

    Scripts import each other relatively, as an installed wheel has them under another name; nothing else does.
    """
    package = module_of(path.parent).split(".")
    names = set()
    tree = ast.parse(path.read_text())
    if not for_types:
        tree.body = [node for node in tree.body if not ast.unparse(node).startswith("if TYPE_CHECKING:")]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 or package[0] == "scripts", f"{path} uses a relative import"
            above = package[: len(package) + 1 - node.level] if node.level else []
            module = ".".join([*above, *filter(None, [node.module])])
            assert node.level or not module.startswith("scripts"), f"{path} imports a script by its full name"
            inner = {f"{module}.{alias.name}" for alias in node.names}
            names |= {name if (ROOT / f"{name.replace('.', '/')}.py").exists() else module for name in inner}
    return names


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_downwards(path):
    package = path.relative_to(ROOT).parts[0]
    siblings = {module.partition(".")[0] for module in imported_modules(path)} & MAY_IMPORT.keys()
    assert siblings <= MAY_IMPORT[package]


@pytest.mark.parametrize("package", ["zoo", "generator", "learned_opt"])
def test_nothing_is_imported_in_a_circle(package):
    files = [path for path in FILES if path.is_relative_to(ROOT / package)]
    modules = {module_of(path): imported_modules(path, for_types=False) for path in files}
    imports = {module: imported & modules.keys() for module, imported in modules.items()}
    rooms: dict[str, set[str]] = {}
    for module, imported in imports.items():
        room = room_of(module)
        rooms[room] = rooms.get(room, set()) | {room_of(other) for other in imported} - {room}
    for graph in (imports, rooms):
        graphlib.TopologicalSorter(graph).prepare()  # CycleError names the circle


def room_of(module: str) -> str:
    """The folder of a module within its package, or the module itself where it is in none."""
    return ".".join(module.split(".")[:2])


def test_commands_do_without_what_only_a_clone_has():
    """`evaluate_optimizer record=true` writes a benchmark's record, and says that it needs a clone."""
    for path in FILES:
        if not path.is_relative_to(ROOT / "scripts" / "bench") and path.name != "evaluate_optimizer.py":
            assert not {name for name in imported_modules(path) if name.startswith("scripts.bench")}, path


SCIENCE = ["scipy", "sklearn", "pandas", "matplotlib", "mlxtend"]
HEAVY = ["zarr", "diffusers", "lightning", "rich", "hydra", "omegaconf", "ray", "obstore", *SCIENCE]


NOT_LOADED = {  # by statements that one process runs in this order, so that each finds what those before it loaded
    "import zoo, generator, learned_opt, scripts.__main__": ["torch", *HEAVY],
    "from learned_opt import MuLO, NormalizedRule, load_pretrained": HEAVY,
    "from zoo import get_task, train_population; from zoo.networks import parametrization, symmetry": HEAVY,
    "from zoo import Zoo": [name for name in HEAVY if name != "zarr"],
    "from zoo import build_zoo, import_checkpoints": [
        "zoo.checkpoints.distributed", *(name for name in HEAVY if name != "zarr"),
    ],
    "from generator import ParameterPipeline": [
        "lightning", "sklearn", "generator.evaluation", "generator.training",
    ],
    "from generator import Testbed": ["lightning", "generator.evaluation.protocol"],
}  # fmt: skip


@pytest.fixture(scope="module")
def loaded():
    """What was loaded after each of those statements, of what must not be."""
    report = "print([name for name in {} if name in sys.modules])"
    lines = [f"{statement}\n{report.format(names)}" for statement, names in NOT_LOADED.items()]
    command = [sys.executable, "-c", "\n".join(["import sys", *lines])]
    said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return dict(zip(NOT_LOADED, said.splitlines(), strict=True))


@pytest.mark.parametrize("statement", NOT_LOADED)
def test_an_import_loads_only_what_it_needs(loaded, statement):
    assert loaded[statement] == "[]"


def test_a_name_that_no_package_has_is_refused():
    with pytest.raises(ImportError, match="cannot import name 'nonsense' from 'zoo'"):
        from zoo import nonsense  # noqa: F401


@pytest.mark.parametrize("package", ["zoo", "generator", "learned_opt"])
def test_public_names_exist_and_are_few(package):
    module = __import__(package)
    public = getattr(module, "__all__", [])
    assert len(public) <= 20
    assert set(public) <= set(dir(module))
    assert list(public) == sorted(public, key=lambda name: (not name.isupper(), not name[0].isupper(), name))
    for name in public:
        assert getattr(module, name).__doc__ or name.isupper(), f"{package}.{name} has no docstring"
