"""Data channels of one session (RFC 8831, RFC 8832): aiortc's SCTP, with bounds.

SCTP's packets come in and go out as DTLS's application data; its timers are asyncio's. aiortc has
the protocol, but trusts its peer. So each packet is looked at first. What would make aiortc loop,
raise, or forget a rule breaks the protocol, and the association is aborted. What we only have no
room or no patience for is dropped, as a network might: a peer in earnest sends it again, slower.

    streams         128, announced in our INIT: 64 channels that the peer opens
    ahead of a hole 512 chunks, and the half MiB of window that is announced
    a message       what the answer announces, either way
    work            1,000 chunks a second on the average, fewer if they are made to be hard
    to be sent      1 MiB, then `send` says no
"""

import asyncio
import logging
import struct
from collections.abc import Callable, Coroutine
from functools import partial

from aiortc.rtcdatachannel import RTCDataChannel, RTCDataChannelParameters
from aiortc.rtcdtlstransport import RTCDtlsTransport
from aiortc.rtcsctptransport import (
    USERDATA_MAX_LENGTH,
    WEBRTC_BINARY,
    WEBRTC_BINARY_EMPTY,
    WEBRTC_DCEP,
    WEBRTC_STRING,
    WEBRTC_STRING_EMPTY,
    AbortChunk,
    Chunk,
    DataChunk,
    ErrorChunk,
    ForwardTsnChunk,
    HeartbeatAckChunk,
    HeartbeatChunk,
    InitAckChunk,
    InitChunk,
    ReconfigChunk,
    RTCSctpCapabilities,
    RTCSctpTransport,
    SackChunk,
    ShutdownChunk,
    ShutdownCompleteChunk,
    parse_packet,
)

from transceiver.sdp.answer import MAX_MESSAGE_SIZE, SCTP_PORT

__all__ = ["ABORTED", "MAX_BACKLOG", "MAX_STREAMS", "SHUT_DOWN", "DataChannels"]

log = logging.getLogger(__name__)

ABORTED = "the peer aborted the association"
SHUT_DOWN = "the peer shut the association down"
"""Reasons for the end that are the peer's own wish, and no fault."""

MAX_STREAMS = 128
"""In each direction. One side's channels have the even numbers, the other's the odd ones."""

WINDOW = 512 * 1024
"""Bytes that the peer may send before we have delivered them."""

MAX_AHEAD = 512
"""Chunks in the reassembly, and how far behind the first that is missing."""

MAX_BACKLOG = 1 << 20
"""Bytes that wait to be sent, or to be acknowledged."""

MAX_QUEUED = 1024
"""Messages that wait to be sent, our acknowledgements of channels among them."""

LONGEST_LABEL = 1024
"""Bytes of a channel's label and protocol together."""

RTO_INITIAL = 1.0
"""Seconds before a first repetition (RFC 9260 section 16); aiortc has the 3 s of RFC 4960."""

RTO_LEAST = 0.4
RTO_LEAST_VARIANCE = 0.22
RTO_MOST = 3.0
"""Seconds, as libwebrtc has them. The RFC's 1 s and 60 s are for bulk. Here an event of a
conversation may be lost by itself, with none behind it to tell by; and a client that was away for a
while, as one that roams, is to hear of what it missed as soon as it is back. A peer may delay its
acknowledgements by 200 ms (section 6.2), which must not look like a loss."""

CHUNKS_PER_SECOND = 1000
CHUNKS_AT_ONCE = 2000
"""One of the longest messages is 230, or 700 if its first chunk is lost."""

_HALF = 1 << 31  # a TSN less another, modulo 2³²: below, it is ahead; above, behind (RFC 1982)
_ALL = (1 << 32) - 1
_COMMON_HEADER = 12
_CHUNK = struct.Struct("!BBH")
_PARAMETER = struct.Struct("!HH")

_PARAMETERS_AT = {
    InitChunk.type: 20,
    InitAckChunk.type: 20,
    HeartbeatChunk.type: 4,
    HeartbeatAckChunk.type: 4,
    AbortChunk.type: 4,
    ErrorChunk.type: 4,
    ReconfigChunk.type: 4,
}
"""Where in a chunk its parameters begin, bytes."""

