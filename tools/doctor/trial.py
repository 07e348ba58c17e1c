"""`shunt doctor --try`: the verifier's word, and a driver's, on the program as it is.

It is compiled, loaded, pinned by a name of its own, and attached to a veth in a network namespace
without a name. All that is gone again when it returns, and nothing of the host's was touched.
"""

import os
import time
from pathlib import Path

from pyroute2 import IPRoute

from loader import carriers, datapath
from loader.capabilities import Capability
from loader.errors import ShuntError
from loader.types import Mode
from tools.doctor.facts import HostFacts, Trial
from tools.netns import run_in_new

__all__ = ["attach_alone", "attempt"]

_NEEDED = {Capability.BPF, Capability.NET_ADMIN, Capability.PERFMON, Capability.SYS_ADMIN}


def attempt(host: HostFacts) -> Trial:
    """Try it on this *host*; seconds, most of them the compiler's."""
    if lacking := _NEEDED - host.capabilities:
        return Trial(why_not=f"this process lacks {', '.join(map(str, sorted(lacking)))}")
    if not host.bpffs_writable:
        return Trial(why_not="bpffs is not mounted, or not writable, and nothing is mounted for it")
    pins = datapath.BPFFS / f"shunt-doctor-{os.getpid()}"
    begun = time.monotonic()
    try:
        program = datapath.load(pins, afresh=True)
        mode = attach_alone(pins)
    except ShuntError as error:
        return Trial(trouble=error.what, cure=error.cure)
    finally:
        run_in_new(lambda: carriers.unload(pins))  # its interfaces are gone; the pins remain
    return Trial(
        instructions=program.verified,
        bytes=program.jited,
        mode=mode,
        seconds=time.monotonic() - begun,
    )


def attach_alone(pins: Path) -> Mode:
    """Attach the pinned program to a veth that ends with this call, in a namespace that does; the
    mode in which it was taken. Raises ShuntError."""

    def attach() -> Mode:
        with IPRoute() as netlink:
            netlink.link("add", ifname="doctor0", kind="veth", peer={"ifname": "doctor1"})
        (attachment,) = carriers.attach(pins, ["doctor0"])
        return attachment.mode

    return run_in_new(attach)
