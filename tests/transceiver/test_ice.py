"""ICE for one session, with a clock of its own and a client made of the same codec."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import pytest

from transceiver import stun
from transceiver.ice import (
    MAX_PATHS,
    PACE,
    Authenticated,
    ConsentLost,
    Credentials,
    Forgotten,
    IceSession,
    IceTiming,
    Restarted,
    Selected,
    Validated,
)
from transceiver.stun import Address, Class, Message

HOME = ("198.18.1.1", 1000)
AWAY = ("198.18.1.1", 2000)
STRANGER = ("198.18.1.1", 3000)

OURS = Credentials("ours", "o" * 22)
THEIRS = Credentials("theirs", "t" * 22)
QUIET = IceTiming().quiet
HOLD = IceTiming().hold


@dataclass(frozen=True)
class Generation:
    """Both sides' credentials."""

    ours: Credentials
    theirs: Credentials

    @classmethod
    def number(cls, number: int) -> "Generation":
        return cls(
            Credentials(f"ours{number}", f"o{number}" * 11),
            Credentials(f"theirs{number}", f"t{number}" * 11),
        )


FIRST = Generation(OURS, THEIRS)
SECOND = Generation.number(2)
THIRD = Generation.number(3)


class Client:
    """A client that talks to *ice* from any address, at the time *now*."""

    def __init__(self) -> None:
        self.transactions: dict[bytes, IceSession] = {}
        self.ice = IceSession(OURS, transactions=self.transactions, jitter=lambda: 1.0)
        self.ice.set_remote(THEIRS)
        self.now = 100.0
        self.asked: dict[Address, list[Message]] = {}
        """Checks of the session's, by where they went."""
        self._ids = iter(range(1, 1 << 20))

    def ask(
        self,
        source: Address,
        generation: Generation = FIRST,
        *,
        username: str | None = None,
        password: str | None = None,
        nominate: bool = False,
        controlled: int | None = None,
    ) -> list[Message]:
        """Send a check; return what went back at once."""
        data = stun.binding_request(
            next(self._ids).to_bytes(12),
            username=username or f"{generation.ours.ufrag}:{generation.theirs.ufrag}",
            password=password or generation.ours.password,
            priority=1,
            controlled=controlled,
            controlling=1 if controlled is None else None,
            use_candidate=nominate,
        )
        self.ice.receive(stun.parse(data), source, self.now)
        return [message for message, to in self.sent() if to == source]

    def sent(self) -> list[tuple[Message, Address]]:
        sent = [(stun.parse(data), to) for data, to in self.ice.take_datagrams()]
        for message, to in sent:
            if message.cls is Class.REQUEST:
                self.asked.setdefault(to, []).append(message)
        return sent

    def answer(
        self, check: Message, source: Address, *, password: str | None = None
    ) -> list[object]:
        passwords = {g.theirs.ufrag: g.theirs.password for g in (FIRST, SECOND, THIRD)}
        assert check.username is not None
        password = password or passwords[check.username.partition(":")[0]]
        data = stun.binding_success(check.transaction, mapped=("1.1.1.1", 1), password=password)
        self.ice.take_events()
        self.ice.receive(stun.parse(data), source, self.now)
        return list(self.ice.take_events())

    def validate(
        self, source: Address, generation: Generation = FIRST, *, nominate: bool = False
    ) -> None:
        checks = [
            message
            for message in self.ask(source, generation, nominate=nominate)
            if message.cls is Class.REQUEST
        ]
        for check in checks:
            self.answer(check, source)

    def wait(
        self, seconds: float, *, heard: Address | None = None, answering: Address | None = None
    ) -> list[Message]:
        """Let time pass, as the shell does; return the checks that were sent meanwhile.

        *heard*: media comes from there each 20 ms. *answering*: checks to there are answered."""
        end, sent = self.now + seconds, []
        while True:
            due = self.ice.next_deadline()
            step = end if due is None else min(end, max(due, self.now))
            if heard is not None:
                step = min(step, self.now + 0.02)
                self.ice.heard(heard, step)
            self.now = step
            self.ice.poll(self.now)
            for message, to in self.sent():
                sent.append(message)
                if to == answering:
                    self.answer(message, to)
            if self.now >= end:
                return sent


@pytest.fixture
def client() -> Iterator[Client]:
    client = Client()
    yield client
    client.ice.close()
    assert not client.transactions, "checks in flight outlived the session"


@pytest.fixture
def talking(client: Client) -> Client:
    """Selected at HOME, where media came from until now."""
    client.validate(HOME, nominate=True)
    client.wait(3, heard=HOME, answering=HOME)
    assert client.ice.selected == HOME
    client.ice.take_events()
    return client


