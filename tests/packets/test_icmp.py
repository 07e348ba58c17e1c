"""ICMP errors about relayed packets: sent on as if the relay itself had met the trouble."""

import random
import struct
from collections.abc import Callable
from typing import Any

import pytest
from scapy.layers.inet import ICMP, IP
from scapy.layers.inet6 import (
    ICMPv6DestUnreach,
    ICMPv6PacketTooBig,
    ICMPv6TimeExceeded,
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
)
from scapy.layers.l2 import Ether
from scapy.packet import Raw

from loader.types import State
from tests.packets import messages
from tests.packets.errors import ROUTERS, Error, ErrorFlow, as_it_was, icmp_frame
from tests.packets.frames import (
    COMBINATIONS,
    SECOND_INSIDE_ADDRESS,
    SECOND_INSIDE_ADDRESS6,
    Endpoint,
    frame_between,
    in_vlan,
    inside_endpoint,
    internet_checksum,
    layout,
)
from tests.packets.relay import (
    CLIENT,
    OTHER_VIP,
    PORTS,
    STRANGER,
    STRANGER6,
    VIP,
    VIP6,
    X1,
    X2,
    Relay,
)

ALL = [(families, to_client) for families in COMBINATIONS for to_client in (False, True)]
SAME = [(families, to_client) for families, to_client in ALL if families[0] == families[2]]
TO_IPV6 = [("4-6", False), ("6-4", True)]
TO_IPV4 = [("6-4", False), ("4-6", True)]
UNREACHABLE = {4: Error(3, 3), 6: Error(1, 4)}
TIME_EXCEEDED = {4: Error(11, 0), 6: Error(3, 0)}
TOO_BIG_IPV4, TOO_BIG_IPV6 = (3, 4), (2, 0)
TYPES = {4: (3, 11, 12), 6: (1, 2, 3, 4)}
STRANGERS = {4: STRANGER, 6: STRANGER6}


def too_big(version: int, mtu: int) -> Error:
    """That a packet is longer than *mtu*."""
    return Error(*(TOO_BIG_IPV6 if version == 6 else TOO_BIG_IPV4), mtu)


def header(error_version: int, version: int, ip: dict[str, Any]) -> dict[str, Any]:
    """The IP header's fields that the receiver gets, of those that the error came with."""
    names = {4: ("tos", "ttl"), 6: ("tc", "hlim")}
    tos, ttl = (ip[name] for name in names[error_version])
    passed = dict(zip(names[version], (tos, ttl - 1), strict=True))
    if error_version == version:
        passed |= {name: ip[name] for name in ("id", "flags", "fl") if name in ip}
    return passed


def fields(version: int) -> dict[str, Any]:
    """An IP header that is not all defaults."""
    if version == 6:
        return {"tc": 0xC0, "hlim": 51, "fl": 0x12345}
    return {"tos": 0xC0, "ttl": 51, "id": 0x7777}


# Exactly what goes out.


def check_exactly(flow: ErrorFlow, error: Error, told: Error, length: int | None = None) -> None:
    """That *error* about a packet of the flow, of which *length* bytes are quoted, becomes
    *told*, byte by byte."""
    receiver = flow.receiver.version
    odd = {"tc": 0x2E, "fl": 0x54321} if receiver == 6 else {"tos": 0x2E, "id": 0x2222}
    sent = flow.sent(messages.filler(0) + b"\x80" + messages.filler(350), ip=odd)
    quote, original = sent.after, as_it_was(sent, version=receiver)
    if length is not None:
        longer = len(original) - len(quote)
        quote, original = quote[:length], original[: length + longer]
    ip = fields(flow.version)
    outcome = flow.receive(error, quote, ip=ip)
    assert outcome.forwarded
    expected = header(flow.version, receiver, ip)
    if flow.version == 6 and receiver == 4:
        expected |= {"id": outcome.ip.id}  # at random
    assert outcome.packet == flow.expected(told, original, expected)


