// The page: takes files in, asks the server, shows what it says. Nothing is kept but the key, and
// that only until the tab is closed, if the user wants it so.

import { RequestError, jobResult, jsonOf, listModels, predict, runJob } from "./api.js";
import { byId, make, saveBlob } from "./dom.js";
import { droppedFiles, imageStack, takeFiles, uploadOfSeries } from "./files.js";
import { readMask } from "./nifti.js";
import { Progress } from "./progress.js";
import { boxesOf, failureCard, resultsOf, statusOf } from "./results.js";
import { Unreadable, sentenceOf } from "./unreadable.js";
import { PRESETS, Viewer } from "./viewer.js";
import { digits, lineOf, loadReasons, sizeWords, taskWords, worded } from "./words.js";

const KEY_NAME = "medray-key";
// Larger uploads become jobs: a connection that breaks while the model works then costs nothing.
const JOB_BYTES = 16 * 1024 * 1024;
const MAX_MASK_BYTES = 1 << 30;

const state = { key: "", models: [], input: null, taking: 0, run: null, answer: null, job: "", shown: null, fetched: new Map() };
const viewer = new Viewer({
  root: byId("viewer"), canvas: byId("canvas"), slider: byId("slider"), track: byId("track"), overlay: byId("overlay"),
  corner: { place: byId("at-place"), window: byId("at-window"), value: byId("at-value"), finding: byId("at-finding") },
  letters: { north: byId("north"), south: byId("south"), east: byId("east"), west: byId("west") },
});

function say(sentence, tone = "") {
  byId("status").textContent = sentence;
  byId("status").className = tone;
}

function note(sentence) {
  byId("viewer-note").textContent = sentence;
  byId("viewer-note").hidden = !sentence;
}

const plain = (error) => (error instanceof RequestError || error instanceof Unreadable ? error.message : "Something went wrong in this page; please reload it.");

// --- key and models ---------------------------------------------------------------------------

async function enter(key, keep) {
  try {
    state.models = await listModels(key);
  } catch (error) {
    const wrong = [401, 403].includes(error.status);
    askKey(wrong && !key ? "" : plain(error));
    return;
  }
  state.key = key;
  if (key && keep) sessionStorage.setItem(KEY_NAME, key);
  byId("key-panel").hidden = true;
  byId("work").hidden = false;
  byId("forget").hidden = !key;
  byId("key").value = "";
  loadReasons();
  showModels();
  say(state.models.length ? "Ready." : "The server has no model.");
}

function askKey(problem) {
  byId("work").hidden = true;
  byId("forget").hidden = true;
  byId("key-panel").hidden = false;
  byId("key-problem").textContent = problem;
  byId("key").setAttribute("aria-invalid", String(Boolean(problem)));
  byId("key").focus();
  say("");
}

function forget() {
  if (state.run) state.run.abort();
  sessionStorage.removeItem(KEY_NAME);
  Object.assign(state, { key: "", models: [], input: null, answer: null });
  location.reload();
}

function showModels() {
  byId("model").replaceChildren(...state.models.map((model) => make("option", { value: model.name }, model.name)));
  describeModel();
}

const chosenModel = () => state.models.find((model) => model.name === byId("model").value) || null;

function describeModel() {
  const model = chosenModel();
  const rows = model ? [
    ["Task", taskWords(model.task)], ["Version", lineOf(model.version)], ["Labels", lineOf(model.labels)],
    ["Takes", lineOf(model.inputs)], ["Gives", lineOf(model.outputs)], ["Thresholds", lineOf(model.thresholds)],
  ] : [];
  byId("model-facts").replaceChildren(...rows.filter(([, text]) => text).map(([name, text]) => make("div", {}, make("dt", {}, name), make("dd", {}, text))));
  ready();
}

// --- files ------------------------------------------------------------------------------------

