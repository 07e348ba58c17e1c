"""The agent's HTTP API: JSON over a Unix socket, to those whose credentials allow it, and over
TCP, to those who have a token.

What is asked for is `agent`'s to do; here it is only read, checked for its form, and answered.
`operations` lists what there is, `docs/api.md` explains it.
"""

from loader.api.access import Access
from loader.api.listening import Listener
from loader.api.serving import Runner, application

__all__ = ["Access", "Listener", "Runner", "application"]