def test_an_authentic_check_is_answered_and_checked_back(client: Client) -> None:
    success, check = client.ask(HOME)
    assert success.cls is Class.SUCCESS
    assert success.mapped == HOME
    assert success.authentic(OURS.password)
    assert check.username == "theirs:ours"
    assert check.authentic(THEIRS.password)
    assert check.controlled  # libjuice takes 0 for no role at all
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
    (error,) = client.ask(HOME, username=username, password=password)
    assert (error.cls, error.error) == (Class.ERROR, code)
    assert client.ice.take_events() == []


def test_a_check_without_integrity_is_a_bad_request(client: Client) -> None:
    bare = Message(Class.REQUEST, bytes(12), username="ours:theirs", size=100)
    client.ice.receive(bare, HOME, client.now)
    ((error, _),) = client.sent()
    assert error.error == 400


def test_a_client_that_thinks_it_is_controlled_is_told_of_the_conflict(client: Client) -> None:
    (error,) = client.ask(HOME, controlled=1)
    assert error.error == 487
    assert error.authentic(OURS.password)


def test_media_goes_where_the_client_nominated_and_answered(client: Client) -> None:
    _, check = client.ask(HOME, nominate=True)
    assert client.ice.selected is None
    assert client.answer(check, HOME) == [Validated(HOME), Selected(HOME)]


def test_no_media_without_a_nomination(client: Client) -> None:
    client.validate(HOME)
    assert client.ice.selected is None
    client.ask(HOME, nominate=True)
    assert client.ice.selected == HOME


def test_an_answer_with_the_wrong_password_proves_nothing(client: Client) -> None:
    _, check = client.ask(HOME, nominate=True)
    assert client.answer(check, HOME, password="x" * 22) == []
    assert client.answer(check, HOME) == [Validated(HOME), Selected(HOME)]


def test_an_answer_from_elsewhere_proves_nothing(client: Client) -> None:
    _, check = client.ask(HOME, nominate=True)
    assert client.answer(check, STRANGER) == []
    assert client.ice.selected is None


def test_an_answer_counts_once(client: Client) -> None:
    _, check = client.ask(HOME)
    assert client.answer(check, HOME) == [Validated(HOME)]
    assert client.answer(check, HOME) == []


def test_a_check_is_repeated_with_the_same_id_at_the_rfcs_times(client: Client) -> None:
    """As far as the client's own bytes allow, which here they do, and it was heard lately."""
    request = stun.binding_request(
        bytes(12), username="ours:theirs", password=OURS.password, priority=1
    )
    client.ice.receive(replace(stun.parse(request), size=1200), HOME, client.now)
    (_, _), (check, _) = client.sent()
    times = []
    start = client.now
    while (due := client.ice.next_deadline()) is not None:
        client.now = due
        client.ice.poll(due)
        for message, _ in client.sent():
            assert message.transaction == check.transaction
            times.append(round(due - start, 3))
    assert times == [0.5, 1.5, 3.5, 7.5, 15.5]
    assert client.now - start == pytest.approx(30)


def test_a_check_is_repeated_when_the_client_asks_again(client: Client) -> None:
    _, check = client.ask(HOME)
    client.now += 2 * PACE
    _, again = client.ask(HOME)
    assert again.transaction == check.transaction


def test_one_check_at_a_time_goes_to_an_address(client: Client) -> None:
    assert len(client.ask(HOME)) == 2
    assert len(client.ask(HOME)) == 1


def test_the_round_trip_time_is_measured_on_checks_sent_once(client: Client) -> None:
    _, check = client.ask(HOME)
    client.now += 0.04
    client.answer(check, HOME)
    assert client.ice.rtt == pytest.approx(0.04)
    _, check = client.ask(AWAY)
    client.wait(0.6)
    client.answer(check, AWAY)
    assert client.ice.rtt == pytest.approx(0.04)


def test_a_later_nomination_moves_media_only_after_our_own_check(client: Client) -> None:
    client.validate(HOME, nominate=True)
    _, check = client.ask(AWAY, nominate=True)
    assert client.ice.selected == HOME
    client.answer(check, AWAY)
    assert client.ice.selected == AWAY


def test_an_old_validation_does_not_do_for_a_new_nomination(client: Client) -> None:
    client.validate(AWAY)
    client.validate(HOME, nominate=True)
    client.wait(3, heard=HOME)
    _, check = client.ask(AWAY, nominate=True)
    assert client.ice.selected == HOME
    client.answer(check, AWAY)
    assert client.ice.selected == AWAY


