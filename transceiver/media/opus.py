"""libopus by cffi, and what a packet's first bytes tell (RFC 6716); mono, s16le.

The library is the one in PyAV's wheel, so that nothing has to be compiled, or else the system's.
Whatever the bytes of a packet are, the outcome is PCM or `OpusError`.
"""

import functools
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from cffi import FFI

from loader.errors import ShuntError

__all__ = [
    "CLOCK",
    "RATES",
    "SILENCE",
    "Decoder",
    "Encoder",
    "OpusError",
    "duration",
    "has_fec",
    "is_dtx",
    "merge",
    "version",
]

CLOCK = 48000
"""Ticks a second of Opus's RTP timestamps, whatever the rate of the PCM (RFC 7587 section 4.1)."""

RATES = (8000, 12000, 16000, 24000, 48000)
"""The rates of PCM that libopus codes to and from, Hz."""

SILENCE = b"\xf8\xff\xfe"
"""20 ms of silence that any decoder takes in any state: CELT, fullband, mono."""

_SYSTEM = "libopus.so.0"
_MAX_TICKS = 5760  # 120 ms, the longest packet there may be (RFC 6716 section 3.4, R5)
_MAX_PACKET = 1275 * 6 + 7  # of six frames of 20 ms; one of ours has one
_MAX_FRAMES = 48
_SILK_COMPLEXITY = 5
_ENOUGH = 40000  # bit/s, for CELT to do without SILK

_AUDIO = 2049
_SET_BITRATE = 4002
_SET_COMPLEXITY = 4010
_SET_INBAND_FEC = 4012
_SET_PACKET_LOSS = 4014
_SET_DTX = 4016
_SET_SIGNAL = 4024
_AUTO, _VOICE = -1000, 3001
_RESET_STATE = 4028

# PCM and packets are declared as bytes, so that `bytes` objects are passed without a copy.
_DECLARATIONS = """
typedef struct OpusEncoder OpusEncoder;
typedef struct OpusDecoder OpusDecoder;
typedef struct OpusRepacketizer OpusRepacketizer;
const char *opus_get_version_string(void);
const char *opus_strerror(int error);
OpusEncoder *opus_encoder_create(int32_t rate, int channels, int application, int *error);
int32_t opus_encode(OpusEncoder *st, const unsigned char *pcm, int frame_size,
                    unsigned char *data, int32_t max_data_bytes);
int opus_encoder_ctl(OpusEncoder *st, int request, ...);
void opus_encoder_destroy(OpusEncoder *st);
OpusDecoder *opus_decoder_create(int32_t rate, int channels, int *error);
int opus_decode(OpusDecoder *st, const unsigned char *data, int32_t len,
                unsigned char *pcm, int frame_size, int decode_fec);
int opus_decoder_ctl(OpusDecoder *st, int request, ...);
void opus_decoder_destroy(OpusDecoder *st);
int opus_packet_parse(const unsigned char *data, int32_t len, unsigned char *out_toc,
                      const unsigned char *frames[48], int16_t size[48], int *payload_offset);
OpusRepacketizer *opus_repacketizer_create(void);
int opus_repacketizer_cat(OpusRepacketizer *rp, const unsigned char *data, int32_t len);
int32_t opus_repacketizer_out(OpusRepacketizer *rp, unsigned char *data, int32_t maxlen);
void opus_repacketizer_destroy(OpusRepacketizer *rp);
"""


class OpusError(ValueError):
    """These bytes are no Opus packet, or not one for this purpose."""


class _Buffer(Protocol):
    """Memory that cffi lends: slices of it are copies."""

    def __getitem__(self, part: slice) -> bytes: ...


class _Library:
    """libopus, loaded. Raises ShuntError if there is none."""

    def __init__(self, paths: Sequence[str]) -> None:
        self.ffi: Any = FFI()
        self.ffi.cdef(_DECLARATIONS)
        self.lib: Any = self._open(paths)

    def _open(self, paths: Sequence[str]) -> Any:
        told = []
        for path in paths:
            try:
                return self.ffi.dlopen(path)
            except OSError as error:
                told.append(str(error))
        raise ShuntError(
            f"there is no libopus: {'; '.join(told)}",
            "Install PyAV's wheel (./provision.sh run does), or Debian's package libopus0.",
        )

    def error(self, code: int) -> str:
        text: bytes = self.ffi.string(self.lib.opus_strerror(code))
        return text.decode()


def _candidates() -> list[str]:
    spec = importlib.util.find_spec("av")  # found, not imported: that would load all of FFmpeg
    if spec is None or spec.origin is None:
        return [_SYSTEM]
    folder = Path(spec.origin).parent.parent / "av.libs"
    return [*map(str, sorted(folder.glob("libopus-*.so*"))), _SYSTEM]


