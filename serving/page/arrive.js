// What a page that is loaded tells the server: its language, and which page it was before.
() => {
  const before = sessionStorage.getItem("remoteglm-page");
  sessionStorage.setItem("remoteglm-page", window.__gradio_session_hash__);
  return JSON.stringify({
    language: localStorage.getItem("remoteglm-language") ?? navigator.language,
    before,
    draft: sessionStorage.getItem("remoteglm-draft"),
  });
}