@pytest.mark.parametrize("length", [None, 28 + 8, 100, 101])
@pytest.mark.parametrize(("families", "to_client"), ALL)
def test_the_receiver_is_told_of_the_packet_that_it_sent(
    relay: Relay, families: str, to_client: bool, length: int | None
) -> None:
    flow = ErrorFlow(relay, families, to_client=to_client)
    if length == 36:
        length = 48 if flow.version == 6 else 28  # the headers alone
    told = UNREACHABLE[flow.receiver.version]
    check_exactly(flow, UNREACHABLE[flow.version], told, length)


@pytest.mark.parametrize(("families", "to_client"), ALL)
def test_the_link_layer_is_the_next_hops(relay: Relay, families: str, to_client: bool) -> None:
    flow = ErrorFlow(relay, families, to_client=to_client)
    outcome = flow.receive(TIME_EXCEEDED[flow.version], flow.sent().after)
    assert (outcome.ethernet.dst, outcome.ethernet.src) == (flow.receiver.mac, flow.teller.mac)


@pytest.mark.parametrize(("families", "to_client"), ALL)
def test_scapy_finds_nothing_wrong_with_it(relay: Relay, families: str, to_client: bool) -> None:
    """Its own layers and checksums, in place of ours."""
    flow = ErrorFlow(relay, families, to_client=to_client)
    layer: dict[int, Callable[[], Any]] = {
        4: lambda: ICMP(type=11, code=1),
        6: lambda: ICMPv6TimeExceeded(code=1),
    }
    ips = {4: IP, 6: IPv6}
    sent, router = flow.sent(), ROUTERS[flow.version]
    outer = ips[flow.version](src=router.address, dst=flow.sender.address)
    frame = Ether(src=router.mac, dst=flow.sender.mac) / outer / layer[flow.version]()
    outcome = relay.receive(frame / Raw(sent.after), on=flow.on)
    told = flow.receiver.version
    original = as_it_was(sent, version=told)
    rebuilt = outcome.ip.copy()
    rebuilt.remove_payload()
    if told == 4:
        del rebuilt.chksum
    assert outcome.packet == bytes(rebuilt / layer[told]() / Raw(original))


@pytest.mark.parametrize(("families", "to_client"), ALL)
def test_quotes_of_any_length_keep_the_checksum_right(
    relay: Relay, dice: random.Random, families: str, to_client: bool
) -> None:
    flow = ErrorFlow(relay, families, to_client=to_client)
    sent = flow.sent(b"\x80" + dice.randbytes(1100))
    receiver = flow.receiver.version
    original = as_it_was(sent, version=receiver)
    least = 48 if flow.version == 6 else 28
    for length in [*range(least, least + 50), *range(least + 50, len(sent.after), 41)]:
        outcome = flow.receive(UNREACHABLE[flow.version], sent.after[:length])
        quoted = original[: length + len(original) - len(sent.after)]
        assert (
            outcome.icmp
            == flow.expected(UNREACHABLE[receiver], quoted, {})[40 if receiver == 6 else 20 :]
        )


# Types and codes.


@pytest.mark.parametrize(("families", "to_client"), SAME)
def test_within_a_family_type_code_and_rest_stay(
    relay: Relay, families: str, to_client: bool
) -> None:
    flow = ErrorFlow(relay, families, to_client=to_client)
    quote = flow.sent().after
    for type in TYPES[flow.version]:
        for code in range(18):
            if (type, code) == TOO_BIG_IPV4 or (flow.version == 6 and type == 2):
                continue
            outcome = flow.receive(Error(type, code, 0x12345678), quote)
            assert outcome.icmp[:2] + outcome.icmp[4:8] == bytes([type, code]) + b"\x12\x34\x56\x78"


