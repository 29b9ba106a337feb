// The answer of a model, drawn so that "refused" and "nothing found" cannot be mistaken.

import { make } from "./dom.js";
import { STATUS, digits, flagWords, reasonWords, taskWords, worded } from "./words.js";

const list = (value) => (Array.isArray(value) ? value : []);
const isNumber = (value) => typeof value === "number" && Number.isFinite(value);

/** Return the status of a result; whatever is not known is not taken for an answer. */
export const statusOf = (result) => (Object.hasOwn(STATUS, result.status) ? result.status : "refused");

export const boxesOf = (result) => list(result.boxes).filter((box) => box && list(box.box_xyxy_px).length === 4 && box.box_xyxy_px.every(isNumber));

/** Draw an answer; `hooks` are {sliceOf, onBox, onShow, onSave, canSave}. */
export function resultsOf(answer, hooks) {
  const results = list(answer.results).filter((result) => result && typeof result === "object");
  const shown = results.map((result, n) => resultCard(result, n, results.length, hooks));
  if (results.length === 0) shown.push(make("p", { class: "say" }, "The server answered without a result for any series."));
  return [...shown, provenance(answer)];
}

function resultCard(result, number, count, hooks) {
  const status = statusOf(result);
  const { mark, word, says } = STATUS[status];
  const title = count > 1 ? `Series ${number + 1} of ${count}` : "Answer";
  const card = make("article", { class: `result is-${status}`, "aria-label": `${title}: ${word}`, "data-key": result.key ?? "" },
    make("header", {},
      make("h3", {}, title),
      make("span", { class: "chip" }, make("span", { "aria-hidden": "true" }, mark), ` ${word}`)),
    ...(status === "refused" ? refusal(result, says) : finding(result, status, says, hooks)));
  card.append(...conformity(result));
  if (status !== "refused") card.append(actions(result, count, hooks));
  return card;
}

/** Draw a request that got no answer: as little a negative finding as a refused series. */
export function failureCard(error, sentence) {
  const { mend } = reasonWords(error.reason || "");
  const codes = [error.status && `status ${error.status}`, error.reason, error.requestId && `request ${error.requestId}`].filter(Boolean).join(" · ");
  const word = error.status === 422 ? " Refused" : " Failed";
  return make("article", { class: "result is-refused", "aria-label": "No answer" },
    make("header", {}, make("h3", {}, "Answer"), make("span", { class: "chip" }, make("span", { "aria-hidden": "true" }, "✕"), word)),
    make("p", { class: "headline" }, "No answer"), make("p", { class: "say" }, sentence), mend ? make("p", { class: "soft" }, mend) : "",
    make("p", { class: "say" }, "This is not a negative finding."), codes ? make("p", { class: "soft" }, codes) : "");
}

function refusal(result, says) {
  const { meaning, mend } = reasonWords(result.reason ?? "");
  const why = [result.detail, meaning].find((text) => typeof text === "string" && text) || (result.reason ? `${worded(result.reason)}.` : "");
  return [
    make("p", { class: "headline" }, "No answer"), make("p", { class: "say" }, says),
    why ? make("p", { class: "say" }, why[0].toUpperCase() + why.slice(1)) : "",
    mend ? make("p", { class: "soft" }, mend) : "",
    result.reason ? make("p", { class: "soft" }, "Reason code ", make("code", {}, result.reason)) : "",
  ].filter(Boolean);
}

function finding(result, status, says, hooks) {
  const boxes = boxesOf(result);
  const parts = [make("p", { class: "headline" }, headline(result, boxes))];
  if (status === "partial") parts.push(make("p", { class: "say caution" }, says));
  if (isNumber(result.score)) parts.push(bar(result.label ? worded(result.label) : "Score", result.score, result.threshold));
  else if (isNumber(result.mask_threshold ?? result.threshold)) parts.push(make("p", { class: "soft" }, `Threshold ${digits(result.mask_threshold ?? result.threshold)}`));
  const scores = Object.entries(result.class_scores ?? {}).filter(([, value]) => isNumber(value));
  if (scores.length > 0) parts.push(make("h4", {}, "Score of each class"), ...scores.sort((a, b) => b[1] - a[1]).map(([name, value]) => bar(worded(name), value)));
  if (isNumber(result.volume_ml)) parts.push(make("p", { class: "fact" }, "Volume ", make("strong", {}, `${digits(result.volume_ml, 1)} ml`)));
  if (boxes.length > 0) parts.push(boxTable(boxes, hooks));
  return parts;
}

/** Say in one line what was found. */
function headline(result, boxes) {
  if (boxes.length > 0) return `${boxes.length} finding${boxes.length > 1 ? "s" : ""} marked`;
  if (isNumber(result.volume_ml)) return result.volume_ml > 0 ? "A region was marked" : "Nothing found: the mask is empty";
  if (result.label !== null && result.label !== undefined && result.label !== "") return worded(result.label);
  if (isNumber(result.score)) return "Score only";
  return "Nothing found above the threshold";
}

