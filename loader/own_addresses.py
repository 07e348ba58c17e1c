"""The relay's own addresses, VIPs and inside ones, as far as the kernel has its part in them.

XDP takes their packets; but it is the kernel that answers ARP and neighbour discovery for them.
"""

import ipaddress
import logging
from collections.abc import Iterable, Mapping

from loader.events import EventLog
from loader.network import Network, Span, number_of

__all__ = ["OwnAddresses"]

log = logging.getLogger(__name__)


class OwnAddresses:
    """Looks whether the kernel has the *addresses*, on whatever interface: each is given with the
    interface that people would put it on."""

    def __init__(self, network: Network, events: EventLog, addresses: Mapping[str, str]) -> None:
        self._network = network
        self._events = events
        self._interfaces = dict(addresses)
        self._numbers = {address: number_of(address) for address in addresses}
        self._were_there: set[str] = set()
        self.present: dict[str, bool] = {}
        """Whether the kernel has the address."""

    @property
    def lost(self) -> list[str]:
        """Those that the kernel had, and has no more. One that it never had is none of these: a
        router may send the packets for it to the relay without asking for it by ARP."""
        return [a for a, present in self.present.items() if not present and a in self._were_there]

    def begin(self) -> None:
        """Look for the first time."""
        for address in self._interfaces:
            self.present[address] = self._network.has_address(address)
            if self.present[address]:
                self._were_there.add(address)
            else:
                log.warning(
                    "the kernel does not have %s: nobody is answered who asks for it by %s. Unless "
                    "a router sends its packets here anyway: %s",
                    *(address, "neighbour discovery" if ":" in address else "ARP"),
                    self.cure(address),
                )

    def follow(self, spans: Iterable[Span]) -> None:
        """Look at those in *spans* again."""
        spans = tuple(spans)
        for address, number in self._numbers.items():
            if any(first <= number <= last for first, last in spans):
                self._look_at(address)

    def cure(self, address: str) -> str:
        """The command that gives the kernel the address."""
        length = ipaddress.ip_address(address).max_prefixlen
        return f"`ip address add {address}/{length} dev {self._interfaces[address]}`"

    def _look_at(self, address: str) -> None:
        present = self._network.has_address(address)
        if present == self.present.get(address):
            return
        self.present[address] = present
        if present:
            self._were_there.add(address)
            log.warning("the kernel has %s now", address)
        else:
            log.warning("the kernel has lost %s: %s", address, self.cure(address))
        self._events.tell("address_changed", address=address, present=present)
