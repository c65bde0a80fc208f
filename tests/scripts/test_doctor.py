"""The doctor names what is there, and what is missing with its remedy."""

import subprocess
import sys
from importlib import metadata

from scripts import doctor


def test_it_says_what_this_machine_has(capsys):
    doctor.main()
    said = capsys.readouterr().out
    assert f"torch {metadata.version('torch')}" in said
    assert "device=auto is" in said
    assert "generator    training generators and sampling from them: installed" in said


def test_what_is_missing_has_a_remedy(monkeypatch):
    def version(name):
        if name == "diffusers":
            raise metadata.PackageNotFoundError
        return "1"

    monkeypatch.setattr(metadata, "version", version)
    lines = {line.split()[0]: line for line in doctor.parts()}
    assert lines["generator"].endswith("! no diffusers: pip install 'weightfoundry[generator]'")
    assert "diffusers" in lines["all"]  # which includes it
    assert lines["zoo"].endswith("installed")


def test_extras_are_those_of_the_distribution():
    needed = doctor.requirements()
    assert set(doctor.PARTS) <= set(needed)
    assert {"zarr", "diffusers", "lightning"} <= doctor.closure("all", needed)


def test_it_runs_where_parts_are_missing():
    code = "import sys; sys.modules['hydra'] = sys.modules['zarr'] = None; sys.argv = ['weightfoundry', 'doctor']; "
    code += "from scripts.__main__ import main; main()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "compilers" in done.stdout