async function take(files) {
  if (state.run) return;
  const turn = (state.taking += 1);
  clearAnswer();
  state.input = null;
  viewer.clear();
  note("");
  ready();
  say("Reading the files …");
  let input;
  try {
    input = await takeFiles(files, (sentence) => turn === state.taking && say(`${sentence} …`));
  } catch (error) {
    if (turn === state.taking) {
      byId("chosen").textContent = "";
      say(error instanceof Unreadable ? error.message : sentenceOf(error), "bad");
    }
    return;
  }
  if (turn !== state.taking) return;
  state.input = input;
  byId("chosen").textContent = `${input.label}, ${sizeWords(input.upload.blob.size)}`;
  note(input.note);
  await showStacks(input.stacks);
  if (turn !== state.taking) return;
  say(input.stacks.length ? "Ready to run." : "Ready to run; nothing to show yet.");
  ready();
}

async function showStacks(stacks) {
  const options = stacks.map((stack, n) => make("option", { value: n }, stackName(stack, n)));
  byId("stack").replaceChildren(...options);
  byId("stack-choice").hidden = stacks.length < 2;
  if (stacks.length) await showStack(0);
}

const stackName = (stack, n) => `Stack ${n + 1}: ${[stack.modality, `${stack.slices.length} × ${stack.slices[0].width} × ${stack.slices[0].height}`].filter(Boolean).join(", ")}`;

async function showStack(number) {
  const stack = state.input.stacks[number];
  state.shown = stack;
  byId("stack").value = String(number);
  await viewer.show(stack).catch(() => note("This image cannot be shown."));
  if (state.shown === stack && state.answer) await overlay(stack);
}

function ready() {
  byId("run").disabled = Boolean(state.run) || !state.input || !chosenModel();
  byId("run").hidden = Boolean(state.run);
  byId("cancel").hidden = !state.run;
  for (const id of ["files", "folder", "model"]) byId(id).disabled = Boolean(state.run);
  byId("drop").classList.toggle("is-off", Boolean(state.run));
}

// --- run --------------------------------------------------------------------------------------

function clearAnswer() {
  Object.assign(state, { answer: null, job: "", fetched: new Map() });
  byId("results").replaceChildren(make("p", { class: "soft" }, "No result yet."));
}

async function run() {
  const [model, { upload }] = [chosenModel(), state.input];
  state.run = new AbortController();
  clearAnswer();
  viewer.setBoxes([]);
  if (viewer.stack) viewer.setMask(null);
  ready();
  byId("cancel").focus();
  const progress = new Progress(say);
  const hooks = { model: model.name, upload, key: state.key, onUpload: (sent, total) => progress.sent(sent, total, upload.blob.size), signal: state.run.signal };
  try {
    let answer;
    if (upload.blob.size > JOB_BYTES) {
      const job = await runJob({ ...hooks, onState: (job) => progress.followed(job) });
      state.job = job.id;
      answer = job.answer;
    } else answer = await predict({ ...hooks, accept: "application/json" });
    state.answer = await jsonOf(answer.blob);
    state.answerOf = model;
  } catch (error) {
    failed(error);
  } finally {
    state.run = null;
    progress.end();
    ready();
    byId("run").focus();
  }
  // Where all lies below one another, the answer would be out of sight.
  if (window.matchMedia("(max-width: 760px)").matches) byId(state.answer ? "viewer" : "results").scrollIntoView();
  if (state.answer) await showAnswer();
}

function failed(error) {
  if (error.cancelled) {
    say("Cancelled. Nothing was kept by this page.");
    byId("results").replaceChildren(make("p", { class: "soft" }, "Cancelled: there is no result."));
    return;
  }
  say(plain(error), "bad");
  byId("results").replaceChildren(failureCard(error, plain(error)));
}

// --- answer -----------------------------------------------------------------------------------

async function showAnswer() {
  const { answer } = state;
  drawResults();
  const results = Array.isArray(answer.results) ? answer.results : [];
  const refused = results.filter((result) => statusOf(result) === "refused").length;
  say(refused === 0 ? "Done." : refused === results.length ? "Refused: no answer was given." : `Done; ${refused} of ${results.length} series refused.`, refused ? "bad" : "");
  const first = results.find((result) => statusOf(result) !== "refused");
  if (first) await showResult(first);
}

function drawResults() {
  const isStack = () => Boolean(state.shown && state.shown.slices.length > 1);
  byId("results").replaceChildren(...resultsOf(state.answer, { isStack, sliceOf, onBox: showBox, onShow: showResult, onSave: save, canSave }));
}

