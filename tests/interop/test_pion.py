"""Pion (Go: ICE, DTLS, SRTP and SCTP of its own) calls a transceiver through the relay."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from loader.maps import Maps
from tests.endtoend.conftest import ufrags
from tests.endtoend.waiting import eventually
from tests.interop.placing import SAVE, SAY, URL, Seen, heard, place
from tests.speech import SENTENCE, Samples, likeness, likeness_of_pieces, speech
from tools.labstate import Lab

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


def call(program: Path, lab: Lab, words: Samples, folder: Path, *more: str) -> Seen:
    command = [str(program), "-url", URL, "-say", SAY, "-save", SAVE, *more]
    return place(command, lab, words, folder)


# A caller that gets no CPU for 100 ms leaves gaps in what it says.
pytestmark = pytest.mark.alone


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
