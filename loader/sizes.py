"""How large the maps are, which follows from one number: how many inside addresses there are."""

from dataclasses import dataclass

from loader.errors import ShuntError
from loader.types import INSIDE_ADDRESSES, PORTS

__all__ = ["Sizes", "sizes"]

_LEAST = 65536  # of what is not one for each slot


@dataclass(frozen=True, slots=True)
class Sizes:
    """Entries of the maps whose sizes differ from relay to relay."""

    slots: int
    buckets: int
    ring: int
    routes: int
    checks: int

    @property
    def flags(self) -> list[str]:
        """For the compiler: what `bpf/types.h` leaves to the loader."""
        return [
            f"-DSHUNT_SLOTS={self.slots}",
            f"-DSHUNT_BUCKETS={self.buckets}",
            f"-DSHUNT_RING={self.ring}",
            f"-DSHUNT_ROUTES={self.routes}",
            f"-DSHUNT_CHECKS_UNDER_WAY={self.checks}",
        ]


def sizes(inside: int) -> Sizes:
    """Sizes for so many inside entries: addresses, or pairs of one of each family.

    Raises ShuntError for more than there can be, and for none.
    """
    if not 1 <= inside <= INSIDE_ADDRESSES:
        raise ShuntError(f"the relay takes 1 to {INSIDE_ADDRESSES} inside addresses")
    slots = inside * PORTS
    return Sizes(
        slots=slots,
        buckets=_power_of_two(slots // 8),
        ring=_power_of_two(slots),
        routes=max(_LEAST, slots // 2),
        checks=max(_LEAST, slots // 4),
    )


def _power_of_two(least: int) -> int:
    return 1 << (least - 1).bit_length()
