"""A conversation with a server of Realtime events, over a real WebSocket.

What is heard of it passes in virtual time.
"""

import asyncio
import json
import logging
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trustme
from aiohttp import WSCloseCode, web
from yarl import URL

from tests.transceiver.backends.conversation import FakeConversation
from tests.transceiver.backends.realtime_server import RealtimeServer, Served, tone
from tests.transceiver.backends.sound import frames, noise, speech
from tests.transceiver.backends.waiting import until
from transceiver.backends.oai_events import LABEL
from transceiver.backends.realtime import Realtime
from transceiver.backends.realtime.endpoint import Endpoint
from transceiver.backends.realtime.link import MAX_GARBAGE, Patience

ONE_TURN = noise(0.5) + speech(1.0) + noise(0.7)
HASTY = Patience(first_retry=0.02, longest_retry=0.1, without=5.0)


class Client:
    """The client's side of a session with that backend."""

    def __init__(
        self, url: str, *, patience: Patience = HASTY, beta: bool = False, **configuration: object
    ):
        self.conversation = FakeConversation(configuration=configuration)
        self.realtime = Realtime(Endpoint(url=URL(url), beta=beta), patience)
        self.at = 0

    def start(self) -> None:
        self.realtime.start(self.conversation)
        self.realtime.channel_opened(LABEL)

    def speak(self, pcm: bytes) -> None:
        for frame in frames(pcm):
            self.realtime.hear(frame, self.at, False)
            self.at += len(frame) // 2

    def send(self, type: str, **fields: object) -> None:
        self.realtime.receive(LABEL, json.dumps({"type": type, "event_id": "mine", **fields}))

    def errors(self) -> list[object]:
        return [
            error["code"]
            for event in self.conversation.events
            if event["type"] == "error" and isinstance(error := event["error"], dict)
        ]

    async def told(self, type: str, times: int = 1) -> dict[str, object]:
        await until(lambda: self.conversation.types.count(type) >= times)
        return self.conversation.event(type)


@pytest.fixture
async def server() -> AsyncIterator[RealtimeServer]:
    async with RealtimeServer() as server:
        yield server


@asynccontextmanager
async def client_of(server: RealtimeServer, **how: object) -> AsyncIterator[Client]:
    client = Client(server.url, **how)  # type: ignore[arg-type]
    client.start()
    try:
        yield client
    finally:
        await client.realtime.close()


@pytest.fixture
async def client(server: RealtimeServer) -> AsyncIterator[Client]:
    async with client_of(server) as client:
        await client.told("session.created")
        yield client


# A conversation


async def test_a_turn_is_heard_by_the_server_and_its_answer_by_the_client(
    server: RealtimeServer, client: Client
) -> None:
    client.speak(ONE_TURN)
    await client.told("response.done")

    client.conversation.play(1.0)

    (served,) = server.connections
    assert bytes(served.audio) == ONE_TURN[: len(served.audio)]
    assert len(ONE_TURN) - len(served.audio) < 0.04 * 48000
    assert bytes(client.conversation.played) == tone(1.0)


async def test_the_client_gets_the_servers_events_and_ours_but_no_audio(client: Client) -> None:
    client.speak(ONE_TURN)
    await client.told("response.done")
    client.conversation.play(1.0)
    assert client.conversation.types == [
        "session.created",
        "input_audio_buffer.speech_started",
        "input_audio_buffer.speech_stopped",
        "response.created",
        "output_audio_buffer.started",
        "response.output_audio.done",
        "response.done",
        "output_audio_buffer.stopped",
    ]


async def test_a_server_of_the_beta_is_heard_too(server: RealtimeServer) -> None:
    server.beta = True
    async with client_of(server, beta=True, voice="alloy", type="realtime") as client:
        client.send("response.create")
        await client.told("response.done")
        client.conversation.play(1.0)
    assert bytes(client.conversation.played) == tone(1.0)
    assert server.connections[0].event("session.update")["session"] == {"voice": "alloy"}


