## The rule for every revision: the last release's code must run on the new schema. Add in one release, stop using in
## the next, drop in the one after. Revisions never import arc_halo: they must read the same for ever.
"""${message}.

Revision ID: ${up_revision}
Revises: ${comma(down_revision) or "nothing"}
Create Date: ${create_date}
"""

from __future__ import annotations

% if "sa." in f"{upgrades}{downgrades}":
import sqlalchemy as sa
% endif
from alembic import op
% if imports:
${imports}
% endif

revision: str = ${repr(up_revision)}
down_revision: str | tuple[str, ...] | None = ${repr(down_revision)}
branch_labels: str | tuple[str, ...] | None = ${repr(branch_labels)}
depends_on: str | tuple[str, ...] | None = ${repr(depends_on)}


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout TO '5s'")
    ${upgrades if upgrades else ""}


def downgrade() -> None:
    op.execute("SET LOCAL lock_timeout TO '5s'")
    op.execute("SET LOCAL check_function_bodies TO off")  # an old body may name a column that comes back later
    ${downgrades if downgrades else ""}
