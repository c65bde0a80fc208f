import pytest

from zoo.remarks import warn


def test_a_warning_from_deep_inside_points_at_the_program():
    inside = {"__name__": "zoo.deep.inside", "warn": warn}
    exec("def call(inner=None):\n    inner() if inner else warn('mind')", inside)
    with pytest.warns(UserWarning, match="mind") as said:
        inside["call"](inside["call"])
    assert [remark.filename for remark in said] == [__file__]
