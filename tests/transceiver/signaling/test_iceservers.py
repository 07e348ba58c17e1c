"""STUN and TURN servers that clients are told of."""

import json
from dataclasses import replace
from pathlib import Path

import aiohttp
import pytest

from loader.errors import ShuntError
from tests.transceiver.caller import eventually
from tests.transceiver.signaling.conftest import BEARER, GOOD, SDP
from transceiver.server import Transceiver, TransceiverConfig
from transceiver.signaling.iceservers import IceServer, links, read, to_json

SERVERS = [
    {"urls": "stun:stun.example"},
    {
        "urls": ["turn:turn.example?transport=tcp", "turns:[2001:db8::1]:443"],
        "username": 'a "b"',
        "credential": "c\\d",
    },
]


@pytest.fixture
def servers(tmp_path: Path) -> tuple[IceServer, ...]:
    path = tmp_path / "servers.json"
    path.write_text(json.dumps(SERVERS))
    return read(path)


def test_they_are_what_a_browser_takes(servers: tuple[IceServer, ...]) -> None:
    assert to_json(servers) == SERVERS


def test_the_link_header_is_that_of_rfc_9725(servers: tuple[IceServer, ...]) -> None:
    named = r'; username="a \"b\""; credential="c\\d"; credential-type="password"'
    assert links(servers).split(", ") == [
        '<stun:stun.example>; rel="ice-server"',
        f'<turn:turn.example?transport=tcp>; rel="ice-server"{named}',
        f'<turns:[2001:db8::1]:443>; rel="ice-server"{named}',
    ]
    assert links(()) == ""


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("nonsense", "malformed"),
        ("{}", "array"),
        ('[{"urls": "http://x"}]', "no URL"),
        ('[{"urls": "stun:x>; rel=y"}]', "no URL"),
        ('[{"urls": ["turn:x"]}]', "needs a username"),
        ('[{"urls": "turn:x", "username": "a\\r\\nb", "credential": "c"}]', "printable"),
        ('[{"url": "stun:x"}]', "unknown field"),
    ],
)
def test_a_file_that_is_none_is_refused_with_a_cure(
    tmp_path: Path, text: str, complaint: str
) -> None:
    path = tmp_path / "servers.json"
    path.write_text(text)
    with pytest.raises(ShuntError, match=complaint) as refused:
        read(path)
    assert "iceServers" in refused.value.cure
    with pytest.raises(ShuntError, match="cannot read"):
        read(tmp_path / "none")


async def test_clients_are_told_of_them_once_they_are_known(
    config: TransceiverConfig, servers: tuple[IceServer, ...]
) -> None:
    async with Transceiver(replace(config, ice_servers=servers)) as transceiver:
        await eventually(transceiver.registration.registered.is_set)
        async with aiohttp.ClientSession(transceiver.http_url) as http:
            async with http.options("/whip") as response:
                assert "Link" not in response.headers, "credentials are for who has the key"
            async with http.post("/whip", data=GOOD) as response:
                assert response.status == 401
                assert "Link" not in response.headers
            async with http.post("/whip", data=GOOD, headers=SDP) as response:
                assert response.headers["Link"] == links(servers)
            asked = {"enableDefaultIceServers": True}
            async with http.post("/start", json=asked, headers=BEARER) as response:
                assert (await response.json())["iceConfig"] == {"iceServers": SERVERS}
