"""Loading a model whose tensors are deltas, beside other ways to keep models, in one run and with warm caches.

Every way holds the same versions of one model and loads the last one, in turns, so that none has the quiet minute; what
a load returns is compared with the file after the clock has stopped. tensorstore and MLflow are the extra
``benchmark``; a way that is not installed is named in the table.
"""

from __future__ import annotations

import time
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from command import command_line, publish, scratch
from family import Checkpoint, open_family
from loading_ways import (
    ArcHaloCopied,
    ArcHaloDeltas,
    ArcHaloMapped,
    MlflowArtifacts,
    MlflowServer,
    SafetensorsFiles,
    TensorStore,
    Way,
)
from machine import describe_machine
from report import Goal, faster, goal_table, rate, table
from server import Server

import arc_halo
from arc_halo.store.cache import ReadCache

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from arc_halo.codecs.policy import PolicyName

BEGIN, END = "<!-- loading: begin -->", "<!-- loading: end -->"
REPEATS, TINY_REPEATS = 11, 2
VERSIONS = 3
PACKAGES = {TensorStore.name: "tensorstore", MlflowArtifacts.name: "mlflow"}
GOALS = ((TensorStore.name, 1), (MlflowArtifacts.name, 3))
OURS: dict[str, tuple[PolicyName, bool]] = {
    "Arc-Halo `balanced`, deltas of depth 2": ("balanced", False),
    "Arc-Halo `fast`, deltas of depth 1": ("fast", False),
    "Arc-Halo `fast`, depth 1, payloads in a folder": ("fast", True),
}
"""Ways of ours that read all there is: the policy, and whether payloads are in an object store."""
_CACHE_NBYTES = 1 << 40


@dataclass(frozen=True)
class Measured:
    """Seconds of each load; none where the way is not installed."""

    precision: str
    way: str
    nbytes: int
    seconds: list[float]


def run(
    models: Mapping[str, Sequence[Checkpoint]], folder: Path, resources: ExitStack, *, repeats: int
) -> tuple[dict[str, str], list[Measured]]:
    """Measure on a new server; returns the machine and what was measured."""
    server = Server(folder / "home", resources)
    machine = describe_machine(server.connection, folder, [each for each in PACKAGES.values() if find_spec(each)])
    mlflow = MlflowServer(folder / "mlflow", resources) if find_spec("mlflow") else None
    measured = []
    for precision, versions in models.items():
        ours = _ours(server, precision, folder, resources)
        cache = ReadCache(folder / f"cache-{precision}", _CACHE_NBYTES)
        cached = [way(ours[0].database, cache) for way in (ArcHaloMapped, ArcHaloCopied)]
        ways: list[Way] = [*ours, *cached, SafetensorsFiles()]
        if find_spec("tensorstore"):
            ways.append(TensorStore(folder / f"ocdbt-{precision}"))
        if mlflow is not None:
            ways.append(MlflowArtifacts(mlflow))
        for way in ways:
            way.save(versions)
        server.vacuum()
        seconds = _in_turns(ways, versions[-1], repeats)
        absent: dict[str, list[float]] = {name: [] for name in PACKAGES if name not in seconds}
        measured += [Measured(precision, way, versions[-1].nbytes, each) for way, each in (seconds | absent).items()]
    return machine, measured


def _ours(server: Server, precision: str, folder: Path, resources: ExitStack) -> list[ArcHaloDeltas]:
    """A database for each: a chunk is encoded once, by the policy that stored it first."""
    ways = []
    for number, (name, (policy, is_away)) in enumerate(OURS.items()):
        url = server.create(f"loading_{precision.lower()}_{number}")
        blob_url = (folder / f"objects-{precision}").as_uri() if is_away else None
        database = resources.enter_context(closing(arc_halo.connect(url, blob_url=blob_url)))
        ways.append(ArcHaloDeltas(database, policy, name))
    return ways


def _in_turns(ways: Sequence[Way], last: Checkpoint, repeats: int) -> dict[str, list[float]]:
    expected = {name: raw for name, _, raw in last.tensors()}
    seconds: dict[str, list[float]] = {way.name: [] for way in ways}
    for turn in range(repeats):
        first = turn % len(ways)
        for way in (*ways[first:], *ways[:first]):
            began = time.perf_counter()
            arrays = way.load()
            seconds[way.name].append(time.perf_counter() - began)
            assert arrays.keys() == expected.keys(), way.name
            assert all(arrays[name].tobytes() == raw for name, raw in expected.items()), way.name
    return seconds


def goals(measured: Sequence[Measured]) -> list[Goal]:
    """What a load of deltas is held to."""
    return [
        goal
        for precision in dict.fromkeys(each.precision for each in measured)
        for goal in _goals_of(precision, {each.way: each for each in measured if each.precision == precision})
    ]


def _goals_of(precision: str, measured: Mapping[str, Measured]) -> Iterator[Goal]:
    for way in (*OURS, ArcHaloCopied.name):
        ours = measured[way]
        speed = rate(ours.nbytes, ours.seconds)
        yield Goal(f"{precision}, {way}: at least 250 MB/s", f"{speed:.0f}", speed >= 250)
        for peer, least in GOALS:
            seconds = measured[peer].seconds
            ratio = faster(seconds, ours.seconds) if seconds else None
            found = "not installed" if ratio is None else f"{ratio:.2f}"
            yield Goal(f"{precision}, {way}: at least {least} x {peer}", found, ratio is not None and ratio >= least)


def to_markdown(machine: Mapping[str, str], measured: Sequence[Measured], reached: Sequence[Goal]) -> str:
    """Everything as tables."""
    headings = ["model", "way", "ms", "MB/s", *(f"x {peer.partition(' ')[0]}" for peer in PACKAGES)]
    rows = [(each.precision, each.way, *_cells(each, measured)) for each in measured]
    parts = [table(["", ""], machine.items()), table(headings, rows), "### Goals\n", goal_table(reached)]
    return "\n".join(parts)


def _cells(each: Measured, measured: Sequence[Measured]) -> list[str]:
    if not each.seconds:
        return ["not installed", *[""] * (1 + len(PACKAGES))]
    peers = [other for other in measured if other.precision == each.precision and other.way in PACKAGES]
    peers.sort(key=lambda peer: list(PACKAGES).index(peer.way))
    ratios = [f"{faster(peer.seconds, each.seconds):.2f}" if peer.seconds else "" for peer in peers]
    return [f"{median(each.seconds) * 1e3:.1f}", f"{rate(each.nbytes, each.seconds):.0f}", *ratios]


def main() -> None:
    """Run, print, and leave nothing behind."""
    parser = command_line(__doc__)
    parser.add_argument("--family", type=Path, help="what make_family.py made; by default it is made now, by torch")
    options = parser.parse_args()
    tiny = options.size == "tiny"
    with scratch() as (folder, resources):
        family = open_family(options.family, folder / "made", tiny=tiny)
        models = {precision: each[:VERSIONS] for precision, each in family.models.items()}
        machine, measured = run(models, folder, resources, repeats=TINY_REPEATS if tiny else REPEATS)
    reached = goals(measured)
    results = {"machine": machine, "measured": [asdict(each) for each in measured]}
    publish(options, results, reached, to_markdown(machine, measured, reached), (BEGIN, END))


if __name__ == "__main__":
    main()
