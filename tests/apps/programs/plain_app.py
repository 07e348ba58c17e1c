"""An application of aiortc alone, as its examples have them: it says what it hears. Knows nothing
of Shunt."""

import os

from aiohttp import web
from aiortc import RTCPeerConnection, RTCSessionDescription

connections: set[RTCPeerConnection] = set()


async def offer(request: web.Request) -> web.Response:
    asked = await request.json()
    connection = RTCPeerConnection()
    connections.add(connection)

    @connection.on("connectionstatechange")
    async def on_change() -> None:
        if connection.connectionState in ("failed", "closed"):
            await connection.close()
            connections.discard(connection)

    @connection.on("datachannel")
    def on_channel(channel):
        channel.on("message", channel.send)

    @connection.on("track")
    def on_track(track):
        connection.addTrack(track)

    await connection.setRemoteDescription(RTCSessionDescription(asked["sdp"], asked["type"]))
    await connection.setLocalDescription(await connection.createAnswer())
    answer = connection.localDescription
    return web.json_response({"sdp": answer.sdp, "type": answer.type})


async def ready(_request: web.Request) -> web.Response:
    return web.Response()


if __name__ == "__main__":
    app = web.Application()
    app.add_routes([web.post("/offer", offer), web.get("/openapi.json", ready)])
    web.run_app(app, host=os.environ["HOST"], port=int(os.environ["PORT"]))
