"""The client's counterpart once signaling is done: ICE, DTLS, SRTP, audio and data of one session.

    Channel ──▶ DTLS ──▶ data channels          STUN never comes this far (`shared_socket`)
       │          └─ keys ─▶ SRTP
       └──────────────────▶ SRTP ──▶ AudioReceiver ──▶ PeerEvents.hear
    metronome ──▶ AudioSender ──▶ SRTP ──▶ Channel

A packet goes all of its way in one chain of calls, with no task and no queue between; timers are
for what is due by time alone.
"""

import asyncio
import contextlib
import time
from typing import Protocol

from transceiver.datachannels import ABORTED, SHUT_DOWN, DataChannels
from transceiver.dtls import Certificate, Dtls, DtlsError, DtlsState
from transceiver.ice import Authenticated, ConsentLost, Event, Restarted, Selected
from transceiver.media import rtp
from transceiver.media.metronome import Handle, Metronome
from transceiver.media.receiver import AudioReceiver
from transceiver.media.reports import Reports
from transceiver.media.sender import AudioSender
from transceiver.sdp.answer import role
from transceiver.sdp.offer import Offer
from transceiver.shared_socket import Channel
from transceiver.srtp import Srtp, SrtpError
from transceiver.stun import Address

__all__ = ["CLIENT_HUNG_UP", "Peer", "PeerEvents"]

CLIENT_GONE = "client gone"
CLIENT_HUNG_UP = "client hung up"


class PeerEvents(Protocol):
    """What a peer tells its session, on the loop, as it happens. None of these may raise."""

    def checked(self) -> None:
        """The client's first authentic check has come."""

    def selected(self, address: Address) -> None:
        """Media goes to *address* from now on."""

    def restarted(self, old_ufrag: str) -> None:
        """An ICE restart is over: *old_ufrag* leads here no more."""

    def secured(self) -> None:
        """DTLS is done: audio and data may flow."""

    def alive(self) -> None:
        """The first authentic media packet has come, or the first data channel."""

    def hear(self, pcm: bytes, at: int, concealed: bool) -> None:
        """Audio of the client (see `backends.Backend.hear`)."""

    def channel_opened(self, label: str) -> None:
        """A data channel is open."""

    def receive(self, label: str, message: str | bytes) -> None:
        """A message has come."""

    def closed(self, reason: str) -> None:
        """Nothing more will come: `Peer.close` is to be called."""


class _Nobody:
    """Hears nothing of a peer that is closed."""

    def checked(self) -> None:
        pass

    def selected(self, address: Address) -> None:
        pass

    def restarted(self, old_ufrag: str) -> None:
        pass

    def secured(self) -> None:
        pass

    def alive(self) -> None:
        pass

    def hear(self, pcm: bytes, at: int, concealed: bool) -> None:
        pass

    def channel_opened(self, label: str) -> None:
        pass

    def receive(self, label: str, message: str | bytes) -> None:
        pass

    def closed(self, reason: str) -> None:
        pass


