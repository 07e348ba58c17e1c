"""DTLS between two of ours, over a network that is the test's, and with attackers on it."""

import contextlib
import hashlib
import time
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given, settings
from hypothesis import strategies as st
from OpenSSL import SSL

from transceiver.dtls import (
    EARLY,
    LONGEST_MESSAGE,
    MOST_AHEAD,
    MTU,
    Certificate,
    Dtls,
    DtlsError,
    DtlsState,
    PrivateKey,
)

OURS = Certificate.fresh()
THEIRS = Certificate.fresh()
NOW = 100.0

Fingerprints = list[tuple[str, bytes]]


def fingerprints(certificate: Certificate) -> Fingerprints:
    return [("sha-256", bytes.fromhex(certificate.fingerprint.replace(":", "")))]


def client(expected: Fingerprints | None = None, certificate: Certificate = OURS) -> Dtls:
    return Dtls(
        certificate,
        is_client=True,
        fingerprints=fingerprints(THEIRS) if expected is None else expected,
    )


def server(expected: Fingerprints | None = None, certificate: Certificate = THEIRS) -> Dtls:
    return Dtls(
        certificate,
        is_client=False,
        fingerprints=fingerprints(OURS) if expected is None else expected,
    )


def exchange(one: Dtls, other: Dtls) -> None:
    """Carry what both have to say, until they are silent."""
    while True:
        there, back = one.take_datagrams(), other.take_datagrams()
        if not there and not back:
            return
        deliver(there, other)
        deliver(back, one)


def deliver(datagrams: Iterable[bytes], to: Dtls) -> None:
    for datagram in datagrams:
        to.receive(datagram, NOW)


def started() -> tuple[Dtls, Dtls]:
    one, other = client(), server()
    one.start(NOW)
    other.start(NOW)
    return one, other


def connected() -> tuple[Dtls, Dtls]:
    one, other = started()
    exchange(one, other)
    assert (one.state, other.state) == (DtlsState.CONNECTED, DtlsState.CONNECTED)
    return one, other


def flights() -> tuple[list[bytes], list[bytes], list[bytes], list[bytes]]:
    """Of a handshake that nobody disturbed: client's, server's, client's, server's."""
    one, other = started()
    hello = one.take_datagrams()
    deliver(hello, other)
    certificate = other.take_datagrams()
    deliver(certificate, one)
    finished = one.take_datagrams()
    deliver(finished, other)
    return hello, certificate, finished, other.take_datagrams()


def record(kind: int, body: bytes, *, epoch: int = 0, sequence: int = 9) -> bytes:
    return (
        bytes((kind, 0xFE, 0xFD))
        + epoch.to_bytes(2)
        + sequence.to_bytes(6)
        + len(body).to_bytes(2)
        + body
    )


def message(
    kind: int, body: bytes = b"", *, length: int | None = None, number: int = 1, offset: int = 0
) -> bytes:
    """A fragment of a handshake message."""
    return (
        bytes((kind,))
        + (len(body) if length is None else length).to_bytes(3)
        + number.to_bytes(2)
        + offset.to_bytes(3)
        + len(body).to_bytes(3)
        + body
    )


def records(datagram: bytes) -> list[bytes]:
    found, at = [], 0
    while at < len(datagram):
        after = at + 13 + int.from_bytes(datagram[at + 11 : at + 13])
        found.append(datagram[at:after])
        at = after
    return found


def self_made(
    key: PrivateKey, *, begins: timedelta = timedelta(days=-1), ends: timedelta = timedelta(days=1)
) -> tuple[Certificate, x509.Certificate]:
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "WebRTC")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now + begins)
        .not_valid_after(now + ends)
        .sign(key, None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256())
    )
    return Certificate(key, certificate), certificate


def test_both_ends_have_the_same_keys_crosswise() -> None:
    one, other = connected()
    assert one.keys().local == other.keys().remote
    assert one.keys().remote == other.keys().local
    assert one.keys().local != one.keys().remote
    assert one.keys().profile == other.keys().profile


def test_keys_do_not_show_in_a_log() -> None:
    one, _ = connected()
    assert repr(one.keys().local) not in repr(one.keys())


