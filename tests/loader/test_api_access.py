"""Who may ask the agent over TCP: tokens, TLS, and how long and how often one may try."""

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing
from dataclasses import replace
from pathlib import Path

import pytest
import trustme
from aiohttp import web

from loader.api import Access, Listener, Runner
from loader.api import listening as listening_module
from loader.api import serving as serving_module
from loader.api.access import Tokens
from loader.config import AgentConfig, Impossible, TcpConfig
from loader.errors import ShuntError
from loader.maps import DEFAULT_PINS
from tests.loader.conftest import config

FIRST = "0123456789abcdef0123456789abcdef"
SECOND = "fedcba9876543210fedcba9876543210"


def tokens(folder: Path, text: str, *, mode: int = 0o600) -> Path:
    path = folder / "tokens"
    path.write_text(text)
    path.chmod(mode)
    return path


@pytest.fixture
def authority() -> trustme.CA:
    return trustme.CA()


def tcp(folder: Path, authority: trustme.CA | None = None, name: str = "127.0.0.1") -> TcpConfig:
    """On loopback, at any port; with TLS if there is an authority."""
    made = TcpConfig(address="127.0.0.1", port=0, token_file=tokens(folder, FIRST))
    if authority is None:
        return made
    certificate = authority.issue_cert(name)
    certificate.cert_chain_pems[0].write_to_path(folder / "tls.crt")
    key = folder / "tls.key"
    key.touch(mode=0o600)
    key.write_bytes(certificate.private_key_pem.bytes())
    return replace(made, certificate=folder / "tls.crt", key=key)


def reloaded(folder: Path, made: TcpConfig) -> AgentConfig:
    """The configuration that a reload finds."""
    return replace(config(folder, DEFAULT_PINS), tcp=replace(made, port=8443))


# Tokens.


@pytest.mark.parametrize("token", [FIRST, SECOND])
def test_each_token_of_the_file_will_do(tmp_path: Path, token: str) -> None:
    read = Tokens.read(tokens(tmp_path, f"# since May\n{FIRST}\n\n  {SECOND}\n"))

    assert read.accept(f"Bearer {token}")
    assert read.accept(f"bearer {token}"), "RFC 9110 11.1: the scheme is case-insensitive"


@pytest.mark.parametrize(
    "given",
    [
        *("", FIRST, f"Basic {FIRST}", "Bearer", "Bearer ", f"Bearer {FIRST[:-1]}"),
        *(f"Bearer {FIRST}x", f"Bearer {FIRST} {SECOND}", "Bearer # since May", "Bearer \udcff"),
    ],
)
def test_nothing_else_does(tmp_path: Path, given: str) -> None:
    assert not Tokens.read(tokens(tmp_path, f"# since May\n{FIRST}\n{SECOND}\n")).accept(given)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "holds no token"),
        ("# none\n\n", "holds no token"),
        ("short", "line 1: a token has less than 32 characters"),
        (f"{FIRST}\n{FIRST} {SECOND}", "line 2: a token does not fit in a header"),
        ("é" * 32, "is no text"),
    ],
)
def test_a_file_that_holds_no_good_tokens_is_refused(tmp_path: Path, text: str, why: str) -> None:
    with pytest.raises(ShuntError, match=why) as error:
        Tokens.read(tokens(tmp_path, text))
    assert error.value.cure


@pytest.mark.parametrize("mode", [0o604, 0o602, 0o644])
def test_a_token_file_that_anybody_can_read_is_refused(tmp_path: Path, mode: int) -> None:
    path = tokens(tmp_path, FIRST, mode=mode)

    with pytest.raises(ShuntError, match="anybody can read the token file") as error:
        Tokens.read(path)

    assert error.value.cure == f"chmod o= {path}"


def test_the_group_of_a_token_file_may_read_it(tmp_path: Path) -> None:
    assert Tokens.read(tokens(tmp_path, FIRST, mode=0o640)).accept(f"Bearer {FIRST}")


