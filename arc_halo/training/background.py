"""Work that goes on beside training: one piece at a time, and an error is raised where somebody asks next."""

from __future__ import annotations

import threading
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from arc_halo.errors import DatabaseUnavailable

if TYPE_CHECKING:
    from collections.abc import Callable

Result = TypeVar("Result")


class BackgroundSaver(Generic[Result]):
    """Runs functions in a thread, one after another; whoever starts one waits for the one before."""

    def __init__(self) -> None:
        self._future: Future[Result] | None = None
        self._what = ""

    def start(self, work: Callable[[], Result], what: str) -> Future[Result]:
        """Begin; `wait` has said that nothing is under way. ``what`` tells it from others if it fails."""
        future: Future[Result] = Future()
        future.set_running_or_notify_cancel()  # nobody cancels half a checkpoint
        self._future, self._what = future, what
        threading.Thread(target=_run, args=(future, work), name="arc-halo-save", daemon=True).start()
        return future

    def wait(self, timeout: float | None = None) -> None:
        """Wait for what is under way.

        Raises
        ------
        BaseException
            What it failed of; once.
        DatabaseUnavailable
            It is not done within ``timeout`` seconds.
        """
        if self._future is None:
            return
        try:
            self._future.exception(timeout)
        except TimeoutError:
            raise DatabaseUnavailable(
                f"the checkpoint that is being saved in the background is not stored after {timeout:g} s; wait longer"
            ) from None
        future, self._future = self._future, None
        if (error := future.exception()) is not None:
            error.add_note(f"{self._what} failed of this")
            raise error


def _run(future: Future[Any], work: Callable[[], Any]) -> None:
    try:
        result = work()
    except BaseException as error:  # noqa: BLE001  raised where the result is asked for
        future.set_exception(error)
    else:
        future.set_result(result)
