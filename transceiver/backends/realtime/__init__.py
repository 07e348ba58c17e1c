"""`realtime`: a conversation with any server of OpenAI's Realtime events, over a WebSocket.

The client's audio goes there, what the server says comes back, and the client's data channel is
the server's too: so for its client a model behind a WebSocket is a model behind WebRTC. What only
the end that plays the audio can know (what of an answer was heard, when it began and ended) is
found here.

`link` keeps the connection, `outbox` what waits to be sent over it, `settings` what the session is
set to; `backend` is the conversation.
"""

from transceiver.backends.realtime.backend import Realtime

__all__ = ["Realtime"]
