"""Callers that are programs, not in Python: what they are given, and what they leave.

They say a file, keep what they hear in another, and print as JSON what else they saw. In the files
each Opus packet of 20 ms follows its length in two bytes (as in RFC 4571).
"""

import json
import os
import subprocess
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from tests.speech import RATE, Samples, from_opus, to_opus
from tools.labstate import Lab
from tools.netns import run_in

__all__ = ["SAVE", "SAY", "URL", "Seen", "heard", "place"]

URL, SAY, SAVE = "{url}", "{say}", "{save}"
"""What stands in a command for the WHIP endpoint and the two files."""

Seen = dict[str, Any]


def place(command: Sequence[str], lab: Lab, words: Samples, folder: Path) -> Seen:
    """A call to x1 that says *words*; what the caller saw of it, and heard, in *folder*.

    After the words comes silence, which drives the last of them through whatever buffers.
    """
    packets = to_opus(np.pad(words, (0, RATE)))
    (folder / "said").write_bytes(b"".join(len(p).to_bytes(2) + p for p in packets))
    given = {
        URL: f"{lab.transceivers[0].http}/whip",
        SAY: str(folder / "said"),
        SAVE: str(folder / "heard"),
    }
    run = partial(
        subprocess.run,
        [given.get(word, word) for word in command],
        env=os.environ | {"SHUNT_API_KEY": lab.api_key},
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    seen: Seen = json.loads(run_in(lab.client_namespace, run).stdout)
    return seen


def heard(folder: Path) -> Samples:
    """What the caller heard, lost packets left out."""
    told, packets = (folder / "heard").read_bytes(), []
    while told:
        size = int.from_bytes(told[:2])
        packets.append(told[2 : 2 + size])
        told = told[2 + size :]
    return from_opus(packets)
