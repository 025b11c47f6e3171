"""All stored bytes, or a sample of them, compared with what was written; goes on where it was interrupted."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import func, select, text, update

from arc_halo.codecs.digest import chunk_digest
from arc_halo.errors import CorruptionError
from arc_halo.schema import Model, Verification
from arc_halo.schema.columns import TENANT_ID
from arc_halo.store.connections import WORKERS, Reading
from arc_halo.store.get import Manifest, Wanted, find_manifests
from arc_halo.store.manifest import explain_weights_digest
from arc_halo.store.payloads import fetch
from arc_halo.store.progress import Meter, Progress

if TYPE_CHECKING:
    import uuid
    from collections.abc import Iterator, Sequence

    from sqlalchemy.orm import Session

    from arc_halo.database import Database
    from arc_halo.store.payloads import Payloads

BATCH_NBYTES: Final = 4 << 20
BATCH_ROWS: Final = 200

# A digest is as good as a random number: its first four bytes choose the sample, the same one each time.
_NEXT: Final = text("""
WITH candidates AS (
    SELECT d.digest, d.raw_nbytes, sum(d.raw_nbytes) OVER (ORDER BY d.digest) - d.raw_nbytes AS before
      FROM (SELECT digest, raw_nbytes FROM arc_halo.tensor_data
             WHERE tenant_id = :tenant AND digest > :after
               AND ('x' || encode(substring(digest FROM 1 FOR 4), 'hex'))::bit(32)::bigint < :below
             ORDER BY digest LIMIT :rows) AS d)
SELECT digest, raw_nbytes FROM candidates WHERE before < :nbytes ORDER BY digest
""")
_TOTAL: Final = text("""
SELECT coalesce(sum(raw_nbytes), 0)::bigint FROM arc_halo.tensor_data
 WHERE tenant_id = :tenant AND digest > :after
   AND ('x' || encode(substring(digest FROM 1 FOR 4), 'hex'))::bit(32)::bigint < :below
""")
_GONE: Final = text("""
SELECT DISTINCT c.digest FROM arc_halo.tensor_chunks AS c
 WHERE c.tenant_id = :tenant AND NOT EXISTS (
    SELECT FROM arc_halo.tensor_data AS d WHERE d.tenant_id = c.tenant_id AND d.digest = c.digest) ORDER BY c.digest
""")
_TENSORS: Final = text("""
SELECT t.id, t.nbytes, coalesce(
    (SELECT m.name || '@' || m.version || ' ' || w.name FROM arc_halo.model_weights AS w
       JOIN arc_halo.models AS m ON m.id = w.model_id WHERE w.tensor_id = t.id ORDER BY m.id LIMIT 1),
    (SELECT 'checkpoint ' || c.checkpoint_id || ' ' || c.component || ' ' || c.name
       FROM arc_halo.checkpoint_tensors AS c WHERE c.tensor_id = t.id ORDER BY c.checkpoint_id LIMIT 1),
    (SELECT 'checkpoint ' || o.checkpoint_id || ' optimizer ' || o.parameter_name || ' ' || o.state_name
       FROM arc_halo.optimizer_state AS o WHERE o.tensor_id = t.id ORDER BY o.checkpoint_id LIMIT 1),
    encode(t.digest, 'hex'))
  FROM arc_halo.tensor_metadata AS t WHERE t.tenant_id = :tenant AND t.id > :after ORDER BY t.id LIMIT :rows
