// Say to screen readers and browsers which language the page is in: the button names the other one.
() => {
  const other = document.querySelector("#language").innerText.trim();
  document.documentElement.lang = other === "English" ? "zh-Hans" : "en";
  // For what the server says of an upload
  document.cookie = `remoteglm-language=${document.documentElement.lang}; path=/; SameSite=Strict`;
  document.dispatchEvent(new Event("remoteglm-language"));
}
