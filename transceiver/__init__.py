"""Everything that terminates WebRTC: ICE over one socket, sessions, signaling, media."""
