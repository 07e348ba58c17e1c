"""The page that places a call from a browser, as files read at the start."""

from pathlib import Path

from aiohttp import web

from transceiver.signaling.http import Refused

__all__ = ["files_of", "routes"]

TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    ".png": "image/png",
    ".ico": "image/x-icon",
    ".woff2": "font/woff2",
}
"""What the page may be made of; files of other kinds are not served."""

HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
        "font-src 'self'; media-src 'self' blob:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Permissions-Policy": "microphone=(self)",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-cache",
}


def routes(folder: Path) -> list[web.RouteDef]:
    """`GET` of what is in *folder* now; must come after all other routes."""
    files = files_of(folder)

    async def serve(request: web.Request) -> web.Response:
        found = files.get(request.match_info.get("file", "index.html"))
        if found is None:
            raise Refused(404, "there is no such page")
        body, content_type = found
        return web.Response(body=body, headers=HEADERS | {"Content-Type": content_type})

    return [web.get("/", serve), web.get("/{file:.+}", serve)]


def files_of(folder: Path) -> dict[str, tuple[bytes, str]]:
    """Name to content and type. Only what is in here can be asked for, so no path can escape."""
    return {
        file.relative_to(folder).as_posix(): (file.read_bytes(), TYPES[file.suffix])
        for file in sorted(folder.rglob("*"))
        if file.is_file() and file.suffix in TYPES
    }
