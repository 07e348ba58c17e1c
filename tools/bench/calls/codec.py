"""libopus and nothing else: what decoding and encoding cost, for as many sessions as Shunt has.

    python -m tools.bench.calls.codec --sessions 80 --seconds 1

With Shunt's settings, on the packets and the PCM of the bench's calls; each session has its own
states and is at a place of its own in them, and they take turns frame by frame, as in a server. If
all had the same frame at once, the CPU would have guessed its branches after the first.
"""

import argparse
import json
import time

from tools.bench.calls.bots import utterance
from tools.bench.calls.speech import FRAME_MS, packets
from transceiver.backends import PCM_24000
from transceiver.media.opus import Decoder, Encoder
from transceiver.media.sender import BITRATE, COMPLEXITY

_APART = 37  # frames from one session's place to the next one's


def measure(sessions: int, seconds: float) -> tuple[float, float]:
    """Seconds of CPU for a packet decoded, and for one encoded."""
    rate = PCM_24000.rate
    heard, said = packets(), utterance(rate)
    decoders = [Decoder(rate) for _ in range(sessions)]
    encoders = [
        Encoder(rate, bitrate=BITRATE, complexity=COMPLEXITY, fec=True) for _ in range(sessions)
    ]
    decoding = encoding = 0.0
    frames = 0
    while decoding + encoding < seconds:
        places = [frames + _APART * number for number in range(sessions)]
        packets_now = [heard[place % len(heard)] for place in places]
        frames_now = [said[place % len(said)] for place in places]
        begun = time.thread_time()
        for decoder, packet in zip(decoders, packets_now, strict=True):
            decoder.decode(packet)
        between = time.thread_time()
        for encoder, frame in zip(encoders, frames_now, strict=True):
            encoder.encode(frame)
        ended = time.thread_time()
        decoding += between - begun
        encoding += ended - between
        frames += 1
    return decoding / frames / sessions, encoding / frames / sessions


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sessions", type=int, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    arguments = parser.parse_args()
    decoding, encoding = measure(arguments.sessions, arguments.seconds)
    print(
        json.dumps(
            {
                "decoding_us": 1e6 * decoding,
                "encoding_us": 1e6 * encoding,
                "sessions_a_core": FRAME_MS / 1e3 / (decoding + encoding),
            }
        )
    )


if __name__ == "__main__":
    main()
