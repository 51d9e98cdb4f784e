import pickle

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import xxhash

from datakit.errors import MixError, StorageError
from datakit.formats.tars import TarWriter
from datakit.records.record import Message, Record, encode
from datakit.records.record import Part as Piece
from datakit.records.tables import PACKED
from datakit.storage.ledger import Commit, File, Ledger, Part
from datakit.storage.store import Store
from datakit.stream import mixfile as mix
from datakit.stream.reader import Stream


def packed(folder, dataset, sizes):
    """A dataset packed by hand: picture-less, one-picture and two-picture samples in turn."""
    place = folder / dataset / "pack"
    place.mkdir(parents=True)
    shards = []
    for shard, n in enumerate(sizes):
        rows = []
        with (place / f"{shard:05d}.tar").open("wb") as file:
            tar = TarWriter(file)
            for row in range(n):
                key = f"{dataset}-{shard}-{row}"
                pictures = [f"{key} picture {i}".encode() for i in range(row % 3)]
                content = [Piece(type="image") for _ in pictures] + [Piece(type="text", text=key)]
                record = Record(key=key, source=dataset, messages=[Message(role="assistant", content=content)])
                images = [
                    {"offset": tar.add(f"{key}.{i}.jpg", p), "size_bytes": len(p), "ext": "jpg"}
                    for i, p in enumerate(pictures)
                ]
                data = encode(record)
                at = tar.add(f"{key}.json", data)
                rows.append({"key": key, "images": images, "json_offset": at, "json_bytes": len(data)})
            tar.close()
        kinds = {"key": pa.string(), "images": PACKED, "json_offset": pa.int64(), "json_bytes": pa.int64()}
        pq.write_table(pa.Table.from_pylist(rows, schema=pa.schema(kinds.items())), place / f"{shard:05d}.parquet")
        tar_name = f"../../{dataset}/pack/{shard:05d}"
        part = commit(place, f"{shard:05d}", n)
        shards.append(
            mix.MixShard(
                tar=f"{tar_name}.tar",
                index=f"{tar_name}.parquet",
                samples=n,
                size_bytes=part.tar.size_bytes,
                xxh3=part.tar.xxh3,
                index_xxh3=part.table.xxh3,
            )
        )
    return mix.MixPart(dataset=dataset, repeats=1, recipe="r", samples=sum(sizes), shards=shards)


def commit(place, name, rows):
    """Writes the commit of a shard as it stands, and returns its part."""
    table, tar = (_file(place / f"{name}{ending}") for ending in (".parquet", ".tar"))
    part = Part(name=name, rows=rows, table=table, tar=tar)
    Ledger(Store(str(place.parent)), place.name).put(name, Commit(recipe="r", inputs={}, rows=rows, parts=[part]))
    return part


def _file(path):
    return File(path.name, path.stat().st_size, xxhash.xxh3_128(path.read_bytes()).hexdigest())


@pytest.fixture
def path(tmp_path):
    made = mix.make("m", [packed(tmp_path, "a", [7, 0, 5]), packed(tmp_path, "b", [9])])
    (tmp_path / "mixes/m").mkdir(parents=True)
    (tmp_path / "mixes/m/mix.json").write_bytes(mix.encode(made))
    return tmp_path / "mixes/m/mix.json"


def test_an_epoch_holds_every_sample_once_with_its_own_pictures(path):
    stream = Stream(path, window=6)

    seen = [stream[p] for p in range(len(stream))]

    assert len({s.key for s in seen}) == len(stream) == 21
    for sample in seen:
        assert sample.images == [f"{sample.key} picture {i}".encode() for i in range(sample.record.n_marks)]


def test_a_sample_is_a_function_of_its_position_whatever_was_read_before(path):
    forwards = [s.key for s in map(Stream(path, seed=5, window=6).__getitem__, range(50))]

    stream = Stream(path, seed=5, window=6)
    backwards = [stream[p].key for p in reversed(range(50))][::-1]

    assert backwards == forwards
    assert forwards[:21] != forwards[21:42]
    assert sorted(forwards[:21]) == sorted(forwards[21:42])


def test_a_pickled_stream_goes_on_alike(path):
    stream = Stream(path, seed=2)
    before = stream[3]

    again = pickle.loads(pickle.dumps(stream))  # noqa: S301 - our own

    assert again[3] == before


