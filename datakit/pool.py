"""Pool: calls in worker processes, which tell how they get on and don't outlive their parent.

Workers are fresh interpreters: a fork would copy threads and locks of the parent.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

from datakit import memory
from datakit.errors import DatakitError
from datakit.stage import Tell

T = TypeVar("T")
log = logging.getLogger(__name__)


def pooled(
    make: Callable[..., T], tasks: list[tuple[Any, ...]], jobs: int, *, tell: Tell, note: Callable[[T], None]
) -> None:
    """Calls `make(*task, tell)` for each task in `jobs` processes, and `note` here with what each returns.

    Raises what the first failing task raised, when those under way have ended; the others are not begun.
    Raises DatakitError when a worker was killed.
    """
    context = multiprocessing.get_context("spawn")
    queue = context.SimpleQueue()
    ear = threading.Thread(target=_relay, args=(queue, tell), daemon=True)
    ear.start()
    pool = ProcessPoolExecutor(jobs, mp_context=context, initializer=_begin, initargs=(queue,))
    try:
        running: set[Future[T]] = {pool.submit(_call, make, task) for task in tasks}
        while running:
            finished, running = wait(running, return_when=FIRST_COMPLETED)
            for future in finished:
                if (error := future.exception()) is not None and running:
                    log.error("a shard failed: %s\nThose under way are finished first", error)
                note(future.result())
        pool.shutdown(wait=True)
    except KeyboardInterrupt:
        # A worker may die with the queue's lock in its hand, so nobody waits for the queue any more.
        for process in list((pool._processes or {}).values()):
            process.terminate()
        pool.shutdown(wait=False, cancel_futures=True)
        raise
    except BrokenProcessPool as error:
        pool.shutdown(wait=False, cancel_futures=True)
        raise DatakitError(
            "a worker process was killed, perhaps for want of memory. What was committed is kept: "
            "run again, with a smaller --jobs if memory is short"
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


def _begin(queue: Any) -> None:
    """In a new worker: Ctrl-C is the parent's to handle, and a worker doesn't outlive its parent."""
    global _queue
    _queue = queue
    memory.spare()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None:

        def follow() -> None:
            parent.join()
            os._exit(1)

        threading.Thread(target=follow, daemon=True).start()


def _call(make: Callable[..., T], task: tuple[Any, ...]) -> T:
    return make(*task, lambda *message: _queue.put(message))
