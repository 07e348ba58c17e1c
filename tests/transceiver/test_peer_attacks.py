"""Sessions under attack: by strangers on the client's address, and by clients."""

import asyncio
import logging
import random
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from typing import Any

import pytest

from tests.transceiver.agent import FakeAgent
from tests.transceiver.attacker import Attacker
from tests.transceiver.caller import eventually
from tests.transceiver.sdp.samples import AUDIO
from tests.transceiver.test_datachannels import chunk, packet
from tests.transceiver.test_dtls import record
from transceiver.dtls import Certificate, DtlsState
from transceiver.ice import IceTiming
from transceiver.media import rtcp
from transceiver.server import Transceiver, TransceiverConfig
from transceiver.session import Limits, State
from transceiver.srtp import MAX_SOURCES

SEED = 7


@pytest.fixture
def config(config: TransceiverConfig) -> TransceiverConfig:
    """Nobody is waited for for long."""
    return replace(
        config,
        limits=Limits(path=1.0, dtls=1.0, media=1.0),
        ice=IceTiming(consent_interval=0.2, consent_timeout=1.0),
    )


@pytest.fixture(autouse=True)
async def no_accidents(caplog: pytest.LogCaptureFixture) -> AsyncIterator[None]:
    """Whatever was sent, nothing was raised and nothing was logged as an error."""
    accidents: list[dict[str, Any]] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: accidents.append(context))
    yield
    assert accidents == []
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []


def received(client: Attacker) -> int:
    """Packets of audio that the server has taken."""
    told = client.session.to_json()["received"]
    assert isinstance(told, dict)
    return int(told["packets"])


def dropped(client: Attacker) -> int:
    told = client.session.to_json()["dropped"]
    assert isinstance(told, int)
    return told


async def is_well(client: Attacker) -> None:
    """The session is there, and its audio is heard."""
    before = received(client)
    await client.speak(5)
    await eventually(lambda: received(client) > before)
    assert client.session.state is State.CONNECTED


async def is_gone(transceiver: Transceiver, agent: FakeAgent) -> None:
    """Sessions and routes."""
    await eventually(lambda: len(transceiver.sessions) == 0)
    await eventually(lambda: not agent.routes)


@pytest.mark.parametrize("setup", ["actpass", "active", "passive"])
async def test_a_client_in_order_is_heard(transceiver: Transceiver, setup: str) -> None:
    async with Attacker(transceiver.sessions, setup=setup) as client:
        await client.connect()
        await is_well(client)


@pytest.mark.parametrize("setup", ["actpass", "active"])
async def test_a_certificate_that_was_not_announced_ends_the_session_at_once(
    transceiver: Transceiver, agent: FakeAgent, setup: str
) -> None:
    stranger = Attacker(transceiver.sessions, setup=setup, announced=Certificate.fresh())
    async with stranger as client:
        await client.check()
        client.greet()
        await is_gone(transceiver, agent)
        assert "certificate" in client.session.reason


async def test_media_before_the_keys_is_dropped(transceiver: Transceiver) -> None:
    async with Attacker(transceiver.sessions) as client:
        await client.check()
        for _ in range(50):
            client.send(client.audio() + bytes(16))
        await eventually(lambda: dropped(client) == 50)
        await client.secure()
        await is_well(client)


async def test_media_that_is_replayed_or_changed_is_dropped(transceiver: Transceiver) -> None:
    async with Attacker(transceiver.sessions) as client:
        await client.connect()
        await client.speak()
        await eventually(lambda: received(client) == 1)
        packet = client.srtp.protect(client.audio())
        changed = packet[:-1] + bytes((packet[-1] ^ 1,))
        for datagram in (changed, packet, packet, packet, changed):
            client.send(datagram)
        await eventually(lambda: dropped(client) == 4)
        assert received(client) == 2
        await is_well(client)


async def test_control_that_is_authentic_nonsense_does_nothing(transceiver: Transceiver) -> None:
    source = random.Random(SEED)
    async with Attacker(transceiver.sessions) as client:
        await client.connect()
        for _ in range(200):
            head = struct.pack(
                "!BBHI", source.randrange(256), source.randrange(192, 224), source.randrange(60), 7
            )
            client.send(client.srtp.protect_rtcp(head + source.randbytes(source.randrange(200))))
        await is_well(client)


