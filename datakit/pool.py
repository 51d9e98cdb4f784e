"""Pool: calls in worker processes, which tell how they get on and don't outlive their parent.

Workers are fresh interpreters: a fork would copy threads and locks of the parent. What they are to do comes as bytes,
and is unpickled where an error can be caught, so that it is told as what it was; and so are errors on their way back.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import pickle
import signal
import threading
import traceback
from collections.abc import Callable, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

from datakit import memory, terminal, usercode
from datakit.errors import DatakitError
from datakit.stage import Tell

T = TypeVar("T")
log = logging.getLogger(__name__)


def pooled(
    make: Callable[..., T], tasks: list[tuple[Any, ...]], jobs: int, *, tell: Tell, note: Callable[[T], None]
) -> None:
    """Calls `make(*task, tell)` for each task in `jobs` processes, and `note` here with what each returns.

    Raises what the first failing task raised, when those under way have ended; the others are not begun.
    Raises DatakitError when a worker was killed, or what it is to do can't be sent to one.
    """
    context = multiprocessing.get_context("spawn")
    queue = context.SimpleQueue()
    ear = threading.Thread(target=_relay, args=(queue, tell), daemon=True)
    ear.start()
    pool = ProcessPoolExecutor(jobs, mp_context=context, initializer=_begin, initargs=(queue, terminal.level()))
    workers: Mapping[int, Any] = {}
    try:
        running: set[Future[T]] = {pool.submit(_call, _Sealed(make, task)) for task in tasks}
        workers = pool._processes or {}
        while running:
            finished, running = wait(running, return_when=FIRST_COMPLETED)
            for future in finished:
                error = future.exception()
                if error is not None and running and not isinstance(error, BrokenProcessPool):
                    log.error("a shard failed: %s\nThose under way are finished first", error)
                note(future.result())
        pool.shutdown(wait=True)
    except KeyboardInterrupt:
        # A worker may die with the queue's lock in its hand, so nobody waits for the queue any more.
        for process in list(workers.values()):
            process.terminate()
        pool.shutdown(wait=False, cancel_futures=True)
        raise
    except BrokenProcessPool as error:
        pool.shutdown(wait=True, cancel_futures=True)  # the pool has told the other workers to end
        raise DatakitError(
            f"a worker process {_end(workers)}. What was committed is kept: run the same command again"
        ) from error
    except BaseException:
        pool.shutdown(wait=True, cancel_futures=True)  # what is under way is finished, and kept
        raise
    queue.put(None)
    ear.join()
    queue.close()


def _relay(queue: Any, tell: Tell) -> None:
    while (message := queue.get()) is not None:
        tell(*message)


_queue: Any = None


def _begin(queue: Any, level: int) -> None:
    """In a new worker: Ctrl-C is the parent's to handle, and a worker doesn't outlive its parent."""
    global _queue
    _queue = queue
    memory.spare()
    terminal.open_doors()
    terminal.listen(level)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None:

        def follow() -> None:
            parent.join()
            os._exit(1)

        threading.Thread(target=follow, daemon=True).start()


class _Sealed:
    """A call that crosses to a worker as bytes; it is pickled when its turn comes, and opened by `_call`."""

    def __init__(self, make: Callable[..., Any], task: tuple[Any, ...]) -> None:
        self._call = (make, task)

    def __reduce__(self) -> tuple[type[bytes], tuple[bytes]]:
        try:
            return bytes, (pickle.dumps(self._call),)
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            raise DatakitError(
                f"this recipe can't be sent to another process: {error}. Define what it uses at the top level of its "
                "file, or run with --jobs 1"
            ) from error


def _call(sealed: Any) -> Any:
    try:
        make, task = pickle.loads(sealed)  # noqa: S301 - our own parent's
        return make(*task, lambda *message: _queue.put(message))
    except BaseException as error:
        told = usercode.portable(error)
        if _crosses(told):
            if told is error:
                raise
            raise told from None
        trace = "".join(traceback.format_exception(error))
        raise DatakitError(
            f"{type(error).__name__} in a worker process, which is a mistake of ours:\n{trace}"
        ) from None


def _crosses(error: BaseException) -> bool:
    """Whether an exception comes out of a pickle as it went in; one with arguments of its own may not."""
    try:
        return type(pickle.loads(pickle.dumps(error))) is type(error)  # noqa: S301
    except Exception:  # noqa: BLE001 - of classes that anyone may have written
        return False


def _end(workers: Mapping[int, Any]) -> str:
    """How the worker ended that broke the pool: the others were then told to end, which is no news."""
    codes = [process.exitcode for process in workers.values()]
    code = next((code for code in codes if code not in (None, 0, -signal.SIGTERM)), None)
    if code is None:
        return "ended before its work was done, perhaps killed for want of memory: a smaller --jobs needs less"
    if code == -signal.SIGKILL:
        return "was killed, perhaps for want of memory: a smaller --jobs needs less"
    if code < 0:
        return f"crashed ({signal.Signals(-code).name}), which no data should bring about: please report it"
    return f"ended by itself with exit code {code}"
