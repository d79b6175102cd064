import { call, rememberKey } from "./app.js";
import { t } from "./texts.js";

const find = (id) => document.getElementById(id);
const form = find("join-form");
// browsers do not send what stands behind `#`, so an invite's secret is in no server's log
const invite = new URLSearchParams(location.hash.slice(1)).get("invite") ?? "";

async function show() {
  const cut = t("This link is not whole: copy all of it.");
  if (!invite) return void (find("join-what").textContent = cut);
  try {
    const found = await call("POST", "/api/invites/show", { invite });
    const values = { name: found.createdBy, team: found.teamName };
    const invited =
      found.role === "ADMIN"
        ? t("{name} invites you to the team {team} as an administrator.", values)
        : t("{name} invites you to the team {team} as a member.", values);
    const { signedIn } = find("join").dataset;
    const now = signedIn === undefined ? "" : t("You are signed in as {name}; this signs you in as the one invited.", { name: signedIn });
    find("join-what").textContent = `${invited} ${now}`.trim();
    form.elements.userName.value = found.userName;
    find("join-ways").hidden = false;
    form.elements.login.focus();
  } catch (error) {
    const said = `${error.message[0].toUpperCase()}${error.message.slice(1)}.`;
    find("join-what").textContent = error.status === 400 ? cut : said;
  }
}

find("openid")?.addEventListener("click", async () => {
  find("join-problem").textContent = "";
  try {
    // in a body, and not in an address, which logs would keep
    location.assign((await call("POST", "/api/session/openid", { invite })).address);
  } catch (error) {
    find("join-problem").textContent = error.message;
  }
});

form.addEventListener("submit", async (event) => {
  event.preventDefault();
  const { userName, login, password } = form.elements;
  find("join-problem").textContent = "";
  form.classList.add("busy");
  try {
    const chosen = { userName: userName.value, name: login.value, password: password.value };
    await call("POST", "/api/invites/accept", { invite, ...chosen });
    rememberKey("");
    location.replace("/");
  } catch (error) {
    form.classList.remove("busy");
    find("join-problem").textContent = error.message;
    (error.status === 409 ? login : password).focus();
  }
});

show();
