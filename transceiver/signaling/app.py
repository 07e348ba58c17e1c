"""The HTTP side of a transceiver, put together: dialects, page, health."""

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from pathlib import Path

from aiohttp import web

from transceiver.metrics import Counts, Metrics
from transceiver.session import Session
from transceiver.sessions import Sessions
from transceiver.signaling import openai, pipecat, watching, whip
from transceiver.signaling import page as files
from transceiver.signaling.calls import Calls, Limits, Placement
from transceiver.signaling.forwarding import Directory, Forwarder
from transceiver.signaling.http import BODY_BYTES, Shape, cors, in_shape
from transceiver.signaling.iceservers import IceServer
from transceiver.signaling.keys import Keys, Seal
from transceiver.signaling.watching import measuring

__all__ = ["make_app"]


def make_app(
    sessions: Sessions,
    *,
    api_key: str,
    page: Path,
    is_registered: Callable[[], bool],
    directory: Directory,
    dropped: Mapping[str, int],
    limits: Limits | None = None,
    placement: Placement | None = None,
    ice_servers: Sequence[IceServer] = (),
) -> web.Application:
    """The HTTP side of a transceiver, for `web.AppRunner`.

    *page* is a folder, read now. *directory* knows where the other transceivers are, *placement*
    which of several had better take a new call. *dropped*: datagrams, by reason, for metrics.
    *ice_servers*: what clients are told of.
    """
    forwarder = Forwarder(directory, owner=sessions.owner, api_key=api_key)
    calls = Calls(
        sessions,
        keys=Keys(api_key),
        limits=limits or Limits(),
        is_handed_on=forwarder.is_handed_on,
        placement=placement,
    )

    async def lifetime(_app: web.Application) -> AsyncIterator[None]:
        yield
        await forwarder.close()

    def ended(session: Session) -> None:
        calls.forget(session)
        metrics.ended(session)

    metrics = Metrics(
        sessions,
        capacity=sessions.capacity,
        dropped=dropped,
        counts=Counts(calls.opened, calls.refused, forwarder.outcomes),
        is_registered=is_registered,
    )
    sessions.on_ended = ended
    app = web.Application(
        client_max_size=BODY_BYTES,
        middlewares=[
            measuring(metrics),
            cors,
            in_shape(_shape_of),
            forwarder.middleware,
        ],
    )
    app.cleanup_ctx.append(lifetime)
    app.add_routes(openai.routes(calls))
    app.add_routes(whip.routes(calls, ice_servers))
    seal = Seal(api_key, b"pipecat session")
    app.add_routes(pipecat.routes(calls, seal, forwarder.is_there, ice_servers))
    app.add_routes(watching.routes(sessions, calls, metrics, is_registered))
    app.add_routes(files.routes(page))
    return app


def _shape_of(path: str) -> Shape:
    """How refusals are written for who asks for *path*."""
    if path.startswith(openai.PREFIX):
        return openai.refusal
    if path.startswith(pipecat.PREFIXES):
        return pipecat.refusal
    return whip.refusal
