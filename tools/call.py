"""A call as a client places it: an aiortc peer that says something, listens, pings and measures.

Takes any transceiver's URL; knows nothing of the lab or the relay.
"""

import asyncio
import ipaddress
import re
import statistics
import time
import wave
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal, cast
from urllib.parse import urljoin, urlsplit

import aiohttp
import av
import numpy as np
from aiortc import (
    MediaStreamError,
    MediaStreamTrack,
    RTCConfiguration,
    RTCDataChannel,
    RTCPeerConnection,
    RTCSessionDescription,
)

from loader.errors import ShuntError

__all__ = ["CallReport", "Family", "only_family", "place_call", "signaling_url"]

RATE = 48000
FRAME = RATE // 50  # samples in 20 ms, one Opus packet
CALLS_PATH = "/v1/realtime/calls"
CONNECT_S, FIRST_MEDIA_S, PING_EVERY_S = 10.0, 5.0, 0.1
CANDIDATE = re.compile(r"a=candidate:\S+ \d+ \S+ \d+ (\S+) ")

Family = Literal["ipv4", "ipv6", "any"]


@dataclass(frozen=True, slots=True)
class CallReport:
    """What a call measured. Packets are RTP's; times are milliseconds."""

    url: str
    ufrag: str  # the server's, from its answer
    setup_ms: float  # from the POST to connected
    sent: int
    received: int
    datachannel_rtt_ms: float | None  # median; None if nothing came back
    remote_candidate: str  # address:port of the pair in use, IPv6 in brackets

    def to_json(self) -> dict[str, Any]:
        return {
            "url": self.url,
            "ufrag": self.ufrag,
            "setup_ms": self.setup_ms,
            "audio": {"sent": self.sent, "received": self.received},
            "datachannel_rtt_ms": self.datachannel_rtt_ms,
            "remote_candidate": self.remote_candidate,
        }