_LEAST = {
    DataChunk.type: 17,  # one byte of data (RFC 9260 section 3.3.1)
    InitChunk.type: 20,
    InitAckChunk.type: 20,
    SackChunk.type: 16,
    ShutdownChunk.type: 8,
    ForwardTsnChunk.type: 8,
}
"""Bytes of a chunk, at least."""

_RESET, _RESPONSE, _ADD = 13, 16, 17  # RFC 6525 section 4
_DCEP_ACK, _DCEP_OPEN = 2, 3
_OPEN_HEADER = struct.Struct("!BBHLHH")
_LEAST_RECONFIG = {_RESET: 16, _RESPONSE: 12, _ADD: 12}


class _BreachError(Exception):
    """The peer does not keep to the protocol."""


class DataChannels:
    """The association, and its channels by label.

    *is_client*: in DTLS, which decides who has the even streams. *offer_port* and
    *max_message_size* (bytes, 0 for any) are the offer's. *transmit* takes each SCTP packet; it
    must neither raise nor call back. *on_open* gets the label of a channel once it can be used,
    *on_message* label and message, *on_closed* why the association ended, once, unless it was by
    `close`. To be made and used within a running event loop.
    """

    def __init__(
        self,
        *,
        is_client: bool,
        offer_port: int,
        max_message_size: int,
        transmit: Callable[[bytes], None],
    ) -> None:
        self.on_open: Callable[[str], None] = lambda label: None
        self.on_message: Callable[[str, str | bytes], None] = lambda label, message: None
        self.on_closed: Callable[[str], None] = lambda reason: None
        self._port = offer_port
        self._longest = max_message_size or MAX_BACKLOG
        self._transport = _Transport(is_client=is_client, transmit=transmit)
        self._association = _Association(self._transport, self)
        self._is_started = False
        self._is_closed = False
        self._is_receiving = False
        self._events: list[Callable[[], None]] = []

    def start(self) -> None:
        """Send our INIT. To be called once."""
        self._is_started = True
        capabilities = RTCSctpCapabilities(maxMessageSize=self._longest)
        _run(self._association.start(capabilities, self._port))

    def receive(self, data: bytes) -> None:
        """A packet of the peer's. What he means by it comes by the callbacks, from here."""
        if not self._is_started or self._is_closed:
            return
        self._is_receiving = True
        try:
            _run(self._association._handle_data(data))
        except _BreachError as breach:
            self._abort(str(breach))
        except Exception:  # aiortc's, of packets that we have overlooked
            log.exception("SCTP failed")
            self._abort("a packet that was not expected")
        finally:
            self._is_receiving = False
        self._dispatch()

    def send(self, label: str, message: str | bytes) -> bool:
        """False if there is no open channel of that label, if the message is longer than the peer
        takes, or if too much is waiting already. Half surrogates are replaced."""
        channel = self._association.channel(label)
        if channel is None:
            return False
        if isinstance(message, str):
            message = message.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
            size = len(message.encode())
        else:
            size = len(message)
        if size > self._longest or not self._association.has_room(size):
            return False
        channel.send(message)
        return True

    def create(self, label: str) -> None:
        """Open a channel; `on_open` says when. *label* must be ASCII: aiortc counts characters."""
        if not label.isascii():
            raise ValueError(f"label {label!r} is not ASCII")
        channel = RTCDataChannel(self._association, RTCDataChannelParameters(label=label))
        channel.on("open", partial(self.note_open, channel))

    def close(self) -> None:
        """Abort the association. Nothing is left, and nothing is called back."""
        if self._is_closed:
            return
        self._is_closed = True
        self._events.clear()
        _run(self._association.stop())
        self._transport.transmit = None
        # aiortc's association is a cycle, and shall not keep who was called back.
        self.on_open = self.on_closed = lambda _: None
        self.on_message = lambda _label, _message: None

    def note_open(self, channel: RTCDataChannel) -> None:
        """Of the association: a channel can be used."""
        self._note(lambda: self.on_open(channel.label))

    def note_message(self, channel: RTCDataChannel, message: str | bytes) -> None:
        """Of the association: a message came."""
        self._note(lambda: self.on_message(channel.label, message))

    def note_end(self, reason: str) -> None:
        """Of the association: no channel will be used any more."""
        self._note(lambda: self.on_closed(reason))

    def _abort(self, reason: str) -> None:
        self._association.end(reason)
        _run(self._association.stop())

    def _note(self, event: Callable[[], None]) -> None:
        """Call back, but not out of the midst of aiortc."""
        if self._is_closed:
            return
        self._events.append(event)
        if not self._is_receiving:
            asyncio.get_running_loop().call_soon(self._dispatch)

    def _dispatch(self) -> None:
        while self._events:
            self._events.pop(0)()


