"""ICE for one session, with a clock of its own and a client made of the same codec."""

from collections.abc import Iterator

import pytest

from transceiver import stun
from transceiver.ice import (
    MAX_PATHS,
    Authenticated,
    ConsentLost,
    Credentials,
    Forgotten,
    IceSession,
    Selected,
    Validated,
)
from transceiver.stun import Address, Class, Message

HOME = ("198.18.1.1", 1000)
AWAY = ("198.18.1.1", 2000)
STRANGER = ("198.18.1.1", 3000)

OURS = Credentials("ours", "o" * 22)
THEIRS = Credentials("theirs", "t" * 22)


class Client:
    """A client that talks to *ice* from any address, at the time *now*."""

    def __init__(self) -> None:
        self.transactions: dict[bytes, IceSession] = {}
        self.ice = IceSession(OURS, transactions=self.transactions, jitter=lambda: 1.0)
        self.ice.set_remote(THEIRS)
        self.now = 100.0
        self._ids = iter(range(1, 1 << 20))

    def ask(
        self,
        source: Address,
        *,
        username: str = "ours:theirs",
        password: str = OURS.password,
        nominate: bool = False,
        controlled: int | None = None,
    ) -> list[tuple[Message, Address]]:
        data = stun.binding_request(
            next(self._ids).to_bytes(12),
            username=username,
            password=password,
            priority=1,
            controlled=controlled,
            use_candidate=nominate,
        )
        self.ice.receive(stun.parse(data), source, self.now)
        return self.sent()

    def sent(self) -> list[tuple[Message, Address]]:
        return [(stun.parse(data), to) for data, to in self.ice.take_datagrams()]

    def answer(
        self, check: Message, source: Address, *, password: str = THEIRS.password
    ) -> list[object]:
        data = stun.binding_success(check.transaction, mapped=("1.1.1.1", 1), password=password)
        self.ice.take_events()
        self.ice.receive(stun.parse(data), source, self.now)
        return list(self.ice.take_events())

    def validate(self, source: Address, *, nominate: bool = False) -> None:
        checks = [m for m, to in self.ask(source, nominate=nominate) if m.cls is Class.REQUEST]
        for check in checks:
            self.answer(check, source)

    def wait(self, seconds: float, *, heard_from: Address | None = None) -> list[Message]:
        """Let time pass, as the shell does; return what was sent meanwhile."""
        end, sent = self.now + seconds, []
        while True:
            due = self.ice.next_deadline()
            step = end if due is None else min(end, max(due, self.now))
            if heard_from is not None:
                step = min(step, self.now + 0.02)
                self.ice.heard(heard_from, step)
            self.now = step
            self.ice.poll(self.now)
            sent += [message for message, _ in self.sent()]
            if self.now >= end:
                return sent


@pytest.fixture
def client() -> Iterator[Client]:
    client = Client()
    yield client
    client.ice.close()
    assert not client.transactions, "checks in flight outlived the session"


def test_an_authentic_check_is_answered_and_checked_back(client: Client) -> None:
    (success, to), (check, checked) = client.ask(HOME)
    assert to == checked == HOME
    assert success.cls is Class.SUCCESS
    assert success.mapped == HOME
    assert success.authentic(OURS.password)
    assert check.username == "theirs:ours"
    assert check.authentic(THEIRS.password)
    assert check.controlled == 0
    assert client.ice.take_events() == [Authenticated(HOME)]


@pytest.mark.parametrize(
    ("username", "password", "code"),
    [
        ("ours:theirs", "x" * 22, 401),
        ("ours:others", OURS.password, 401),
        ("ours", OURS.password, 401),
    ],
)
def test_a_check_that_is_not_authentic_gets_an_error_and_nothing_more(
    client: Client, username: str, password: str, code: int
) -> None:
    ((error, _),) = client.ask(HOME, username=username, password=password)
    assert (error.cls, error.error) == (Class.ERROR, code)
    assert client.ice.take_events() == []


def test_a_check_without_integrity_is_a_bad_request(client: Client) -> None:
    client.ice.receive(Message(Class.REQUEST, bytes(12), username="ours:theirs"), HOME, client.now)
    ((error, _),) = client.sent()
    assert error.error == 400


def test_a_client_that_thinks_it_is_controlled_is_told_of_the_conflict(client: Client) -> None:
    ((error, _),) = client.ask(HOME, controlled=1)
    assert error.error == 487
    assert error.authentic(OURS.password)


def test_media_goes_where_the_client_nominated_and_answered(client: Client) -> None:
    _, (check, _) = client.ask(HOME, nominate=True)
    assert client.ice.selected is None
    assert client.answer(check, HOME) == [Validated(HOME), Selected(HOME)]


def test_no_media_without_a_nomination(client: Client) -> None:
    client.validate(HOME)
    assert client.ice.selected is None
    client.ask(HOME, nominate=True)
    assert client.ice.selected == HOME


def test_an_answer_with_the_wrong_password_proves_nothing(client: Client) -> None:
    _, (check, _) = client.ask(HOME, nominate=True)
    assert client.answer(check, HOME, password="x" * 22) == []
    assert client.answer(check, HOME) == [Validated(HOME), Selected(HOME)]


def test_an_answer_from_elsewhere_proves_nothing(client: Client) -> None:
    _, (check, _) = client.ask(HOME, nominate=True)
    assert client.answer(check, STRANGER) == []
    assert client.ice.selected is None


def test_an_answer_counts_once(client: Client) -> None:
    _, (check, _) = client.ask(HOME)
    assert client.answer(check, HOME) == [Validated(HOME)]
    assert client.answer(check, HOME) == []


