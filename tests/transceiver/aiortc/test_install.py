"""Peer connections that a program makes by itself, with transceiver.aiortc installed."""

import asyncio
import struct
from collections.abc import AsyncIterator

import aiortc.rtcpeerconnection as patched
import aiortc.rtcsctptransport as sctp
import pytest
from aiortc import (
    RTCBundlePolicy,
    RTCConfiguration,
    RTCPeerConnection,
    RTCSessionDescription,
)
from google_crc32c import value as crc32c

from loader.errors import ShuntError
from loader.problems import Refused
from tests.transceiver.agent import FakeAgent
from tests.transceiver.caller import eventually
from transceiver import aiortc
from transceiver.aiortc import connection, installation
from transceiver.ice import IceTiming

DECODE = sctp.decode_params
GATHERER, CERTIFICATE = patched.RTCIceGatherer, patched.RTCCertificate  # type: ignore[attr-defined]


@pytest.fixture(autouse=True)
async def uninstalled_afterwards(agent: FakeAgent) -> AsyncIterator[None]:
    yield
    await aiortc.uninstall()


@pytest.fixture
async def installed(agent: FakeAgent) -> FakeAgent:
    """The agent, whose VIP is the socket itself."""
    aiortc.install(id="bot", udp="127.0.0.1:0", agent=agent.socket)
    return agent


class Pair:
    """A client that offers, and a peer connection that answers; a context. Both are aiortc's."""

    def __init__(self) -> None:
        quiet = RTCConfiguration(iceServers=[], bundlePolicy=RTCBundlePolicy.MAX_BUNDLE)
        self.client, self.server = RTCPeerConnection(quiet), RTCPeerConnection()
        self.client.addTransceiver("audio")  # first: aiortc bundles with what was first, or not
        self.channel = self.client.createDataChannel("test")
        self.messages: list[str | bytes] = []
        self.channel.on("message", self.messages.append)
        self.server.on("datachannel", lambda channel: channel.on("message", channel.send))

    async def __aenter__(self) -> "Pair":
        return self

    async def __aexit__(self, *_error: object) -> None:
        await self.client.close()
        await self.server.close()

    async def answer(self) -> str:
        """Have the server answer; the client does not know it yet."""
        await self.client.setLocalDescription()
        offer = self.client.localDescription
        await self.server.setRemoteDescription(offer)
        await self.server.setLocalDescription()
        return self.server.localDescription.sdp

    async def connect(self) -> "Pair":
        await self.client.setRemoteDescription(RTCSessionDescription(await self.answer(), "answer"))
        await eventually(lambda: self.channel.readyState == "open")
        return self

    def vanish(self) -> None:
        """The client is gone as a killed process is."""
        for transport in self.client._RTCPeerConnection__iceTransports:  # type: ignore[attr-defined]
            for protocol in transport._connection._plain._protocols:
                protocol.transport.sendto = lambda data, address: None

    @property
    def ufrag(self) -> str:
        [ufrag] = {
            line.removeprefix("a=ice-ufrag:")
            for line in self.server.localDescription.sdp.splitlines()
            if line.startswith("a=ice-ufrag:")
        }
        return ufrag


async def test_a_call_goes_through_the_shared_socket(installed: FakeAgent) -> None:
    async with Pair() as pair:
        await pair.connect()
        pair.channel.send("hello")
        await eventually(lambda: pair.messages == ["hello"])


async def test_the_vip_is_the_only_candidate_and_its_route_is_there(installed: FakeAgent) -> None:
    installed.vips = [("198.18.0.1", 3478), ("2001:db8:18::1", 3478)]
    async with Pair() as pair:
        answer = await pair.answer()
        lines = {line for line in answer.splitlines() if line.startswith("a=candidate:")}
        assert {tuple(line.split()[4:6]) for line in lines} == {
            ("198.18.0.1", "3478"),
            ("2001:db8:18::1", "3478"),
        }
        assert installed.routes == {pair.ufrag: "bot"}


async def test_the_route_goes_when_the_peer_connection_closes(installed: FakeAgent) -> None:
    async with Pair() as pair:
        await pair.connect()
        await pair.server.close()
        assert installed.routes == {}


async def test_all_answers_share_a_socket(installed: FakeAgent) -> None:
    async with Pair() as first, Pair() as second:
        assert candidates(await first.answer()) == candidates(await second.answer())
        assert len(installed.routes) == 2


def candidates(sdp: str) -> set[str]:
    return {line for line in sdp.splitlines() if line.startswith("a=candidate:")}


async def test_who_offers_is_left_alone(installed: FakeAgent) -> None:
    async with Pair() as pair:
        await pair.client.setLocalDescription()
        assert candidates(pair.client.localDescription.sdp)  # of this machine, by aioice
        assert not installed.transceivers
        assert not installed.routes


async def test_a_client_that_does_not_come_leaves_no_route(
    installed: FakeAgent, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "CONNECT_LIMIT", 0.2)
    async with Pair() as pair:
        await pair.answer()
        assert installed.routes
        await eventually(lambda: pair.server.iceConnectionState == "failed")
        await eventually(lambda: not installed.routes)


