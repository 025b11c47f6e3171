"""Pictures of reactors: members by their roles and weights, and what they do for each other."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from arc_halo.fusion.layout import lay_out
from arc_halo.registry.picture import Picture, new_figure
from arc_halo.schema.fusion import MEMBER_ROLES

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from arc_halo.fusion.layout import Layout, Slot, Way
    from arc_halo.fusion.plan import Edge, MemberPlan, Plan

# Okabe and Ito (2008): told apart with and without a colour vision deficiency, and in grey.
COLOURS: Final = dict(
    zip(MEMBER_ROLES, ("#0072b2", "#56b4e9", "#d55e00", "#e69f00", "#cc79a7", "#009e73", "#999999"), strict=True)
)
"""By role."""
STYLES: Final[Any] = {"feeds_into": "-", "validates": (0, (4, 2)), "augments": (0, (1, 1.5))}
"""Of lines, by kind."""
_DONE_BY: Final = {"validates": "validated by", "augments": "augmented by"}
_BOX_WIDTH, _BOX_HEIGHT = 1.9, 0.62  # inches, as all lengths
_COLUMN, _ROW = 2.8, 0.92
_MOST = 80  # characters that could fit into a box
_APART = 0.12
Point = tuple[float, float]
_GREY: Final = "#495057"


@dataclass(frozen=True, slots=True)
class GraphPicture(Picture):
    """A reactor's graph: a picture in a notebook, a file by `save`, and lines of text as `str`."""

    plan: Plan = field(repr=False)

    def __str__(self) -> str:
        return "\n".join(text_lines(self.plan))

    def __repr__(self) -> str:
        return str(self)  # what a notebook without matplotlib shows

    @property
    def said(self) -> str:
        """What it shows, for those who do not see it."""
        return str(self)

    def figure(self) -> Figure:
        """A new figure of matplotlib, to be changed and saved by its own methods.

        Raises
        ------
        ConfigurationError
            matplotlib is not installed.
        """
        layout = lay_out(self.plan)
        columns, rows = max(layout.column_count, 1), max(layout.height, 1.0)
        width, height = _COLUMN * (columns - 1) + _BOX_WIDTH + 1.2, _ROW * rows + 1.0
        figure = new_figure((max(width, 4.6), height))
        panel = figure.subplots()
        panel.set_title(_title(self.plan), fontsize=10, loc="left")
        panel.set_aspect("equal")
        panel.axis("off")
        middle = _COLUMN * (columns - 1) / 2
        half = max(width, 4.6) / 2 - 0.1
        panel.set_xlim(middle - half, middle + half)
        panel.set_ylim(-_ROW * rows / 2, _ROW * rows / 2)
        for way, points in zip(layout.ways, _lines(layout), strict=True):
            _draw_way(panel, way, points, self.plan)
        for member in self.plan.members:
            _draw_member(panel, member, layout.slots[member.id], _width_of(member, self.plan))
        _draw_legend(figure, self.plan, layout)
        return figure

    def _repr_svg_(self) -> None:
        return None  # the image of `_repr_html_` is enough; two forms would double what a notebook holds


def draw_graph(plan: Plan) -> GraphPicture:
    """The graph of a reactor: in a notebook a picture, else text.

    Examples
    --------
    >>> draw_graph(Reactor(db, "answers", members).plan()).save("answers.svg")  # doctest: +SKIP
    """
    return GraphPicture(plan)


def text_lines(plan: Plan) -> list[str]:
    """A reactor as lines of text: its members by waves, and below each what it gets and gives."""
    layout = lay_out(plan)
    names = {member.id: member.name for member in plan.members}
    lines = [_title(plan)]
    for number, wave in enumerate(layout.waves):
        for member in wave:
            lines.append(f"{number + 1}  {member.name}  ({_about(member)})")
            lines += _branches([_said(edge, names, is_in=is_in) for edge, is_in in _edges_of(member, layout)])
    lines += [f"-  {member.name}  ({_about(member)})" for member in layout.beside]
    return lines