function bar(name, value, threshold) {
  const share = Math.max(0, Math.min(1, value));
  const fill = make("span", { class: "fill" });
  fill.style.width = `${100 * share}%`;
  const track = make("span", { class: "track", role: "img", "aria-label": `${name} ${digits(value)}${isNumber(threshold) ? `, threshold ${digits(threshold)}` : ""}` }, fill);
  if (isNumber(threshold) && threshold >= 0 && threshold <= 1) {
    const tick = make("span", { class: "tick", title: `threshold ${digits(threshold)}` });
    tick.style.left = `${100 * threshold}%`;
    track.append(tick);
  }
  return make("div", { class: "bar" }, make("span", { class: "name" }, name), make("span", { class: "number" }, digits(value)), track,
    isNumber(threshold) ? make("span", { class: "soft" }, `threshold ${digits(threshold)}`) : "");
}

function boxTable(boxes, hooks) {
  const rows = boxes.map((box, n) => {
    const slice = hooks.sliceOf(box);
    const [x1, y1, x2, y2] = list(box.box_xyxy_mm).every(isNumber) && list(box.box_xyxy_mm).length === 4 ? box.box_xyxy_mm : box.box_xyxy_px;
    const unit = list(box.box_xyxy_mm).length === 4 ? "mm" : "px";
    return make("tr", {},
      make("td", {}, make("button", { type: "button", class: "link", onclick: () => hooks.onBox(box, n) }, box.label ? worded(box.label) : `Box ${n + 1}`)),
      make("td", {}, digits(box.score)), hooks.isStack() ? make("td", {}, slice === null ? "–" : String(slice + 1)) : "",
      make("td", {}, `${digits(x2 - x1, 0)} × ${digits(y2 - y1, 0)} ${unit}`));
  });
  const head = ["Finding", "Score", hooks.isStack() ? "Slice" : "", "Size"].filter(Boolean).map((word) => make("th", { scope: "col" }, word));
  return make("div", { class: "table" }, make("table", {}, make("thead", {}, make("tr", {}, ...head)), make("tbody", {}, ...rows)));
}

function conformity(result) {
  const found = result.conformity && typeof result.conformity === "object" ? result.conformity : {};
  const flags = [...new Set([...list(found.flags), ...list(result.flags)].map((flag) => (typeof flag === "string" ? flag : flag?.code ?? flag?.name ?? "")).filter(Boolean))];
  const parts = [];
  if (isNumber(found.score)) parts.push(make("p", { class: "fact" }, "Likeness to the training images ", make("strong", {}, digits(found.score, 2))));
  if (flags.length > 0) parts.push(make("ul", { class: "flags" }, ...flags.map((flag) => make("li", { title: flag }, flagWords(flag)))));
  return parts.length ? [make("h4", {}, "Do the images fit the model?"), ...parts] : [];
}

const FORMS = [["JSON", "application/json"], ["NIfTI", "application/gzip"], ["SEG", "application/dicom"], ["PNG", "image/png"]];

function actions(result, count, hooks) {
  const buttons = FORMS.map(([name, accept]) => make("button", {
    type: "button", class: "small", disabled: !hooks.canSave(accept), "aria-label": `Download ${name}`,
    title: hooks.canSave(accept) ? "" : "This model has no result of this form", onclick: () => hooks.onSave(name, accept, result),
  }, name));
  const show = count > 1 ? make("button", { type: "button", class: "small", onclick: () => hooks.onShow(result) }, "Show this series") : "";
  return make("div", { class: "actions" }, show, make("span", { class: "soft" }, "Download"), ...buttons);
}

function provenance(answer) {
  const rows = [
    ["Model", [answer.model, taskWords(answer.model) !== worded(answer.model ?? "") ? taskWords(answer.model) : ""].filter(Boolean).join(" · ")],
    ["Version", answer.version], ["Weights sha256", answer.weights_sha256], ["Request", answer.request_id], ["Seconds", secondsOf(answer.timing_ms)],
  ].filter(([, value]) => typeof value === "string" && value);
  const facts = make("dl", { class: "facts" }, ...rows.map(([name, value]) => make("div", {}, make("dt", {}, name), make("dd", {}, value))));
  const notice = typeof answer.notice === "string" && answer.notice ? make("p", { class: "notice-line" }, answer.notice) : "";
  return make("section", { class: "provenance", "aria-label": "Where this answer comes from" }, facts, notice);
}

function secondsOf(timing) {
  if (isNumber(timing)) return digits(timing / 1000, 2);
  if (!timing || typeof timing !== "object") return "";
  const known = Object.entries(timing).filter(([, value]) => isNumber(value));
  return known.map(([name, value]) => `${worded(name.replace(/_ms$/, "")).toLowerCase()} ${digits(value / 1000, 2)}`).join(", ");
}
