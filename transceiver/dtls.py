"""DTLS 1.2 for one session (RFC 6347, RFC 8827 section 6.5): the handshake, SRTP's keys, data.

No I/O: datagrams and `now` (monotonic seconds) come in; `take_datagrams`, `take_data` and
`next_deadline` say what is to be done. The protocol itself is OpenSSL's.

Who the client is was said in the offer, by the digest of his certificate. Any certificate with
that digest will do, and no other: who signed it, its dates, names and purposes mean nothing here.
It is checked before we spend a signature or a key on him.

What comes before the handshake's end is not authentic, and DTLS has no remedy for that. So a
datagram is looked at before OpenSSL gets it, and what is not a record that may come now is
dropped, where OpenSSL would give up: nonsense, data or alerts in the clear, message types of
the wrong side, sizes beyond reason. A fatal alert in the clear is remembered and not obeyed;
if it was the client's, he will say no more, and our owner's patience ends the matter. What
remains to one who can write in the client's name, from the client's address, in the tenth of a
second that this takes, is to forge a message of the handshake, and thereby end it.

As a server we ask for no cookie (RFC 6347 section 4.2.1). A cookie shows that the client is where
he says, lest we send a flight to a stranger or keep state for him; ICE has shown that already,
with an answer to our own check, and its answer was authentic as well.
"""

import hmac
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from secrets import token_hex

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from OpenSSL import SSL, crypto
from pylibsrtp import Policy

__all__ = ["MTU", "Certificate", "Dtls", "DtlsError", "DtlsState", "Keys"]

MTU = 1200
"""Bytes of a datagram in the handshake, at most. Data goes as it is given, and 37 bytes more."""

EARLY = (0.15, 0.45)
"""Seconds after a flight was first sent at which it goes again, unless there was an answer.

OpenSSL waits for a second, which is a second of silence at the beginning of a call. So until
then the same datagrams are sent twice more. To the peer, that is a network that duplicates: what
he has had already, he drops by its sequence number."""

LONGEST_MESSAGE = 32_768
"""Bytes of a handshake message. OpenSSL takes room for what is announced, ten messages ahead."""

MOST_AHEAD = 16
"""Encrypted records before the client's ChangeCipherSpec, which OpenSSL keeps for later."""

VALID_FOR = timedelta(days=30)
SKEW = timedelta(days=1)
"""How late a client's clock may be. Browsers do not look; others might."""

_DIGESTS = {"sha-256": 32, "sha-384": 48, "sha-512": 64}
"""Bytes of those digests that still identify a certificate (RFC 8122 section 5)."""

_CIPHERS = b":".join(
    b"ECDHE-%b-%b" % (signature, cipher)
    for cipher in (b"AES128-GCM-SHA256", b"CHACHA20-POLY1305", b"AES256-GCM-SHA384")
    for signature in (b"ECDSA", b"RSA")
)

_DTLS1_2_VERSION = 0xFEFD
_RECORD = 13  # bytes of a record's header
_FRAGMENT = 12  # bytes of a handshake message's header, on each of its fragments
_LONGEST_READ = 1 << 16
_CHANGE_CIPHER_SPEC, _ALERT, _HANDSHAKE, _DATA = 20, 21, 22, 23
_FATAL = 2
_ALERTS = {  # RFC 5246 section 7.2
    10: "unexpected_message",
    40: "handshake_failure",
    42: "bad_certificate",
    43: "unsupported_certificate",
    45: "certificate_expired",
    46: "certificate_unknown",
    47: "illegal_parameter",
    48: "unknown_ca",
    50: "decode_error",
    51: "decrypt_error",
    70: "protocol_version",
    71: "insufficient_security",
    80: "internal_error",
}
# Types of handshake messages (RFC 5246 section 7.4, RFC 6347 section 4.3.2). Finished is encrypted.
_FROM_SERVER = frozenset({2, 3, 4, 11, 12, 13, 14, 22})
_FROM_CLIENT = frozenset({1, 11, 15, 16})


PrivateKey = ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey | rsa.RSAPrivateKey


class DtlsError(Exception):
    """Asked for what the state does not allow, or what the peer did not negotiate."""


class DtlsState(StrEnum):
    NEW = "new"
    HANDSHAKING = "handshaking"
    CONNECTED = "connected"
    CLOSED = "closed"
    """By a close_notify, theirs or ours."""
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class _Profile:
    """An SRTP protection profile (RFC 5764 section 4.1.2, RFC 7714 section 14.2)."""

    name: bytes
    number: int
    """What pylibsrtp calls it."""
    key: int
    """Bytes."""
    salt: int


