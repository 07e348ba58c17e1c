"""The one error that a user of Shunt meets: what is wrong and what to do about it.

Raised by every package, printed by the command line; bugs raise anything else.
"""

__all__ = ["ShuntError"]


class ShuntError(Exception):
    """Something a person can mend: *what* is wrong in one sentence, and the *cure*."""

    def __init__(self, what: str, cure: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.cure = cure
