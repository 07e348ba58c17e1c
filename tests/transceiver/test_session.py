"""Whole calls: a plain aiortc client, a transceiver on loopback, and every way to end."""

import asyncio
import contextlib
import gc
import json
import operator
import os
import re
import tracemalloc
import weakref
from collections.abc import AsyncIterator
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
from aiortc import RTCConfiguration, RTCPeerConnection, RTCSessionDescription
from aiortc.mediastreams import MediaStreamError, MediaStreamTrack
from aiortc.sdp import SessionDescription

from loader.errors import ShuntError
from loader.problems import Refused
from tests.transceiver.agent import FakeAgent
from tests.transceiver.caller import RATE, Caller, Samples, Speaker, eventually
from tests.transceiver.conftest import KEY
from tests.transceiver.prober import Prober
from tests.transceiver.sdp.samples import AUDIO, DATA, offer
from transceiver.backends import OPUS, PCM_24000, Backend, Conversation
from transceiver.ice import Credentials
from transceiver.sdp import offer as sdp_offer
from transceiver.sdp.offer import Offer, OfferError
from transceiver.server import Transceiver, TransceiverConfig
from transceiver.session import Limits, Session, State, UnavailableError, _bitrate
from transceiver.stun import Address
from transceiver.timeline import Moment

WINDOW = RATE // 50
OFFER = offer(AUDIO, DATA)


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
    await eventually(lambda: len(transceiver.sessions) == 0)


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
        assert await caller.delete() == 410


async def test_a_client_that_vanishes_is_noticed_by_its_consent(
    transceiver: Transceiver, agent: FakeAgent
) -> None:
    async with Caller(transceiver.http_url, KEY) as caller:
        await caller.connected()
        caller.vanish()
        await eventually(lambda: not agent.routes, within=4)


def only(transceiver: Transceiver) -> Session:
    """The session that is there."""
    (session,) = transceiver.sessions.all()
    return session


@pytest.fixture
def hurried(config: TransceiverConfig) -> TransceiverConfig:
    """Two states have a short limit, so that a test need not wait for it."""
    return replace(config, limits=Limits(path=0.3, dtls=0.5, media=0.5))


@contextlib.asynccontextmanager
async def started(config: TransceiverConfig) -> AsyncIterator[Transceiver]:
    async with Transceiver(config) as transceiver:
        await eventually(transceiver.registration.registered.is_set)
        yield transceiver


async def test_a_client_that_never_comes_is_given_up(
    hurried: TransceiverConfig, agent: FakeAgent
) -> None:
    agent.vips = [("127.0.0.1", 9)]
    async with started(hurried) as transceiver, Caller(transceiver.http_url, KEY):
        session = only(transceiver)
        assert len(agent.routes) == 1
        await eventually(lambda: not agent.routes, within=2)
        assert session.reason == "no path to the client in time"