/** Whether the model says that it has results of a form; a model that says nothing may have any. */
function canSave(accept) {
  const outputs = state.answerOf && state.answerOf.outputs;
  const types = Array.isArray(outputs) ? outputs.filter((type) => typeof type === "string" && type.includes("/")) : [];
  return types.length === 0 || accept === "application/json" || types.includes(accept);
}

/** Return the number of the shown slice that a box lies on, null where there is none. */
function sliceOf(box) {
  const stack = state.shown;
  const [x1, y1, x2, y2] = box.box_xyxy_px;
  if (!stack || x2 <= 0 || y2 <= 0 || x1 >= stack.slices[0].width || y1 >= stack.slices[0].height) return null;
  if (stack.slices.length === 1) return !box.sop_uid || !stack.slices[0].sopUid || stack.slices[0].sopUid === box.sop_uid ? 0 : null;
  const found = stack.slices.flatMap((slice, n) => (box.sop_uid && slice.sopUid === box.sop_uid ? [n] : []));
  // Several frames share one UID: which of them is meant is not said.
  return found.length === 1 ? found[0] : null;
}

const resultOf = (stack) => {
  const results = (state.answer.results || []).filter((result) => statusOf(result) !== "refused");
  return results.find((result) => result.series_uid && result.series_uid === stack.seriesUid) || (results.length === 1 && state.answer.results.length === 1 ? results[0] : null);
};

async function showResult(result) {
  if (!state.input.stacks.length) {
    await preview(result);
    return;
  }
  const number = state.input.stacks.findIndex((stack) => stack.seriesUid === result.series_uid);
  const wanted = state.input.stacks[Math.max(0, number)];
  if (wanted === state.shown) await overlay(wanted);
  else await showStack(Math.max(0, number));
}

/** Draw what was found on the stack that is shown. */
async function overlay(stack) {
  const result = resultOf(stack);
  if (!result) return;
  const boxes = boxesOf(result).map((box) => ({
    corners: box.box_xyxy_px, text: [box.label && worded(box.label), digits(box.score, 2)].filter(Boolean).join(" "), slice: sliceOf(box), box,
  }));
  viewer.setBoxes(boxes);
  const lost = boxes.filter((box) => box.slice === null).length;
  const notes = [state.input.note, lost ? `${lost} of ${boxes.length} boxes lie outside the images shown here.` : ""];
  if (boxes.length > lost) viewer.choose(boxes.find((box) => box.slice !== null));
  if (typeof result.volume_ml === "number" && result.volume_ml > 0) notes.push(await drawMask(stack, result));
  if (state.shown === stack) {
    note(notes.filter(Boolean).join(" "));
    // The table says on which slice of the shown stack a box lies.
    drawResults();
  }
}

/** Fetch and draw the mask; returns what the user should know, "" if all is well. */
async function drawMask(stack, result) {
  byId("viewer").classList.add("is-waiting");
  try {
    const mask = await readMask(await fetchAs("application/gzip", result), MAX_MASK_BYTES);
    if (state.shown !== stack) return "";
    const covered = viewer.setMask(mask);
    if (covered === 0) return elsewhere(stack, mask);
    const telling = viewer.telling();
    if (telling !== null) viewer.go(telling);
    const num = stack.slices.length;
    return covered < num ? `The mask covers ${covered} of the ${num} slices.` : "";
  } catch (error) {
    return `The mask is not drawn. ${plain(error)}`;
  } finally {
    byId("viewer").classList.remove("is-waiting");
  }
}

/** A series may be several stacks: draw the mask on the one whose grid it is. */
function elsewhere(stack, mask) {
  const others = state.input.stacks.filter((other) => other !== stack && other.seriesUid === stack.seriesUid);
  const grid = others.find((other) => other.slices.length === mask.shape[2] && other.slices[0].width === mask.shape[0]);
  const beside = grid ? ` Stack ${state.input.stacks.indexOf(grid) + 1} may be the one it belongs to.` : "";
  return `The mask is not drawn: its grid is not that of the images shown here.${beside}`;
}

