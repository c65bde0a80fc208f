import numpy as np
import pytest
import zarr
from zarr.codecs import BytesCodec, Crc32cCodec
from zarr.storage import MemoryStore

from zoo.storage.shards import Shard, ShardError, ShardShape, fetched_shards, mapped_shards, shard_parts

SHAPE = ShardShape(num_runs=5, num_snapshots=3, num_params=7, dtype=np.dtype("<f4"))


@pytest.fixture
def params():
    return np.random.default_rng(0).normal(size=(5, 3, 7)).astype(np.float32)


@pytest.fixture
def present():
    present = np.ones((5, 3), bool)
    present[1, 2] = present[4] = False
    return present


def as_bytes(params, present):
    return b"".join(part.tobytes() for part in shard_parts(params, present, SHAPE))


def rows_of(shard):
    """(G * S, P) with NaN where there is nothing."""
    stored = np.full((15, 7), np.nan, np.float32)
    absent = shard.copy_rows(np.arange(15), np.arange(15), stored.view(np.uint8).reshape(-1).data)
    assert np.isnan(stored[absent]).all()
    return stored


def zarr_array(files):
    """An array of one shard in memory, made by zarr-python."""
    return zarr.create_array(
        MemoryStore(files),
        name="params",
        shape=(5, 3, 7),
        shards=(5, 3, 7),
        chunks=(1, 1, 7),
        dtype="float32",
        fill_value=np.nan,
        filters=None,
        serializer=BytesCodec(endian="little"),
        compressors=[Crc32cCodec()],
    )


def test_zarr_reads_our_shards(params, present):
    files = {}
    array = zarr_array(files)
    files["params/c/0/0/0"] = zarr.buffer.default_buffer_prototype().buffer.from_bytes(as_bytes(params, present))
    assert np.array_equal(array[...], np.where(present[..., None], params, np.nan), equal_nan=True)


def test_we_read_the_shards_of_zarr(params, present):
    files = {}
    array = zarr_array(files)
    array[...] = np.where(present[..., None], params, np.nan)  # zarr leaves out chunks that are all fill value
    raw = np.frombuffer(files["params/c/0/0/0"].to_bytes(), np.uint8)
    shard = Shard(raw, SHAPE)
    assert np.array_equal(rows_of(shard).reshape(5, 3, 7), array[...], equal_nan=True)
    assert np.array_equal(shard.present.reshape(5, 3), present)
    assert not shard.has_gaps()


def test_mapped_and_fetched_shards_are_the_same(tmp_path, params, present):
    content = as_bytes(params, present)
    (tmp_path / "c/4/0").mkdir(parents=True)
    (tmp_path / "c/4/0/0").write_bytes(content)
    store = MemoryStore({"zoo/params/c/4/0/0": zarr.buffer.default_buffer_prototype().buffer.from_bytes(content)})
    for source in (mapped_shards(tmp_path, SHAPE), fetched_shards(store, "zoo/params", SHAPE)):
        shard = source.open(4)
        assert source.open(4) is shard
        expected = np.where(present[..., None], params, np.nan).reshape(15, 7)
        assert np.array_equal(rows_of(shard), expected, equal_nan=True)
        with pytest.raises(ShardError, match="missing"):
            source.open(5)


def test_rows_go_to_their_places(params):
    shard = Shard(np.frombuffer(as_bytes(params, np.ones((5, 3), bool)), np.uint8), SHAPE)
    stored = np.zeros((4, 7), np.float32)
    absent = shard.copy_rows(np.array([14, 0, 14]), np.array([3, 1, 0]), stored.view(np.uint8).reshape(-1).data)
    assert absent == []
    assert np.array_equal(stored, [params[4, 2], params[0, 0], np.zeros(7), params[4, 2]])


@pytest.mark.parametrize("length", [0, 1, 100, 243])
def test_truncated_shards_are_noticed(params, present, length):
    with pytest.raises(ShardError, match="truncated"):
        Shard(np.frombuffer(as_bytes(params, present)[:length], np.uint8), SHAPE)


def test_every_flipped_bit_is_noticed(params, present):
    content = as_bytes(params, present)
    for position in range(len(content)):
        flipped = bytearray(content)
        flipped[position] ^= 1 << position % 8
        with pytest.raises(ShardError, match="checksum"):
            rows_of(Shard(np.frombuffer(flipped, np.uint8), SHAPE))


def test_a_shard_of_another_layout_is_refused(params):
    raw = np.frombuffer(as_bytes(params, np.ones((5, 3), bool)), np.uint8)
    with pytest.raises(ShardError, match="36 bytes by the layout"):
        Shard(raw, ShardShape(5, 3, 8, SHAPE.dtype))


def test_bytes_between_chunks_are_noticed(params, present):
    content = as_bytes(params, present)
    data = content[: -SHAPE.index_nbytes]
    shard = Shard(np.frombuffer(data + b"\0" * 8 + content[-SHAPE.index_nbytes :], np.uint8), SHAPE)
    assert shard.has_gaps()
    assert not Shard(np.frombuffer(content, np.uint8), SHAPE).has_gaps()
