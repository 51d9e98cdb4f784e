"""`datakit add`: a dataset that nobody described, from what upstream has to what the stream reads."""

import io
import json
import random
import tomllib
import zipfile
from collections import Counter

import pyarrow as pa
import pytest
from PIL import Image
from users import settings, typed

from datakit import add
from datakit.add import files, hub
from datakit.catalogue import manifest
from datakit.errors import ManifestError, UsageError
from datakit.miniature import Miniature
from datakit.stream.reader import Stream
from datakit.web.hosts import Hosts

QINSTRUCT = "/datasets/teowu/Q-Instruct/resolve/main/"


@pytest.fixture
def person(upstream, tmp_path):
    """Types commands; has a root and a catalogue of their own."""
    env = settings(upstream, tmp_path / "root", DATAKIT_CATALOGUE=str(tmp_path / "own"))

    def types(command: str):
        return typed(command, env)

    types.path = tmp_path
    return types


def picture(colour: int, kind: str = "JPEG") -> bytes:
    sink = io.BytesIO()
    Image.new("RGB", (40 + colour % 9, 30), (colour % 256, 90, 200)).save(sink, kind)
    return sink.getvalue()


def conversation(nth: int, image: str | None = None) -> dict:
    turns = [{"from": "human", "value": "<image>\nWhat is it?" if image else "Hello?"}, {"from": "gpt", "value": "A."}]
    return {"id": f"q{nth}", "conversations": turns} | ({"image": image} if image else {})


def made(person, name: str) -> dict[str, object]:
    """The samples of a dataset after fetch and build-mix, by key."""
    for command in (f"fetch {name}", f"build-mix {name}"):
        got = person(command)
        assert got.code == 0, (command, got)
    stream = Stream(person.path / f"root/mixes/{name}/mix.json")
    return {stream[at].key: stream[at] for at in range(len(stream))}


def written(person, name: str) -> manifest.Manifest:
    return manifest.read(person.path / f"own/manifests/{name}.toml")


def reasons(person, name: str) -> dict[str, int]:
    counted: Counter[str] = Counter()
    for step in ("list", "pack"):
        for path in (person.path / "root" / name / step).glob("?????.commit.json"):
            counted.update(json.loads(path.read_bytes())["dropped"])
    return dict(counted)


def test_parquet_with_pictures_goes_from_its_name_on_the_hub_to_the_stream(person, upstream):
    expected = upstream.expected.added_dataset("example/pictures-parquet", "mine")

    got = person("add mine --hub example/pictures-parquet")
    samples = made(person, "mine")

    assert got.code == 0, got
    assert "question -> question, answer -> answer, image -> image" in got.out
    assert "by the features that Hugging Face datasets wrote into the file" in got.out
    assert got.out.endswith("  datakit fetch mine\n  datakit build-mix mine\n")
    assert tuple(sorted(samples)) == expected.kept
    assert reasons(person, "mine") == expected.counts
    for sample in samples.values():
        assert [message.role for message in sample.record.messages] == ["user", "assistant"]
        assert [part.type for part in sample.record.messages[0].content] == ["image", "text"]
        assert len(sample.images) == 1


def test_webdataset_tars_go_from_their_name_on_the_hub_to_the_stream(person, upstream):
    expected = upstream.expected.added_dataset("example/wds", "tars")

    got = person("add tars --hub example/wds")
    samples = made(person, "tars")

    assert got.code == 0, got
    assert "txt -> caption" in got.out
    assert tuple(sorted(samples)) == expected.kept
    assert reasons(person, "tars") == expected.counts
    assert {tuple(p.type for p in s.record.messages[0].content) for s in samples.values()} == {
        ("image", "text"),
        ("text",),
    }


def test_a_json_with_its_archive_gives_what_the_catalogue_s_own_manifest_gives(person, upstream):
    expected = upstream.expected.qinstruct

    got = person("add again --hub teowu/Q-Instruct@main --file cleaned_labels.json")
    samples = made(person, "again")

    source = written(person, "again").images.sources["q_instruct_images"]
    assert got.code == 0, got
    assert (source.prefix, source.inside) == ("", "")
    assert source.archive == "hub://datasets/teowu/Q-Instruct@main/q-instruct-images.tar"
    assert tuple(sorted(key.removeprefix("again-") for key in samples)) == tuple(
        key.removeprefix("qinstruct-") for key in expected.kept
    )
    assert reasons(person, "again") == expected.counts


