"""A bot of Pipecat's as its documentation has them: it says what it hears. Knows nothing of
Shunt."""

import os

import uvicorn
from fastapi import BackgroundTasks, FastAPI
from pipecat.frames.frames import Frame, InputAudioRawFrame, OutputAudioRawFrame
from pipecat.pipeline.pipeline import Pipeline
from pipecat.pipeline.runner import PipelineRunner
from pipecat.pipeline.task import PipelineParams, PipelineTask
from pipecat.processors.frame_processor import FrameDirection, FrameProcessor
from pipecat.transports.base_transport import TransportParams
from pipecat.transports.smallwebrtc.connection import SmallWebRTCConnection
from pipecat.transports.smallwebrtc.request_handler import (
    SmallWebRTCPatchRequest,
    SmallWebRTCRequest,
    SmallWebRTCRequestHandler,
)
from pipecat.transports.smallwebrtc.transport import SmallWebRTCTransport

RATE = 24000

app = FastAPI()
handler = SmallWebRTCRequestHandler()


class Echo(FrameProcessor):
    async def process_frame(self, frame: Frame, direction: FrameDirection) -> None:
        await super().process_frame(frame, direction)
        if isinstance(frame, InputAudioRawFrame):
            heard = OutputAudioRawFrame(frame.audio, frame.sample_rate, frame.num_channels)
            await self.push_frame(heard)
        else:
            await self.push_frame(frame, direction)


async def run_bot(connection: SmallWebRTCConnection) -> None:
    transport = SmallWebRTCTransport(
        webrtc_connection=connection,
        params=TransportParams(audio_in_enabled=True, audio_out_enabled=True),
    )
    task = PipelineTask(
        Pipeline([transport.input(), Echo(), transport.output()]),
        params=PipelineParams(audio_in_sample_rate=RATE, audio_out_sample_rate=RATE),
    )

    @transport.event_handler("on_client_disconnected")
    async def on_client_disconnected(_transport: object, _client: object) -> None:
        await task.cancel()

    @transport.event_handler("on_app_message")
    async def on_app_message(_transport: object, message: object, _sender: object) -> None:
        connection.send_app_message(message)

    await PipelineRunner(handle_sigint=False).run(task)


@app.post("/api/offer")
async def offer(request: SmallWebRTCRequest, background_tasks: BackgroundTasks) -> dict | None:
    async def begin(connection: SmallWebRTCConnection) -> None:
        background_tasks.add_task(run_bot, connection)

    return await handler.handle_web_request(request=request, webrtc_connection_callback=begin)


@app.patch("/api/offer")
async def trickle(request: SmallWebRTCPatchRequest) -> dict:
    await handler.handle_patch_request(request)
    return {"status": "success"}


if __name__ == "__main__":
    uvicorn.run(app, host=os.environ["HOST"], port=int(os.environ["PORT"]))