/** Show the server's own picture where the browser cannot show the pixels. */
async function preview(result) {
  try {
    const stack = await imageStack(await fetchAs("image/png", result));
    state.shown = null;
    await viewer.show(stack);
    note(`${state.input.note} This is the server's preview picture.`.trim());
  } catch (error) {
    note(`${state.input.note} There is no preview either: ${plain(error)}`.trim());
  }
}

function showBox(box) {
  const found = viewer.boxes.find((one) => one.box === box);
  if (found && found.slice !== null) viewer.choose(found);
  else say("This box lies on an image that is not shown here.", "bad");
}

/** Return a result in another form; asked once, then kept. */
async function fetchAs(accept, result) {
  const name = `${accept} ${result.key ?? result.series_uid ?? ""}`;
  if (!state.fetched.has(name)) state.fetched.set(name, await asked(accept, result));
  return state.fetched.get(name);
}

async function asked(accept, result) {
  const several = (state.answer.results || []).length > 1;
  const own = several ? await uploadOfSeries(state.input.stacks, result.series_uid) : null;
  if (state.job && !several) {
    const found = await jobResult({ id: state.job, accept, key: state.key });
    if (found) return found.blob;
  }
  const answer = await predict({ model: state.answerOf.name, upload: own || state.input.upload, accept, key: state.key });
  if (answer.type !== accept) throw new RequestError("The server has no result of that form.");
  return answer.blob;
}

async function save(name, accept, result) {
  const stem = /^[\w-]{1,64}$/.test(result.key ?? "") ? result.key : "result";
  const suffix = { "application/json": ".json", "application/gzip": ".nii.gz", "application/dicom": ".seg.dcm", "image/png": ".png" }[accept];
  say(`Fetching ${name} …`);
  try {
    const blob = accept === "application/json" ? new Blob([JSON.stringify(state.answer, null, 2)], { type: accept }) : await fetchAs(accept, result);
    saveBlob(blob, stem + suffix);
    say(`${name} saved.`);
  } catch (error) {
    say(`No ${name}: ${plain(error)}`, "bad");
  }
}

// --- wiring -----------------------------------------------------------------------------------

function listen() {
  byId("key-form").addEventListener("submit", (event) => {
    event.preventDefault();
    const key = byId("key").value.trim();
    if (key) enter(key, byId("keep").checked);
    else askKey("Enter a key.");
  });
  byId("forget").addEventListener("click", forget);
  byId("run").addEventListener("click", run);
  byId("cancel").addEventListener("click", () => state.run && state.run.abort());
  byId("model").addEventListener("change", describeModel);
  byId("stack").addEventListener("change", (event) => showStack(Number(event.target.value)));
  for (const id of ["files", "folder"]) {
    byId(`choose-${id}`).addEventListener("click", () => byId(id).click());
    byId(id).addEventListener("change", (event) => {
      const files = [...event.target.files];
      event.target.value = "";
      if (files.length) take(files);
    });
  }
  const drop = byId("drop");
  for (const name of ["dragenter", "dragover"]) document.addEventListener(name, (event) => { event.preventDefault(); drop.classList.add("is-over"); });
  for (const name of ["dragleave", "drop"]) document.addEventListener(name, (event) => { if (name === "drop" || !event.relatedTarget) drop.classList.remove("is-over"); });
  document.addEventListener("drop", async (event) => {
    event.preventDefault();
    if (byId("work").hidden) return;
    const files = await droppedFiles(event.dataTransfer).catch(() => null);
    if (files) take(files);
    else say("The browser could not read what was dropped.", "bad");
  });
  byId("overlay").addEventListener("click", () => viewer.setOverlay(!viewer.overlay));
  byId("opacity").addEventListener("input", (event) => { viewer.opacity = Number(event.target.value); viewer.draw(); });
  byId("reset").addEventListener("click", () => viewer.reset());
  byId("next").addEventListener("click", () => viewer.toNextFinding());
  byId("presets").append(...PRESETS.map(({ name, center, width }, n) =>
    make("button", { type: "button", title: `Width ${width}, level ${center} (key ${n + 1})`, onclick: () => viewer.stack && viewer.setWindow(center, width) }, name)));
}

listen();
clearAnswer();
enter(sessionStorage.getItem(KEY_NAME) || "", true);