def test_a_json_and_a_folder_of_one_s_own_need_no_network(person, upstream):
    pictures = person.path / "pictures"
    for nth in range(5):
        path = pictures / f"part/{nth}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture(nth))
    rows = [conversation(nth, f"pictures/part/{nth}.jpg") for nth in range(6)] + [conversation(6)]
    (person.path / "rows.json").write_text(json.dumps(rows))
    before = len(upstream.requests)

    got = person(f"add own --json {person.path}/rows.json --images {pictures}")
    samples = made(person, "own")

    assert got.code == 0, got
    assert "JSON, LLaVA's conversations, 7 rows" in got.out
    assert "5 of 6 that were looked for are there" in got.out
    assert written(person, "own").images.folder == str(person.path)
    assert sorted(samples) == [f"own-{nth:09d}" for nth in (0, 1, 2, 3, 4, 6)]
    assert samples["own-000000003"].images == [picture(3)]
    assert reasons(person, "own") == {"missing": 1}
    assert upstream.requests[before:] == []


def test_a_picture_that_is_added_to_the_folder_is_taken_by_the_next_fetch(person):
    pictures = person.path / "pictures"
    pictures.mkdir()
    (pictures / "0.jpg").write_bytes(picture(0))
    (person.path / "rows.json").write_text(json.dumps([conversation(nth, f"{nth}.jpg") for nth in range(2)]))
    person(f"add own --json {person.path}/rows.json --images {pictures}")
    assert len(made(person, "own")) == 1

    (pictures / "1.jpg").write_bytes(picture(1))

    assert len(made(person, "own")) == 2


def test_messages_of_one_s_own_and_an_archive_whose_names_begin_otherwise(person):
    with zipfile.ZipFile(person.path / "all pictures.zip", "w") as zipped:
        for nth in range(3):
            zipped.writestr(f"data/train/{nth}.png", picture(nth, "PNG"))
    turns = [{"role": "user", "content": "What?"}, {"role": "assistant", "content": "That."}]
    rows = [{"messages": turns, "images": [f"coco/train/{nth}.png"]} for nth in range(3)]
    (person.path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))

    got = person(f"add own --json {person.path}/rows.jsonl --images '{person.path}/all pictures.zip'")
    samples = made(person, "own")

    source = written(person, "own").images.sources["all"]
    assert "prefix 'coco/', inside 'data/'; 3 of 3" in got.out
    assert (source.prefix, source.inside) == ("coco/", "data/")
    assert len(samples) == 3
    assert [p.type for p in samples["own-000000000"].record.messages[0].content] == ["image", "text"]


def test_several_things_in_a_repository_are_listed_with_what_to_type(person, upstream):
    with Miniature(rows=12) as other:
        rows = [conversation(nth, f"{nth}.jpg") for nth in range(3)]
        for name in ("train-00000-of-00002", "train-00001-of-00002"):
            other.replace(
                f"/datasets/example/pictures-parquet/resolve/main/data/{name}.parquet", json.dumps(rows).encode()
            )
        env = settings(other, person.path / "root", DATAKIT_CATALOGUE=str(person.path / "own"))

        several = typed("add x --hub FreedomIntelligence/ALLaVA-4V", env)
        broken = typed("add x --hub example/pictures-parquet", env)

    assert several.code == 2
    assert "say which:" in several.err
    assert "--file 'allava_laion/ALLaVA-Caption-LAION-4V.json'" in several.err
    assert broken.code == 1
    assert "no Parquet" in broken.err
    assert not (person.path / "own/manifests/x.toml").exists()


