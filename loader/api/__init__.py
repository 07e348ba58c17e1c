"""The agent's HTTP API: JSON over a Unix socket, to those whose credentials allow it.

What is asked for is `agent`'s to do; here it is only read, checked for its form, and answered.
`operations` lists what there is.
"""

from loader.api.serving import Runner, application

__all__ = ["Runner", "application"]