class _Transport(RTCDtlsTransport):
    """What aiortc's association asks of DTLS: where packets go."""

    def __init__(self, *, is_client: bool, transmit: Callable[[bytes], None]) -> None:
        self._role = "client" if is_client else "server"
        self.transmit: Callable[[bytes], None] | None = transmit

    @property
    def state(self) -> str:
        return "connected"

    def _register_data_receiver(self, receiver: object) -> None:
        """It is given its packets by `DataChannels.receive`."""

    def _unregister_data_receiver(self, receiver: object) -> None:
        pass

    async def _send_data(self, data: bytes) -> None:
        if self.transmit is not None:
            self.transmit(data)


class _Association(RTCSctpTransport):
    """aiortc's, and what it lacks: it takes nothing for granted. Its coroutines never wait."""

    def __init__(self, transport: _Transport, owner: DataChannels) -> None:
        super().__init__(transport, SCTP_PORT)
        self._inbound_streams_max = MAX_STREAMS
        self._outbound_streams_count = MAX_STREAMS
        self._advertised_rwnd = WINDOW
        self._rto = RTO_INITIAL
        self._owner = owner
        self._has_ended = False
        self._tokens = float(CHUNKS_AT_ONCE)
        self._time = asyncio.get_running_loop().time
        self._tokens_at = self._time()
        self.on("datachannel", owner.note_open)

    def channel(self, label: str) -> RTCDataChannel | None:
        """The open channel of that label, of several the newest."""
        if self._has_ended:
            return None
        for channel in reversed(self._data_channels.values()):
            if channel.label == label and channel.readyState == "open":
                return channel
        return None

    def has_room(self, size: int) -> bool:
        """Whether a message of *size* bytes may yet wait to be sent."""
        waiting = sum(channel.bufferedAmount for channel in self._data_channels.values())
        chunks = len(self._outbound_queue) + len(self._sent_queue)
        return (
            waiting + chunks * USERDATA_MAX_LENGTH + size <= MAX_BACKLOG
            and len(self._data_channel_queue) < MAX_QUEUED
        )

    def end(self, reason: str) -> None:
        """No more data in either direction, nor timers for it. The first reason counts."""
        self._t3_cancel()
        self._reconfig_timer_cancel()
        # Tasks of aiortc's that have yet to run find nothing to do, and start no timer.
        self._forward_tsn_chunk = None
        self._outbound_queue.clear()
        self._sent_queue.clear()
        self._data_channel_queue.clear()
        self._inbound_streams.clear()
        if not self._has_ended:
            self._has_ended = True
            self._owner.note_end(reason)

    def _set_state(self, state: RTCSctpTransport.State) -> None:
        super()._set_state(state)
        if state is self.State.CLOSED:
            self.end("the peer does not answer")

    def _update_rto(self, round_trip: float) -> None:
        super()._update_rto(round_trip)
        assert self._srtt is not None
        assert self._rttvar is not None
        self._rto = max(RTO_LEAST, self._srtt + max(4 * self._rttvar, RTO_LEAST_VARIANCE))

    def _t3_expired(self) -> None:
        super()._t3_expired()
        self._rto = min(2 * self._rto, RTO_MOST)  # RFC 9260 section 6.3.3, rule E2

    async def _handle_data(self, data: bytes) -> None:
        if self._association_state is self.State.CLOSED:
            return
        _examine(data)
        try:
            _, _, tag, chunks = parse_packet(data)
        except ValueError:  # the checksum
            return
        is_init = any(isinstance(chunk, InitChunk) for chunk in chunks)
        if is_init and len(chunks) > 1:
            raise _BreachError("an INIT in company")
        if tag != (0 if is_init else self._local_verification_tag):
            return
        for chunk in chunks:
            if not self._pay(self._price(chunk)):
                break
            if self._is_admitted(chunk):
                await self._receive_chunk(chunk)
        if self._has_ended:
            return
        if len(self._data_channel_queue) > 2 * MAX_QUEUED:
            raise _BreachError("channels opened and nothing acknowledged")
        if self._sack_needed:
            await self._send_sack()

    def _price(self, chunk: Chunk) -> int:
        """What aiortc will have to do for it, in units of at most 40 µs here."""
        if isinstance(chunk, DataChunk):
            return 1 + len(self._sack_misordered) // 64
        if isinstance(chunk, SackChunk):
            return 1 + len(self._sent_queue) // 128
        if isinstance(chunk, ForwardTsnChunk):
            return 1 + len(chunk.streams)
        return 1

    def _pay(self, price: int) -> bool:
        """Whether the peer may have that much done."""
        now = self._time()
        earned = (now - self._tokens_at) * CHUNKS_PER_SECOND
        self._tokens, self._tokens_at = min(CHUNKS_AT_ONCE, self._tokens + earned), now
        if self._tokens < price:
            return False
        self._tokens -= price
        return True

    def _is_admitted(self, chunk: Chunk) -> bool:
        """Whether aiortc may have it now. Raises _BreachError."""
        state = self._association_state
        if self._has_ended:
            return state is self.State.SHUTDOWN_ACK_SENT and isinstance(
                chunk, ShutdownChunk | ShutdownCompleteChunk
            )
        if isinstance(chunk, AbortChunk):
            self.end(ABORTED)
            return True
        if isinstance(chunk, InitChunk):  # none comes again but late, and it would begin anew
            return state in (self.State.COOKIE_WAIT, self.State.COOKIE_ECHOED)
        if isinstance(chunk, ShutdownChunk):
            if state is self.State.ESTABLISHED:
                self.end(SHUT_DOWN)
                return True
            return False
        if isinstance(chunk, DataChunk | ForwardTsnChunk | SackChunk | ReconfigChunk):
            last = self._last_received_tsn
            return last is not None and self._is_in_order(chunk, last)
        return True

    def _is_in_order(
        self, chunk: DataChunk | ForwardTsnChunk | SackChunk | ReconfigChunk, last: int
    ) -> bool:
        """*last*: the TSN up to which we have everything."""
        if isinstance(chunk, DataChunk):
            return self._is_wanted(chunk, last)
        if isinstance(chunk, SackChunk):
            return self._is_due(chunk)
        if isinstance(chunk, ForwardTsnChunk):
            chunk.streams = [pair for pair in chunk.streams if pair[0] < MAX_STREAMS]
        return True

    def _is_wanted(self, chunk: DataChunk, last: int) -> bool:
        ahead: int = chunk.tsn - last & _ALL
        if chunk.stream_id >= MAX_STREAMS or MAX_AHEAD < ahead < _HALF:
            return False
        if not 0 < ahead < _HALF:  # was here before
            return True
        if self._advertised_rwnd >= WINDOW:
            return True
        held = sum(len(stream.reassembly) for stream in self._inbound_streams.values())
        if held < MAX_AHEAD and self._advertised_rwnd > 0:
            return True
        if held > 2 * MAX_AHEAD or self._advertised_rwnd < -MAX_MESSAGE_SIZE:
            raise _BreachError("more data than there is window for")
        return ahead == 1  # what may let the others go

    def _is_due(self, sack: SackChunk) -> bool:
        """Whether it is of what we have sent."""
        outstanding = self._local_tsn - 1 - sack.cumulative_tsn & _ALL
        if outstanding >= _HALF:
            raise _BreachError("data acknowledged that was not sent")
        end = 0
        for first, last in sack.gaps:
            if not end < first <= last <= outstanding:
                raise _BreachError("acknowledgements out of order")
            end = last
        return True

    async def _data_channel_receive(self, stream_id: int, pp_id: int, data: bytes) -> None:
        if len(data) > MAX_MESSAGE_SIZE:
            raise _BreachError("a message longer than the answer allows")
        channel = self._data_channels.get(stream_id)
        if pp_id == WEBRTC_DCEP:
            if _is_in_form(data, channel):
                await super()._data_channel_receive(stream_id, pp_id, data)
        elif channel is None:
            return
        elif pp_id == WEBRTC_STRING:
            self._owner.note_message(channel, data.decode(errors="replace"))
        elif pp_id == WEBRTC_BINARY:
            self._owner.note_message(channel, data)
        elif pp_id == WEBRTC_STRING_EMPTY:
            self._owner.note_message(channel, "")
        elif pp_id == WEBRTC_BINARY_EMPTY:
            self._owner.note_message(channel, b"")


