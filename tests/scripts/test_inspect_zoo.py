import json
import shutil
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from scripts.inspect_zoo import main
from zoo.storage.schema import ZooFormatError


@pytest.fixture
def copied_zoo(small_zoo_path, tmp_path):
    return Path(shutil.copytree(small_zoo_path, tmp_path / "copy"))


def inspect(zoo, verify=False, out=None):
    return main(OmegaConf.create({"zoo": str(zoo), "verify": verify, "out": out and str(out)}))


def test_a_sound_zoo_gets_tables_pictures_and_a_summary(copied_zoo, capsys):
    assert inspect(copied_zoo, verify=True) == 0
    assert "10 (9 complete, 1 diverged)" in capsys.readouterr().out
    out = copied_zoo.with_name("copy-inspect")
    pictures = {"trajectories.png", "final_metrics.png", "distances.png", "trajectory_pca.png"}
    assert {path.name for path in out.iterdir()} == pictures | {"summary.json", "config.yaml"}
    assert json.loads((out / "summary.json").read_text())["findings"] == []


def test_a_flipped_bit_is_found_and_the_exit_code_says_so(copied_zoo, tmp_path, capsys):
    shard = max(
        (path for path in copied_zoo.rglob("params/**/*") if path.is_file()), key=lambda path: path.stat().st_size
    )
    content = bytearray(shard.read_bytes())
    content[100] ^= 1
    shard.write_bytes(content)
    assert inspect(copied_zoo, verify=True, out=tmp_path / "out") == 1
    assert "block" in capsys.readouterr().out
    assert [path.name for path in (tmp_path / "out").glob("*.png")] == []
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["findings"]


def test_bad_input_is_refused(copied_zoo):
    with pytest.raises(FileNotFoundError, match="no zoo"):
        inspect(copied_zoo / "nowhere")
    attributes = copied_zoo / "zarr.json"
    attributes.write_text(attributes.read_text().replace("weightfoundry", "something"))
    with pytest.raises(ZooFormatError):
        inspect(copied_zoo)
