import itertools
import pickle
import warnings

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from zoo.storage.schema import RunStatus
from zoo.storage.selection import SelectedZoo
from zoo.storage.streaming import StreamingZooDataset
from zoo.storage.writer import ZooWriter
from zoo.storage.zoo import Zoo

OPTIONS = {"access_key_id": "testing", "secret_access_key": "testing", "region": "us-east-1"}


@pytest.fixture(scope="module")
def path(tmp_path_factory, toy):
    path = tmp_path_factory.mktemp("streaming") / "zoo"
    toy.fill(path, toy.spec(num_runs=30))
    return path


@pytest.fixture
def zoo(path):
    return Zoo.open(path)


def pairs(examples):
    return [(int(example["run"]), int(example["snapshot"])) for example in examples]


def test_every_network_comes_once_with_all_that_belongs_to_it(zoo):
    dataset = StreamingZooDataset(zoo, buffer_size=7)
    examples = list(dataset)
    assert sorted(pairs(examples)) == list(itertools.product(range(30), range(3)))
    assert dataset.num_examples == len(examples) == 90
    for example in examples:
        run, snapshot = int(example["run"]), int(example["snapshot"])
        assert np.array_equal(example["params"], zoo.params[run, snapshot])
        assert example["inner_step"] == zoo.inner_step[run, snapshot]
        assert example["val_loss"] == zoo.metric("val_loss")[run, snapshot]


def test_the_order_follows_from_seed_and_epoch(zoo):
    dataset = StreamingZooDataset(zoo, seed=1)
    first = pairs(dataset)
    assert pairs(dataset) == first
    dataset.set_epoch(1)
    second = pairs(dataset)
    assert second != first
    assert sorted(second) == sorted(first)
    assert pairs(StreamingZooDataset(zoo, seed=2)) != first


def test_blocks_are_mixed_as_far_as_the_buffer_reaches(zoo):
    assert pairs(StreamingZooDataset(zoo, shuffle=False)) == list(itertools.product(range(30), range(3)))
    blocks = np.array([run // 4 for run, _ in pairs(StreamingZooDataset(zoo, buffer_size=1))])
    assert (np.diff(blocks) != 0).sum() == 7  # each block in one piece
    assert not np.array_equal(np.unique(blocks, return_index=True)[1], np.arange(0, 90, 12))
    blocks = np.array([run // 4 for run, _ in pairs(StreamingZooDataset(zoo, buffer_size=90))])
    assert (np.diff(blocks) != 0).sum() > 60


def test_whole_runs(zoo):
    dataset = StreamingZooDataset(zoo, unit="run")
    examples = list(dataset)
    assert sorted(int(example["run"]) for example in examples) == list(range(30))
    assert dataset.num_examples == 30
    for example in examples:
        assert np.array_equal(example["params"], zoo.params[int(example["run"])])
        assert example["val_error"].shape == (3,)


def test_a_split(zoo):
    runs = {run for run, _ in pairs(StreamingZooDataset(zoo, split="train"))}
    assert runs == set(zoo.split("train").tolist())
    assert 0 < len(runs) < 30


def test_snapshots_and_runs_that_are_not_there_are_left_out(tmp_path, toy):
    spec = toy.spec(num_snapshots=3, num_runs=4)
    contents = toy.contents(spec, 0)
    contents["inner_step"][1, 2] = -1
    contents["status"][3] = RunStatus.DIVERGED
    ZooWriter.create(tmp_path / "zoo", spec).write_block(0, **contents)
    zoo = Zoo.open(tmp_path / "zoo")
    assert sorted(pairs(StreamingZooDataset(zoo))) == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (2, 0), (2, 1), (2, 2)]
    assert len(list(StreamingZooDataset(zoo, include_diverged=True))) == 11


def test_workers_and_processes_share_the_blocks(zoo):
    ranks = [StreamingZooDataset(zoo, rank=rank, world_size=3) for rank in range(3)]
    seen = [pair for dataset in ranks for pair in pairs(dataset)]
    assert sorted(seen) == list(itertools.product(range(30), range(3)))
    loader = DataLoader(StreamingZooDataset(zoo), batch_size=8, num_workers=2)
    batches = list(loader)
    assert batches[0]["params"].shape == (8, 26)
    seen = [pair for batch in batches for pair in zip(batch["run"].tolist(), batch["snapshot"].tolist(), strict=True)]
    assert sorted(seen) == list(itertools.product(range(30), range(3)))


def test_workers_that_live_on_see_the_epoch(zoo):
    dataset = StreamingZooDataset(zoo)
    loader = DataLoader(dataset, batch_size=None, num_workers=1, persistent_workers=True)
    first = pairs(loader)
    dataset.set_epoch(1)
    second = pairs(loader)
    assert second != first
    assert sorted(second) == sorted(first)


def test_examples_do_not_hold_their_block_in_memory(zoo):
    example = next(iter(StreamingZooDataset(zoo)))
    assert example["params"].untyped_storage().nbytes() == 26 * 4


def test_leaving_early_is_possible(zoo):
    assert len(list(itertools.islice(StreamingZooDataset(zoo), 5))) == 5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"unit": "block"}, "'block'"),
        ({"buffer_size": 0}, "buffer_size"),
        ({"rank": 2, "world_size": 2}, r"0\.\.1"),
    ],
)
def test_impossible_arguments_are_refused(zoo, arguments, message):
    with pytest.raises(ValueError, match=message):
        StreamingZooDataset(zoo, **arguments)


