"""The doctor's trial, with the suite's program: `shunt doctor --try` compiles one of its own."""

import os
from pathlib import Path

from pyroute2 import IPRoute

from loader import bpf
from loader.maps import versioned
from loader.types import Mode
from tools.doctor.trial import attach_alone


def test_the_program_is_attached_where_nobody_else_is(pins: Path, own_pins: Path) -> None:
    versioned(own_pins).mkdir(parents=True)
    for entry in versioned(pins).iterdir():
        descriptor = bpf.pinned(entry)
        bpf.pin(descriptor, versioned(own_pins) / entry.name)
        os.close(descriptor)

    def interfaces() -> set[str]:
        with IPRoute() as netlink:
            return {link.get_attr("IFLA_IFNAME") for link in netlink.get_links()}

    assert attach_alone(own_pins) is Mode.NATIVE
    assert not interfaces() & {"doctor0", "doctor1"}
