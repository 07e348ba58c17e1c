"""The shared socket on loopback: what comes reaches its session at once, what fails is counted."""

import asyncio
import contextlib
import errno
import socket
from collections.abc import AsyncIterator, Iterator

import aioice
import pytest

from tests.transceiver.caller import eventually
from tests.transceiver.nat import Nat
from transceiver import stun
from transceiver.ice import (
    Authenticated,
    ConsentLost,
    Credentials,
    Event,
    IceTiming,
    Restarted,
    Selected,
    Validated,
)
from transceiver.shared_socket import MAX_BATCH, QUEUE_LIMIT, Channel, SharedSocket, _plain
from transceiver.stun import Address, Class, Message

THEIRS = Credentials("client", "t" * 22)
MEDIA = b"\x80" + bytes(20)
TIMEOUT = 5.0


class FaultySocket(socket.socket):
    """Raises *fault*, if there is one, instead of sending or receiving."""

    fault: OSError | None = None

    def sendto(self, *arguments: object) -> int:
        if self.fault is not None:
            raise self.fault
        return super().sendto(*arguments)  # type: ignore[call-overload, no-any-return]

    def recvfrom(self, *arguments: object) -> tuple[bytes, object]:
        fault, self.fault = self.fault, None
        if fault is not None:
            raise fault
        return super().recvfrom(*arguments)  # type: ignore[arg-type]


class Client:
    """A controlling client on a blocking socket of its own."""

    def __init__(self, server: Address) -> None:
        self.server = server
        family = socket.AF_INET6 if ":" in self.server[0] else socket.AF_INET
        self.socket = socket.socket(family, socket.SOCK_DGRAM)
        self.socket.bind((self.server[0], 0))
        self.socket.setblocking(False)
        self.address = self.socket.getsockname()[:2]

    def ask(self, channel: Channel) -> None:
        local = channel.ice.local
        data = stun.binding_request(
            bytes(12),
            username=f"{local.ufrag}:{THEIRS.ufrag}",
            password=local.password,
            priority=1,
            controlling=1,
            use_candidate=True,
        )
        self.send(data)

    def send(self, data: bytes) -> None:
        self.socket.sendto(data, self.server)

    async def receive(self) -> bytes:
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(TIMEOUT):
            return await loop.sock_recv(self.socket, 2048)

    async def connect(self, channel: Channel) -> None:
        """Nominate, and answer the check that comes back."""
        self.ask(channel)
        for _ in range(2):
            message: Message = stun.parse(await self.receive())
            if message.cls is Class.REQUEST:
                self.send(
                    stun.binding_success(
                        message.transaction, mapped=self.server, password=THEIRS.password
                    )
                )
            else:
                assert message.mapped == self.address
        async with asyncio.timeout(TIMEOUT):
            await channel.wait_selected()


@pytest.fixture
async def shared() -> AsyncIterator[SharedSocket]:
    bound = FaultySocket(socket.AF_INET, socket.SOCK_DGRAM)
    bound.bind(("127.0.0.1", 0))
    shared = SharedSocket(bound, IceTiming())
    yield shared
    shared.close()


@pytest.fixture
async def channel(shared: SharedSocket) -> Channel:
    channel = shared.channel(Credentials.fresh())
    channel.set_remote(THEIRS)
    channel.open()
    return channel


@pytest.fixture
def client(shared: SharedSocket) -> Iterator[Client]:
    client = Client(shared.address)
    yield client
    client.socket.close()


async def test_datagrams_are_handed_on_as_they_come(channel: Channel, client: Client) -> None:
    loop = asyncio.get_running_loop()
    got: list[tuple[bytes, float]] = []
    channel.on_datagram = lambda data, now: got.append((data, now))
    await client.connect(channel)
    before = loop.time()
    client.send(MEDIA)
    await eventually(lambda: bool(got))
    ((data, now),) = got
    assert data == MEDIA
    assert before <= now <= loop.time()


async def test_without_a_callback_they_wait_to_be_received(
    channel: Channel, client: Client
) -> None:
    await client.connect(channel)
    client.send(MEDIA)
    async with asyncio.timeout(TIMEOUT):
        assert await channel.receive() == MEDIA


async def test_media_goes_out_to_the_selected_address(channel: Channel, client: Client) -> None:
    await client.connect(channel)
    assert channel.selected == client.address
    channel.send(MEDIA)
    assert await client.receive() == MEDIA


async def test_events_are_told_in_order(channel: Channel, client: Client) -> None:
    events: list[Event] = []
    channel.on_event = events.append
    await client.connect(channel)
    assert events == [
        Authenticated(client.address),
        Validated(client.address),
        Selected(client.address),
    ]


