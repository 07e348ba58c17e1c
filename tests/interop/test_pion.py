"""Pion (Go: ICE, DTLS, SRTP and SCTP of its own) calls a transceiver through the relay."""

import json
import os
import shutil
import subprocess
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from loader.maps import Maps
from tests.endtoend.conftest import ufrags
from tests.endtoend.waiting import eventually
from tests.speech import (
    RATE,
    SENTENCE,
    Samples,
    from_opus,
    likeness,
    likeness_of_pieces,
    speech,
    to_opus,
)
from tools.labstate import Lab
from tools.netns import run_in

SOURCE = Path(__file__).parent / "pion" / "main.go"
LIBRARIES = "/usr/share/gocode"  # where Debian's golang-…-dev packages are


@pytest.fixture(scope="session")
def pion(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The caller, compiled; Go keeps what it compiled for the next time."""
    place = tmp_path_factory.mktemp("pion")
    package = place / "src" / "pion"
    package.mkdir(parents=True)
    shutil.copy(SOURCE, package)
    program = place / "pion"
    subprocess.run(
        ["go", "build", "-o", str(program), "pion"],
        env=os.environ
        | {"GO111MODULE": "off", "GOPATH": f"{place}:{LIBRARIES}", "CGO_ENABLED": "0"},
        check=True,
    )
    return program


def call(program: Path, lab: Lab, words: Samples, folder: Path, *more: str) -> dict[str, Any]:
    """A call to x1 that says *words*; what the caller saw of it, and heard, in *folder*.

    After the words comes silence, which drives the last of them through whatever buffers.
    """
    say, save = folder / "said", folder / "heard"
    packets = to_opus(np.pad(words, (0, RATE)))
    say.write_bytes(b"".join(len(packet).to_bytes(2) + packet for packet in packets))
    url = f"{lab.transceivers[0].http}/whip"
    command = [str(program), "-url", url, "-say", str(say), "-save", str(save), *more]
    place = partial(
        subprocess.run,
        command,
        env=os.environ | {"SHUNT_API_KEY": lab.api_key},
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    seen: dict[str, Any] = json.loads(run_in(lab.client_namespace, place).stdout)
    return seen


def heard(folder: Path) -> Samples:
    """What the caller heard, lost packets left out."""
    told, packets = (folder / "heard").read_bytes(), []
    while told:
        size = int.from_bytes(told[:2])
        packets.append(told[2 : 2 + size])
        told = told[2 + size :]
    return from_opus(packets)


def test_a_call_from_pion(pion: Path, lab: Lab, maps: Maps, tmp_path: Path) -> None:
    said = speech(SENTENCE)
    before = maps.counters()
    seen = call(pion, lab, said, tmp_path)
    after = maps.counters()
    assert likeness(said, heard(tmp_path)) >= 0.9
    assert seen["messages"] == ["text: grüß Gott", "binary: " + "shunt" * 2000]
    assert seen["closed"]
    assert seen["remote"] in {f"{host}:{port}" for host, port in (lab.vip, lab.vip6)}
    assert after.to_client.packets - before.to_client.packets >= seen["received"]
    eventually("its route is gone", lambda: not {*seen["ufrags"]} & ufrags(maps))


def test_pion_trickles_and_restarts_ice_while_it_speaks(
    pion: Path, lab: Lab, maps: Maps, tmp_path: Path
) -> None:
    said = speech(SENTENCE)
    seen = call(pion, lab, said, tmp_path, "-trickle", "-restart")
    assert likeness_of_pieces(said, heard(tmp_path)) >= 0.9
    assert len(seen["ufrags"]) == 2
    assert seen["closed"]
    eventually("its routes are gone", lambda: not {*seen["ufrags"]} & ufrags(maps))


def test_pion_hangs_up_by_closing(pion: Path, lab: Lab, maps: Maps, tmp_path: Path) -> None:
    seen = call(pion, lab, speech("Hello."), tmp_path, "-no-delete")
    eventually("its goodbye has ended it", lambda: not {*seen["ufrags"]} & ufrags(maps))
