"""A shop: its items with their prices, and what the database does with them."""

from sqlalchemy import CreateView, MetaData, func, select
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from arc_halo.autogenerate import declare


class Base(DeclarativeBase):
    """Everything in a schema of its own."""

    metadata = MetaData(schema="shop")


class Item(Base):
    """Something to sell; the price is in cents."""

    __tablename__ = "items"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
    price: Mapped[int]
    changes: Mapped[int] = mapped_column(server_default="0")


CreateView(select(Item.id, Item.name, func.shop.gross(Item.price)), "offers", metadata=Base.metadata, schema="shop")
declare(
    Base.metadata,
    "CREATE FUNCTION shop.gross(price integer) RETURNS integer LANGUAGE sql IMMUTABLE RETURN price * 119 / 100",
    """
    CREATE FUNCTION shop.count_change() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        NEW.changes := OLD.changes + 1;
        RETURN NEW;
    END $$
    """,
    "CREATE TRIGGER count_change BEFORE UPDATE ON shop.items FOR EACH ROW EXECUTE FUNCTION shop.count_change()",
)
