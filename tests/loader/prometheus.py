"""A real Prometheus that scrapes an agent, as in the field but once a second."""

import asyncio
import json
import re
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode
from urllib.request import urlopen

import yaml

from tests.loader.conftest import (
    ROOT,
    eventually,
)

__all__ = ["Prometheus", "bridge", "prometheus"]

RULES = ROOT / "packaging/prometheus/shunt.rules.yml"


@dataclass(frozen=True, slots=True)
class Prometheus:
    """A running one, by its HTTP API."""

    address: str

    def get(self, path: str, **query: str) -> Any:
        """The `data` of an answer; raises HTTPError with Prometheus' own words for a query that
        is none."""
        with urlopen(f"http://{self.address}/api/v1/{path}?{urlencode(query)}") as answer:
            told = json.load(answer)
        assert told["status"] == "success", told
        return told["data"]

    def query(self, expression: str) -> list[dict[str, Any]]:
        """The samples of an instant query."""
        found: list[dict[str, Any]] = self.get("query", query=expression)["result"]
        return found


@contextmanager
def bridge(socket: Path) -> Iterator[int]:
    """A TCP port of the loopback behind which the Unix socket is, which Prometheus cannot ask."""
    loop = asyncio.new_event_loop()

    async def pour(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        while data := await source.read(65536):
            target.write(data)
            await target.drain()
        target.close()

    async def carry(here: asyncio.StreamReader, back: asyncio.StreamWriter) -> None:
        there, onward = await asyncio.open_unix_connection(socket)
        await asyncio.gather(pour(here, onward), pour(there, back))

    server = loop.run_until_complete(asyncio.start_server(carry, "127.0.0.1", 0))
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    yield server.sockets[0].getsockname()[1]
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    server.close()
    loop.close()


@contextmanager
def prometheus(folder: Path, port: int) -> Iterator[Prometheus]:
    """One that scrapes the port, with the rules that we ship."""
    config = folder / "prometheus.yml"
    config.write_text(
        yaml.safe_dump(
            {
                "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
                "rule_files": [str(RULES)],
                "scrape_configs": [
                    {
                        "job_name": "shunt",
                        "static_configs": [{"targets": [f"127.0.0.1:{port}"]}],
                    }
                ],
            }
        )
    )
    log = folder / "prometheus.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [
                "prometheus",
                f"--config.file={config}",
                f"--storage.tsdb.path={folder / 'data'}",
                "--web.listen-address=127.0.0.1:0",
            ],
            stdout=output,
            stderr=output,
        )
    try:
        eventually("Prometheus is ready", lambda: "ready to receive" in log.read_text(), within=20)
        listening = re.search(r'msg="Listening on" address=(\S+)', log.read_text())
        assert listening, log.read_text()
        yield Prometheus(listening[1])
    finally:
        process.terminate()
        process.wait()
