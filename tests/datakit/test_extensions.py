"""What each extension decides: data that exists was made by these lists, and nothing would tell if one had changed."""

import io
import zipfile

import pyarrow as pa
import pytest
from PIL import Image

from datakit.catalogue.manifest import Source, load
from datakit.engine.stage import Out, Work
from datakit.errors import BadImage
from datakit.formats.archives import Index, write_index
from datakit.records.record import Message, Part, encode
from datakit.records.tables import LOCATED, Rows, TableWriter
from datakit.reports.check_pictures import content
from datakit.stages.pack import Pack
from datakit.storage.store import Store
from datakit.upkeep.export import is_path
from datakit.upstream.finder import find, find_other_extension
from datakit.upstream.loose import Folder
from datakit.web.hosts import Hosts
from datakit.web.pacing import Limits

KNOWN = ["jpg", "jpeg", "jpe", "png", "gif", "webp", "bmp", "tif", "tiff", "avif", "heic", "jxl", "json", "txt"]
EVERY = [*KNOWN, *(extension.upper() for extension in KNOWN), "Jpg"]


def index_of(names, folder):
    with zipfile.ZipFile(folder / "a.zip", "w") as file:
        for name in names:
            file.writestr(name, b"")
    (folder / "a.index").unlink(missing_ok=True)
    write_index(folder / "a.zip", folder / "a.index")
    return Index.open(folder / "a.index")


def taken_in_turn(find_in, folder):
    """The extensions of a picture in the order in which they are taken, each while those before it aren't there."""
    left, taken = list(EVERY), []
    while (member := find_in(index_of([f"x/a.{extension}" for extension in left], folder))) is not None:
        taken.append(member.name.rpartition(".")[2])
        left.remove(taken[-1])
    return taken


def test_a_member_of_any_folder_is_looked_for_under_these_endings_in_this_order(tmp_path):
    source = Source(prefix="p/", archive="file:///a.zip", inside="*/", any_extension=True)

    taken = taken_in_turn(lambda index: find(index, source, "p/a.none"), tmp_path)

    assert taken == ["jpg", "png", "gif", "jpeg", "webp", "JPG", "PNG", "GIF", "JPEG"]


def test_the_member_of_a_stem_is_the_one_with_the_preferred_extension_then_the_first_by_name(tmp_path):
    source = Source(prefix="p/", archive="file:///a.zip", inside="x/", any_extension=True)

    taken = taken_in_turn(lambda index: find(index, source, "p/a.none"), tmp_path)

    pictures = [["JPG", "Jpg", "jpg"], *([e.upper(), e] for e in ("jpeg", "png", "webp", "gif", "bmp", "tif", "tiff"))]
    others = sorted(set(EVERY) - {extension for some in pictures for extension in some})
    assert taken == [*(extension for some in pictures for extension in some), *others]


def test_a_repair_finds_a_member_under_these_endings(tmp_path):
    source = Source(prefix="p/", archive="file:///a.zip", inside="x/")
    alone = {extension: index_of([f"x/a.{extension}"], tmp_path) for extension in EVERY}

    found = {e for e, index in alone.items() if find_other_extension(index, source, "p/a.none") is not None}

    assert found == {"jpg", "png", "gif", "jpeg", "webp", "JPG", "PNG", "GIF", "JPEG"}


def test_a_repair_finds_a_loose_file_under_these_endings(tmp_path):
    found = set()
    for extension in EVERY:
        (tmp_path / extension).mkdir()
        (tmp_path / extension / f"a.{extension}").write_bytes(b"")
        try:
            found.add(extension if Folder(str(tmp_path / extension), repair=True)("a.none") == (b"", True) else None)
        except BadImage as error:
            assert error.reason == "missing"

    few = {"jpg", "jpeg", "png", "gif", "webp", "bmp"}
    assert found == few | {extension.upper() for extension in few}


@pytest.fixture(scope="module")
def picture():
    """A PNG."""
    data = io.BytesIO()
    Image.new("RGB", (24, 16), (9, 10, 200)).save(data, "PNG")
    return data.getvalue()


def test_pack_notes_the_type_where_these_extensions_say_another(tmp_path, picture):
    store = Store(str(tmp_path))
    messages = encode([Message(role="assistant", content=[Part(type="image"), Part(type="text", text="A sea.")])])
    place = {"outcome": "ok", "file": "d/fetch/00000.tar", "offset": 0, "method": 0, "checked": False}
    place |= {"stored_bytes": len(picture), "size_bytes": len(picture)}
    kinds = {"key": pa.string(), "messages": pa.string(), "images": LOCATED, "repairs": pa.list_(pa.string())}
    rows = [
        {"key": f"k-{at}", "messages": messages.decode(), "images": [place | {"ref": f"a.{extension}"}]}
        for at, extension in enumerate(EVERY)
    ]
    store.write("d/fetch/00000.tar", picture)
    with store.publish("d/fetch/00000.parquet") as sink:
        writer = TableWriter(sink, pa.schema(kinds))
        writer.write(pa.RecordBatch.from_pylist(rows, pa.schema(kinds)))
        writer.close()

    with store.publish("d/pack/00000.tar") as tar:
        before = Rows(store, 0, (("d/fetch/00000.parquet", len(rows)),), 0, len(rows))
        work = Work(store, load("coyo"), "d", "pack", Hosts(), Limits())
        out = Out(lambda: tar, "d/pack/00000.tar")
        packed = [row for batch in Pack().rows(before, work, out) for row in batch.to_pylist()]
        out.close()

    noted = {extension for extension, row in zip(EVERY, packed, strict=True) if row["repairs"] == ["content_type"]}
    few = {"jpg", "jpeg", "gif", "webp", "bmp"}
    assert noted == few | {extension.upper() for extension in few} | {"Jpg"}


def test_check_says_where_these_extensions_say_another_type(picture):
    noted = {e for e in EVERY if [what for what, _ in content(picture, f"x/a.{e}", "a", False)] == ["other_type"]}

    every = {"jpg", "jpeg", "jpe", "gif", "webp", "bmp", "tif", "tiff", "avif"}
    assert noted == every | {extension.upper() for extension in every} | {"Jpg"}
    assert not list(content(picture, "a.jpg/.gif", "a", False)) + list(content(picture, "gif", "a", False))


def test_an_export_leaves_pictures_with_these_extensions_their_names():
    named = {extension for extension in EVERY if is_path(f"x/a.{extension}")}

    every = {"jpg", "jpeg", "png", "gif", "webp", "bmp", "tif", "tiff", "avif"}
    assert named == every | {extension.upper() for extension in every} | {"Jpg"}
    assert not any(is_path(f"a.{extension}/b.jpg") for extension in every)
