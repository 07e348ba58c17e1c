"""A server of OpenAI's Realtime events: small, real, and able to misbehave.

It hears turns, answers each with a tone as fast as it can, keeps what was said to whom, and refuses
what the API refuses. What it is told to do instead (`instead`) it does instead.
"""

import asyncio
import base64
import json
import ssl
from collections.abc import Awaitable, Callable, Mapping
from typing import Self

import numpy as np
from aiohttp import WSMsgType, web

from transceiver.backends.oai_session import TurnDetection
from transceiver.backends.turns import SpeechStarted, SpeechStopped, Turns
from transceiver.backends.vad import EnergyVad

__all__ = ["RealtimeServer", "Served", "tone"]

RATE = 24000
DELTA = RATE // 10 * 2
"""Bytes of audio in a delta: 100 ms."""


def tone(seconds: float, hertz: float = 440.0) -> bytes:
    time = np.arange(round(seconds * RATE)) / RATE
    return (8000 * np.sin(2 * np.pi * hertz * time)).astype("<i2").tobytes()


class Served:
    """One connection, as the server sees it."""

    def __init__(self, server: "RealtimeServer", request: web.Request) -> None:
        self.server = server
        self.query = dict(request.query)
        self.headers = dict(request.headers)
        self.transport = request.transport
        self.ws = web.WebSocketResponse(max_msg_size=1 << 24, autoping=False)
        self.audio = bytearray()
        self.appends: list[int] = []
        """Bytes of audio in each event."""
        self.events: list[dict[str, object]] = []
        """What came, but for the audio."""
        self.session: dict[str, object] = {"object": "realtime.session", "type": "realtime"}
        self.pings = 0
        self.pongs: list[bytes] = []
        self.closed_by_client: int | None = None
        self._turns = Turns(rate=RATE, vad=EnergyVad(RATE))
        self._said: dict[str, float] = {}  # ms of each item
        self._number = 0
        self._answer: asyncio.Task[None] | None = None
        self._response: str | None = None

    @property
    def types(self) -> list[object]:
        return [event["type"] for event in self.events]

    def event(self, type: str) -> dict[str, object]:
        return [event for event in self.events if event["type"] == type][-1]

    async def send(self, type: str, **fields: object) -> None:
        self._number += 1
        await self.ws.send_str(
            json.dumps({"type": type, "event_id": f"event_{self._number}", **fields})
        )

    def abort(self) -> None:
        """Die: no goodbye, no FIN."""
        assert self.transport is not None
        self.transport.abort()

    async def say(self, response_id: str, item_id: str, pcm: bytes) -> None:
        """Audio, as deltas."""
        beta = self.server.beta
        for start in range(0, len(pcm), DELTA):
            piece = pcm[start : start + DELTA]
            self._said[item_id] = self._said.get(item_id, 0.0) + len(piece) / 48
            await self.send(
                "response.audio.delta" if beta else "response.output_audio.delta",
                response_id=response_id,
                item_id=item_id,
                output_index=0,
                content_index=0,
                delta=base64.b64encode(piece).decode(),
            )

    async def respond(self, seconds: float | None = None) -> None:
        """A whole response; it goes on while this task lives."""
        self._number += 1
        response, item = f"resp_{self._number}", f"item_{self._number}"
        self._response = response
        await self.send("response.created", response={"id": response, "status": "in_progress"})
        await self.say(response, item, tone(seconds or self.server.answer))
        await self.send("response.output_audio.done", response_id=response, item_id=item)
        if self.server.endless:
            await asyncio.Event().wait()
        self._response = None
        await self.send("response.done", response={"id": response, "status": "completed"})

    async def serve(self) -> None:
        await self.send("session.created", session=self.session)
        try:
            async for message in self.ws:
                if message.type is WSMsgType.TEXT:
                    await self._hear(json.loads(message.data))
                elif message.type is WSMsgType.PING:
                    self.pings += 1
                    await self.ws.pong(message.data)
                elif message.type is WSMsgType.PONG:
                    self.pongs.append(bytes(message.data))
        finally:
            self.closed_by_client = self.ws.close_code
            if self._answer is not None:
                self._answer.cancel()

    async def _hear(self, event: dict[str, object]) -> None:
        if event["type"] == "input_audio_buffer.append":
            pcm = base64.b64decode(str(event["audio"]), validate=True)
            self.appends.append(len(pcm))
            at = len(self.audio) // 2
            self.audio += pcm
            for found in self._turns.hear(pcm, at, False, TurnDetection()):
                await self._turn(found)
            return
        self.events.append(event)
        match event["type"]:
            case "session.update":
                session = event["session"]
                assert isinstance(session, dict)
                if "bad" in session:
                    await self._refuse(event, "unknown_parameter")
                    return
                self.session.update(session)
                await self.send("session.updated", session=self.session)
            case "response.create":
                self._begin()
            case "response.cancel":
                await self._cancel()
            case "conversation.item.create":
                await self.send("conversation.item.added", item=event["item"])
            case "conversation.item.truncate":
                end = event["audio_end_ms"]
                assert isinstance(end, int)
                if end > self._said.get(str(event["item_id"]), -1):
                    await self._refuse(event, "invalid_value")
                else:
                    await self.send(
                        "conversation.item.truncated",
                        item_id=event["item_id"],
                        content_index=0,
                        audio_end_ms=end,
                    )
            case "input_audio_buffer.commit":
                await self.send("input_audio_buffer.committed", item_id="item_user")
            case _:
                await self._refuse(event, "invalid_value")

    async def _turn(self, found: SpeechStarted | SpeechStopped) -> None:
        match found:
            case SpeechStarted():
                await self.send(
                    "input_audio_buffer.speech_started", audio_start_ms=found.audio_start_ms
                )
                await self._cancel()
            case SpeechStopped():
                await self.send(
                    "input_audio_buffer.speech_stopped", audio_end_ms=found.audio_end_ms
                )
                self._begin()

    def _begin(self) -> None:
        self._answer = asyncio.create_task(self.respond())

    async def _cancel(self) -> None:
        if self._answer is not None:
            self._answer.cancel()
            await asyncio.wait([self._answer])
        if self._response is not None:
            response = {"id": self._response, "status": "cancelled"}
            self._response = None
            await self.send("response.done", response=response)

    async def _refuse(self, event: Mapping[str, object], code: str) -> None:
        await self.send(
            "error",
            error={
                "type": "invalid_request_error",
                "code": code,
                "message": f"{event['type']} was refused",
                "event_id": event.get("event_id"),
            },
        )


