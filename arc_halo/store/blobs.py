"""Payloads in an object store: a folder, S3, Google Cloud Storage or Azure, one immutable object for each."""

from __future__ import annotations

import os
import re
import secrets
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import timedelta
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple
from urllib.parse import unquote, urlsplit

import obstore
from obstore.exceptions import BaseError
from obstore.store import from_url

from arc_halo.database.database import BLOB_URL_KEY
from arc_halo.errors import BlobStoreError, ConfigurationError, CorruptChunk, MissingChunk
from arc_halo.settings import load_settings

if TYPE_CHECKING:
    import datetime as dt
    from collections.abc import Iterable, Iterator

    from sqlalchemy.orm import Session

    from arc_halo.codecs.abc import BytesLike

MIN_BLOB_NBYTES: Final = 4096
"""A smaller payload stays in its row: a request for it would take longer than reading it there."""

KEY: Final = re.compile(r"([0-9a-f]{2})/\1[0-9a-f]{62}-[0-9a-f]{16}")
"""The form of our keys; other objects of the store are not ours."""

_THREADS: Final = 16
_SCHEMES: Final = ("file", "s3", "gs", "az")
_RETRIES: Final[Any] = {"max_retries": 5, "retry_timeout": timedelta(seconds=30)}
_TIMEOUTS: Final[Any] = {"connect_timeout": "5s", "timeout": "60s"}
_LOCAL_HOSTS: Final = ("localhost", "127.0.0.1", "::1")


class Blob(NamedTuple):
    """An object in the store."""

    location: str
    nbytes: int
    modified_at: dt.datetime


class BlobStore:
    """An object store, reached through obstore; several threads may use it.

    A key is ``<2 hex>/<64 hex>-<16 hex>``: the digest of the chunk, by which a copy of it is found, and a nonce. No key
    is ever used twice, so a deletion that comes late cannot hit a newer object.
    """

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        if parts.scheme not in _SCHEMES:
            raise ConfigurationError(
                f"a blob store's URL begins with one of {', '.join(f'{each}://' for each in _SCHEMES)}, "
                f"not {parts.scheme or 'a path'}"
            )
        self.name = f"{parts.scheme}://{parts.hostname or ''}{parts.path}"  # neither credentials nor query
        self._folder = Path(unquote(parts.path)) if parts.scheme == "file" else None
        try:
            self._store = _open(url, parts.scheme)
        except (BaseError, OSError, ValueError) as error:
            raise ConfigurationError(f"blob store {self.name} cannot be used: {_first_line(error)}") from None

    def __repr__(self) -> str:
        return f"BlobStore({self.name!r})"

    @cached_property
    def _pool(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(_THREADS, "arc-halo-blobs")

    def start_put(self, digest: bytes, payload: BytesLike) -> Future[str]:
        """Begin to `put`, in a thread of the store's own."""
        return self._pool.submit(self.put, digest, payload)

    def start_get(self, location: str, nbytes: int) -> Future[bytes]:
        """Begin to `get`, in a thread of the store's own."""
        return self._pool.submit(self.get, location, nbytes)

    def put(self, digest: bytes, payload: BytesLike) -> str:
        """Store a payload of the chunk of that digest as a new object; returns its location.

        The service compares a checksum where it has one (S3); a folder is flushed to the disk.

        Raises
        ------
        BlobStoreError
            The store cannot be reached, or refuses.
        """
        location = f"{digest[:1].hex()}/{digest.hex()}-{secrets.token_hex(8)}"
        try:
            obstore.put(self._store, location, payload, use_multipart=False)
            if self._folder is not None:
                _flush(self._folder / location)
        except (BaseError, OSError) as error:
            raise self._failed("write", location, error) from error
        return location

    def get(self, location: str, nbytes: int) -> bytes:
        """The first ``nbytes`` of an object: what lies there is never read further than a row says.

        Raises
        ------
        MissingChunk, CorruptChunk
            There is no such object, or it is shorter.
        BlobStoreError
            The store cannot be reached, or refuses.
        """
        if not KEY.fullmatch(location):
            raise CorruptChunk(f"{location!r:.100} is no location of an object")
        try:
            payload = bytes(obstore.get_range(self._store, location, start=0, length=nbytes))
        except FileNotFoundError as error:
            raise MissingChunk(f"object {location} is not in {self.name}") from error
        except (BaseError, OSError) as error:
            if self._size(location) < nbytes:
                raise CorruptChunk(f"object {location} in {self.name} is shorter than {nbytes} bytes") from error
            raise self._failed("read", location, error) from error
        if len(payload) != nbytes:
            raise CorruptChunk(f"object {location} in {self.name} is shorter than {nbytes} bytes")
        return payload

    def delete(self, locations: Iterable[str]) -> None:
        """Delete objects; those that are not there are no error."""
        for location in locations:
            try:
                obstore.delete(self._store, location)
            except FileNotFoundError:
                continue  # deleted before a crash, which left the request
            except (BaseError, OSError) as error:
                raise self._failed("delete", location, error) from error

    def blobs(self, digest: bytes | None = None) -> Iterator[Blob]:
        """All objects, or those of one chunk; keys of any form."""
        prefix = None if digest is None else f"{digest[:1].hex()}/"
        try:
            for page in obstore.list(self._store, prefix):
                for each in page:
                    if digest is None or f"/{digest.hex()}-" in each["path"]:
                        yield Blob(each["path"], each["size"], each["last_modified"])
        except (BaseError, OSError) as error:
            raise self._failed("list", prefix or "all objects", error) from error

    def _size(self, location: str) -> int:
        try:
            return int(obstore.head(self._store, location)["size"])
        except (BaseError, OSError) as error:
            raise self._failed("read", location, error) from error

    def _failed(self, verb: str, location: str, error: Exception) -> BlobStoreError:
        return BlobStoreError(f"blob store {self.name} did not {verb} {location}: {_first_line(error)}")


def _open(url: str, scheme: str) -> Any:
    if scheme == "file":
        return from_url(url, mkdir=True)
    options: dict[str, Any] = {"client_options": dict(_TIMEOUTS), "retry_config": _RETRIES}
    if scheme == "s3":
        endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL", "")
        if endpoint.startswith("http://") and urlsplit(endpoint).hostname in _LOCAL_HOSTS:
            options["client_options"]["allow_http"] = True
        options["checksum_algorithm"] = "SHA256"
    return from_url(url, **options)


def _flush(path: Path) -> None:
    """Make a new file and its name survive a power cut."""
    for each in (path, path.parent):
        descriptor = os.open(each, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _first_line(error: BaseException) -> str:
    """What the library says for people; what follows is its internal state, which may hold more than is fit to show."""
    return str(error).split("\n", 1)[0]


def blob_store(session: Session) -> BlobStore | None:
    """The store of a session: that of its `Database`, else the configured one; None if there is none.

    Raises
    ------
    ConfigurationError
        The URL cannot be used.
    """
    if BLOB_URL_KEY in session.info:
        url = session.info[BLOB_URL_KEY]
    else:
        secret = load_settings().blob_url
        url = None if secret is None else secret.get_secret_value()
    return None if url is None else open_store(url)


def open_store(url: str) -> BlobStore:
    """The store of a URL, one for each process and URL: connections and threads do not survive a fork."""
    return _opened(url, os.getpid())


@cache
def _opened(url: str, process: int) -> BlobStore:  # noqa: ARG001, a key of the cache
    return BlobStore(url)
