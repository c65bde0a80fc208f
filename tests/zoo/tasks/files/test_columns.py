import numpy as np
import pytest

from zoo.tasks.files.columns import read_columns

CSV = 'height,colour,"width, cm"\n1.5,red,10\n,blue,20\n2,"deep ""red""",NA\n'


def test_numbers_and_words_with_what_is_missing(tmp_path):
    file = tmp_path / "table.csv"
    file.write_text(CSV)
    columns = read_columns(file)
    np.testing.assert_array_equal(columns["height"], [1.5, np.nan, 2])
    np.testing.assert_array_equal(columns["width, cm"], [10, 20, np.nan])
    assert columns["colour"].tolist() == ["red", "blue", 'deep "red"']


@pytest.mark.parametrize("delimiter", [";", "\t"])
def test_other_delimiters_and_byte_order_marks(tmp_path, delimiter):
    file = tmp_path / "table.tsv"
    file.write_text(f"\ufeffa{delimiter}b\n1{delimiter}2,5\n", encoding="utf-8")
    columns = read_columns(file)
    assert columns["a"].tolist() == [1]
    assert columns["b"].tolist() == ["2,5"]


def test_parquet(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow.parquet import write_table

    write_table(pyarrow.table({"a": [1, None, 3], "b": ["x", None, "z"]}), tmp_path / "table.parquet")
    columns = read_columns(tmp_path / "table.parquet")
    np.testing.assert_array_equal(columns["a"], [1, np.nan, 3])
    assert columns["b"].tolist() == ["x", None, "z"]
    (tmp_path / "table.parquet").write_text("no parquet")
    with pytest.raises(ValueError, match="as Parquet"):
        read_columns(tmp_path / "table.parquet")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "has no rows"),
        ("a,b\n", "has no rows"),
        ("a,a\n1,2\n", "different names of columns"),
        ("a,b\n1,2\n3\n", "expected 2 values in each row, got 1 in row 2"),
        (b"\xff\xfe\x00", "cannot read"),
    ],
)
def test_what_is_no_table_is_refused(tmp_path, content, message):
    file = tmp_path / "table.csv"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=message):
        read_columns(file)
    with pytest.raises(FileNotFoundError, match="no table at"):
        read_columns(tmp_path / "nothing.csv")