async def test_audio_goes_in_pieces_of_40_ms(server: RealtimeServer, client: Client) -> None:
    client.speak(noise(1.0))
    await until(lambda: len(server.connections[0].audio) == 48000)
    assert server.connections[0].appends == [1920] * 25


async def test_what_the_client_said_comes_before_what_it_asks(
    server: RealtimeServer, client: Client
) -> None:
    client.speak(noise(0.1))
    client.send("input_audio_buffer.commit")
    await client.told("input_audio_buffer.committed")
    assert len(server.connections[0].audio) == 4800


async def test_what_is_said_before_there_is_a_connection_is_heard(server: RealtimeServer) -> None:
    client = Client(server.url)
    client.start()
    client.speak(noise(1.0))
    client.send("conversation.item.create", item={"type": "message"})
    await client.told("conversation.item.added")
    assert bytes(server.connections[0].audio) == noise(1.0)
    await client.realtime.close()


# What a session is set to


async def test_what_was_posted_with_the_offer_is_set_before_anything_else(
    server: RealtimeServer,
) -> None:
    async with client_of(server, instructions="Be brief.", type="realtime") as client:
        client.send("response.create")
        await client.told("response.done")
    assert server.connections[0].types == ["session.update", "response.create"]
    assert server.connections[0].events[0]["session"] == {
        "type": "realtime",
        "instructions": "Be brief.",
    }


async def test_nothing_is_set_if_nothing_was_posted(server: RealtimeServer, client: Client) -> None:
    client.send("response.create")
    await client.told("response.done")
    assert server.connections[0].types == ["response.create"]


async def test_a_client_changes_neither_model_nor_format(
    server: RealtimeServer, client: Client
) -> None:
    client.send(
        "session.update",
        session={
            "type": "realtime",
            "model": "the-dearest",
            "audio": {
                "input": {"format": {"type": "audio/pcmu"}, "noise_reduction": None},
                "output": {"format": {"type": "audio/pcmu"}, "voice": "alloy"},
            },
            "output_audio_format": "g711_ulaw",
        },
    )
    await client.told("session.updated")
    assert server.connections[0].event("session.update")["session"] == {
        "type": "realtime",
        "audio": {"input": {"noise_reduction": None}, "output": {"voice": "alloy"}},
    }


async def test_a_response_has_no_other_format_either(
    server: RealtimeServer, client: Client
) -> None:
    output = {"format": {"type": "audio/pcmu"}, "voice": "alloy"}
    client.send(
        "response.create",
        response={"audio": {"output": output}, "output_audio_format": "g711_ulaw"},
    )
    await client.told("response.done")
    assert server.connections[0].event("response.create")["response"] == {
        "audio": {"output": {"voice": "alloy"}}
    }


async def test_the_clients_model_is_asked_for_where_the_operator_names_none(
    server: RealtimeServer,
) -> None:
    async with client_of(server, model="small & cheap") as client:
        await client.told("session.created")
    assert server.connections[0].query == {"model": "small & cheap"}


async def test_what_the_server_refuses_the_client_learns(client: Client) -> None:
    client.send("session.update", session={"bad": True})
    error = (await client.told("error"))["error"]
    assert isinstance(error, dict)
    assert (error["code"], error["event_id"]) == ("unknown_parameter", "mine")


@pytest.mark.parametrize(
    ("type", "fields", "code"),
    [
        ("input_audio_buffer.append", {"audio": "AAAA"}, "invalid_event"),
        ("session.update", {"session": 7}, "invalid_value"),
        ("session.update", {}, "invalid_value"),
    ],
)
async def test_what_the_server_need_not_see_is_refused_here(
    server: RealtimeServer, client: Client, type: str, fields: dict[str, object], code: str
) -> None:
    client.send(type, **fields)
    assert client.errors() == [code]


