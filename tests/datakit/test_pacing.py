"""Pacing: how wide the window is, what a host bears, and who waits."""

import asyncio

import pytest

from datakit.web.pacing import (
    BREAK_AFTER,
    BREAK_S,
    LONGEST_BREAK_S,
    TICK_S,
    ByteBudget,
    Host,
    Lateness,
    Limits,
    Window,
    is_host_fault,
)


def ticked(window: Window, *, n: int = 1, full: bool = True, late_s: float = 0.0, backlog: int = 0) -> float:
    for _ in range(n):
        if full:
            window.report_full()
        window.tick(late_s=late_s, backlog=backlog)
    return window.size


def test_a_window_that_holds_the_crawl_up_doubles_until_it_has_had_to_shrink():
    window = Window((16, 4096))

    sizes = [ticked(window) for _ in range(3)]
    shrunk = ticked(window, late_s=1.0)
    grown = ticked(window)

    assert sizes == [128, 256, 512]
    assert shrunk == pytest.approx(512 * 0.7)
    assert grown == shrunk + 16


def test_a_window_that_was_wide_enough_stays():
    window = Window((16, 4096))

    assert ticked(window, n=5, full=False) == 64


def test_a_window_keeps_its_bounds():
    window = Window((16, 100))

    assert ticked(window, n=10) == 100
    assert ticked(window, n=50, late_s=1.0) == 16
    assert Window((1, 1)).size == 1


def test_a_window_shrinks_when_bodies_pile_up_before_the_codecs():
    window = Window((16, 4096))

    assert ticked(window, backlog=20) == 64  # more than it helps to have, not yet too many
    assert ticked(window, backlog=100) < 64


def test_a_window_shrinks_when_a_third_of_the_connections_fails_and_not_for_a_few():
    window = Window((16, 4096))
    for n in range(100):
        window.report_connection(well=n % 10 != 0)
    usual = ticked(window, full=False)

    for n in range(100):
        window.report_connection(well=n % 2 != 0)

    assert usual == 64
    assert ticked(window, full=False) < 64


def test_the_lateness_of_the_loop_is_added_up_and_an_overdue_tick_counts():
    lateness = Lateness(100.0)

    on_time = lateness.tick(100.0 + TICK_S)
    late = lateness.tick(103.0 + 2 * TICK_S)

    assert (on_time, late) == (0.0, 3.0)
    assert lateness.total_s(103.0 + 2 * TICK_S) == 3.0
    assert lateness.total_s(103.0 + 3 * TICK_S) == 3.0  # the next tick is due now
    assert lateness.total_s(108.0 + 3 * TICK_S) == 8.0
    assert lateness.tick(108.0 + 3 * TICK_S) == 5.0


def test_a_host_bears_so_many_requests_at_once():
    host = Host(Limits(per_host=2))

    host.begin(0.0)
    host.begin(0.0)

    assert host.full
    host.running -= 1
    assert not host.full


def test_a_host_bears_a_burst_and_then_its_rate():
    host = Host(Limits(per_host=4, per_host_per_s=2))
    waits = []

    for _ in range(7):
        waits.append(host.wait_s(10.0))
        host.begin(10.0)

    assert waits == pytest.approx([0, 0, 0, 0, 0.5, 1.0, 1.5])
    assert host.wait_s(13.0) == 0


@pytest.mark.parametrize("outcome", ["http_429", "http_503", "reset", "timeout_connect"])
def test_a_host_that_has_too_much_is_asked_for_half_as_much_and_gets_it_back_bit_by_bit(outcome):
    host = Host(Limits(per_host=8, per_host_per_s=64))

    def bears(n: int) -> bool:
        host.running = n - 1
        return not host.full

    host.report_outcome(outcome, 0.0)
    assert bears(4) and not bears(5)
    assert host.per_s == 32
    for _ in range(6):
        host.report_outcome(outcome, 0.0)
    assert bears(1) and not bears(2)
    assert host.per_s == 1
    for _ in range(100):
        host.report_outcome("ok", 0.0)
    assert bears(8) and not bears(9)
    assert host.per_s == 64