# The cheapest first: GCM takes 1.4 µs a packet each way here, the other 2.2 to 2.7.
_PROFILES = (
    _Profile(b"SRTP_AEAD_AES_128_GCM", Policy.SRTP_PROFILE_AEAD_AES_128_GCM, 16, 12),
    _Profile(b"SRTP_AES128_CM_SHA1_80", Policy.SRTP_PROFILE_AES128_CM_SHA1_80, 16, 14),
)


@dataclass(frozen=True, slots=True)
class Keys:
    """SRTP's master keys, each with its salt behind it (RFC 5764 section 4.2).

    *profile* is a number of pylibsrtp's. *local* is for what we send, *remote* for the peer's.
    """

    profile: int
    local: bytes = field(repr=False)
    remote: bytes = field(repr=False)


@dataclass(slots=True)
class _Peer:
    """What OpenSSL's callback knows of a connection."""

    fingerprints: tuple[tuple[str, bytes], ...]
    is_verified: bool = False


def _verify(
    connection: SSL.Connection, certificate: crypto.X509, _error: int, depth: int, _ok: int
) -> bool:
    """Whether the handshake may go on: the peer's own certificate is one that he announced."""
    peer: _Peer = connection.get_app_data()
    if depth or peer.is_verified:  # whoever is said to have signed it; or asked a second time
        return True
    digests = {algorithm: _digest(certificate, algorithm) for algorithm, _ in peer.fingerprints}
    peer.is_verified = any(
        hmac.compare_digest(digest, digests[algorithm]) for algorithm, digest in peer.fingerprints
    )
    return peer.is_verified


def _digest(certificate: crypto.X509, algorithm: str) -> bytes:
    return bytes.fromhex(certificate.digest(algorithm.replace("-", "")).replace(b":", b"").decode())


class Certificate:
    """A key and its certificate, for all sessions of a process."""

    def __init__(self, key: PrivateKey, certificate: x509.Certificate) -> None:
        self.fingerprint = certificate.fingerprint(hashes.SHA256()).hex(":").upper()
        """SHA-256, as in an `a=fingerprint` line: pairs of hexadecimal digits, with colons."""
        self.expires = certificate.not_valid_after_utc
        self.context = _context(key, certificate)
        """OpenSSL's, made once: a tenth of what a session costs otherwise."""

    @classmethod
    def fresh(cls) -> "Certificate":
        """A new key of P-256, which every WebRTC stack must take (RFC 8827 section 6.5), and what
        it signed for itself: good for 30 days, and no word of who we are."""
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, token_hex(16))])
        now = datetime.now(UTC)
        certificate = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - SKEW)
            .not_valid_after(now + VALID_FOR)
            .sign(key, hashes.SHA256())
        )
        return cls(key, certificate)


def _context(key: PrivateKey, certificate: x509.Certificate) -> SSL.Context:
    context = SSL.Context(SSL.DTLS_METHOD)
    context.set_min_proto_version(_DTLS1_2_VERSION)
    context.set_max_proto_version(_DTLS1_2_VERSION)  # its timers and flights are what is tested
    context.set_options(SSL.OP_NO_QUERY_MTU | SSL.OP_NO_RENEGOTIATION | SSL.OP_NO_TICKET)
    context.set_mode(SSL.MODE_RELEASE_BUFFERS)
    # A session that is resumed shows no certificate; and the cache would grow.
    context.set_session_cache_mode(SSL.SESS_CACHE_OFF)
    context.set_verify(SSL.VERIFY_PEER | SSL.VERIFY_FAIL_IF_NO_PEER_CERT, _verify)
    context.set_cipher_list(_CIPHERS)
    context.set_tlsext_use_srtp(b":".join(profile.name for profile in _PROFILES))
    context.use_certificate(certificate)
    context.use_privatekey(key)
    return context