class RealtimeServer:
    """Serves on loopback at `url`; `connections` are all that there have been."""

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self._tls = tls
        self.connections: list[Served] = []
        self.beta = False
        self.answer = 1.0
        """Seconds of audio in a response."""
        self.endless = False
        """Whether responses, when all of their audio is said, do not end unless cancelled."""
        self.refusal: web.Response | None = None
        """What each attempt to connect is answered with."""
        self.refused = 0
        self.instead: Callable[[Served], Awaitable[None]] | None = None
        """What is done with each connection."""
        self.url = ""
        self._runner = web.AppRunner(self._app(), shutdown_timeout=0.1, access_log=None)
        self._port = 0

    async def __aenter__(self) -> Self:
        await self._runner.setup()
        await self.listen()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._runner.cleanup()

    async def listen(self) -> None:
        site = web.TCPSite(self._runner, "127.0.0.1", self._port, ssl_context=self._tls)
        await site.start()
        (self._port,) = {address[1] for address in self._runner.addresses}
        scheme = "ws" if self._tls is None else "wss"
        self.url = f"{scheme}://127.0.0.1:{self._port}/v1/realtime"

    async def listen_no_more(self) -> None:
        """Whoever connects is refused by the kernel; connections that are go on."""
        for site in list(self._runner.sites):
            await site.stop()

    def _app(self) -> web.Application:
        app = web.Application()
        app.router.add_get("/v1/realtime", self._connect)
        return app

    async def _connect(self, request: web.Request) -> web.StreamResponse:
        if self.refusal is not None:
            self.refused += 1
            return web.Response(status=self.refusal.status, headers=self.refusal.headers)
        served = Served(self, request)
        await served.ws.prepare(request)
        self.connections.append(served)
        if self.instead is not None:
            await self.instead(served)
        else:
            await served.serve()
        return served.ws
