// What Gradio has no component for: dropping and pasting anywhere, a sign while an image is read, what
// survives a reload, and the names of its own buttons in the page's language, which may not be the
// browser's.
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
  // Sending and reading a large image takes a while
  const isEnglish = () => document.documentElement.lang === "en";
  let soon;
  const sign = (text) => {
    clearTimeout(soon);
    const place = document.querySelector("#preview");
    if (!place) return;
    place.ariaBusy = String(Boolean(text));
    if (!text) delete place.dataset.sign;
    else soon = setTimeout(() => (place.dataset.sign = text), 400); // what is fast needs none
  };
  let chosen; // where the last file was
  document.addEventListener("change", ({ target }) => {
    if (target.type === "file") chosen = target;
  }, true);
  document.addEventListener("remoteglm-uploading", () => {
    if (chosen?.closest("#source")) sign(isEnglish() ? "Uploading the image..." : "正在上传图像……");
  });
  document.addEventListener("remoteglm-reading", () =>
    sign(isEnglish() ? "Reading the image..." : "正在读取图像……"));
  document.addEventListener("remoteglm-read", () => sign(""));

  // For the page that follows in this tab, see arrive.js
  const box = () => document.querySelector("#question textarea");
  const keepDraft = () => box() && sessionStorage.setItem("remoteglm-draft", box().value);
  document.addEventListener("input", keepDraft); // pages that crash are not hidden before
  addEventListener("pagehide", () => {
    keepDraft();
    // Not earlier: a duplicate of the tab has a copy of all that is kept, and would take over
    sessionStorage.setItem("remoteglm-page", window.__gradio_session_hash__);
  });

  const NAMES = [
    ["复制", "Copy message"], ["已复制", "Copied message"], ["编辑", "Edit"], ["重试", "Retry"],
    ["撤销", "Undo"], ["发送", "Submit"], ["取消", "Cancel"], ["赞", "Like"], ["踩", "Dislike"],
    ["清空对话", "Clear"], ["将文件拖放到此处", "Drop File Here"], ["点击上传", "Click to Upload"],
    ["- 或 -", "- or -"],
  ];
  const named = (text) => {
    const pair = NAMES.find((pair) => pair.includes(text.trim()));
    return pair ? pair[Number(isEnglish())] : text;
  };
  // Nobody votes on what the page says itself
  const REMARK = /^(错误：|注意：|error: |note: )/;
  const markRemarks = () => {
    for (const buttons of document.querySelectorAll("#dialogues .bot-row + .message-buttons")) {
      const text = buttons.previousElementSibling.innerText.trim();
      const asks = buttons.nextElementSibling?.querySelector(".option");
      buttons.toggleAttribute("data-remark", Boolean(asks) || REMARK.test(text));
    }
  };
  const rename = () => {
    for (const button of document.querySelectorAll("#dialogues .icon-button"))
      if (named(button.title) !== button.title) button.title = button.ariaLabel = named(button.title);
    for (const area of document.querySelectorAll("#scene-file, #before-file")) {
      const texts = document.createTreeWalker(area, NodeFilter.SHOW_TEXT);
      while (texts.nextNode())
        if (named(texts.currentNode.data) !== texts.currentNode.data)
          texts.currentNode.data = named(texts.currentNode.data);
    }
  };
  document.addEventListener("remoteglm-language", rename);

  // What makes markup text (see dialogue.py) stays on the page
  const plain = (text) => text.replaceAll("\u2060", "");
  const clipboard = navigator.clipboard;
  const write = clipboard?.writeText.bind(clipboard);
  if (write) clipboard.writeText = (text) => write(plain(text));
  document.addEventListener("copy", (event) => {
    const text = String(getSelection());
    if (plain(text) === text) return;
    event.clipboardData.setData("text/plain", plain(text));
    event.preventDefault();
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
  // The end, but not beyond the question of a remark with buttons
  const goDown = (log) => {
    const asks = log.querySelector(".option") && [...log.querySelectorAll(".message-row")].at(-1);
    log.scrollTop = asks ? asks.offsetTop - 8 : log.scrollHeight;
  };
  new MutationObserver(() => {
    rename();
    markRemarks();
    for (const log of document.querySelectorAll("[role=log]")) {
      // A busy browser tells of scrolling only after the next piece
      if (log.scrollTop < tops.get(log) - 1 && rest(log) > 60) scrolledUp.add(log);
      if (!scrolledUp.has(log)) goDown(log);
      tops.set(log, log.scrollTop);
    }
  }).observe(document.documentElement, { childList: true, subtree: true, characterData: true });

  // Whoever asks sees what becomes of it
  const asked = () => {
    if (document.querySelector("#stop")) return;
    for (const log of document.querySelectorAll("#dialogues [role=log]")) {
      scrolledUp.delete(log);
      log.scrollTop = log.scrollHeight;
      tops.set(log, log.scrollTop);
    }
    document.querySelector("#dialogues")?.scrollIntoView({ block: "nearest" });
  };
  document.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.shiftKey && event.target === box()) asked();
  }, true);
  document.addEventListener("click", ({ target }) => {
    if (target.closest?.("#send, #ready button")) asked();
    // Buttons that give place to each other take the focus along; on a phone it opens the keyboard
    const gone = target.closest?.("#send, #stop");
    if (gone && matchMedia("(pointer: fine)").matches) box()?.focus({ preventScroll: true });
  }, true);
})();