def test_archives_in_parts_are_one_source_and_what_fits_nothing_is_said(person):
    first = person("add one --hub FreedomIntelligence/ALLaVA-4V --file allava_laion/ALLaVA-Caption-LAION-4V.json")
    other = person("add two --hub FreedomIntelligence/ALLaVA-4V --file allava_vflan/ALLaVA-Caption-VFLAN-4V.json")

    source = written(person, "one").images.sources["images"]
    assert (source.prefix, source.inside, source.parts) == ("allava_laion/images/", "*/", 10)
    assert "in the first part" in first.out
    assert "write what stands before the common part into images.sources.images.prefix" in other.out
    assert written(person, "two").problems


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("add coyo --hub example/wds", "there is a dataset 'coyo' already"),
        ("add Ünsinn --hub example/wds", "a dataset's name may hold"),
        ("add x", "say what to add"),
        ("add x --hub example/wds --json {here}", "say what to add"),
        ("add x --hub example/wds --images {here}", "--images with --json"),
        ("add x --hub nothing", "OWNER/REPO"),
        ("add x --hub no/such-thing", "the hub knows no dataset"),
        ("add x --hub example/wds@v9", "has no revision 'v9'"),
        ("add x --hub example/wds --file '*.parquet'", "has no '*.parquet'"),
        ("add x --hub example/gated-set", "is gated"),
        ("add x --json {here}", "an array of objects"),
    ],
)
def test_what_can_t_be_added_is_refused_with_a_way_on_and_leaves_nothing(person, command, said):
    here = person.path / "here.json"
    here.write_text("[1, 2]")

    got = person(command.format(here=here))

    assert got.code in (1, 2)
    assert said in got.err
    assert not (person.path / "own").exists()


def test_rows_that_name_pictures_need_to_know_where_these_are(person):
    (person.path / "rows.json").write_text(json.dumps([conversation(0, "0.jpg")]))
    (person.path / "other.json").write_text(json.dumps([{"caption": "x"}]))

    where = person(f"add x --json {person.path}/rows.json")
    other = person(f"add x --json {person.path}/other.json")

    assert (where.code, other.code) == (2, 2)
    assert "names pictures such as '0.jpg': say where they are with --images" in where.err
    assert "neither conversations nor messages, only caption" in other.err


def test_a_manifest_is_written_over_only_when_told(person):
    (person.path / "rows.json").write_text(json.dumps([conversation(nth) for nth in range(3)]))
    command = f"add own --json {person.path}/rows.json"

    first, second, forced = person(command), person(command), person(f"{command} --force")

    assert (first.code, second.code, forced.code) == (0, 2, 0)
    assert "--force" in second.err
    assert len(made(person, "own")) == 3


def test_another_catalogue_is_named_in_what_to_type_next(person, monkeypatch):
    monkeypatch.chdir(person.path)
    (person.path / "rows.json").write_text(json.dumps([conversation(0)]))

    elsewhere = person("add own --json rows.json --catalogue elsewhere")

    assert f"export DATAKIT_CATALOGUE={person.path}/elsewhere\n" in elsewhere.out
    assert (person.path / "elsewhere/manifests/own.toml").is_file()


def test_a_manifest_that_can_t_be_read_isn_t_left_behind(tmp_path):
    good = add.Draft(
        "t", {"format": "json", "files": ["file:///a.json"], "rows_per_shard": 5}, {"by": "none"}, "llava", "inline"
    )
    bad = add.Draft("t", {"format": "json", "files": ["file:///a.json"]}, {"by": "none"}, "llava", "inline")

    with pytest.raises(ManifestError, match="rows_per_shard"):
        add.write("own", bad, tmp_path)
    assert list((tmp_path / "manifests").iterdir()) == []
    path = add.write("own", good, tmp_path)
    with pytest.raises(ManifestError):
        add.write("own", bad, tmp_path, force=True)

    assert manifest.read(path).annotations.rows_per_shard == 5


