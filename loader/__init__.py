"""Everything on a relay host: compile, load, attach, pin; maps, links, routes; the agent."""

VERSION = "0.1.0"
"""Shunt's, as in pyproject.toml."""
