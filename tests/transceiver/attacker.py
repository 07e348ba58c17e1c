"""A client that is in order up to where the test wants it, and then sends whatever it likes.

ICE, DTLS and SRTP by the parts that the server has, of which each is tested by itself against
other people's; so nothing here is a second opinion on the protocols.
"""

import asyncio
import re
import secrets
from typing import Self

from tests.transceiver.caller import eventually
from tests.transceiver.sdp.samples import AUDIO, DATA, offer
from transceiver import stun
from transceiver.dtls import Certificate, Dtls, DtlsState
from transceiver.ice import Credentials
from transceiver.media import opus, rtp
from transceiver.session import Session
from transceiver.sessions import Sessions
from transceiver.srtp import Srtp
from transceiver.stun import Address, Class

__all__ = ["CERTIFICATE", "Attacker"]

CERTIFICATE = Certificate.fresh()
INTERVAL = 0.05
"""Seconds between two checks of a client that has not been answered."""


class Attacker(asyncio.DatagramProtocol):
    """One session's client. *setup*: of the offer. *announced*: the certificate in the offer, if
    it is another one than the client has."""

    def __init__(
        self,
        sessions: Sessions,
        *,
        setup: str = "actpass",
        sections: tuple[list[str], ...] = (AUDIO, DATA),
        announced: Certificate = CERTIFICATE,
        answers_checks: bool = True,
    ) -> None:
        self.answers_checks = answers_checks
        self.received: list[bytes] = []
        """What came that is not STUN."""
        self.ours = Credentials.fresh()
        self._sessions = sessions
        self._setup = setup
        self._sections = sections
        self._announced = announced
        self._has_path = asyncio.Event()
        self._transport: asyncio.DatagramTransport | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._srtp: Srtp | None = None
        self._sequence = 0
        self.data: list[bytes] = []

    async def __aenter__(self) -> Self:
        """The offer is made, and the answer is there."""
        ours = {
            "a=ice-ufrag:abcd": f"a=ice-ufrag:{self.ours.ufrag}",
            "a=ice-pwd:0123456789012345678901": f"a=ice-pwd:{self.ours.password}",
            "a=setup:actpass": f"a=setup:{self._setup}",
        }
        sections = [[ours.get(line, line) for line in section] for section in self._sections]
        mids = " ".join(str(number) for number in range(len(sections)))
        text = re.sub("AB(:AB){31}", self._announced.fingerprint, offer(*sections, bundle=mids))
        self.session: Session = await self._sessions.open(text, dialect="whip")
        answer = self.session.answer
        self.theirs = Credentials(_line(answer, "ice-ufrag:"), _line(answer, "ice-pwd:"))
        fingerprint = bytes.fromhex(_line(answer, "fingerprint:sha-256 ").replace(":", ""))
        _, _, _, _, host, port, *_ = _line(answer, "candidate:").split()
        self.server: Address = host, int(port)
        self.dtls = Dtls(
            CERTIFICATE,
            is_client=_line(answer, "setup:") == "passive",
            fingerprints=[("sha-256", fingerprint)],
        )
        self._transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(
            lambda: self, local_addr=("127.0.0.1", 0)
        )
        return self

    async def __aexit__(self, *exc: object) -> None:
        self.vanish()
        await self.session.end("the test is over")

    # The stages of a session that comes to something.

    async def check(self) -> None:
        """Have media come here."""
        self._has_path.clear()
        self._tasks.append(asyncio.create_task(self._check()))
        await self._has_path.wait()

    async def connect(self) -> None:
        """`check`, and DTLS."""
        await self.check()
        await self.secure()

    async def secure(self) -> None:
        """DTLS, once there is a path."""
        self.greet()
        await eventually(lambda: self.dtls.state is DtlsState.CONNECTED)
        await eventually(lambda: str(self.session.state) == "connected")

    def greet(self) -> None:
        """Begin with DTLS: as its client say hello, as its server listen."""
        self.dtls.start(self._now())
        self._pump()

    async def speak(self, frames: int = 1) -> None:
        """Let *frames* of silence be heard, each 20 ms."""
        for _ in range(frames):
            self.send(self.srtp.protect(self.audio()))
            await asyncio.sleep(0.02)

    # What it sends, in order or not.

    def send(self, data: bytes) -> None:
        assert self._transport is not None
        self._transport.sendto(data, self.server)

    def send_data(self, data: bytes) -> None:
        """Inside of DTLS: SCTP, if it is any."""
        self.dtls.send(data)
        self._pump()

    @property
    def srtp(self) -> Srtp:
        if self._srtp is None:
            self._srtp = Srtp(self.dtls.keys())
        return self._srtp

    def audio(self, *, ssrc: int = 7, payload_type: int = 111, payload: bytes = b"") -> bytes:
        """The next packet, not protected yet."""
        self._sequence += 1
        return rtp.build(
            payload or opus.SILENCE,
            payload_type=payload_type,
            sequence=self._sequence,
            timestamp=960 * self._sequence,
            ssrc=ssrc,
        )

    def vanish(self) -> None:
        """Be gone as a killed process is."""
        for task in self._tasks:
            task.cancel()
        if self._transport is not None:
            self._transport.close()

    # What comes.

    def datagram_received(self, data: bytes, addr: Address) -> None:
        if data[0] > 3:
            self.received.append(data)
            if 20 <= data[0] <= 63 and self.dtls.state is not DtlsState.NEW:
                self.dtls.receive(data, self._now())
                self._pump()
            return
        message = stun.parse(data)
        if message.cls is Class.SUCCESS:
            self._has_path.set()
        elif self.answers_checks and message.authentic(self.ours.password):
            self.send(
                stun.binding_success(message.transaction, mapped=addr, password=self.ours.password)
            )

    async def _check(self) -> None:
        while not self._has_path.is_set():
            self.send(self.request())
            await asyncio.sleep(INTERVAL)

    def request(self) -> bytes:
        return stun.binding_request(
            secrets.token_bytes(12),
            username=f"{self.theirs.ufrag}:{self.ours.ufrag}",
            password=self.theirs.password,
            priority=1,
            controlling=1,
            use_candidate=True,
        )

    def _pump(self) -> None:
        for datagram in self.dtls.take_datagrams():
            self.send(datagram)
        self.data += self.dtls.take_data()

    def _now(self) -> float:
        return asyncio.get_running_loop().time()


def _line(answer: str, start: str) -> str:
    """What follows *start* in the answer's first line `a=` with it."""
    return answer.split(f"a={start}", 1)[1].split("\r\n", 1)[0]