def test_a_token_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ShuntError, match=r"cannot read the token file .*/nothing: No such file"):
        Tokens.read(tmp_path / "nothing")


# TLS.


def test_a_private_key_that_anybody_can_read_is_refused(
    tmp_path: Path, authority: trustme.CA
) -> None:
    made = tcp(tmp_path, authority)
    assert made.key
    made.key.chmod(0o644)

    with pytest.raises(ShuntError, match="anybody can read the private key"):
        Access(made)


def test_a_key_of_another_certificate_is_refused(tmp_path: Path, authority: trustme.CA) -> None:
    made = tcp(tmp_path, authority)
    assert made.key
    made.key.write_bytes(authority.issue_cert("other.example").private_key_pem.bytes())

    with pytest.raises(ShuntError, match="cannot use the certificate"):
        Access(made)


def test_what_is_no_certificate_is_refused(tmp_path: Path, authority: trustme.CA) -> None:
    made = tcp(tmp_path, authority)
    assert made.certificate
    made.certificate.write_text("no certificate")

    with pytest.raises(ShuntError, match="cannot use the certificate"):
        Access(made)


@pytest.mark.parametrize(
    ("address", "plaintext", "fits"),
    [
        *(("127.0.0.1", False, True), ("::1", False, True), ("198.18.1.1", False, False)),
        *(("198.18.1.1", True, True), ("0.0.0.0", False, False)),
    ],
)
def test_without_tls_it_listens_where_nobody_else_is_or_is_told_so(
    tmp_path: Path, address: str, plaintext: bool, fits: bool
) -> None:
    made = TcpConfig(address=address, port=8443, token_file=tmp_path, plaintext=plaintext)

    def configure() -> AgentConfig:
        return replace(config(tmp_path, DEFAULT_PINS), tcp=made)

    if fits:
        assert configure().tcp == made
    else:
        with pytest.raises(Impossible, match="would send its token in the clear"):
            configure()


# The server.


@asynccontextmanager
async def served(access: Access, tcp: TcpConfig) -> AsyncIterator[Listener]:
    """A server that says hello to everybody."""

    async def hello(request: web.Request) -> web.Response:
        await request.read()
        return web.Response(text="hello")

    app = web.Application()
    app.router.add_route("*", "/", hello)
    runner = Runner(app)
    await runner.setup()
    with closing(Listener(tcp, access, runner)) as listener:
        keep = asyncio.create_task(listener.keep())
        try:
            yield listener
        finally:
            keep.cancel()
            await asyncio.wait((keep,))
            await runner.cleanup()


HELLO = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"


async def ended(reader: asyncio.StreamReader) -> bytes:
    """What comes until the other side ends the connection."""
    async with asyncio.timeout(5):
        try:
            return await reader.read()
        except ConnectionError:
            return b""