class Peer:
    """One client, from its first check to its end. Made by a session; ended by `close`.

    *receiver* is None if there is no audio.
    """

    def __init__(
        self,
        *,
        channel: Channel,
        certificate: Certificate,
        offer: Offer,
        sender: AudioSender,
        receiver: AudioReceiver | None,
        cname: str,
        metronome: Metronome,
        events: PeerEvents,
    ) -> None:
        self.channel = channel
        self.sender = sender
        self.receiver = receiver
        self.reports = Reports(
            sender=sender,
            receiver=receiver,
            cname=cname,
            wall=time.time,
            is_full=lambda: metronome.is_full,
        )
        self.is_heard = False
        """Whether audio is sent at all."""
        self.dropped = 0
        """Packets that were no media of this client: before the keys, forged, replayed, garbage."""
        self._events: PeerEvents = events
        self._has_audio = offer.audio is not None
        self._metronome = metronome
        self._loop = asyncio.get_running_loop()
        self.is_client = role(offer)
        """Whether we are the client of the DTLS handshake."""
        self._dtls = Dtls(certificate, is_client=self.is_client, fingerprints=offer.fingerprints)
        self._srtp: Srtp | None = None
        self._data: DataChannels | None = None
        if offer.data is not None:
            self._data = DataChannels(
                is_client=self.is_client,
                offer_port=offer.data.sctp_port,
                max_message_size=offer.data.max_message_size,
                transmit=self._transmit,
            )
            self._data.on_open = self._channel_opened
            self._data.on_message = events.receive
            self._data.on_closed = self._data_closed
        self._beat: Handle | None = None
        self._handshake_timer: asyncio.TimerHandle | None = None
        self._receive_timer: asyncio.TimerHandle | None = None
        self._is_checked = False
        self._is_secured = False
        self._is_alive = False
        self._is_closed = False

    def open(self) -> None:
        """Take part from now on; ConnectionError if the ufrag is in use."""
        self.channel.on_datagram = self._receive
        self.channel.on_event = self._ice_event
        self.channel.open()
        if not self.is_client:
            self._dtls.start(self._loop.time())  # a client may begin before its path is validated

    def send(self, label: str, message: str | bytes) -> bool:
        """Send on the data channel *label*; False if there is none, or it is backed up."""
        return self._data is not None and not self._is_closed and self._data.send(label, message)

    @property
    def complaint(self) -> str:
        """What was said against the DTLS handshake in the client's name, if anything was."""
        return self._dtls.reason

    def close(self) -> None:
        """Say goodbye on each layer, and leave nothing behind. May be called again."""
        if self._is_closed:
            return
        if self._beat is not None:
            self._beat.cancel()
        if self._data is not None:
            self._data.close()
        if self._srtp is not None:
            self._send(self._srtp.protect_rtcp(self.reports.farewell(self._loop.time())))
        self._dtls.close()
        self._send_dtls()
        self._is_closed = True
        for timer in (self._handshake_timer, self._receive_timer):
            if timer is not None:
                timer.cancel()
        self.channel.close()
        self.channel.on_datagram = self.channel.on_event = None
        # What leads back from here would keep the codecs until the garbage collector comes, which
        # does not count what libopus, libsrtp and OpenSSL hold: 100 KB.
        self._data = None
        self._events = _Nobody()
        self.sender.on_drained = None
        if self.receiver is not None:
            self.receiver.close()

    # ICE.

    def _ice_event(self, event: Event) -> None:
        match event:
            case Authenticated() if not self._is_checked:
                self._is_checked = True
                self._events.checked()
            case Selected(address):
                self._events.selected(address)
                if self._dtls.state is DtlsState.NEW and not self._is_closed:
                    self._dtls.start(self._loop.time())
                self._pump()
            case Restarted(old_ufrag):
                self._events.restarted(old_ufrag)
            case ConsentLost():
                self._events.closed(CLIENT_GONE)

    # What comes.

    def _receive(self, datagram: bytes, now: float) -> None:
        """All that is not STUN (RFC 7983)."""
        if datagram[0] < 128:
            self._dtls.receive(datagram, now)
            self._pump()
        elif self._srtp is None:
            self.dropped += 1
        elif rtp.is_rtcp(datagram):
            self._receive_rtcp(self._srtp, datagram, now)
        else:
            self._receive_rtp(self._srtp, datagram, now)

    def _receive_rtp(self, srtp: Srtp, datagram: bytes, now: float) -> None:
        try:
            packet = srtp.unprotect(datagram)
        except SrtpError:
            self.dropped += 1
            return
        if not self._is_alive:
            self._show_alive()
        receiver = self.receiver
        if receiver is None:
            return
        receiver.receive(packet, now)
        deadline = receiver.next_deadline()
        if deadline is not None:
            self._arm_receiver(deadline)

    def _receive_rtcp(self, srtp: Srtp, datagram: bytes, now: float) -> None:
        try:
            packet = srtp.unprotect_rtcp(datagram)
        except SrtpError:
            self.dropped += 1
            return
        if not self._is_alive:
            self._show_alive()
        self.reports.receive(packet, now)

    def _show_alive(self) -> None:
        self._is_alive = True
        self._events.alive()

    def _arm_receiver(self, deadline: float) -> None:
        """A timer that is there already and fires too early does no harm: it looks again."""
        timer = self._receive_timer
        if timer is not None and timer.when() > deadline:
            timer.cancel()
            timer = None
        if timer is None and not self._is_closed:
            self._receive_timer = self._loop.call_at(deadline, self._poll_receiver)

    def _poll_receiver(self) -> None:
        self._receive_timer = None
        assert self.receiver is not None
        self.receiver.poll(self._loop.time())
        deadline = self.receiver.next_deadline()
        if deadline is not None:
            self._arm_receiver(deadline)

    # DTLS, and what it carries.

    def _pump(self) -> None:
        """Carry out what DTLS wants after a datagram or the time."""
        if self._is_closed:
            return
        dtls = self._dtls
        self._send_dtls()
        if not self._is_secured and dtls.state is DtlsState.CONNECTED:
            self._secure()
        for data in dtls.take_data():
            if self._data is not None:
                self._data.receive(data)
        if self._is_closed:
            return
        if dtls.state is DtlsState.FAILED:
            self._events.closed(f"DTLS failed: {dtls.reason}")
        elif dtls.state is DtlsState.CLOSED:
            self._events.closed(CLIENT_HUNG_UP)
        elif not self._is_secured:
            self._arm_handshake()

    def _send_dtls(self) -> None:
        """What cannot go yet, waits: a client may begin before it has answered our check."""
        if self.channel.selected is not None:
            for datagram in self._dtls.take_datagrams():
                self._send(datagram)

    def _arm_handshake(self) -> None:
        if self._handshake_timer is not None:
            self._handshake_timer.cancel()
            self._handshake_timer = None
        deadline = self._dtls.next_deadline()
        if deadline is not None:
            self._handshake_timer = self._loop.call_at(deadline, self._poll_handshake)

    def _poll_handshake(self) -> None:
        self._dtls.poll(self._loop.time())
        self._pump()

    def _secure(self) -> None:
        self._is_secured = True
        try:
            self._srtp = Srtp(self._dtls.keys())
        except DtlsError:  # a client that wants data alone need not know SRTP
            if self._has_audio:
                self._events.closed("the client negotiated no SRTP")
                return
        if self._handshake_timer is not None:
            self._handshake_timer.cancel()
        self._beat = self._metronome.add(self._tick)
        if self._data is not None:
            self._data.start()
        self._events.secured()

    def _transmit(self, data: bytes) -> None:
        """A packet of SCTP goes out."""
        try:
            self._dtls.send(data)
        except DtlsError:
            return  # it is over, and whoever ended it tells
        self._send_dtls()

    def _channel_opened(self, label: str) -> None:
        if not self._is_alive:
            self._show_alive()
        self._events.channel_opened(label)

    def _data_closed(self, reason: str) -> None:
        if not self._is_closed:
            is_wish = reason in (ABORTED, SHUT_DOWN)
            self._events.closed(CLIENT_HUNG_UP if is_wish else f"SCTP failed: {reason}")

    # What goes.

    def _tick(self, at: float) -> None:
        """Every 20 ms."""
        srtp = self._srtp
        packet = self.sender.tick(at, listening=self.is_heard and srtp is not None)
        if srtp is None:
            return
        if packet is not None:
            self._send(srtp.protect(packet))
        report = self.reports.poll(at)
        if report is not None:
            self._send(srtp.protect_rtcp(report))

    def _send(self, datagram: bytes) -> None:
        if self._is_closed:
            return
        with contextlib.suppress(ConnectionError):  # consent was lost in this very turn
            self.channel.send(datagram)
