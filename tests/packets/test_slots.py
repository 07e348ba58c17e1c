"""The table of slots: inside addresses, ports, the ring of free ones, and how flows are found."""

import numpy as np
import pytest

from loader import types
from loader.types import State
from tests.packets import messages
from tests.packets.buckets import SLOT_MASK, choices, first_bucket, flow_hash
from tests.packets.errors import ROUTERS, Error, icmp_frame
from tests.packets.frames import (
    COMBINATIONS,
    INSIDE_MAC,
    SECOND_INSIDE_ADDRESS,
    SECOND_INSIDE_ADDRESS6,
    VIPS,
    frame_between,
    inside_endpoint,
)
from tests.packets.relay import (
    CLIENT,
    INSIDE_ADDRESS,
    PORTS,
    SECOND_PORTS,
    STRANGER,
    UFRAG,
    VIP,
    X1,
    Endpoint,
    Relay,
    slot_of,
)


def client(number: int) -> Endpoint:
    """One of many clients."""
    return Endpoint(f"203.0.113.{number}", 10000 + number, CLIENT.mac)


def ufrags(relay: Relay, clients: int) -> list[str]:
    """As many routes as so many clients need, one ufrag for each client."""
    names = [f"ufragNumber{number}" for number in range(-(-clients // types.ROUTE_SLOTS))]
    for name in names:
        relay.add_route(name)
    return [names[number // types.ROUTE_SLOTS] for number in range(clients)]


# Several inside addresses.


@pytest.mark.parametrize("families", COMBINATIONS)
def test_slots_of_the_second_entry_carry_flows(relay: Relay, families: str) -> None:
    pair = COMBINATIONS[families]
    relay.offer(SECOND_PORTS)
    slot = relay.proven(pair.client, pair.ufrag)
    assert slot == SECOND_PORTS[0]
    there = relay.from_client(messages.rtp(), client=pair.client)
    back = relay.from_transceiver(messages.rtp(), to=slot)
    address = SECOND_INSIDE_ADDRESS6 if pair.transceiver.version == 6 else SECOND_INSIDE_ADDRESS
    port = slot & 0xFFFF
    assert there.addresses == (address, port, pair.transceiver.address, pair.transceiver.port)
    assert back.addresses[2:] == (pair.client.address, pair.client.port)
    assert (there.is_right, back.is_right) == (True, True)


@pytest.mark.parametrize("families", COMBINATIONS)
def test_the_same_port_of_two_entries_is_two_slots(relay: Relay, families: str) -> None:
    pair = COMBINATIONS[families]
    other = Endpoint(pair.client.address, 777, pair.client.mac)
    relay.offer([PORTS[3], SECOND_PORTS[3]])
    slots = [relay.proven(who, pair.ufrag) for who in (pair.client, other)]
    assert slots == [PORTS[3], SECOND_PORTS[3]]
    for who, slot in zip((pair.client, other), slots, strict=True):
        assert slot_of(relay.from_client(messages.rtp(), client=who)) == slot
        back = relay.from_transceiver(messages.rtp(), to=slot)
        assert back.addresses[2:] == (who.address, who.port)


def test_one_entrys_slot_is_not_the_others(relay: Relay) -> None:
    relay.offer(SECOND_PORTS)
    relay.proven()
    assert relay.from_transceiver(messages.rtp(), to=PORTS[0]).reason == "slot_free"


def test_an_ipv4_and_an_ipv6_address_at_the_same_place_share_their_slots(relay: Relay) -> None:
    relay.offer([SECOND_PORTS[1]])
    slot = relay.proven()
    inside = inside_endpoint(slot, 6)
    frame = frame_between(COMBINATIONS["6-6"].transceiver, inside, messages.rtp())
    assert relay.receive(frame, on=relay.interfaces.inside).reason == "wrong_transceiver"


def test_an_entry_may_have_one_family_only(relay: Relay) -> None:
    relay.configure(entries=[(INSIDE_ADDRESS, None), (SECOND_INSIDE_ADDRESS, None)])
    relay.offer([PORTS[0], SECOND_PORTS[0]])
    slots = [relay.proven(client(number)) for number in (1, 2)]
    assert slots == [PORTS[0], SECOND_PORTS[0]]
    for address in ("::", SECOND_INSIDE_ADDRESS6):
        inside = Endpoint(address, PORTS[0], INSIDE_MAC)
        frame = frame_between(COMBINATIONS["6-6"].transceiver, inside, messages.rtp())
        assert relay.receive(frame, on=relay.interfaces.inside).passed


def test_without_an_ipv4_address_none_is_the_relays(relay: Relay) -> None:
    relay.configure(entries=[(None, SECOND_INSIDE_ADDRESS6)])
    inside = Endpoint("0.0.0.0", PORTS[0], INSIDE_MAC)
    frame = frame_between(X1, inside, messages.rtp())
    assert relay.receive(frame, on=relay.interfaces.inside).passed


def test_an_entry_that_is_not_in_use_ends_the_list(relay: Relay) -> None:
    relay.configure(entries=[(INSIDE_ADDRESS, None)])
    outcome = relay.from_transceiver(messages.rtp(), to=SECOND_PORTS[0])
    assert outcome.passed


@pytest.mark.parametrize("place", range(types.INSIDE_ADDRESSES))
def test_each_entry_counts(relay: Relay, place: int) -> None:
    """Of those beyond the table's size there are no slots, but the address is the relay's."""
    entries = [(f"198.51.100.{number + 1}", None) for number in range(types.INSIDE_ADDRESSES)]
    relay.configure(entries=entries)
    inside = Endpoint(f"198.51.100.{place + 1}", PORTS[9], INSIDE_MAC)
    frame = frame_between(X1, inside, messages.rtp())
    assert relay.receive(frame, on=relay.interfaces.inside).reason == "slot_free"


@pytest.mark.parametrize("address", [SECOND_INSIDE_ADDRESS, SECOND_INSIDE_ADDRESS6])
def test_no_inside_address_is_a_clients(relay: Relay, address: str) -> None:
    spoofed = Endpoint(address, 5000, CLIENT.mac)
    assert relay.from_client(messages.request(UFRAG), client=spoofed).reason == "source"


# Several VIPs.


@pytest.mark.parametrize("place", range(types.VIPS))
def test_each_vip_counts(relay: Relay, place: int) -> None:
    vips = [Endpoint(f"198.51.100.{n // 2 + 1}", 3478 + n % 2, VIP.mac) for n in range(types.VIPS)]
    relay.configure(vips=vips)
    vip = vips[place]
    slot, _ = relay.asked(vip=vip)
    assert relay.from_transceiver(messages.check(1), to=slot).addresses[:2] == (
        vip.address,
        vip.port,
    )
    assert int(relay.slot(slot)["to_client"]["vip"]) == place


def test_one_client_has_a_flow_at_each_vip(relay: Relay) -> None:
    slots = [relay.proven(vip=vip) for vip in VIPS if vip.version == 4]
    assert len(set(slots)) == 2
    for vip, slot in zip(VIPS, slots, strict=False):
        assert slot_of(relay.from_client(messages.rtp(), vip=vip)) == slot
        assert relay.flow_of(vip=vip) == slot


# Ports.

EDGES = [1, 2, 32767, 65534, 65535]


@pytest.mark.parametrize("entry", [0, 1])
@pytest.mark.parametrize("port", EDGES)
def test_any_port_may_be_a_slot(relay: Relay, entry: int, port: int) -> None:
    relay.configure(ports=range(1, 65536))
    index = entry << types.PORT_BITS | port
    relay.offer([index])
    try:
        assert relay.proven() == index
        assert relay.from_client(messages.rtp()).udp.sport == port
        assert relay.from_transceiver(messages.rtp(), to=index).is_right
    finally:
        relay.set_state(index, State.FREE)


@pytest.mark.parametrize(("port", "is_slot"), [(999, False), (1000, True), (1001, False)])
def test_a_range_of_one_port_is_one_port(relay: Relay, port: int, is_slot: bool) -> None:
    relay.configure(ports=range(1000, 1001))
    for inside in (inside_endpoint(port, 4), inside_endpoint(1 << types.PORT_BITS | port, 4)):
        frame = frame_between(X1, inside, messages.rtp())
        outcome = relay.receive(frame, on=relay.interfaces.inside)
        assert (outcome.reason == "slot_free", outcome.passed) == (is_slot, not is_slot)


# The ring of free slots.

HEADS = [0, 1, 2**17 - 3, 2**17 - 1, 2**31 - 2, 2**32 - 3, 2**32 - 1]


@pytest.mark.parametrize("head", HEADS)
def test_slots_are_taken_in_order_wherever_the_ring_stands(relay: Relay, head: int) -> None:
    offered = [PORTS[5], SECOND_PORTS[1], PORTS[2], PORTS[9], SECOND_PORTS[0]]
    relay.turn_ring(head)
    relay.maps.free_slots(offered)
    assert [relay.pending(client(number)) for number in range(5)] == offered
    assert relay.from_client(messages.request(UFRAG)).reason == "table_full"


@pytest.mark.parametrize("head", HEADS)
def test_an_empty_ring_has_none(relay: Relay, head: int) -> None:
    relay.turn_ring(head)
    for _ in range(3):
        assert relay.from_client(messages.request(UFRAG)).reason == "table_full"
    relay.maps.free(PORTS[7])
    assert relay.pending() == PORTS[7]


@pytest.mark.parametrize("head", [5, 0, 2**31])
def test_a_tail_behind_the_head_is_an_empty_ring(relay: Relay, head: int) -> None:
    """The agent sets the tail back while slots are being taken, when it starts."""
    relay.turn_ring(head)
    relay.set_tail((head - 1) % 2**32)
    assert relay.from_client(messages.request(UFRAG)).reason == "table_full"


def test_a_slot_is_taken_once(relay: Relay) -> None:
    names = ufrags(relay, len(PORTS))
    slots = [relay.pending(client(n), ufrag) for n, ufrag in enumerate(names)]
    assert slots == list(PORTS)


def test_a_refused_request_takes_none(relay: Relay) -> None:
    relay.offer([PORTS[0]])
    relay.from_client(messages.request(UFRAG), client=Endpoint("127.0.0.1", 5, CLIENT.mac))
    relay.from_client(messages.request("nobodys"))
    relay.from_client(messages.request(UFRAG), ip={"ttl": 1})
    assert relay.pending() == PORTS[0]


def test_the_quota_counts_slots_of_either_entry(relay: Relay) -> None:
    offered = [slot for both in zip(PORTS, SECOND_PORTS, strict=True) for slot in both]
    relay.offer(offered)
    used = {relay.pending(client(number)) for number in range(30)}
    assert used == set(offered[: types.ROUTE_SLOTS])


@pytest.mark.parametrize("place", range(types.ROUTE_SLOTS))
def test_each_of_a_routes_places_can_be_taken_over(relay: Relay, place: int) -> None:
    slots = [relay.pending(client(number)) for number in range(types.ROUTE_SLOTS)]
    for slot in slots:
        relay.let_idle(slot, 10.0)
    relay.let_idle(slots[place], 20.0)
    assert relay.pending(client(100)) == slots[place]


def test_a_route_never_has_a_ninth_flow_of_its_own(relay: Relay) -> None:
    relay.offer([*PORTS, *SECOND_PORTS])
    for number in range(40):
        asked = messages.transaction()
        request = messages.request(UFRAG, transaction_id=asked)
        outcome = relay.from_client(request, client=client(number))
        if outcome.forwarded:
            relay.from_transceiver(messages.success(asked), to=slot_of(outcome))
    assert len(relay.in_state(State.ESTABLISHED)) == types.ROUTE_SLOTS


# How a flow is found.


def seed_and_address(relay: Relay, address: str) -> tuple[list[int], "np.ndarray"]:
    seed = [int(half) for half in relay.maps.settings().seed]
    return seed, np.frombuffer(bytes(types.packed_address(address)), dtype="<u8")


def in_bucket(relay: Relay, bucket: int, count: int, *, net: str) -> list[Endpoint]:
    """So many clients whose flows are looked for in the bucket first."""
    buckets = relay.maps.sizes.buckets
    ports = np.arange(1024, 65536)
    found: list[Endpoint] = []
    for last in range(1, 255):
        seed, address = seed_and_address(relay, f"{net}.{last}")
        for port in ports[first_bucket(seed, address, ports, 0, buckets) == bucket]:
            found.append(Endpoint(f"{net}.{last}", int(port), CLIENT.mac))
            if len(found) == count:
                return found
    raise AssertionError("too few clients in one bucket")


def hash_of(relay: Relay, who: Endpoint) -> int:
    seed, address = seed_and_address(relay, who.address)
    return int(flow_hash(seed, address, [who.port], 0)[0])


def test_the_bucket_of_a_flow_is_where_we_say(relay: Relay) -> None:
    """Or the next tests prove nothing."""
    slot = relay.proven()
    entries = list(relay.bucket(relay.bucket_of(CLIENT)).entries)
    tag = hash_of(relay, CLIENT) >> 32 & ~SLOT_MASK
    assert tag | slot in entries


def test_many_flows_of_one_bucket_are_all_found(relay: Relay) -> None:
    relay.offer([*PORTS, *SECOND_PORTS])
    place = relay.bucket_of(CLIENT)
    clients = in_bucket(relay, place, 20, net="192.0.2")
    names = ufrags(relay, len(clients))
    slots = [relay.proven(who, ufrag) for who, ufrag in zip(clients, names, strict=True)]
    for who, slot in zip(clients, slots, strict=True):
        assert slot_of(relay.from_client(messages.rtp(), client=who)) == slot
    assert relay.bucket(place).overflowed == 1


def test_entries_that_lead_nowhere_make_room(relay: Relay) -> None:
    place = relay.bucket_of(CLIENT)
    relay.write_bucket(place, types.Bucket())
    clients = in_bucket(relay, place, 7 * types.BUCKET_ENTRIES, net="192.0.2")
    (ufrag,) = set(ufrags(relay, 1))
    for who in clients:
        slot = relay.proven(who, ufrag)
        assert relay.from_client(messages.rtp(), client=who).forwarded
        relay.close_slot(slot)
        relay.free_slot(slot)
    assert relay.bucket(place).overflowed == 0


def test_entries_of_slots_with_a_new_life_make_room_too(relay: Relay) -> None:
    """The slots are established again, but of clients who are looked for elsewhere."""
    place = relay.bucket_of(CLIENT)
    relay.write_bucket(place, types.Bucket())
    count = types.BUCKET_ENTRIES
    names = ufrags(relay, count)
    first = in_bucket(relay, place, 2 * count, net="192.0.2")
    slots = [relay.proven(who, name) for who, name in zip(first[:count], names, strict=True)]
    for slot in slots:
        relay.close_slot(slot)
        relay.set_state(slot, State.FREE)
    relay.offer([*slots, *SECOND_PORTS])
    for who, name in zip(in_bucket(relay, place ^ 1, count, net="192.0.3"), names, strict=True):
        assert relay.proven(who, name) in slots
    names = ufrags(relay, count)
    for who, name in zip(first[count:], names, strict=True):
        relay.proven(who, name)
        assert relay.from_client(messages.rtp(), client=who).forwarded
    assert relay.bucket(place).overflowed == 0


def test_a_client_that_comes_again_has_one_entry(relay: Relay) -> None:
    place = relay.bucket_of(CLIENT)
    relay.write_bucket(place, types.Bucket())
    for _ in range(5):
        slot = relay.proven()
        relay.close_slot(slot)
    relay.proven()
    assert sum(1 for entry in relay.bucket(place).entries if entry) == 1


def test_a_slot_stays_pending_while_all_its_buckets_are_full_of_live_flows(relay: Relay) -> None:
    live = relay.proven(STRANGER)
    (entry,) = (e for e in relay.bucket(relay.bucket_of(STRANGER)).entries if e & SLOT_MASK == live)
    places = choices(hash_of(relay, CLIENT), relay.maps.sizes.buckets)
    full = types.Bucket()
    full.entries[:] = [entry] * types.BUCKET_ENTRIES
    for place in places:
        relay.write_bucket(place, full)

    slot, asked = relay.asked()
    relay.from_transceiver(messages.success(asked), to=slot)
    assert relay.state(slot) is State.PENDING
    assert relay.from_client(messages.rtp()).reason == "no_flow"
    assert [relay.bucket(place).overflowed for place in places] == [1, 1, 1, 1]

    with_room = relay.bucket(places[3])
    with_room.entries[5] = 0
    relay.write_bucket(places[3], with_room)
    slot, asked = relay.asked()
    relay.from_transceiver(messages.success(asked), to=slot)
    assert relay.state(slot) is State.ESTABLISHED


def test_a_flow_in_its_last_bucket_is_found(relay: Relay) -> None:
    live = relay.proven(STRANGER)
    (entry,) = (e for e in relay.bucket(relay.bucket_of(STRANGER)).entries if e & SLOT_MASK == live)
    places = choices(hash_of(relay, CLIENT), relay.maps.sizes.buckets)
    full = types.Bucket()
    full.entries[:] = [entry] * types.BUCKET_ENTRIES
    for place in places[:3]:
        relay.write_bucket(place, full)
    relay.write_bucket(places[3], types.Bucket())

    slot = relay.proven()
    assert slot_of(relay.from_client(messages.rtp())) == slot
    assert slot_of(relay.from_client(messages.rtp(), client=STRANGER)) == live


def collide(relay: Relay, who: Endpoint, slot: int) -> None:
    """Let the hash of the slot's client be that of *who*, as it is once in many lifetimes."""
    hashed = hash_of(relay, who)
    relay.slot(slot)["to_transceiver"]["check"] = hashed >> 32
    place = relay.bucket_of(who)
    bucket = types.Bucket()
    bucket.entries[0] = hashed >> 32 & ~SLOT_MASK | slot
    relay.write_bucket(place, bucket)


def test_a_client_whose_hash_is_anothers_has_a_slot_of_its_own(relay: Relay) -> None:
    slot = relay.proven(STRANGER)
    collide(relay, CLIENT, slot)
    assert relay.pending() != slot


def test_a_client_whose_hash_is_anothers_changes_nothing_of_its_slot(relay: Relay) -> None:
    slot = relay.proven(STRANGER)
    relay.from_transceiver(messages.check(77), to=slot)
    collide(relay, CLIENT, slot)
    before = relay.snapshot(slot)
    assert relay.from_client(messages.success(77)).reason == "unexpected_response"
    assert relay.snapshot(slot) == before


def test_an_error_about_a_client_whose_hash_is_anothers_is_not_for_its_slot(relay: Relay) -> None:
    collide(relay, CLIENT, relay.proven(STRANGER))
    quote = bytes(frame_between(VIP, CLIENT, messages.rtp()))[14:]
    frame = icmp_frame(Error(3, 3), quote, source=ROUTERS[4], destination=VIP)
    assert relay.receive(frame).reason == "icmp"


def test_another_seed_is_another_bucket(relay: Relay) -> None:
    before = relay.bucket_of(CLIENT)
    settings = relay.maps.settings()
    seed = list(settings.seed)
    try:
        places = set()
        for number in range(1, 9):
            settings.seed[0] = number
            relay.maps.configure(settings)
            places.add(relay.bucket_of(CLIENT))
            slot = relay.proven()
            assert slot_of(relay.from_client(messages.rtp())) == slot
            relay.close_slot(slot)
    finally:
        settings.seed[:] = seed
        relay.maps.configure(settings)
    assert len(places | {before}) > 4