RFC_7915_4_2 = {
    **{(3, code): (1, 0) for code in (0, 1, 5, 6, 7, 8, 11, 12)},
    **{(3, code): (1, 1) for code in (9, 10, 13, 15)},
    (3, 3): (1, 4),
    (11, 0): (3, 0),
    (11, 1): (3, 1),
}
NOTHING_IN_IPV6 = [(3, 2), (3, 14), (3, 16), (3, 255), (12, 0), (12, 1), (12, 2)]
RFC_7915_5_2 = {
    (1, 0): (3, 1),
    (1, 1): (3, 10),
    (1, 2): (3, 1),
    (1, 3): (3, 1),
    (1, 4): (3, 3),
    (3, 0): (11, 0),
    (3, 1): (11, 1),
}
NOTHING_IN_IPV4 = [(1, 5), (1, 6), (1, 255), (4, 0), (4, 1), (4, 2)]


@pytest.mark.parametrize(("families", "to_client"), TO_IPV6)
def test_from_ipv4_to_ipv6_they_change_as_the_rfc_says(
    relay: Relay, families: str, to_client: bool
) -> None:
    flow = ErrorFlow(relay, families, to_client=to_client)
    for before, after in RFC_7915_4_2.items():
        check_exactly(flow, Error(*before, 0x01020304), Error(*after))


@pytest.mark.parametrize(("families", "to_client"), TO_IPV4)
def test_from_ipv6_to_ipv4_they_change_as_the_rfc_says(
    relay: Relay, families: str, to_client: bool
) -> None:
    flow = ErrorFlow(relay, families, to_client=to_client)
    for before, after in RFC_7915_5_2.items():
        check_exactly(flow, Error(*before, 0x01020304), Error(*after))


@pytest.mark.parametrize(("families", "to_client"), TO_IPV6 + TO_IPV4)
def test_what_has_no_counterpart_is_dropped(relay: Relay, families: str, to_client: bool) -> None:
    flow = ErrorFlow(relay, families, to_client=to_client)
    quote = flow.sent().after
    nothing = NOTHING_IN_IPV4 if flow.version == 6 else NOTHING_IN_IPV6
    assert {flow.receive(Error(*error), quote).reason for error in nothing} == {"icmp"}


@pytest.mark.parametrize(("families", "to_client"), ALL)
def test_other_types_are_the_kernels(relay: Relay, families: str, to_client: bool) -> None:
    flow = ErrorFlow(relay, families, to_client=to_client)
    quote = flow.sent().after
    for type in set(range(256)) - set(TYPES[flow.version]):
        assert flow.receive(Error(type, 0), quote).passed


# MTU.

MTUS = [(0, 1280), (68, 1280), (576, 1280), (1279, 1280), (1280, 1280), (1281, 1281),
        (1400, 1400), (1500, 1500), (9000, 9000), (65515, 65515), (65535, 65535)]  # fmt: skip


@pytest.mark.parametrize(("families", "to_client"), ALL)
@pytest.mark.parametrize(("reported", "believed"), MTUS)
def test_an_mtu_is_passed_on_for_the_other_side_but_none_below_1280(
    relay: Relay, families: str, to_client: bool, reported: int, believed: int
) -> None:
    flow = ErrorFlow(relay, families, to_client=to_client)
    error, receiver = flow.version, flow.receiver.version
    told = believed + 20 * (receiver - error) // 2
    check_exactly(flow, too_big(error, reported), too_big(receiver, told))


@pytest.mark.parametrize("to_client", [False, True])
def test_what_stands_before_ipv4s_mtu_is_no_part_of_it(relay: Relay, to_client: bool) -> None:
    flow = ErrorFlow(relay, "4-4", to_client=to_client)
    check_exactly(flow, Error(*TOO_BIG_IPV4, 0xABCD0578), Error(*TOO_BIG_IPV4, 0xABCD0578))


