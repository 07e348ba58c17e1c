"""What attacks get: those of docs/attacks.md that no other test of this folder plays."""

import itertools
import random
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest
from aioice import stun
from scapy.packet import Packet

from loader import types
from loader.types import State
from tests.packets import messages
from tests.packets.frames import COMBINATIONS
from tests.packets.relay import (
    CLIENT,
    OTHER_VIP,
    PORTS,
    STRANGER,
    UFRAG,
    VIP,
    X1,
    X2,
    Endpoint,
    Outcome,
    Relay,
    client_frame,
    slot_of,
    transceiver_frame,
)

OWN = "ufragOfTheAttackersOwn"
LIMIT = 3.0


def spoofed(number: int) -> Endpoint:
    """A source address of an attacker's choice."""
    return Endpoint(f"203.0.{113 + number // 250}.{number % 250 + 1}", 1024 + number, STRANGER.mac)


def aioice_request(username: str, transaction: int, **attributes: object) -> bytes:
    """A check as ICE agents make it, integrity and fingerprint included."""
    message = stun.Message(
        message_method=stun.Method.BINDING,
        message_class=stun.Class.REQUEST,
        transaction_id=transaction.to_bytes(12, "big"),
    )
    message.attributes["USERNAME"] = username
    message.attributes["PRIORITY"] = 1853824767
    message.attributes.update({name.replace("_", "-"): v for name, v in attributes.items()})
    message.add_message_integrity(b"p" * 22)
    message.add_fingerprint()
    return bytes(message)


def aioice_answer(transaction: int, client: Endpoint) -> bytes:
    """aioice's success to a check."""
    message = stun.Message(
        message_method=stun.Method.BINDING,
        message_class=stun.Class.RESPONSE,
        transaction_id=transaction.to_bytes(12, "big"),
    )
    message.attributes["XOR-MAPPED-ADDRESS"] = (client.address, client.port)
    message.add_message_integrity(b"p" * 22)
    message.add_fingerprint()
    return bytes(message)


def factor(sent: Sequence[Outcome], came: Sequence[int]) -> float:
    """Bytes of IP packets that went to the victim, for each that came in its name."""
    return sum(len(outcome.packet) for outcome in sent if outcome.forwarded) / sum(came)


# Floods from forged sources.


def test_a_flood_without_a_known_ufrag_leaves_nothing_behind(relay: Relay) -> None:
    reasons = {
        relay.from_client(messages.request(f"guess{n}"), client=spoofed(n)).reason
        for n in range(300)
    }
    assert reasons == {"no_route"}
    assert not relay.in_state(State.PENDING)
    assert relay.maps.take_free() == PORTS[0]


def test_a_flood_with_a_known_ufrag_takes_eight_slots_and_no_call(relay: Relay) -> None:
    call = relay.proven()
    for number in range(300):
        relay.from_client(messages.request(UFRAG), client=spoofed(number))
    assert len(relay.in_state(State.PENDING)) == types.ROUTE_SLOTS - 1
    assert slot_of(relay.from_client(messages.rtp())) == call


# Amplification: what a victim gets for each byte that somebody sends in its name.


@pytest.mark.parametrize("families", COMBINATIONS)
def test_the_factor_of_a_transceiver_that_answers_and_checks(relay: Relay, families: str) -> None:
    """The worst that an honest transceiver does: aioice's messages, all of its repetitions."""
    pair = COMBINATIONS[families]
    asked, checked = messages.transaction(), messages.transaction()
    request = aioice_request(f"{pair.ufrag}:clnt", asked, ICE_CONTROLLING=1, USE_CANDIDATE=None)
    came = relay.from_client(request, client=pair.client)
    check = aioice_request(f"clnt:{pair.ufrag}", checked, ICE_CONTROLLED=1)
    answers = [aioice_answer(asked, pair.client), *[check] * (1 + stun.RETRY_MAX)]
    sent = [relay.from_transceiver(answer, to=slot_of(came)) for answer in answers]
    measured = factor(sent, [len(client_frame(request, client=pair.client)) - 14])
    print(f"factor: {measured:.2f}")
    assert 2.0 < measured <= LIMIT
    assert sent[-1].reason == "amplification"