def test_a_delay_of_robots_txt_is_a_rate_that_doesn_t_grow_again():
    host = Host(Limits())

    host.slow(2.0)
    host.begin(0.0)
    host.report_outcome("ok", 0.0)

    assert host.per_s == 0.5
    assert host.wait_s(0.0) == 2.0


def test_a_host_that_asks_for_patience_gets_it():
    host = Host(Limits())

    host.pause(10.0, 20.0)

    assert host.wait_s(10.0) == 20.0
    assert host.wait_s(31.0) == 0.0


def test_a_host_that_asks_for_more_patience_than_a_url_has_is_left_alone():
    host = Host(Limits(total_s=60))

    host.pause(10.0, 3000.0)

    assert host.refuses(11.0) == "host_down"
    assert host.refuses(3011.0) == ""


def test_a_host_that_failed_ten_times_in_a_row_is_left_alone_and_probed_later():
    host = Host(Limits())
    for _ in range(BREAK_AFTER):
        assert host.refuses(0.0) == ""
        host.report_outcome("timeout_connect", 0.0)

    assert host.refuses(1.0) == "host_down"
    assert host.refuses(BREAK_S + 1) == ""
    host.begin(BREAK_S + 1)
    assert host.refuses(BREAK_S + 1) == "host_down"  # one probe is enough
    host.running -= 1
    host.report_outcome("ok", BREAK_S + 2)
    assert host.refuses(BREAK_S + 2) == ""


def test_each_failed_probe_doubles_the_break_up_to_an_hour():
    host = Host(Limits())
    now = 0.0
    for _ in range(BREAK_AFTER):
        host.report_outcome("reset", now)
    breaks = []

    for _ in range(10):
        start = now
        while host.refuses(now):
            now += 1
        breaks.append(now - start)
        host.report_outcome("http_503", now)

    assert breaks[:3] == [BREAK_S, 2 * BREAK_S, 4 * BREAK_S]
    assert breaks[-1] == LONGEST_BREAK_S


def test_an_answer_in_between_ends_the_row_of_failures_even_if_it_is_a_404():
    host = Host(Limits())
    for n in range(100):
        host.report_outcome("http_404" if n % BREAK_AFTER == BREAK_AFTER - 1 else "reset", 0.0)

    assert host.refuses(0.0) == ""


def test_a_name_without_address_stays_that():
    host = Host(Limits())

    for _ in range(BREAK_AFTER):
        host.report_outcome("dns", 0.0)

    assert host.refuses(0.0) == "dns"


@pytest.mark.parametrize(
    "outcome", ["ok", "http_404", "http_403", "opted_out", "not_an_image", "refused_url", "robots"]
)
def test_what_is_wrong_with_a_url_is_no_failure_of_its_host(outcome):
    assert not is_host_fault(outcome)


def test_only_hosts_with_nothing_to_remember_are_forgotten():
    fresh, busy, failing, paused = (Host(Limits()) for _ in range(4))
    busy.begin(0.0)
    failing.report_outcome("reset", 0.0)
    paused.pause(0.0, 50.0)

    assert fresh.forgettable(1.0)
    assert not any(host.forgettable(1.0) for host in (busy, failing, paused))


def test_who_waits_for_room_goes_in_order_and_the_oldest_never_waits():
    async def play() -> list[int]:
        oldest, let_in = 0, []
        room = ByteBudget(10, lambda: oldest)
        assert room.admits(1, 8)

        async def enter(place: int, n: int) -> None:
            if not room.admits(place, n):
                await room.wait(place, n)
            let_in.append(place)

        tasks = [asyncio.ensure_future(enter(place, 6)) for place in (2, 3, 4)]
        await asyncio.sleep(0)
        assert room.admits(0, 100)  # the oldest
        room.give(100)
        room.give(8)
        await asyncio.sleep(0)
        room.give(6)
        await asyncio.sleep(0)
        room.give(6)
        await asyncio.gather(*tasks)
        return let_in

    assert asyncio.run(play()) == [2, 3, 4]