def test_data_goes_both_ways_a_record_each() -> None:
    one, other = connected()
    one.send(b"one")
    one.send(b"two")
    other.send(b"three")
    exchange(one, other)
    assert other.take_data() == [b"one", b"two"]
    assert one.take_data() == [b"three"]


def test_two_records_of_data_in_a_datagram_are_two_data() -> None:
    one, other = connected()
    one.send(b"one")
    one.send(b"two")
    other.receive(b"".join(one.take_datagrams()), NOW)
    assert other.take_data() == [b"one", b"two"]


@pytest.mark.parametrize("together", [True, False])
def test_data_right_behind_the_handshake_is_not_lost(together: bool) -> None:
    one, other = started()
    deliver(one.take_datagrams(), other)
    deliver(other.take_datagrams(), one)
    deliver(one.take_datagrams(), other)
    other.send(b"first")
    sent = other.take_datagrams()
    assert len(sent) == 2
    deliver([b"".join(sent)] if together else sent, one)
    assert one.state is DtlsState.CONNECTED
    assert one.take_data() == [b"first"]


def test_datagrams_of_the_handshake_fit_the_mtu() -> None:
    key = rsa.generate_private_key(65537, 4096)  # a certificate that needs two datagrams
    certificate, _ = self_made(key)
    one, other = client(fingerprints(certificate)), server(certificate=certificate)
    one.start(NOW)
    other.start(NOW)
    deliver(one.take_datagrams(), other)
    flight = other.take_datagrams()
    assert len(flight) > 1
    assert all(len(datagram) <= MTU for datagram in flight)
    deliver(flight, one)
    exchange(one, other)
    assert one.state is DtlsState.CONNECTED


def test_a_datagram_of_data_is_37_bytes_longer() -> None:
    one, _ = connected()
    one.send(bytes(1189))
    assert [len(datagram) for datagram in one.take_datagrams()] == [1226]


def test_a_client_that_is_lost_for_words_is_told_so() -> None:
    one = client()
    with pytest.raises(DtlsError, match="new"):
        one.send(b"too early")
    with pytest.raises(DtlsError, match="new"):
        one.keys()
    one.start(NOW)
    with pytest.raises(DtlsError, match="handshaking"):
        one.start(NOW)


@pytest.mark.parametrize("algorithm", ["sha-256", "sha-384", "sha-512"])
def test_any_strong_digest_identifies(algorithm: str) -> None:
    theirs, certificate = self_made(ec.generate_private_key(ec.SECP256R1()))
    digest = hashlib.new(
        algorithm.replace("-", ""), certificate.public_bytes(Encoding.DER)
    ).digest()
    one, other = client([(algorithm, digest)]), server(certificate=theirs)
    one.start(NOW)
    other.start(NOW)
    exchange(one, other)
    assert one.state is DtlsState.CONNECTED


def test_one_of_several_fingerprints_is_enough() -> None:
    one = client([("sha-256", bytes(32)), *fingerprints(THEIRS)])
    other = server()
    one.start(NOW)
    other.start(NOW)
    exchange(one, other)
    assert one.state is DtlsState.CONNECTED


@pytest.mark.parametrize(
    "key",
    [
        pytest.param(rsa.generate_private_key(65537, 2048), id="RSA 2048"),
        pytest.param(ec.generate_private_key(ec.SECP384R1()), id="P-384"),
        pytest.param(ed25519.Ed25519PrivateKey.generate(), id="ed25519"),
    ],
)
@pytest.mark.parametrize("is_client", [True, False])
def test_certificates_of_any_usual_key_do(key: PrivateKey, is_client: bool) -> None:
    if is_client and isinstance(key, ed25519.Ed25519PrivateKey):
        key = ec.generate_private_key(ec.SECP521R1())  # OpenSSL's DTLS servers do not sign by it
    theirs, _ = self_made(key)
    ours = Dtls(OURS, is_client=is_client, fingerprints=fingerprints(theirs))
    peer = Dtls(theirs, is_client=not is_client, fingerprints=fingerprints(OURS))
    ours.start(NOW)
    peer.start(NOW)
    exchange(ours, peer)
    assert ours.state is DtlsState.CONNECTED


