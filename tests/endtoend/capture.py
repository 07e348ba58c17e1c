"""Packets at an interface, as they pass. A packet socket sees what no UDP socket shows."""

import socket
import struct
from dataclasses import dataclass

from tests.endtoend.chain import Chain, Family

__all__ = ["Capture", "Captured", "capture"]

# Values of linux/if_packet.h and linux/if_ether.h.
_SOL_PACKET, _PACKET_AUXDATA, _ETH_P_ALL = 263, 8, 3
_AUXDATA = struct.Struct("=IIIHHHH")  # struct tpacket_auxdata
_TP_STATUS_CSUMNOTREADY, _TP_STATUS_VLAN_VALID = 1 << 3, 1 << 4
_ETHERNET = 14
_TAG_PROTOCOL = b"\x81\x00"


@dataclass(frozen=True, slots=True)
class Captured:
    """An IP packet; *partial*: its UDP checksum is still to be made; *vlan*: 0 if untagged."""

    packet: bytes
    partial: bool
    vlan: int


class Capture:
    """An open capture; made by `capture`."""

    def __init__(self, interface: str) -> None:
        self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ETH_P_ALL))
        self._socket.setsockopt(_SOL_PACKET, _PACKET_AUXDATA, 1)
        self._socket.bind((interface, _ETH_P_ALL))
        self._socket.settimeout(5.0)

    def close(self) -> None:
        self._socket.close()

    def next(self, family: Family, payload: bytes) -> Captured:
        """The next UDP packet of the family with that payload."""
        while True:
            frame, ancillary, _flags, _address = self._socket.recvmsg(4096, 256)
            # A tag stands in the frame on its way out, and beside it on its way in.
            tagged = frame[12:14] == _TAG_PROTOCOL
            packet = frame[_ETHERNET + 4 * tagged :]
            version = packet[0] >> 4 if packet else 0
            if version != family.version or packet[9 if version == 4 else 6] != socket.IPPROTO_UDP:
                continue
            if packet[family.header + 8 :] == payload:
                [aux] = [_AUXDATA.unpack(data) for _level, _kind, data in ancillary]
                status, tag = aux[0], aux[5] if aux[0] & _TP_STATUS_VLAN_VALID else 0
                if tagged:
                    tag = int.from_bytes(frame[14:16])
                return Captured(packet, bool(status & _TP_STATUS_CSUMNOTREADY), tag & 0xFFF)


def capture(chain: Chain, place: str, interface: str) -> Capture:
    """What passes at a place's interface from now on; close it."""
    return chain.run(place, lambda: Capture(interface))
