// The page of `stan-infer serve`. What the server says is shown as text: names are strangers'.
"use strict";

const at = (id) => document.getElementById(id);
const FIELDS = ["path", "since", "before", "added_since", "added_before", "longer", "shorter"];
let like = []; // numbers of rows that are examples
let names = new Map(); // of rows, to say which are examples
let running = null; // the search that is under way

function made(kind, text = "", more = {}) {
  return Object.assign(document.createElement(kind), { textContent: text }, more);
}

const lines = (id) => at(id).value.split("\n").map((line) => line.trim()).filter(Boolean);
const count = (n, one, many) => `${n.toLocaleString("en")} ${n === 1 ? one : many}`;
const time = (s) => {
  const [hours, minutes] = [Math.floor(s / 3600), Math.floor(s / 60) % 60];
  const rest = (s % 60).toFixed(2).replace(/\.?0+$/, "").padStart(hours || minutes ? 2 : 1, "0");
  if (!hours && !minutes) return `${rest} s`;
  return `${hours ? `${hours}:${String(minutes).padStart(2, "0")}` : minutes}:${rest}`;
};

/** The form as the address of a search. */
function asked() {
  const found = new URLSearchParams();
  const first = at("text").value.trim();
  for (const text of [...(first ? [first] : []), ...lines("texts")]) found.append("text", text);
  for (const text of lines("not")) found.append("not", text);
  for (const row of like) found.append("like", row);
  for (const name of FIELDS) if (at(name).value.trim()) found.append(name, at(name).value.trim());
  if (at("top").value !== "10") found.append("top", at("top").value);
  if (at("mug").checked) found.append("mug", "1");
  return found;
}

/** Fill the form from an address, as after a reload. */
function fill(address) {
  const given = new URLSearchParams(address);
  const [first = "", ...texts] = given.getAll("text");
  at("text").value = first;
  at("texts").value = texts.join("\n");
  at("not").value = given.getAll("not").join("\n");
  for (const name of FIELDS) at(name).value = given.get(name) ?? "";
  const top = given.get("top") ?? "10";
  at("top").value = [...at("top").options].some((o) => o.value === top) ? top : "10";
  at("mug").checked = given.get("mug") === "1";
  like = given.getAll("like");
  at("more").open ||= [...given.keys()].some((name) => !["text", "like"].includes(name));
  showLike();
}

function showLike() {
  const shown = like.map((row) => names.get(String(row).split("::")[0]) ?? `row ${row}`);
  at("like").firstElementChild.textContent = `Like ${shown.join(", ")}.`;
  at("like").hidden = !like.length;
}

function tell(text, kind = "") {
  at("status").textContent = text;
  at("status").className = kind;
}

/** The JSON at an address; an error's text is what the server says. */
async function fetched(address, signal) {
  let answer;
  try {
    answer = await fetch(address, { signal });
  } catch (e) {
    if (e.name === "AbortError") throw e;
    throw new Error("The server does not answer: was it ended?");
  }
  const value = await answer.json().catch(() => ({}));
  if (!answer.ok) throw new Error(value.error ?? `The server answers ${answer.status}.`);
  return value;
}

async function search({ keep = true } = {}) {
  const query = asked();
  running?.abort();
  const mine = (running = new AbortController());
  if (keep) history.pushState(null, "", query.size ? `/?${query}` : "/");
  at("hits").replaceChildren();
  notes([]);
  if (!query.size) return tell("");
  at("hits").setAttribute("aria-busy", "true");
  tell("Searching", "busy");
  try {
    const found = await fetched(`/search?${query}`, mine.signal);
    if (running === mine) show(found);
  } catch (e) {
    if (running === mine && e.name !== "AbortError") tell(e.message, "error");
  }
  if (running === mine) at("hits").removeAttribute("aria-busy");
}

function notes(texts) {
  at("notes").replaceChildren(...texts.map((text) => made("li", text)));
  at("notes").hidden = !texts.length;
}

function show(found) {
  const took = `${(found.model_ms + found.search_ms).toFixed(0)} ms: model ` +
    `${found.model_ms.toFixed(0)}, search ${found.search_ms.toFixed(0)}`;
  const rows = count(found.rows, "row", "rows");
  tell(found.hits.length ? `${found.hits.length} of ${rows} in ${took}`
    : `Nothing fits: ${rows} looked at, in ${took}`);
  for (const hit of found.hits) names.set(String(hit.row), hit.name);
  showLike();
  notes(found.notes);
  at("hits").replaceChildren(...found.hits.map(card));
}

