"""Payloads in an object store: a folder, S3, Google Cloud Storage or Azure, one immutable object for each."""

from __future__ import annotations

import datetime as dt
import os
import re
import secrets
import weakref
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import SplitResult, unquote, urlsplit

import obstore
from obstore.exceptions import BaseError
from obstore.store import from_url

from arc_halo.database.database import BLOB_URL_KEY
from arc_halo.errors import BlobStoreError, ConfigurationError, CorruptChunk, MissingChunk
from arc_halo.settings import load_settings
from arc_halo.store.folder import UNFINISHED, Blob, Folder

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from sqlalchemy.orm import Session

    from arc_halo.codecs.abc import BytesLike

MIN_BLOB_NBYTES: Final = 4096
"""A smaller payload stays in its row: a request for it would take longer than reading it there."""

KEY: Final = re.compile(r"([0-9a-f]{2})/\1[0-9a-f]{62}-(?P<owner>[0-9a-f]{16})-[0-9a-f]{16}")
"""The form of our keys; other objects of the store are not ours."""

_THREADS: Final = 16
_SCHEMES: Final = ("file", "s3", "gs", "az")
_FORMS: Final = "file:///folder, s3://bucket/prefix, gs://bucket/prefix or az://container/prefix"
_RETRIES: Final[Any] = {"max_retries": 5, "retry_timeout": dt.timedelta(seconds=30)}
_TIMEOUTS: Final[Any] = {"connect_timeout": "5s", "timeout": "60s"}
_LOCAL_HOSTS: Final = ("localhost", "127.0.0.1", "::1")
_S3_ENDPOINTS: Final = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT")
_NUMBER: Final = re.compile(r"[0-9]+")
_SECRETS: Final = re.compile(r"(?<=//)[^/\s]*(?=@)|(?<=\?)[^\s)]*")

# obstore's threads belong to the process that made the first request; a fork of it would wait for them for ever. A
# folder does without.
_threads_of: dict[str, int] = {}
_stores: weakref.WeakSet[BlobStore] = weakref.WeakSet()


