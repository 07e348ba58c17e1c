"""What the API over TCP needs to be asked by those only who may: tokens, and TLS.

Both are read from files, and again at each reload, so that they can be rotated.
"""

import hashlib
import hmac
import os
import ssl
import stat
from collections.abc import Callable, Iterable
from pathlib import Path

from loader.config import AgentConfig, TcpConfig
from loader.errors import ShuntError

__all__ = ["Access", "Tokens"]

TOKEN_CHARACTERS = 32
"""At least: 16 random bytes in hexadecimal. Nobody guesses those, however often they try."""

_FILE_BYTES = 64 * 1024


class Tokens:
    """Words by which a request shows that it may ask. Kept as digests, which are compared: that
    takes as long for a word that is nearly right."""

    def __init__(self, tokens: Iterable[str]) -> None:
        self._digests = [_digest(token.encode()) for token in tokens]

    @classmethod
    def read(cls, path: Path) -> "Tokens":
        """The tokens of a file, one a line, so that a new one can be there beside the old while
        it is handed out. Empty lines and those that begin with # do not count. Raises
        ShuntError."""
        text = _read_secret(path, "token file")
        lines = [(number, line.strip()) for number, line in enumerate(text.splitlines(), start=1)]
        tokens = [(number, line) for number, line in lines if line and not line.startswith("#")]
        for number, token in tokens:
            if not token.isascii() or not token.isprintable() or " " in token:
                raise ShuntError(
                    f"{path}, line {number}: a token does not fit in a header",
                    "Write one token a line, of printable ASCII without spaces.",
                )
            if len(token) < TOKEN_CHARACTERS:
                raise ShuntError(
                    f"{path}, line {number}: a token has less than {TOKEN_CHARACTERS} characters",
                    f"Draw one that cannot be guessed: openssl rand -hex {TOKEN_CHARACTERS // 2}",
                )
        if not tokens:
            raise ShuntError(
                f"the token file {path} holds no token",
                f"openssl rand -hex {TOKEN_CHARACTERS} > {path}",
            )
        return cls(token for _, token in tokens)

    def accept(self, authorization: str) -> bool:
        """Whether a header field `Authorization` has one of them, as a bearer token (RFC 6750)."""
        scheme, _, token = authorization.partition(" ")
        given = _digest(token.strip().encode("utf-8", "surrogateescape"))
        found = [hmac.compare_digest(given, each) for each in self._digests]  # all, whatever comes
        return scheme.lower() == "bearer" and any(found)


class Access:
    """The tokens and the TLS of the API over TCP, as their files were at the start, or at the last
    reload. Raises ShuntError."""

    def __init__(self, tcp: TcpConfig) -> None:
        self.tokens = Tokens.read(tcp.token_file)
        self.tls: ssl.SSLContext | None = None
        """What a listener is given; None without TLS."""
        self._current = _tls(tcp)
        if self._current:
            self.tls = _tls(tcp)
            assert self.tls
            # Contexts do not change under the handshakes that they serve: each takes the newest.
            self.tls.sni_callback = self._take_current

    def prepare(self, config: AgentConfig) -> Callable[[], None]:
        """Read the files again; what is returned puts them in force. Raises ShuntError."""
        assert config.tcp is not None  # a server begins and ends with a restart
        tokens, current = Tokens.read(config.tcp.token_file), _tls(config.tcp)

        def change() -> None:
            self.tokens, self._current = tokens, current

        return change

    def _take_current(
        self, connection: ssl.SSLSocket | ssl.SSLObject, _name: str | None, _of: ssl.SSLContext
    ) -> None:
        assert self._current
        connection.context = self._current


def _tls(tcp: TcpConfig) -> ssl.SSLContext | None:
    if tcp.certificate is None or tcp.key is None:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    _read_secret(tcp.key, "private key")
    try:
        context.load_cert_chain(tcp.certificate, tcp.key, password=_no_password)
    except OSError as error:  # also ssl.SSLError: what is no PEM, or a key of another certificate
        raise ShuntError(
            f"cannot use the certificate {tcp.certificate} with the key {tcp.key}: "
            f"{error.strerror or error}",
            "Give the certificate, with its chain, and its own key, both PEM.",
        ) from None
    return context


def _no_password() -> str:
    raise ShuntError(
        "the private key is encrypted", "Give one that is not: nobody is there to be asked."
    )


def _read_secret(path: Path, what: str) -> str:
    """The text of a file that others must not read."""
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            data = file.read(_FILE_BYTES)
    except OSError as error:
        raise ShuntError(
            f"cannot read the {what} {path}: {error.strerror}",
            "It must be a file that the agent's user can read.",
        ) from None
    if mode & (stat.S_IROTH | stat.S_IWOTH):
        raise ShuntError(f"anybody can read the {what} {path}, or write it", f"chmod o= {path}")
    try:
        return data.decode("ascii")
    except UnicodeDecodeError:
        raise ShuntError(f"the {what} {path} is no text", "It is a text file, in ASCII.") from None


def _digest(token: bytes) -> bytes:
    return hashlib.sha256(token).digest()
