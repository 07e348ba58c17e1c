"""The bench of calls: what it makes of numbers, what it says and hears; and a run, very small."""

import io
from pathlib import Path

import numpy as np
import pytest
from pyroute2 import netns
from rich.console import Console

from loader.errors import ShuntError
from tools.bench import transceiver
from tools.bench.calls import codec, speech
from tools.bench.calls.bots import Bots, Habit, utterance
from tools.bench.calls.client import Answer, Call, State
from tools.bench.calls.load import Callee, Clients
from tools.bench.calls.place import CALLED_HOST, CALLER_HOST, CALLERS, Server, place
from tools.bench.report import Case, Report, hold, read_targets
from tools.bench.show import show
from tools.bench.transceiver import Carried, Scale, delays, growth, next_load
from transceiver.dtls import Certificate
from transceiver.media import opus

PINS = Path("/nowhere")
SMALL = Scale(
    rounds=1,
    talk_s=0.8,
    setups=3,
    at_once=2,
    watched=2,
    idle=4,
    gone=20,
    codec_s=0.05,
    first=2,
    most=2,
)

# What it makes of its numbers.


def test_sessions_a_core_are_calls_by_the_share_that_they_take() -> None:
    carried = Carried(calls=30, share=0.6, heard_by_clients=50.0, heard_by_bots=49.0)

    assert carried.sessions_a_core == pytest.approx(50)
    assert carried.slowest == 49.0


def test_the_next_load_is_nine_tenths_of_a_core() -> None:
    assert next_load(Carried(30, 0.6, 50.0, 50.0)) == 45
    assert next_load(Carried(1, 1.0, 50.0, 50.0)) == 1


def test_a_delay_is_from_each_mark_to_its_onset() -> None:
    assert delays([1.0, 2.0, 3.0], [1.25, 2.5]) == [0.25, 0.5]


@pytest.mark.parametrize("onsets", [[], [1.1, 1.2, 2.1, 3.1]])
def test_marks_that_were_missed_or_made_up_are_an_error(onsets: list[float]) -> None:
    with pytest.raises(ShuntError, match="3 marks were sent"):
        delays([1.0, 2.0, 3.0], onsets)


def test_growth_is_that_of_the_later_half() -> None:
    sessions = list(range(0, 1100, 100))
    sizes = [1e6 + 5000.0 * min(each, 500) + 3.0 * each for each in sessions]

    assert growth(sessions, sizes) == pytest.approx(3.0)


def report(**values: float) -> Report:
    """As if that had been measured; what is not given just meets its target."""
    found = {
        **{"stock.sessions": 20.0, "ours.sessions": 80.0, "codec.sessions": 130.0},
        **{"ours.slowest": 49.9, "ours.delay.p99": 1.0, "stock.setup.p50": 30.0},
        **{"ours.setup.p50": 9.0, "stock.setup.cpu": 12.0, "ours.setup.cpu": 6.0},
        **{"ours.memory.early": 60.0, "ours.memory.late": 63.0},
        **{name.replace("_", "."): value for name, value in values.items()},
    }
    cases = tuple(Case(name, name, (value,), unit="each") for name, value in found.items())
    return Report("transceiver", "each its own", cases)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ours_sessions", 79.0),
        ("codec_sessions", 134.0),
        ("ours_slowest", 49.4),
        ("ours_delay_p99", 25.1),
        ("ours_setup_p50", 24.1),
        ("ours_setup_cpu", 6.1),
        ("ours_memory_late", 63.1),
    ],
)
def test_each_number_that_is_not_good_enough_misses_its_target(name: str, value: float) -> None:
    targets = read_targets("transceiver")

    assert all(each.met for each in hold(report(), targets))
    (missed,) = [each for each in hold(report(**{name: value}), targets) if not each.met]
    assert name.replace("_", ".") in (missed.target.case, missed.target.against)


# What is said, and heard.


def test_what_the_client_says_is_a_packet_for_each_20_ms_and_the_same_each_time() -> None:
    said = speech.packets()

    assert {opus.duration(packet) for packet in said} == {960}
    assert len(said) == len(utterance(24000)) == len(utterance(48000)) == 500
    speech._voice.cache_clear()
    speech.pcm.cache_clear()
    speech.packets.cache_clear()
    assert speech.packets() == said


@pytest.mark.parametrize("rate", [24000, 48000])
def test_a_mark_is_heard_in_the_packet_that_it_was_said_in(rate: int) -> None:
    decoder = opus.Decoder(rate)
    peaks = [
        int(np.frombuffer(decoder.decode(packet), "<i2").max()) for packet in speech.marked() * 3
    ]

    loud = [number for number, peak in enumerate(peaks) if peak > 3000]
    # A mark is as long as a packet, and what the codec looks ahead is heard in the next.
    every = speech.MARK_EVERY
    assert [number for number in loud if number - 1 not in loud] == [0, every, 2 * every]


def test_a_bot_that_watches_notes_each_mark_once() -> None:
    decoder = opus.Decoder(24000)
    bots = Bots()
    bots.habit = Habit.WATCHING
    ear = bots.begin(24000)

    for packet in speech.marked() * 3:
        ear.hear(decoder.decode(packet))

    assert len(ear.onsets) == 3
    assert ear.samples / ear.rate == pytest.approx(3 * speech.MARK_EVERY * 0.02)


def test_bots_that_have_ended_are_forgotten() -> None:
    bots = Bots()
    first, second = bots.begin(24000), bots.begin(24000)

    bots.end(first)

    assert bots.ears == {1: second}
    assert bots.begun == 2


