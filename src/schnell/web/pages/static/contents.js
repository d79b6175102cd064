// Stands right behind the list of pages, so that on a phone the list is folded before the first paint.
if (matchMedia("(max-width: 900px)").matches) document.getElementById("contents").open = false;