def trusting(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context


@pytest.mark.parametrize("version", ["TLSv1_2", "TLSv1_3"])
async def test_it_speaks_tls(tmp_path: Path, authority: trustme.CA, version: str) -> None:
    made, context = tcp(tmp_path, authority), trusting(authority)
    context.minimum_version = context.maximum_version = ssl.TLSVersion[version]
    async with served(Access(made), made) as listener:
        assert str(listener) == f"https://127.0.0.1:{listener.port}"
        reader, writer = await asyncio.open_connection("127.0.0.1", listener.port, ssl=context)
        writer.write(HELLO)
        assert (await reader.readline()).startswith(b"HTTP/1.1 200")
        writer.close()


async def test_it_speaks_no_older_tls(tmp_path: Path, authority: trustme.CA) -> None:
    access = Access(tcp(tmp_path, authority))

    assert access.tls
    assert access.tls.minimum_version is ssl.TLSVersion.TLSv1_2


@pytest.mark.parametrize("name", ["127.0.0.1", "relay.example"])
async def test_a_reload_changes_certificate_and_tokens_without_a_restart(
    tmp_path: Path, authority: trustme.CA, name: str
) -> None:
    made = tcp(tmp_path, authority, name)
    access = Access(made)
    newer = trustme.CA()
    async with served(access, made) as listener:

        async def greets(trusted: trustme.CA) -> bool:
            try:
                _, writer = await asyncio.open_connection(
                    "127.0.0.1", listener.port, ssl=trusting(trusted), server_hostname=name
                )
            except ssl.SSLCertVerificationError:
                return False
            writer.close()
            return True

        tcp(tmp_path, newer, name)
        tokens(tmp_path, SECOND)
        change = access.prepare(reloaded(tmp_path, made))
        assert await greets(authority), "prepared is not changed"
        assert access.tokens.accept(f"Bearer {FIRST}")

        change()

        assert (await greets(authority), await greets(newer)) == (False, True)
        assert not access.tokens.accept(f"Bearer {FIRST}")
        assert access.tokens.accept(f"Bearer {SECOND}")


async def test_files_that_are_no_good_change_nothing(tmp_path: Path, authority: trustme.CA) -> None:
    made = tcp(tmp_path, authority)
    access = Access(made)
    tokens(tmp_path, SECOND, mode=0o644)

    with pytest.raises(ShuntError):
        access.prepare(reloaded(tmp_path, made))

    assert access.tokens.accept(f"Bearer {FIRST}")


async def test_who_never_shakes_hands_is_sent_away(
    tmp_path: Path, authority: trustme.CA, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listening_module, "HANDSHAKE_SECONDS", 0.2)
    made = tcp(tmp_path, authority)
    async with served(Access(made), made) as listener:
        reader, writer = await asyncio.open_connection("127.0.0.1", listener.port)
        assert await ended(reader) == b""
        writer.close()


@pytest.mark.parametrize("begun", [b"", b"GET / HT", b"GET / HTTP/1.1\r\nHost: a\r\n"])
async def test_who_never_ends_a_head_is_sent_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, begun: bytes
) -> None:
    monkeypatch.setattr(serving_module, "HEAD_SECONDS", 0.2)
    made = tcp(tmp_path)
    async with served(Access(made), made) as listener:
        reader, writer = await asyncio.open_connection("127.0.0.1", listener.port)
        writer.write(begun)
        assert await ended(reader) == b""
        writer.close()


async def greeted(listener: Listener, hold: Callable[[asyncio.StreamWriter], None]) -> bool:
    """Whether a new connection, to be kept, is served."""
    reader, writer = await asyncio.open_connection("127.0.0.1", listener.port)
    hold(writer)
    try:
        writer.write(HELLO)
        return (await reader.readline()).startswith(b"HTTP/1.1 200")
    except ConnectionError:
        return False


async def test_one_address_has_so_many_connections_and_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listening_module, "FROM_ONE_ADDRESS", 3)
    held: list[asyncio.StreamWriter] = []
    made = tcp(tmp_path)
    async with served(Access(made), made) as listener:
        assert [await greeted(listener, held.append) for _ in range(5)] == [True] * 3 + [False] * 2

        held[0].close()
        async with asyncio.timeout(5):
            while not await greeted(listener, held.append):
                pass
    for writer in held:
        writer.close()


async def test_beyond_all_connections_others_wait_for_their_turn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listening_module, "CONNECTIONS", 2)
    held: list[asyncio.StreamWriter] = []
    made = tcp(tmp_path)
    async with served(Access(made), made) as listener:
        assert [await greeted(listener, held.append) for _ in range(2)] == [True] * 2
        waiting = asyncio.create_task(greeted(listener, held.append))
        done, _ = await asyncio.wait((waiting,), timeout=0.3)
        assert not done

        held[0].close()
        assert await asyncio.wait_for(waiting, 5)
    for writer in held:
        writer.close()


async def test_a_port_that_is_taken_is_told(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        made = replace(tcp(tmp_path), port=other.getsockname()[1])
        with pytest.raises(ShuntError, match=r"cannot listen at TCP 127\.0\.0\.1") as error:
            Listener(made, Access(made), Runner(web.Application()))
    assert "Address already in use" in error.value.what