class BlobStore:
    """An object store, a folder or one that is reached through obstore; several threads may use it.

    A folder may be used by forked processes, too; a store in a cloud only by processes that were not forked from one
    that had used it.

    A key is ``<2 hex>/<64 hex>-<16 hex>-<16 hex>``: the digest of the chunk, by which a copy of it is found, the
    database that the object is of (`store.owners`), and a nonce. No key is ever used twice, so a deletion that comes
    late cannot hit a newer object.
    """

    def __init__(self, url: str) -> None:
        parts = _parsed(url)
        self.name = _printable(parts)
        self._folder: Folder | None = None
        try:
            if parts.scheme == "file":
                self._folder = Folder(Path(unquote(parts.path)))
            else:
                self._opened = _open(url, parts.scheme)
        except (BaseError, OSError, ValueError) as error:
            raise ConfigurationError(f"blob store {self.name} cannot be used: {_reason(error)}") from None
        _stores.add(self)

    def __repr__(self) -> str:
        return f"BlobStore({self.name!r})"

    @property
    def is_there(self) -> bool:
        """False of a folder that nothing was put into yet, or that is not mounted; a service is asked nothing."""
        return self._folder is None or self._folder.is_there

    def require(self) -> None:
        """Raise `BlobStoreError` for a folder that is not there."""
        if not self.is_there:
            raise BlobStoreError(f"{self.name} is no folder; is it mounted, or is the URL another one?")

    @cached_property
    def _pool(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(_THREADS, "arc-halo-blobs")

    @property
    def _store(self) -> Any:
        """The one of obstore, about to be used."""
        if _threads_of.setdefault("process", os.getpid()) != os.getpid():
            raise BlobStoreError(
                f"this process was forked from one that had used {self.name}; start workers by spawn or forkserver, or "
                "before the first use"
            )
        return self._opened

    def start_put(self, digest: bytes, payload: BytesLike, owner: str) -> Future[str]:
        """Begin to `put`, in a thread of the store's own."""
        return self._pool.submit(self.put, digest, payload, owner)

    def start_get(self, location: str, nbytes: int) -> Future[bytes]:
        """Begin to `get`, in a thread of the store's own."""
        return self._pool.submit(self.get, location, nbytes)

    def put(self, digest: bytes, payload: BytesLike, owner: str) -> str:
        """Store a payload of the chunk of that digest as a new object of a database; returns its location.

        The service compares a checksum where it has one (S3); a folder is made if it is not there, and flushed to the
        disk.

        Raises
        ------
        BlobStoreError
            The store cannot be reached, or refuses.
        """
        location = f"{digest[:1].hex()}/{digest.hex()}-{owner}-{secrets.token_hex(8)}"
        try:
            if self._folder is not None:
                self._folder.put(location, payload)
            else:
                obstore.put(self._store, location, payload, use_multipart=False)
        except (BaseError, OSError) as error:
            raise self._failed("write", location, error) from None
        return location

    def get(self, location: str, nbytes: int) -> bytes:
        """The first ``nbytes`` of an object: what lies there is never read further than a row says.

        Raises
        ------
        MissingChunk, CorruptChunk
            There is no such object, or it is shorter.
        BlobStoreError
            The store cannot be reached, or refuses; the folder is not there.
        """
        if not KEY.fullmatch(location) or nbytes < 1:
            raise CorruptChunk(f"{nbytes} bytes at {location!r:.100} are no object of ours")
        try:
            if self._folder is not None:
                payload = self._folder.get(location, nbytes)
            else:
                payload = bytes(obstore.get_range(self._store, location, start=0, length=nbytes))
        except FileNotFoundError:
            self.require()
            raise MissingChunk(f"object {location} is not in {self.name}") from None
        except (BaseError, OSError) as error:
            if self._folder is None and self._size(location) < nbytes:
                raise CorruptChunk(f"object {location} in {self.name} is shorter than {nbytes} bytes") from None
            raise self._failed("read", location, error) from None
        if len(payload) != nbytes:
            raise CorruptChunk(f"object {location} in {self.name} is shorter than {nbytes} bytes")
        return payload

    def delete(self, locations: Iterable[str]) -> None:
        """Delete objects of ours, several at once; those that are not there are no error, and others are left alone.

        Raises
        ------
        BlobStoreError
            The store cannot be reached, or refuses; the folder is not there. Some may be deleted.
        """
        for _ in self._pool.map(self._delete, filter(is_ours, locations)):
            pass

    def _delete(self, location: str) -> None:
        try:
            if self._folder is not None:
                self._folder.delete(location)
            else:
                obstore.delete(self._store, location)
        except FileNotFoundError:
            self.require()  # else deleted before a crash, which left the request
        except (BaseError, OSError) as error:
            raise self._failed("delete", location, error) from None

    def blobs(self, digest: bytes | None = None) -> Iterator[Blob]:
        """All objects, or those of one chunk; keys of any form.

        Of a folder also what a killed process left unfinished: a key and a number.

        Raises
        ------
        BlobStoreError
            The store cannot be reached, or refuses; the folder is not there.
        """
        self.require()
        prefix = None if digest is None else f"{digest[:1].hex()}/"
        try:
            for blob in self._listed(prefix):
                if digest is None or (f"/{digest.hex()}-" in blob.location and KEY.fullmatch(blob.location)):
                    yield blob
        except (BaseError, OSError) as error:
            raise self._failed("list", prefix or "all objects", error) from None

    def _listed(self, prefix: str | None) -> Iterator[Blob]:
        if self._folder is not None:
            yield from self._folder.blobs(prefix)
            return
        for page in obstore.list(self._store, prefix):
            for each in page:
                yield Blob(each["path"], each["size"], each["last_modified"])

    def _size(self, location: str) -> int:
        try:
            return int(obstore.head(self._store, location)["size"])
        except (BaseError, OSError) as error:
            raise self._failed("read", location, error) from None

    def _failed(self, verb: str, location: str, error: Exception) -> BlobStoreError:
        return BlobStoreError(
            f"blob store {self.name} did not {verb} {location}: {_reason(error)}; see that it can be reached, has "
            "space and grants the right, then try again"
        )


def is_ours(location: str) -> bool:
    """Whether an object is one that we wrote, or began to."""
    return owner_in(location) is not None


def owner_in(location: str) -> str | None:
    """The database whose object it is, or the beginning of one; None where it is none of ours."""
    key, mark, number = location.partition(UNFINISHED)
    matched = KEY.fullmatch(key)
    if matched is None or (mark and not _NUMBER.fullmatch(number)):
        return None
    return matched["owner"]


def _parsed(url: str) -> SplitResult:
    try:
        parts = urlsplit(url)
    except ValueError:
        raise ConfigurationError(f"a blob store's URL cannot be read; write {_FORMS}") from None
    if parts.scheme not in _SCHEMES:
        raise ConfigurationError(f"a blob store's URL begins with {_FORMS}, not {parts.scheme or 'a path'}")
    if parts.scheme == "file" and (parts.netloc or not parts.path.startswith("/") or "%00" in parts.path):
        raise ConfigurationError("a folder's URL has three slashes and its whole path: file:///srv/blobs")
    if "@" in parts.netloc or parts.query or parts.fragment:
        raise ConfigurationError(
            f"blob store {_printable(parts)}: its URL is a place and no more; credentials and options come from the "
            "service's own environment variables (AWS_..., GOOGLE_..., AZURE_...), and ? and # of a path are written "
            "%3F and %23"
        )
    return parts


def _printable(parts: SplitResult) -> str:
    """A URL without its credentials and query."""
    return f"{parts.scheme}://{parts.hostname or ''}{parts.path}"


def _open(url: str, scheme: str) -> Any:
    options: dict[str, Any] = {"client_options": dict(_TIMEOUTS), "retry_config": _RETRIES}
    if scheme == "s3":
        if _is_plain_http():
            options["client_options"]["allow_http"] = True
        options["checksum_algorithm"] = "SHA256"
    return from_url(url, **options)


def _is_plain_http() -> bool:
    """Whether S3 is somewhere on this machine where no encryption is needed."""
    named = [urlsplit(os.environ.get(name, "")) for name in _S3_ENDPOINTS]
    hosts = {endpoint.hostname for endpoint in named if endpoint.scheme == "http"}
    if hosts - set(_LOCAL_HOSTS) and not os.environ.get("AWS_ALLOW_HTTP"):
        raise ValueError("its endpoint is plain http; use https, or say AWS_ALLOW_HTTP=true where the network is safe")
    return bool(hosts) and hosts <= set(_LOCAL_HOSTS)


def _reason(error: BaseException) -> str:
    """What the library says for people, without what URLs may hide; below it is internal state, which is not shown."""
    return _SECRETS.sub("***", str(error).split("\n", 1)[0])


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


def _forget_threads() -> None:
    """In a forked child: those of the parent's stores are not there."""
    for store in _stores:
        store.__dict__.pop("_pool", None)


if hasattr(os, "register_at_fork"):  # not on Windows, which cannot fork
    os.register_at_fork(after_in_child=_forget_threads)