@pytest.mark.parametrize("families", COMBINATIONS)
@pytest.mark.parametrize("is_established", [False, True], ids=["pending", "established"])
@pytest.mark.parametrize("size", [0, 100, 1200])
def test_the_factor_of_a_transceiver_that_floods(
    relay: Relay, families: str, is_established: bool, size: int
) -> None:
    pair = COMBINATIONS[families]
    asked = messages.transaction()
    request = messages.request(pair.ufrag, transaction_id=asked)
    came = relay.from_client(request, client=pair.client)
    flood: Packet | bytes = messages.stun(messages.INDICATION, messages.attribute(bytes(size)))
    sent = []
    if is_established:
        sent.append(relay.from_transceiver(messages.success(asked), to=slot_of(came)))
        flood = messages.rtp(size)
    sent += [relay.from_transceiver(flood, to=slot_of(came)) for _ in range(40)]
    assert factor(sent, [len(client_frame(request, client=pair.client)) - 14]) <= LIMIT
    assert sent[-1].reason == "amplification"


def test_the_factor_over_several_slots_and_their_changes_of_hands(relay: Relay) -> None:
    """Every way to begin anew: both VIPs, two routes, and slots taken over in between."""
    relay.add_route(OWN)
    sent: list[Outcome] = []
    came: list[int] = []
    strangers = itertools.count()
    for vip in (VIP, OTHER_VIP):
        for ufrag in (UFRAG, OWN):
            for turn in range(3):
                request = messages.request(ufrag)
                outcome = relay.from_client(request, vip=vip)
                came.append(len(client_frame(request, vip=vip)) - 14)
                slot = slot_of(outcome)
                sent += [relay.from_transceiver(messages.check(turn), to=slot) for _ in range(9)]
                relay.let_idle(slot, 60.0)
                for _ in range(types.ROUTE_SLOTS):
                    stranger = spoofed(next(strangers))
                    relay.from_client(messages.request(ufrag), client=stranger)
                owner = relay.slot(slot)["to_client"]["client"].tobytes()
                assert owner != bytes(types.packed_address(CLIENT.address))
    assert LIMIT / 2 < factor(sent, came) <= LIMIT


# A session of one's own, and replays.


def test_a_hop_is_not_taken_by_a_session_of_ones_own_on_the_same_transceiver(
    relay: Relay,
) -> None:
    slot = relay.proven()
    relay.add_route(OWN)
    here = Endpoint(CLIENT.address, CLIENT.port, STRANGER.mac, vlan=66)
    asked = messages.transaction()
    relay.from_client(messages.request(OWN, transaction_id=asked), client=here)
    relay.from_transceiver(messages.success(asked), to=slot)
    assert relay.from_transceiver(messages.rtp(), to=slot).ethernet.dst == CLIENT.mac


def test_a_replayed_request_gets_a_slot_of_the_replayers_own(relay: Relay) -> None:
    asked = messages.transaction()
    request = messages.request(UFRAG, transaction_id=asked)
    slot = slot_of(relay.from_client(request))
    relay.from_transceiver(messages.success(asked), to=slot)
    replayed = slot_of(relay.from_client(request, client=STRANGER))
    relay.from_transceiver(messages.success(asked), to=replayed)
    assert replayed != slot
    assert slot_of(relay.from_client(messages.rtp())) == slot
    assert relay.from_transceiver(messages.rtp(), to=slot).ip.dst == CLIENT.address
    flood = {relay.from_transceiver(messages.rtp(), to=replayed).reason for _ in range(9)}
    assert "amplification" in flood


def test_an_answer_to_ones_own_request_proves_nothing(relay: Relay) -> None:
    """Somebody off the path knows no transaction but those of its own requests."""
    asked = messages.transaction()
    request = messages.request(UFRAG, transaction_id=asked)
    slot = slot_of(relay.from_client(request))
    assert relay.from_client(messages.success(asked)).reason == "unexpected_response"
    assert relay.state(slot) is State.PENDING


