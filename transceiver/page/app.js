// A call from the browser: microphone out, what comes back in, a data channel, and the figures.
// No ICE servers: the answer names the VIP, which is all that a client has to know.

const $ = (id) => document.getElementById(id);
const SETUP_LIMIT_MS = 20_000;
const POLL_MS = 500;

/** For tests and the curious: the peer connection of the latest call. */
window.shunt = { pc: null };

let call = null;

/** Something the user can do something about; its message is the sentence to show. */
class Problem extends Error {}

class Call {
  constructor(key) {
    this.key = key;
    this.url = null; // of the session, once it exists
    this.connectedAt = null;
    this.over = false;
    this.pings = new Map(); // id → time sent
    this.timers = [];
  }

  async start() {
    this.microphone = await openMicrophone();
    if (this.over) return this.release();
    this.pc = new RTCPeerConnection();
    window.shunt.pc = this.pc;
    this.pc.onconnectionstatechange = () => this.connectionChanged();
    this.pc.ontrack = ({ streams, track }) => this.play(streams[0] ?? new MediaStream([track]));
    for (const track of this.microphone.getTracks()) this.pc.addTrack(track, this.microphone);
    this.openChannel();
    this.meter("level-out", this.microphone);

    await this.pc.setLocalDescription();
    const answer = await this.signal(this.pc.localDescription.sdp);
    if (this.over) return this.release();
    await this.pc.setRemoteDescription({ type: "answer", sdp: answer });
    this.timers.push(setTimeout(() => this.tooLong(), SETUP_LIMIT_MS));
    this.timers.push(setInterval(() => this.poll(), POLL_MS));
  }

  /** Offer in, answer out. The session's URL is kept for hanging up. */
  async signal(offer) {
    let response, body;
    try {
      response = await fetch("v1/realtime/calls", {
        method: "POST",
        headers: { Authorization: `Bearer ${this.key}`, "Content-Type": "application/sdp" },
        body: offer,
      });
      body = await response.text();
    } catch {
      throw new Problem("The transceiver does not answer: check that it is still running (shunt lab status), then call again.");
    }
    if (response.status === 201) {
      this.url = new URL(response.headers.get("Location"), response.url);
      return body;
    }
    if (response.status === 401) {
      forgetKey();
      throw new Problem("The API key was refused: enter the one that the lab or SHUNT_API_KEY gave to the transceiver.");
    }
    const reason = reasonIn(body) ?? `HTTP status ${response.status}`;
    if (response.status === 503) {
      const wait = Number(response.headers.get("Retry-After"));
      throw new Problem(`The transceiver takes no call now (${reason}): try again ${wait ? `in ${wait} s` : "a little later"}.`);
    }
    throw new Problem(`The transceiver refused the call (${reason}): reload the page and call again.`);
  }

  openChannel() {
    this.channel = this.pc.createDataChannel("ping");
    let next = 0;
    const ping = () => {
      const id = String(next++);
      this.pings.set(id, performance.now());
      this.pings.delete(String(next - 10));
      this.channel.send(id);
    };
    this.channel.onopen = () => {
      ping();
      this.timers.push(setInterval(ping, 1000));
    };
    this.channel.onmessage = ({ data }) => {
      const sent = this.pings.get(data);
      if (sent === undefined) return;
      this.pings.delete(data);
      show("channel-rtt", milliseconds(performance.now() - sent));
    };
    this.channel.onclose = () => {
      if (!this.over) this.finish("ended", "The other side ended the call");
    };
  }

  connectionChanged() {
    if (this.over) return;
    const state = this.pc.connectionState;
    if (state === "connected") {
      this.connectedAt ??= performance.now();
      setState("connected", "Connected");
    } else if (state === "disconnected") {
      setState("calling", "Connection lost, trying to get it back");
    } else if (state === "failed") {
      this.finish("failed", "Call failed", this.pathProblem());
    }
  }

  pathProblem() {
    if (this.connectedAt !== null) return "The connection was lost and did not come back: check the network, then call again.";
    const offered = (this.pc.remoteDescription?.sdp ?? "").matchAll(/^a=candidate:\S+ 1 udp \d+ (\S+) (\d+)/gim);
    const vips = new Set(Array.from(offered, ([, address, port]) => endpoint(address, port)));
    const where = `UDP to ${[...vips].join(" or ") || "the relay"}`;
    return `${where} got no answer: check the route and firewall between here and the relay, and that the relay runs (shunt counters).`;
  }

