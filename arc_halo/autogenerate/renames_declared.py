"""Which renames are to come: of those declared the ones that are not done yet, and what follows from them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from sqlalchemy import text

from arc_halo.autogenerate.build import create_all
from arc_halo.autogenerate.catalog import columns, read
from arc_halo.autogenerate.objects import former_name, former_names, tables_and_views
from arc_halo.autogenerate.renames import PARTS, VIEWS, Rename, take_back, taken_by_others
from arc_halo.autogenerate.savepoints import put_aside, rolled_back
from arc_halo.autogenerate.schemas import Relation, declared_schemas, quoted
from arc_halo.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping

    from sqlalchemy import Connection, MetaData

    from arc_halo.autogenerate.catalog import Address, Found
    from arc_halo.autogenerate.objects import Key
    from arc_halo.autogenerate.renames import Place
    from arc_halo.autogenerate.schemas import Schemas

_NAMELESS = {"rls", "storage", "compression"}
_COLUMNS_OF_VIEWS = """
SELECT n.nspname, c.relname, a.attnum, a.attname
  FROM pg_catalog.pg_class AS c
  JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
  JOIN pg_catalog.pg_attribute AS a ON a.attrelid = c.oid
 WHERE n.nspname = ANY (:schemas) AND c.relkind IN ('v', 'm') AND a.attnum > 0 AND NOT a.attisdropped"""
_SEQUENCES = """
SELECT n.nspname, t.relname, a.attname, s.relname
  FROM pg_catalog.pg_class AS s
  JOIN pg_catalog.pg_depend AS d ON d.classid = s.tableoid AND d.objid = s.oid AND d.deptype IN ('a', 'i')
   AND d.refclassid = s.tableoid
  JOIN pg_catalog.pg_class AS t ON t.oid = d.refobjid
  JOIN pg_catalog.pg_namespace AS n ON n.oid = t.relnamespace
  JOIN pg_catalog.pg_attribute AS a ON a.attrelid = t.oid AND a.attnum = d.refobjsubid
 WHERE s.relkind = 'S' AND n.nspname = ANY (:schemas)"""


class _Candidate(NamedTuple):
    """A declared rename, and what tells whether the old and the new stand: by the other names as they stand."""

    rename: Rename
    old: Any
    new: Any


class _Schema(NamedTuple):
    """What has which name, as it stands or as it is built."""

    objects: dict[Key, Found]
    columns: dict[Place, Address]
    view_columns: dict[tuple[Relation, int], str]
    sequences: dict[Place, str]

    @classmethod
    def of(cls, connection: Connection, schemas: Schemas) -> _Schema:
        of_views = connection.execute(text(_COLUMNS_OF_VIEWS), {"schemas": list(schemas)})
        sequences = connection.execute(text(_SEQUENCES), {"schemas": list(schemas)})
        return cls(
            read(connection, schemas),
            columns(connection, schemas),
            {(Relation(row[0], row[1]), row[2]): row[3] for row in of_views},
            {(Relation(row[0], row[1]), row[2]): row[3] for row in sequences},
        )

    @property
    def relations(self) -> set[tuple[str, Relation | None]]:
        """(kind, relation) of tables and views."""
        views = {(key.kind, found.relation) for key, found in self.objects.items() if key.kind in VIEWS}
        return views | {("table", table) for table, _ in self.columns}

    @property
    def places(self) -> set[Place]:
        """(relation, column) of tables and views."""
        return {*self.columns, *((view, name) for (view, _), name in self.view_columns.items())}

    @property
    def bare_names(self) -> set[str | None]:
        """Names of all of it."""
        names = {relation.name for _, relation in self.relations if relation is not None}
        return names | {found.member for found in self.objects.values()} | {column for _, column in self.places}


def pending(connection: Connection, metadata: MetaData) -> list[Rename]:
    """The renames that this database still needs; nothing is locked, nothing stays.

    Raises
    ------
    ConfigurationError
        If a declaration makes no sense: former names go in a circle, both names stand, or it has no name.
    """
    tables, views = tables_and_views(metadata)
    of_sql = former_names(metadata)
    former_of_all = {*of_sql.values(), *_former_of_items([*tables, *views])}
    if not former_of_all:
        return []
    schemas = declared_schemas(metadata)
    standing = _Schema.of(connection, schemas)
    if former_of_all.isdisjoint(standing.bare_names):
        return []
    with rolled_back(connection):
        put_aside(connection, schemas)
        built = create_all(connection, metadata)
        new = _Schema.of(connection, schemas)
        by_key = {key: of_sql[made.source] for key, made in built.items() if made.source in of_sql}
        if nameless := [key for key in by_key if key.kind in _NAMELESS]:
            raise ConfigurationError(f"{' '.join(nameless[0])} has no name of its own: it cannot be renamed.")
        relations = _to_come(_of_relations(tables, by_key, new.objects), standing.relations, new.relations)
        former = {now: Relation(now.schema, each.old) for each in relations if (now := each.relation)}
        declared_places = {(former.get(table, table), column) for table, column in new.places}
        of_columns = _to_come(_of_columns([*tables, *views], former), standing.places, declared_places)
        of_columns += _columns_of_views(standing, new, of_columns, former)
        renames = [*relations, *of_columns]
        others = list(_of_others([*tables, *views], by_key, new.objects))
        with rolled_back(connection):
            take_back(connection, schemas, renames)
            renames = [*renames, *_others_to_come(connection, schemas, others, standing, new)]
        return [*renames, *_implied(connection, schemas, renames, standing, new)] if renames else []


def _former_of_items(relations: Iterable[Any]) -> Iterator[str]:
    for relation in relations:
        for item in (relation, *relation.c, *relation.constraints, *relation.indexes):
            if (old := former_name(item)) is not None:
                yield old


def _to_come(candidates: Iterable[_Candidate], standing: Collection[Any], declared: Collection[Any]) -> list[Rename]:
    """Those whose old name stands, and whose new one does not, or is given up itself."""
    left, given_up, found = list(candidates), set(), []
    _refuse_circles(left)
    while more := [
        each for each in left if each.old in standing and (each.new not in standing or each.new in given_up)
    ]:
        left = [each for each in left if each not in more]
        given_up |= {each.old for each in more}
        found += [each.rename for each in more]
        taken = [each.old for each in more]
        for each in more:
            if taken.count(each.old) > 1:
                raise ConfigurationError(
                    f"{each.rename.kind} {each.rename.old} is declared to be the former name of several: it can be"
                    " renamed to one of them."
                )
    for each in left:
        if each.old in standing and each.old not in declared:
            raise ConfigurationError(
                f"{each.rename.kind} {each.rename.new} is declared to be renamed from {each.rename.old}, and both"
                " stand: drop or rename one of them, or take the former name out of the declaration."
            )
    return found


def _refuse_circles(candidates: Iterable[_Candidate]) -> None:
    former = {each.new: each.old for each in candidates}
    for start, old in former.items():
        name, seen = old, {start}
        while name in former and name not in seen:
            seen.add(name)
            name = former[name]
        if name == start:
            raise ConfigurationError(
                f"Former names go in a circle: {' from '.join(sorted(map(str, seen)))}. Write two revisions, the first"
                " of which gives one of them a third name."
            )


def _of_relations(
    tables: Iterable[Any], by_key: Mapping[Key, str], objects: Mapping[Key, Found]
) -> Iterator[_Candidate]:
    new: dict[Relation, tuple[str, str | None, Key | None]] = {
        Relation(str(table.schema), table.name): ("table", former_name(table), None) for table in tables
    }
    new |= {
        relation: (key.kind, old, key)
        for key, old in by_key.items()
        if key.kind in VIEWS and (relation := objects[key].relation) is not None
    }
    for relation, (kind, old, key) in new.items():
        if old is not None:
            before = Relation(relation.schema, old)
            yield _Candidate(Rename(kind, relation, relation.name, old, key), (kind, before), (kind, relation))


def _of_columns(relations: Iterable[Any], former: Mapping[Relation, Relation]) -> Iterator[_Candidate]:
    for each in relations:
        relation = Relation(str(each.schema), each.name)
        before = former.get(relation, relation)
        for column in each.c:
            if (old := former_name(column)) is not None:
                rename = Rename("column", relation, column.name, old)
                yield _Candidate(rename, (before, old), (before, column.name))


def _columns_of_views(
    standing: _Schema, new: _Schema, of_columns: Iterable[Rename], former: Mapping[Relation, Relation]
) -> list[Rename]:
    """Columns of views that have the new name of a renamed column where they had its old one."""
    names = {(each.old, each.new) for each in of_columns}
    declared = {(each.relation, each.new) for each in of_columns}
    return [
        Rename("column", view, name, before)
        for (view, number), name in new.view_columns.items()
        if (before := standing.view_columns.get((former.get(view, view), number), name)) != name
        and (before, name) in names
        and (view, name) not in declared
    ]


def _of_others(relations: Iterable[Any], by_key: Mapping[Key, str], objects: Mapping[Key, Found]) -> Iterator[Rename]:
    """Objects and parts that are no relations."""
    parts: dict[tuple[Relation | None, str | None], str] = {
        (Relation(str(relation.schema), relation.name), str(item.name)): old
        for relation in relations
        for item in (*relation.constraints, *relation.indexes)
        if (old := former_name(item)) is not None
    }
    for key, found in objects.items():
        if key.kind in VIEWS:
            continue
        place = (found.relation, found.member)
        old = by_key.get(key) or (parts.get(place) if key.kind in PARTS else None)
        if old is not None and found.member is not None:
            yield Rename(key.kind, found.relation, found.member, old, key)


def _others_to_come(
    connection: Connection, schemas: Schemas, others: list[Rename], standing: _Schema, new: _Schema
) -> list[Rename]:
    """Tell by taking all of them back, whether done already or not: PostgreSQL then has the keys of the old names.

    Tables, views and columns have their former names already.
    """
    new_keys = _by_origin(new.objects, read(connection, schemas))
    blocked = taken_by_others(connection, schemas, [each._replace(key=new_keys[each.key]) for each in others])
    old_keys = _by_origin(new.objects, read(connection, schemas))
    blocked_keys = {each.key for each in blocked}
    candidates = [
        _Candidate(each, _namesake(each, standing, key) if key in blocked_keys else old_keys[each.key], key)
        for each in others
        if (key := new_keys[each.key])
    ]
    return _to_come(candidates, standing.objects, set(new_keys.values()))


def _by_origin(new: Mapping[Key, Found], now: Mapping[Key, Found]) -> dict[Key | None, Key]:
    """Keys of now by the keys of what was built."""
    keys = {(key.kind, found.address): key for key, found in now.items()}
    return {key: keys[key.kind, found.address] for key, found in new.items()}


def _namesake(rename: Rename, standing: _Schema, new: Key) -> Key | None:
    """The key under which it stood, where its former name is declared for another."""
    tail = f".{new.name}".partition(f".{quoted(rename.new)}")[2]
    namesakes = (
        key
        for key, found in standing.objects.items()
        if key.kind == rename.kind and found.member == rename.old and key.name.endswith(tail)
    )
    return next(namesakes, None)


def _implied(
    connection: Connection, schemas: Schemas, renames: list[Rename], standing: _Schema, new: _Schema
) -> list[Rename]:
    """What has another name only because tables and columns have: by a naming convention, or a sequence of a column."""
    with rolled_back(connection):
        take_back(connection, schemas, renames)
        now = _Schema.of(connection, schemas)
    keys = _by_origin(new.objects, now.objects)
    former = {key: now.objects[keys[key]] for key in new.objects if key.kind in PARTS}
    stay = {keys[key] for key, found in former.items() if _is_same(standing.objects.get(keys[key]), found)}
    left = {key: found for key, found in standing.objects.items() if key.kind in PARTS and key not in stay}
    implied: list[Rename] = []
    for key, found in former.items():
        part = new.objects[key]
        if keys[key] in stay or found.definition == part.definition:
            continue
        old = next((each for each, stands in left.items() if each.kind == key.kind and _is_like(stands, found)), None)
        if old is not None:
            implied.append(Rename(key.kind, part.relation, str(part.member), str(left.pop(old).member), key))
    return [*implied, *_sequences(standing, new, now)]


def _is_same(standing: Found | None, former: Found) -> bool:
    return standing is not None and standing.relation == former.relation


def _is_like(standing: Found, former: Found) -> bool:
    """Whether an index or constraint is the same but for its name."""
    return _nameless(standing) == _nameless(former)


def _nameless(part: Found) -> tuple[Relation | None, str]:
    return part.relation, part.definition[0].replace(f" {quoted(str(part.member))} ", " ", 1)


def _sequences(standing: _Schema, new: _Schema, now: _Schema) -> list[Rename]:
    places = {address: place for place, address in new.columns.items()}
    return [
        Rename("sequence", places[now.columns[former]][0], sequence, before)
        for former, sequence in now.sequences.items()
        if (before := standing.sequences.get(former, sequence)) != sequence and places[now.columns[former]] != former
    ]
