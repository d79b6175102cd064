// Right after the list itself, so that on a phone it is folded before anything is painted.
if (matchMedia("(max-width: 900px)").matches) document.getElementById("contents").open = false;
