// Loaded before the first paint, so that a chosen theme never flashes.
const chosen = localStorage.getItem("schnell-theme");
if (chosen) document.documentElement.dataset.theme = chosen;
