"""An application of FastRTC as its documentation has them: it says what it hears. Knows nothing of
Shunt."""

import os
from queue import Empty, Queue

import numpy as np
import uvicorn
from fastapi import FastAPI
from fastrtc import Stream, StreamHandler


class Echo(StreamHandler):
    def __init__(self) -> None:
        super().__init__(input_sample_rate=24000, output_sample_rate=24000)
        self.heard: Queue[tuple[int, np.ndarray]] = Queue()

    def receive(self, frame: tuple[int, np.ndarray]) -> None:
        self.heard.put(frame)

    def emit(self) -> tuple[int, np.ndarray] | None:
        try:
            return self.heard.get(timeout=0.1)
        except Empty:
            return None

    def copy(self) -> "Echo":
        return Echo()

    def start_up(self) -> None:
        pass


app = FastAPI()
stream = Stream(handler=Echo(), modality="audio", mode="send-receive")
stream.mount(app)

if __name__ == "__main__":
    uvicorn.run(app, host=os.environ["HOST"], port=int(os.environ["PORT"]))
