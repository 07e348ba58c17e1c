"""Whole calls: a plain aiortc client, a transceiver on loopback, and every way to end."""

import asyncio
import contextlib
import os
import re
import threading
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest

from loader.problems import Refused
from tests.transceiver.agent import FakeAgent
from tests.transceiver.caller import RATE, Caller, Samples, eventually
from tests.transceiver.conftest import KEY
from transceiver.offer import Offer, parse
from transceiver.server import Transceiver
from transceiver.session import State
from transceiver.stun import Address

WINDOW = RATE // 50


def speech(seconds: float) -> Samples:
    """A tone in syllables of uneven strength: its envelope matches only itself."""
    random = np.random.default_rng(1)
    time = np.arange(int(seconds * RATE)) / RATE
    strengths = random.random(int(seconds / 0.11) + 1)
    envelope = np.interp(time, np.arange(len(strengths)) * 0.11, strengths)
    tone = np.sin(2 * np.pi * 220 * time) + 0.5 * np.sin(2 * np.pi * 660 * time)
    return (tone * envelope**2 * 9000).astype(np.int16)


def envelope(samples: Samples) -> npt.NDArray[np.float64]:
    """Root mean square over 20 ms."""
    whole = len(samples) // WINDOW * WINDOW
    blocks = samples[:whole].reshape(-1, WINDOW).astype(np.float64)
    return np.asarray(np.sqrt((blocks**2).mean(axis=1)))


def best_match(said: Samples, heard: Samples) -> tuple[float, int]:
    """The best correlation of the envelopes over all delays, and that delay in 20 ms windows."""
    a, b = envelope(said), envelope(heard)
    scores = [
        float(np.corrcoef(a, b[delay : delay + len(a)])[0, 1])
        for delay in range(len(b) - len(a) + 1)
        if b[delay : delay + len(a)].std() > 0
    ]
    return max(scores), int(np.argmax(scores))