def test_toml_brings_back_every_text():
    chance = random.Random(0)
    odd = ["", 'quo"te', "back\\slash", "new\nline", "\x00\x1f\x7f\x85", "ünï 🚢", "''' \"\"\"", "{part}", "a.b"]
    texts = (
        odd + ["".join(chr(chance.choice((chance.randrange(0x80), chance.randrange(0xD7FF)))) for _ in range(20))] * 20
    )
    table = {
        "a": texts,
        "b": 3,
        "c": True,
        "empty": [],
        "t": {"x y": texts[5], **{t: 1 for t in odd}, "in": {"k": ["v"]}},
    }

    assert tomllib.loads(add.toml(table)) == table


def test_a_prefix_is_what_most_references_agree_on():
    flat = [f"{n}.jpg" for n in range(9)]

    assert files.fit(flat, flat) == ("", "", 9)
    assert files.fit([f"a/b/{f}" for f in flat], [f"b/{f}" for f in flat]) == ("a/", "", 9)
    assert files.fit([f"b/{f}" for f in flat], [f"x/y/b/{f}" for f in flat]) == ("", "x/y/", 9)
    assert files.fit([f"p/{f}" for f in flat], [f"{n}/{f}" for n, f in enumerate(flat)]) == ("p/", "*/", 9)
    assert files.fit([f"one/{f}" for f in flat] + ["two/0.jpg"], [f"one/{f}" for f in flat]) == ("", "", 9)
    assert files.fit(flat, ["x.jpg"]) is None


def test_columns_are_told_by_type_and_name():
    pictures = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    turns = pa.list_(pa.struct([("user", pa.string()), ("assistant", pa.string())]))
    asked = [("image", pictures), ("id", pa.int64()), ("Question", pa.string()), ("answer", pa.string())]

    def told(fields):
        return hub.columns(pa.schema(fields), "x")[0]

    assert told([("images", pa.list_(pictures)), ("texts", turns)]) == {"messages": "texts", "image": "images"}
    assert told(asked) == {"question": "Question", "answer": "answer", "image": "image", "id": "id"}
    assert told([("photo", pictures), ("caption", pa.string())]) == {"text": "caption", "image": "photo"}
    assert told([("messages", turns)]) == {"messages": "messages"}
    with pytest.raises(UsageError, match="no column of x"):
        told([("image", pictures), ("label", pa.int64())])
    with pytest.raises(UsageError, match="several columns of pictures"):
        told([("left", pictures), ("right", pictures), ("text", pa.string())])


def test_an_archive_in_numbered_parts_is_one_source():
    numbered = [f"zips/images_{n}.zip" for n in range(11)]

    assert hub.group_archives(numbered) == [("images", "zips/images_{part}.zip", 11, "zips/images_0.zip")]
    assert hub.group_archives(["a/x-000.zip", "a/x-001.zip"]) == [("x", "a/x-{part:03d}.zip", 2, "a/x-000.zip")]
    assert [name for name, *_ in hub.group_archives(["a/x-1.zip", "a/x-2.zip", "train2017.zip"])] == [
        "x_1",
        "x_2",
        "train2017",
    ]


def test_an_archive_whose_names_would_be_a_download_is_left_to_the_person(upstream, monkeypatch):
    for name, value in upstream.env.items():
        monkeypatch.setenv(name, value)
    repository = hub.Hub("liuhaotian/LLaVA-Pretrain", "main", Hosts())
    names = hub.names_in(repository, "images.zip")
    monkeypatch.setattr(hub, "LOOK_BYTES", 10)
    found = add.Draft("t", {}, {}, "llava", "instruct")

    assert names and all(name.endswith(".jpg") for name in names)
    assert hub.names_in(repository, "images.zip") is None
    entry, fits = files.source(found, "images", "https://x/images.zip", ["a.jpg"], None)
    assert (entry["prefix"], fits) == ("", False)
    assert "images.zip: has too long a list of names to read, and rows name pictures as a.jpg" in found.problems[0]


def test_a_licence_is_read_from_the_card_in_its_forms():
    for card, licence in (
        ("---\nlicense: apache-2.0\n---\n", "apache-2.0"),
        ("---\ntags: [x]\nlicense:\n- mit\n- other\n---\n", "mit"),
        ("---\nlicence: x\n---\nlicense: no\n", ""),
        ("license: no", ""),
        ("", ""),
    ):
        assert hub.licence_of(card) == licence