async def test_a_client_that_stalls_in_dtls_is_given_up(
    hurried: TransceiverConfig, agent: FakeAgent, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def stall(transport: object, *rest: object) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr("aiortc.RTCDtlsTransport.start", stall)
    async with started(hurried) as transceiver, Caller(transceiver.http_url, KEY):
        session = only(transceiver)
        await eventually(lambda: session.state is State.SECURING)
        await eventually(lambda: session.state is State.CLOSED, within=2)
        assert session.reason == "no DTLS handshake in time"
        await eventually(lambda: not agent.routes)


async def test_a_client_that_says_nothing_at_all_is_given_up(
    hurried: TransceiverConfig, agent: FakeAgent, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def lose(transport: object, data: bytes) -> None:
        """Neither RTP nor RTCP goes out."""

    monkeypatch.setattr("aiortc.RTCDtlsTransport._send_rtp", lose)
    async with (
        started(hurried) as transceiver,
        Caller(transceiver.http_url, KEY, label=None) as caller,
    ):
        session = only(transceiver)
        await caller.connected()
        await eventually(lambda: session.state is State.CLOSED, within=3)
        assert session.reason == "neither audio nor data in time"


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
        session = only(transceiver)
        for _ in range(2):
            await nat.rebind()
            caller.heard.clear()
            await eventually(lambda: len(caller.heard) > 25)
        assert session.state is State.CONNECTED
    nat.close()


async def test_a_client_with_another_certificate_than_it_said_is_cut_off(
    transceiver: Transceiver, agent: FakeAgent, monkeypatch: pytest.MonkeyPatch
) -> None:
    parse = sdp_offer.parse

    def lie(text: str) -> Offer:
        return replace(parse(text), fingerprints=(("sha-256", bytes(32)),))

    monkeypatch.setattr(sdp_offer, "parse", lie)
    async with Caller(transceiver.http_url, KEY):
        session = only(transceiver)
        await eventually(lambda: len(agent.added) == 1 and not agent.routes, within=3)
    assert session.reason.startswith("DTLS failed")


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


async def test_the_codecs_of_a_call_that_ended_do_not_wait_for_the_garbage_collector(
    transceiver: Transceiver,
) -> None:
    """It does not count what libopus, libsrtp and OpenSSL hold, and would come too late."""
    gc.collect()
    gc.disable()
    try:
        async with Caller(transceiver.http_url, KEY, samples=speech(0.5)) as caller:
            await caller.connected()
            codecs = weakref.ref(only(transceiver)._peer.sender)
            await eventually(lambda: len(caller.heard) > 10)
            assert await caller.delete() == 200
            await eventually(lambda: len(transceiver.sessions) == 0)
            await eventually(lambda: codecs() is None)
    finally:
        gc.enable()


async def test_a_hundred_calls_leave_nothing_behind(transceiver: Transceiver) -> None:
    def descriptors() -> int:
        return len(os.listdir("/proc/self/fd"))

    async def call() -> None:
        async with Caller(transceiver.http_url, KEY, label=None) as caller:
            await caller.connected()
        await eventually(lambda: len(transceiver.sessions) == 0)

    for _ in range(3):
        await call()
    before = len(asyncio.all_tasks()), descriptors()
    for _ in range(100):
        await call()
    await eventually(lambda: len(asyncio.all_tasks()) <= before[0])
    assert descriptors() <= before[1]
    assert not transceiver.shared.demultiplexer.transactions
    assert not transceiver.shared.demultiplexer._bound
    assert not transceiver.shared._channels


# Clients that want less, and backends that want packets.


@pytest.mark.parametrize(
    ("wanted", "bitrate"),
    [("", 64000), (";maxaveragebitrate=20000", 20000), (";maxaveragebitrate=510000", 64000),
     (";maxaveragebitrate=1", 6000)],
)  # fmt: skip
def test_a_client_gets_no_more_bits_than_it_wants(wanted: str, bitrate: int) -> None:
    text = OFFER.replace("useinbandfec=1", f"useinbandfec=1{wanted}")
    assert _bitrate(sdp_offer.parse(text).audio) == bitrate


class Mirror:
    """Sends back Opus packets as they are, 200 ms late: so a busy machine leaves no gap."""

    audio = OPUS

    def start(self, conversation: Conversation) -> None:
        self.conversation = conversation
        self.waiting: list[bytes] | None = []

    def hear(self, pcm: bytes, at: int, concealed: bool) -> None:
        if not pcm:
            return
        if self.waiting is None:
            self.conversation.say_packet(pcm)
            return
        self.waiting.append(pcm)
        if len(self.waiting) == 10:
            for packet in self.waiting:
                self.conversation.say_packet(packet)
            self.waiting = None

    def channel_opened(self, label: str) -> None:
        pass

    def receive(self, label: str, message: str | bytes) -> None:
        self.conversation.send(message, label)

    async def close(self) -> None:
        pass


async def test_a_backend_that_wants_packets_gets_them_and_sends_them(
    transceiver: Transceiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transceiver.sessions, "_backend", Mirror)
    said = speech(2.0)
    async with Caller(transceiver.http_url, KEY, samples=said) as caller:
        await caller.connected()
        await eventually(lambda: len(caller.audio) > len(said) + RATE, within=10)
        correlation, _ = best_match(said, caller.audio)
    assert correlation >= 0.9  # by windows that are not the same ones


async def call(
    transceiver: Transceiver, peer: RTCPeerConnection
) -> tuple[Session, RTCSessionDescription]:
    await peer.setLocalDescription()
    session = await transceiver.sessions.open(peer.localDescription.sdp, dialect="test")
    answer = RTCSessionDescription(session.answer, "answer")
    await peer.setRemoteDescription(answer)
    return session, answer


async def test_a_client_may_want_data_alone(transceiver: Transceiver) -> None:
    peer = RTCPeerConnection(RTCConfiguration(iceServers=[]))
    channel = peer.createDataChannel("test")
    messages: list[str | bytes] = []
    channel.on("message", messages.append)
    try:
        session, answer = await call(transceiver, peer)
        assert "m=audio" not in answer.sdp
        await eventually(lambda: channel.readyState == "open")
        channel.send("hello")
        await eventually(lambda: messages == ["hello"])
        assert session.mids == ("0",)
    finally:
        await peer.close()
    await eventually(lambda: session.reason == "client hung up")


@pytest.mark.parametrize(
    ("direction", "answered", "speaks", "listens"),
    [("sendonly", "recvonly", True, False), ("recvonly", "sendonly", False, True)],
)
async def test_a_client_may_speak_alone_or_listen_alone(
    transceiver: Transceiver, direction: str, answered: str, speaks: bool, listens: bool
) -> None:
    peer = RTCPeerConnection(RTCConfiguration(iceServers=[]))
    track = Speaker(speech(5.0)) if speaks else "audio"
    peer.addTransceiver(track, direction=direction)
    heard: list[object] = []

    async def listen(track: MediaStreamTrack) -> None:
        with contextlib.suppress(MediaStreamError):
            while True:
                heard.append(await track.recv())

    tasks: list[asyncio.Task[None]] = []
    peer.on("track", lambda track: tasks.append(asyncio.create_task(listen(track))))
    try:
        session, answer = await call(transceiver, peer)
        assert f"a={answered}" in answer.sdp
        await eventually(lambda: session.state is State.CONNECTED)
        if speaks:
            await eventually(lambda: session.timeline.at(Moment.FIRST_AUDIO_IN) is not None)
        if listens:
            await eventually(lambda: len(heard) > 5)
        else:
            assert not heard
    finally:
        await peer.close()
        for task in tasks:
            await task
    await eventually(lambda: session.state is State.CLOSED)


# Restarts and renegotiation.


async def test_an_ice_restart_takes_media_to_the_new_generation_and_the_old_route_goes(
    transceiver: Transceiver, agent: FakeAgent
) -> None:
    async with Caller(transceiver.http_url, KEY) as caller:
        await caller.connected()
        session = only(transceiver)
        old, etag = session.ufrag, session.etag
        theirs = Credentials.fresh()
        ours = await session.restart_ice(theirs)
        assert session.etag != etag
        assert set(session.ufrags) == set(agent.routes) == {old, ours.ufrag}
        assert agent.restarts[ours.ufrag] == old

        async with Prober(transceiver.shared.address, theirs, ours) as prober:
            await eventually(lambda: len(prober.media) > 10)
            await eventually(lambda: set(agent.routes) == {ours.ufrag})
            assert session.ufrags == [ours.ufrag]
            assert session.state is State.CONNECTED


async def test_an_ice_restart_that_the_relay_refuses_changes_nothing(
    transceiver: Transceiver, agent: FakeAgent
) -> None:
    async with Caller(transceiver.http_url, KEY) as caller:
        await caller.connected()
        session = only(transceiver)
        before = session.etag, session.ufrags
        agent.refuse_routes = Refused("quota-exceeded", "no more routes")
        with pytest.raises(ShuntError, match="no more routes"):
            await session.restart_ice(Credentials.fresh())
        assert (session.etag, session.ufrags) == before
        caller.heard.clear()
        await eventually(lambda: len(caller.heard) > 10)


async def test_a_session_that_has_ended_restarts_no_more(
    transceiver: Transceiver, agent: FakeAgent
) -> None:
    async with Caller(transceiver.http_url, KEY) as caller:
        await caller.connected()
        session = only(transceiver)
        await session.end("test")
        with pytest.raises(UnavailableError):
            await session.restart_ice(Credentials.fresh())
        with pytest.raises(UnavailableError):
            await session.renegotiate(caller.offer)
    assert not agent.routes


async def test_a_client_may_stop_listening_and_begin_again(transceiver: Transceiver) -> None:
    async with Caller(transceiver.http_url, KEY) as caller:
        await caller.connected()
        session = only(transceiver)
        text = caller.offer
        await eventually(lambda: len(caller.heard) > 5)

        answer = await session.renegotiate(text.replace("a=sendrecv", "a=sendonly"))
        assert "a=recvonly" in answer
        assert answer.splitlines()[1].split()[2] == "2"  # the version goes up (RFC 3264 section 8)
        sent = session.to_json()["sent"]
        assert "a=sendrecv" in await session.renegotiate(text)
        heard = len(caller.heard)
        await eventually(lambda: len(caller.heard) > heard + 5)
        assert session.to_json()["sent"] != sent


async def test_new_credentials_in_an_offer_are_an_ice_restart(
    transceiver: Transceiver, agent: FakeAgent
) -> None:
    async with Caller(transceiver.http_url, KEY) as caller:
        await caller.connected()
        session = only(transceiver)
        old, fresh = session.ufrag, Credentials.fresh()
        text = re.sub(r"a=ice-ufrag:.*", f"a=ice-ufrag:{fresh.ufrag}\r", caller.offer)
        text = re.sub(r"a=ice-pwd:.*", f"a=ice-pwd:{fresh.password}\r", text)
        answer = await session.renegotiate(text)
        assert session.ufrag != old
        assert f"a=ice-ufrag:{session.ufrag}\r\n" in answer
        assert set(agent.routes) == {old, session.ufrag}


@pytest.mark.parametrize(
    ("pattern", "instead", "complaint"),
    [
        (r"(fingerprint:sha-256) ..", r"\1 00", "another certificate"),
        (r"m=application(.|\n)*", "", "cannot be"),
        (r"(SAVPF |rtpmap:|fmtp:)96", r"\g<1>98", "payload type"),
    ],
)
async def test_an_offer_that_would_be_another_session_is_refused(
    transceiver: Transceiver, pattern: str, instead: str, complaint: str
) -> None:
    async with Caller(transceiver.http_url, KEY) as caller:
        await caller.connected()
        session = only(transceiver)
        text = re.sub(pattern, instead, caller.offer)
        if "m=application" not in text:
            text = re.sub(r"(a=group:BUNDLE \S+).*", "\\1\r", text)
        with pytest.raises(OfferError, match=complaint):
            await session.renegotiate(text)
        assert session.state is State.CONNECTED


async def test_a_client_may_ask_us_to_be_the_server_of_dtls(
    transceiver: Transceiver, agent: FakeAgent, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = SessionDescription.__str__

    def active(description: SessionDescription) -> str:
        return write(description).replace("a=setup:actpass", "a=setup:active")

    monkeypatch.setattr(SessionDescription, "__str__", active)
    async with Caller(transceiver.http_url, KEY) as caller:
        await caller.connected()
        assert "a=setup:passive" in caller.answer
        assert caller.channel is not None
        caller.channel.send("hello")
        await eventually(lambda: caller.messages == ["hello"])
        await eventually(lambda: len(caller.heard) > 5)
        again = caller.offer.replace("a=setup:active", "a=setup:actpass")
        assert "a=setup:passive" in await only(transceiver).renegotiate(again)


async def test_an_end_that_comes_while_dtls_finishes_is_an_end(
    transceiver: Transceiver, agent: FakeAgent
) -> None:
    async with Caller(transceiver.http_url, KEY):
        session = only(transceiver)
        await eventually(lambda: session.state is State.SECURING)
        session.closed("test")
        session.secured()
        assert session.state is State.CLOSED
        await eventually(lambda: not agent.routes)
        assert session.timeline.at(Moment.DTLS) is None


# Many, and their ends.


async def test_a_thousand_abandoned_offers_leave_nothing(
    agent: FakeAgent, config: TransceiverConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory, tasks, descriptors and routes are back where they were."""
    monkeypatch.setattr("transceiver.sessions.REMEMBERED", 20)
    config = replace(config, capacity=100, limits=Limits(path=0.05, dtls=1, media=1))
    agent.vips = [("127.0.0.1", 9)]

    async def abandon(transceiver: Transceiver, offers: int) -> None:
        for _ in range(offers // 100):
            for _ in range(100):
                await transceiver.sessions.open(OFFER, dialect="test")
            await eventually(lambda: len(transceiver.sessions) == 0)

    def footprint() -> tuple[int, int]:
        gc.collect()
        return len(asyncio.all_tasks()), len(os.listdir("/proc/self/fd"))

    def hang_up_agent(transceiver: Transceiver) -> None:
        """Connections to it are kept, as many as were needed at once; both ends are here."""
        connections = transceiver.registration._client._local
        assert connections is not None
        connections.close()

    async with started(config) as transceiver:
        hang_up_agent(transceiver)
        idle = footprint()
        await abandon(transceiver, 300)  # what is remembered of the ended is then at its most
        hang_up_agent(transceiver)
        await eventually(lambda: footprint()[0] <= idle[0])
        before = footprint()
        agent.added.clear()
        agent.restarts.clear()
        tracemalloc.start()
        try:
            await abandon(transceiver, 1000)
            hang_up_agent(transceiver)
            await eventually(lambda: all(map(operator.le, footprint(), before)))
            growth, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert not agent.routes
        assert not transceiver.shared.demultiplexer._sessions
        assert not transceiver.shared._channels
        # What is remembered has been replaced, and is traced now; a session weighs 100 KB.
        assert growth < 1000 * 1000


async def test_a_loop_that_does_not_keep_pace_takes_no_more_calls(
    transceiver: Transceiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    metronome = transceiver.sessions._metronome
    monkeypatch.setattr(metronome, "is_behind", True)
    starved = await transceiver.sessions.open(OFFER, dialect="test")
    await starved.end("test")
    monkeypatch.setattr(metronome, "share", 0.9)
    with pytest.raises(UnavailableError, match="CPU") as refused:
        await transceiver.sessions.open(OFFER, dialect="test")
    assert refused.value.retry_after > 0
    assert transceiver.sessions.refused["busy"] == 1


async def test_a_drain_waits_for_the_calls_there_are_and_takes_no_more(
    transceiver: Transceiver,
) -> None:
    async with Caller(transceiver.http_url, KEY) as caller:
        await caller.connected()
        draining = asyncio.create_task(transceiver.sessions.drain(60.0))
        await asyncio.sleep(0)
        with pytest.raises(UnavailableError, match="draining"):
            await transceiver.sessions.open(OFFER, dialect="test")
        assert not draining.done()
        assert only(transceiver).state is State.CONNECTED
    async with asyncio.timeout(2):
        await draining


async def test_the_story_of_a_session_is_told_while_it_lives_and_after(
    transceiver: Transceiver,
) -> None:
    async with Caller(transceiver.http_url, KEY, samples=speech(1.0)) as caller:
        await caller.connected()
        session = only(transceiver)
        await eventually(lambda: session.timeline.at(Moment.FIRST_AUDIO_OUT) is not None)
        assert transceiver.sessions.by_state() == {
            "new": 0,
            "connecting": 0,
            "securing": 0,
            "connected": 1,
        }
        alive = transceiver.sessions.describe(session.ufrag)
        assert alive is not None
        assert alive["state"] == "connected"
    await eventually(lambda: len(transceiver.sessions) == 0)
    told = transceiver.sessions.describe(session.ufrag)
    assert told is not None
    assert json.loads(json.dumps(told)) == told
    assert told["reason"] == "client hung up"
    moments = [Moment(entry["what"]) for entry in told["timeline"]]  # type: ignore[attr-defined]
    assert moments[:3] == [Moment.OFFER, Moment.ROUTE, Moment.ANSWER]
    assert moments[-1] is Moment.END
    assert set(moments) == set(Moment) - {Moment.ROAM, Moment.RESTART}
    assert transceiver.sessions.has_ended(session.id)
    assert not transceiver.sessions.has_ended("rtc_x.x1")
    assert transceiver.sessions.find(session.id) is None


# Backends that misbehave.


class Faulty:
    """Fails where it is told to; hears nothing else."""

    audio = PCM_24000
    where = ""

    def _may_fail(self, where: str) -> None:
        if self.where == where:
            raise ZeroDivisionError(where)

    def start(self, conversation: Conversation) -> None:
        self._may_fail("start")
        conversation.say(bytes(960))
        conversation.on_drained = lambda: self._may_fail("drained")

    def hear(self, pcm: bytes, at: int, concealed: bool) -> None:
        self._may_fail("hear")

    def channel_opened(self, label: str) -> None:
        self._may_fail("channel_opened")

    def receive(self, label: str, message: str | bytes) -> None:
        self._may_fail("receive")

    async def close(self) -> None:
        self._may_fail("close")


@pytest.mark.parametrize("where", ["start", "drained", "hear", "channel_opened", "receive"])
async def test_a_backend_that_fails_ends_its_own_session_and_no_other(
    transceiver: Transceiver, monkeypatch: pytest.MonkeyPatch, agent: FakeAgent, where: str
) -> None:
    async with Caller(transceiver.http_url, KEY) as good:
        await good.connected()
        monkeypatch.setattr(transceiver.sessions, "_backend", Faulty)
        monkeypatch.setattr(Faulty, "where", where)
        async with Caller(transceiver.http_url, KEY) as bad:
            session = transceiver.sessions.all()[-1]
            if where == "receive":
                await bad.connected()
                assert bad.channel is not None
                bad.channel.send("trip")
            await eventually(lambda: session.state is State.CLOSED)
            assert session.reason == "the backend failed: ZeroDivisionError"
            await eventually(lambda: len(agent.routes) == 1)
        good.heard.clear()
        await eventually(lambda: len(good.heard) > 10)
        assert only(transceiver).state is State.CONNECTED


async def test_a_backend_that_cannot_close_or_be_made_leaves_nothing(
    transceiver: Transceiver, monkeypatch: pytest.MonkeyPatch, agent: FakeAgent
) -> None:
    monkeypatch.setattr(transceiver.sessions, "_backend", Faulty)
    monkeypatch.setattr(Faulty, "where", "close")
    async with Caller(transceiver.http_url, KEY) as caller:
        await caller.connected()
    await eventually(lambda: len(transceiver.sessions) == 0)
    assert not agent.routes

    def fails() -> Backend:
        raise ZeroDivisionError

    monkeypatch.setattr(transceiver.sessions, "_backend", fails)
    with pytest.raises(UnavailableError, match="backend"):
        await transceiver.sessions.open(OFFER, dialect="test")
    assert len(transceiver.sessions) == 0
