import buckets
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from users import COYOS_ROWS

from datakit.catalogue.manifest import load
from datakit.engine.work import Out, Work
from datakit.errors import SourceError
from datakit.miniature import coyo_parquet
from datakit.readers import coyo
from datakit.records.tables import Rows, TableWriter
from datakit.stages.clip_top import ClipTop
from datakit.storage.store import Store
from datakit.web.crawl import Limits
from datakit.web.hosts import Hosts


def run(stage, table):
    buckets.opened("choose")
    store = Store("s3://choose")
    with store.publish("t.parquet") as sink:
        writer = TableWriter(sink, table.schema)
        for batch in table.to_batches(7):
            writer.write(batch)
        writer.close()
    rows = Rows(store, 0, (("t.parquet", table.num_rows),), 0, table.num_rows)
    out = Out(lambda: pytest.fail("a choice writes no tar"), "")
    work = Work(store, load("coyo"), "coyo", "top20", Hosts(), Limits())
    kept = [key for batch in stage.rows(rows, work, out) for key in batch["key"].to_pylist()]
    return kept, dict(out.dropped), dict(out.faults)


def table(sims, keys=None):
    keys = keys or [f"k{i:03d}" for i in range(len(sims))]
    return pa.table({"key": keys, "clip_sim": pa.array(sims, pa.float32())})


def test_the_best_share_of_all_rows_passes_in_the_order_it_came():
    kept, dropped, faults = run(ClipTop(share=0.4, floor=0.6), table([0.7, 0.1, 0.9, 0.8, 0.65]))

    assert kept == ["k002", "k003"]
    assert dropped == {"below_floor": 1, "below_quota": 2}
    assert faults == {}  # a choice is no fault


def test_the_rows_of_coyos_readme_give_vilas_choice(tmp_path):
    rows = [
        {"id": i, "url": "u", "text": "t", "clip_similarity_vitb32": b32, "clip_similarity_vitl14": l14}
        for i, b32, l14 in COYOS_ROWS
    ]
    (tmp_path / "x.parquet").write_bytes(coyo_parquet(rows))
    shard = pa.Table.from_batches(coyo.batches(tmp_path / "x.parquet", None, "coyo", lambda reason, n: None))

    kept, dropped, _ = run(ClipTop(share=0.2, floor=0.6), shard)

    # VILA's coyo_downloader.py: three are above 0.6, of which the best int(7 * 0.2) stay
    assert kept == ["coyo-1125282207474"]
    assert dropped == {"below_floor": 4, "below_quota": 2}


def test_a_row_at_the_floor_does_not_pass():
    kept, dropped, _ = run(ClipTop(share=1.0, floor=0.6), table([0.6, 0.7]))

    assert kept == ["k001"]
    assert dropped == {"below_floor": 1}


def test_ties_are_broken_by_key_not_by_arrival():
    kept, _, _ = run(ClipTop(share=0.5, floor=0.0), table([0.5] * 4, ["d", "b", "c", "a"]))

    assert kept == ["b", "a"]


def test_a_row_without_a_similarity_never_passes():
    kept, dropped, _ = run(ClipTop(share=1.0, floor=0.0), table([None, float("nan"), 0.5]))

    assert kept == ["k002"]
    assert dropped == {"below_floor": 2}


def test_an_empty_shard_gives_an_empty_shard():
    assert run(ClipTop(share=0.2, floor=0.6), table([])) == ([], {}, {})


def test_rows_without_clip_sim_are_refused():
    with pytest.raises(SourceError, match="clip_sim"):
        run(ClipTop(share=0.2, floor=0.6), pa.table({"key": ["a"]}))


@given(
    sims=st.lists(st.sampled_from([0.1, 0.5, 0.61, 0.7, 0.7001, 0.9]), max_size=60),
    share=st.sampled_from([0.0, 0.2, 0.33, 1.0]),
)
def test_the_choice_is_what_sorting_everything_would_give(sims, share):
    keys = [f"k{(i * 37) % 101:03d}" for i in range(len(sims))]
    passing = sorted((-np.float32(s), k) for s, k in zip(sims, keys, strict=True) if np.float32(s) > np.float32(0.6))
    expected = {k for _, k in passing[: int(len(sims) * share)]}

    kept, dropped, _ = run(ClipTop(share=share, floor=0.6), table(sims, keys))

    assert set(kept) == expected
    assert len(kept) + sum(dropped.values()) == len(sims)