@pytest.mark.parametrize("reported", [1 << 16, 0x12345678, 0xFFFFFFFF])
@pytest.mark.parametrize(("families", "to_client"), [("6-6", False), ("6-6", True), *TO_IPV4])
def test_an_mtu_beyond_any_is_the_longest_packet(
    relay: Relay, families: str, to_client: bool, reported: int
) -> None:
    flow = ErrorFlow(relay, families, to_client=to_client)
    receiver = flow.receiver.version
    told = 65535 if receiver == 6 else 65515
    check_exactly(flow, Error(*TOO_BIG_IPV6, reported), too_big(receiver, told))


@pytest.mark.parametrize(("families", "to_client"), TO_IPV6)
@pytest.mark.parametrize(("quoted", "reason"), [(1212, None), (1213, "mtu")])
def test_an_error_is_never_longer_than_icmpv6s_may_be(
    relay: Relay, families: str, to_client: bool, quoted: int, reason: str | None
) -> None:
    """RFC 4443 2.4: 1280 bytes in all. Those of IPv4 are 576 (RFC 1812)."""
    flow = ErrorFlow(relay, families, to_client=to_client)
    sent = flow.sent(b"\x80" + messages.filler(1300))
    outcome = flow.receive(UNREACHABLE[4], sent.after[:quoted])
    assert outcome.reason == reason
    assert reason or len(outcome.packet) == 1280


@pytest.mark.parametrize("code", [1, 255])
@pytest.mark.parametrize(("families", "to_client"), TO_IPV4)
def test_the_code_of_ipv6s_is_ignored(
    relay: Relay, families: str, to_client: bool, code: int
) -> None:
    """RFC 4443 3.2."""
    flow = ErrorFlow(relay, families, to_client=to_client)
    check_exactly(flow, Error(2, code, 1400), Error(*TOO_BIG_IPV4, 1380))


def test_scapy_reads_the_same_mtu(relay: Relay) -> None:
    flow = ErrorFlow(relay, "4-6", to_client=False)
    outcome = flow.receive(Error(*TOO_BIG_IPV4, 1400), flow.sent().after)
    assert ICMPv6PacketTooBig(outcome.icmp[:8]).mtu == 1420
    flow = ErrorFlow(relay, "4-6", to_client=True)
    outcome = flow.receive(Error(*TOO_BIG_IPV6, 1400), flow.sent().after)
    assert ICMP(outcome.icmp[:8]).nexthopmtu == 1380


# Which flow.


@pytest.mark.parametrize(("families", "to_client"), ALL)
def test_of_no_flow_it_is_dropped(relay: Relay, families: str, to_client: bool) -> None:
    flow = ErrorFlow(relay, families, to_client=to_client)
    version = flow.version
    another_port = Endpoint(flow.target.address, flow.target.port + 1, flow.target.mac)
    for destination in (another_port, STRANGERS[version]):
        quote = flow.quote(destination=destination)
        assert flow.receive(UNREACHABLE[version], quote).reason == "icmp"


@pytest.mark.parametrize("state", [State.FREE, State.PENDING, State.CLOSING])
@pytest.mark.parametrize(("families", "to_client"), ALL)
def test_of_a_flow_that_is_not_established_it_is_dropped(
    relay: Relay, families: str, to_client: bool, state: State
) -> None:
    flow = ErrorFlow(relay, families, to_client=to_client)
    quote = flow.sent().after
    relay.set_state(flow.slot, state)
    assert flow.receive(UNREACHABLE[flow.version], quote).reason == "icmp"


def test_of_the_same_client_at_another_vip_it_is_dropped(relay: Relay) -> None:
    flow = ErrorFlow(relay, "4-4", to_client=False)
    frame = flow.quote(source=OTHER_VIP)
    error = flow.frame(UNREACHABLE[4], frame)
    at = bytearray(error)
    at[30:34] = bytes(map(int, OTHER_VIP.address.split(".")))
    at[24:26] = b"\0\0"
    at[24:26] = internet_checksum(bytes(at[14:34])).to_bytes(2, "big")
    assert relay.receive(bytes(at)).reason == "icmp"


