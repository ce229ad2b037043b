/* Texts and elements that every page needs. */

const byId = (id) => document.getElementById(id);
const integers = new Intl.NumberFormat("en-US");
const decimals = (value, digits) =>
  value.toLocaleString("en-US", { minimumFractionDigits: digits, maximumFractionDigits: digits });
const plural = (count, noun) => `${integers.format(count)} ${noun}${count === 1 ? "" : "s"}`;

/* An element with its properties, and its children. */
function element(name, properties = {}, ...children) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
}

function swatch(colour) {
  const made = element("span", { className: "swatch" });
  made.style.setProperty("--c", colour);
  return made;
}

/* Fill a list with names and values; empty values are left out. */
function facts(list, pairs) {
  const items = pairs
    .filter(([, value]) => value)
    .flatMap(([name, value]) => [
      element("dt", { textContent: name }),
      element("dd", { textContent: value }),
    ]);
  list.replaceChildren(...items);
}
