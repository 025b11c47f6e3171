"""A column is changed while old and new versions of the application write: expand, fill, contract.

Expansion     an old column, the new one beside it, and the expressions that make the one of the other.
Sync trigger  a declared trigger, with its function, that fills the column that a writer did not write.
Backfill      fills the new column of the rows that were there before, in short transactions.
Contract      the old column and the declaration go; autogenerate writes a revision that refuses while a row is not
              filled, and whose downgrade fills the old column again.

A row is filled if its new column is not null, or if ``forward`` gives null for it. So rows themselves are the state of
a backfill, and nothing else has to be kept.
"""

from __future__ import annotations

from arc_halo.autogenerate.expanding.backfilling import Backfilled, backfill, is_filled
from arc_halo.autogenerate.expanding.declaring import Expansion, declare_expansion
from arc_halo.autogenerate.expanding.standing import standing_expansions

__all__ = ["Backfilled", "Expansion", "backfill", "declare_expansion", "is_filled", "standing_expansions"]
