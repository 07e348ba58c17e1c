"""Shunt for applications that make their own aiortc peer connections: one line, and no other.

    from transceiver import aiortc
    aiortc.install(id="bot-1", udp="10.0.0.7:40000")

From then on each `RTCPeerConnection` that *answers* shares that one UDP socket, its candidates are
the relay's VIPs, and its route is in the relay before `setLocalDescription` returns. Connections
that make the offer go on as before. docs/aiortc-apps.md tells what is touched, and what can fail.
"""

from transceiver.aiortc.installation import install, uninstall

__all__ = ["install", "uninstall"]
