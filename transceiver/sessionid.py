"""Session ids: unguessable, and with the name of the transceiver that owns the session.

rtc_<22 characters of 128 random bits>.<transceiver id>
"""

import re
import secrets

__all__ = ["fresh", "is_owner", "owner_of"]

OWNER = r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}"
ID = re.compile(rf"rtc_[A-Za-z0-9_-]{{22}}\.({OWNER})")


def is_owner(id: str) -> bool:
    """Whether a transceiver may have that id."""
    return re.fullmatch(OWNER, id) is not None


def fresh(owner: str) -> str:
    """An id for a new session of the transceiver *owner*."""
    return f"rtc_{secrets.token_urlsafe(16)}.{owner}"


def owner_of(id: str) -> str | None:
    """The transceiver that made *id*; None if nobody has."""
    found = ID.fullmatch(id)
    return found[1] if found else None
