"""libopus and nothing else: what decoding and encoding cost, for as many sessions as Shunt has.

    python -m tools.bench.calls.codec --sessions 80 --seconds 1

With Shunt's settings, on the packets and the PCM of the bench's calls; each session has its own
states, and they take turns frame by frame, as they do in a server.
"""

import argparse
import json
import time

from tools.bench.calls.bots import utterance
from tools.bench.calls.speech import FRAME_MS, packets
from transceiver.backends import PCM_24000
from transceiver.media.opus import Decoder, Encoder
from transceiver.media.sender import BITRATE, COMPLEXITY


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
        packet, frame = heard[frames % len(heard)], said[frames % len(said)]
        begun = time.thread_time()
        for decoder in decoders:
            decoder.decode(packet)
        between = time.thread_time()
        for encoder in encoders:
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