async def test_messages_on_other_channels_are_not_the_servers(
    server: RealtimeServer, client: Client
) -> None:
    client.realtime.receive("chat", '{"type": "response.create"}')
    client.send("response.cancel")
    await until(lambda: server.connections[0].events)
    assert server.connections[0].types == ["response.cancel"]


# Barge-in


async def test_who_interrupts_is_not_talked_over_and_the_server_knows_what_was_heard(
    server: RealtimeServer, client: Client
) -> None:
    server.answer = 10.0
    client.speak(ONE_TURN)
    await client.told("response.done")
    client.conversation.play(1.5)

    client.speak(noise(0.3) + speech(0.3))
    await client.told("conversation.item.truncated")

    assert client.conversation.backlog == 0
    assert len(client.conversation.played) == 1.5 * 48000
    truncate = server.connections[0].event("conversation.item.truncate")
    assert truncate["audio_end_ms"] == 1500
    types = client.conversation.types
    assert types[types.index("output_audio_buffer.started") :] == [
        "output_audio_buffer.started",
        "response.output_audio.done",
        "response.done",
        "input_audio_buffer.speech_started",
        "output_audio_buffer.cleared",
        "conversation.item.truncated",
    ]


async def test_of_a_cancelled_response_nothing_more_is_heard(
    server: RealtimeServer, client: Client
) -> None:
    server.endless = True
    client.send("response.create")
    await client.told("response.output_audio.done")
    (served,) = server.connections
    client.conversation.play(0.5)

    await served.send("input_audio_buffer.speech_started", audio_start_ms=0)
    await served.say("resp_2", "item_2", tone(1.0))
    await served.say("resp_9", "item_9", tone(0.5, 880))
    await served.send("marker")
    await client.told("marker")
    client.conversation.play(2.0)

    assert bytes(client.conversation.played) == tone(1.0)[:24000] + tone(0.5, 880)


async def test_an_answer_that_is_not_to_be_interrupted_is_not(
    server: RealtimeServer, client: Client
) -> None:
    detection = {"type": "server_vad", "interrupt_response": False}
    client.send("session.update", session={"audio": {"input": {"turn_detection": detection}}})
    client.send("response.create")
    await client.told("response.done")
    await server.connections[0].send("input_audio_buffer.speech_started", audio_start_ms=0)
    await client.told("input_audio_buffer.speech_started")
    assert client.conversation.backlog == 1.0


async def test_a_client_may_clear_what_is_said(server: RealtimeServer, client: Client) -> None:
    server.endless = True
    client.send("response.create")
    await client.told("response.output_audio.done")
    client.conversation.play(0.2)

    client.send("response.cancel")
    client.send("output_audio_buffer.clear")
    await client.told("conversation.item.truncated")

    assert client.conversation.backlog == 0
    assert server.connections[0].types[-2:] == ["response.cancel", "conversation.item.truncate"]
    assert "output_audio_buffer.cleared" in client.conversation.types


async def test_errors_about_what_we_told_the_server_are_not_the_clients(
    server: RealtimeServer, client: Client
) -> None:
    """A server may have forgotten the item, or have less of it."""
    (served,) = server.connections
    await served.send("response.created", response={"id": "r"})
    await served.say("r", "item_of_which_it_knows_less", tone(1.0))
    await until(lambda: client.conversation.backlog == 1.0)
    client.conversation.play(0.5)
    served._said.clear()

    client.send("output_audio_buffer.clear")
    client.send("conversation.item.create", item={})
    await client.told("conversation.item.added")

    assert "conversation.item.truncate" in served.types
    assert client.errors() == []


# Floods, both ways


async def test_a_long_answer_waits_here_and_can_still_be_interrupted(
    server: RealtimeServer, client: Client
) -> None:
    server.answer = 150.0
    client.send("response.create")
    await client.told("response.done")
    assert client.conversation.backlog <= 60.0

    client.conversation.play(2.0)
    await server.connections[0].send("input_audio_buffer.speech_started", audio_start_ms=0)
    await client.told("conversation.item.truncated")

    assert client.conversation.backlog == 0
    assert server.connections[0].event("conversation.item.truncate")["audio_end_ms"] == 2000


