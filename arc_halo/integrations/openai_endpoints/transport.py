"""A request and what comes back, in bounded time and memory, whatever the server does."""

from __future__ import annotations

import random
import socket
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import cache
from typing import TYPE_CHECKING, Any, Final

import httpx

from arc_halo.errors import MemberError, MemberTimeout

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Mapping
    from types import TracebackType
    from typing import Self

MAX_NBYTES: Final = 32_000_000
"""Of an answer; 20 alternatives of 16,000 tokens are fewer."""
_MAX_ERROR_NBYTES: Final = 65_536
_CONNECT_SECONDS: Final = 10.0
_RETRIED: Final = frozenset({429, 500, 502, 503, 504})
_BACKOFF_SECONDS: Final = 0.5
_MAX_BACKOFF_SECONDS: Final = 8.0
_SUCCESS: Final = range(200, 300)
_SLICE_SECONDS: Final = 0.25  # how soon a wait sees that nobody wants the answer any more


@dataclass(frozen=True, slots=True)
class Received:
    """What a server sent.

    Attributes
    ----------
    status
        Of HTTP.
    body
        All of it; of an error its beginning.
    wait_seconds
        By ``Retry-After``; None without one that can be read.
    """

    status: int
    body: bytes
    wait_seconds: float | None


@dataclass(frozen=True, slots=True)
class Post:
    """What is sent.

    Attributes
    ----------
    headers
        With the key in them; not in the repr.
    """

    url: str
    headers: Mapping[str, str]
    body: bytes

    def __repr__(self) -> str:
        return f"Post({self.url!r}, {len(self.body)} bytes)"


def send(
    post: Post,
    *,
    deadline: float,
    attempts: int,
    explain: Callable[[bytes], str],
    is_wanted: Callable[[], bool] = lambda: True,
) -> bytes:
    """Post until there is an answer; again, after a while, where that makes sense.

    Parameters
    ----------
    deadline
        By `time.monotonic`, for all attempts and the waits between.
    explain
        The gist of an error's body.

    Raises
    ------
    MemberError
        The server refuses, is out of order, or sends too much.
    MemberTimeout
        The deadline came first.
    """
    for attempt in range(1, attempts + 1):
        wait: float | None = None
        try:
            received = send_once(post, deadline=deadline)
        except (httpx.ReadTimeout, httpx.WriteTimeout) as error:
            raise MemberTimeout("it did not answer in time") from error
        except httpx.HTTPError as error:
            if time.monotonic() >= deadline:
                raise MemberTimeout("it did not answer in time") from error
            problem = f"{type(error).__name__}: {error}"
        else:
            if received.status in _SUCCESS:
                return received.body
            problem, wait = f"HTTP {received.status}: {explain(received.body)}", received.wait_seconds
            if received.status not in _RETRIED:
                raise MemberError(problem)
        if attempt < attempts:
            longest = min(_MAX_BACKOFF_SECONDS, _BACKOFF_SECONDS * 2 ** (attempt - 1))
            # From a half on: with none at all a server that is just coming back would be asked at once.
            wait = random.uniform(longest / 2, longest) if wait is None else wait  # noqa: S311  # jitter, no secret
            if time.monotonic() + wait >= deadline:
                raise MemberError(f"{problem} (no time is left to wait {wait:.3g} seconds and ask again)")
            _sleep(wait, is_wanted)
    raise MemberError(f"{problem} (asked {attempts} times)")


def _sleep(seconds: float, is_wanted: Callable[[], bool]) -> None:
    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0:
        if not is_wanted():
            raise MemberTimeout("nobody waits for the answer any more")
        time.sleep(min(left, _SLICE_SECONDS))


def send_once(post: Post, *, deadline: float) -> Received:
    """One attempt, with a connection of its own.

    A handshake for each question is little beside the time that a model takes, and leaves nothing open between
    questions, for threads and forks to share.

    Raises
    ------
    httpx.HTTPError
        Nothing came, or something that is not HTTP.
    MemberError
        The answer is too long, or compressed, which was not asked for; or there is a proxy that cannot be used.
    MemberTimeout
        The deadline came first.
    """
    left = deadline - time.monotonic()
    if left <= 0:
        raise MemberTimeout("it did not answer in time")
    verify = _tls() if post.url.startswith("https:") else False
    timeout = httpx.Timeout(left, connect=min(left, _CONNECT_SECONDS))
    limits = httpx.Limits(max_keepalive_connections=0)
    with (
        _Watchdog(left) as watchdog,
        _client(verify=verify, timeout=timeout, limits=limits, follow_redirects=False) as client,
        client.stream(
            "POST", post.url, headers=post.headers, content=post.body, extensions={"trace": watchdog.see}
        ) as response,
    ):
        return Received(response.status_code, _read(response, deadline), _retry_after(response))


def _client(**options: Any) -> httpx.Client:
    try:
        return httpx.Client(**options)
    except (ImportError, ValueError, httpx.InvalidURL) as error:  # its password is not told
        raise MemberError(
            f"the proxy of the environment cannot be used: {error} Correct HTTPS_PROXY, HTTP_PROXY or ALL_PROXY, or "
            "name the server in NO_PROXY"
        ) from error


def _read(response: httpx.Response, deadline: float) -> bytes:
    """Bytes as they come: uncompressed ones can be counted before they are in memory."""
    is_success = response.status_code in _SUCCESS
    if is_success and response.headers.get("content-encoding", "identity").lower() != "identity":
        raise MemberError("it sent a compressed answer, which was not asked for")
    received = bytearray()
    for chunk in response.iter_raw():
        received += chunk
        if not is_success and len(received) >= _MAX_ERROR_NBYTES:
            break
        if len(received) > MAX_NBYTES:
            raise MemberError(f"its answer has more than {MAX_NBYTES} bytes")
        if time.monotonic() >= deadline:
            break
    if time.monotonic() >= deadline:  # what was cut may look like an end
        raise MemberTimeout(f"it was still sending, after {len(received)} bytes")
    return bytes(received)


def _retry_after(response: httpx.Response) -> float | None:
    said = response.headers.get("retry-after", "").strip()
    if said.isascii() and said.isdecimal():
        return float(said[:9])
    try:
        moment = parsedate_to_datetime(said)
    except (ValueError, OverflowError):  # of a time zone of twenty digits
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return max(0.0, (moment - datetime.now(UTC)).total_seconds())


@cache
def _tls() -> ssl.SSLContext:
    return httpx.create_ssl_context()  # reads all authorities: 20 ms


class _Watchdog:
    """Cuts a connection at its deadline.

    Timeouts are of single reads: a server that sends a byte of a header now and then is never late by them.
    """

    def __init__(self, seconds: float) -> None:
        self._sockets: list[socket.socket] = []
        self._lock = threading.Lock()
        self._is_over = False
        self._timer = threading.Timer(seconds, self._cut)
        self._timer.daemon = True

    def see(self, event: str, info: Mapping[str, Any]) -> None:
        """Take note of a connection that was made, with TLS or without."""
        if event.endswith(("connect_tcp.complete", "start_tls.complete")):
            with self._lock:
                self._sockets.append(info["return_value"].get_extra_info("socket"))
                is_late = self._is_over
            if is_late:
                self._cut()

    def _cut(self) -> None:
        with self._lock:
            self._is_over = True
            for each in self._sockets:
                with suppress(OSError):  # closed, or given over to TLS
                    # Of the plain class: that of TLS would take away what another thread is reading with.
                    socket.socket.shutdown(each, socket.SHUT_RDWR)

    def __enter__(self) -> Self:
        self._timer.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._timer.cancel()
