"""Signaling over HTTP: an offer in, an answer out; trickling, restarts, hanging up; and the page.

Each dialect is a thin module over `calls`, which knows who may do what; `http` has what all of them
have in common. What a session is, is `transceiver.session`'s.
"""

from transceiver.signaling.app import make_app
from transceiver.signaling.calls import Limits, Placement
from transceiver.signaling.iceservers import IceServer
from transceiver.signaling.serving import Runner

__all__ = ["IceServer", "Limits", "Placement", "Runner", "make_app"]
