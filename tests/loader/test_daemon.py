"""The daemon's parts that need no daemon: its socket."""

import socket
from pathlib import Path

import pytest

from loader.daemon import _socket_at
from loader.errors import ShuntError


def test_anybody_may_knock_at_the_socket_as_soon_as_it_is_there(tmp_path: Path) -> None:
    path = tmp_path / "made" / "agent.sock"

    with _socket_at(path), socket.socket(socket.AF_UNIX) as client:
        assert path.stat().st_mode & 0o777 == 0o666
        client.connect(str(path))

    assert not path.exists()


def test_a_socket_that_nobody_serves_any_more_gives_way(tmp_path: Path) -> None:
    path = tmp_path / "agent.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))

    with _socket_at(path), socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))


@pytest.mark.parametrize("backlog", [0, 1])
def test_a_socket_that_another_process_serves_is_left_to_it(tmp_path: Path, backlog: int) -> None:
    path = tmp_path / "agent.sock"
    with socket.socket(socket.AF_UNIX) as served, socket.socket(socket.AF_UNIX) as client:
        served.bind(str(path))
        served.listen(backlog)
        client.connect(str(path))  # with a backlog of 0, now no other can

        with (
            pytest.raises(ShuntError, match=r"another process serves .*agent\.sock"),
            _socket_at(path),
        ):
            pass

    assert path.exists()


def test_a_socket_that_has_taken_its_place_is_left_there(tmp_path: Path) -> None:
    path = tmp_path / "agent.sock"

    with _socket_at(path), socket.socket(socket.AF_UNIX) as successor:
        path.unlink()
        successor.bind(str(path))

    assert path.exists()