def test_about_a_packet_to_another_transceiver_it_is_dropped(relay: Relay) -> None:
    flow = ErrorFlow(relay, "4-4", to_client=True)
    assert flow.receive(UNREACHABLE[4], flow.quote(destination=X2)).reason == "icmp"


def test_of_a_slot_of_another_inside_address_it_is_dropped(relay: Relay) -> None:
    for families, address in (("4-4", SECOND_INSIDE_ADDRESS), ("6-6", SECOND_INSIDE_ADDRESS6)):
        flow = ErrorFlow(relay, families, to_client=True)
        other = Endpoint(address, flow.slot, flow.sender.mac)
        quote = flow.quote(source=other)
        error = Error(3, 3) if families == "4-4" else Error(1, 4)
        router = ROUTERS[flow.version]
        frame = icmp_frame(error, quote, source=router, destination=other)
        assert relay.receive(frame, on=flow.on).reason == "icmp"


@pytest.mark.parametrize(("families", "to_client"), ALL)
def test_a_quote_of_another_source_is_not_ours(
    relay: Relay, families: str, to_client: bool
) -> None:
    flow = ErrorFlow(relay, families, to_client=to_client)
    sender = flow.sender
    elsewhere = Endpoint(ROUTERS[flow.version].address, sender.port, sender.mac)
    another_port = Endpoint(sender.address, 53, sender.mac)
    for source in (elsewhere, another_port):
        assert flow.receive(UNREACHABLE[flow.version], flow.quote(source=source)).passed


@pytest.mark.parametrize(("families", "to_client"), ALL)
def test_a_quote_of_another_protocol_is_not_ours(
    relay: Relay, families: str, to_client: bool
) -> None:
    flow = ErrorFlow(relay, families, to_client=to_client)
    name = "nh" if flow.version == 6 else "proto"
    for protocol in (0, 1, 6, 44, 58, 136):
        quote = flow.quote(ip={name: protocol})
        assert flow.receive(UNREACHABLE[flow.version], quote).passed


@pytest.mark.parametrize(("families", "to_client"), ALL)
def test_a_quote_of_another_version_is_not_ours(
    relay: Relay, families: str, to_client: bool
) -> None:
    flow = ErrorFlow(relay, families, to_client=to_client)
    quote = flow.quote(ip={"version": 5})
    assert flow.receive(UNREACHABLE[flow.version], quote).passed


@pytest.mark.parametrize("to_client", [False, True])
@pytest.mark.parametrize("ip", [{"ihl": 6}, {"ihl": 4}, {"frag": 1}, {"frag": 0x1FFF}], ids=str)
def test_a_quoted_header_with_options_or_of_a_later_fragment_is_not_ours(
    relay: Relay, to_client: bool, ip: dict[str, int]
) -> None:
    flow = ErrorFlow(relay, "4-4", to_client=to_client)
    assert flow.receive(UNREACHABLE[4], flow.quote(ip=ip)).passed


@pytest.mark.parametrize(("families", "to_client"), ALL)
def test_a_quote_without_all_of_the_udp_header_is_the_kernels(
    relay: Relay, families: str, to_client: bool
) -> None:
    flow = ErrorFlow(relay, families, to_client=to_client)
    whole = flow.sent().after
    for length in range(48 if flow.version == 6 else 28):
        assert flow.receive(UNREACHABLE[flow.version], whole[:length]).passed


@pytest.mark.parametrize(("families", "to_client"), ALL)
def test_padding_does_not_make_a_cut_quote_whole(
    relay: Relay, families: str, to_client: bool
) -> None:
    flow = ErrorFlow(relay, families, to_client=to_client)
    whole = flow.sent().after
    least = 48 if flow.version == 6 else 28
    frame = flow.frame(UNREACHABLE[flow.version], whole[: least - 1])
    outcome = relay.receive(frame + whole[least - 1 : least + 20], on=flow.on)
    assert outcome.reason == "length"


