"""How rows look in a notebook: no query for each row, nothing unescaped, nothing raised."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING, Any

from rich.filesize import decimal
from sqlalchemy import inspect, select
from sqlalchemy.exc import SQLAlchemyError

from arc_halo.errors import DatabaseError

if TYPE_CHECKING:
    import uuid
    from collections.abc import Iterable, Iterator, Sequence

    from sqlalchemy.orm import Session

    from arc_halo.schema.outline import Branch

_LEVEL = "\u2003"  # browsers keep an em space where they fold blanks
_STATISTICS = ("min_value", "max_value", "mean", "std", "l2_norm", "zero_fraction", "nan_count", "inf_count")


class ModelHtml:
    """A model's name, and as long as it belongs to a session its sizes and layers, by two queries."""

    def _repr_html_(self) -> str:
        state = inspect(self)
        assert state is not None  # it is mapped
        title = html_title("Model", loaded(self, "name"), "@", loaded(self, "version"))
        known = [str(each) for name in ("model_type", "status") if (each := loaded(self, name)) is not None]
        head = title + escape(", ".join(["", *known]))
        if state.session is None or not state.persistent:
            return head
        try:
            with state.session.no_autoflush:
                return head + _sizes_and_layers(state.session, state.identity[0])
        except (SQLAlchemyError, DatabaseError):
            return head  # the session waits for a rollback or its connection is lost; a repr is no place to say so


class TensorHtml:
    """A tensor's type, shape and statistics, as far as they are loaded; no query."""

    def _repr_html_(self) -> str:
        shape = loaded(self, "shape")
        title = html_title("Tensor", loaded(self, "dtype"), " ", None if shape is None else tuple(shape))
        nbytes = loaded(self, "nbytes")
        head = title + ("" if nbytes is None else escape(f", {decimal(nbytes)}"))
        values = [(name, loaded(self, name)) for name in _STATISTICS]
        rows = [(name.removesuffix("_value").replace("_", " "), value) for name, value in values if value is not None]
        return head + (html_table(["statistic", "value"], rows) if rows else "")


def loaded(row: object, attribute: str) -> Any:
    """A mapped attribute's value, or None where reading it would send a query."""
    state = inspect(row)
    assert state is not None  # it is mapped
    return state.dict.get(attribute)


def html_title(kind: str, *parts: object) -> str:
    """``kind`` and a name in bold."""
    return f"<b>{escape(kind)} {escape(''.join('' if part is None else str(part) for part in parts))}</b>"


def html_table(headers: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table; numbers are aligned to the right."""
    head = "".join(f'<th style="text-align:left">{escape(header)}</th>' for header in headers)
    body = "".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _cell(value: object) -> str:
    align = "right" if isinstance(value, (int, float)) else "left"
    text = f"{value:,}" if isinstance(value, int) else f"{value:.4g}" if isinstance(value, float) else str(value or "")
    return f'<td style="text-align:{align}">{escape(text)}</td>'


def _sizes_and_layers(session: Session, model_id: uuid.UUID) -> str:
    from arc_halo.schema.core import Model  # noqa: PLC0415  # core's classes are made of these
    from arc_halo.schema.outline import outline  # noqa: PLC0415  # as above

    columns = (Model.parameter_count, Model.trainable_parameter_count, Model.nbytes, Model.stored_nbytes)
    total, trainable, nbytes, stored = session.execute(select(*columns).where(Model.id == model_id)).one()
    sizes = f"{total:,} parameters ({trainable:,} trainable), {decimal(nbytes)}, stored as {decimal(stored)}"
    headers = ["layer", "type", "in", "out", "heads", "parameters", "size"]
    return f"<br>{escape(sizes)}" + html_table(headers, _layer_rows(outline(session, model_id), 0))


def _layer_rows(branches: Iterable[Branch], depth: int) -> Iterator[tuple[object, ...]]:
    for branch in branches:
        yield (
            _LEVEL * depth + branch.label,
            branch.layer_type,
            branch.input_dim,
            branch.output_dim,
            branch.head_count or None,
            branch.parameter_count,
            decimal(branch.nbytes),
        )
        yield from _layer_rows(branch.children, depth + 1)
