// The page's requests to the server: outputs that would not come, and a sign for files on their way.
// Trap: Gradio's server closes its stream of outputs when nothing is under way any more. A call that it
// accepts before the browser has read so gets no output, until the next call opens a stream.
(() => {
  const send = window.fetch;
  let isOpen = false;
  let isJoined = false; // by a call, while it was open
  const closed = () => {
    isOpen = false;
    if (isJoined) document.querySelector("#next-call")?.click();
  };
  // For page.js: Gradio's button does not show that a file is on its way
  const tell = (what) => document.dispatchEvent(new Event(`remoteglm-${what}`));
  const upload = async (request) => {
    tell("uploading");
    let reply;
    try {
      return reply = await send(...request);
    } finally {
      if (!reply?.ok) tell("read"); // what failed is read by nobody
    }
  };
  window.fetch = async (...request) => {
    const path = new URL(request[0].url ?? request[0], location).pathname;
    if (path.endsWith("/queue/data")) {
      [isOpen, isJoined] = [true, false];
      request[0].signal?.addEventListener("abort", closed);
    }
    if (path.endsWith("/upload")) return upload(request);
    const reply = await send(...request);
    if (path.endsWith("/queue/join")) isJoined ||= isOpen;
    return reply;
  };
})();