@pytest.mark.parametrize(("families", "to_client"), ALL)
def test_padding_behind_the_error_does_no_harm(
    relay: Relay, families: str, to_client: bool
) -> None:
    flow = ErrorFlow(relay, families, to_client=to_client)
    quote = flow.sent().after[:64]
    frame = flow.frame(TIME_EXCEEDED[flow.version], quote)
    plain = relay.receive(frame, on=flow.on)
    padded = relay.receive(frame + b"\xa5" * 46, on=flow.on)
    assert padded.icmp == plain.icmp
    assert relay.receive(frame + b"\xa5" * 47, on=flow.on).reason == "length"


@pytest.mark.parametrize(("families", "to_client"), ALL)
def test_a_quote_whose_lengths_lie_is_sent_on_with_a_right_checksum(
    relay: Relay, families: str, to_client: bool
) -> None:
    """Whoever sends it could as well send one that does not lie; nothing is read by them."""
    flow = ErrorFlow(relay, families, to_client=to_client)
    name = "plen" if flow.version == 6 else "len"
    for length in (0, 1, 19, 20, 65535):
        for udp in (0, 7, 65535):
            quote = flow.quote(ip={name: length}, udp={"len": udp})
            outcome = flow.receive(UNREACHABLE[flow.version], quote)
            assert outcome.forwarded
            receiver = flow.receiver.version
            body = outcome.icmp[8:]
            told = flow.expected(UNREACHABLE[receiver], body, {})
            assert outcome.icmp == told[40 if receiver == 6 else 20 :]


@pytest.mark.parametrize(("families", "to_client"), ALL)
def test_a_wrong_checksum_is_not_made_right(relay: Relay, families: str, to_client: bool) -> None:
    flow = ErrorFlow(relay, families, to_client=to_client)
    quote = flow.sent().after
    frame = bytearray(flow.frame(UNREACHABLE[flow.version], quote))
    at = layout(bytes(frame)).transport + 2
    right = relay.receive(bytes(frame), on=flow.on).icmp[2:4]
    frame[at : at + 2] = struct.pack(
        "!H", (int.from_bytes(frame[at : at + 2], "big") + 0x0101) % 0xFFFF
    )
    wrong = relay.receive(bytes(frame), on=flow.on).icmp[2:4]
    assert (int.from_bytes(right, "big") + 0x0101) % 0xFFFF == int.from_bytes(wrong, "big") % 0xFFFF


# Headers, interfaces, ways.


@pytest.mark.parametrize("ttl", [0, 1])
@pytest.mark.parametrize(("families", "to_client"), ALL)
def test_a_ttl_that_would_end_here_is_dropped(
    relay: Relay, families: str, to_client: bool, ttl: int
) -> None:
    flow = ErrorFlow(relay, families, to_client=to_client)
    ip = {"hlim" if flow.version == 6 else "ttl": ttl}
    assert flow.receive(UNREACHABLE[flow.version], flow.quote(), ip=ip).reason == "ttl"


@pytest.mark.parametrize("beyond", [1, 500])
@pytest.mark.parametrize(("families", "to_client"), ALL)
def test_an_error_that_exceeds_its_frame_is_dropped(
    relay: Relay, families: str, to_client: bool, beyond: int
) -> None:
    flow = ErrorFlow(relay, families, to_client=to_client)
    size = len(flow.quote()) + 8 + beyond
    ip = {"plen": size} if flow.version == 6 else {"len": 20 + size}
    assert flow.receive(UNREACHABLE[flow.version], flow.quote(), ip=ip).reason == "length"


