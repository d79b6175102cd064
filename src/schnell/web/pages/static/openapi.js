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
