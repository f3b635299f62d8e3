// A part of the image is chosen by dragging over it; a double click enlarges it.
let start = null, frame = null, box = null;
const at = (event) => {
  const area = frame.querySelector("img").getBoundingClientRect();
  return [(event.clientX - area.left) / area.width, (event.clientY - area.top) / area.height];
};
element.addEventListener("pointerdown", (event) => {
  frame = event.target.closest("[data-crop] .frame");
  if (!frame || event.button !== 0) { frame = null; return; }
  start = at(event);
});
window.addEventListener("pointermove", (event) => {
  if (!frame) return;
  const [x, y] = at(event).map((part) => Math.min(1, Math.max(0, part)));
  if (!box) {
    if (Math.hypot(x - start[0], y - start[1]) < 0.02) return;
    frame.querySelector(".box")?.remove();
    box = frame.appendChild(document.createElement("span"));
    box.className = "box";
  }
  box.style.left = `${100 * Math.min(x, start[0])}%`;
  box.style.top = `${100 * Math.min(y, start[1])}%`;
  box.style.width = `${100 * Math.abs(x - start[0])}%`;
  box.style.height = `${100 * Math.abs(y - start[1])}%`;
});
window.addEventListener("pointerup", (event) => {
  if (frame && box) trigger("select", { box: [...start, ...at(event)] });
  frame = box = null;
});
element.addEventListener("dblclick", (event) => {
  const figure = event.target.closest("figure");
  if (document.fullscreenElement) document.exitFullscreen();
  else if (figure) figure.requestFullscreen();
});
