from collections import Counter

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_choose import run

from datakit.errors import UsageError
from datakit.records.tables import REFS
from datakit.stages.stratified_share import StratifiedShare


def table(refs, name="k"):
    """A row for each list of references."""
    keys = [f"{name}-{i:05d}" for i in range(len(refs))]
    images = pa.array([[{"ref": ref} for ref in row] for row in refs], REFS)
    return pa.table({"key": keys, "images": images})


def of(folder, n):
    return [[f"{folder}/{i}.jpg"] for i in range(n)]


def counted(kept, refs):
    """How many rows of each folder were kept; text has the folder None."""
    return Counter(row[0].rpartition("/")[0] if row else None for row in (refs[int(key[-5:])] for key in kept))


def test_each_source_and_the_texts_give_their_half():
    refs = of("coco/train2017", 40) + of("vg/VG_100K", 10) + of("vg/VG_100K_2", 6) + [[]] * 20

    kept, dropped, faults = run(StratifiedShare(share=0.5), table(refs))

    assert counted(kept, refs) == {"coco/train2017": 20, "vg/VG_100K": 5, "vg/VG_100K_2": 3, None: 10}
    assert dropped == {"not_in_share": 38}
    assert faults == {}


def test_rows_stay_in_order():
    kept, _, _ = run(StratifiedShare(share=0.5), table(of("a", 30) + [[]] * 30))

    assert kept == sorted(kept)


def test_the_choice_hangs_on_keys_and_not_on_arrival():
    rows = table(of("a", 20) + of("b", 20))
    turned = rows.take(list(range(39, -1, -1)))

    kept, _, _ = run(StratifiedShare(share=0.5), rows)
    other, _, _ = run(StratifiedShare(share=0.5), turned)

    assert sorted(other) == kept
    assert kept[:4] == ["k-00000", "k-00006", "k-00007", "k-00008"]  # changes with the stage's version only


def test_a_picture_at_the_top_has_a_folder_of_its_own_and_the_first_picture_counts():
    refs = [["1.jpg"], ["2.jpg"], ["a/1.jpg", "b/1.jpg"], ["a/2.jpg"], ["http://x.test/a/1.jpg?q=1"], [], []]

    kept, _, _ = run(StratifiedShare(share=0.5), table(refs))

    found = counted(kept, refs)
    assert (found[""], found["a"], found[None]) == (1, 1, 1)


def test_odd_sources_do_not_all_lose_nor_all_win():
    every = Counter()
    for shard in range(40):
        refs = of("a", 5) + of("b", 5) + of("c", 5) + [[]] * 5
        every += counted(run(StratifiedShare(share=0.5), table(refs, f"s{shard}"))[0], refs)

    assert sum(every.values()) == 40 * 10
    assert all(80 < n < 120 for n in every.values())  # half is 100; never less than two nor more than three of five


@given(
    sizes=st.lists(st.integers(0, 30), max_size=6),
    share=st.sampled_from([0.0, 0.1, 0.29, 0.3, 0.5, 0.7, 1.0]),
)
def test_a_source_is_off_by_less_than_a_row_and_a_shard_by_half_of_one(sizes, share):
    refs = [row for n, size in enumerate(sizes) for row in of(f"f{n}", size)]

    kept, dropped, _ = run(StratifiedShare(share=share), table(refs))

    found = counted(kept, refs)
    assert all(abs(found[f"f{n}"] - share * size) < 1 for n, size in enumerate(sizes))
    assert abs(len(kept) - share * len(refs)) < 0.5 + 1e-9
    assert len(kept) + sum(dropped.values()) == len(refs)


def test_an_exact_share_is_exact():
    kept, _, _ = run(StratifiedShare(share=0.29), table(of("a", 100)))

    assert len(kept) == 29


def test_an_empty_shard_gives_an_empty_shard():
    assert run(StratifiedShare(share=0.5), table([])) == ([], {}, {})


@pytest.mark.parametrize("share", [-0.1, 1.5, 50, float("nan")])
def test_a_share_that_is_none_is_refused(share):
    with pytest.raises(UsageError, match="between 0 and 1"):
        StratifiedShare(share=share)