def test_a_client_that_roams_without_nominating_is_followed_in_time(talking: Client) -> None:
    talking.validate(AWAY)
    assert talking.ice.selected == HOME
    talking.wait(QUIET, heard=AWAY, answering=AWAY)
    assert talking.ice.selected == AWAY


def test_a_client_whose_answer_is_slow_is_followed_when_it_comes(talking: Client) -> None:
    _, check = talking.ask(AWAY)
    talking.wait(QUIET + 0.1)
    assert talking.ice.selected == HOME
    assert Selected(AWAY) in talking.answer(check, AWAY)


def test_both_paths_are_asked_when_a_second_one_comes_up(talking: Client) -> None:
    talking.asked.clear()
    talking.ask(AWAY)
    talking.wait(QUIET)
    assert len(talking.asked[HOME]) == 3
    assert len({check.transaction for check in talking.asked[HOME]}) == 1


def test_a_second_path_is_not_followed_while_the_first_answers(talking: Client) -> None:
    for _ in range(6):
        talking.validate(AWAY)
        talking.wait(2, heard=AWAY, answering=HOME)
    assert talking.ice.selected == HOME


def test_nor_while_media_still_comes_and_one_answer_is_lost(talking: Client) -> None:
    talking.validate(AWAY)
    talking.wait(HOLD - 0.1, heard=HOME)
    assert talking.ice.selected == HOME


def test_forged_media_cannot_hold_media_at_an_address_that_the_client_left(
    talking: Client,
) -> None:
    talking.validate(AWAY)
    talking.wait(HOLD, heard=HOME)
    assert talking.ice.selected == AWAY


def test_silence_alone_does_not_bring_back_an_address_proved_long_ago(talking: Client) -> None:
    talking.validate(AWAY)
    talking.wait(5, answering=HOME)
    talking.wait(20)
    assert talking.ice.selected == HOME


def test_a_client_that_came_back_is_followed_by_its_media_alone(talking: Client) -> None:
    talking.validate(AWAY)
    talking.wait(2, heard=AWAY, answering=AWAY)
    assert talking.ice.selected == AWAY
    talking.wait(2 * QUIET)
    talking.wait(2 * QUIET, heard=HOME, answering=HOME)
    assert talking.ice.selected == HOME


def test_forged_media_from_a_spare_path_moves_nothing(talking: Client) -> None:
    talking.validate(AWAY)
    talking.wait(1, heard=HOME, answering=HOME)
    talking.wait(10, heard=AWAY, answering=HOME)
    assert talking.ice.selected == HOME


def test_the_path_that_was_nominated_gets_media_back_as_soon_as_it_answers(
    talking: Client,
) -> None:
    talking.validate(AWAY)
    talking.wait(2, heard=AWAY, answering=AWAY)
    _, check = talking.ask(HOME)
    assert Selected(HOME) in talking.answer(check, HOME)


def test_a_path_that_was_nominated_gets_nothing_back_by_asking_alone(talking: Client) -> None:
    talking.validate(AWAY)
    talking.wait(2, heard=AWAY, answering=AWAY)
    for _ in range(20):
        talking.ask(HOME, nominate=True)
        talking.wait(0.5, heard=HOME, answering=AWAY)
    assert talking.ice.selected == AWAY


def test_a_replayed_nomination_does_not_stand_in_the_way_of_a_true_one(talking: Client) -> None:
    _, check = talking.ask(AWAY, nominate=True)
    talking.now += 0.001
    talking.ask(STRANGER, nominate=True)
    talking.answer(check, AWAY)
    assert talking.ice.selected == AWAY


def test_questions_to_the_selected_path_are_bounded_however_many_replays_come(
    talking: Client,
) -> None:
    talking.asked.clear()
    for port in range(1000):
        talking.ask(("203.0.113.1", port + 1))
        talking.wait(0.002, answering=HOME)
    assert len(talking.asked[HOME]) <= 2 / QUIET + 2


def test_a_contest_that_nobody_wins_leaves_no_timer(talking: Client) -> None:
    talking.ask(STRANGER)
    deadlines = set()
    for _ in range(1000):
        due = talking.ice.next_deadline()
        assert due is not None
        assert due > talking.now, "the loop would spin"
        deadlines.add(due)
        talking.wait(due - talking.now)
        if talking.now > 125:
            break
    assert talking.ice._contested_at is None
    assert len(deadlines) < 30


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
    _, check = client.ask(HOME)
    client.ice.set_remote(SECOND.theirs)
    assert client.answer(check, HOME) == []
    _, fresh = client.ask(HOME, Generation(OURS, SECOND.theirs))
    assert client.answer(fresh, HOME) == [Validated(HOME)]


