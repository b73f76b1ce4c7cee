"use strict";

const QUESTIONS = {
  quality: "Which picture looks better?",
  alignment: "Which picture shows these words better?",
};
const KEYS = {
  ArrowLeft: () => vote("left"),
  1: () => vote("left"),
  ArrowRight: () => vote("right"),
  2: () => vote("right"),
  ArrowDown: () => vote("equal"),
  "=": () => vote("equal"),
  u: () => undo(),
  "?": () => help(),
};
const SAID = { left: "Picture 1 chosen.", right: "Picture 2 chosen.", equal: "Equal." };
const FLASH_MS = 140;
const LONG = 120; // characters, of a prompt that is set smaller

const $ = (id) => document.getElementById(id);
const token = document.querySelector("meta[name=token]").content;
const sides = { left: $("left"), right: $("right") };
let state = null;
let ready = false; // both pictures are on the screen and no answer is under way
let shownAt = 0;
let ahead = []; // pictures of the next comparisons, loaded before they are wanted

class Trouble extends Error {}

async function ask(path, body) {
  const options = body && {
    method: "POST",
    headers: { "Content-Type": "application/json", "X-Token": token },
    body: JSON.stringify(body),
  };
  let response;
  try {
    response = await fetch(path, options);
  } catch {
    throw new Trouble("The server does not answer. All votes so far are saved: start it again, then reload.");
  }
  if (response.status === 403) throw new Trouble("The server was started anew. Reload to go on.");
  const answer = await response.json();
  if (!response.ok) throw new Trouble(`Not counted: ${answer.error}.`);
  return answer;
}

function complain(error) {
  if (!(error instanceof Trouble)) throw error;
  ready = false;
  $("trouble").querySelector("p").textContent = error.message;
  $("trouble").hidden = false;
  $("reload").focus();
}

async function show(next) {
  state = next;
  const { asked, done, total } = state;
  $("count").textContent = `${done} of ${total} voted`;
  $("voter").textContent = state.voter;
  $("progress").max = total;
  $("progress").value = done;
  $("undo").setAttribute("aria-disabled", String(done === 0));
  $("equal").hidden = !state.equal || !asked;
  $("equal-help").hidden = !state.equal;
  $("actions").hidden = false;
  $("ask").hidden = !asked;
  $("end").hidden = Boolean(asked);
  if (asked) await showPictures(asked);
  else showEnd();
  ready = true;
}

async function showPictures({ prompt, pictures }) {
  $("ask").setAttribute("aria-busy", "true");
  $("question").textContent = QUESTIONS[state.question];
  $("prompt").textContent = prompt;
  $("prompt").classList.toggle("long", prompt.length > LONG);
  const images = Object.values(sides).map((side) => side.querySelector("img"));
  images.forEach((image, i) => {
    image.src = pictures[i];
    image.alt = `Picture ${i + 1}, drawn for: ${prompt}`;
  });
  try {
    await Promise.all(images.map((image) => image.decode()));
  } catch {
    throw new Trouble("A picture cannot be shown; the terminal of the server says why.");
  }
  $("ask").setAttribute("aria-busy", "false");
  shownAt = performance.now();
  ahead = state.ahead.map((address) => Object.assign(new Image(), { src: address }));
}

function showEnd() {
  $("summary").textContent = `${state.done} comparisons are voted on and saved in ${state.out}.`;
  $("command").textContent = `flashbulb elo ${state.out}`;
  $("end").querySelector("h1").focus();
}

async function answer(path, body, said) {
  ready = false;
  try {
    const next = await ask(path, body);
    await show(next);
    $("said").textContent = `${said} ${next.done} of ${next.total} voted.`;
  } catch (error) {
    complain(error);
  }
}

async function vote(choice) {
  if (!ready || !state.asked || (choice === "equal" && !state.equal)) return;
  const body = { comparison: state.asked.id, choice, seconds: (performance.now() - shownAt) / 1000 };
  const marked = choice === "equal" ? $("row") : sides[choice];
  const mark = choice === "equal" ? "equal" : "chosen";
  marked.classList.add(mark);
  ready = false;
  await new Promise((done) => setTimeout(done, FLASH_MS));
  marked.classList.remove(mark);
  await answer("/vote", body, SAID[choice]);
}

async function undo() {
  if (ready && state.done > 0) await answer("/undo", {}, "The last vote is taken back.");
}

function help() {
  if ($("keys").open) $("keys").close();
  else $("keys").showModal();
}

document.addEventListener("keydown", (event) => {
  if (event.repeat && (event.key === "Enter" || event.key === " ")) event.preventDefault(); // one press, one vote
  if (event.ctrlKey || event.altKey || event.metaKey) return;
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  if (!Object.hasOwn(KEYS, key) || ($("keys").open && key !== "?")) return;
  event.preventDefault();
  if (!event.repeat) KEYS[key]();
});
sides.left.addEventListener("click", () => vote("left"));
sides.right.addEventListener("click", () => vote("right"));
$("equal").addEventListener("click", () => vote("equal"));
$("undo").addEventListener("click", () => undo());
$("help").addEventListener("click", () => help());
$("reload").addEventListener("click", () => location.reload());

ask("/state").then(show).catch(complain);
