"""How metrics meet HTTP: each answer of the API is counted and timed, and `GET /metrics` tells."""

import asyncio
import time
from collections.abc import Callable

from aiohttp import hdrs, web
from aiohttp.typedefs import Handler, Middleware
from prometheus_client import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from prometheus_client.openmetrics import exposition as openmetrics

from loader.metrics import Metrics
from loader.scrape import Scrape

__all__ = ["measuring", "telling"]

_OPENMETRICS = openmetrics.CONTENT_TYPE_LATEST.partition(";")[0]
_UNMATCHED = "unmatched"


def measuring(metrics: Metrics, *, clock: Callable[[], float] = time.perf_counter) -> Middleware:
    """A middleware, to be the outermost, that counts answers and times those that end."""

    @web.middleware
    async def measure(request: web.Request, handler: Handler) -> web.StreamResponse:
        begun = clock()
        try:
            response = await handler(request)
        except ConnectionError:
            raise  # nobody is left to answer
        except Exception as error:
            status = error.status if isinstance(error, web.HTTPException) else 500
            metrics.answered(_operation(request), status, clock() - begun)
            raise
        stream = not isinstance(response, web.Response)
        metrics.answered(_operation(request), response.status, None if stream else clock() - begun)
        return response

    return measure


def _operation(request: web.Request) -> str:
    """The operation as the API describes it, with names for values: what is asked for by paths and
    methods of an asker's own making is all one, or he could make any number of series."""
    resource = request.match_info.route.resource
    return f"{request.method} {resource.canonical}" if resource else _UNMATCHED


def telling(metrics: Metrics) -> Handler:
    """The handler of `GET /metrics`: OpenMetrics to those that name it, else Prometheus' text."""

    async def tell(request: web.Request) -> web.StreamResponse:
        # The library's own choice between the two fails with versions that are no numbers.
        write: Callable[[Scrape], bytes] = generate_latest
        content_type = CONTENT_TYPE_PLAIN_0_0_4
        if _OPENMETRICS in request.headers.get(hdrs.ACCEPT, ""):
            write, content_type = openmetrics.generate_latest, openmetrics.CONTENT_TYPE_LATEST
        body = await asyncio.to_thread(write, metrics.scrape())
        response = web.Response(body=body, headers={hdrs.CONTENT_TYPE: content_type})
        response.enable_compression()
        return response

    return tell
