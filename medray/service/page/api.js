// The server's routes. Addresses are relative, so that the page also works below a prefix.

const REASONS = {
  401: "The server wants an API key.",
  403: "The server does not accept this key, or not for this.",
  404: "The server does not know this model or job.",
  406: "This model has no result of that form.",
  409: "The upload holds several series; such a file can be had for one series at a time.",
  413: "The upload is larger than the server takes.",
  415: "The server does not take files of this type.",
  422: "The server cannot use this input.",
  429: "The server is busy.",
  503: "The server or this model is not ready.",
};

/** What went wrong, as a sentence; `status` is 0 where no answer came. */
export class RequestError extends Error {
  constructor(sentence, { status = 0, reason = "", requestId = "", retryAfter = null, cancelled = false } = {}) {
    super(sentence);
    Object.assign(this, { status, reason, requestId, retryAfter, cancelled });
  }
}

const cancelledError = () => new RequestError("Cancelled.", { cancelled: true });

/** Send one request; resolves to {status, type, blob}, rejects with a RequestError. */
export function send({ method = "GET", path, key = "", body = null, accept = "application/json", onUpload, signal }) {
  return new Promise((resolve, reject) => {
    if (signal && signal.aborted) {
      reject(cancelledError());
      return;
    }
    const request = new XMLHttpRequest();
    request.open(method, path);
    request.responseType = "blob";
    request.setRequestHeader("Accept", accept);
    // A header takes Latin-1 only, and a key is plain ASCII.
    if (key) request.setRequestHeader("X-API-Key", key.replace(/[^\x21-\x7e]/g, ""));
    const abort = () => request.abort();
    if (signal) signal.addEventListener("abort", abort);
    request.onloadend = () => signal && signal.removeEventListener("abort", abort);
    if (onUpload) request.upload.onprogress = (event) => onUpload(event.loaded, event.total);
    request.onerror = () => reject(new RequestError("The server did not answer, or closed the connection. Is it running, and the upload not too large?"));
    request.onabort = () => reject(cancelledError());
    request.onload = async () => {
      const type = (request.getResponseHeader("Content-Type") || "").split(";")[0].trim().toLowerCase();
      if (request.status >= 200 && request.status < 300) resolve({ status: request.status, type, blob: request.response });
      else reject(await problemOf(request, type));
    };
    request.send(body);
  });
}

async function problemOf(request, type) {
  const wait = Number(request.getResponseHeader("Retry-After") || NaN);
  const status = request.status;
  let problem = {};
  if (/json$/.test(type)) problem = await jsonOf(request.response).catch(() => ({}));
  const text = (value) => (typeof value === "string" ? value : "");
  let sentence = sentenceCase(text(problem.detail) || text(problem.title)) || REASONS[status] || `The server answered with status ${status}.`;
  if (Number.isFinite(wait) && wait >= 0) sentence += ` Try again in ${Math.max(1, Math.ceil(wait))} s.`;
  return new RequestError(sentence, {
    status, reason: text(problem.reason), requestId: text(problem.request_id), retryAfter: Number.isFinite(wait) ? wait : null,
  });
}

function sentenceCase(text) {
  if (!text) return "";
  const begun = text[0].toUpperCase() + text.slice(1);
  return /[.!?]$/.test(begun) ? begun : `${begun}.`;
}

/** Read a JSON answer; never anything but an object or a list. */
export async function jsonOf(blob) {
  try {
    const found = JSON.parse(await blob.text());
    if (found && typeof found === "object") return found;
  } catch { /* said below */ }
  throw new RequestError("The server's answer could not be read.");
}

/** Return the models as a list of {name, task, ...}. */
export async function listModels(key, signal) {
  const found = await jsonOf((await send({ path: "v1/models", key, signal })).blob);
  const listed = Array.isArray(found) ? found : found.models ?? found;
  const models = Array.isArray(listed) ? listed : Object.entries(listed).map(([name, model]) => ({ name, ...model }));
  return models.filter((model) => model && typeof model.name === "string");
}

function form(upload, fields = {}) {
  const body = new FormData();
  for (const [name, value] of Object.entries(fields)) body.append(name, value);
  body.append("file", upload.blob, upload.name);
  return body;
}

/** Ask a model and wait for its answer. */
export const predict = ({ model, upload, accept, key, onUpload, signal }) =>
  send({ method: "POST", path: `v1/models/${encodeURIComponent(model)}/predict`, key, accept, body: form(upload), onUpload, signal });

const pause = (ms, signal) => new Promise((resolve, reject) => {
  const timer = setTimeout(resolve, ms);
  if (signal) signal.addEventListener("abort", () => { clearTimeout(timer); reject(cancelledError()); }, { once: true });
});

// Seconds between looks at a job, and how many looks in a row may fail.
const [FIRST_LOOK_S, LONGEST_LOOK_S, MAX_FAILED_LOOKS] = [0.4, 3, 8];

/** Hand a large upload in as a job and follow it; resolves to {id, answer}. */
export async function runJob({ model, upload, key, onUpload, onState, signal }) {
  const posted = await send({ method: "POST", path: "v1/jobs", key, body: form(upload, { model }), onUpload, signal });
  const { id } = await jsonOf(posted.blob);
  if (typeof id !== "string" || !id) throw new RequestError("The server's answer could not be read.");
  // The job's own address would do as well, but the key is sent to this server alone.
  const path = `v1/jobs/${encodeURIComponent(id)}`;
  let wait = FIRST_LOOK_S;
  for (let failed = 0; ;) {
    await pause(wait * 1000, signal);
    wait = Math.min(wait * 1.4, LONGEST_LOOK_S);
    let job;
    try {
      job = await jsonOf((await send({ path, key, signal })).blob);
      failed = 0;
    } catch (error) {
      failed += 1;
      const passing = [0, 429, 502, 503, 504].includes(error.status) && !error.cancelled;
      if (!passing || failed > MAX_FAILED_LOOKS) throw error;
      wait = Math.max(wait, error.retryAfter || 0);
      continue;
    }
    onState(job);
    if (job.state === "failed") throw new RequestError(sentenceCase(String(job.detail || job.reason || "The job failed")), { status: 422, reason: String(job.reason || "") });
    if (job.state === "done") return { id, answer: await send({ path: `${path}/result`, key, signal }) };
  }
}

/** Ask for a job's result in another form; null where the server only has JSON of it. */
export async function jobResult({ id, accept, key, signal }) {
  try {
    const found = await send({ path: `v1/jobs/${encodeURIComponent(id)}/result`, key, accept, signal });
    return found.type === accept ? found : null;
  } catch (error) {
    if (error.status === 409 || error.cancelled) throw error;
    return null;
  }
}