async def test_reports_with_numbers_beyond_reason_do_nothing(transceiver: Transceiver) -> None:
    async with Attacker(transceiver.sessions) as client:
        await client.connect()
        ssrc = client.session._local.ssrc
        for number in (0, 1, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF):
            block = struct.pack("!IIIIII", ssrc, number, number, number, number, number)
            sender = struct.pack("!IQIII", 7, number << 32 | number, number, number, number)
            report = struct.pack("!BBH", 0x81, 200, 12) + sender + block
            client.send(client.srtp.protect_rtcp(report))
        client.send(client.srtp.protect_rtcp(rtcp.build([rtcp.Bye((7, ssrc))])))
        await is_well(client)


async def test_sources_and_payload_types_without_end_are_dropped(transceiver: Transceiver) -> None:
    async with Attacker(transceiver.sessions) as client:
        await client.connect()
        await client.speak()
        for ssrc in range(100, 100 + 10 * MAX_SOURCES):
            client.send(client.srtp.protect(client.audio(ssrc=ssrc)))
        await eventually(lambda: dropped(client) > 8 * MAX_SOURCES)
        for payload_type in range(128):
            if not 64 <= payload_type < 96 and payload_type != 111:
                client.send(client.srtp.protect(client.audio(payload_type=payload_type)))
        await is_well(client)


async def test_audio_that_is_no_opus_does_nothing(transceiver: Transceiver) -> None:
    source = random.Random(SEED)
    async with Attacker(transceiver.sessions) as client:
        await client.connect()
        for size in (*range(1, 40), 1275, 1276, 1340):
            payload = source.randbytes(size)
            client.send(client.srtp.protect(client.audio(payload=payload)))
        await is_well(client)


async def test_headers_that_lie_do_nothing(transceiver: Transceiver) -> None:
    async with Attacker(transceiver.sessions) as client:
        await client.connect()
        for first in range(0x80, 0xC0):
            lying = bytearray(client.audio())
            lying[0] = first
            protected = client.srtp.protect(bytes(client.audio()))
            client.send(bytes((first,)) + protected[1:])
            client.send(bytes(lying) + bytes(16))
        await is_well(client)


SIZES = (1, 2, 3, 11, 12, 13, 20, 1400, 1473, 2047, 2048, 2049, 9000, 65_000)


async def noise(client: Attacker) -> None:
    """All first bytes, all sizes."""
    source = random.Random(SEED)
    client.send(b"")
    for first in range(256):
        client.send(bytes((first,)) + source.randbytes(source.randrange(100)))
    for size in SIZES:
        for first in (0x00, 0x16, 0x17, 0x80):
            client.send(bytes((first,)) + source.randbytes(size - 1))
    for _ in range(100):
        kind = source.choice((20, 21, 22, 23, 24))
        body = source.randbytes(source.randrange(300))
        client.send(record(kind, body, epoch=source.randrange(3), sequence=source.randrange(99)))


async def test_noise_between_any_two_steps_keeps_nobody_from_anything(
    transceiver: Transceiver,
) -> None:
    async with Attacker(transceiver.sessions) as client:
        await noise(client)
        await client.check()
        await noise(client)
        await client.secure()
        await noise(client)
        await is_well(client)
        await noise(client)
        await is_well(client)


async def test_alerts_in_the_clear_end_nothing(transceiver: Transceiver) -> None:
    async with Attacker(transceiver.sessions) as client:
        await client.check()
        client.send(record(21, bytes((2, 40))))
        client.send(record(21, bytes((1, 0))))
        await client.secure()
        client.send(record(21, bytes((2, 40))))
        client.send(record(21, bytes((1, 0)), epoch=1))
        await is_well(client)


async def test_a_client_that_takes_offence_at_our_handshake_is_quoted(
    transceiver: Transceiver, agent: FakeAgent
) -> None:
    async with Attacker(transceiver.sessions) as client:
        await client.check()
        await eventually(lambda: bool(client.received))
        client.send(record(21, bytes((2, 42))))
        await is_gone(transceiver, agent)
        assert client.session.reason == "no DTLS handshake in time: somebody said bad_certificate"


async def test_a_client_that_is_server_may_be_greeted_late(transceiver: Transceiver) -> None:
    """It hears nothing until it has our answer."""
    async with Attacker(transceiver.sessions) as client:
        await client.check()
        await asyncio.sleep(0.2)
        await client.secure()
        await is_well(client)


