"""${message}"""

import sqlalchemy as sa
from alembic import op
${imports if imports else ""}

revision = ${repr(up_revision)}
down_revision = ${repr(down_revision)}


def upgrade():
    op.execute("SET LOCAL lock_timeout TO '5s'")
    ${upgrades if upgrades else "pass"}


def downgrade():
    op.execute("SET LOCAL lock_timeout TO '5s'")
    op.execute("SET LOCAL check_function_bodies TO off")  # an old body may name a column that comes back later
    ${downgrades if downgrades else "pass"}
