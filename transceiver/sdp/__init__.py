"""SDP as a WebRTC server needs it: offers read and judged, answers written, fragments for trickle.

Text in, facts out, and back; no I/O, and no time that grows faster than the text.
"""
