addEventListener("DOMContentLoaded", () => {
  SwaggerUIBundle({
    url: "/openapi.json",
    dom_id: "#openapi",
    deepLinking: true,
    defaultModelsExpandDepth: 0,
    docExpansion: "list",
    validatorUrl: null,
    onComplete: nameNoSecondMain,
  });
});

// Swagger UI has a <main> of its own; a page may have only one
function nameNoSecondMain() {
  for (const main of document.querySelectorAll("#openapi main")) main.setAttribute("role", "presentation");
}

// its dark colours go by a class; the page's by the chosen theme, or by what the system says
const root = document.documentElement;
const systemIsDark = matchMedia("(prefers-color-scheme: dark)");
function followTheme() {
  root.classList.toggle("dark-mode", root.dataset.theme ? root.dataset.theme === "dark" : systemIsDark.matches);
}
systemIsDark.addEventListener("change", followTheme);
new MutationObserver(followTheme).observe(root, { attributeFilter: ["data-theme"] });
followTheme();
