"""A connection to a client, as aiohttp has it, and with failures as the API has them."""

import logging
from collections.abc import Callable
from typing import Any

from aiohttp import web
from aiohttp.web_protocol import RequestHandler

from loader.api.answers import problem_answer, refusal_of
from loader.problems import MEDIA_TYPE, Refused

__all__ = ["Connection"]

log = logging.getLogger(__name__)


class Connection(RequestHandler):
    """A connection to a client. Also what never gets to an operation fails with a problem."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._when_lost: list[Callable[[], None]] = []

    def when_lost(self, call: Callable[[], None]) -> None:
        """Have *call* called when the connection has ended."""
        self._when_lost.append(call)

    def connection_lost(self, exc: BaseException | None) -> None:
        super().connection_lost(exc)
        for call in self._when_lost:
            call()

    async def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        if isinstance(resp, web.HTTPException) and resp.content_type != MEDIA_TYPE:
            resp = problem_answer(refusal_of(resp, request))
        return await super().finish_response(request, resp, start_time)

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """The answer to what is no HTTP, and to what the agent failed at."""
        if status < 500:
            log.info("a request that is no HTTP: %r", message)
            refused = Refused("malformed-request", f"the request is malformed: {message}")
        else:
            log.error("%s %s failed", request.method, request.rel_url.raw_path, exc_info=exc)
            refused = Refused("internal-error", "the agent failed at this; its log says how")
        if request.writer.output_size > 0:
            raise ConnectionError("a part of the answer is out already")
        answer = problem_answer(refused)
        answer.force_close()
        return answer