def test_a_port_with_a_new_client_takes_nothing_meant_for_the_old(relay: Relay) -> None:
    slot, asked = relay.asked()
    relay.close_slot(slot)
    relay.free_slot(slot)
    relay.offer([slot])
    assert relay.pending(STRANGER) == slot
    relay.from_transceiver(messages.success(asked), to=slot)
    assert relay.state(slot) is State.PENDING


def test_another_transceiver_can_send_neither_media_nor_stun(relay: Relay) -> None:
    slot = relay.proven()
    for payload in (messages.rtp(), messages.check(1), messages.success(1)):
        outcome = relay.from_transceiver(payload, to=slot, transceiver=X2)
        assert outcome.reason == "wrong_transceiver"


# Two CPUs.

PACKETS = 6000  # of each thread: a few seconds


def test_two_cpus_leave_the_tables_in_agreement(relay: Relay, dice: random.Random) -> None:
    """Twenty clients ask for one route while its transceiver answers those with an even number,
    to every slot, rightly and wrongly, and the agent closes and frees what that establishes."""
    clients = [spoofed(number) for number in range(20)]
    asked = [messages.transaction() for _ in clients]
    requests = [
        bytes(client_frame(messages.request(UFRAG, transaction_id=asked[n]), client=clients[n]))
        for n in range(20)
    ]
    answers = [
        bytes(transceiver_frame(messages.success(asked[n]), to=slot, transceiver=X1))
        for n in range(0, 20, 2)
        for slot in PORTS
    ]
    seeds = [dice.random(), dice.random()]

    def ask() -> None:
        own = random.Random(seeds[0])
        for _ in range(PACKETS):
            relay.run(own.choice(requests))

    def answer() -> set[int]:
        """The clients whose flows were established."""
        own = random.Random(seeds[1])
        earned: set[int] = set()
        for packet in range(PACKETS):
            relay.run(own.choice(answers), on=relay.interfaces.inside)
            if packet % 3 == 0:
                relay.run(own.choice(requests))
            if packet % 16 == 0:
                # What was closed the last time has rested since.
                for slot in _in_state(relay, State.CLOSING):
                    relay.free_slot(slot)
                for slot in _in_state(relay, State.ESTABLISHED):
                    generation = relay.handshake(slot).generation
                    number = _client(relay, slot, clients)
                    # Unless it has been taken over meanwhile, in the moment of its establishing.
                    if slot in _in_state(relay, State.ESTABLISHED) and (
                        relay.handshake(slot).generation == generation
                    ):
                        earned.add(number)
                        relay.close_slot(slot)
        return earned

    with ThreadPoolExecutor(2) as cpus:
        asking, answering = cpus.submit(ask), cpus.submit(answer)
        asking.result()
        earned = answering.result()
    assert earned
    assert all(number % 2 == 0 for number in earned), "established, but not earned"
    relay.counters = relay.maps.counters()

    route = relay.route()
    assert not route.busy
    used = relay.in_state(State.PENDING) + relay.in_state(State.ESTABLISHED)
    assert set(used) <= set(route.slots)
    in_use = [slot for slot in route.slots if slot in used]
    assert len(in_use) == len(set(in_use))
    flows = {slot: _client(relay, slot, clients) for slot in relay.in_state(State.ESTABLISHED)}
    assert all(number % 2 == 0 for number in flows.values()), "established, but not earned"
    for slot, number in flows.items():
        assert slot_of(relay.from_client(messages.rtp(0), client=clients[number])) == slot
    for slot in relay.in_state(State.CLOSING):
        relay.free_slot(slot)
    free = list(iter(relay.maps.take_free, None))
    assert sorted(free + used) == list(PORTS)


def _client(relay: Relay, slot: int, clients: Sequence[Endpoint]) -> int:
    port = int(relay.slot(slot)["to_client"]["client_port"])
    swapped = int.from_bytes(port.to_bytes(2, "big"), sys.byteorder)
    return next(n for n, client in enumerate(clients) if client.port in (port, swapped))


def _in_state(relay: Relay, state: State) -> list[int]:
    """As one half of the slots says, while both may be changing."""
    return [slot for slot in PORTS if int(relay.slot(slot)["to_client"]["state"]) == state]
