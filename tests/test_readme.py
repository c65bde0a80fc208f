"""README and docs: code runs, links lead somewhere, every file of the packages is named, versions agree."""

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("zoo", "generator", "learned_opt")
DOCUMENTS = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]


def blocks_of(path: Path) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", path.read_text(), re.MULTILINE | re.DOTALL)


def test_readme_has_code_and_can_be_read_in_minutes():
    assert blocks_of(DOCUMENTS[0])
    assert len(DOCUMENTS[0].read_text().splitlines()) <= 150


@pytest.mark.parametrize("path", [path for path in DOCUMENTS if blocks_of(path)], ids=lambda path: path.name)
def test_code_blocks_run(path, tmp_path, monkeypatch, request):
    """Those of one file in order, as one session in an empty folder."""
    if path.name == "share.md":
        request.getfixturevalue("hub")
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {"__name__": path.stem}
    for block in blocks_of(path):
        exec(compile(block, str(path), "exec"), namespace)


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(path):
    text = re.sub(r"^```.*?^```", "", path.read_text(), flags=re.MULTILINE | re.DOTALL)
    targets = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", text) + re.findall(r'(?:src|srcset)="([^"]+)"', text)
    for target in targets:
        if "://" not in target:
            assert (path.parent / target).exists(), f"{path.name} links to {target}"


def test_the_tree_names_every_file():
    text = (ROOT / "docs" / "architecture.md").read_text()
    tree = re.search(r"^```\n(zoo/ .*?)^```", text, re.MULTILINE | re.DOTALL)
    folders: list[str] = []
    named = set()
    for line in tree[1].splitlines():
        name, comment = line.split(maxsplit=1)
        assert comment
        folders[(len(line) - len(line.lstrip())) // 2 :] = [name]
        named.add("".join(folders))
    files = {path for package in PACKAGES for path in (ROOT / package).rglob("*.py")}
    there = {path.relative_to(ROOT).as_posix() for path in files if path.name != "__init__.py"}
    assert {path for path in named if path.endswith(".py")} == there


def test_versions_agree():
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert re.search(r"^version: (\S+)$", (ROOT / "CITATION.cff").read_text(), re.MULTILINE)[1] == version
    assert re.search(r"^## \[(\S+)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)[1] == version
