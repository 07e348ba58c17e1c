// A client on libdatachannel, the WebRTC stack that OBS has for WHIP: does what pion/main.go does.
//
//   node caller.mjs URL SAY SAVE
//
// The files hold Opus packets of 20 ms, each after its length in two bytes (as in RFC 4571).
import { readFileSync, writeFileSync } from "node:fs";
import { setTimeout as sleep } from "node:timers/promises";
import rtc from "node-datachannel";

const [, , url, say, save] = process.argv;
const PATIENCE_MS = 15_000;
const FRAME_MS = 20;
const OPUS = 111;
const SSRC = 0x5109;

async function until(what, promise) {
  const late = Symbol();
  const first = await Promise.race([promise, sleep(PATIENCE_MS, late, { ref: false })]);
  if (first === late) throw new Error(`${what} did not come`);
}
const happens = (subscribe) => new Promise((resolve) => subscribe(resolve));

function* unframed(bytes) {
  for (let at = 0; at < bytes.length; ) {
    const size = bytes.readUInt16BE(at);
    yield bytes.subarray(at + 2, (at += 2 + size));
  }
}

function framed(packet) {
  const size = Buffer.alloc(2);
  size.writeUInt16BE(packet.length);
  return Buffer.concat([size, packet]);
}

/** The payload, if it is Opus; extensions and padding are not expected. */
function payload(packet) {
  return (packet[1] & 0x7f) === OPUS ? packet.subarray(12 + 4 * (packet[0] & 0xf)) : undefined;
}

async function ask(method, to, expected, body) {
  const headers = { Authorization: `Bearer ${process.env.SHUNT_API_KEY}` };
  if (body) headers["Content-Type"] = "application/sdp";
  const response = await fetch(to, { method, headers, body });
  if (response.status === expected) return response;
  throw new Error(`${method} got ${response.status}: ${await response.text()}`);
}

async function speak(track) {
  const start = performance.now();
  let count = 0;
  for (const packet of unframed(readFileSync(say))) {
    const header = Buffer.alloc(12);
    header.writeUInt8(0x80, 0);
    header.writeUInt8(OPUS, 1);
    header.writeUInt16BE(count & 0xffff, 2);
    header.writeUInt32BE(count * 960, 4);
    header.writeUInt32BE(SSRC, 8);
    track.sendMessageBinary(Buffer.concat([header, packet]));
    count += 1;
    await sleep(Math.max(0, start + count * FRAME_MS - performance.now()));
  }
}

const client = new rtc.PeerConnection("libdatachannel", { iceServers: [], disableAutoNegotiation: true });
const audio = new rtc.Audio("audio", "SendRecv");
audio.addOpusCodec(OPUS);
audio.addSSRC(SSRC, "libdatachannel");
const track = client.addTrack(audio);
const channel = client.createDataChannel("libdatachannel");
const heard = [];
const messages = [];
track.onMessage((packet) => {
  const opus = payload(packet);
  if (opus) heard.push(framed(opus));
});
const ready = Promise.all([happens((done) => track.onOpen(done)), happens((done) => channel.onOpen(done))]);
const closed = happens((done) => channel.onClosed(done));
const both = happens((done) =>
  channel.onMessage((message) => {
    messages.push(typeof message === "string" ? `text: ${message}` : `binary: ${Buffer.from(message)}`);
    if (messages.length === 2) done();
  }),
);
const gathered = happens((done) => client.onGatheringStateChange((state) => state === "complete" && done()));
client.setLocalDescription();
await until("the candidates", gathered);
const response = await ask("POST", url, 201, client.localDescription().sdp);
const session = new URL(response.headers.get("Location"), url);
const answer = await response.text();
client.setRemoteDescription(answer, "answer");
await until("the connection", ready);

channel.sendMessage("grüß Gott");
channel.sendMessageBinary(Buffer.from("shunt".repeat(2000)));
await until("what was sent", both);
await speak(track);
const { remote } = client.getSelectedCandidatePair();
await ask("DELETE", session, 200);
await until("the other side's end", closed);
client.close();

writeFileSync(save, Buffer.concat(heard));
const ufrags = [/a=ice-ufrag:(\S+)/.exec(answer)[1]];
console.log(JSON.stringify({ ufrags, messages, received: heard.length, closed: true, remote: `${remote.address}:${remote.port}` }));
rtc.cleanup();
