"""The page: its files, and nothing else."""

from pathlib import Path

import aiohttp

from transceiver.signaling.page import files_of


async def test_only_files_of_the_page_are_served(http: aiohttp.ClientSession) -> None:
    for path in ("/server.py", "/../server.py", "/%2e%2e/server.py", "/page/", "/.//etc/passwd"):
        async with http.get(path) as response:
            assert response.status == 404
    for path in ("/", "/index.html", "/app.js"):
        async with http.get(path) as response:
            assert response.status == 200
            assert "default-src 'none'" in response.headers["Content-Security-Policy"]


def test_the_page_is_what_lies_in_its_folder_and_of_a_known_kind(tmp_path: Path) -> None:
    (tmp_path / "index.html").write_text("<p>")
    (tmp_path / "notes.py").write_text("secret")
    (tmp_path / "assets").mkdir()
    (tmp_path / "assets" / "page.js").write_text("1")
    assert files_of(tmp_path) == {
        "index.html": (b"<p>", "text/html; charset=utf-8"),
        "assets/page.js": (b"1", "text/javascript; charset=utf-8"),
    }
