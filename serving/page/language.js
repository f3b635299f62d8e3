// Say to screen readers and browsers which language the page is in: the button names the other one.
() => {
  const other = document.querySelector("#language").innerText.trim();
  document.documentElement.lang = other === "English" ? "zh-Hans" : "en";
}
