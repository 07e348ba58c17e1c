"""A real Prometheus that scrapes an agent, as `docs/metrics.md` has it but once a second."""

import json
import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit
from urllib.request import urlopen

import yaml

from tests.loader.conftest import ROOT, TCP_URL, TOKEN, AgentProcess, eventually
from tools import netns

__all__ = ["Prometheus", "prometheus"]

RULES = ROOT / "packaging/prometheus/shunt.rules.yml"


@dataclass(frozen=True, slots=True)
class Prometheus:
    """A running one, by its HTTP API in a network namespace."""

    namespace: str
    address: str

    def get(self, path: str, **query: str) -> Any:
        """The `data` of an answer; raises HTTPError for a query that is none."""
        url = f"http://{self.address}/api/v1/{path}?{urlencode(query)}"

        def ask() -> Any:
            with urlopen(url) as answer:
                return json.load(answer)["data"]

        return netns.run_in(self.namespace, ask)

    def query(self, expression: str) -> list[dict[str, Any]]:
        """The samples of an instant query."""
        found: list[dict[str, Any]] = self.get("query", query=expression)["result"]
        return found


def configuration(agent: AgentProcess, folder: Path) -> dict[str, Any]:
    """The document's, with this agent's address, certificate and token."""
    document = (ROOT / "docs/metrics.md").read_text()
    (block,) = re.findall(r"^```yaml\n(.+?)^```", document, re.M | re.S)
    config: dict[str, Any] = yaml.safe_load(block)
    token = folder / "token"
    token.write_text(TOKEN)
    (job,) = config["scrape_configs"]
    job["static_configs"][0]["targets"] = [urlsplit(TCP_URL).netloc]
    job["authorization"]["credentials_file"] = str(token)
    job["tls_config"]["ca_file"] = str(agent.socket.with_name("ca.pem"))
    job["scrape_interval"] = "1s"
    config["global"] = {"evaluation_interval": "1s"}
    config["rule_files"] = [str(RULES)]
    return config


@contextmanager
def prometheus(agent: AgentProcess, folder: Path) -> Iterator[Prometheus]:
    """One that scrapes the agent over TCP from beside its clients, with the rules that we ship."""
    config, log = folder / "prometheus.yml", folder / "prometheus.log"
    config.write_text(yaml.safe_dump(configuration(agent, folder)))

    def start() -> "subprocess.Popen[bytes]":
        with log.open("wb") as output:
            return subprocess.Popen(
                [
                    "prometheus",
                    f"--config.file={config}",
                    f"--storage.tsdb.path={folder / 'data'}",
                    "--web.listen-address=127.0.0.1:0",
                ],
                stdout=output,
                stderr=output,
            )

    process = netns.run_in(agent.host.outside, start)
    try:
        eventually("Prometheus is ready", lambda: "ready to receive" in log.read_text(), within=30)
        listening = re.search(r'msg="Listening on" address=(\S+)', log.read_text())
        assert listening, log.read_text()
        yield Prometheus(agent.host.outside, listening[1])
    finally:
        process.terminate()
        process.wait()
