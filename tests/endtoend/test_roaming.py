"""A client that gets another address amid a call, through the relay: how much audio that costs."""

import select
import socket
import statistics
import time
import urllib.request
from collections.abc import Callable

import pytest

from tools.bench.calls.client import Call, State
from tools.bench.calls.speech import packets
from tools.labstate import Lab
from tools.netns import run_in
from transceiver.dtls import Certificate
from transceiver.media import rtp

FRAME = 0.02
MOST_LOST = 0.3  # s, from the client's first check on the new path
MOVES = 3
PATIENCE = 10.0


class Roamer:
    """A client that speaks all the time. `move` gives it another port, as a NAT does that rebinds:
    what still comes for the old one is lost, and counted."""

    def __init__(self, lab: Lab) -> None:
        certificate = Certificate.fresh()
        self.call = Call(certificate, source=("198.18.0.10", 9), packets=packets())
        self._old: list[socket.socket] = []
        self.lost = 0
        """Packets of the server's audio that went to addresses that the client had left."""
        url = f"{lab.transceivers[0].http}/v1/realtime/calls"
        headers = {"Content-Type": "application/sdp", "Authorization": f"Bearer {lab.api_key}"}
        request = urllib.request.Request(url, self.call.offer.encode(), headers)
        with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
            self.call.answered(answer.read().decode(), time.monotonic())
        self._socket = self._bound()
        self._speak_at = time.monotonic()

    def _bound(self) -> socket.socket:
        is_ipv6 = ":" in self.call.destination[0]
        made = socket.socket(socket.AF_INET6 if is_ipv6 else socket.AF_INET, socket.SOCK_DGRAM)
        made.setblocking(False)
        made.connect(self.call.destination)
        return made

    def move(self) -> None:
        """And check from there at once."""
        self._old.append(self._socket)
        self._socket = self._bound()
        for left in self._old:
            _read(left)  # what had come before
        self.call.check(time.monotonic())
        self._flush()

    def run(self, seconds: float, until: Callable[[], bool] = lambda: False) -> None:
        """Speak and listen for so long, or until something is so."""
        end = time.monotonic() + seconds
        while (now := time.monotonic()) < end and not until():
            self.call.poll(now)
            if now >= self._speak_at:
                self._speak_at = max(self._speak_at + FRAME, now)
                if self.call.state is State.CONNECTED:
                    self._socket.send(self.call.speak())
            self._flush()
            ready, _, _ = select.select([self._socket, *self._old], [], [], 0.002)
            for each in ready:
                for data in _read(each):
                    if each is self._socket:
                        self.call.receive(data, time.monotonic())
                    elif data[0] >= 128 and not rtp.is_rtcp(data):
                        self.lost += 1

    def _flush(self) -> None:
        outgoing, self.call.outgoing = self.call.outgoing, []
        for data in outgoing:
            self._socket.send(data)

    def close(self) -> None:
        self.call.hang_up()
        for data in self.call.farewell:
            self._socket.send(data)
        for each in (self._socket, *self._old):
            each.close()


def _read(bound: socket.socket) -> list[bytes]:
    """All that has come."""
    got = []
    try:
        while True:
            got.append(bound.recv(2048))
    except BlockingIOError:
        return got


@pytest.mark.parametrize("nominates", [True, False], ids=["nominating", "silent"])
def test_a_client_that_moves_loses_300_ms_of_audio_at_most(lab: Lab, nominates: bool) -> None:
    """Counted from its first check on the new path; what it loses before, nobody could save."""
    costs, heard = run_in(lab.client_namespace, lambda: roam(lab, nominates))

    assert statistics.median(costs) * FRAME <= MOST_LOST, costs
    assert min(heard) > 25, "audio comes to the new address"


def roam(lab: Lab, nominates: bool) -> tuple[list[int], list[int]]:
    """Packets that each move cost, and that came in the second that followed."""
    roamer = Roamer(lab)
    try:
        roamer.run(PATIENCE, until=lambda: roamer.call.heard > 50)
        assert roamer.call.state is State.CONNECTED
        roamer.call.nominates = nominates
        costs, heard = [], []
        for _ in range(MOVES):
            roamer.lost = 0
            roamer.move()
            roamer.run(0.5)
            before = roamer.call.heard
            roamer.run(1.0)
            costs.append(roamer.lost)
            heard.append(roamer.call.heard - before)
        return costs, heard
    finally:
        roamer.close()