  tooLong() {
    if (!this.over && this.connectedAt === null) this.finish("failed", "Call failed", this.pathProblem());
  }

  play(stream) {
    const audio = $("audio");
    audio.srcObject = stream;
    audio.play().catch(() => problem("The browser does not play sound by itself here: press play, or allow sound for this page."));
    this.meter("level-in", stream);
  }

  meter(id, stream) {
    this.audio ??= new AudioContext();
    const analyser = new AnalyserNode(this.audio, { fftSize: 1024 });
    this.audio.createMediaStreamSource(stream).connect(analyser);
    const samples = new Float32Array(analyser.fftSize);
    const draw = () => {
      if (this.over) return showLevel(id, 0);
      analyser.getFloatTimeDomainData(samples);
      const power = samples.reduce((sum, x) => sum + x * x, 0) / samples.length;
      showLevel(id, 1 + (10 * Math.log10(power + 1e-9)) / 60); // -60 dBFS is empty
      requestAnimationFrame(draw);
    };
    draw();
  }

  async poll() {
    const stats = await this.pc.getStats();
    if (!this.over) showFigures(stats, this.connectedAt);
  }

  /** Ends it, whoever wanted that. May be called at any time, also before anything was opened. */
  finish(state, text, sentence = "") {
    if (this.over) return;
    this.over = true;
    this.release();
    setState(state, text);
    problem(sentence);
  }

  release() {
    this.timers.forEach(clearTimeout);
    this.microphone?.getTracks().forEach((track) => track.stop());
    if (this.url) {
      // keepalive: also when the page goes away. A session that is gone already is a success.
      fetch(this.url, { method: "DELETE", keepalive: true, headers: { Authorization: `Bearer ${this.key}` } }).catch(() => {});
      this.url = null;
    }
    this.pc?.close();
    this.audio?.close();
    this.audio = undefined;
    $("audio").srcObject = null;
  }
}

async function openMicrophone() {
  if (!window.isSecureContext || !navigator.mediaDevices) {
    throw new Problem("Browsers give the microphone to https and localhost only: open http://localhost:8080 of the host where shunt demo runs, or serve this page by https.");
  }
  try {
    return await navigator.mediaDevices.getUserMedia({ audio: true });
  } catch (error) {
    const sentences = {
      NotAllowedError: "The microphone was refused: allow it for this page in the browser's address bar, then call again.",
      NotFoundError: "There is no microphone: plug one in, then call again.",
      NotReadableError: "The microphone is in use or switched off: free it in the system's settings, then call again.",
    };
    throw new Problem(sentences[error.name] ?? `The microphone cannot be opened (${error.message}): check the system's sound settings, then call again.`);
  }
}

// ── Showing ─────────────────────────────────────────────────────────────────────────────────────

function setState(state, text) {
  document.body.dataset.state = state;
  $("state").textContent = text;
  const busy = state === "calling" || state === "connected";
  $("call").hidden = busy;
  $("hang-up").hidden = !busy;
  $("key-row").hidden = busy || storedKey() !== "";
  if (state !== "connected") for (const wire of document.querySelectorAll(".wire")) flowing(wire, false, false);
}

function problem(sentence) {
  $("problem").textContent = sentence;
  $("problem").hidden = sentence === "";
}

function show(id, text) {
  $(id).textContent = text;
}

function showLevel(id, level) {
  const clamped = Math.min(1, Math.max(0, level));
  $(id).style.setProperty("--level", clamped);
  $(id).ariaValueNow = Math.round(clamped * 100);
}

function flowing(wire, out, back) {
  wire.toggleAttribute("data-out", out);
  wire.toggleAttribute("data-back", back);
}

let before = { sent: 0, received: 0 };