# ICE restart (RFC 8445 section 9)


@pytest.fixture
def restarting(talking: Client) -> Client:
    """Has been told of SECOND, and its client may not know yet."""
    talking.ice.restart(SECOND.ours, SECOND.theirs, talking.now)
    return talking


def test_checks_of_both_generations_are_answered_each_with_its_own_password(
    restarting: Client,
) -> None:
    for generation in (FIRST, SECOND):
        success, *_ = restarting.ask(HOME, generation)
        assert success.authentic(generation.ours.password)
    (error,) = restarting.ask(HOME, Generation(OURS, SECOND.theirs))
    assert error.error == 401


def test_a_check_of_the_new_generation_is_checked_back_in_it(restarting: Client) -> None:
    _, check = restarting.ask(HOME, SECOND)
    assert check.username == "theirs2:ours2"
    assert check.authentic(SECOND.theirs.password)


def test_a_restart_is_done_when_the_client_is_selected_on_the_new_generation(
    restarting: Client,
) -> None:
    _, check = restarting.ask(HOME, SECOND, nominate=True)
    assert restarting.ice.selected == HOME
    assert restarting.answer(check, HOME) == [Validated(HOME), Restarted("ours")]
    assert restarting.ice.ufrags == ["ours2"]
    (error,) = restarting.ask(HOME, FIRST)
    assert error.error == 401


def test_media_goes_on_during_a_restart_and_moves_with_it(restarting: Client) -> None:
    _, check = restarting.ask(AWAY, SECOND, nominate=True)
    assert restarting.ice.selected == HOME
    assert Selected(AWAY) in restarting.answer(check, AWAY)


def test_an_answer_in_the_old_generation_does_not_do_for_a_nomination_in_the_new(
    restarting: Client,
) -> None:
    _, old = restarting.ask(AWAY, FIRST)
    restarting.ask(AWAY, SECOND, nominate=True)
    assert restarting.answer(old, AWAY) == [Validated(AWAY)]
    assert restarting.ice.selected == HOME
    assert restarting.ice.ufrags == ["ours", "ours2"]


def test_a_nomination_in_the_old_generation_counts_until_the_new_one_is_selected(
    restarting: Client,
) -> None:
    restarting.validate(AWAY, FIRST, nominate=True)
    assert restarting.ice.selected == AWAY
    restarting.validate(HOME, SECOND, nominate=True)
    assert restarting.ice.selected == HOME
    restarting.wait(1, answering=HOME)
    restarting.validate(AWAY, FIRST, nominate=True)
    assert restarting.ice.selected == HOME


def test_consent_is_kept_with_the_old_credentials_while_the_new_ones_wait(
    restarting: Client,
) -> None:
    checks = restarting.wait(100, answering=HOME)
    assert {check.username for check in checks} == {"theirs:ours"}
    assert restarting.ice.selected == HOME


def test_consent_is_kept_with_the_new_credentials_after_a_restart(restarting: Client) -> None:
    restarting.validate(HOME, SECOND, nominate=True)
    checks = restarting.wait(100, answering=HOME)
    assert {check.username for check in checks} == {"theirs2:ours2"}


def test_a_client_that_left_and_restarts_without_nominating_is_followed(
    restarting: Client,
) -> None:
    restarting.validate(AWAY, SECOND)
    restarting.wait(QUIET)
    assert restarting.ice.selected == AWAY
    assert Restarted("ours") in restarting.ice.take_events()


def test_several_restarts_in_a_row_leave_the_last_one(restarting: Client) -> None:
    restarting.ice.restart(THIRD.ours, THIRD.theirs, restarting.now)
    assert restarting.ice.take_events() == [Restarted("ours2")]
    assert restarting.ice.ufrags == ["ours", "ours3"]
    restarting.validate(HOME, THIRD, nominate=True)
    assert restarting.ice.ufrags == ["ours3"]


def test_a_restart_after_a_restart(restarting: Client) -> None:
    restarting.validate(HOME, SECOND, nominate=True)
    restarting.ice.restart(THIRD.ours, THIRD.theirs, restarting.now)
    restarting.validate(AWAY, THIRD, nominate=True)
    assert restarting.ice.selected == AWAY
    assert restarting.ice.ufrags == ["ours3"]


def test_an_answer_to_a_generation_that_is_over_counts_for_nothing(restarting: Client) -> None:
    _, check = restarting.ask(AWAY, SECOND)
    restarting.ice.restart(THIRD.ours, THIRD.theirs, restarting.now)
    assert restarting.answer(check, AWAY) == []


