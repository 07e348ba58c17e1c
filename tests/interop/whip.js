// A WHIP client (RFC 9725) for whatever browser it is evaluated in: `whip`, step by step.

globalThis.whip = {
  /** Offers with no candidates and never trickles, as OpenAI's clients do; the server's ufrag, once all is up. */
  async call(url, key) {
    this.key = key;
    this.pc = new RTCPeerConnection();
    const { pc } = this;
    const microphone = await navigator.mediaDevices.getUserMedia({ audio: true });
    pc.addTrack(microphone.getTracks()[0], microphone);
    this.channel = pc.createDataChannel("whip");
    const opened = new Promise((resolve) => (this.channel.onopen = resolve));
    this.closed = new Promise((resolve) => (this.channel.onclose = resolve));
    const offer = await pc.createOffer();
    const setting = pc.setLocalDescription(offer);
    const response = await this.ask("POST", url, { "Content-Type": "application/sdp" }, offer.sdp, 201);
    await setting;
    this.url = new URL(response.headers.get("Location"), url);
    this.tag = response.headers.get("ETag");
    await pc.setRemoteDescription({ type: "answer", sdp: (this.answer = await response.text()) });
    await opened;
    return this.ufrag();
  },

  /** Section 4.3.3: the credentials of the fragment take their place in the answer that there is. */
  async restart() {
    const { pc } = this;
    pc.restartIce();
    await pc.setLocalDescription();
    const local = pc.localDescription.sdp;
    const lines = ["m=audio 9 UDP/TLS/RTP/SAVPF 0", `a=mid:${/^a=mid:(\S+)/m.exec(local)[1]}`];
    lines.push(/^a=ice-ufrag:\S+/m.exec(local)[0], /^a=ice-pwd:\S+/m.exec(local)[0], "");
    const kind = { "Content-Type": "application/trickle-ice-sdpfrag", "If-Match": this.tag };
    const response = await this.ask("PATCH", this.url, kind, lines.join("\r\n"), 200);
    this.tag = response.headers.get("ETag");
    const told = await response.text();
    for (const name of ["ufrag", "pwd"]) {
      const line = new RegExp(`a=ice-${name}:\\S+`, "g");
      this.answer = this.answer.replace(line, told.match(line)[0]);
    }
    await pc.setRemoteDescription({ type: "answer", sdp: this.answer });
    return this.ufrag();
  },

  /** What comes back for *text*, after a second of audio each way. */
  async talk(text) {
    const back = new Promise((resolve) => (this.channel.onmessage = ({ data }) => resolve(data)));
    const before = await this.packets();
    this.channel.send(text);
    const echo = await back;
    for (const end = performance.now() + 20_000; ; ) {
      const now = await this.packets();
      if (now.every((count, index) => count >= before[index] + 50)) return echo;
      if (performance.now() > end) throw new Error(`audio stays at ${now}`);
      await new Promise((resolve) => setTimeout(resolve, 50));
    }
  },

  /** Resolves once the other side has closed what there was. */
  async hangUp() {
    await this.ask("DELETE", this.url, {}, undefined, 200);
    await this.closed;
    this.pc.close();
  },

  ufrag() {
    return /a=ice-ufrag:(\S+)/.exec(this.answer)[1];
  },

  /** Sent and received, of audio. */
  async packets() {
    const all = [...(await this.pc.getStats()).values()];
    const sent = all.find(({ type, kind }) => type === "outbound-rtp" && kind === "audio");
    const received = all.find(({ type, kind }) => type === "inbound-rtp" && kind === "audio");
    return [sent?.packetsSent ?? 0, received?.packetsReceived ?? 0];
  },

  async ask(method, url, headers, body, expected) {
    headers.Authorization = `Bearer ${this.key}`;
    const response = await fetch(url, { method, headers, body });
    if (response.status === expected) return response;
    throw new Error(`${method} got ${response.status}: ${await response.text()}`);
  },
};
