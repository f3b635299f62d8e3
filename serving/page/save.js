// Hand a text to the person as a file.
(saved) => {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([saved.text], { type: saved.type }));
  link.download = saved.name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}