@pytest.mark.parametrize(
    ("begins", "ends"),
    [(timedelta(days=-2), timedelta(days=-1)), (timedelta(days=1), timedelta(days=2))],
    ids=["expired", "not yet valid"],
)
def test_dates_do_not_matter(begins: timedelta, ends: timedelta) -> None:
    theirs, _ = self_made(ec.generate_private_key(ec.SECP256R1()), begins=begins, ends=ends)
    one, other = client(fingerprints(theirs)), server(certificate=theirs)
    one.start(NOW)
    other.start(NOW)
    exchange(one, other)
    assert one.state is DtlsState.CONNECTED


@pytest.mark.parametrize("is_client", [True, False])
def test_a_certificate_that_was_not_announced_fails(is_client: bool) -> None:
    stranger = Certificate.fresh()
    ours = Dtls(OURS, is_client=is_client, fingerprints=fingerprints(THEIRS))
    peer = Dtls(stranger, is_client=not is_client, fingerprints=fingerprints(OURS))
    ours.start(NOW)
    peer.start(NOW)
    exchange(ours, peer)
    assert ours.state is DtlsState.FAILED
    assert "certificate" in ours.reason
    with pytest.raises(DtlsError):
        ours.keys()


def test_weak_digests_identify_nobody() -> None:
    ours = client([("sha-1", bytes(20)), ("md5", bytes(16)), ("sha-256", bytes(20))])
    ours.start(NOW)
    assert ours.state is DtlsState.FAILED
    assert ours.take_datagrams() == []


def test_after_failure_everything_is_dropped() -> None:
    ours, peer = client(fingerprints(OURS)), server()
    ours.start(NOW)
    peer.start(NOW)
    exchange(ours, peer)
    assert ours.state is DtlsState.FAILED
    deliver(flights()[1], ours)
    ours.poll(NOW + 100)
    assert ours.take_datagrams() == []
    assert ours.next_deadline() is None
    ours.close()
    assert ours.state is DtlsState.FAILED


def test_a_goodbye_closes_both() -> None:
    one, other = connected()
    one.close()
    assert one.state is DtlsState.CLOSED
    exchange(one, other)
    assert other.state is DtlsState.CLOSED
    with pytest.raises(DtlsError, match="closed"):
        other.send(b"too late")
    deliver([record(22, b"x")], one)
    one.close()
    assert one.take_datagrams() == []


def test_closing_in_the_handshake_says_nothing_and_is_quiet() -> None:
    one, other = started()
    one.take_datagrams()
    one.close()
    assert one.state is DtlsState.CLOSED
    assert one.take_datagrams() == []
    assert one.next_deadline() is None
    deliver(flights()[1], one)
    assert other.state is DtlsState.HANDSHAKING


def test_no_deadline_once_connected() -> None:
    one, other = connected()
    assert one.next_deadline() is None
    assert other.next_deadline() is None


@pytest.mark.parametrize("lost", [0, 1, 2])
def test_a_flight_that_was_lost_is_there_within_a_fifth_of_a_second(lost: int) -> None:
    ends = one, other = started()
    for number in range(lost):
        deliver(ends[number % 2].take_datagrams(), ends[1 - number % 2])
    assert ends[lost % 2].take_datagrams() != []
    for end in ends:
        end.poll(NOW + 0.2)
    exchange(one, other)
    assert (one.state, other.state) == (DtlsState.CONNECTED, DtlsState.CONNECTED)


def test_a_flight_goes_three_times_in_the_first_half_second_and_not_before_its_time() -> None:
    one, _ = started()
    flight = one.take_datagrams()
    times = []
    for step in range(50):
        one.poll(NOW + step / 100)
        if again := one.take_datagrams():
            assert again == flight
            times.append(step / 100)
    assert times == list(EARLY)


def test_a_flight_that_was_answered_goes_no_more() -> None:
    one, other = started()
    deliver(one.take_datagrams(), other)
    deliver(other.take_datagrams(), one)
    answer = one.take_datagrams()
    one.poll(NOW + EARLY[0])
    assert one.take_datagrams() == answer
    deliver(answer, other)
    exchange(one, other)
    for end in (one, other):
        assert end.next_deadline() is None
        end.poll(NOW + 100)
        assert end.take_datagrams() == []


def test_a_flight_that_is_lost_and_lost_again_goes_anew() -> None:
    one, other = started()
    first = one.take_datagrams()
    deliver(anew(one, first), other)
    exchange(one, other)
    assert one.state is DtlsState.CONNECTED


