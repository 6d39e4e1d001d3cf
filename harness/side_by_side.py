"""Several backends' trainings at once: which of them run, on which cores, and how all of them end."""

import signal
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, TypeVar

from harness.environment import cores
from harness.files import error_text
from harness.results import BackendResult
from harness.supervise import Listener

if TYPE_CHECKING:
    from harness.runs import Options

T = TypeVar("T")
Meanwhile = Callable[[], None]
"""What whoever asked for the trainings has to do anyway, and can be done beside them."""


@dataclass(frozen=True)
class Job:
    """One backend's training."""

    backend: str
    work: Callable[[Sequence[int], Listener], BackendResult]
    """Given the cores that are its own, and a listener that only one thread calls at a time."""
    done: Callable[[BackendResult], Iterable["Job"]]
    """What follows from its result. It is called by the thread that asked for the job."""


def side_by_side(
    jobs: Iterable[Job], options: "Options", listen: Listener, pool: ThreadPoolExecutor,
    meanwhile: Meanwhile | None = None,
) -> Future[None] | None:  # fmt: skip
    """Do the jobs and those that follow from them, as many at once as there are cores for; on a GPU one after the other.

    `meanwhile` begins when a core has nothing to do, with the last job at the latest; it is returned, as it may have failed:
    that is no reason to lose what was trained. Ctrl-C, a termination or an error of one ends the workers of all, and the
    pool, which has a thread for each backend and one for `meanwhile`.
    """
    idle = cores(options.threads * len(options.backends)) if options.device == "cpu" else []
    count = max(1, len(idle) // options.threads)
    places: SimpleQueue[Sequence[int]] = SimpleQueue()
    for i in range(count):
        places.put(idle[i * options.threads : (i + 1) * options.threads])
    talking, stopped = threading.Lock(), threading.Event()

    def tell(backend: str, event: Mapping[str, Any]) -> None:
        if stopped.is_set():
            raise Stopped
        with talking:
            listen(backend, event)

    def one(job: Job) -> BackendResult:
        place = places.get()
        try:
            return job.work(place, tell)
        except OSError as error:  # a full disk, a folder that is gone: it costs this one, and no other
            return BackendResult(job.backend, "failed", error=f"its files cannot be kept: {error_text(error)}")
        finally:
            places.put(place)

    beside: Future[None] | None = None
    with ending_as_interrupted():
        try:
            asked = {pool.submit(one, job): job for job in jobs}
            while asked:
                if (
                    meanwhile is not None and beside is None and len(asked) < max(count, 2)
                ):  # of one place there is none to spare
                    beside = pool.submit(meanwhile)
                for future in first_ended(asked):
                    for job in asked.pop(future).done(future.result()):
                        asked[pool.submit(one, job)] = job
        except BaseException:
            stopped.set()
            pool.shutdown(wait=True, cancel_futures=True)
            raise
    return beside


def first_ended(asked: Collection[Future[T]]) -> set[Future[T]]:
    """Those that have ended, once one has. Ctrl-C and a termination are heard while it waits.

    A signal that comes just before the main thread falls asleep, or is given to another thread, does not wake it: Python
    runs a handler when the main thread next runs, so it must not sleep until the work is done.
    """
    while True:
        ended, _ = wait(asked, timeout=0.2, return_when=FIRST_COMPLETED)
        if ended:
            return ended


class Stopped(Exception):  # noqa: N818 - nothing went wrong here
    """Another worker's failure, or Ctrl-C, ends this one."""


@contextmanager
def ending_as_interrupted() -> Iterator[None]:
    """A termination ends like Ctrl-C, so that workers are stopped on the way out."""

    def stop(_signal: int, _frame: object) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield  # signals are the main thread's business
        return
    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
