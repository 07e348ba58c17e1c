import asyncio
import signal
import socket
from collections.abc import AsyncIterator

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer, unused_port
from yarl import URL

from loader.errors import ShuntError
from tools.page_proxy import listen, serve


@pytest.fixture
async def origin() -> AsyncIterator[str]:
    """A proxied upstream that tells what it was asked."""

    async def tell(request: web.Request) -> web.Response:
        told = {
            "method": request.method,
            "path": request.raw_path,
            "body": await request.text(),
            "headers": dict(request.headers),
        }
        return web.json_response(told, status=201, headers={"Location": "/v1/realtime/calls/7"})

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", tell)
    port = unused_port()
    async with TestServer(app) as server:
        proxy = asyncio.create_task(serve(listen(port), f"http://127.0.0.1:{server.port}"))
        yield f"http://127.0.0.1:{port}"
        signal.raise_signal(signal.SIGTERM)
        await proxy


async def test_a_request_and_its_answer_pass_unchanged(origin: str) -> None:
    async with (
        aiohttp.ClientSession() as client,
        client.post(
            URL(f"{origin}/v1/realtime/calls?model=a%2Fb", encoded=True),
            data="v=0",
            headers={"Authorization": "Bearer k", "Content-Type": "application/sdp"},
        ) as answer,
    ):
        told = await answer.json()

        assert (answer.status, answer.headers["Location"]) == (201, "/v1/realtime/calls/7")
        assert (told["method"], told["body"]) == ("POST", "v=0")
        assert told["path"] == "/v1/realtime/calls?model=a%2Fb"
        assert told["headers"]["Authorization"] == "Bearer k"


async def test_a_request_without_a_key_is_not_given_one(origin: str) -> None:
    async with aiohttp.ClientSession() as client, client.get(f"{origin}/") as answer:
        assert "Authorization" not in (await answer.json())["headers"]


def test_a_port_in_use_is_said_to_be_so() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]

        with pytest.raises(ShuntError, match=f"port {port} on 127.0.0.1 is in use"):
            listen(port)