def _edges_of(member: MemberPlan, layout: Layout) -> Iterator[tuple[Edge, bool]]:
    """What others do for a member, then whom it feeds."""
    edges = [way.edge for way in layout.ways]
    yield from ((each, True) for each in edges if each.target_id == member.id and each.kind in _DONE_BY)
    yield from ((each, False) for each in edges if each.source_id == member.id and each.kind == "feeds_into")


def _said(edge: Edge, names: dict[Any, str], *, is_in: bool) -> str:
    who = f"{_DONE_BY[edge.kind]} {names[edge.source_id]}" if is_in else f"feeds into {names[edge.target_id]}"
    label = edge.config.get("label")
    return f"{who} as {label!r}" if label else who


def _branches(said: Sequence[str]) -> list[str]:
    return [f"   {'└──' if number == len(said) - 1 else '├──'} {each}" for number, each in enumerate(said)]


def _title(plan: Plan) -> str:
    count = len(plan.members)
    return f"{plan.name}: {plan.strategy}, {count} member{'' if count == 1 else 's'}"


def _about(member: MemberPlan) -> str:
    return f"{member.role}, weight {member.weight:g}, {member.answers_by}"


def _width_of(member: MemberPlan, plan: Plan) -> float:
    """Of lines, in points: from 0.6 to 3.2, by the share of the greatest weight."""
    most = max((each.weight for each in plan.members), default=0.0)
    return 0.6 + 2.6 * (member.weight / most if most else 0.0)


def _centre(slot: Slot) -> Point:
    return _COLUMN * slot[0], _ROW * slot[1]


def _draw_member(panel: Axes, member: MemberPlan, slot: Slot, width: float) -> None:
    from matplotlib.patches import FancyBboxPatch  # noqa: PLC0415  an extra

    x, y = _centre(slot)
    colour = COLOURS.get(member.role, _GREY)
    corner = (x - _BOX_WIDTH / 2, y - _BOX_HEIGHT / 2)
    shape: dict[str, Any] = {"boxstyle": "round,pad=0,rounding_size=0.08", "zorder": 3}
    panel.add_patch(FancyBboxPatch(corner, _BOX_WIDTH, _BOX_HEIGHT, facecolor="white", edgecolor="none", **shape))
    panel.add_patch(
        FancyBboxPatch(
            corner, _BOX_WIDTH, _BOX_HEIGHT, facecolor=f"{colour}26", edgecolor=colour, linewidth=width, **shape
        )
    )
    own: dict[str, Any] = {"ha": "center", "va": "center", "zorder": 4, "parse_math": False}
    panel.text(x, y + 0.17, _fitting(member.name, 9, "bold"), fontsize=9, weight="bold", **own)
    panel.text(x, y - 0.02, f"{member.role}, weight {member.weight:g}", fontsize=7.5, **own)
    panel.text(x, y - 0.2, _fitting(member.answers_by.removeprefix("endpoint "), 7), fontsize=7, color=_GREY, **own)


def _draw_way(panel: Axes, way: Way, points: Sequence[Point], plan: Plan) -> None:
    """A line with an arrow at its end, which is level there."""
    from matplotlib.patches import PathPatch, Polygon  # noqa: PLC0415  an extra
    from matplotlib.path import Path  # noqa: PLC0415  an extra

    source = next(each for each in plan.members if each.id == way.edge.source_id)
    colour, width = COLOURS.get(source.role, _GREY), _width_of(source, plan)
    line = Path(points, [Path.MOVETO, *([Path.CURVE4] * (len(points) - 1))])
    style = {"linestyle": STYLES[way.edge.kind], "linewidth": width, "capstyle": "butt"}
    panel.add_patch(PathPatch(line, fill=False, edgecolor=colour, zorder=2, **style))
    (before, _), (x, y) = points[-2:]
    back, wide = (-0.11 if before < x else 0.11), 0.04 + width / 100
    panel.add_patch(Polygon([(x, y), (x + back, y + wide), (x + back, y - wide)], facecolor=colour, zorder=3.5))