def test_the_last_flight_goes_again_when_the_one_before_does() -> None:
    one, other = started()
    deliver(one.take_datagrams(), other)
    deliver(other.take_datagrams(), one)
    flight = one.take_datagrams()
    deliver(flight, other)
    other.take_datagrams()
    assert other.state is DtlsState.CONNECTED
    deliver(anew(one, flight), other)
    exchange(one, other)
    assert one.state is DtlsState.CONNECTED


def anew(end: Dtls, flight: list[bytes]) -> list[bytes]:
    """The flight as OpenSSL repeats it, with other sequence numbers, and by a clock of its own."""
    while (again := end.take_datagrams()) in ([], flight):
        deadline = end.next_deadline()
        assert deadline is not None
        end.poll(deadline)
        time.sleep(0.02)
    return again


def test_flights_out_of_order_and_twice_do() -> None:
    one, other = started()
    deliver(one.take_datagrams(), other)
    flight = [piece for datagram in other.take_datagrams() for piece in records(datagram)]
    deliver([*reversed(flight), *flight], one)
    (flight,) = [records(datagram) for datagram in one.take_datagrams()]
    *messages, change, finished = flight
    deliver([finished, *reversed(messages), change, *flight], other)
    exchange(one, other)
    assert (one.state, other.state) == (DtlsState.CONNECTED, DtlsState.CONNECTED)


@settings(deadline=None)
@given(st.lists(st.binary(max_size=1500), max_size=20))
def test_garbage_neither_raises_nor_ends_a_handshake(garbage: list[bytes]) -> None:
    one, other = started()
    deliver(garbage, one)
    deliver(garbage, other)
    exchange(one, other)
    assert (one.state, other.state) == (DtlsState.CONNECTED, DtlsState.CONNECTED)


RECORDS = st.builds(
    record,
    st.integers(0, 255),
    st.binary(max_size=200),
    epoch=st.integers(0, 3),
    sequence=st.integers(0, 2**48 - 1),
)


@settings(deadline=None)
@given(st.lists(RECORDS, max_size=20))
def test_records_of_nonsense_neither_raise_nor_end_a_handshake(garbage: list[bytes]) -> None:
    one, other = started()
    deliver(garbage, one)
    deliver(garbage, other)
    exchange(one, other)
    assert (one.state, other.state) == (DtlsState.CONNECTED, DtlsState.CONNECTED)


@settings(deadline=None)
@given(st.lists(RECORDS | st.binary(max_size=1500), max_size=20))
def test_garbage_does_not_touch_an_association(garbage: list[bytes]) -> None:
    one, other = connected()
    deliver(garbage, one)
    deliver(garbage, other)
    assert one.take_datagrams() == []
    one.send(b"still here")
    exchange(one, other)
    assert other.take_data() == [b"still here"]


@settings(deadline=None)
@given(st.data())
def test_a_flight_that_was_tampered_with_never_raises(data: st.DataObject) -> None:
    one, other = started()
    deliver(one.take_datagrams(), other)
    (flight,) = other.take_datagrams()
    damaged = bytearray(flight)
    for _ in range(data.draw(st.integers(1, 5))):
        damaged[data.draw(st.integers(0, 600))] = data.draw(st.integers(0, 255))
    deliver([bytes(damaged)], one)
    deliver([flight], one)
    exchange(one, other)


@settings(deadline=None)
@given(st.integers(0, 700))
def test_a_truncated_flight_does_no_harm(size: int) -> None:
    one, other = started()
    deliver(one.take_datagrams(), other)
    (flight,) = other.take_datagrams()
    deliver([flight[:size], flight], one)
    exchange(one, other)
    assert one.state is DtlsState.CONNECTED


@pytest.mark.parametrize(
    ("kind", "name"),
    [(0, "alert 0"), (40, "handshake_failure"), (42, "bad_certificate"), (99, "alert 99")],
)
def test_an_alert_in_the_clear_is_remembered_and_not_obeyed(kind: int, name: str) -> None:
    one, other = started()
    deliver([record(21, bytes((2, kind)))], one)
    assert name in one.reason
    exchange(one, other)
    assert one.state is DtlsState.CONNECTED
    assert one.reason == ""


