/* Light or dark: the reader's system decides, until the reader does. */

function setUpTheme(button, onChange) {
  const system = matchMedia("(prefers-color-scheme: dark)");
  const root = document.documentElement;
  const isDark = () => (root.dataset.theme ? root.dataset.theme === "dark" : system.matches);
  const remembered = recall("scenesweep-theme");
  if (remembered === "light" || remembered === "dark") root.dataset.theme = remembered;
  button.addEventListener("click", () => {
    root.dataset.theme = isDark() ? "light" : "dark";
    remember("scenesweep-theme", root.dataset.theme);
    onChange();
  });
  system.addEventListener("change", onChange);
}

/* A browser may refuse to remember anything for pages of a folder. */
function recall(name) {
  try {
    return localStorage.getItem(name);
  } catch {
    return null;
  }
}

function remember(name, value) {
  try {
    localStorage.setItem(name, value);
  } catch {
    /* then it is forgotten */
  }
}