""")


@dataclass(frozen=True, slots=True)
class Verified:
    """What a check of the database found; ``faults`` say what and where."""

    verification_id: uuid.UUID
    chunk_count: int
    nbytes: int
    tensor_count: int
    model_count: int
    faults: list[dict[str, Any]]


def verify_database(
    database: Database, *, percent: float = 100.0, resume: bool = True, progress: Progress | None = None
) -> Verified:
    """Read stored chunks and compare checksums and digests, then the seals of all tensors and the roots of all models.

    Chunks are read once each, however many tensors share them, in batches; how far it came is a row of
    ``verifications``.

    Parameters
    ----------
    percent
        Share of the chunks that is read: always the same ones. Seals and roots, which need no payloads, are all
        compared.
    resume
        Go on with the newest check of that share that was not finished; what it found is in the result.

    Raises
    ------
    ValueError
        ``percent`` is not above 0 and at most 100.
    """
    if not 0 < percent <= 100:  # noqa: PLR2004  a percentage
        raise ValueError(f"percent must be above 0 and at most 100, not {percent}")
    run = _begin(database, percent, resume=resume)
    _check_chunks(database, run, progress)
    with database.session() as session:
        tensor_count, faults = _check_manifests(session)
        model_count, more = _check_roots(session)
        gone = find_gone(session)
    faults = [*run.faults, *gone, *faults, *more]
    with database.session() as session:
        session.execute(update(Verification).where(Verification.id == run.id).values(finished_at=func.now()))
        session.commit()
    return Verified(run.id, run.checked_count, run.checked_nbytes, tensor_count, model_count, faults)


def _begin(database: Database, percent: float, *, resume: bool) -> Verification:
    with database.session() as session:
        unfinished = select(Verification).where(Verification.finished_at.is_(None), Verification.percent == percent)
        newest = unfinished.order_by(Verification.started_at.desc()).limit(1)
        run = session.scalars(newest).one_or_none() if resume else None
        if run is None:
            run = Verification(tenant_id=TENANT_ID, percent=percent, faults=[])
            session.add(run)
        session.commit()
        return run


def _check_chunks(database: Database, run: Verification, progress: Progress | None) -> None:
    place = {"tenant": TENANT_ID, "below": round(run.percent / 100 * (1 << 32)), "rows": BATCH_ROWS}
    place |= {"nbytes": BATCH_NBYTES}
    with database.session() as session:
        left = session.scalar(_TOTAL, place | {"after": run.last_digest or b""}) or 0
    meter = Meter(progress, "verify", run.checked_nbytes + left, run.checked_nbytes)
    while True:
        with database.session() as session:
            rows = session.execute(_NEXT, place | {"after": run.last_digest or b""}).all()
            if not rows:
                return
            run.faults = [*run.faults, *check_chunks(session, [digest for digest, _ in rows])]
            run.last_digest = rows[-1][0]
            run.checked_count += len(rows)
            run.checked_nbytes += sum(nbytes for _, nbytes in rows)
            session.merge(run)
            session.commit()
        meter.add(sum(nbytes for _, nbytes in rows))


def find_gone(session: Session) -> list[dict[str, Any]]:
    """Chunks that tensors refer to and that are not there: somebody has switched foreign keys off."""
    digests = session.scalars(_GONE, {"tenant": TENANT_ID})
    return [
        _chunk_fault(digest, f"chunk {digest.hex()}: not in tensor_data; restore it from a copy") for digest in digests
    ]


def check_chunks(session: Session, digests: Sequence[bytes]) -> list[dict[str, Any]]:
    """Read a few mebibytes of chunks; returns what is not as it was written."""
    connect = Reading(session)
    with connect() as connection:
        blobs = connect.blobs
        payloads = fetch(connection, TENANT_ID, digests, None if blobs is None else blobs.start_get)
    with ThreadPoolExecutor(WORKERS, "arc-halo-verify") as pool:
        messages = list(pool.map(lambda digest: _fault(payloads, digest), digests))
    return [_chunk_fault(digest, each) for digest, each in zip(digests, messages, strict=True) if each is not None]


def _chunk_fault(digest: bytes, message: str) -> dict[str, Any]:
    return {"kind": "chunk", "digest": digest.hex(), "message": message}


def _fault(payloads: Payloads, digest: bytes) -> str | None:
    where = f"chunk {digest.hex()}"
    try:
        raw = payloads.decode(digest, where)
    except CorruptionError as error:
        return str(error)
    if chunk_digest(raw) != digest:
        return f"{where} decodes to other bytes than its digest names; restore it from a copy"
    return None


def _check_manifests(session: Session) -> tuple[int, list[dict[str, Any]]]:
    """Seals bind each tensor's row and the order of its chunks to their digests, which were compared before."""
    count, faults = 0, []
    after = "00000000-0000-0000-0000-000000000000"
    connect = Reading(session)
    while rows := session.execute(_TENSORS, {"tenant": TENANT_ID, "after": after, "rows": BATCH_ROWS}).all():
        wanted = [Wanted(name, tensor_id, nbytes) for tensor_id, nbytes, name in rows]
        for each, found in zip(wanted, find_manifests(connect, wanted), strict=True):
            if not isinstance(found, Manifest):
                faults.append({"kind": "tensor", "tensor": each.name, "message": str(found)})
        count += len(rows)
        after = str(rows[-1][0])
    return count, faults


def _check_roots(session: Session) -> tuple[int, list[dict[str, Any]]]:
    models: Iterator[Any] = iter(session.execute(select(Model.id, Model.name, Model.version).order_by(Model.id)).all())
    count, faults = 0, []
    for model_id, name, version in models:
        count += 1
        if (wrong := explain_weights_digest(session, model_id)) is not None:
            faults.append({"kind": "model", "model": f"{name}@{version}", "message": wrong})
    return count, faults
