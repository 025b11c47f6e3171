"""Alembic's environment: all that the plugin wants of it is ``scope``."""

import os

from alembic import context
from models import Base
from sqlalchemy import create_engine
from sqlalchemy.schema import CreateSchema

from arc_halo.autogenerate.scope import scope

target_metadata = Base.metadata
with create_engine(os.environ["DATABASE_URL"]).connect() as connection:
    connection.execute(CreateSchema("shop", if_not_exists=True))  # the version table is in it
    connection.commit()
    context.configure(connection=connection, **scope(target_metadata, connection))
    with context.begin_transaction():
        context.run_migrations()
