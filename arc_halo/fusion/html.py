"""How reactors and outcomes look in a notebook; nothing unescaped."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

from arc_halo.schema.html import html_table, html_title

if TYPE_CHECKING:
    from arc_halo.fusion.operations.recording import Outcome
    from arc_halo.fusion.plan import Plan

_LENGTH = 300
_CALL = ("call", "member", "role", "status", "seconds", "tokens", "from the cache", "score", "quality", "answer")


def plan_html(plan: Plan) -> str:
    """A reactor's name, and its members."""
    rows = [(each.name, each.role, each.weight, each.priority, each.answers_by) for each in plan.members]
    head = html_title("Reactor", plan.name) + escape(f", {plan.strategy}, {plan.status}")
    return head + html_table(["member", "role", "weight", "priority", "answers"], rows)


def outcome_html(outcome: Outcome) -> str:
    """The answer, what it took, and the calls."""
    rows = []
    for call in outcome.calls:
        answer = call.answer
        tokens = None if answer is None else (answer.prompt_token_count or 0) + (answer.generated_token_count or 0)
        cached = None if answer is None else answer.cached_token_count
        said = _short(call.error or "" if answer is None else answer.text)
        about = (call.position, call.member.name, call.member.role, call.status, call.latency_seconds)
        rows.append((*about, tokens, cached, call.score, call.quality, said))
    parts = [outcome.status, f"{outcome.seconds:.3g} s"]
    parts += [] if outcome.score is None else [f"score {outcome.score:.4g}"]
    figures = outcome.figures
    parts += [
        f"{name.replace('_', ' ')} {value:.3g}"
        for name in ("quality", "gain", "oracle_gap", "coherence", "diversity")
        if (value := getattr(figures, name)) is not None
    ]
    answered = outcome.error or "" if outcome.fused is None else outcome.fused.text
    text = f'<div style="white-space:pre-wrap">{escape(_short(answered))}</div>'
    return (
        html_title("Operation", outcome.operation_id) + escape(f", {', '.join(parts)}") + text + html_table(_CALL, rows)
    )


def _short(text: str) -> str:
    return text if len(text) <= _LENGTH else f"{text[:_LENGTH]}..."
