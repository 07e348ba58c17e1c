"""Which server to talk to, and how: the operator's options, checked when the process starts."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address

from yarl import URL

from loader.errors import ShuntError
from transceiver.backends import Options

__all__ = ["Endpoint"]

OPENAI = "wss://api.openai.com/v1/realtime"
OPENAI_KEY = "OPENAI_API_KEY"

OPTIONS = ("url", "model", "api_key_env", "beta", "chunk_ms")

CHUNK_MS = 40
"""What of the client's audio makes one event: 20 ms more than its frames, for half of the work."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """A server, and what we tell it and nobody else."""

    url: URL
    model: str | None = None
    """The model of every session; None: the one that the client asks for."""
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    beta: bool = False
    """Whether its session has the beta's shape (`modalities`, `input_audio_format`)."""
    chunk_ms: int = CHUNK_MS

    @classmethod
    def of(cls, options: Options, environment: Mapping[str, str] = os.environ) -> "Endpoint":
        """Read the options (docs/backends.md); ShuntError for one that makes no sense."""
        for name in options:
            if name not in OPTIONS:
                raise ShuntError(
                    f"backend realtime has no option {name!r}", f"it has: {', '.join(OPTIONS)}"
                )
        url = _url(options.get("url", OPENAI))
        beta = _beta(options.get("beta", "no"))
        headers = {"OpenAI-Beta": "realtime=v1"} if beta else {}
        key = _key(options, environment)
        if key is not None:
            if url.scheme == "ws" and not _is_loopback(url):
                raise ShuntError(
                    f"the key would go to {url.host} in the clear", "use a url with wss://"
                )
            headers["Authorization"] = f"Bearer {key}"
        return cls(
            url=url,
            model=options.get("model"),
            headers=headers,
            beta=beta,
            chunk_ms=_chunk(options.get("chunk_ms", str(CHUNK_MS))),
        )

    def at(self, model: str | None) -> URL:
        """The URL for a session whose client asks for *model*."""
        model = self.model or model
        return self.url.update_query(model=model) if model else self.url

    @property
    def name(self) -> str:
        """What to call it in logs and to clients: a query may hold secrets."""
        return f"{self.url.host}:{self.url.port}"


def _key(options: Options, environment: Mapping[str, str]) -> str | None:
    """The API key. OpenAI's goes to OpenAI alone unless the operator says otherwise."""
    name = options.get("api_key_env", OPENAI_KEY if "url" not in options else None)
    if name is None:
        return None
    key = environment.get(name, "")
    if not key:
        raise ShuntError(
            f"backend realtime needs an API key, and {name} is not set",
            f"export {name}=…, or name another variable: api_key_env=NAME",
        )
    if not (key.isascii() and key.isprintable()) or " " in key:
        raise ShuntError(f"{name} is no API key: it has characters that no key has", "set it again")
    return key


def _url(text: str) -> URL:
    try:
        url = URL(text)
    except ValueError:
        url = URL()
    if url.scheme not in ("ws", "wss") or not url.host:
        raise ShuntError(f"{text!r} is no WebSocket URL", "for example wss://host/v1/realtime")
    if url.user is not None or url.password is not None:
        raise ShuntError(
            "the url holds a password, and everybody on this host sees it",
            "put the key into a variable and name that: api_key_env=NAME",
        )
    return url.with_fragment(None)


def _chunk(text: str) -> int:
    if not text.isascii() or not text.isdecimal() or not 20 <= int(text) <= 200:
        raise ShuntError(f"chunk_ms={text} makes no sense", "it is from 20 to 200")
    return int(text)


def _beta(text: str) -> bool:
    if text not in ("yes", "no"):
        raise ShuntError(f"beta={text} makes no sense", "it is yes or no")
    return text == "yes"


def _is_loopback(url: URL) -> bool:
    if url.host == "localhost":
        return True
    try:
        return ip_address(url.host or "").is_loopback
    except ValueError:
        return False
