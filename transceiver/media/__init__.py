"""Audio between a client's RTP and a backend's PCM: Opus, RTP and RTCP, and the two paths.

All of it is sans-I/O: packets and the time come in, packets and PCM go out. Sockets, encryption and
who may send are others' matters.
"""