@pytest.mark.parametrize("ip", [{"flags": "MF"}, {"frag": 1}, {"options": [b"\1\1\1\1"]}], ids=str)
def test_a_fragment_or_one_with_options_is_the_kernels(relay: Relay, ip: dict[str, object]) -> None:
    flow = ErrorFlow(relay, "4-4", to_client=False)
    assert flow.receive(UNREACHABLE[4], flow.sent().after, ip=ip).passed


@pytest.mark.parametrize("extension", [IPv6ExtHdrFragment(), IPv6ExtHdrDestOpt()])
def test_so_is_one_behind_extension_headers(relay: Relay, extension: Any) -> None:
    flow = ErrorFlow(relay, "6-6", to_client=False)
    outer = IPv6(src=ROUTERS[6].address, dst=flow.sender.address) / extension
    frame = (
        Ether(src=CLIENT.mac, dst=VIP.mac)
        / outer
        / ICMPv6DestUnreach(code=4)
        / Raw(flow.sent().after)
    )
    assert relay.receive(frame).passed


@pytest.mark.parametrize("families", COMBINATIONS)
def test_to_the_inside_only_inside_interfaces_tell(relay: Relay, families: str) -> None:
    flow = ErrorFlow(relay, families, to_client=True)
    frame = flow.frame(UNREACHABLE[flow.version], flow.sent().after)
    assert relay.receive(frame, on=relay.interfaces.public).reason == "wrong_interface"


def test_to_an_inside_port_that_is_no_slot_it_is_the_kernels(relay: Relay) -> None:
    flow = ErrorFlow(relay, "4-4", to_client=True)
    for port in (PORTS.start - 1, PORTS.stop):
        source = Endpoint(flow.sender.address, port, flow.sender.mac)
        assert flow.receive(UNREACHABLE[4], flow.quote(source=source)).passed


@pytest.mark.parametrize("families", COMBINATIONS)
def test_to_a_transceiver_that_is_gone_nothing_goes(relay: Relay, families: str) -> None:
    for to_client, reason in ((False, "transceiver_gone"), (True, "icmp")):
        flow = ErrorFlow(relay, families, to_client=to_client)
        quote = flow.sent().after
        index = relay.route(flow.pair.ufrag).transceiver
        transceiver = flow.pair.transceiver
        relay.set_transceiver(index, Endpoint(transceiver.address, 0, transceiver.mac))
        assert flow.receive(UNREACHABLE[flow.version], quote).reason == reason
        relay.set_transceiver(index, transceiver)


@pytest.mark.parametrize("families", COMBINATIONS)
def test_to_a_transceiver_whose_neighbour_is_not_known_nothing_goes(
    relay: Relay, families: str
) -> None:
    flow = ErrorFlow(relay, families, to_client=False)
    quote = flow.sent().after
    index = relay.route(flow.pair.ufrag).transceiver
    relay.set_transceiver(index, flow.pair.transceiver, resolved=False)
    assert flow.receive(UNREACHABLE[flow.version], quote).reason == "neighbour"


@pytest.mark.parametrize(("families", "to_client"), ALL)
def test_an_error_longer_than_the_way_on_is_dropped(
    relay: Relay, families: str, to_client: bool
) -> None:
    flow = ErrorFlow(relay, families, to_client=to_client)
    quote = flow.sent().after
    error = UNREACHABLE[flow.version]
    length = len(flow.receive(error, quote).packet)
    index = relay.route(flow.pair.ufrag).transceiver
    for mtu, reason in ((length, None), (length - 1, "mtu")):
        relay.set_client_mtu(flow.slot, mtu)
        relay.set_transceiver(index, flow.pair.transceiver, mtu=mtu)
        outcome = flow.receive(error, quote)
        assert (outcome.reason, outcome.answered) == (reason, False)


