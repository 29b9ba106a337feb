// How far a request is: the bar, the seconds and a sentence.

import { byId } from "./dom.js";
import { sizeWords } from "./words.js";

const WORDS = { queued: "Waiting for a free model …", running: "The model is working …", done: "Fetching the result …" };

export class Progress {
  /** Start; `say` shows a sentence. */
  constructor(say) {
    this.say = say;
    this.bar = byId("progress");
    this.bar.hidden = false;
    this.bar.removeAttribute("value");
    const since = Date.now();
    this.clock = setInterval(() => { byId("elapsed").textContent = `${Math.round((Date.now() - since) / 1000)} s`; }, 1000);
  }

  /** Tell of bytes on their way, `total` as the browser counts them. */
  sent(sent, total, bytes) {
    if (sent < total) {
      this.bar.value = sent / total;
      this.say(`Uploading: ${sizeWords(sent)} of ${sizeWords(bytes)}`);
    } else {
      this.bar.removeAttribute("value");
      this.say("Uploaded. The model is working …");
    }
  }

  /** Tell of a job's state; its progress is a share, or percent. */
  followed(job) {
    const share = typeof job.progress === "number" ? Math.max(0, Math.min(1, job.progress > 1 ? job.progress / 100 : job.progress)) : null;
    const isKnown = share !== null && job.state === "running";
    if (isKnown) this.bar.value = share;
    else this.bar.removeAttribute("value");
    if (Object.hasOwn(WORDS, job.state)) this.say(`${WORDS[job.state]}${isKnown ? ` ${Math.round(100 * share)} %` : ""}`);
  }

  end() {
    clearInterval(this.clock);
    byId("elapsed").textContent = "";
    this.bar.hidden = true;
  }
}