def _run(coroutine: Coroutine[object, object, None]) -> None:
    """Of aiortc's, over a transport where sending does not wait."""
    try:
        coroutine.send(None)
    except StopIteration:
        return
    coroutine.close()
    raise RuntimeError("aiortc's SCTP waits for something")


def _examine(packet: bytes) -> None:
    """Raises _BreachError for what aiortc's parser would trip over (RFC 9260 section 3)."""
    at, end = _COMMON_HEADER, len(packet)
    while at <= end - _CHUNK.size:
        kind, _flags, size = _CHUNK.unpack_from(packet, at)
        if size < _CHUNK.size or at + size > end:
            raise _BreachError("a chunk that is longer than its packet, or than itself")
        chunk = packet[at : at + size]
        if size < _LEAST.get(kind, 0):
            raise _BreachError(f"a chunk of type {kind} of {size} bytes")
        if kind in _PARAMETERS_AT:
            _examine_parameters(chunk, _PARAMETERS_AT[kind], is_reconfig=kind == ReconfigChunk.type)
        elif kind == SackChunk.type:
            gaps, duplicates = _PARAMETER.unpack_from(chunk, 12)
            if 16 + 4 * (gaps + duplicates) > size:
                raise _BreachError("a SACK that is shorter than it says")
        elif kind == ForwardTsnChunk.type and size % 4:
            raise _BreachError("a FORWARD TSN with half a stream")
        at += size + -size % 4


