import { OpenAIRealtimeWebRTC, RealtimeAgent, RealtimeSession } from "@openai/agents-realtime";
import { requests, until } from "./page.mjs";

window.call = async (url, key) => {
  const made = requests();
  const events = [];
  const errors = [];
  const transport = new OpenAIRealtimeWebRTC({
    baseUrl: `${url}/v1/realtime/calls`,
    audioElement: document.createElement("audio"),
  });
  const agent = new RealtimeAgent({ name: "Test", instructions: "Be kind." });
  const session = new RealtimeSession(agent, { transport });
  session.on("transport_event", (event) => events.push(event.type));
  session.on("error", (error) => errors.push(JSON.stringify(error)));
  await session.connect({ apiKey: key });
  await until("session.updated", () => events.includes("session.updated"));
  window.hungUp = until("the end", () => transport.status === "disconnected");
  return { made, events, errors, id: transport.callId };
};
