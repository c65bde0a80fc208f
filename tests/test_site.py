"""The documentation site: every page is there, no link is dead, nothing is fetched, and commands can be given."""

import importlib
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from learned_opt.pretrained.files import available
from scripts.cli import compose
from tests.test_readme import DOCUMENTS, PACKAGES, ROOT

CONFIG = ROOT / "zensical.toml"


def commands_of(path: Path) -> list[str]:
    """Lines of code blocks that start `weightfoundry COMMAND SETTING ...`; a backslash continues a line."""
    blocks = re.findall(r"^```(\w*)\n(.*?)^```", path.read_text(), re.MULTILINE | re.DOTALL)
    lines = "".join(text for kind, text in blocks if kind in ("", "bash")).replace("\\\n", " ").splitlines()
    return [line for line in lines if re.match(r"(\S*/)?weightfoundry \S+ \S*=", line)]


def pages(entries):
    for entry in entries:
        name = next(iter(entry.values())) if isinstance(entry, dict) else entry
        yield from pages(name) if isinstance(name, list) else [name]


def test_every_page_is_in_the_navigation():
    named = list(pages(tomllib.loads(CONFIG.read_text())["project"]["nav"]))
    assert sorted(named) == sorted(path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md"))


@pytest.mark.parametrize("package", PACKAGES)
def test_the_reference_names_the_whole_public_surface(package):
    """In an order to read, which is not that of the alphabet."""
    text = (ROOT / "docs" / "reference" / f"{package}.md").read_text()
    named = re.search(r"members: \[(.*?)\]", text)[1].split(", ")
    assert set(importlib.import_module(package).__all__) <= set(named), "name it among the members in docs/reference"


def test_every_card_of_weights_is_on_the_site():
    text = (ROOT / "docs" / "reference" / "thetas.md").read_text()
    assert all(f'"learned_opt/pretrained/{name}.md"' in text for name in available())


def test_the_site_has_no_dead_link_and_loads_nothing_from_elsewhere(tmp_path):
    pytest.importorskip("zensical", reason="the site needs the extra docs: pip install 'weightfoundry[docs]'")
    shutil.copytree(ROOT / "docs", tmp_path / "docs")
    shutil.copy(CONFIG, tmp_path)
    for name in ("CHANGELOG.md", "zoo", "generator", "learned_opt", "scripts"):
        (tmp_path / name).symlink_to(ROOT / name)
    command = [sys.executable, "-m", "zensical", "build", "--strict"]
    built = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stdout + built.stderr
    site = tmp_path / "out" / "site"
    for path in set(site.rglob("*.html")) - {site / "404.html"}:  # which servers show at any address
        text = path.read_text()
        loaded = re.findall(r'(?:<script[^>]* src|<link[^>]* rel="stylesheet"[^>]* href|<img[^>]* src)="([^"]*)"', text)
        linked = re.findall(r'<a [^>]*href="([^"#?]+)', text)
        for target in {*loaded, *(link for link in linked if "://" not in link)}:
            assert (path.parent / target).exists(), f"{path.relative_to(site)} asks for {target}"
    assert 'id="zoo.build_zoo"' in (site / "reference" / "zoo.html").read_text()


@pytest.mark.parametrize("path", [path for path in DOCUMENTS if commands_of(path)], ids=lambda path: path.name)
def test_commands_of_documents_can_be_given(path):
    for line in commands_of(path):
        words = shlex.split(re.sub(r"(?<= )\[(\S+)\]", r"\1", line), comments=True)
        assert compose(words[1].replace("-", "_"), words[2:]), line
