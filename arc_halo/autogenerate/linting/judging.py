"""Which effects somebody would notice, and what to write in the revision's place."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Literal, NamedTuple

from arc_halo.autogenerate.linting.effects import touched_tables
from arc_halo.autogenerate.linting.observing import rank
from arc_halo.autogenerate.linting.sizes import Size

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping

    from arc_halo.autogenerate.linting.effects import Touched
    from arc_halo.autogenerate.linting.observing import Observation

Severity = Literal["danger", "note"]
Work = Literal["rewrite", "scan"]

# What ordinary reading and writing conflicts with.
_BLOCKS: Final = {
    "AccessExclusiveLock": "readers and writers",
    "ExclusiveLock": "writers",
    "ShareRowExclusiveLock": "writers",
    "ShareLock": "writers",
}
_REQUIRED: Final = "required-column"
_ALONE: Final = "in an `autocommit_block()`, alone in a revision"
_LATER: Final = "and VALIDATE CONSTRAINT in a later revision, which blocks nobody"


class Scan(NamedTuple):
    """A reason to read a table whole: the rule, what it is for, and how it is done without locking anybody out."""

    rule: str
    purpose: str
    advice: str


_SCANS: Final = {
    "index": Scan("index-build", "an index is built", f"CREATE INDEX CONCURRENTLY {_ALONE}"),
    "key": Scan(
        "index-build",
        "the index of a constraint is built",
        f"CREATE UNIQUE INDEX CONCURRENTLY {_ALONE}, then ADD CONSTRAINT ... USING INDEX",
    ),
    "foreign key": Scan("foreign-key-scan", "a foreign key is checked", f"add it NOT VALID, {_LATER}"),
    "check": Scan("check-scan", "a CHECK is checked", f"add it NOT VALID, {_LATER}"),
    "not null": Scan(
        "not-null-scan",
        "a column is searched for nulls",
        "add CHECK (... IS NOT NULL) NOT VALID first, VALIDATE CONSTRAINT in a later revision, then SET NOT NULL, "
        "which reads nothing any more, and drop the CHECK",
    ),
    "required": Scan(
        _REQUIRED,
        "a new column has no value in old rows and may not be null, which fails if there is a row,",
        "give it a constant default, or add it nullable, fill it in batches, and go on as for SET NOT NULL",
    ),
    "partition": Scan(
        "partition-scan",
        "rows are checked against the bounds of a partition",
        "add a CHECK of the same bounds NOT VALID and validate it before ATTACH PARTITION",
    ),
}
_REWRITES: Final = {
    "TRUNCATE TABLE": "it empties the table: is that meant?",
    "REFRESH MATERIALIZED VIEW": "REFRESH MATERIALIZED VIEW CONCURRENTLY, which needs a unique index",
}
_NEW_COLUMN: Final = (
    "add the column without the default, set the default in a statement of its own, and fill old rows in batches"
)
_NEW_TYPE: Final = (
    "expand and contract: add a column of the new type, write both, fill old rows in batches, and drop the old column "
    "in a later revision"
)


@dataclass(frozen=True, slots=True)
class Limits:
    """Above which size a table counts as large; with ``strict`` every one does.

    Findings under the rules of ``allowed`` are notes whatever the size.
    """

    rows: int = 10_000
    nbytes: int = 1_000_000
    strict: bool = False
    allowed: frozenset[str] = frozenset()

    def severity(self, rule: str, size: Size) -> Severity:
        """How much what the rule is about matters for a table of this size."""
        most = 0 if rule == _REQUIRED else self.rows
        is_large = self.strict or size.rows > most or size.nbytes > self.nbytes
        return "danger" if is_large and rule not in self.allowed else "note"


@dataclass(frozen=True, slots=True)
class Effect:
    """What a statement does to a table: the mode of its lock, whom that blocks, and what grows with the size."""

    table: str
    lock: str | None
    blocks: str | None
    work: Work | None
    rows: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class Finding:
    """Something to know before the revision is run; ``table`` is None where it is about the statement."""

    severity: Severity
    rule: str
    table: str | None
    message: str
    advice: str


@dataclass(frozen=True, slots=True)
class Judgement:
    """A statement with its effects and findings."""

    statement: str
    is_transactional: bool
    effects: list[Effect] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)


class Judge:
    """Judges the statements of one revision, in their order.

    Parameters
    ----------
    existing
        Oids of what was there before the revision: what it makes itself nobody uses yet.
    sizes
        Of tables, by oid.
    """

    def __init__(self, existing: Collection[int], sizes: Mapping[int, Size], limits: Limits) -> None:
        self._existing, self._sizes, self._limits = existing, sizes, limits
        self._held: dict[int, tuple[str, str]] = {}  # name and mode, since the transaction began
        self._told: set[tuple[int, str]] = set()

    def judge(self, seen: Observation) -> Judgement:
        """Judge the next statement."""
        if not seen.statement.is_transactional:
            self._held.clear()
        touched = [each for each in touched_tables(seen) if each.oid in self._existing]
        findings = [*self._about_statement(seen)]
        for each in touched:
            findings += self._about_table(seen, each)
        if seen.statement.is_transactional:
            self._hold(touched)
        effects = [self._effect(each) for each in touched]
        return Judgement(seen.statement.text, seen.statement.is_transactional, effects, findings)

    def _effect(self, touched: Touched) -> Effect:
        size = self._size(touched)
        work: Work | None = "rewrite" if touched.is_rewritten else "scan" if touched.scans else None
        return Effect(touched.name, spelled(touched.lock), _BLOCKS.get(touched.lock or ""), work, *size)

    def _size(self, touched: Touched) -> Size:
        return self._sizes.get(touched.oid, Size(0, 0))

    def _about_statement(self, seen: Observation) -> Iterator[Finding]:
        if seen.error is not None:
            yield Finding("danger", "fails", None, f"fails: {seen.error}", "correct it; what follows was not looked at")
        elif seen.statement.is_transactional and not seen.is_atomic:
            message = "cannot be run in a transaction: the upgrade would fail"
            yield Finding("danger", "in-transaction", None, message, f"write it {_ALONE}")

    def _about_table(self, seen: Observation, touched: Touched) -> Iterator[Finding]:
        blocked = _BLOCKS.get(touched.lock or "")
        if touched.is_read:
            for rule, purpose, advice in _works(seen, touched):
                if blocked:
                    yield self._finding(rule, touched, f"{purpose} with {blocked} locked out", advice)
                else:
                    yield Finding("note", rule, touched.name, f"{purpose}, beside readers and writers", "")
            yield from self._held_meanwhile(touched)
        if blocked and not seen.has_timeout:
            message = f"waits for {spelled(touched.lock)} without end, and {blocked} queue behind it"
            yield self._finding("lock-timeout", touched, message, "SET LOCAL lock_timeout TO '5s' first")
        for name in touched.renamed:
            message = f"{name} has another name then, which code that runs does not know"
            advice = "expand and contract: add the new name beside the old one, and drop that in a later revision"
            yield self._finding("rename", touched, message, advice)
        for name in touched.dropped:
            advice = "see that no release that still runs uses it"
            yield Finding("note", "drop", touched.name, f"{name} is gone then", advice)

    def _finding(self, rule: str, touched: Touched, message: str, advice: str) -> Finding:
        return Finding(self._limits.severity(rule, self._size(touched)), rule, touched.name, message, advice)

    def _held_meanwhile(self, touched: Touched) -> Iterator[Finding]:
        """Locks of earlier statements that stay for as long as the table is read."""
        held = [
            f"{_BLOCKS[mode]} of {name} by {spelled(mode)}"
            for oid, (name, mode) in sorted(self._held.items())
            if oid != touched.oid or rank(mode) > rank(touched.lock)
        ]
        message = f"locks of statements before stay meanwhile, and lock out {', '.join(held)}"
        if held and (touched.oid, message) not in self._told:
            self._told.add((touched.oid, message))
            yield self._finding("held-lock", touched, message, "do this in another revision than those")

    def _hold(self, touched: Collection[Touched]) -> None:
        for each in touched:
            if each.lock in _BLOCKS and rank(each.lock) > rank(self._held.get(each.oid, ("", None))[1]):
                self._held[each.oid] = each.name, each.lock


def _works(seen: Observation, touched: Touched) -> Iterator[Scan]:
    """What the table is rewritten or read for; a rewrite does all else on its way."""
    if not touched.is_rewritten:
        yield from (_SCANS[each] for each in sorted(touched.scans))
        return
    if touched.retyped:
        advice = _NEW_TYPE
    elif touched.added:
        advice = _NEW_COLUMN
    else:
        advice = _REWRITES.get(seen.tag, "do it when nobody uses the table, or copy it in batches")
    yield Scan("rewrite", "the whole table is written anew", advice)


def spelled(mode: str | None) -> str | None:
    """A lock's mode as SQL writes it: ``ACCESS EXCLUSIVE``."""
    return mode and re.sub(r"(?<=[a-z])(?=[A-Z])", " ", mode.removesuffix("Lock")).upper()