function showFigures(stats, connectedAt) {
  const all = [...stats.values()];
  const transport = all.find((s) => s.type === "transport" && s.selectedCandidatePairId);
  const pair = transport && stats.get(transport.selectedCandidatePairId);
  const sent = all.find((s) => s.type === "outbound-rtp" && s.kind === "audio")?.packetsSent ?? 0;
  const inbound = all.find((s) => s.type === "inbound-rtp" && s.kind === "audio");
  const received = inbound?.packetsReceived ?? 0;
  if (pair) {
    showPath(stats.get(pair.localCandidateId), stats.get(pair.remoteCandidateId));
    if (pair.currentRoundTripTime !== undefined) show("ice-rtt", milliseconds(pair.currentRoundTripTime * 1000));
  }
  show("sent", sent.toLocaleString("en"));
  show("received", received.toLocaleString("en"));
  show("lost", inbound?.packetsLost > 0 ? `${inbound.packetsLost} lost` : "");
  for (const wire of document.querySelectorAll(".wire")) flowing(wire, sent > before.sent, received > before.received);
  before = { sent, received };
  if (connectedAt !== null) show("clock", clock(performance.now() - connectedAt));
}

// To ICE, a relay that rewrites addresses is a NAT: the local candidate is a reflexive one, and holds
// the relay's inside address, which is how the transceiver sees us. Our own is the related address.
function showPath(local, remote) {
  const reflexive = local?.candidateType !== "host";
  show("local", reflexive ? endpoint(local?.relatedAddress, local?.relatedPort) : endpoint(local.address, local.port));
  show("remote", endpoint(remote?.address, remote?.port));
  show("inside", reflexive ? endpoint(local?.address, local?.port) : "the same");
}

function endpoint(address, port) {
  if (!address) return "hidden by the browser";
  return address.includes(":") ? `[${address}]:${port}` : `${address}:${port}`;
}

function milliseconds(value) {
  return value < 9.95 ? value.toFixed(1) : String(Math.round(value));
}

function clock(elapsed) {
  const seconds = Math.floor(elapsed / 1000);
  return `${Math.floor(seconds / 60)}:${String(seconds % 60).padStart(2, "0")}`;
}

function reasonIn(body) {
  try {
    return JSON.parse(body).error?.message;
  } catch {
    return undefined;
  }
}

// ── The key: from the URL's fragment once, then this tab's only ─────────────────────────────────

function takeKeyFromUrl() {
  const given = /^#key=(.+)$/.exec(location.hash);
  if (!given) return;
  try {
    sessionStorage.setItem("shunt-key", decodeURIComponent(given[1]));
  } catch {
    sessionStorage.setItem("shunt-key", given[1]); // a % that encodes nothing
  }
  history.replaceState(null, "", location.pathname + location.search);
  if (!call || call.over) setState("idle", "Ready to call");
}

function storedKey() {
  return sessionStorage.getItem("shunt-key") ?? "";
}

function forgetKey() {
  sessionStorage.removeItem("shunt-key");
}

// ── Wiring ──────────────────────────────────────────────────────────────────────────────────────

$("form").onsubmit = async (event) => {
  event.preventDefault();
  if (call && !call.over) return;
  const key = storedKey() || $("key").value.trim();
  if (!key) {
    problem("Signaling asks for an API key: enter the one that the lab or SHUNT_API_KEY gave to the transceiver.");
    $("key").focus();
    return;
  }
  sessionStorage.setItem("shunt-key", key);
  $("key").value = "";
  for (const id of ["local", "remote", "inside", "ice-rtt", "channel-rtt", "sent", "received"]) show(id, "–");
  for (const id of ["lost", "clock"]) show(id, "");
  before = { sent: 0, received: 0 };
  problem("");
  setState("calling", "Calling…");
  const mine = (call = new Call(key));
  try {
    await mine.start();
  } catch (error) {
    const sentence = error instanceof Problem ? error.message : `The call broke (${error.message}): reload the page and call again.`;
    mine.finish("failed", "Call failed", sentence);
  }
};
$("hang-up").onclick = () => call.finish("ended", "Call ended");
$("listen").onchange = () => ($("audio").muted = !$("listen").checked);
addEventListener("hashchange", takeKeyFromUrl);
addEventListener("pagehide", () => call?.finish("ended", "Call ended"));

takeKeyFromUrl();
setState("idle", "Ready to call");
$("audio").muted = !$("listen").checked; // the browser remembers the box over a reload
