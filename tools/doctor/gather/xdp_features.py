"""What each interface can do with XDP, in the kernel's own words: netdev over generic netlink,
since Linux 6.3 (Documentation/netlink/specs/netdev.yaml)."""

from typing import ClassVar

from pyroute2.netlink import NLM_F_DUMP, NLM_F_REQUEST, genlmsg
from pyroute2.netlink.exceptions import NetlinkError
from pyroute2.netlink.generic import AsyncGenericNetlinkSocket, GenericNetlinkSocket

__all__ = ["xdp_features"]

_DEV_GET = 1  # NETDEV_CMD_DEV_GET


class _Device(genlmsg):  # type: ignore[misc]  # pyroute2 has no types
    nla_map: ClassVar = (
        ("NETDEV_A_DEV_UNSPEC", "none"),
        ("NETDEV_A_DEV_IFINDEX", "uint32"),
        ("NETDEV_A_DEV_PAD", "none"),
        ("NETDEV_A_DEV_XDP_FEATURES", "uint64"),
    )


class _Asynchronous(AsyncGenericNetlinkSocket):  # type: ignore[misc]
    module_err_level = "debug"  # that an old kernel does not tell is no error


class _Socket(GenericNetlinkSocket):  # type: ignore[misc]
    async_class = _Asynchronous


def xdp_features(family: str = "netdev") -> dict[int, int]:
    """Bits of `enum netdev_xdp_act` by ifindex; empty of a kernel without such a *family*."""
    socket = _Socket()
    try:
        socket.bind(family, _Device)
        request = _Device()
        request["cmd"], request["version"] = _DEV_GET, 1
        return {
            device.get_attr("NETDEV_A_DEV_IFINDEX"): device.get_attr("NETDEV_A_DEV_XDP_FEATURES")
            for device in socket.nlm_request(
                request, msg_type=socket.prid, msg_flags=NLM_F_REQUEST | NLM_F_DUMP
            )
        }
    except NetlinkError:
        return {}
    finally:
        socket.close()
