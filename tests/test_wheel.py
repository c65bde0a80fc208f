"""What a user gets who installs the wheel: the packages and the console command, and nothing else."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from email.parser import Parser
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parent.parent
PACKAGES = {"zoo": "zoo", "generator": "generator", "learned_opt": "learned_opt", "scripts": "weightfoundry"}
LEFT_OUT = ("scripts/bench", "zoo/README.md")  # what only a clone has

TRAIN = """
import torch
from torch import nn
from learned_opt import MuLO

torch.manual_seed(0)
model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 3))
optimizer = MuLO(model, num_training_steps=40)
inputs = torch.randn(64, 8)
targets = inputs[:, :3].argmax(1)
losses = []
for _ in range(40):
    losses.append(nn.functional.cross_entropy(model(inputs), targets))
    optimizer.zero_grad()
    losses[-1].backward()
    optimizer.step()

def error_of(statement):
    try:
        exec(statement)
    except ImportError as error:
        return str(error)

import json
statements = ("from zoo import Zoo", "from generator import Testbed", "import scripts")
errors = [error_of(statement) for statement in statements]
print(json.dumps({"losses": [losses[0].item(), losses[-1].item()], "errors": errors}))
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in PACKAGES:
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    pip("wheel", source, "--no-build-isolation", "--wheel-dir", out)
    return next(out.glob("*.whl"))


@pytest.fixture(scope="module")
def site(wheel, tmp_path_factory) -> Path:
    """The wheel and what a plain `pip install weightfoundry` brings with it, and nothing else of this environment."""
    folder = tmp_path_factory.mktemp("site")
    pip("install", wheel, "--target", folder)
    with zipfile.ZipFile(wheel) as file:
        text = next(file.read(name).decode() for name in file.namelist() if name.endswith("METADATA"))
    wanted, seen = list(Parser().parsestr(text).get_all("Requires-Dist", [])), set()
    while wanted:
        requirement = Requirement(wanted.pop())
        if requirement.name in seen or (requirement.marker and not requirement.marker.evaluate({"extra": ""})):
            continue
        seen.add(requirement.name)
        found = metadata.distribution(requirement.name)
        wanted += found.requires or []
        for name in {file.parts[0] for file in found.files or []} - {"..", "__pycache__"}:
            if not (folder / name).exists():
                (folder / name).symlink_to(Path(str(found.locate_file(name))))
    return folder


def pip(command: str, *arguments: object) -> None:
    options = ["--quiet", "--no-index", "--no-deps", "--disable-pip-version-check"]
    subprocess.run([sys.executable, "-m", "pip", command, *options, *map(str, arguments)], check=True)


def python(*arguments: object, path: list[Path], cwd: Path) -> subprocess.CompletedProcess[str]:
    """Python without any site-packages, this environment's editable installation among them, but those of `path`."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, path)), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-S", *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)


def test_the_wheel_holds_the_packages_and_nothing_else(wheel):
    files = [path.relative_to(ROOT) for name in PACKAGES for path in (ROOT / name).rglob("*") if path.is_file()]
    wanted = {
        f"{PACKAGES[file.parts[0]]}/{'/'.join(file.parts[1:])}"
        for file in files
        if not file.as_posix().startswith(LEFT_OUT) and "__pycache__" not in file.parts
    }
    with zipfile.ZipFile(wheel) as file:
        held = {name for name in file.namelist() if ".dist-info/" not in name}
    assert held == wanted, "packages and their data are listed in pyproject.toml"


def test_a_plain_installation_trains_by_a_learned_optimizer_and_says_what_the_rest_needs(site, tmp_path):
    result = python("-c", TRAIN, path=[site], cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    first, last = found["losses"]
    assert last < 0.7 * first
    for_zoo, for_generator, for_scripts = found["errors"]
    assert "pip install 'weightfoundry[zoo]'" in for_zoo
    assert "pip install 'weightfoundry[generator]'" in for_generator
    assert for_scripts == "No module named 'scripts'"


def test_the_console_command_lists_commands_before_anything_heavy_is_installed(site, tmp_path):
    command = site / "bin" / "weightfoundry"
    result = python(command, "--help", path=[site], cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "  build-zoo           Train a zoo" in result.stdout
    refused = python(command, "build-zoo", "out=x", path=[site], cwd=tmp_path)
    assert refused.returncode == 2
    assert refused.stderr.startswith("error: this needs hydra")


def test_the_console_command_runs_a_script(site, tmp_path):
    everything = [site, Path(sysconfig.get_path("purelib"))]
    result = python(site / "bin" / "weightfoundry", "inspect-zoo", "--help", path=everything, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "weightfoundry inspect-zoo zoo=PATH" in result.stdout
    assert "verify: false" in result.stdout
