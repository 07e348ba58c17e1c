"""Whose datagram it is, above all when somebody wants it to be his."""

import random

import pytest

from transceiver import stun
from transceiver.demultiplexer import IN_USE, Demultiplexer
from transceiver.ice import Credentials, IceSession
from transceiver.stun import Address, Class

HERE = ("198.18.1.1", 1000)
THERE = ("198.18.1.1", 2000)
MEDIA = b"\x80" + bytes(20)


class Socket:
    """A demultiplexer, and sessions named by their ufrag."""

    def __init__(self) -> None:
        self.demultiplexer = Demultiplexer()
        self.now = 100.0

    def session(self, ufrag: str) -> IceSession:
        session = IceSession(
            Credentials(ufrag, "o" * 22), transactions=self.demultiplexer.transactions
        )
        session.set_remote(Credentials("client", "t" * 22))
        self.demultiplexer.add(session)
        return session

    def ask(self, session: IceSession, source: Address, *, nominate: bool = False) -> bytes | None:
        """An authentic check; returns the transaction of the check that it triggers."""
        data = stun.binding_request(
            bytes(12),
            username=f"{session.local.ufrag}:client",
            password=session.local.password,
            priority=1,
            use_candidate=nominate,
        )
        self.receive(data, source)
        sent = [stun.parse(data) for data, _ in session.take_datagrams()]
        return next((m.transaction for m in sent if m.cls is Class.REQUEST), None)

    def answer(self, transaction: bytes | None, source: Address) -> None:
        assert transaction is not None
        self.receive(
            stun.binding_success(transaction, mapped=("1.1.1.1", 1), password="t" * 22), source
        )

    def receive(self, data: bytes, source: Address) -> IceSession | None:
        return self.demultiplexer.receive(data, source, self.now)

    def owner(self, source: Address) -> IceSession | None:
        return self.receive(MEDIA, source)


@pytest.fixture
def socket() -> Socket:
    return Socket()


def test_media_goes_to_the_session_that_authenticated_from_its_address(socket: Socket) -> None:
    one, other = socket.session("one1"), socket.session("two2")
    socket.ask(one, HERE)
    socket.ask(other, THERE)
    assert socket.owner(HERE) is one
    assert socket.owner(THERE) is other


def test_a_wrong_password_binds_nothing(socket: Socket) -> None:
    session = socket.session("one1")
    forged = stun.binding_request(bytes(12), username="one1:client", password="x" * 22, priority=1)
    socket.receive(forged, HERE)
    assert socket.owner(HERE) is None
    assert socket.demultiplexer.dropped["refused_stun"] == 1
    assert session.heard_from(HERE) is None


def test_an_address_in_use_is_not_stolen_by_a_forged_source(socket: Socket) -> None:
    victim, thief = socket.session("vict"), socket.session("thie")
    socket.answer(socket.ask(victim, HERE), HERE)
    for _ in range(100):
        socket.now += IN_USE / 10
        socket.ask(thief, HERE)
        assert socket.owner(HERE) is victim


def test_an_address_in_use_moves_to_the_session_that_is_answered_from_there(
    socket: Socket,
) -> None:
    old, new = socket.session("old1"), socket.session("new1")
    socket.answer(socket.ask(old, HERE), HERE)
    check = socket.ask(new, HERE)
    assert socket.owner(HERE) is old
    socket.answer(check, HERE)
    assert socket.owner(HERE) is new


def test_an_address_no_longer_in_use_moves_at_once(socket: Socket) -> None:
    old, new = socket.session("old1"), socket.session("new1")
    socket.ask(old, HERE)
    socket.now += IN_USE
    socket.ask(new, HERE)
    assert socket.owner(HERE) is new


def test_an_idle_address_that_a_forger_took_comes_back_with_the_owners_next_check(
    socket: Socket,
) -> None:
    """However much the forger sends in its name, since he was never answered from there."""
    victim, thief = socket.session("vict"), socket.session("thie")
    socket.answer(socket.ask(victim, HERE, nominate=True), HERE)
    socket.now += IN_USE
    socket.ask(thief, HERE)
    assert socket.owner(HERE) is thief

    socket.ask(victim, HERE)
    assert socket.owner(HERE) is victim
    socket.ask(thief, HERE)
    assert socket.owner(HERE) is victim


def test_a_forger_who_came_first_does_not_hold_an_address(socket: Socket) -> None:
    victim, thief = socket.session("vict"), socket.session("thie")
    socket.ask(thief, HERE)

    check = socket.ask(victim, HERE)
    assert socket.owner(HERE) is victim
    socket.answer(check, HERE)
    socket.ask(thief, HERE)
    assert socket.owner(HERE) is victim


def test_the_address_of_an_ended_session_moves_at_once(socket: Socket) -> None:
    old, new = socket.session("old1"), socket.session("new1")
    socket.ask(old, HERE)
    socket.demultiplexer.remove(old)
    assert socket.owner(HERE) is None
    socket.ask(new, HERE)
    assert socket.owner(HERE) is new


