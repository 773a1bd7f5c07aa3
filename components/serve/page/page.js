// A picture pasted anywhere on the page goes the way of a chosen file.
document.addEventListener("paste", (event) => {
  const files = [...(event.clipboardData?.files ?? [])].filter((file) => file.type.startsWith("image/"));
  const input = document.querySelector("#picture input[type=file]");
  if (!files.length || !input) return;
  event.preventDefault();
  const transfer = new DataTransfer();
  transfer.items.add(files[0]);
  input.files = transfer.files;
  input.dispatchEvent(new Event("change", { bubbles: true }));
});

// A screen reader says the verdict when it comes, and a phone shows it.
new MutationObserver((_, observer) => {
  const verdict = document.querySelector("#verdict");
  if (!verdict) return;
  verdict.setAttribute("role", "status");
  observer.disconnect();
  const show = () => verdict.scrollIntoView({ block: "nearest" });
  new MutationObserver(show).observe(verdict, { childList: true, subtree: true });
}).observe(document.documentElement, { childList: true, subtree: true });

// In the review, the letter on a button is its key.
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.repeat) return;
  if (!event.target.closest("#review") || event.target.closest("input, textarea")) return;
  const letter = `(${event.key.toUpperCase()})`;
  const button = [...document.querySelectorAll("#review button")].find((one) => one.textContent.includes(letter));
  if (!button) return;
  event.preventDefault();
  button.click();
});
