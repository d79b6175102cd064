import { call, rememberKey } from "./app.js";

const form = document.getElementById("sign-in");
const input = document.getElementById("key");
const problem = document.getElementById("key-problem");

async function signIn(key) {
  problem.textContent = "";
  form.classList.add("busy");
  try {
    await call("POST", "/api/session", { key });
    rememberKey(key);
    location.replace(form.dataset.next);
  } catch (error) {
    form.classList.remove("busy");
    problem.textContent = error.message;
    input.setAttribute("aria-invalid", "true");
    input.focus();
  }
}

form.addEventListener("submit", (event) => {
  event.preventDefault();
  const key = input.value.trim();
  if (key) signIn(key);
  else problem.textContent = "Enter an API key.";
});

// browsers do not send what stands behind `#`, so the key of the printed link is in no server's log
const printed = new URLSearchParams(location.hash.slice(1)).get("key");
if (printed) {
  history.replaceState(null, "", location.pathname + location.search);
  const { signedIn } = form.dataset;
  if (signedIn === undefined) {
    signIn(printed);
  } else {
    // whoever made the link would see what is drawn from now on: the person decides
    input.value = printed;
    problem.textContent = `You are signed in as ${signedIn}. This link holds another key: press Sign in to use that one instead.`;
    input.focus();
  }
}