function card(hit) {
  const found = made("li", "", { className: "card" });
  found.append(
    made("span", hit.score.toFixed(4), {
      className: "score", title: "score, a mean over what was asked for",
    }),
    made("b", `${hit.rank}. ${hit.name}`),
  );
  if (hit.start_s !== null) found.append(made("p", `${time(hit.start_s)} to ${time(hit.end_s)}`));
  const picture = made("img", "", {
    loading: "lazy", alt: `Frames of ${hit.name}`, src: `/thumbnail/${hit.row}`,
  });
  picture.addEventListener("error", () => missing(picture), { once: true });
  const play = made("button", hit.start_s === null ? "Play" : `Play at ${time(hit.start_s)}`,
    { type: "button" });
  play.setAttribute("aria-label", `${play.textContent}: ${hit.name}`);
  const more = made("button", "More like this", { type: "button" });
  more.setAttribute("aria-label", `More like ${hit.name}`);
  play.addEventListener("click", () => player(hit, picture, play));
  more.addEventListener("click", () => {
    fill("");
    like = [String(hit.row)];
    showLike();
    search();
    scrollTo(0, 0);
  });
  const doing = made("div", "", { className: "doing" });
  doing.append(play, more);
  found.append(picture, doing, made("p", hit.video, { className: "soft" }));
  if (hit.copies) {
    found.append(made("p", `and ${count(hit.copies, "copy", "copies")}`, { className: "soft" }));
  }
  return found;
}

/** Say in a picture's place why there is none. */
async function missing(picture) {
  const said = made("p", "No picture.", { className: "missing" });
  picture.replaceWith(said);
  said.textContent = await reason(picture.src, "The picture cannot be shown.");
}

/** Why an address gives nothing, in the server's words; `other` where it gives something. */
async function reason(address, other) {
  try {
    const answer = await fetch(address, { headers: { Range: "bytes=0-0" } });
    return answer.ok ? other : (await answer.json()).error;
  } catch {
    return "The server does not answer: was it ended?";
  }
}

/** Put a player above the frames, at the moment that was found. */
function player(hit, picture, button) {
  const address = `/video/${hit.row}`;
  const part = hit.start_s === null ? "" : `#t=${hit.start_s},${hit.end_s}`;
  const video = made("video", "", { controls: true, autoplay: true, playsInline: true });
  video.setAttribute("aria-label", hit.name);
  video.addEventListener("error", async () => {
    const other = "This browser cannot play this kind of video; its frames are below.";
    video.replaceWith(made("p", await reason(address, other), { className: "missing" }));
  }, { once: true });
  video.addEventListener("loadedmetadata", () => {
    // A file of sound alone, as a browser sees it that knows the sound and not the picture.
    if (!video.videoWidth) video.dispatchEvent(new Event("error"));
  }, { once: true });
  video.src = address + part;
  button.closest(".card").querySelector("img, .missing").before(video);
  button.remove();
  video.focus();
}

at("form").addEventListener("submit", (event) => {
  event.preventDefault();
  search();
});
at("like").lastElementChild.addEventListener("click", () => {
  like = [];
  showLike();
  search();
});
addEventListener("popstate", () => {
  fill(location.search);
  search({ keep: false });
});
addEventListener("keydown", (event) => {
  if (event.key !== "/" || event.target.closest("input, textarea, select")) return;
  event.preventDefault();
  at("text").focus();
});

async function facts() {
  try {
    const { name, rows, videos, model, session, read_at, problem, mug } = await fetched("/library");
    document.title = `Search ${name}`;
    at("library").textContent = name;
    at("of-mug").hidden = !mug;
    at("facts").textContent = [
      count(videos, "video", "videos"), count(rows, "row", "rows"), model,
      `engine ${session.engine} in ${session.precision} on ${session.device}`, `read ${read_at}`,
    ].join(" · ") + (problem ? ` · ${problem}` : "");
  } catch (e) {
    tell(e.message, "error");
  }
}

facts();
fill(location.search);
if (asked().size) search({ keep: false });