def test_libopus_alone_takes_time() -> None:
    decoding, encoding = codec.measure(2, 0.01)

    assert decoding > 0
    assert encoding > 0


# The client.

ANSWER = """v=0
m=audio 9 UDP/TLS/RTP/SAVPF 111
a=candidate:1 1 tcp 1 198.18.0.9 9 typ host tcptype passive
a=candidate:2 1 udp 1 198.18.0.11 40000 typ host
a=ice-ufrag:abcd
a=ice-pwd:secretsecretsecretsecret
a=fingerprint:sha-1 00:11
a=fingerprint:sha-256 AA:BB
a=setup:active
"""


def test_an_answer_is_read() -> None:
    answer = Answer(ANSWER)

    assert answer.destination == ("198.18.0.11", 40000)
    assert (answer.remote.ufrag, answer.fingerprint) == ("abcd", b"\xaa\xbb")
    assert answer.is_active
    assert answer.level_id is None
    assert (
        Answer(
            ANSWER + "a=extmap:5/sendrecv urn:ietf:params:rtp-hdrext:ssrc-audio-level\n"
        ).level_id
        == 5
    )


@pytest.mark.parametrize(
    "text",
    [
        ANSWER.replace("a=ice-pwd", "a=other"),
        ANSWER.replace("1 udp", "1 tcp"),
        ANSWER.replace("sha-256", "sha-512"),
        ANSWER.replace("m=audio 9", "m=audio 0"),
    ],
)
def test_an_answer_that_is_of_no_use_is_an_error(text: str) -> None:
    with pytest.raises(ShuntError):
        Answer(text)


def test_a_client_checks_until_it_is_answered() -> None:
    call = Call(Certificate.fresh(), source=("198.18.0.10", 1000), packets=())
    call.answered(ANSWER, 10.0)

    due = call.next_deadline()
    assert due is not None
    call.poll(due)

    assert call.state is State.CHECKING
    assert len(call.outgoing) == 2
    assert call.outgoing[0] != call.outgoing[1]


def test_an_offer_goes_out_as_http_has_it() -> None:
    sent = Callee(("198.18.0.11", 80), "/offer", {"Authorization": "Bearer k"}).request("v=0")

    head, _, body = sent.partition(b"\r\n\r\n")
    assert head.split(b"\r\n")[0] == b"POST /offer HTTP/1.1"
    assert b"Content-Length: 3" in head
    assert b"Authorization: Bearer k" in head
    assert body == b"v=0"


# A run.


def test_stock_aiortc_is_called_and_leaves_nothing(tmp_path: Path) -> None:
    with place():
        callee = Callee((CALLED_HOST, 8100), "/offer")
        server = Server("stock", tmp_path, callee=callee, cpu=0, more=[])
        clients = Clients(CALLER_HOST, CALLERS)
        try:
            server.ready()
            lines = clients.connect(callee, 2, at_once=2, packets=speech.packets())
            spoken = clients.talk(
                lines, settle=0.3, seconds=0.5, at_start=server.ask, at_end=server.ask
            )
            before, after = server.answer(), server.answer()
            clients.hang_up(lines)
            empty = server.wait_until_empty(lambda: clients.hang_up(lines))
        finally:
            clients.close()
            server.end()

    assert len(spoken.heard) == 2
    assert min(spoken.heard) > 0
    assert after.cpu > before.cpu
    assert all(after.ears[each].seconds > before.ears[each].seconds for each in (0, 1))
    assert (empty.sessions, empty.ears) == (0, {})
    assert CALLERS not in netns.listnetns()


def test_a_server_that_does_not_start_says_why(tmp_path: Path) -> None:
    callee = Callee(("203.0.113.1", 8100), "/offer")  # nobody's address
    with place():
        server = Server("stock", tmp_path, callee=callee, cpu=0, more=[])
        try:
            with pytest.raises(ShuntError, match="assign requested address"):
                server.ready()
        finally:
            server.end()


@pytest.fixture(scope="module")
def measured() -> Report:
    said: list[str] = []
    found = transceiver.run(PINS, quick=True, progress=said.append, scale=SMALL)
    assert said[-1] == "bench transceiver: 20 sessions have come and gone"
    return found


def test_a_run_measures_all_that_the_targets_ask_for(measured: Report) -> None:
    targets = read_targets("transceiver")

    assert len(hold(measured, targets)) == len(targets) == 7
    names = {case.name for case in measured.cases}
    for subject in ("stock", "ours"):
        assert names >= {
            f"{subject}.{what}"
            for what in (
                *("sessions", "slowest", "delay.p50", "delay.p99"),
                *("setup.p50", "setup.2.p50", "setup.cpu", "memory"),
            )
        }
    assert all(case.unit for case in measured.cases)


def test_a_run_says_at_which_loads_and_shows_it(measured: Report) -> None:
    assert {name: len(each) for name, each in measured.facts["loads"].items()} == {
        **{"stock": 1, "ours": 1}
    }
    assert [point["sessions"] for point in measured.facts["come_and_gone"]] == [*range(0, 21, 2)]

    said = io.StringIO()
    show(Console(file=said, width=200), measured, hold(measured, read_targets("transceiver")))

    assert "sessions come and gone" in said.getvalue()


def test_a_run_leaves_nothing(measured: Report) -> None:
    assert measured.cases
    assert not [name for name in netns.listnetns() if name.startswith("bench-call")]