async def test_a_long_answer_is_heard_whole(server: RealtimeServer, client: Client) -> None:
    server.answer = 150.0
    client.send("response.create")
    await client.told("response.done")
    while "output_audio_buffer.stopped" not in client.conversation.types:
        client.conversation.play(5.0)
        await asyncio.sleep(0)
    assert bytes(client.conversation.played) == tone(150.0)
    assert client.conversation.types[-1] == "output_audio_buffer.stopped"


async def test_a_server_that_says_more_than_anybody_can_hear_is_not_read(
    server: RealtimeServer,
) -> None:
    said = 0
    piece = tone(10.0)

    async def flood(served: Served) -> None:
        nonlocal said
        await served.send("response.created", response={"id": "r"})
        while True:
            await served.say("r", "i", piece)
            said += 10

    server.instead = flood
    async with client_of(server) as client:
        realtime = client.realtime
        await until(lambda: realtime._held_bytes >= 240 * 48000)
        before = said
        client.conversation.play(40.0)
        await until(lambda: said > before)
        await until(lambda: realtime._held_bytes >= 240 * 48000)
        before = said
        client.send("output_audio_buffer.clear")
        await until(lambda: said > before)
        assert client.conversation.ended is None
        assert realtime._held_bytes <= 241 * 48000


async def test_a_server_that_does_not_read_gets_the_newest_audio(server: RealtimeServer) -> None:
    reads = asyncio.Event()

    async def hang(served: Served) -> None:
        await reads.wait()
        await served.serve()

    server.instead = hang
    async with client_of(server) as client:
        await until(lambda: server.connections)
        for second in range(120):
            client.speak(bytes([second, 0]) * 24000)
            await asyncio.sleep(0)
        reads.set()
        await until(lambda: server.connections[0].audio.endswith(bytes([119, 0]) * 24000))
        assert len(server.connections[0].audio) < 120 * 48000


async def test_a_client_that_asks_more_than_a_server_takes_is_told(
    server: RealtimeServer,
) -> None:
    async def hang(served: Served) -> None:
        await asyncio.Event().wait()

    server.instead = hang
    async with client_of(server) as client:
        await until(lambda: server.connections)
        while not client.errors():
            client.send("conversation.item.create", item={"x": "y" * 100_000})
            await asyncio.sleep(0)
        assert client.errors() == ["server_unavailable"]
        assert client.conversation.ended is None


# Servers that die, hang, refuse, and talk nonsense


async def test_a_connection_that_is_lost_is_made_again_with_what_was_set(
    server: RealtimeServer,
) -> None:
    async with client_of(server, instructions="Be brief.") as client:
        client.send("session.update", session={"audio": {"output": {"voice": "alloy"}}})
        client.send("session.update", session={"bad": True})
        client.send("session.update", session={"audio": {"input": {"noise_reduction": None}}})
        await client.told("session.updated", 3)

        await server.connections[0].ws.close(code=WSCloseCode.GOING_AWAY)
        await client.told("session.updated", 4)

        assert client.errors() == ["unknown_parameter", "server_connection_lost"]
        assert [event["session"] for event in server.connections[1].events] == [
            {
                "type": "realtime",
                "instructions": "Be brief.",
                "audio": {"output": {"voice": "alloy"}, "input": {"noise_reduction": None}},
            }
        ]


async def test_what_is_said_meanwhile_is_not_lost(server: RealtimeServer, client: Client) -> None:
    await server.listen_no_more()
    await server.connections[0].ws.close(code=WSCloseCode.GOING_AWAY)
    await client.told("error")
    client.speak(noise(8.0))
    await server.listen()
    await client.told("session.created", 2)
    await until(lambda: len(server.connections[1].audio) >= 5 * 48000)
    assert bytes(server.connections[1].audio) == noise(8.0)[-5 * 48000 :]


