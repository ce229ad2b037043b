/* Light or dark theme: the system's setting, until the reader chooses one. */

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

/* A browser may refuse to store anything for pages opened from a folder. */
function recall(name) {
  try {
    return localStorage.getItem(name);
  } catch {
    return null;
  }
}

/* Store a text, and say whether the browser did. */
function remember(name, value) {
  try {
    localStorage.setItem(name, value);
    return true;
  } catch {
    return false;
  }
}
