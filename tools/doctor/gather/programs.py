"""The XDP program of an interface, and its name."""

import os
from typing import Any

from loader import bpf
from loader.links import mode_of
from tools.doctor.facts import Xdp

__all__ = ["xdp_of"]


def xdp_of(link: Any) -> Xdp:
    """Of a link message (RTM_NEWLINK)."""
    attribute = link.get_attr("IFLA_XDP")
    id = (attribute and attribute.get_attr("IFLA_XDP_PROG_ID")) or 0
    return Xdp(mode_of(link), id, _name(id)) if id else Xdp()


def _name(id: int) -> str | None:
    try:
        descriptor = bpf.program_by_id(id)
    except OSError:  # no privilege, or it has gone
        return None
    try:
        return bpf.program_info(descriptor).name
    finally:
        os.close(descriptor)