async def test_a_client_that_vanishes_leaves_no_route(
    agent: FakeAgent, monkeypatch: pytest.MonkeyPatch
) -> None:
    hurried = IceTiming(consent_interval=0.2, consent_timeout=0.8)
    monkeypatch.setattr(installation, "TIMING", hurried)
    aiortc.install(id="bot", udp="127.0.0.1:0", agent=agent.socket)
    async with Pair() as pair:
        await pair.connect()
        pair.vanish()
        await eventually(lambda: pair.server.connectionState == "closed", within=10)
        await eventually(lambda: not agent.routes)


async def test_another_aiortc_is_told(agent: FakeAgent, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(patched, "RTCIceGatherer")
    with pytest.raises(ShuntError, match="has no RTCIceGatherer"):
        aiortc.install(id="bot", udp="127.0.0.1:0", agent=agent.socket)


async def test_an_agent_that_is_away_is_told_at_the_answer(
    agent: FakeAgent, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(installation, "LEASE_LIMIT", 0.2)
    await agent.stop()
    aiortc.install(id="bot", udp="127.0.0.1:0", agent=agent.socket)
    async with Pair() as pair:
        with pytest.raises(ShuntError, match=f"no relay has taken.*{agent.socket}"):
            await pair.answer()
    await agent.start()
    monkeypatch.setattr(installation, "LEASE_LIMIT", 5.0)
    async with Pair() as pair:
        await pair.connect()


async def test_a_route_that_is_refused_is_told_at_the_answer(installed: FakeAgent) -> None:
    installed.refuse_routes = Refused("draining", "no more calls")
    async with Pair() as pair:
        with pytest.raises(ShuntError, match="no more calls"):
            await pair.answer()
    assert not installed.routes


async def test_a_port_in_use_is_told_at_the_answer(installed: FakeAgent) -> None:
    async with Pair() as pair:
        await pair.answer()
        [taken] = installed.transceivers.values()
        settings = installation._Settings(
            "other", ("127.0.0.1", int(str(taken["port"]))), "http://x", installed.socket, None,
            None, 1,
        )  # fmt: skip
        with pytest.raises(ShuntError, match="cannot be bound"):
            await installation.Installation(settings).transceiver()


async def test_uninstalling_leaves_aiortc_as_it_was(agent: FakeAgent) -> None:
    aiortc.install(id="bot", udp="127.0.0.1:0", agent=agent.socket)
    async with Pair() as pair:
        await pair.connect()
        await aiortc.uninstall()
        assert not agent.transceivers
        await eventually(lambda: pair.server.iceConnectionState == "failed")
    assert patched.RTCIceGatherer is GATHERER  # type: ignore[attr-defined]
    assert patched.RTCCertificate is CERTIFICATE  # type: ignore[attr-defined]
    assert sctp.decode_params is DECODE
    await aiortc.uninstall()


async def test_a_client_cannot_make_aiortcs_sctp_read_for_ever(installed: FakeAgent) -> None:
    """By a parameter of length 0, which aiortc 1.16 does not get past."""
    async with await Pair().connect() as pair:
        assert pair.client.sctp is not None
        endless = sctp.HeartbeatChunk()
        endless.params = [(1, b"")]
        chunk = bytes(endless)[:4] + struct.pack("!HH", 1, 0)
        tag = pair.client.sctp._remote_verification_tag
        head = struct.pack("!HHLL", 5000, 5000, tag, 0)
        checksum = struct.pack("<L", crc32c(head + chunk))
        await pair.client.sctp.transport._send_data(head[:8] + checksum + chunk)
        pair.channel.send("still there?")
        await eventually(lambda: pair.messages == ["still there?"])
    params = [(7, b"abc"), (8, b"")]
    assert sctp.decode_params(sctp.encode_params(params)) == params


async def test_installing_again_must_say_the_same(installed: FakeAgent) -> None:
    aiortc.install(id="bot", udp="127.0.0.1:0", agent=installed.socket)
    with pytest.raises(ShuntError, match="bot is installed"):
        aiortc.install(id="other", udp="127.0.0.1:0", agent=installed.socket)


@pytest.mark.parametrize("udp", ["10.0.0.7", "host:40000", "0.0.0.0:40000", "10.0.0.7:70000"])
def test_an_address_that_makes_no_sense(udp: str) -> None:
    with pytest.raises(ShuntError, match="udp"):
        aiortc.install(id="bot", udp=udp)


async def test_a_second_loop_has_no_socket_until_the_first_is_closed(agent: FakeAgent) -> None:
    aiortc.install(id="bot", udp="127.0.0.1:0", agent=agent.socket)

    async def once() -> str:
        async with Pair() as pair:
            return await pair.answer()

    async with Pair() as pair:
        await pair.answer()
        with pytest.raises(ShuntError, match="another event loop"):
            await asyncio.to_thread(asyncio.run, once())
    await aiortc.uninstall()

    aiortc.install(id="bot", udp="127.0.0.1:0", agent=agent.socket)
    assert candidates(await asyncio.to_thread(asyncio.run, once()))
    assert not agent.transceivers  # the loop that ended has given the lease back
    assert candidates(await asyncio.to_thread(asyncio.run, once()))