def test_data_in_the_clear_is_dropped() -> None:
    one, other = started()
    deliver([record(23, b"psst")], one)
    exchange(one, other)
    assert one.take_data() == []
    assert one.state is DtlsState.CONNECTED


def test_what_was_replayed_comes_once() -> None:
    one, other = connected()
    one.send(b"once")
    sent = one.take_datagrams()
    deliver([*sent, *sent], other)
    assert other.take_data() == [b"once"]


def test_a_handshake_replayed_leaves_an_association_alone() -> None:
    one, other = started()
    seen: list[bytes] = []
    while True:
        there, back = one.take_datagrams(), other.take_datagrams()
        if not there and not back:
            break
        seen += there + back
        deliver(there, other)
        deliver(back, one)
    deliver(seen, one)
    deliver(seen, other)
    assert one.take_datagrams() == other.take_datagrams() == []
    other.send(b"still here")
    exchange(one, other)
    assert one.take_data() == [b"still here"]


def test_messages_beyond_reason_are_dropped() -> None:
    one, other = started()
    huge = message(11, b"x" * 100, length=LONGEST_MESSAGE + 1)
    outside = message(11, b"x" * 100, length=200, offset=150)
    deliver([record(22, huge), record(22, outside)], one)
    exchange(one, other)
    assert one.state is DtlsState.CONNECTED


def test_records_ahead_of_their_time_are_bounded() -> None:
    one, other = started()
    garbage = [record(22, bytes(60), epoch=1, sequence=number) for number in range(10 * MOST_AHEAD)]
    deliver(garbage, one)
    deliver(one.take_datagrams(), other)
    exchange(one, other)
    assert one.state is DtlsState.CONNECTED


class Foreign:
    """An end that is OpenSSL as it comes, without our rules."""

    def __init__(self) -> None:
        context = SSL.Context(SSL.DTLS_METHOD)
        self.certificate, certificate = self_made(key := ec.generate_private_key(ec.SECP256R1()))
        context.use_certificate(certificate)
        context.use_privatekey(key)
        context.set_verify(SSL.VERIFY_PEER, lambda *_: True)
        context.set_options(SSL.OP_NO_QUERY_MTU)
        self.connection = SSL.Connection(context)
        self.connection.set_ciphertext_mtu(MTU)

    def talk(self, ours: Dtls) -> list[bytes]:
        """Carry what both have to say; return what was data."""
        data = []
        for _ in range(10):
            for datagram in ours.take_datagrams():
                self.connection.bio_write(datagram)
            with contextlib.suppress(SSL.WantReadError):
                while True:
                    data.append(self.connection.recv(1 << 16))
            with contextlib.suppress(SSL.WantReadError):
                ours.receive(self.connection.bio_read(1 << 16), NOW)
        return data


@pytest.mark.parametrize("is_client", [True, False])
def test_a_peer_that_wants_to_renegotiate_is_refused(is_client: bool) -> None:
    peer = Foreign()
    ours = Dtls(OURS, is_client=is_client, fingerprints=fingerprints(peer.certificate))
    ours.start(NOW)
    if is_client:
        peer.connection.set_accept_state()
    else:
        peer.connection.set_connect_state()
    peer.talk(ours)
    assert ours.state is DtlsState.CONNECTED
    peer.connection.renegotiate()
    with contextlib.suppress(SSL.Error):
        peer.connection.do_handshake()
    ours.receive(peer.connection.bio_read(1 << 16), NOW)
    assert ours.state is DtlsState.CONNECTED
    with pytest.raises(SSL.Error, match="no renegotiation"):
        peer.talk(ours)


def test_a_peer_without_srtp_has_data_and_no_keys() -> None:
    peer = Foreign()
    ours = client(fingerprints(peer.certificate))
    ours.start(NOW)
    peer.connection.set_accept_state()
    peer.talk(ours)
    assert ours.state is DtlsState.CONNECTED
    with pytest.raises(DtlsError):
        ours.keys()


def test_a_certificate_is_good_from_yesterday_for_a_month() -> None:
    now = datetime.now(UTC)
    assert now + timedelta(days=29) < Certificate.fresh().expires < now + timedelta(days=31)


def test_certificates_differ() -> None:
    assert OURS.fingerprint != THEIRS.fingerprint
    assert len(OURS.fingerprint) == 32 * 3 - 1