async def test_a_session_that_does_not_keep_up_loses_packets_not_memory(
    shared: SharedSocket, channel: Channel
) -> None:
    for _ in range(QUEUE_LIMIT + 10):
        channel.deliver(MEDIA, 0.0)
    assert len(channel._queue) == QUEUE_LIMIT
    assert shared.dropped["queue_full"] == 10


async def test_one_turn_of_the_loop_reads_no_more_than_a_batch(
    channel: Channel, client: Client
) -> None:
    turns: list[int] = []
    loop = asyncio.get_running_loop()
    turn = 0

    def count() -> None:
        nonlocal turn
        turn += 1
        if len(turns) < 5 * MAX_BATCH:
            loop.call_soon(count)

    await client.connect(channel)
    channel.on_datagram = lambda data, now: turns.append(turn)
    for _ in range(5 * MAX_BATCH):
        client.send(MEDIA)
    count()
    await eventually(lambda: len(turns) == 5 * MAX_BATCH)
    longest = max(turns.count(turn) for turn in set(turns))
    assert longest == MAX_BATCH


async def test_a_busy_socket_is_looked_at_until_it_is_quiet_again_and_nothing_is_lost(
    shared: SharedSocket, channel: Channel, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("transceiver.shared_socket.HASTE", 3)
    monkeypatch.setattr("transceiver.shared_socket.LOOK", 0.02)  # also on a busy machine
    heard: list[bytes] = []
    looked: list[bool] = []
    await client.connect(channel)
    channel.on_datagram = lambda data, now: heard.append(data)
    sent = 0
    while not looked or sent < 300:
        client.send(b"\x80" + sent.to_bytes(4))
        sent += 1
        await asyncio.sleep(0)
        if shared._looking is not None:
            looked.append(True)
    await eventually(lambda: len(heard) == sent)
    assert heard == [b"\x80" + number.to_bytes(4) for number in range(sent)]

    await eventually(lambda: shared._looking is None)
    client.send(MEDIA)
    await eventually(lambda: heard[-1] == MEDIA)


async def test_closing_a_busy_socket_ends_the_looking(
    shared: SharedSocket, channel: Channel, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("transceiver.shared_socket.HASTE", 1)
    monkeypatch.setattr("transceiver.shared_socket.LOOK", 0.05)
    await client.connect(channel)
    channel.on_datagram = lambda data, now: None
    while shared._looking is None:
        client.send(MEDIA)
        await asyncio.sleep(0)
    shared.close()
    assert shared._looking.cancelled()


async def test_a_callback_may_close_the_socket(
    shared: SharedSocket, channel: Channel, client: Client
) -> None:
    await client.connect(channel)
    shared._batch = MAX_BATCH
    channel.on_datagram = lambda data, now: shared.close()
    client.send(MEDIA)
    client.send(MEDIA)
    await channel.wait_closed()
    with pytest.raises(ConnectionError):
        channel.send(MEDIA)


async def test_a_restart_goes_by_both_ufrags_until_it_is_done(
    shared: SharedSocket, channel: Channel, client: Client
) -> None:
    events: list[Event] = []
    await client.connect(channel)
    old = channel.ice.local
    channel.restart(Credentials.fresh(), THEIRS)
    channel.on_event = events.append
    assert set(shared.demultiplexer._sessions) == {old.ufrag, channel.ice.local.ufrag}
    await client.connect(channel)
    await eventually(lambda: Restarted(old.ufrag) in events)
    assert set(shared.demultiplexer._sessions) == {channel.ice.local.ufrag}
    channel.send(MEDIA)
    assert await client.receive() == MEDIA


async def test_a_restart_of_a_closed_channel_is_refused(channel: Channel) -> None:
    channel.close()
    with pytest.raises(ConnectionError):
        channel.restart(Credentials.fresh(), THEIRS)


async def test_consent_that_ends_closes_the_channel_and_is_told(client: Client) -> None:
    shared = await SharedSocket.open(
        ("127.0.0.1", 0), IceTiming(consent_interval=0.05, consent_timeout=0.2)
    )
    channel = shared.channel(Credentials.fresh())
    channel.set_remote(THEIRS)
    channel.open()
    client.server = shared.address
    await client.connect(channel)
    events: list[Event] = []
    channel.on_event = events.append
    async with asyncio.timeout(TIMEOUT):
        await channel.wait_closed()
    assert events == [ConsentLost()]
    assert not shared.demultiplexer._bound
    shared.close()


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (BlockingIOError(errno.EAGAIN, "full"), "send_full"),
        (OSError(errno.ENETUNREACH, "unreachable"), "send_error"),
        (ConnectionRefusedError(errno.ECONNREFUSED, "refused"), "send_error"),
    ],
)
async def test_what_cannot_be_sent_is_counted(
    shared: SharedSocket, channel: Channel, client: Client, fault: OSError, reason: str
) -> None:
    await client.connect(channel)
    shared._socket.fault = fault  # type: ignore[attr-defined]
    channel.send(MEDIA)
    assert shared.dropped[reason] == 1