async def test_strangers_are_not_heard(transceiver: Transceiver) -> None:
    """From another address, with what the client itself has sent."""
    async with Attacker(transceiver.sessions) as client, Attacker(transceiver.sessions) as other:
        await client.connect()
        await client.speak()
        packet = client.srtp.protect(client.audio())
        before = received(client)
        for _ in range(20):
            other.send(packet)
        await client.speak()
        await eventually(lambda: received(client) > before)
        assert received(client) == before + 1


async def test_a_goodbye_in_dtls_ends_the_session(
    transceiver: Transceiver, agent: FakeAgent
) -> None:
    async with Attacker(transceiver.sessions) as client:
        await client.connect()
        client.dtls.close()
        client._pump()
        await is_gone(transceiver, agent)
        assert client.session.reason == "client hung up"


SCTP = {
    "a parameter of no length": packet(0, chunk(1, bytes(16) + struct.pack("!HH", 1, 0))),
    "a chunk of no length": packet(0, chunk(1, size=0)),
    "an INIT cut short": packet(0, chunk(1, bytes(3))),
    "an INIT in company": packet(0, chunk(1, bytes(16)) + chunk(1, bytes(16))),
}


@pytest.mark.parametrize("data", SCTP.values(), ids=SCTP.keys())
async def test_sctp_that_would_stop_the_process_ends_the_session(
    transceiver: Transceiver, agent: FakeAgent, data: bytes
) -> None:
    async with Attacker(transceiver.sessions) as client:
        await client.connect()
        client.send_data(data)
        await is_gone(transceiver, agent)
        assert client.session.reason.startswith("SCTP failed: ")


async def test_data_that_is_no_sctp_does_nothing(transceiver: Transceiver) -> None:
    source = random.Random(SEED)
    async with Attacker(transceiver.sessions) as client:
        await client.connect()
        for size in (1, 4, 11, 12, 15):
            client.send_data(source.randbytes(size))
        await is_well(client)


async def test_a_session_without_data_channels_keeps_no_data(transceiver: Transceiver) -> None:
    async with Attacker(transceiver.sessions, sections=(AUDIO,)) as client:
        await client.connect()
        for _ in range(100):
            client.send_data(bytes(1000))
        await is_well(client)
        assert client.session._peer._dtls.take_data() == []


async def nothing(client: Attacker) -> None:
    """The offer, and no more."""


async def checks(client: Attacker) -> None:
    client.answers_checks = False
    await client.check()


async def path(client: Attacker) -> None:
    await client.check()


async def hello(client: Attacker) -> None:
    """Half of the handshake."""
    await client.check()
    await eventually(lambda: bool(client.received))
    client.dtls.start(0.0)
    client.dtls.receive(client.received[-1], 0.0)
    for datagram in client.dtls.take_datagrams():
        client.send(datagram)


async def keys(client: Attacker) -> None:
    await client.connect()


async def audio(client: Attacker) -> None:
    await client.connect()
    await client.speak(5)


@pytest.mark.parametrize("stage", [nothing, checks, path, hello, keys, audio])
@pytest.mark.parametrize("setup", ["actpass", "active"])
async def test_who_vanishes_leaves_nothing(
    transceiver: Transceiver,
    agent: FakeAgent,
    stage: Callable[[Attacker], Awaitable[None]],
    setup: str,
) -> None:
    tasks = len(asyncio.all_tasks())
    async with Attacker(transceiver.sessions, setup=setup) as client:
        if stage is hello and setup == "active":
            await client.check()
            client.greet()
        else:
            await stage(client)
        client.vanish()
        await is_gone(transceiver, agent)
        assert client.session.reason
    await eventually(lambda: len(asyncio.all_tasks()) <= tasks)
    assert transceiver.shared._channels == {}
    assert transceiver.shared.demultiplexer.transactions == {}


async def test_many_who_fail_leave_no_more_than_one(
    transceiver: Transceiver, agent: FakeAgent
) -> None:
    for _ in range(20):
        async with Attacker(transceiver.sessions, announced=Certificate.fresh()) as client:
            await client.check()
            client.greet()
            await eventually(lambda client=client: client.session.state is State.CLOSED)  # type: ignore[misc]
            assert client.dtls.state is not DtlsState.CONNECTED
    await is_gone(transceiver, agent)
    assert transceiver.shared._channels == {}
