"""A network and its time, simulated: it loses, delays, reorders and repeats by a seed.

Addresses are public ones, as a server sees them: what a NAT does is that an endpoint is attached at
another address than before.
"""

import heapq
import itertools
import random
from collections.abc import Callable
from dataclasses import dataclass

from transceiver.stun import Address

__all__ = ["Clock", "Network", "Receive", "Weather"]

Receive = Callable[[bytes, Address], None]
"""Gets a datagram and where it came from."""


class Clock:
    """Virtual time, and what is to happen in it."""

    def __init__(self) -> None:
        self.now = 1000.0
        self._due: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = itertools.count()

    def at(self, when: float, call: Callable[[], None]) -> None:
        heapq.heappush(self._due, (max(when, self.now), next(self._numbers), call))

    def after(self, seconds: float, call: Callable[[], None]) -> None:
        self.at(self.now + seconds, call)

    def every(self, seconds: float, call: Callable[[], None]) -> None:
        """From now on, for ever."""

        def again() -> None:
            call()
            self.after(seconds, again)

        again()

    def run(self, seconds: float, *, until: Callable[[], bool] = lambda: False) -> float:
        """Let time pass, *until* something is so at the longest; return how much did."""
        began, end = self.now, self.now + seconds
        while self._due and self._due[0][0] <= end:
            if until():
                return self.now - began
            self.now, _, call = heapq.heappop(self._due)
            call()
        self.now = end
        return seconds


@dataclass(frozen=True, slots=True)
class Weather:
    """What happens to a datagram. *loss* and *repeat* are probabilities; *delay*, s, is one way,
    and up to *jitter* more, so that datagrams overtake each other."""

    loss: float = 0.0
    repeat: float = 0.0
    delay: float = 0.02
    jitter: float = 0.0


class Network:
    """Carries datagrams between who is attached. *weather* holds for all, *dead* addresses send
    and get nothing."""

    def __init__(self, clock: Clock, seed: int, weather: Weather) -> None:
        self.clock = clock
        self.weather = weather
        self.dead: set[Address] = set()
        self.taps: list[Callable[[bytes, Address, Address], None]] = []
        """Told of each datagram that is sent, its source and its destination."""
        self.loses: Callable[[bytes, Address, Address], bool] = lambda *_: False
        """Whether a datagram from a source to a destination is lost, besides the weather."""
        self.random = random.Random(seed)
        self._attached: dict[Address, Receive] = {}

    def attach(self, address: Address, receive: Receive) -> None:
        self._attached[address] = receive

    def detach(self, address: Address) -> None:
        """What is under way to it is lost."""
        del self._attached[address]

    def send(self, data: bytes, source: Address, destination: Address) -> None:
        for tap in self.taps:
            tap(data, source, destination)
        if self.loses(data, source, destination):
            return
        weather = self.weather
        copies = 1 + (self.random.random() < weather.repeat)
        for _ in range(copies):
            if self.random.random() >= weather.loss:
                delay = weather.delay + self.random.random() * weather.jitter
                self.clock.after(delay, lambda: self._deliver(data, source, destination))

    def _deliver(self, data: bytes, source: Address, destination: Address) -> None:
        receive = self._attached.get(destination)
        if receive is not None and not {source, destination} & self.dead:
            receive(data, source)