async def test_an_error_in_place_of_a_datagram_is_counted_and_reading_goes_on(
    shared: SharedSocket, channel: Channel, client: Client
) -> None:
    await client.connect(channel)
    shared._socket.fault = ConnectionRefusedError()  # type: ignore[attr-defined]
    client.send(MEDIA)
    async with asyncio.timeout(TIMEOUT):
        await channel.receive()
    assert shared.dropped["receive_error"] == 1


async def test_an_address_that_cannot_be_bound_is_told(shared: SharedSocket) -> None:
    with pytest.raises(OSError, match="in use"):
        await SharedSocket.open(shared.address)


OPTIONS = {"IP_MTU_DISCOVER": (0, 10), "IPV6_MTU_DISCOVER": (41, 23)}


@pytest.mark.parametrize(
    ("host", "names"),
    [("127.0.0.1", ["IP_MTU_DISCOVER"]), ("::1", list(OPTIONS)), ("::", list(OPTIONS))],
)
async def test_a_path_mtu_that_one_client_reports_cuts_nobodys_packets(
    host: str, names: list[str]
) -> None:
    """3 is PMTUDISC_PROBE: ip(7), ipv6(7)."""
    shared = await SharedSocket.open((host, 0))
    assert shared.address[0] == host
    assert [shared._socket.getsockopt(*OPTIONS[name]) for name in names] == [3] * len(names)
    shared.close()


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
async def test_a_socket_bound_to_any_address_of_either_family_takes_both(host: str) -> None:
    shared = await SharedSocket.open(("::", 0))
    channel = shared.channel(Credentials.fresh())
    channel.set_remote(THEIRS)
    channel.open()
    client = Client((host, shared.address[1]))
    await client.connect(channel)
    assert channel.selected == client.address
    channel.send(MEDIA)
    assert await client.receive() == MEDIA
    client.send(MEDIA)
    async with asyncio.timeout(TIMEOUT):
        assert await channel.receive() == MEDIA
    client.socket.close()
    shared.close()


def test_only_mapped_addresses_are_taken_for_ipv4() -> None:
    assert _plain("::ffff:198.18.0.10", 5) == ("198.18.0.10", 5)
    for host in ("::ffff:0:198.18.0.10", "::198.18.0.10", "::ffff:c000", "2001:db8::1", "::1"):
        assert _plain(host, 5) == (host, 5)


async def call_by_aioice(channel: Channel, server: Address) -> aioice.Connection:
    """A client of aioice's, connected to *channel*."""
    caller = aioice.Connection(ice_controlling=True, components=1)
    caller.remote_username = channel.ice.local.ufrag
    caller.remote_password = channel.ice.local.password
    await caller.gather_candidates()
    channel.set_remote(Credentials(caller.local_username, caller.local_password))
    channel.open()
    host, port = server
    await caller.add_remote_candidate(aioice.Candidate("1", 1, "udp", 1, host, port, "host"))
    await caller.add_remote_candidate(None)
    async with asyncio.timeout(TIMEOUT):
        await caller.connect()
        await channel.wait_selected()
    return caller


async def test_aioice_is_a_client_like_any_other(
    shared: SharedSocket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It roams without saying so: its routine check comes from another port, with no nomination."""
    # aioice leaves loopback out; here both ends stay on it, on any machine.
    monkeypatch.setattr("aioice.ice.get_host_addresses", lambda **_: ["127.0.0.1"])
    monkeypatch.setattr("aioice.ice.CONSENT_INTERVAL", 0.2)
    channel = shared.channel(Credentials.fresh())
    with Nat(shared.address) as nat:
        caller = await call_by_aioice(channel, nat.address)
        async with contextlib.AsyncExitStack() as stack:
            stack.push_async_callback(caller.close)
            for _ in range(2):
                assert channel.selected == nat.public
                channel.send(MEDIA)
                await caller.send(MEDIA)
                async with asyncio.timeout(TIMEOUT):
                    assert await caller.recv() == MEDIA
                    assert await channel.receive() == MEDIA
                nat.rebind()
                await eventually(lambda: channel.selected == nat.public)