class Dtls:
    """One association.

    *fingerprints*: digests of the peer's certificate by algorithm ("sha-256"); one must be right.
    """

    def __init__(
        self,
        certificate: Certificate,
        *,
        is_client: bool,
        fingerprints: Sequence[tuple[str, bytes]],
    ) -> None:
        self.state = DtlsState.NEW
        self.reason = ""
        """Why it is FAILED; before, what the peer is said to complain of, if anything."""
        self._certificate = certificate
        self._is_client = is_client
        self._expected = _FROM_SERVER if is_client else _FROM_CLIENT
        self._peer = _Peer(
            tuple(
                (algorithm, digest)
                for algorithm, digest in fingerprints
                if _DIGESTS.get(algorithm) == len(digest)
            )
        )
        self._connection: SSL.Connection | None = None
        self._timeout: float | None = None
        self._flight: list[bytes] = []
        self._repeats: list[float] = []
        self._ahead = 0
        self._datagrams: list[bytes] = []
        self._data: list[bytes] = []
        self._keys: Keys | None = None

    def start(self, now: float) -> None:
        """Begin: as the client with a ClientHello, as the server by listening for one."""
        if self.state is not DtlsState.NEW:
            raise DtlsError(f"started when {self.state}")
        if not self._peer.fingerprints:
            self._fail("the offer has no fingerprint that would identify a certificate")
            return
        self.state = DtlsState.HANDSHAKING
        connection = SSL.Connection(self._certificate.context)
        connection.set_app_data(self._peer)
        connection.set_ciphertext_mtu(MTU)
        if self._is_client:
            connection.set_connect_state()
        else:
            connection.set_accept_state()
        self._connection = connection
        self._advance(connection, now)

    def receive(self, datagram: bytes, now: float) -> None:
        """A datagram from the peer, or in his name. What is not in order is dropped."""
        connection = self._connection
        if connection is None:
            return
        records = b"".join(self._admitted(datagram))
        if records:
            connection.bio_write(records)
            self._advance(connection, now)

    def poll(self, now: float) -> None:
        """Send the last flight again, if it is time."""
        if self._repeats and now >= self._repeats[0]:
            self._repeats.pop(0)
            self._datagrams += self._flight
        connection, timeout = self._connection, self._timeout
        if connection is None or timeout is None or now < timeout:
            return
        try:
            connection.DTLSv1_handle_timeout()
        except SSL.Error as error:
            self._fail(_reason(error))
            return
        self._flush(connection)
        self._schedule(connection, now)

    def next_deadline(self) -> float | None:
        """When `poll` has something to do, on the clock of *now*."""
        if self._repeats and (self._timeout is None or self._repeats[0] < self._timeout):
            return self._repeats[0]
        return self._timeout

    def send(self, data: bytes) -> None:
        """Application data, a datagram by itself. Raises DtlsError unless CONNECTED."""
        if self._connection is None or self.state is not DtlsState.CONNECTED:
            raise DtlsError(f"data to be sent when {self.state}")
        try:
            self._connection.send(data)
        except SSL.Error as error:
            raise DtlsError(_reason(error)) from error
        self._flush(self._connection)

    def take_datagrams(self) -> list[bytes]:
        """What is to be sent to the peer, in this order."""
        datagrams, self._datagrams = self._datagrams, []
        return datagrams

    def take_data(self) -> list[bytes]:
        """What the peer has sent, a record each."""
        data, self._data = self._data, []
        return data

    def keys(self) -> Keys:
        """Raises DtlsError before CONNECTED, and if the peer does not know SRTP."""
        if self._keys is None:
            raise DtlsError(f"no keys for SRTP when {self.state}")
        return self._keys

    def close(self) -> None:
        """Say goodbye (close_notify), and be CLOSED."""
        if self.state is DtlsState.CONNECTED:
            self._say_goodbye()
        if self.state is not DtlsState.FAILED:
            self._end(DtlsState.CLOSED)

    def _admitted(self, datagram: bytes) -> Iterator[bytes]:
        """Its records that may come now, whole (RFC 6347 section 4.1)."""
        at, end = 0, len(datagram)
        while end - at >= _RECORD:
            body = at + _RECORD
            after = body + int.from_bytes(datagram[at + 11 : body])
            if after > end or datagram[at + 1] != 0xFE:
                return
            epoch = int.from_bytes(datagram[at + 3 : at + 5])
            if self._is_admitted(datagram[at], epoch, datagram[body:after]):
                yield datagram[at:after]
            at = after

    def _is_admitted(self, kind: int, epoch: int, body: bytes) -> bool:
        if self.state is DtlsState.CONNECTED:
            return epoch == 1 and _CHANGE_CIPHER_SPEC <= kind <= _DATA
        if epoch == 1:
            self._ahead += 1
            return _ALERT <= kind <= _DATA and self._ahead <= MOST_AHEAD
        if epoch or not body:
            return False
        if kind == _ALERT:
            self._note(body)
            return False
        if kind == _CHANGE_CIPHER_SPEC:
            self._ahead = 0
            return body == b"\x01"
        return kind == _HANDSHAKE and _is_handshake(body, self._expected)

    def _note(self, alert: bytes) -> None:
        if len(alert) == 2 and alert[0] == _FATAL:
            self.reason = f"somebody said {_ALERTS.get(alert[1], f'alert {alert[1]}')}"

    def _advance(self, connection: SSL.Connection, now: float) -> None:
        """Let OpenSSL work off what it was given."""
        try:
            if self.state is DtlsState.HANDSHAKING:
                connection.do_handshake()
                self._connected(connection)
            while True:
                self._data.append(connection.recv(_LONGEST_READ))
        except SSL.WantReadError:
            flight = self._flush(connection)
            self._schedule(connection, now)
            if self._timeout is None:
                self._repeats.clear()
            elif flight:
                self._flight = flight
                self._repeats = [now + after for after in EARLY]
        except SSL.ZeroReturnError:
            self.close()
        except SSL.Error as error:
            self._flush(connection)  # the alert
            self._fail(_reason(error))

    def _connected(self, connection: SSL.Connection) -> None:
        if not self._peer.is_verified:
            raise SSL.Error([("", "", "the certificate was not checked")])
        self.state = DtlsState.CONNECTED
        self.reason = ""
        name = connection.get_selected_srtp_profile()
        profile = next((profile for profile in _PROFILES if profile.name == name), None)
        if profile is not None:
            self._keys = _export(connection, profile, is_client=self._is_client)

    def _flush(self, connection: SSL.Connection) -> list[bytes]:
        """Put OpenSSL's records into datagrams, to be sent, and return them."""
        try:
            records = connection.bio_read(_LONGEST_READ)
        except SSL.WantReadError:
            return []
        datagrams = list(_packed(records))
        self._datagrams += datagrams
        return datagrams

    def _schedule(self, connection: SSL.Connection, now: float) -> None:
        wait = connection.DTLSv1_get_timeout()
        self._timeout = None if wait is None else now + wait

    def _say_goodbye(self) -> None:
        assert self._connection is not None
        try:
            self._connection.shutdown()
        except SSL.Error:  # nothing can be said any more
            return
        self._flush(self._connection)

    def _fail(self, reason: str) -> None:
        self.reason = reason
        self._end(DtlsState.FAILED)

    def _end(self, state: DtlsState) -> None:
        self.state = state
        self._connection = None
        self._timeout = None
        self._repeats.clear()


