"""Numbered packets: how they are written, and the tally of those that came.

A packet is RTP to whom looks at its first byte, and all of it follows from its direction, flow and
number: so whatever was changed on the way shows. No I/O.
"""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["DIRECTIONS", "FLOWS", "SMALLEST", "Flow", "Tally", "compose", "template"]

DIRECTIONS = ("to_transceiver", "to_client")
FLOWS = 1 << 16
"""More flows than that cannot be numbered."""

_KIND = 0x806F  # RTP version 2, payload type 111 (RFC 3550 5.1)
_FIELDS: dict[str, tuple[str, int]] = {
    "kind": (">u2", 0),
    "sequence": (">u2", 2),  # the number's low bits, as RTP counts
    "timestamp": (">u4", 4),
    "direction": (">u2", 8),  # the SSRC's halves
    "flow": (">u2", 10),
    "number": (">u4", 12),
    "inverse": (">u4", 16),  # so that each bit of a number is held by another
}
SMALLEST = 20
"""Bytes that a packet has at least."""
_SAMPLES = 960  # of 20 ms at 48 kHz
_MASK = np.uint64(0xFFFFFFFF)


def _layout(size: int) -> "np.dtype[Any]":
    return np.dtype(
        {
            "names": list(_FIELDS),
            "formats": [kind for kind, _at in _FIELDS.values()],
            "offsets": [at for _kind, at in _FIELDS.values()],
            "itemsize": size,
        }
    )


