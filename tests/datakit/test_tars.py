import io
import tarfile

import pytest

from datakit.formats.tars import TarWriter


def written(samples):
    file = io.BytesIO()
    writer = TarWriter(file)
    offsets = [writer.add(name, data) for name, data in samples]
    writer.close()
    return file.getvalue(), offsets


SAMPLES = [("a-1.jpg", b"x" * 700), ("a-1.json", b"{}"), ("a-2.jpg", b""), ("a-2.json", b"y" * 512)]


def test_other_tar_readers_read_what_we_write_and_find_no_time_and_no_owner():
    data, offsets = written(SAMPLES)

    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        found = [(m.name, tar.extractfile(m).read()) for m in tar.getmembers()]
        facts = {(m.mtime, m.uid, m.gid, m.uname, m.gname, m.mode) for m in tar.getmembers()}
        places = [m.offset_data for m in tar.getmembers()]

    assert found == SAMPLES
    assert facts == {(0, 0, 0, "", "", 0o644)}
    assert places == offsets


@pytest.mark.parametrize("size", [200, (256 << 10) - 512, (256 << 10) - 1, 256 << 10, (256 << 10) + 1, 700_000])
def test_members_of_any_size_are_written_in_order(size):
    samples = [(f"{n}.bin", bytes([n]) * (size if n % 3 else 10)) for n in range(9)]

    data, offsets = written(samples)

    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        found = [(m.name, tar.extractfile(m).read()) for m in tar.getmembers()]
    assert found == samples
    for at, (_, body) in zip(offsets, samples, strict=True):
        assert data[at : at + len(body)] == body


def test_a_name_or_size_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="doesn't fit"):
        TarWriter(io.BytesIO()).add("a" * 101, b"")
