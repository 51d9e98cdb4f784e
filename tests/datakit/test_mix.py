import msgspec
import pytest

from datakit.errors import MixError, UsageError
from datakit.stream import mixfile as mix

KNOWN = ["coyo", "llava665k", "qinstruct"]


def part(dataset, repeats=1, samples=(3, 4)):
    shards = [
        mix.MixShard(
            tar=f"../../{dataset}/pack/{k}.tar",
            index=f"../../{dataset}/pack/{k}.parquet",
            samples=n,
            size_bytes=1,
            xxh3=f"{dataset}{k}",
            index_xxh3="i",
        )
        for k, n in enumerate(samples)
    ]
    return mix.MixPart(dataset=dataset, repeats=repeats, recipe="r", samples=sum(samples), shards=shards)


def test_plus_joins_and_a_colon_repeats():
    assert mix.parse("llava665k + qinstruct:3", KNOWN) == [("llava665k", 1), ("qinstruct", 3)]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("llava665+qinstruct", "Did you mean 'llava665k'"),
        ("coyo:0", "coyo:2"),
        ("coyo:1.5", "whole number"),
        ("coyo+", "NAME"),
        ("", "NAME"),
        ("coyo+coyo", "twice"),
        ("../coyo", "NAME"),
    ],
)
def test_a_bad_mix_is_refused_with_what_was_meant(text, says):
    with pytest.raises(UsageError, match=says):
        mix.parse(text, KNOWN)


def test_repeats_are_counted_and_spelled_out():
    made = mix.make("m", [part("coyo"), part("qinstruct", repeats=2, samples=(5,))])

    assert made.samples == 17
    assert [s.samples for s in made.entries()] == [3, 4, 5, 5]


def test_the_fingerprint_follows_content_and_order_but_not_the_name():
    a, b = part("coyo"), part("qinstruct")

    assert mix.make("m", [a, b]).fingerprint == mix.make("n", [a, b]).fingerprint
    assert mix.make("m", [a, b]).fingerprint != mix.make("m", [b, a]).fingerprint
    assert mix.make("m", [a]).fingerprint != mix.make("m", [part("coyo", repeats=2)]).fingerprint


def test_a_dataset_with_nothing_packed_is_not_left_out_silently():
    with pytest.raises(MixError, match="silently"):
        mix.make("m", [part("coyo"), part("qinstruct", samples=())])


def test_a_mix_is_read_back_as_it_was_written(tmp_path):
    made = mix.make("m", [part("coyo")])
    (tmp_path / "mix.json").write_bytes(mix.encode(made))

    for path in (tmp_path, tmp_path / "mix.json"):
        found, folder = mix.read(path)

        assert found == made
        assert mix.locate(folder, "../../coyo/pack/0.tar") == str(tmp_path.parents[1] / "coyo/pack/0.tar")


def test_a_mix_that_is_missing_cut_or_of_another_version_is_one_clear_error(tmp_path):
    data = mix.encode(mix.make("m", [part("coyo")]))
    (tmp_path / "cut.json").write_bytes(data[: len(data) // 2])
    (tmp_path / "new.json").write_bytes(data.replace(b'"version": 1', b'"version": 2'))

    for name, says in (("none", "datakit build-mix"), ("cut.json", "not a mix"), ("new.json", "version 2")):
        with pytest.raises(MixError, match=says):
            mix.read(tmp_path / name)


def test_a_mix_in_a_bucket_names_tars_in_the_bucket():
    assert mix.locate("s3://bucket/root/mixes/m", "../../coyo/pack/0.tar") == "s3://bucket/root/coyo/pack/0.tar"


@pytest.mark.parametrize(("old", "new"), [(b'"repeats": 2', b'"repeats": 1'), (b'"samples": 14', b'"samples": 13')])
def test_a_mix_that_was_changed_by_hand_is_refused(tmp_path, old, new):
    data = mix.encode(mix.make("m", [part("coyo", repeats=2)]))
    assert old in data
    (tmp_path / "mix.json").write_bytes(data.replace(old, new))

    with pytest.raises(MixError, match="by hand"):
        mix.read(tmp_path)


@pytest.mark.parametrize(
    "name",
    [
        "/etc/passwd",
        "../../../elsewhere/pack/00000.tar",
        "../../coyo/../../x/00000.tar",
        "../../../pack/00000.tar",
        "x",
    ],
)
@pytest.mark.parametrize("which", ["tar", "index"])
def test_a_mix_that_names_a_file_outside_its_root_is_refused(tmp_path, which, name):
    one = part("coyo")
    shards = [msgspec.structs.replace(shard, **{which: name}) for shard in one.shards]
    made = mix.make("m", [msgspec.structs.replace(one, shards=shards)])
    (tmp_path / "mix.json").write_bytes(mix.encode(made))

    with pytest.raises(MixError, match="isn't a packed tar of the root"):
        mix.read(tmp_path)


@pytest.mark.parametrize(
    ("name", "command"),
    [
        ("coyo+qinstruct:2", "datakit build-mix coyo+qinstruct:2"),
        ("vila-sft", "datakit build-mix coyo+qinstruct:2 --name vila-sft"),
        ("coyo+qinstruct:2@limit-8", "datakit build-mix coyo+qinstruct:2 --limit 8"),
    ],
)
def test_a_mix_knows_the_command_that_makes_it_again(name, command):
    assert mix.command(mix.make(name, [part("coyo"), part("qinstruct", repeats=2)])) == command


def test_tars_that_are_repeated_take_room_once():
    made = mix.make("m", [part("coyo", repeats=3), part("qinstruct")])

    assert (made.size_bytes, made.n_tars) == (4, 4)
