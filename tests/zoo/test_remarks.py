import pytest

from zoo import build_zoo, get_task


def test_a_warning_from_deep_inside_points_at_the_program(tmp_path):
    options = {"num_runs": 2, "num_steps": 2, "optimizer": {"name": "sgd"}, "max_loss": 1e-6}
    with pytest.warns(UserWarning, match="diverged") as said:
        build_zoo(tmp_path, get_task("digits", hidden=(2,)), **options)
    assert {remark.filename for remark in said if "diverged" in str(remark.message)} == {__file__}
