import hashlib

from hypothesis import given
from hypothesis import strategies as st

from datakit.stream.order import Order, permutation


def positions(order, start, stop):
    found, at = [], start
    while at < stop:
        window = order.window_at(at)
        offset = at % order.n_samples - window.start
        taken = list(zip(window.entry.tolist(), window.row.tolist(), strict=True))[offset:]
        found += taken
        at += len(taken)
    return found[: stop - start]


def test_the_order_never_changes_between_versions():
    """Golden numbers: a change here breaks every resumed run, and is labelled ORDER in the CHANGELOG."""
    order = Order([1000] * 7, seed=3, window=2500)

    seen = positions(order, 0, 14_000)

    assert permutation(8, 0, 0).tolist() == [2, 3, 6, 5, 1, 7, 0, 4]
    digest = hashlib.sha256(repr(seen).encode()).hexdigest()
    assert digest == "76ade0db5e1de92bac546e25ab0c99ebeec8506a1acfbfcaa851357df3a72c91"


@given(
    sizes=st.lists(st.integers(1, 30), min_size=1, max_size=12),
    seed=st.integers(0, 2**40),
    window=st.integers(1, 60),
)
def test_every_epoch_holds_every_sample_once(sizes, seed, window):
    order = Order(sizes, seed=seed, window=window)
    every = sorted((e, r) for e, n in enumerate(sizes) for r in range(n))

    for epoch in range(2):
        seen = positions(order, epoch * order.n_samples, (epoch + 1) * order.n_samples)

        assert sorted(seen) == every


@given(sizes=st.lists(st.integers(1, 30), min_size=1, max_size=12), start=st.integers(0, 700))
def test_a_position_holds_the_same_sample_wherever_reading_began(sizes, start):
    whole = positions(Order(sizes, seed=1, window=20), 0, 900)

    fresh = positions(Order(sizes, seed=1, window=20), start, 900)

    assert fresh == whole[start:]


def test_another_epoch_or_seed_is_another_order():
    first = positions(Order([50] * 10, seed=0, window=100), 0, 500)

    assert first != positions(Order([50] * 10, seed=0, window=100), 500, 1000)
    assert first != positions(Order([50] * 10, seed=1, window=100), 0, 500)


def test_samples_of_a_window_come_from_few_shards():
    order = Order([100] * 50, seed=0, window=300)

    window = order.window_at(0)

    assert len(set(window.entry.tolist())) == 3
    assert window.entry.tolist() != sorted(window.entry.tolist())