@pytest.mark.parametrize(("families", "to_client"), ALL)
def test_tags_are_as_each_side_needs_them(relay: Relay, families: str, to_client: bool) -> None:
    pair = COMBINATIONS[families]
    relay.configure(inside=[(relay.interfaces.inside, 9), (relay.interfaces.inside, 0)])
    flow = ErrorFlow(relay, families, to_client=to_client)
    quote, error = flow.sent().after, UNREACHABLE[flow.version]
    plain = flow.receive(error, quote)
    relay.slot(flow.slot)["to_client"]["hop"]["vlan"] = 7
    index = relay.route(pair.ufrag).transceiver
    relay.set_transceiver(index, in_vlan(pair.transceiver, 8))
    for vlan in (0, 9):
        outcome = flow.receive(error, quote, source=in_vlan(ROUTERS[flow.version], vlan))
        assert outcome.tci == (7 if to_client else 8)
        assert outcome.icmp == plain.icmp


# Accounts.


@pytest.mark.parametrize("families", COMBINATIONS)
def test_towards_a_client_that_has_proven_nothing_three_times_its_bytes_go(
    relay: Relay, families: str
) -> None:
    flow = ErrorFlow(relay, families, to_client=True, is_proven=False)
    quote = flow.sent().after
    sent = int(relay.slot(flow.slot)["to_transceiver"]["bytes"])
    reasons = []
    for _ in range(40):
        reasons.append(flow.receive(UNREACHABLE[flow.version], quote).reason)
        assert int(relay.slot(flow.slot)["to_client"]["bytes"]) <= 3 * sent
    assert reasons[0] is None
    assert reasons[-1] == "amplification"


@pytest.mark.parametrize("families", COMBINATIONS)
def test_an_error_to_the_client_counts_as_what_goes_to_it(relay: Relay, families: str) -> None:
    flow = ErrorFlow(relay, families, to_client=True)
    quote = flow.sent().after
    before = flow.slot_bytes()
    outcome = flow.receive(UNREACHABLE[flow.version], quote)
    moved = [b - a for a, b in zip(before, flow.slot_bytes(), strict=True)]
    assert moved == [0, 0, 1, len(outcome.packet)]


@pytest.mark.parametrize("families", COMBINATIONS)
def test_an_error_to_the_transceiver_is_no_sign_of_life_of_the_client(
    relay: Relay, families: str
) -> None:
    """Anybody may send one."""
    flow = ErrorFlow(relay, families, to_client=False)
    quote = flow.sent().after
    relay.let_idle(flow.slot, 20.0)
    seen = int(relay.slot(flow.slot)["to_transceiver"]["seen"])
    before = flow.slot_bytes()
    assert flow.receive(UNREACHABLE[flow.version], quote).forwarded
    assert flow.slot_bytes() == before
    assert int(relay.slot(flow.slot)["to_transceiver"]["seen"]) == seen


# Mapped addresses, which the tables hold for IPv4.


def test_a_mapped_client_in_a_quote_is_not_the_ipv4_one(relay: Relay) -> None:
    relay.configure(vips=[VIP6, VIP])
    relay.proven(CLIENT, vip=VIP)
    mapped = Endpoint(f"::ffff:{CLIENT.address}", CLIENT.port, CLIENT.mac)
    quote = bytes(frame_between(VIP6, mapped, messages.rtp()))[14:]
    frame = icmp_frame(UNREACHABLE[6], quote, source=ROUTERS[6], destination=VIP6)
    assert relay.receive(frame).reason == "icmp"


def test_a_mapped_transceiver_in_a_quote_is_not_the_ipv4_one(relay: Relay) -> None:
    slot = relay.proven()
    mapped = Endpoint(f"::ffff:{X1.address}", X1.port, X1.mac)
    inside = inside_endpoint(slot, 6)
    quote = bytes(frame_between(inside, mapped, messages.rtp()))[14:]
    frame = icmp_frame(UNREACHABLE[6], quote, source=ROUTERS[6], destination=inside)
    assert relay.receive(frame, on=relay.interfaces.inside).reason == "icmp"
