// Sets light or dark before anything is drawn. A classic script in the head, so that the page does not flash.
"use strict";

(() => {
  const CHOICE = "convo-theme";
  const dark = matchMedia("(prefers-color-scheme: dark)");
  let chosen = null;
  try {
    chosen = localStorage.getItem(CHOICE);
  } catch {
    // storage is refused: the choice lasts as long as the page
  }

  function apply() {
    const theme = chosen === "dark" || chosen === "light" ? chosen : dark.matches ? "dark" : "light";
    document.documentElement.dataset.theme = theme;
    document.dispatchEvent(new Event("theme"));
  }

  window.convoTheme = {
    next() {
      chosen = document.documentElement.dataset.theme === "dark" ? "light" : "dark";
      try {
        localStorage.setItem(CHOICE, chosen);
      } catch {
        // as above
      }
      apply();
    },
  };
  dark.addEventListener("change", apply);
  apply();
})();
