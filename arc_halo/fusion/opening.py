"""What answers for the members of a reactor in this process."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

from arc_halo.errors import FusionError
from arc_halo.fusion.members.callables import CallableMember
from arc_halo.fusion.members.protocol import level_of
from arc_halo.fusion.operations.calls import Member
from arc_halo.fusion.operations.receiving import said_by

if TYPE_CHECKING:
    from arc_halo.fusion.plan import MemberPlan, Plan

Given: TypeAlias = "Mapping[str, Any] | Callable[[MemberPlan], Any]"


class MemberOpener:
    """Opens members by their rows, each once; several threads may use it.

    Parameters
    ----------
    given
        As the members of `Reactor`.

    Raises
    ------
    FusionError
        It is neither a mapping nor a function.
    """

    def __init__(self, given: Given) -> None:
        if not (callable(given) or isinstance(given, Mapping)):
            raise FusionError(f"members are a mapping by name, or a function of a MemberPlan, not {given!r:.80}")
        self._given = given
        self._opened: dict[tuple[Any, ...], Any] = {}
        self._lock = threading.Lock()  # what answers may be a model that takes minutes to load: once is enough

    def open_all(self, plan: Plan) -> tuple[list[Member], dict[str, str]]:
        """What answers for the members of a plan, and why some are left out, by their names.

        Left out is what is archived, and what could not be opened: a model without a tokenizer, an endpoint that is not
        configured. It is tried again the next time.

        Raises
        ------
        FusionError
            Nothing was given that answers for a member.
        """
        members: list[Member] = []
        left_out: dict[str, str] = {}
        for each in plan.members:
            if each.model_status == "archived":
                left_out[each.name] = f"{each.model} is archived"
                continue
            try:
                members.append(self._open(each))
            except FusionError:
                raise
            except Exception as error:  # noqa: BLE001  # of somebody else's code: said in the operation
                left_out[each.name] = said_by(error)
        return members, left_out

    def _open(self, plan: MemberPlan) -> Member:
        key = (plan.id, plan.name, plan.endpoint, plan.model, plan.weights_digest)
        with self._lock:
            if key not in self._opened:
                self._opened[key] = self._resolve(plan)
            return Member(plan, self._opened[key])

    def _resolve(self, plan: MemberPlan) -> Any:
        names = [each for each in (plan.name, plan.endpoint, plan.model) if each is not None]
        if callable(self._given):
            found = self._given(plan)
        else:
            found = next((self._given[name] for name in names if name in self._given), None)
        if found is None:
            wanted = " or ".join(dict.fromkeys(map(repr, names)))
            raise FusionError(f"nothing answers for the member {plan.name!r}: give `members` something under {wanted}")
        if callable(found) and not hasattr(found, "level"):
            found = CallableMember(found)
        level_of(found)
        return found