def signaling_url(url: str) -> str:
    """The URL to POST an offer to: a bare origin gets the default path."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ShuntError(f"not an HTTP URL: {url}", "For instance http://198.18.1.11:8080")
    return urljoin(url, CALLS_PATH) if parts.path in ("", "/") else url


def only_family(sdp: str, family: Family) -> str:
    """The description without the candidates of the other family (RFC 8839 5.1)."""
    if family == "any":
        return sdp
    wanted = 6 if family == "ipv6" else 4
    return "".join(
        line
        for line in sdp.splitlines(keepends=True)
        if not (found := CANDIDATE.match(line)) or _version(found[1]) == wanted
    )


def _version(host: str) -> int | None:
    """4 or 6; None for a name."""
    try:
        return ipaddress.ip_address(host).version
    except ValueError:
        return None


async def place_call(
    url: str,
    *,
    key: str | None = None,
    audio: Path | None = None,
    duration_s: float | None = None,
    save: Path | None = None,
    family: Family = "any",
    during: Callable[[str], Awaitable[None]] | None = None,
) -> CallReport:
    """Call *url*, talk for *duration_s* seconds after the first media has come back, hang up.

    Says the file *audio*, or a tone; without a duration, the file's length and one second, or
    five seconds. Media goes over *family* alone, or over what ICE finds best; signaling over what
    the URL says. *during* is awaited with the server's ufrag while the call is up.
    Raises ShuntError: refused, unauthorized, no connection or no media within a deadline, no
    candidate of that family.
    """
    target = signaling_url(url)
    speech = _Speech(_read_audio(audio) if audio else None)
    if duration_s is None:
        duration_s = speech.length_s + 1.0 if audio else 5.0
    # No STUN server: nothing outside the call itself is asked.
    pc = RTCPeerConnection(RTCConfiguration(iceServers=[]))
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    async with aiohttp.ClientSession(headers=headers) as http:
        location = None
        ears = _Ears()
        try:
            pc.addTrack(speech)
            channel = pc.createDataChannel("ping")
            pings = _Pings(channel)
            connected = _connected(pc)
            pc.on("track", ears.listen)
            await pc.setLocalDescription(await pc.createOffer())
            started = time.monotonic()
            offer = only_family(pc.localDescription.sdp, family)
            answer, location = await _offer(http, target, offer)
            reachable = only_family(answer, family)
            if family != "any" and "\na=candidate:" not in reachable:
                name = {"ipv4": "IPv4", "ipv6": "IPv6"}[family]
                raise ShuntError(
                    f"{target} answers with no {name} candidate",
                    "Its relay has no VIP of that family (`shunt agent run --vip`).",
                )
            await pc.setRemoteDescription(RTCSessionDescription(sdp=reachable, type="answer"))
            try:
                await asyncio.wait_for(connected, CONNECT_S)
            except TimeoutError:
                raise ShuntError(
                    f"no media path to {target} within {CONNECT_S:.0f} s",
                    "Signaling works, UDP does not: see `shunt counters` on the relay.",
                ) from None
            setup_ms = (time.monotonic() - started) * 1000
            await _within(ears.heard, FIRST_MEDIA_S, f"connected to {target}, but heard nothing")
            if during:
                await during(_ufrag(answer))
            await asyncio.gather(asyncio.sleep(duration_s), pings.run(duration_s))
            report = CallReport(
                url=target,
                ufrag=_ufrag(answer),
                setup_ms=round(setup_ms, 1),
                sent=await _packets(pc, "outbound-rtp", "packetsSent"),
                received=await _packets(pc, "inbound-rtp", "packetsReceived"),
                datachannel_rtt_ms=pings.median_ms(),
                remote_candidate=_remote_candidate(pc),
            )
        finally:
            if location:
                with suppress(aiohttp.ClientError):
                    await (await http.delete(location)).release()
            await pc.close()
            await ears.stop()
    if save:
        ears.write(save)
    return report


class _Speech(MediaStreamTrack):
    """20 ms frames of 48 kHz mono in real time: the samples once and then silence, or a tone."""

    kind = "audio"

    def __init__(self, samples: np.ndarray | None) -> None:
        super().__init__()
        self._samples = samples
        self._position = 0
        self._start: float | None = None
        self.length_s = 0.0 if samples is None else len(samples) / RATE

    async def recv(self) -> av.AudioFrame:
        if self.readyState != "live":
            raise MediaStreamError
        loop = asyncio.get_running_loop()
        if self._start is None:
            self._start = loop.time()
        await asyncio.sleep(max(0.0, self._start + self._position / RATE - loop.time()))
        part = self._tone() if self._samples is None else self._next()
        frame = av.AudioFrame.from_ndarray(part[np.newaxis, :], format="s16", layout="mono")
        frame.sample_rate = RATE
        frame.pts = self._position
        frame.time_base = Fraction(1, RATE)
        self._position += FRAME
        return frame

    def _tone(self) -> np.ndarray:
        """440 Hz that swells and fades twice a second."""
        at = (self._position + np.arange(FRAME)) / RATE
        wave_ = np.sin(2 * np.pi * 440 * at) * (0.5 - 0.5 * np.cos(2 * np.pi * 2 * at))
        return np.asarray(wave_ * 16000).astype(np.int16)

    def _next(self) -> np.ndarray:
        assert self._samples is not None
        part = self._samples[self._position : self._position + FRAME]
        return np.pad(part, (0, FRAME - len(part)))


class _Ears:
    """Takes every frame of the remote track and keeps it as 48 kHz mono."""

    def __init__(self) -> None:
        self.heard = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._parts: list[np.ndarray] = []

    def listen(self, track: MediaStreamTrack) -> None:
        if track.kind == "audio" and self._task is None:
            self._task = asyncio.create_task(self._run(track))

    async def _run(self, track: MediaStreamTrack) -> None:
        to_mono = av.AudioResampler(format="s16", layout="mono", rate=RATE)
        with suppress(MediaStreamError):
            while True:
                for frame in to_mono.resample(cast(av.AudioFrame, await track.recv())):
                    self._parts.append(frame.to_ndarray().reshape(-1))
                self.heard.set()

    async def stop(self) -> None:
        if self._task:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task

    def write(self, path: Path) -> None:
        try:
            with wave.open(str(path), "wb") as file:
                file.setnchannels(1)
                file.setsampwidth(2)
                file.setframerate(RATE)
                file.writeframes(b"".join(part.tobytes() for part in self._parts))
        except OSError as error:
            raise ShuntError(f"cannot write {path}: {error.strerror}") from None


class _Pings:
    """Numbered messages over the data channel, and how long each took to come back."""

    def __init__(self, channel: RTCDataChannel) -> None:
        self._channel = channel
        self._sent: dict[str, float] = {}
        self._took: list[float] = []
        channel.on("message", self._back)

    async def run(self, duration_s: float) -> None:
        loop = asyncio.get_running_loop()
        end = loop.time() + duration_s
        while loop.time() < end:
            if self._channel.readyState == "open":
                text = f"ping {len(self._sent)}"
                self._sent[text] = loop.time()
                self._channel.send(text)
            await asyncio.sleep(min(PING_EVERY_S, max(0.0, end - loop.time())))

    def _back(self, message: str | bytes) -> None:
        if isinstance(message, str) and message in self._sent:
            self._took.append(asyncio.get_running_loop().time() - self._sent.pop(message))

    def median_ms(self) -> float | None:
        return round(statistics.median(self._took) * 1000, 2) if self._took else None


def _connected(pc: RTCPeerConnection) -> "asyncio.Future[None]":
    future: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def changed() -> None:
        if pc.connectionState == "connected" and not future.done():
            future.set_result(None)

    pc.on("connectionstatechange", changed)
    return future


async def _within(event: asyncio.Event, patience_s: float, complaint: str) -> None:
    try:
        await asyncio.wait_for(event.wait(), patience_s)
    except TimeoutError:
        raise ShuntError(
            f"{complaint} for {patience_s:.0f} s", "See `shunt flows list` on the relay."
        ) from None


async def _offer(http: aiohttp.ClientSession, url: str, sdp: str) -> tuple[str, str]:
    """POST the offer; the answer and the session's URL."""
    try:
        async with http.post(
            url,
            data=sdp,
            headers={"Content-Type": "application/sdp"},
            timeout=aiohttp.ClientTimeout(total=CONNECT_S),
        ) as response:
            text = await response.text()
            if response.status == 401:
                raise ShuntError(
                    f"{url} wants another API key", "Give it with --key or SHUNT_API_KEY."
                )
            if response.status != 201:
                raise ShuntError(f"{url} answers {response.status}: {text.strip()[:200]}")
            return text, urljoin(url, response.headers.get("Location", ""))
    except (aiohttp.ClientError, TimeoutError) as error:
        raise ShuntError(
            f"{url} cannot be reached: {error or 'no answer'}",
            "Is the transceiver running, and does this machine have a way to it? In the lab: "
            "`shunt lab exec client …`.",
        ) from None