def template(count: int, size: int) -> npt.NDArray[np.uint8]:
    """Payloads of *size* bytes in which all is written that `compose` does not write."""
    if size < SMALLEST:
        raise ValueError(f"a numbered packet has at least {SMALLEST} bytes, not {size}")
    places = np.arange(size)
    filler = (7 * places + places // 251).astype(np.uint8)
    return np.tile(filler, (count, 1))


def compose(
    payloads: npt.NDArray[np.uint8], direction: int, flow: npt.ArrayLike, number: npt.ArrayLike
) -> None:
    """Write the numbers into payloads made by `template`: one for each, or one for all."""
    fields = payloads.view(_layout(payloads.shape[1]))[:, 0]
    numbers = np.asarray(number, dtype=np.uint64)
    fields["kind"] = _KIND
    fields["sequence"] = numbers & np.uint64(0xFFFF)
    fields["timestamp"] = numbers * np.uint64(_SAMPLES) & _MASK
    fields["direction"] = direction
    fields["flow"] = flow
    fields["number"] = numbers
    fields["inverse"] = numbers ^ _MASK


@dataclass(frozen=True, slots=True)
class Flow:
    """What became of one flow's packets in one direction.

    *lost*: numbers, as pairs of a first and a last one. *reordered*: came behind a later one.
    *longest_gap*: seconds from one to the next.
    """

    sent: int
    received: int
    lost: tuple[tuple[int, int], ...]
    duplicated: int
    reordered: int
    longest_gap: float

    @property
    def lost_packets(self) -> int:
        return sum(last - first + 1 for first, last in self.lost)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


class Tally:
    """Counts what comes in one direction, of so many *flows*.

    *corrupted* packets are not what any sender of this direction has written. *astray* are those
    that are, and came by another flow's way.
    """

    def __init__(self, direction: int, flows: int, size: int) -> None:
        self.received = 0
        """Different packets so far."""
        self.corrupted = 0
        self.astray = 0
        self.longest_gap = 0.0
        """Seconds in which no flow got anything."""
        self._direction = direction
        self._flows = flows
        self._size = size
        self._counts = np.zeros((flows, 1024), np.uint8)
        self._highest = np.full(flows, -1, np.int64)
        self._reordered = np.zeros(flows, np.int64)
        self._came = np.full(flows, np.nan)
        self._gaps = np.zeros(flows)
        self._last = np.nan

    def note(
        self,
        payloads: npt.NDArray[np.uint8],
        lengths: npt.NDArray[Any],
        ways: npt.NDArray[Any],
        times: npt.NDArray[np.float64],
    ) -> None:
        """Packets in the order in which they came: rows of *payloads* that are a byte longer than
        a packet, how many bytes of them are theirs, the flow whose way they came by, and when in
        seconds."""
        payloads = np.ascontiguousarray(payloads[:, : self._size])
        fields = payloads.view(_layout(self._size))[:, 0]
        expected = template(len(payloads), self._size)
        compose(expected, self._direction, fields["flow"], fields["number"])
        whole = (
            (lengths == self._size)
            & (payloads == expected).all(axis=1)
            & (fields["flow"] < self._flows)
        )
        self.corrupted += int(np.count_nonzero(~whole))
        right = fields["flow"] == ways
        self.astray += int(np.count_nonzero(whole & ~right))
        flows = fields["flow"][whole & right].astype(np.int64)
        self._add(flows, fields["number"][whole & right].astype(np.int64), times[whole & right])

    def _add(
        self,
        flows: npt.NDArray[np.int64],
        numbers: npt.NDArray[np.int64],
        times: npt.NDArray[np.float64],
    ) -> None:
        if not len(flows):
            return
        in_order = np.sort(times)  # of sockets that were read one after the other
        self.longest_gap = max(self.longest_gap, _longest_gap(self._last, in_order))
        self._last = np.fmax(self._last, in_order[-1])
        while (numbers >= self._counts.shape[1]).any():
            self._counts = np.concatenate([self._counts, np.zeros_like(self._counts)], axis=1)
        for flow in np.unique(flows):
            mine = flows == flow
            self._add_to(int(flow), numbers[mine], times[mine])

    def _add_to(
        self, flow: int, numbers: npt.NDArray[np.int64], times: npt.NDArray[np.float64]
    ) -> None:
        counts = self._counts[flow]
        different, often = np.unique(numbers, return_counts=True)
        self.received += int(np.count_nonzero(counts[different] == 0))
        counts[different] = np.minimum(counts[different].astype(np.int64) + often, 255)
        highest = np.maximum.accumulate(np.concatenate([[self._highest[flow]], numbers]))
        self._reordered[flow] += int(np.count_nonzero(numbers < highest[:-1]))
        self._highest[flow] = highest[-1]
        self._gaps[flow] = max(self._gaps[flow], _longest_gap(self._came[flow], times))
        self._came[flow] = times[-1]

    def flows(self, sent: list[int]) -> list[Flow]:
        """The outcome, once it is known how many packets of each flow were *sent*."""
        return [self._flow(flow, count) for flow, count in enumerate(sent)]

    def _flow(self, flow: int, sent: int) -> Flow:
        counts = np.zeros(sent, np.int64)
        seen = self._counts[flow][:sent]
        counts[: len(seen)] = seen
        return Flow(
            sent=sent,
            received=int(np.count_nonzero(counts)),
            lost=_runs(np.flatnonzero(counts == 0)),
            duplicated=int(np.maximum(counts - 1, 0).sum()),
            reordered=int(self._reordered[flow]),
            longest_gap=float(self._gaps[flow]),
        )


def _longest_gap(before: float, times: npt.NDArray[np.float64]) -> float:
    """From one to the next, and from *before* to the first if that is a number."""
    gaps = np.diff(times, prepend=times[0] if np.isnan(before) else before)
    return float(gaps.max())


def _runs(numbers: npt.NDArray[np.int64]) -> tuple[tuple[int, int], ...]:
    """Ascending *numbers*, as pairs of the first and the last of those that follow each other."""
    if not len(numbers):
        return ()
    breaks = np.flatnonzero(np.diff(numbers) != 1)
    firsts = numbers[np.concatenate([[0], breaks + 1])]
    lasts = numbers[np.concatenate([breaks, [len(numbers) - 1]])]
    return tuple((int(a), int(b)) for a, b in zip(firsts, lasts, strict=True))