def test_a_check_is_repeated_with_the_same_id_at_the_rfcs_times(client: Client) -> None:
    _, (check, _) = client.ask(HOME)
    times = []
    start = client.now
    while (due := client.ice.next_deadline()) is not None:
        client.now = due
        client.ice.poll(due)
        for message, _ in client.sent():
            assert message.transaction == check.transaction
            times.append(round(due - start, 3))
    assert times == [0.5, 1.5, 3.5, 7.5, 15.5, 31.5]
    assert client.now - start == pytest.approx(39.5)


def test_one_check_at_a_time_goes_to_an_address(client: Client) -> None:
    assert len(client.ask(HOME)) == 2
    assert len(client.ask(HOME)) == 1


def test_the_round_trip_time_is_measured_on_checks_sent_once(client: Client) -> None:
    _, (check, _) = client.ask(HOME)
    client.now += 0.04
    client.answer(check, HOME)
    assert client.ice.rtt == pytest.approx(0.04)
    _, (check, _) = client.ask(AWAY)
    client.wait(0.6)
    client.answer(check, AWAY)
    assert client.ice.rtt == pytest.approx(0.04)


def test_a_later_nomination_moves_media_only_after_our_own_check(client: Client) -> None:
    client.validate(HOME, nominate=True)
    _, (check, _) = client.ask(AWAY, nominate=True)
    assert client.ice.selected == HOME
    client.answer(check, AWAY)
    assert client.ice.selected == AWAY


def test_an_old_validation_does_not_do_for_a_new_nomination(client: Client) -> None:
    client.validate(AWAY)
    client.validate(HOME, nominate=True)
    client.wait(3, heard_from=HOME)
    _, (check, _) = client.ask(AWAY, nominate=True)
    assert client.ice.selected == HOME
    client.answer(check, AWAY)
    assert client.ice.selected == AWAY


def test_a_client_that_roams_without_nominating_is_followed(client: Client) -> None:
    client.validate(HOME, nominate=True)
    client.wait(0.3)
    client.validate(AWAY)
    assert client.ice.selected == HOME
    client.wait(1.0, heard_from=AWAY)
    assert client.ice.selected == AWAY


def test_a_second_path_is_not_followed_while_the_first_is_alive(client: Client) -> None:
    client.validate(HOME, nominate=True)
    for _ in range(6):
        client.validate(AWAY)
        client.validate(HOME)
        client.wait(2, heard_from=HOME)
    assert client.ice.selected == HOME


def test_silence_alone_does_not_bring_back_an_address_proved_long_ago(client: Client) -> None:
    client.validate(AWAY)
    client.validate(HOME, nominate=True)
    client.wait(5, heard_from=HOME)
    client.wait(5)
    assert client.ice.selected == HOME


def test_forged_media_cannot_hold_media_at_an_address_that_the_client_left(client: Client) -> None:
    client.validate(HOME, nominate=True)
    for _ in range(3):
        client.wait(4, heard_from=HOME)
        client.validate(AWAY)
    assert client.ice.selected == AWAY


def test_a_replayed_check_from_a_strangers_address_moves_nothing(client: Client) -> None:
    client.validate(HOME, nominate=True)
    client.ask(STRANGER, nominate=True)
    client.wait(20)
    assert client.ice.selected == HOME


def test_consent_is_asked_for_each_interval_with_a_new_id(client: Client) -> None:
    client.validate(HOME, nominate=True)
    checks = client.wait(21)
    assert len(checks) == len({check.transaction for check in checks}) == 4
    assert len(client.transactions) == 4


def test_consent_is_lost_after_its_timeout_and_all_stops(client: Client) -> None:
    client.validate(HOME, nominate=True)
    client.wait(29.9)
    assert client.ice.selected == HOME
    client.ice.take_events()
    client.wait(0.2)
    assert client.ice.take_events() == [ConsentLost()]
    assert client.ice.selected is None
    assert client.ice.next_deadline() is None
    assert client.ask(HOME) == []


def test_consent_goes_on_as_long_as_checks_are_answered(client: Client) -> None:
    client.validate(HOME, nominate=True)
    for _ in range(20):
        for check in client.wait(5):
            client.answer(check, HOME)
    assert client.ice.selected == HOME


def test_checks_of_the_client_alone_are_no_consent(client: Client) -> None:
    client.validate(HOME, nominate=True)
    for _ in range(31):
        client.wait(1)
        client.ask(HOME)
    assert client.ice.selected is None


def test_addresses_are_bounded_and_the_selected_one_stays(client: Client) -> None:
    client.validate(HOME, nominate=True)
    for port in range(500):
        client.now += 0.001
        client.ask(("203.0.113.1", port + 1))
    assert len(client.ice._paths) == MAX_PATHS
    assert len(client.transactions) <= MAX_PATHS
    assert client.ice.selected == HOME
    forgotten = [event for event in client.ice.take_events() if isinstance(event, Forgotten)]
    assert Forgotten(HOME) not in forgotten
    assert len(forgotten) == 501 - MAX_PATHS


def test_a_flood_of_addresses_does_not_push_out_a_valid_one(client: Client) -> None:
    client.validate(HOME, nominate=True)
    client.validate(AWAY)
    for port in range(20):
        client.ask(("203.0.113.1", port + 1))
    assert AWAY in client.ice._paths


def test_new_credentials_void_the_checks_in_flight(client: Client) -> None:
    client.validate(HOME, nominate=True)
    _, (check, _) = client.ask(AWAY)
    client.ice.set_remote(Credentials("renewed", "r" * 22))
    assert client.answer(check, AWAY) == []
    assert client.ice.selected == HOME
    _, (fresh, _) = client.ask(AWAY, username="ours:renewed")
    assert fresh.username == "renewed:ours"
    assert client.answer(fresh, AWAY, password="r" * 22) == [Validated(AWAY)]
