import { PipecatClient } from "@pipecat-ai/client-js";
import { SmallWebRTCTransport, WavMediaManager } from "@pipecat-ai/small-webrtc-transport";
import { requests, until } from "./page.mjs";

window.call = async (url, key, how) => {
  const made = requests();
  const errors = [];
  const transport = new SmallWebRTCTransport({ iceServers: [], mediaManager: new WavMediaManager() });
  const client = new PipecatClient({
    transport,
    enableMic: true,
    enableCam: false,
    callbacks: { onError: (error) => errors.push(JSON.stringify(error)) },
  });
  const connected = () => transport.pc?.connectionState === "connected";
  const headers = new Headers({ Authorization: `Bearer ${key}` });
  const requestData = { voice: "ash" };
  // Neither ends before a bot says that it is ready, and nobody here does.
  if (how === "start") {
    client.startBotAndConnect({ endpoint: `${url}/start`, headers, requestData: { body: requestData } }).catch(() => {});
  } else {
    client.connect({ webrtcRequestParams: { endpoint: `${url}/api/offer`, headers, requestData } }).catch(() => {});
  }
  await until("connected", connected);
  const first = transport.pc_id;

  transport.pc.restartIce();
  await transport.negotiate(false);
  const same = transport.pc_id === first;
  await until("connected after the restart", connected);

  await transport.attemptReconnection(true);
  await until("another peer connection", () => transport.pc_id !== first && connected());
  await client.disconnect();
  return { made, errors, same };
};