def _lines(layout: Layout) -> list[list[Point]]:
    """Through the slots of each edge; ends that meet at one side of a box are set apart, in the order of the others."""
    ends: dict[tuple[Slot, bool], list[tuple[float, int, int]]] = defaultdict(list)
    for number, way in enumerate(layout.ways):
        first, last = way.slots[0], way.slots[-1]
        is_onward = last[0] > first[0]
        ends[first, last[0] >= first[0]].append((way.slots[1][1], number, 0))
        ends[last, not is_onward].append((way.slots[-2][1], number, -1))
    shifts: dict[tuple[int, int], float] = {}
    for each in ends.values():
        apart = min(_APART, _BOX_HEIGHT * 0.75 / len(each))
        for place, (_, number, end) in enumerate(sorted(each)):
            shifts[number, end] = apart * (place - (len(each) - 1) / 2)
    bends: Counter[int] = Counter()
    lines = []
    for number, way in enumerate(layout.ways):
        points = [_centre(slot) for slot in way.slots]
        for end in (0, -1):
            points[end] = points[end][0], points[end][1] + shifts[number, end]
        column = way.slots[0][0]
        if column == way.slots[-1][0]:
            bends[column] += 1
            lines.append(_arc(points[0], points[-1], bends[column]))
        else:
            lines.append(_curve(points))
    return lines


def _arc(first: Point, last: Point, number: int) -> list[Point]:
    """At the right of a column, each further out than the one before."""
    side = first[0] + _BOX_WIDTH / 2
    out = side + min(0.3 + 0.2 * number, _COLUMN - _BOX_WIDTH)
    return [(side, first[1]), (out, first[1]), (out, last[1]), (side, last[1])]


def _curve(centres: Sequence[Point]) -> list[Point]:
    """Of cubic curves: level where it leaves and enters, so that it crosses a column within its own slot."""
    way = _BOX_WIDTH / 2 if centres[-1][0] > centres[0][0] else -_BOX_WIDTH / 2
    points: list[Point] = []
    for number, (x, y) in enumerate(centres):
        if number:
            (before, height), enter = points[-1], x - way
            turn = (enter - before) / 2
            points += [(before + turn, height), (enter - turn, y), (enter, y)]
        if 0 < number < len(centres) - 1:
            points += [(x - way / 3, y), (x + way / 3, y)]
        if number < len(centres) - 1:
            points.append((x + way, y))
    return points


def _draw_legend(figure: Figure, plan: Plan, layout: Layout) -> None:
    from matplotlib.lines import Line2D  # noqa: PLC0415  an extra
    from matplotlib.patches import Patch  # noqa: PLC0415  an extra

    roles = [role for role in MEMBER_ROLES if any(member.role == role for member in plan.members)]
    kinds = [kind for kind in STYLES if any(way.edge.kind == kind for way in layout.ways)]
    handles = [
        *(Patch(facecolor=f"{COLOURS[role]}26", edgecolor=COLOURS[role], label=role) for role in roles),
        *(Line2D([], [], color=_GREY, linestyle=STYLES[kind], label=kind.replace("_", " ")) for kind in kinds),
    ]
    if handles:
        figure.legend(
            handles=handles, loc="outside lower center", ncols=min(len(handles), 5), frameon=False, fontsize=8
        )


def _fitting(text: str, size: float, weight: str = "normal") -> str:
    """A text, cut where it would be wider than a box."""
    from matplotlib.font_manager import FontProperties  # noqa: PLC0415  an extra
    from matplotlib.textpath import TextPath  # noqa: PLC0415  an extra

    font = FontProperties(weight=weight, size=size)

    def fits(said: str) -> bool:
        outline = TextPath((0, 0), said.replace("$", r"\$"), prop=font)  # a formula it is not
        return not said.strip() or outline.get_extents().width / 72 <= _BOX_WIDTH - 0.14

    said = "".join(each if each.isprintable() else "?" for each in text)[:_MOST]
    length = len(said)
    while length > 1 and not fits(said if length == len(text) else f"{said[:length]}…"):
        length -= 1
    return said if length == len(text) else f"{said[:length]}…"
