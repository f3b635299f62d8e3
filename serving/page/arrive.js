// What a page that is loaded tells the server: its language, and what it was before (see page.js).
() => {
  const before = sessionStorage.getItem("remoteglm-page");
  sessionStorage.removeItem("remoteglm-page");
  return JSON.stringify({
    language: localStorage.getItem("remoteglm-language") ?? navigator.language,
    before,
    draft: sessionStorage.getItem("remoteglm-draft"),
  });
}
