// What the pages of all clients need.

/** Resolves once *condition* holds; rejects after half a minute, and says what was waited for. */
export async function until(what, condition) {
  const end = performance.now() + 30_000;
  while (!(await condition())) {
    if (performance.now() > end) throw new Error(`${what}: not in 30 s`);
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
}

/** Method, path and status of each request that was answered from now on. */
export function requests() {
  const made = [];
  const fetched = window.fetch;
  window.fetch = async (resource, options) => {
    const response = await fetched(resource, options);
    const method = resource.method ?? options?.method ?? "GET";
    made.push([method, new URL(resource.url ?? resource).pathname, response.status]);
    return response;
  };
  return made;
}

export function microphone() {
  return navigator.mediaDevices.getUserMedia({ audio: true });
}

/** Packets of audio that have come. */
export async function received(connection) {
  const stats = [...(await connection.getStats()).values()];
  return stats.find((each) => each.type === "inbound-rtp" && each.kind === "audio")?.packetsReceived ?? 0;
}
