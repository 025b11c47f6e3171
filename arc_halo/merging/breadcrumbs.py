"""Task vectors without their smallest numbers and without their largest."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from arc_halo.merging.abc import Parameter
from arc_halo.merging.selection import Ranks
from arc_halo.merging.task_arithmetic import DENSITY, LAMBDA, WEIGHT, normalize, rescale
from arc_halo.merging.ties import Ranked

if TYPE_CHECKING:
    from arc_halo.merging.abc import Values

GAMMA: Final = Parameter("gamma", "model", default=0.01, least=0, most=1)


class Breadcrumbs(Ranked):
    """Davari and Belilovsky 2023, https://arxiv.org/abs/2312.06795.

    Of ``n`` numbers ``int(density * n)`` stay: the largest ``int(gamma * n)`` go first, fewer where the density would
    not be reached otherwise, then the smallest. That is mergekit's rounding.
    """

    id = "breadcrumbs"
    parameters = (WEIGHT, DENSITY, GAMMA, LAMBDA, normalize(default=False), rescale(default=False))

    def ranks(self, size: int, values: Values) -> Ranks | None:
        """A middle of the order."""
        density = float(values["density"])
        if density >= 1:
            return None
        kept = int(density * size)
        first = max(0, size - kept - int(float(values["gamma"]) * size))
        return Ranks(first, first + kept)


class BreadcrumbsTies(Breadcrumbs):
    """Breadcrumbs of which those of the elected sign are summed; see `Ties`."""

    id = "breadcrumbs_ties"
    elects = True
