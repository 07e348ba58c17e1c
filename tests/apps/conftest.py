"""What the applications share: the maps, to see that a session left nothing."""

from tests.endtoend.conftest import maps

__all__ = ["maps"]
