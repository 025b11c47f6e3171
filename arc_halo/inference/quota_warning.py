"""What a quota has no room for is told once: nothing fails, and the cache would only seem not to work."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError

from arc_halo.errors import ArcHaloError

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

    from arc_halo.database import Database
    from arc_halo.inference.namespaces import Namespace

_log = logging.getLogger(__name__)

_NAMES: Final = ("tenant_id", "kind", "weights_digest", "is_registered", "model_id")
# For a model that was retired nothing is stored, whatever the quota. Its namespace may have no row.
_QUOTA: Final = text("""
SELECT q.max_nbytes FROM arc_halo.cache_quotas AS q
 WHERE q.tenant_id = :tenant_id AND q.kind = :kind
   AND arc_halo.is_servable(q.tenant_id, :weights_digest, :is_registered)
   AND (CAST(:model_id AS uuid) IS NULL
        OR EXISTS (SELECT FROM arc_halo.models AS m WHERE m.id = :model_id AND m.status <> 'archived'))
""")


class QuotaWarning:
    """The one warning of a cache; threads that come at the same moment may each give it."""

    def __init__(self, db: Database, namespace: Namespace) -> None:
        self._db, self._namespace = db, namespace
        self._is_told = False

    def tell(self) -> None:
        """Say that something was not stored, if there is a quota and the model was not retired."""
        if self._is_told:
            return
        try:
            quota = self._db.read(self._quota, attempts=1)
        except (ArcHaloError, SQLAlchemyError) as error:
            _log.warning("something was not stored, and why could not be asked: %s", error)
            return
        if quota is not None:
            self._is_told = True
            _log.warning(
                "something was not stored: tenant %d has a quota of %s bytes for the cache %r, and what is pinned or "
                "larger than it leaves no room; `arc-halo cache quota` or "
                "`arc_halo.inference.kv.keeping.set_quota(session, %r, max_nbytes)` raises it; this is said once",
                self._namespace.tenant_id,
                f"{quota:,}",
                self._namespace.kind,
                self._namespace.kind,
            )

    def _quota(self, session: Session) -> int | None:
        values = {name: getattr(self._namespace, name) for name in _NAMES}
        found: int | None = session.scalar(_QUOTA, values)
        return found
