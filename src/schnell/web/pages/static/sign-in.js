import { call, rememberKey } from "./app.js";
import { t } from "./texts.js";

const keyForm = document.getElementById("sign-in");
const passwordForm = document.getElementById("with-password");

/** Signs in with what `body` holds, and leaves the page; shows what is wrong beside `input`. */
async function signIn(form, path, body, input) {
  const problem = form.querySelector(".problem");
  problem.textContent = "";
  form.classList.add("busy");
  try {
    await call("POST", path, body);
    rememberKey(body.key ?? "");
    location.replace(form.dataset.next);
  } catch (error) {
    form.classList.remove("busy");
    // the API's message is for programs: it names a header
    const unknown = form === keyForm && error.status === 401;
    problem.textContent = unknown ? t("This server knows no such key: it may be misspelt, revoked or past its end.") : error.message;
    input.setAttribute("aria-invalid", "true");
    input.focus();
  }
}

function signInWithKey(key) {
  return signIn(keyForm, "/api/session", { key }, keyForm.elements.key);
}

passwordForm.addEventListener("submit", (event) => {
  event.preventDefault();
  const { login, password } = passwordForm.elements;
  signIn(passwordForm, "/api/session/password", { name: login.value, password: password.value }, password);
});

keyForm.addEventListener("submit", (event) => {
  event.preventDefault();
  const key = keyForm.elements.key.value.trim();
  if (key) signInWithKey(key);
  else keyForm.querySelector(".problem").textContent = t("Enter an API key.");
});

// browsers do not send what stands behind `#`, so the key of the printed link is in no server's log
const printed = new URLSearchParams(location.hash.slice(1)).get("key");
if (printed) {
  history.replaceState(null, "", location.pathname + location.search);
  const { signedIn } = keyForm.dataset;
  document.getElementById("key-way").open = true;
  if (signedIn === undefined) {
    signInWithKey(printed);
  } else {
    // whoever made the link would see what is drawn from now on: the person decides
    keyForm.elements.key.value = printed;
    keyForm.querySelector(".problem").textContent =
      t("You are signed in as {name}. This link holds another key: press Sign in to use that one instead.", { name: signedIn });
    keyForm.elements.key.focus();
  }
}