def _is_handshake(body: bytes, expected: frozenset[int]) -> bool:
    """Whether these are fragments of messages of a handshake (RFC 6347 section 4.2.2)."""
    at, end = 0, len(body)
    while at < end:
        if end - at < _FRAGMENT or body[at] not in expected:
            return False
        length = int.from_bytes(body[at + 1 : at + 4])
        offset = int.from_bytes(body[at + 6 : at + 9])
        size = int.from_bytes(body[at + 9 : at + 12])
        at += _FRAGMENT + size
        if length > LONGEST_MESSAGE or offset + size > length or at > end:
            return False
    return True


def _packed(records: bytes) -> Iterator[bytes]:
    """Datagrams of whole records: a flight in as few as can be, but data each in its own, since
    there are peers who read no more than one record of data from a datagram (aiortc)."""
    start, at, end = 0, 0, len(records)
    while at < end:
        kind = records[at]
        after = at + _RECORD + int.from_bytes(records[at + 11 : at + _RECORD])
        if at > start and (kind == _DATA or after - start > MTU):
            yield records[start:at]
            start = at
        at = after
    if at > start:
        yield records[start:at]


def _export(connection: SSL.Connection, profile: _Profile, *, is_client: bool) -> Keys:
    key, salt = profile.key, profile.salt
    material = connection.export_keying_material(b"EXTRACTOR-dtls_srtp", 2 * (key + salt))
    salts = material[2 * key :]
    client = material[:key] + salts[:salt]
    server = material[key : 2 * key] + salts[salt:]
    local, remote = (client, server) if is_client else (server, client)
    return Keys(profile.number, local, remote)


def _reason(error: SSL.Error) -> str:
    """In OpenSSL's words: where it began, and what it came to."""
    details = error.args[0] if error.args else None
    if not isinstance(details, list) or not details:
        return str(error) or type(error).__name__
    return ", ".join(dict.fromkeys((details[0][-1], details[-1][-1])))