@functools.cache
def _library() -> _Library:
    return _Library(_candidates())


def version() -> str:
    """As libopus tells it, e.g. "libopus 1.6.1"."""
    library = _library()
    text: bytes = library.ffi.string(library.lib.opus_get_version_string())
    return text.decode()


class Encoder:
    """Packets of 2.5 to 60 ms from mono PCM at *rate*, for speech.

    Opus has two coders (RFC 6716 section 2). SILK does well with few bits, and alone has in-band
    FEC; CELT takes a third of SILK's CPU, and needs half as many bits again. So it is CELT's turn
    while nothing is lost and *bitrate* is enough for it (40 kbit/s), and else SILK's, with CELT
    above 8 kHz. libopus makes the change without a seam. *complexity* is CELT's; for SILK it is 5
    at most, which costs more than CELT at 10.

    *bitrate* in bit/s; *complexity* 0 to 10; *fec*: that a packet may carry its predecessor once
    more, which it does as long as `expect_loss` says that some are lost; *dtx*: that silence
    becomes packets of at most two bytes, not to be sent. Not to be called by two threads at once.
    """

    def __init__(
        self, rate: int, *, bitrate: int, complexity: int, fec: bool = False, dtx: bool = False
    ) -> None:
        library = _library()
        self._lib, self._ffi = library.lib, library.ffi
        error = self._ffi.new("int *")
        state = self._lib.opus_encoder_create(rate, 1, _AUDIO, error)
        if error[0]:
            raise ValueError(f"no encoder for {rate} Hz: {library.error(error[0])}")
        self._state = self._ffi.gc(state, self._lib.opus_encoder_destroy)
        self._encode = self._lib.opus_encode
        self._sizes = frozenset(rate * ms // 400 for ms in (1, 2, 4, 8, 16, 24))
        self._packet = self._ffi.new(f"unsigned char[{_MAX_PACKET}]")
        self._bytes: _Buffer = self._ffi.buffer(self._packet)
        self._set(_SET_BITRATE, bitrate)
        self._complexity = complexity
        self._set(_SET_INBAND_FEC, int(fec))
        self._set(_SET_DTX, int(dtx))
        self._is_thrifty = bitrate < _ENOUGH
        self._fec = fec
        self._choose(silk=self._is_thrifty)

    def encode(self, pcm: bytes) -> bytes:
        """One packet of all of *pcm*, s16le: 2.5, 5, 10, 20, 40 or 60 ms. Raises ValueError for
        any other length."""
        samples = len(pcm) >> 1
        if samples not in self._sizes or len(pcm) & 1:
            raise ValueError(f"{len(pcm)} bytes are no frame of Opus")
        size = self._encode(self._state, pcm, samples, self._packet, _MAX_PACKET)
        if size < 0:
            raise ValueError(f"not encoded: {_library().error(size)}")
        return self._bytes[:size]

    def expect_loss(self, fraction: float) -> None:
        """The fraction of packets that get lost, 0 to 1: how much goes into in-band FEC."""
        percent = max(0, min(100, round(100 * fraction)))
        self._set(_SET_PACKET_LOSS, percent)
        self._choose(silk=self._is_thrifty or (self._fec and percent > 0))

    def reset(self) -> None:
        """As new, with its settings."""
        self._lib.opus_encoder_ctl(self._state, _RESET_STATE)

    def _choose(self, *, silk: bool) -> None:
        most = _SILK_COMPLEXITY if silk else self._complexity
        self._set(_SET_COMPLEXITY, min(self._complexity, most))
        self._set(_SET_SIGNAL, _VOICE if silk else _AUTO)

    def _set(self, request: int, value: int) -> None:
        code = self._lib.opus_encoder_ctl(self._state, request, self._ffi.cast("int32_t", value))
        if code:
            raise ValueError(f"setting {request} to {value}: {_library().error(code)}")


class Decoder:
    """Mono PCM at *rate*, s16le, from the packets of one stream, in their order.

    Stereo is mixed down. Not to be called by two threads at once.
    """

    def __init__(self, rate: int) -> None:
        library = _library()
        self._lib, self._ffi = library.lib, library.ffi
        error = self._ffi.new("int *")
        state = self._lib.opus_decoder_create(rate, 1, error)
        if error[0]:
            raise ValueError(f"no decoder for {rate} Hz: {library.error(error[0])}")
        self._state = self._ffi.gc(state, self._lib.opus_decoder_destroy)
        self._decode = self._lib.opus_decode
        self._null = self._ffi.NULL
        self._most = _MAX_TICKS * rate // CLOCK
        self._pcm = self._ffi.new(f"int16_t[{self._most}]")
        self._out = self._ffi.cast("unsigned char *", self._pcm)
        self._bytes: _Buffer = self._ffi.buffer(self._pcm)

    def decode(self, packet: bytes) -> bytes:
        """The PCM of one packet, 2.5 to 120 ms. Raises OpusError; what came before is kept then."""
        if not packet:
            raise OpusError("an empty packet")
        samples = self._decode(self._state, packet, len(packet), self._out, self._most, 0)
        if samples < 0:
            raise OpusError(_library().error(samples))
        return self._bytes[: 2 * samples]

    def decode_fec(self, packet: bytes, samples: int) -> bytes:
        """What *packet*, the next after a lost one, tells of the lost one's *samples*; concealed
        if it tells nothing. Afterwards comes `decode(packet)`. Raises OpusError."""
        if not packet:
            raise OpusError("an empty packet")
        self._check(samples)
        found = self._decode(self._state, packet, len(packet), self._out, samples, 1)
        if found < 0:
            raise OpusError(_library().error(found))
        return self._bytes[: 2 * found]

    def conceal(self, samples: int) -> bytes:
        """What may pass for *samples* that are lost, a multiple of 2.5 ms up to 120 ms; after a DTX
        packet, comfort noise."""
        self._check(samples)
        found = self._decode(self._state, self._null, 0, self._out, samples, 0)
        if found < 0:
            raise ValueError(_library().error(found))
        return self._bytes[: 2 * found]

    def reset(self) -> None:
        """As new: what comes next is another stream."""
        self._lib.opus_decoder_ctl(self._state, _RESET_STATE)

    def _check(self, samples: int) -> None:
        if not 0 < samples <= self._most:
            raise ValueError(f"{samples} samples are not 2.5 to 120 ms")


def _frame_ticks(toc: int) -> int:
    """Of one frame in a packet that begins with *toc* (RFC 6716 section 3.1, table 2)."""
    config = toc >> 3
    if config < 12:  # SILK
        return (480, 960, 1920, 2880)[config & 3]
    if config < 16:  # hybrid
        return (480, 960)[config & 1]
    return (120, 240, 480, 960)[config & 3]  # CELT


_FRAME_TICKS = tuple(_frame_ticks(toc) for toc in range(256))


def duration(packet: bytes) -> int:
    """How long a packet lasts, in ticks of 1/48000 s, by its first two bytes. Raises OpusError."""
    if not packet:
        raise OpusError("an empty packet")
    toc = packet[0]
    code = toc & 3
    if code == 3:
        if len(packet) < 2:
            raise OpusError("a packet of several frames that does not tell how many")
        frames = packet[1] & 0x3F
    else:
        frames = 2 if code else 1
    ticks = frames * _FRAME_TICKS[toc]
    if not 0 < ticks <= _MAX_TICKS:
        raise OpusError(f"{frames} frames of {_FRAME_TICKS[toc] / 48:g} ms")
    return ticks


def is_dtx(packet: bytes) -> bool:
    """Whether it only says that there is silence from here on: it has a header, and no audio.

    As WebRTC's endpoints have it: one or two bytes.
    """
    return len(packet) <= 2


def has_fec(packet: bytes) -> bool:
    """Whether it carries its predecessor once more ("LBRR", RFC 6716 sections 4.2.3 and 4.2.4)."""
    if not packet or packet[0] & 0x80:  # CELT has none
        return False
    library = _library()
    sizes = library.ffi.new("int16_t[48]")
    offset = library.ffi.new("int *")
    null = library.ffi.NULL
    count = library.lib.opus_packet_parse(packet, len(packet), null, null, sizes, offset)
    if count < 1 or sizes[0] < 1:
        return False
    # The frame begins with a bit for each 20 ms that tells of activity, then the one asked for; for
    # stereo the same of the second channel. All are of even odds, so the coder leaves them be.
    activity = max(1, _FRAME_TICKS[packet[0]] // 960)
    first = packet[offset[0]]
    mono = first >> (7 - activity) & 1
    return bool(mono or (packet[0] & 4 and first >> (6 - 2 * activity) & 1))


def merge(packets: Sequence[bytes]) -> bytes:
    """One packet of several that follow each other, 120 ms at most. Raises OpusError for some that
    cannot share one: of different modes, bandwidths, frame sizes or channels."""
    library = _library()
    lib = library.lib
    repacketizer = library.ffi.gc(lib.opus_repacketizer_create(), lib.opus_repacketizer_destroy)
    for packet in packets:  # they are pointed at until the end, by *packets*
        if code := lib.opus_repacketizer_cat(repacketizer, packet, len(packet)):
            raise OpusError(library.error(code))
    room = sum(map(len, packets)) + 2 + 2 * _MAX_FRAMES
    merged = library.ffi.new(f"unsigned char[{room}]")
    size = lib.opus_repacketizer_out(repacketizer, merged, room)
    if size < 0:
        raise OpusError(library.error(size))
    return bytes(library.ffi.buffer(merged, size))
