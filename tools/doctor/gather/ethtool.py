"""What ethtool shows of an interface of this thread's network namespace; it takes no privilege."""

import fcntl
import socket
import struct
from ctypes import addressof, create_string_buffer
from dataclasses import dataclass

from pyroute2.ethtool.ioctl import EthtoolError, IoctlEthtool

from tools.doctor.facts import Channels, Offload

__all__ = ["Driver", "channels", "driver", "driver_of", "offloads"]

_SIOCETHTOOL, _GDRVINFO = 0x8946, 0x00000003
_OFFLOADS = ("rx-gro", "rx-gro-hw", "rx-lro", "rx-vlan-hw-parse", "tx-vlan-hw-insert")


@dataclass(frozen=True, slots=True)
class Driver:
    """The driver's name, and where its device is on the bus: `0000:00:03.0`, `virtio2`."""

    name: str = ""
    bus: str = ""


def driver(interface: str) -> Driver:
    """`ethtool -i`; empty if the driver does not tell."""
    info = create_string_buffer(struct.pack("=I", _GDRVINFO), 196)  # struct ethtool_drvinfo
    request = struct.pack("=16sQ", interface.encode(), addressof(info)).ljust(40, b"\0")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        try:
            fcntl.ioctl(any_socket, _SIOCETHTOOL, request)
        except OSError:
            return Driver()
    return driver_of(info.raw)


def driver_of(info: bytes) -> Driver:
    """Of a `struct ethtool_drvinfo`: name, version, firmware and bus, of 32 bytes each."""
    name, bus = struct.unpack_from("4x32s64x32s", info)
    return Driver(_text(name), _text(bus))


def _text(field: bytes) -> str:
    return field.split(b"\0")[0].decode("ascii", "replace")


def offloads(interface: str) -> dict[str, Offload] | None:
    """Those of `ethtool -k` that matter to XDP, by the kernel's names for them."""
    tool = IoctlEthtool(interface)
    try:
        features = tool.get_features()
    except (OSError, EthtoolError):
        return None
    finally:
        tool.close()
    return {
        name: Offload(features.is_active(name), fixed=not features.is_available(name))
        for name in _OFFLOADS
        if name in features
    }


def channels(interface: str) -> Channels | None:
    """`ethtool -l`; None if the driver has no such thing."""
    tool = IoctlEthtool(interface)
    try:
        found = tool.get_channels()
    except (OSError, EthtoolError):
        return None
    finally:
        tool.close()
    return Channels(
        rx=found.rx_count,
        tx=found.tx_count,
        combined=found.combined_count,
        max_rx=found.max_rx,
        max_tx=found.max_tx,
        max_combined=found.max_combined,
    )