def test_a_state_leads_back_to_its_position(path):
    stream = Stream(path, seed=2)

    state = stream.state(47)

    assert state["epoch"] == 2 and state["offset"] == 5
    assert Stream(path, seed=2).check_state(state) == 47


@pytest.mark.parametrize(("field", "value"), [("seed", 3), ("mix", "0" * 64), ("window", 7)])
def test_a_state_of_another_stream_is_refused_by_field(path, field, value):
    state = {**Stream(path, seed=2).state(47), field: value}

    with pytest.raises(MixError, match=rf"another stream:\n  {field}: "):
        Stream(path, seed=2).check_state(state)


@pytest.mark.parametrize("state", [{}, {"position": -1}, {"position": "3"}])
def test_what_is_no_state_is_refused(path, state):
    with pytest.raises(MixError, match="not the state"):
        Stream(path).check_state(state)


def test_a_tar_cut_short_is_one_clear_error(path, tmp_path):
    tar = tmp_path / "b/pack/00000.tar"
    tar.write_bytes(tar.read_bytes()[:600])
    stream = Stream(path)

    with pytest.raises(MixError, match="isn't what the mix"):
        [stream[p] for p in range(len(stream))]


def test_an_index_of_another_size_is_one_clear_error(path, tmp_path):
    (tmp_path / "b/pack/00000.parquet").write_bytes((tmp_path / "a/pack/00000.parquet").read_bytes())
    stream = Stream(path)

    with pytest.raises(MixError, match="isn't what the mix"):
        [stream[p] for p in range(len(stream))]


def test_two_shards_of_one_size_that_changed_places_are_noticed(path, tmp_path):
    a, b = tmp_path / "a/pack/00000.parquet", tmp_path / "b/pack/00000.parquet"
    first, second = a.read_bytes(), b.read_bytes()
    a.write_bytes(second)
    b.write_bytes(first)

    with pytest.raises(MixError, match="isn't what the mix"):
        Stream(path)[0]


def test_a_tar_that_is_gone_is_one_clear_error(path, tmp_path):
    (tmp_path / "b/pack/00000.tar").unlink()
    stream = Stream(path)

    with pytest.raises(MixError, match="can't open"):
        [stream[p] for p in range(len(stream))]


def test_a_tar_that_was_packed_again_with_the_same_size_and_index_is_refused_at_the_start(path, tmp_path):
    place = tmp_path / "b/pack"
    tar = place / "00000.tar"
    tar.write_bytes(tar.read_bytes().replace(b"b-0-1 picture", b"B-0-1 PICTURE"))
    commit(place, "00000", 9)

    with pytest.raises(MixError, match=r"packed again since, .* `datakit build-mix a\+b --name m`"):
        Stream(path)


@pytest.mark.parametrize("damage", ["gone", "cut"])
def test_a_tar_without_its_commit_is_refused_at_the_start(path, tmp_path, damage):
    there = tmp_path / "b/pack/00000.commit.json"
    there.write_bytes(there.read_bytes()[:100])
    if damage == "gone":
        there.unlink()

    with pytest.raises(MixError, match="isn't what the mix"):
        Stream(path)


@pytest.fixture
def there(path, tmp_path, bucket):
    """The mix in a bucket."""
    for file in tmp_path.rglob("*"):
        if file.is_file():
            fsspec.filesystem("s3").put_file(str(file), f"bucket/root/{file.relative_to(tmp_path)}")
    return "s3://bucket/root/mixes/m/mix.json"


def test_a_mix_in_a_bucket_is_streamed_alike(path, there):
    far, near = Stream(there, seed=1), Stream(path, seed=1)

    assert [far[p] for p in range(21)] == [near[p] for p in range(21)]


@pytest.mark.parametrize("at", ["the mix", "its commits", "a sample"])
def test_what_a_bucket_refuses_is_told_without_a_traceback(there, bucket, at):
    def unwell(method, path):
        if {"the mix": "mix.json", "its commits": "commit.json", "a sample": ".tar"}[at] in path:
            raise OSError("503 Slow Down")

    bucket.unwell = unwell

    with pytest.raises((StorageError, MixError), match="503 Slow Down"):
        Stream(there)[0]


def test_a_position_before_the_first_is_refused(path):
    with pytest.raises(IndexError):
        Stream(path)[-1]
