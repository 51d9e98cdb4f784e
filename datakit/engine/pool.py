"""Pool: calls in worker processes, which report their progress and end when their parent does.

Workers are fresh interpreters: a fork would copy threads and locks of the parent. A call crosses to its worker as
pickled bytes and is unpickled inside a `try`, so that an error there is reported as what it is; errors that cross back
are checked in the same way.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import pickle
import signal
import threading
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any, NamedTuple

from datakit.engine.work import Progress
from datakit.errors import DatakitError
from datakit.process import memory, terminal, usercode

log = logging.getLogger(__name__)


class Call(NamedTuple):
    """A call of a function of some module, which is given a Progress after these arguments."""

    function: Callable[..., Any]
    arguments: tuple[Any, ...]


def run_calls(
    calls: Iterable[Call], jobs: int, *, progress: Progress, then: Callable[[Any], Iterable[Call]] = lambda result: ()
) -> None:
    """Makes calls in up to `jobs` processes; `then` gets each result here, and returns the calls that follow from it.

    Following calls come before the rest. `calls` is asked for the next call when a process is about to be free, so it
    may decide late. Raises what the first failing call raised, when those under way have ended; no other call is
    begun. Raises DatakitError when a process was killed, or a call can't be sent to one.
    """
    context = multiprocessing.get_context("spawn")
    queue = context.SimpleQueue()
    listener = threading.Thread(target=_relay, args=(queue, progress), daemon=True)
    listener.start()
    pool = ProcessPoolExecutor(
        jobs, mp_context=context, initializer=_start_worker, initargs=(queue, terminal.log_level())
    )
    workers: Mapping[int, Any] = {}
    rest, following = iter(calls), deque[Call]()
    running: set[Future[Any]] = set()

    def submit() -> None:
        """One call more than there are processes, so that none has to wait for the next."""
        while len(running) <= jobs and (call := _next_call(following, rest)) is not None:
            running.add(pool.submit(_run_call, _PickledCall(call)))

    try:
        submit()
        workers = pool._processes or {}
        while running:
            finished, left = wait(running, return_when=FIRST_COMPLETED)
            running -= finished
            for future in finished:
                error = future.exception()
                if error is not None and left and not isinstance(error, BrokenProcessPool):
                    log.error("a shard failed: %s\nThose under way are finished first", error)
                following.extend(then(future.result()))
            submit()
        pool.shutdown(wait=True)
    except KeyboardInterrupt:
        # A worker may die while it holds the queue's lock, so nobody waits for the queue any more.
        for process in list(workers.values()):
            process.terminate()
        pool.shutdown(wait=False, cancel_futures=True)
        raise
    except BrokenProcessPool as error:
        pool.shutdown(wait=True, cancel_futures=True)  # the pool has told the other workers to end
        raise DatakitError(
            f"a worker process {_how_it_ended(workers)}. What was committed is kept: run the same command again"
        ) from error
    except BaseException:
        # What is under way is finished, and kept. Not by `cancel_futures`, which in Python 3.11 waits for ever for a
        # call that can't be pickled.
        for future in running:
            future.cancel()
        pool.shutdown(wait=True)
        raise
    queue.put(None)
    listener.join()
    queue.close()


def _next_call(following: deque[Call], rest: Iterator[Call]) -> Call | None:
    return following.popleft() if following else next(rest, None)


def _relay(queue: Any, progress: Progress) -> None:
    while (message := queue.get()) is not None:
        name, *arguments = message
        getattr(progress, name)(*arguments)


class _Relayed(Progress):
    """Progress of a worker, which its parent shows."""

    def shards(self, n: int) -> None:
        _queue.put(("shards", n))

    def shards_done(self, n: int) -> None:
        _queue.put(("shards_done", n))

    def rows_to_come(self, step: str, n: int) -> None:
        _queue.put(("rows_to_come", step, n))

    def rows(self, step: str, n: int) -> None:
        _queue.put(("rows", step, n))

    def bytes(self, step: str, n: int) -> None:
        _queue.put(("bytes", step, n))

    def faults(self, step: str, reason: str, n: int) -> None:
        _queue.put(("faults", step, reason, n))

    def download(self, address: str, n_bytes: int, of_bytes: int | None) -> None:
        _queue.put(("download", address, n_bytes, of_bytes))


_queue: Any = None


def _start_worker(queue: Any, level: int) -> None:
    """In a new worker: Ctrl-C is the parent's to handle, and a worker doesn't outlive its parent."""
    global _queue
    _queue = queue
    memory.reduce_overhead()
    terminal.open_standard_streams()
    terminal.show_logs(level)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None:

        def follow() -> None:
            parent.join()
            os._exit(1)

        threading.Thread(target=follow, daemon=True).start()


class _PickledCall:
    """A call that crosses to a worker as bytes: pickled when its turn comes, unpickled by `_run_call`."""

    def __init__(self, call: Call) -> None:
        self._parts = (call.function, call.arguments)

    def __reduce__(self) -> tuple[type[bytes], tuple[bytes]]:
        try:
            return bytes, (pickle.dumps(self._parts),)
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            raise DatakitError(
                f"this recipe can't be sent to another process: {error}. Define what it uses at the top level of its "
                "file, or run with --jobs 1"
            ) from error


def _run_call(pickled: Any) -> Any:
    try:
        function, arguments = pickle.loads(pickled)  # noqa: S301 - our own parent's
        return function(*arguments, _Relayed())
    except BaseException as error:
        portable = usercode.portable_error(error)
        if _survives_pickling(portable):
            if portable is error:
                raise
            raise portable from None
        trace = "".join(traceback.format_exception(error))
        raise DatakitError(
            f"{type(error).__name__} in a worker process, which is a mistake of ours:\n{trace}"
        ) from None


def _survives_pickling(error: BaseException) -> bool:
    """Whether an exception can be unpickled as the same class; one whose __init__ takes other arguments can't."""
    try:
        return type(pickle.loads(pickle.dumps(error))) is type(error)  # noqa: S301
    except Exception:  # noqa: BLE001 - of classes that anyone may have written
        return False


def _how_it_ended(workers: Mapping[int, Any]) -> str:
    """How the worker ended that broke the pool: the pool then told the others to end, so their codes say nothing."""
    codes = [process.exitcode for process in workers.values()]
    code = next((code for code in codes if code not in (None, 0, -signal.SIGTERM)), None)
    if code is None:
        return "ended before its work was done, perhaps killed for want of memory: a smaller --jobs needs less"
    if code == -signal.SIGKILL:
        return "was killed, perhaps for want of memory: a smaller --jobs needs less"
    if code < 0:
        return f"crashed ({signal.Signals(-code).name}), which no data should bring about: please report it"
    ended = f"ended by itself with exit code {code}"
    if code == 1:
        ended += (
            ", as Python does when it can't load the program that began it. A program that calls datakit with several "
            'jobs is a file, and does its work under `if __name__ == "__main__":`; else give it one job'
        )
    return ended
