import pytest

from datakit.errors import UsageError
from datakit.storage.shards import parse_shards, parse_slice, ranges, shard_name


def test_ranges_are_read_and_written_as_a_user_types_them():
    assert parse_shards("0-3") == [0, 1, 2, 3]
    assert parse_shards("7, 0-1,1") == [0, 1, 7]
    assert ranges([7, 0, 1, 3, 2]) == "0-3,7"
    assert shard_name(42) == "00042"
    assert shard_name(42, 7) == "00042-00007"


@pytest.mark.parametrize("text", ["", "a", "3-1", "1-", "-1", "1..3", "0-99999999999", "1;2", "0-999999999"])
def test_a_bad_range_is_refused_with_an_example(text):
    with pytest.raises(UsageError, match="shard range"):
        parse_shards(text)


@pytest.mark.parametrize("text", ["8/8", "1", "a/b", "1/0", "-1/2"])
def test_a_bad_slice_is_refused_with_an_example(text):
    with pytest.raises(UsageError, match="3/8"):
        parse_slice(text)


def test_slices_cover_every_shard_once():
    shards = range(100)

    taken = [k for i in range(7) for k in shards if k % 7 == parse_slice(f"{i}/7")[0]]

    assert sorted(taken) == list(shards)