def _examine_parameters(chunk: bytes, at: int, *, is_reconfig: bool) -> None:
    end = len(chunk)
    while at <= end - _PARAMETER.size:
        kind, size = _PARAMETER.unpack_from(chunk, at)
        if size < _PARAMETER.size or at + size > end:
            raise _BreachError("a parameter that is longer than its chunk, or than itself")
        if is_reconfig and (size < _LEAST_RECONFIG.get(kind, 0) or size % 2):
            raise _BreachError(f"a request of type {kind} of {size} bytes")
        at += size + -size % 4


def _is_in_form(dcep: bytes, channel: RTCDataChannel | None) -> bool:
    """Whether aiortc may have the message (RFC 8832 section 5). Raises _BreachError."""
    if not dcep:
        return False
    if dcep[0] == _DCEP_ACK:
        return channel is not None
    if dcep[0] != _DCEP_OPEN:
        return False
    if channel is not None:
        raise _BreachError("a channel opened twice")
    if len(dcep) < _OPEN_HEADER.size:
        raise _BreachError("a channel without a label's length")
    *_, label, protocol = _OPEN_HEADER.unpack_from(dcep)
    names = dcep[_OPEN_HEADER.size :]
    if label + protocol > min(len(names), LONGEST_LABEL):
        raise _BreachError("a label longer than it may be")
    try:
        names[:label].decode()
        names[label : label + protocol].decode()
    except UnicodeDecodeError:
        raise _BreachError("a label that is not UTF-8") from None
    return True
