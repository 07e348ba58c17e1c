"""HTTP over kept connections to a Unix socket, with servers that behave and some that do not."""

import asyncio
from asyncio import StreamReader as Reader
from asyncio import StreamWriter as Writer
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from aiohttp import web

from loader.unix_http import Response, UnixHttp

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


@asynccontextmanager
async def serving(
    path: Path, answer: Callable[[Reader, Writer], Awaitable[None]]
) -> AsyncIterator[None]:
    async with await asyncio.start_unix_server(answer, path):
        yield


@pytest.fixture
async def echo(tmp_path: Path) -> AsyncIterator[Path]:
    """Says what it was asked, with a status that is the target's."""

    async def answer(request: web.Request) -> web.Response:
        told = f"{request.method} {request.headers.get('Shunt-Instance')} {await request.text()}"
        status = int(request.match_info["status"])
        return web.Response(status=status, text=told)

    app = web.Application()
    app.router.add_route("*", "/{status}", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.UnixSite(runner, str(tmp_path / "socket")).start()
    yield tmp_path / "socket"
    await runner.cleanup()


async def test_a_request_is_answered(echo: Path) -> None:
    http = UnixHttp(str(echo))

    answer = await http.request("PUT", "/201", {"Shunt-Instance": "one"}, b"{}")

    assert answer == Response(201, "Created", b"PUT one {}")
    http.close()


async def test_an_answer_without_a_body_leaves_the_connection_in_order(echo: Path) -> None:
    http = UnixHttp(str(echo))

    answers = [await http.request("DELETE", f"/{status}", {}, b"") for status in (204, 404, 204)]

    assert [answer.status for answer in answers] == [204, 404, 204]
    assert answers[0].body == b""
    http.close()


async def test_requests_one_after_the_other_share_a_connection(tmp_path: Path) -> None:
    connections = 0

    async def answer(reader: Reader, writer: Writer) -> None:
        nonlocal connections
        connections += 1
        while await reader.readline():
            await reader.readuntil(b"\r\n\r\n")
            writer.write(OK)

    async with serving(tmp_path / "socket", answer):
        http = UnixHttp(str(tmp_path / "socket"))
        for _ in range(5):
            await http.request("GET", "/", {}, b"")
        assert connections == 1
        await asyncio.gather(*(http.request("GET", "/", {}, b"") for _ in range(100)))
        assert connections <= 32
        http.close()


async def test_a_connection_that_was_closed_while_it_was_idle_is_made_anew(tmp_path: Path) -> None:
    asked = 0

    async def answer(reader: Reader, writer: Writer) -> None:
        nonlocal asked
        await reader.readuntil(b"\r\n\r\n")
        asked += 1
        writer.write(OK)
        writer.close()  # though it did not say so

    async with serving(tmp_path / "socket", answer):
        http = UnixHttp(str(tmp_path / "socket"))
        for _ in range(3):
            assert (await http.request("GET", "/", {}, b"")).body == b"ok"
        assert asked == 3
        http.close()


@pytest.mark.parametrize(
    "said",
    [b"", b"HTTP/1.1 200 OK\r\nContent-Le", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nok"],
)
async def test_a_server_that_hangs_up_amid_its_answer_is_an_error(
    tmp_path: Path, said: bytes
) -> None:
    async def answer(reader: Reader, writer: Writer) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(said)
        writer.close()

    async with serving(tmp_path / "socket", answer):
        http = UnixHttp(str(tmp_path / "socket"))
        with pytest.raises(ConnectionError):
            await http.request("GET", "/", {}, b"")


@pytest.mark.parametrize(
    "said",
    [
        b"SSH-2.0-OpenSSH_9.2\r\n\r\n",
        b"HTTP/1.1 200\r\n\r\n",
        b"HTTP/1.1 many OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: some\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 20_000,
    ],
)
async def test_what_is_no_answer_is_an_error_and_its_connection_is_not_kept(
    tmp_path: Path, said: bytes
) -> None:
    answers = [said, OK]

    async def answer(reader: Reader, writer: Writer) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answers.pop(0))
        await reader.read()
        writer.close()

    async with serving(tmp_path / "socket", answer):
        http = UnixHttp(str(tmp_path / "socket"))
        with pytest.raises(ValueError):
            await http.request("GET", "/", {}, b"")
        assert (await http.request("GET", "/", {}, b"")).body == b"ok"
        http.close()


async def test_a_request_that_is_given_up_takes_its_connection_with_it(tmp_path: Path) -> None:
    asked = asyncio.Event()
    answers = [b"", OK]

    async def answer(reader: Reader, writer: Writer) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answers.pop(0))
        asked.set()
        await reader.read()
        writer.close()

    async with serving(tmp_path / "socket", answer):
        http = UnixHttp(str(tmp_path / "socket"))
        asking = asyncio.create_task(http.request("GET", "/", {}, b""))
        await asked.wait()
        asking.cancel()
        await asyncio.wait([asking])

        assert asking.cancelled()
        assert (await http.request("GET", "/", {}, b"")).body == b"ok"
        http.close()


async def test_nobody_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        await UnixHttp(str(tmp_path / "none")).request("GET", "/", {}, b"")