def test_a_forgotten_address_is_unbound(socket: Socket) -> None:
    session = socket.session("one1")
    for port in range(1, 20):
        socket.ask(session, ("198.18.1.1", port))
    assert len(socket.demultiplexer._bound) == 8


def test_removing_a_session_leaves_nothing_of_it(socket: Socket) -> None:
    session = socket.session("one1")
    socket.ask(session, HERE)
    socket.demultiplexer.remove(session)
    assert not socket.demultiplexer._bound
    assert not socket.demultiplexer._sessions
    assert not socket.demultiplexer.transactions


def test_a_second_session_with_the_same_ufrag_is_refused_and_does_no_harm(socket: Socket) -> None:
    first = socket.session("one1")
    second = IceSession(Credentials("one1", "z" * 22), transactions={})
    with pytest.raises(ValueError, match="taken"):
        socket.demultiplexer.add(second)
    socket.demultiplexer.remove(second)
    socket.ask(first, HERE)
    assert socket.owner(HERE) is first


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "not_webrtc"),
        (b"\x04" + bytes(30), "not_webrtc"),
        (b"\x40" + bytes(30), "not_webrtc"),
        (b"\xc0" + bytes(30), "not_webrtc"),
        (b"\x16" + bytes(30), "unbound_source"),
        (MEDIA, "unbound_source"),
        (b"\x00" + bytes(30), "malformed_stun"),
        (stun.binding_error(bytes(12), 400), "unknown_transaction"),
        (stun.HEADER.pack(0x0011, 0, stun.MAGIC_COOKIE, bytes(12)), "unbound_source"),
        (stun.HEADER.pack(0x0001, 0, stun.MAGIC_COOKIE, bytes(12)), "no_ufrag"),
        (
            stun.binding_request(bytes(12), username="no:x", password="p", priority=1),
            "unknown_ufrag",
        ),
    ],
)
def test_what_is_dropped_is_counted_by_its_reason(socket: Socket, data: bytes, reason: str) -> None:
    assert socket.receive(data, HERE) is None
    assert {name: n for name, n in socket.demultiplexer.dropped.items() if n} == {reason: 1}


def test_a_flood_of_garbage_leaves_no_state(socket: Socket) -> None:
    session = socket.session("one1")
    chance = random.Random(7)
    for _ in range(5000):
        data = chance.randbytes(chance.randrange(1, 200))
        assert socket.receive(data, (f"203.0.113.{chance.randrange(256)}", 9)) is None
    assert sum(socket.demultiplexer.dropped.values()) == 5000
    assert not socket.demultiplexer._bound
    assert session.take_datagrams() == []


def test_a_session_that_restarts_is_found_by_both_ufrags_until_the_old_one_is_over(
    socket: Socket,
) -> None:
    session = socket.session("old1")
    theirs = Credentials("client", "t" * 22)
    socket.answer(socket.ask(session, HERE, nominate=True), HERE)
    socket.demultiplexer.restart(session, Credentials("new1", "n" * 22), theirs, socket.now)
    assert set(socket.demultiplexer._sessions) == {"old1", "new1"}
    socket.answer(socket.ask(session, HERE, nominate=True), HERE)
    assert set(socket.demultiplexer._sessions) == {"new1"}


def test_a_restart_to_a_ufrag_in_use_is_refused_and_changes_nothing(socket: Socket) -> None:
    session, other = socket.session("one1"), socket.session("two2")
    theirs = Credentials("client", "t" * 22)
    with pytest.raises(ValueError, match="taken"):
        socket.demultiplexer.restart(session, other.local, theirs, socket.now)
    assert session.ufrags == ["one1"]
    socket.ask(other, THERE)
    assert socket.owner(THERE) is other


def test_removing_a_session_amid_a_restart_leaves_nothing_of_it(socket: Socket) -> None:
    session = socket.session("one1")
    for number in range(5):
        local = Credentials(f"new{number}", "n" * 22)
        socket.demultiplexer.restart(session, local, Credentials("c", "t" * 22), socket.now)
    assert set(socket.demultiplexer._sessions) == {"one1", "new4"}
    socket.demultiplexer.remove(session)
    assert not socket.demultiplexer._sessions
    assert not socket.demultiplexer._held


def test_a_session_whose_consent_ended_leaves_no_address(socket: Socket) -> None:
    session = socket.session("one1")
    socket.answer(socket.ask(session, HERE, nominate=True), HERE)
    socket.now += 31
    socket.demultiplexer.poll(session, socket.now)
    socket.demultiplexer.remove(session)
    assert not socket.demultiplexer._bound


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (stun.binding_request(bytes(12), username="no:x", password="p", priority=1), "ufrag"),
        (stun.binding_error(bytes(12), 400), "transaction"),
    ],
)
def test_whose_it_is_comes_before_what_is_dear(socket: Socket, data: bytes, reason: str) -> None:
    """A wrong FINGERPRINT goes unnoticed where no session is to be found anyway."""
    socket.receive(data[:-1] + bytes([data[-1] ^ 1]), HERE)
    assert socket.demultiplexer.dropped[f"unknown_{reason}"] == 1
