"""A thread for work that no exception may interrupt, and that an interruption cannot lock up.

A signal raises in the main thread, between any two lines. If that is inside a lock written in
Python, such as that of a `Future`, a `Condition` or an `Event`, the lock stays taken, and whoever
waits for it waits for ever. So nothing here is waited for but `SimpleQueue`, which is one step.
"""

import _thread
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any

Reply = SimpleQueue[BaseException | None]
Job = tuple[Callable[[], Any], Reply]


class OwnThread:
    """Runs one job after the other in a thread of its own, as a context."""

    def __init__(self) -> None:
        self._jobs: SimpleQueue[Job | None] = SimpleQueue()
        _thread.start_new_thread(self._work, ())

    def __enter__(self) -> "OwnThread":
        return self

    def __exit__(self, *exception: object) -> None:
        self._jobs.put(None)

    def do(self, job: Callable[[], Any]) -> None:
        """Run `job` behind those that are not done yet, and raise what it raises.

        If the wait is interrupted the job runs all the same.
        """
        reply: Reply = SimpleQueue()
        self._jobs.put((job, reply))
        if (error := reply.get()) is not None:
            raise error

    def _work(self) -> None:
        while (asked := self._jobs.get()) is not None:
            job, reply = asked
            try:
                job()
            except BaseException as error:
                reply.put(error)
            else:
                reply.put(None)