async def test_a_response_that_dies_with_its_connection_ends_for_the_client(
    server: RealtimeServer, client: Client
) -> None:
    server.endless = True
    client.send("response.create")
    await client.told("response.output_audio.done")
    server.connections[0].abort()

    response = (await client.told("response.done"))["response"]
    client.conversation.play(1.0)

    assert isinstance(response, dict)
    assert response["status"] == "failed"
    assert client.conversation.types.count("output_audio_buffer.stopped") == 1
    assert bytes(client.conversation.played) == tone(1.0)


async def test_a_server_that_stays_away_ends_the_session(server: RealtimeServer) -> None:
    await server.listen_no_more()
    async with client_of(server, patience=Patience(first_retry=0.02, without=0.2)) as client:
        await until(lambda: client.conversation.ended)
    assert "cannot be reached" in str(client.conversation.ended)
    assert client.errors() == ["server_unavailable"]


async def test_a_server_that_dies_over_and_over_ends_the_session(server: RealtimeServer) -> None:
    async def die(served: Served) -> None:
        await served.send("session.created", session={})
        served.abort()

    server.instead = die
    async with client_of(server, patience=Patience(first_retry=0.02, without=0.3)) as client:
        await until(lambda: client.conversation.ended)
    assert len(server.connections) > 1


@pytest.mark.parametrize("status", [400, 401, 403, 404])
async def test_a_refusal_is_not_asked_again(server: RealtimeServer, status: int) -> None:
    server.refusal = web.Response(status=status)
    async with client_of(server) as client:
        await until(lambda: client.conversation.ended)
    assert str(status) in str(client.conversation.ended)
    assert server.refused == 1


async def test_a_server_that_cannot_prove_who_it_is_gets_nothing() -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert("127.0.0.1").configure_cert(context)
    async with RealtimeServer(context) as server, client_of(server) as client:
        await until(lambda: client.conversation.ended)
        assert server.connections == []
    assert "does not prove who it is" in str(client.conversation.ended)


async def test_the_key_is_not_taken_along_to_another_server(server: RealtimeServer) -> None:
    async with RealtimeServer() as other:
        server.refusal = web.Response(
            status=302, headers={"Location": other.url.replace("ws:", "http:")}
        )
        endpoint = Endpoint(url=URL(server.url), headers={"Authorization": "secret"})
        realtime = Realtime(endpoint, HASTY)
        realtime.start(FakeConversation())
        await until(lambda: other.connections)
        assert "Authorization" not in other.connections[0].headers
        await realtime.close()


@pytest.mark.parametrize("status", [429, 500, 503])
async def test_a_server_that_is_full_is_asked_again(server: RealtimeServer, status: int) -> None:
    server.refusal = web.Response(status=status)
    async with client_of(server) as client:
        await until(lambda: server.refused == 2)
        server.refusal = None
        await client.told("session.created")


async def test_a_server_says_when_to_ask_again(server: RealtimeServer) -> None:
    server.refusal = web.Response(status=503, headers={"Retry-After": "3600"})
    async with client_of(server) as client:
        await until(lambda: client.conversation.ended)
    assert server.refused == 1


@pytest.mark.parametrize(
    ("code", "again"), [(1000, False), (1008, False), (3000, False), (1001, True), (1011, True)]
)
async def test_why_a_server_closes_decides_whether_it_is_asked_again(
    server: RealtimeServer, client: Client, code: int, again: bool
) -> None:
    await server.connections[0].ws.close(code=code, message=b"so\nthere")
    await until(lambda: client.conversation.ended or len(server.connections) == 2)
    assert (client.conversation.ended is None) == again
    if not again:
        assert "so there" in str(client.conversation.ended)


