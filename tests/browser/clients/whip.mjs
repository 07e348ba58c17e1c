import { WHIPClient } from "whip-whep/whip.js";
import { microphone, received, requests, until } from "./page.mjs";

window.call = async (url, key) => {
  const made = requests();
  const connection = new RTCPeerConnection();
  const [track] = (await microphone()).getTracks();
  connection.addTransceiver(track, { direction: "sendrecv" });
  const client = new WHIPClient();
  await client.publish(connection, `${url}/whip`, key);
  await until("connected", () => connection.connectionState === "connected");
  await until("audio", async () => (await received(connection)) > 10);

  const first = client.etag;
  await client.restart();
  const ufrag = connection.remoteDescription.sdp.match(/a=ice-ufrag:(.*)/)[1];
  await until("a pair of the new generation", async () => {
    const stats = [...(await connection.getStats()).values()];
    const transport = stats.find((each) => each.type === "transport");
    const pair = stats.find((each) => each.id === transport.selectedCandidatePairId);
    const remote = stats.find((each) => each.id === pair?.remoteCandidateId);
    return pair?.state === "succeeded" && remote?.usernameFragment === ufrag;
  });
  const before = await received(connection);
  await until("audio after the restart", async () => (await received(connection)) > before + 10);
  await client.stop();
  return { made, restarted: client.etag !== first };
};