def test_a_restart_that_never_comes_changes_nothing_but_the_end(restarting: Client) -> None:
    restarting.wait(100, answering=HOME)
    restarting.wait(24, heard=HOME)
    assert restarting.ice.selected == HOME
    restarting.ice.take_events()
    restarting.wait(10)
    assert restarting.ice.take_events() == [ConsentLost()]


def test_a_restart_may_come_after_the_old_consent_has_ended(talking: Client) -> None:
    talking.wait(20)
    talking.ice.restart(SECOND.ours, SECOND.theirs, talking.now)
    talking.wait(20)
    assert talking.ice.selected is None
    assert talking.ice.take_events() == [Restarted("ours"), Forgotten(HOME)]
    talking.validate(AWAY, SECOND, nominate=True)
    assert talking.ice.selected == AWAY


def test_but_it_is_not_waited_for_without_end(talking: Client) -> None:
    talking.wait(20)
    talking.ice.restart(SECOND.ours, SECOND.theirs, talking.now)
    talking.wait(31)
    assert talking.ice.take_events() == [
        Restarted("ours"),
        Forgotten(HOME),
        ConsentLost(),
    ]
    assert talking.ice.next_deadline() is None


def test_after_the_end_of_consent_the_old_generation_brings_nothing_back(
    talking: Client,
) -> None:
    talking.wait(20)
    talking.ice.restart(SECOND.ours, SECOND.theirs, talking.now)
    talking.wait(20)
    (error,) = talking.ask(HOME, FIRST, nominate=True)
    assert error.error == 401
    talking.validate(HOME, SECOND)
    assert talking.ice.selected is None


# What attackers get


def test_a_spare_path_is_forgotten_when_nothing_came_from_there_for_30_s(talking: Client) -> None:
    talking.validate(AWAY)
    assert talking.ice.paths == [HOME, AWAY]
    talking.ice.take_events()

    talking.wait(29, heard=HOME, answering=HOME)
    assert talking.ice.paths == [HOME, AWAY]
    talking.wait(2, heard=HOME, answering=HOME)

    assert talking.ice.paths == [HOME]
    assert Forgotten(AWAY) in talking.ice.take_events()


def test_a_spare_path_that_media_comes_from_is_kept(talking: Client) -> None:
    talking.validate(AWAY)
    talking.wait(60, heard=AWAY, answering=HOME)
    assert AWAY in talking.ice.paths


def test_a_flood_of_bad_requests_is_answered_ten_times_a_second(client: Client) -> None:
    answered = 0
    for _ in range(2000):
        client.now += 0.001
        answered += len(client.ask(STRANGER, password="x" * 22))
    assert 20 <= answered <= 31
    assert client.ice.next_deadline() is None
    assert client.ice.selected is None


def test_no_error_is_longer_than_the_request_that_it_refuses(client: Client) -> None:
    shortest = Message(Class.REQUEST, bytes(12), username="ours:theirs", size=36)
    client.ice.receive(shortest, STRANGER, client.now)
    assert client.sent() == []


@pytest.mark.parametrize("times", [1, 3, 200])
def test_a_replay_from_a_forged_source_sends_the_victim_at_most_three_times_its_bytes(
    client: Client, times: int
) -> None:
    data = stun.binding_request(
        bytes(12), username="ours:theirs", password=OURS.password, priority=1, use_candidate=True
    )
    sent = 0
    for _ in range(times):
        client.ice.receive(stun.parse(data), STRANGER, client.now)
        client.now += 0.3
        client.ice.poll(client.now)
        sent += sum(len(out) for out, _ in client.ice.take_datagrams())
    while (due := client.ice.next_deadline()) is not None:
        client.now = due
        client.ice.poll(due)
        sent += sum(len(out) for out, _ in client.ice.take_datagrams())
    assert 0 < sent <= 3 * len(data) * times


def test_replays_from_ever_new_sources_begin_no_more_checks_than_rfc_8445_paces(
    client: Client,
) -> None:
    for port in range(4000):
        client.now += 0.001
        client.ask(("203.0.113.1", port + 1))
    first = {check.transaction for checks in client.asked.values() for check in checks}
    assert len(first) <= MAX_PATHS + 4 / PACE + 1


def test_a_client_that_has_answered_before_is_not_kept_waiting_by_such_a_flood(
    talking: Client,
) -> None:
    talking.validate(AWAY)
    talking.wait(1, answering=HOME)
    for port in range(100):
        talking.ask(("203.0.113.1", port + 1))
    assert Class.REQUEST in {message.cls for message in talking.ask(AWAY)}
