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

// the viewer brings a <main> of its own into ours
function nameNoSecondMain() {
  for (const main of document.querySelectorAll("#openapi main")) main.setAttribute("role", "presentation");
}
