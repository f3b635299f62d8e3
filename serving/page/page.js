// What Gradio has no component for: dropping and pasting anywhere, and what survives a reload.
(() => {
  const give = (files) => {
    const input = document.querySelector("#source input[type=file]");
    if (!input || !files.length) return false;
    const chosen = new DataTransfer();
    chosen.items.add(files[0]);
    input.files = chosen.files;
    input.dispatchEvent(new Event("change", { bubbles: true }));
    return true;
  };
  document.addEventListener("dragover", (event) => event.preventDefault());
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    give(event.dataTransfer?.files ?? []);
  });
  document.addEventListener("paste", (event) => {
    if (give(event.clipboardData?.files ?? [])) event.preventDefault();
  });
  document.addEventListener("input", (event) => {
    if (event.target.matches?.("#question textarea"))
      sessionStorage.setItem("remoteglm-draft", event.target.value);
  });

  // Gradio's own way down comes late and takes a person along who has scrolled up
  const scrolledUp = new WeakSet();
  const tops = new WeakMap();
  const rest = (log) => log.scrollHeight - log.scrollTop - log.clientHeight;
  document.addEventListener("scroll", ({ target }) => {
    if (!target.matches?.("[role=log]")) return;
    if (rest(target) > 60) scrolledUp.add(target);
    else scrolledUp.delete(target);
  }, true);
  new MutationObserver(() => {
    for (const log of document.querySelectorAll("[role=log]")) {
      // A busy browser tells of scrolling only after the next piece
      if (log.scrollTop < tops.get(log) - 1 && rest(log) > 60) scrolledUp.add(log);
      if (!scrolledUp.has(log)) log.scrollTop = log.scrollHeight;
      tops.set(log, log.scrollTop);
    }
  }).observe(document.documentElement, { childList: true, subtree: true, characterData: true });
})();