def _ufrag(sdp: str) -> str:
    found = re.search(r"^a=ice-ufrag:(\S+)", sdp, re.MULTILINE)
    return found.group(1) if found else ""


async def _packets(pc: RTCPeerConnection, kind: str, field: str) -> int:
    stats = await pc.getStats()
    return sum(getattr(entry, field) for entry in stats.values() if entry.type == kind)


def _remote_candidate(pc: RTCPeerConnection) -> str:
    # aiortc has no public word for the pair in use.
    ice = pc.getSenders()[0].transport.transport._connection
    pair = ice._nominated.get(1)
    if pair is None:
        return ""
    host, port = pair.remote_addr
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _read_audio(path: Path) -> np.ndarray:
    """The file as 48 kHz mono samples, whatever its rate and channels."""
    try:
        with av.open(str(path)) as container:
            resampler = av.AudioResampler(format="s16", layout="mono", rate=RATE)
            frames = [f for frame in container.decode(audio=0) for f in resampler.resample(frame)]
            frames += resampler.resample(None)
    except (OSError, av.FFmpegError, IndexError) as error:
        raise ShuntError(f"cannot read audio from {path}: {error}", "Give a WAV file.") from None
    if not frames:
        raise ShuntError(f"{path} holds no audio", "Give a WAV file with sound in it.")
    return np.concatenate([frame.to_ndarray().reshape(-1) for frame in frames])