async def test_audio_comes_back_as_it_was_said(transceiver: Transceiver) -> None:
    said = speech(4.0)
    async with Caller(transceiver.http_url, KEY, samples=said) as caller:
        await caller.connected()
        await eventually(lambda: len(caller.audio) > len(said) + RATE, within=15)
        half = len(said) // 2
        correlation, _ = best_match(said, caller.audio)
        _, early = best_match(said[:half], caller.audio)
        _, late = best_match(said[half:], caller.audio)
    assert correlation >= 0.95
    assert abs(late - early - half // WINDOW) <= 1, "the delay changed during the call"


async def test_messages_of_both_kinds_come_back(transceiver: Transceiver) -> None:
    async with Caller(transceiver.http_url, KEY) as caller:
        await caller.connected()
        assert caller.channel is not None
        for message in ("text", b"\x00bytes", "", b""):
            caller.channel.send(message)
        await eventually(lambda: len(caller.messages) == 4)
        assert caller.messages == ["text", b"\x00bytes", "", b""]


async def test_no_packet_of_a_long_message_is_longer_than_every_path_takes(
    transceiver: Transceiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """1280 bytes (RFC 8200 section 5), with the headers of UDP and IPv6."""
    sizes: list[int] = []
    send = transceiver.shared.send

    def measured(data: bytes, destination: Address) -> None:
        sizes.append(len(data))
        send(data, destination)

    monkeypatch.setattr(transceiver.shared, "send", measured)
    async with Caller(transceiver.http_url, KEY) as caller:
        await caller.connected()
        assert caller.channel is not None
        caller.channel.send(bytes(20_000))
        await eventually(lambda: bool(caller.messages))
    assert 1200 < max(sizes) + 48 <= 1280


@pytest.mark.parametrize("label", ["oai-events", "chat"])
async def test_channels_with_a_protocol_of_their_own_are_not_echoed(
    transceiver: Transceiver, label: str
) -> None:
    async with Caller(transceiver.http_url, KEY, label=label) as caller:
        await caller.connected()
        assert caller.channel is not None
        echoed = caller.peer.createDataChannel("other")
        answers: list[str] = []
        echoed.on("message", answers.append)
        await eventually(lambda: echoed.readyState == "open")
        caller.channel.send("not for you")
        echoed.send("for you")
        await eventually(lambda: bool(answers))
        assert caller.messages == []


async def test_the_answer_offers_the_vips_and_nothing_else(
    transceiver: Transceiver, agent: FakeAgent
) -> None:
    agent.vips = [("198.18.0.1", 3478), ("198.18.0.2", 443)]
    await transceiver.registration._renew()
    async with Caller(transceiver.http_url, KEY) as caller:
        candidates = re.findall(r"a=candidate:\S+ 1 udp \d+ (\S+) (\d+) typ host", caller.answer)
        sections = caller.answer.count("m=")
        assert candidates == [("198.18.0.1", "3478"), ("198.18.0.2", "443")] * sections
        assert caller.answer.count("a=candidate") == len(candidates)
        assert caller.answer.count("a=end-of-candidates") == sections
        assert caller.answer.count("c=IN IP4 198.18.0.1") == sections
        ufrags = re.findall(r"a=ice-ufrag:([A-Za-z0-9+/]{16})\r", caller.answer)
        assert len(ufrags) == sections
        assert len(set(ufrags)) == 1
        assert ufrags[0] in agent.routes


async def test_vips_of_both_families_are_offered_by_turns_ipv6_first(
    transceiver: Transceiver, agent: FakeAgent
) -> None:
    """RFC 8421 section 4."""
    agent.vips = [
        *(("198.18.0.1", 3478), ("198.18.0.2", 443)),
        *(("2001:db8:18::1", 3478), ("2001:db8:18::2", 443), ("2001:db8:18::3", 80)),
    ]
    await transceiver.registration._renew()
    async with Caller(transceiver.http_url, KEY) as caller:
        first = caller.answer.partition("a=end-of-candidates")[0]
        found = re.findall(r"a=candidate:(\S+) 1 udp (\d+) (\S+) (\d+) typ host", first)
    by_priority = sorted(found, key=lambda candidate: -int(candidate[1]))
    assert [(host, int(port)) for _, _, host, port in by_priority] == [
        ("2001:db8:18::1", 3478),
        ("198.18.0.1", 3478),
        ("2001:db8:18::2", 443),
        ("198.18.0.2", 443),
        ("2001:db8:18::3", 80),
    ]
    assert len({foundation for foundation, *_ in found}) == len(found)
    assert len({priority for _, priority, *_ in found}) == len(found)


async def test_all_sessions_present_the_same_certificate(transceiver: Transceiver) -> None:
    async with (
        Caller(transceiver.http_url, KEY) as one,
        Caller(transceiver.http_url, KEY) as other,
    ):
        fingerprint = r"a=fingerprint:sha-256 (\S+)"
        assert re.findall(fingerprint, one.answer) == re.findall(fingerprint, other.answer)


async def test_a_hang_up_by_the_client_ends_the_session_at_once(
    transceiver: Transceiver, agent: FakeAgent
) -> None:
    async with Caller(transceiver.http_url, KEY) as caller:
        await caller.connected()
        assert len(agent.routes) == 1
    await eventually(lambda: not agent.routes, within=1)
    assert len(transceiver.sessions) == 0


async def test_an_sctp_abort_by_the_client_ends_the_session_at_once(
    transceiver: Transceiver, agent: FakeAgent
) -> None:
    async with Caller(transceiver.http_url, KEY) as caller:
        await caller.connected()
        assert caller.peer.sctp is not None
        await caller.peer.sctp._abort()
        await eventually(lambda: not agent.routes, within=1)


async def test_a_channel_that_closes_alone_ends_nothing(transceiver: Transceiver) -> None:
    async with Caller(transceiver.http_url, KEY) as caller:
        await caller.connected()
        assert caller.channel is not None
        caller.channel.close()
        second = caller.peer.createDataChannel("second")
        second.on("message", caller.messages.append)
        await eventually(lambda: second.readyState == "open")
        second.send("still there")
        await eventually(lambda: caller.messages == ["still there"])


async def test_a_delete_ends_the_session_and_the_client_sees_it(
    transceiver: Transceiver, agent: FakeAgent
) -> None:
    async with Caller(transceiver.http_url, KEY) as caller:
        await caller.connected()
        assert await caller.delete() == 200
        assert not agent.routes
        await eventually(lambda: caller.peer.connectionState == "closed")
        assert await caller.delete() == 404


async def test_a_client_that_vanishes_is_noticed_by_its_consent(
    transceiver: Transceiver, agent: FakeAgent
) -> None:
    async with Caller(transceiver.http_url, KEY) as caller:
        await caller.connected()
        caller.vanish()
        await eventually(lambda: not agent.routes, within=4)


async def test_a_client_that_never_comes_is_given_up(
    transceiver: Transceiver, agent: FakeAgent, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transceiver.sessions, "_setup_deadline", 0.3)
    agent.vips = [("127.0.0.1", 9)]
    await transceiver.registration._renew()
    async with Caller(transceiver.http_url, KEY):
        assert len(agent.routes) == 1
        await eventually(lambda: not agent.routes, within=2)


async def test_a_client_that_stalls_in_dtls_is_given_up(
    transceiver: Transceiver, agent: FakeAgent, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def stall(transport: object) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(transceiver.sessions, "_setup_deadline", 0.5)
    monkeypatch.setattr("aiortc.RTCDtlsTransport._do_handshake", stall)
    async with Caller(transceiver.http_url, KEY):
        (session,) = transceiver.sessions._sessions.values()
        await eventually(lambda: session._link.channel is not None)
        await eventually(lambda: session.state is State.CLOSED, within=2)
        await eventually(lambda: not agent.routes)


class Nat(asyncio.DatagramProtocol):
    """A NAT with one client, between it and *server*, which can forget its mapping."""

    def __init__(self, server: tuple[str, int]) -> None:
        self.server = server
        self.inside: asyncio.DatagramTransport | None = None
        self.outside: asyncio.DatagramTransport | None = None
        self.client: tuple[str, int] | None = None

    @classmethod
    async def open(cls, server: tuple[str, int]) -> "Nat":
        loop = asyncio.get_running_loop()
        self = cls(server)
        self.inside, _ = await loop.create_datagram_endpoint(
            lambda: self, local_addr=("127.0.0.1", 0)
        )
        await self.rebind()
        return self

    async def rebind(self) -> None:
        """Take a new port outside; the old one answers nothing any more."""
        if self.outside is not None:
            self.outside.close()
        loop = asyncio.get_running_loop()
        self.outside, _ = await loop.create_datagram_endpoint(
            lambda: _Outside(self), local_addr=("127.0.0.1", 0)
        )

    def close(self) -> None:
        for transport in (self.inside, self.outside):
            assert transport is not None
            transport.close()

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        assert self.outside is not None
        self.client = addr
        self.outside.sendto(data, self.server)


class _Outside(asyncio.DatagramProtocol):
    def __init__(self, nat: Nat) -> None:
        self.nat = nat

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        assert self.nat.inside is not None
        self.nat.inside.sendto(data, self.nat.client)


async def test_a_client_whose_nat_rebinds_goes_on_talking(
    transceiver: Transceiver, agent: FakeAgent, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aioice.ice.CONSENT_INTERVAL", 0.4)
    nat = await Nat.open(transceiver.shared.address)
    assert nat.inside is not None
    agent.vips = [nat.inside.get_extra_info("sockname")]
    await transceiver.registration._renew()
    async with Caller(transceiver.http_url, KEY) as caller:
        await caller.connected()
        (session,) = transceiver.sessions._sessions.values()
        for _ in range(2):
            await nat.rebind()
            caller.heard.clear()
            await eventually(lambda: len(caller.heard) > 25)
        assert session.state is State.CONNECTED
    nat.close()


async def test_a_client_with_another_certificate_than_it_said_is_cut_off(
    transceiver: Transceiver, agent: FakeAgent, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lie(text: str) -> Offer:
        return replace(parse(text), sdp=re.sub(r"(sha-\d+) ..:", r"\1 00:", parse(text).sdp))

    monkeypatch.setattr("transceiver.session.parse_offer", lie)
    async with Caller(transceiver.http_url, KEY):
        await eventually(lambda: len(agent.added) == 1 and not agent.routes, within=3)


async def test_stopping_says_goodbye_to_clients_and_leaves_the_agent(
    transceiver: Transceiver, agent: FakeAgent
) -> None:
    async with Caller(transceiver.http_url, KEY) as caller:
        await caller.connected()
        await transceiver.__aexit__()
        await eventually(lambda: caller.peer.connectionState == "closed", within=2)
    assert not agent.routes
    assert not agent.transceivers


async def test_a_refused_route_leaves_nothing(transceiver: Transceiver, agent: FakeAgent) -> None:
    agent.refuse_routes = Refused("quota-exceeded", "no more routes")
    caller = Caller(transceiver.http_url, KEY)
    with pytest.raises(AssertionError, match="no more routes"):
        await caller.__aenter__()
    await caller.peer.close()
    assert len(transceiver.sessions) == 0
    assert not transceiver.shared.demultiplexer._sessions


async def test_a_full_house_refuses_and_has_room_again_later(transceiver: Transceiver) -> None:
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(transceiver.config.capacity):
            await stack.enter_async_context(Caller(transceiver.http_url, KEY))
        late = Caller(transceiver.http_url, KEY)
        with pytest.raises(AssertionError, match="all 4 sessions are taken"):
            await late.__aenter__()
        await late.peer.close()
    await eventually(lambda: len(transceiver.sessions) == 0)
    async with Caller(transceiver.http_url, KEY) as again:
        await again.connected()


async def test_a_route_that_could_not_be_removed_goes_when_the_agent_is_back(
    transceiver: Transceiver, agent: FakeAgent
) -> None:
    async with Caller(transceiver.http_url, KEY) as caller:
        await caller.connected()
        await agent.stop()
    await eventually(lambda: len(transceiver.sessions) == 0)
    await agent.start()
    assert len(agent.routes) == 1
    await transceiver.registration._renew()
    assert not agent.routes


async def test_a_hundred_calls_leave_nothing_behind(transceiver: Transceiver) -> None:
    def descriptors() -> int:
        return len(os.listdir("/proc/self/fd"))

    def decoders() -> int:
        return sum(thread.name == "audio-decoder" for thread in threading.enumerate())

    async def call() -> None:
        async with Caller(transceiver.http_url, KEY, label=None) as caller:
            await caller.connected()
        await eventually(lambda: len(transceiver.sessions) == 0)

    for _ in range(3):
        await call()
    before = len(asyncio.all_tasks()), descriptors(), decoders()
    for _ in range(100):
        await call()
    await eventually(lambda: len(asyncio.all_tasks()) <= before[0])
    assert descriptors() <= before[1]
    assert decoders() <= before[2]
    assert not transceiver.shared.demultiplexer.transactions
    assert not transceiver.shared.demultiplexer._bound
    assert not transceiver.shared._channels