async def test_a_server_that_does_nothing_is_left(server: RealtimeServer) -> None:
    async def hang(served: Served) -> None:
        await asyncio.Event().wait()

    server.instead = hang
    patience = Patience(first_retry=0.02, silent=0.2, without=0.5, goodbye=0.1)
    async with client_of(server, patience=patience) as client:
        await until(lambda: client.conversation.ended)
    assert "sent nothing" in str(client.conversation.ended)


async def test_a_server_with_nothing_to_say_is_not_left(server: RealtimeServer) -> None:
    async with client_of(server, patience=Patience(silent=1.0)) as client:
        await client.told("session.created")
        (served,) = server.connections
        # Longer than the silence that is too long.
        await until(lambda: served.pings >= 6 or len(server.connections) > 1)
        assert server.connections == [served]
        assert client.errors() == []


async def test_a_server_may_ask_whether_we_are_there(
    server: RealtimeServer, client: Client
) -> None:
    (served,) = server.connections
    await served.ws.ping(b"there?")
    await until(lambda: served.pongs == [b"there?"])


async def test_a_server_that_sends_and_does_not_read_is_left(server: RealtimeServer) -> None:
    async def deaf(served: Served) -> None:
        while True:
            await served.send("marker")
            await asyncio.sleep(0.01)

    server.instead = deaf
    patience = Patience(first_retry=0.02, silent=0.2, without=0.3, goodbye=0.1)
    async with client_of(server, patience=patience) as client:
        while client.conversation.ended is None:
            client.speak(bytes(48000))
            await asyncio.sleep(0)
    assert "read nothing" in str(client.conversation.ended)


async def test_garbage_is_ignored_for_a_while(server: RealtimeServer, client: Client) -> None:
    (served,) = server.connections
    for text in ["", "{", "[]", '{"type": 7}', "nonsense"]:
        await served.ws.send_str(text)
    await served.ws.send_bytes(b"\xff")
    await served.ws.send_str('{"type": "response.output_audio.delta", "delta": "not base64!"}')
    await served.send("marker")
    await client.told("marker")
    assert client.conversation.types == ["session.created", "marker"]


async def test_who_talks_nothing_but_nonsense_is_no_server_of_these_events(
    server: RealtimeServer, client: Client
) -> None:
    for _ in range(MAX_GARBAGE + 1):
        await server.connections[0].ws.send_str("nonsense")
    await until(lambda: client.conversation.ended)
    assert "does not speak Realtime events" in str(client.conversation.ended)


async def test_half_a_sample_waits_for_its_other_half(
    server: RealtimeServer, client: Client
) -> None:
    (served,) = server.connections
    await served.say("r", "i", tone(0.1)[:-1])
    await served.say("r", "i", tone(0.1)[-1:])
    await served.send("marker")
    await client.told("marker")
    client.conversation.play(0.1)
    assert bytes(client.conversation.played) == tone(0.1)


async def test_a_session_that_ends_says_goodbye(server: RealtimeServer, client: Client) -> None:
    await client.realtime.close()
    await until(lambda: server.connections[0].closed_by_client is not None)
    assert server.connections[0].closed_by_client == WSCloseCode.OK


async def test_a_session_that_never_began_can_be_closed() -> None:
    await Realtime(Endpoint(url=URL("ws://127.0.0.1:1/"))).close()


async def test_no_key_is_shown_in_a_log(
    server: RealtimeServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    endpoint = Endpoint(url=URL(server.url + "?key=secret"), headers={"Authorization": "secret"})
    realtime = Realtime(endpoint, HASTY)
    realtime.start(FakeConversation())
    await until(lambda: server.connections)
    await server.connections[0].ws.close(code=1001)
    await until(lambda: len(server.connections) == 2)
    await realtime.close()
    assert server.connections[1].headers["Authorization"] == "secret"
    assert "secret" not in caplog.text
    assert "secret" not in endpoint.name