@pytest.fixture(scope="module")
def bucket():
    """Address of an S3 server on this machine with an empty bucket."""
    with warnings.catch_warnings(action="ignore"):  # moto asks for all of moto[server], which this needs only part of
        from moto.server import ThreadedMotoServer
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    endpoint = f"http://{host}:{port}"
    client = pytest.importorskip("boto3").client(
        "s3",
        endpoint_url=endpoint,
        aws_access_key_id="testing",
        aws_secret_access_key="testing",
        region_name="us-east-1",
    )
    client.create_bucket(Bucket="zoos")
    yield client, endpoint
    server.stop()


def test_nothing_to_stream_is_refused(zoo):
    with pytest.raises(ValueError, match=r"split 'val' has no run to stream"):
        StreamingZooDataset(SelectedZoo(zoo, runs=zoo.split("train")), split="val")
    with pytest.raises(ValueError, match=r"the zoo has no run to stream"):
        StreamingZooDataset(SelectedZoo(zoo, runs=[]))


@pytest.fixture(scope="module")
def remote(path, bucket, bytes_of):
    client, endpoint = bucket
    for key, content in bytes_of(path).items():
        client.put_object(Bucket="zoos", Key=f"toys/first/{key}", Body=content)
    return Zoo.open("s3://zoos/toys/first", storage_options={**OPTIONS, "endpoint": endpoint})


def test_a_zoo_in_an_object_store(remote, zoo):
    assert np.array_equal(remote.params[:], zoo.params[:])
    assert np.array_equal(remote.metric("val_loss"), zoo.metric("val_loss"))
    assert remote.verify() == []
    pairs = np.random.default_rng(0).integers(0, [30, 3], (20, 2))
    assert np.array_equal(remote.read(pairs), zoo.read(pairs))
    assert np.array_equal(pickle.loads(pickle.dumps(remote)).read(pairs), zoo.read(pairs))


def test_streaming_from_an_object_store(remote, zoo):
    there, here = list(StreamingZooDataset(remote)), list(StreamingZooDataset(zoo))
    assert pairs(there) == pairs(here)
    assert all(torch.equal(a["params"], b["params"]) for a, b in zip(there, here, strict=True))


def test_damage_in_an_object_store_is_found(bucket, remote):
    client, _ = bucket
    key = "toys/first/params/c/2/0/0"
    content = client.get_object(Bucket="zoos", Key=key)["Body"].read()
    client.put_object(Bucket="zoos", Key=key, Body=content[:300] + b"\0" + content[301:])
    assert [(finding.block, finding.kind) for finding in remote.verify()] == [(2, "shard")]
    client.delete_object(Bucket="zoos", Key=key)
    assert [(finding.block, finding.kind) for finding in remote.verify()] == [(2, "shard")]
    client.put_object(Bucket="zoos", Key=key, Body=content)
    assert remote.verify() == []


def test_an_address_with_nothing(bucket):
    with pytest.raises(FileNotFoundError, match="no Zarr group"):
        Zoo.open("s3://zoos/nothing", storage_options={**OPTIONS, "endpoint": bucket[1]})
