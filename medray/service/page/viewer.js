// The slice viewer: one stack at a time, by mouse, wheel, touch and keys.

import { lettersOf, maskUnder, orientationOf } from "./geometry.js";
import { compose, maskCanvas, placement, sliceCanvas, windowOf } from "./paint.js";
import { digits } from "./words.js";

export const PRESETS = [
  { name: "Soft tissue", center: 40, width: 400 }, { name: "Lung", center: -600, width: 1500 },
  { name: "Bone", center: 400, width: 1800 }, { name: "Brain", center: 40, width: 80 },
];
const FAR_SLICES = 10;
const WHEEL_STEP = 60;
const CACHED_SLICES = 24;

/** Make the viewer of a page; `parts` are its elements. */
export class Viewer {
  constructor(parts) {
    this.parts = parts;
    this.context = parts.canvas.getContext("2d");
    this.opacity = 0.35;
    this.overlay = true;
    this.clear();
    this.listen();
    new ResizeObserver(() => this.draw()).observe(parts.canvas);
  }

  clear() {
    Object.assign(this, {
      stack: null, index: 0, window: { center: 0, width: 1 }, inverted: false, mask: null, masks: new Map(), boxes: [],
      chosen: null, cache: new Map(), zoom: 1, panX: 0, panY: 0, wheel: 0, shown: null,
    });
    this.parts.root.classList.add("is-empty");
    this.context.clearRect(0, 0, this.parts.canvas.width, this.parts.canvas.height);
  }

  /** Show a stack from its middle; findings of an earlier one are gone. */
  async show(stack) {
    this.clear();
    this.stack = stack;
    this.index = Math.floor((stack.slices.length - 1) / 2);
    this.inverted = Boolean(stack.inverted);
    const pixels = await this.pixels(this.index);
    if (this.stack !== stack) return;
    this.isGrey = Boolean(pixels.values);
    this.isHu = stack.modality === "CT" || (!stack.modality && !stack.isPicture && pixels.values && pixels.values.some((v) => v < -500));
    this.ownWindow = stack.window || (this.isHu ? { ...PRESETS[0] } : this.isGrey ? windowOf(pixels.values) : { center: 127.5, width: 255 });
    this.window = { center: this.ownWindow.center, width: this.ownWindow.width };
    this.parts.root.classList.remove("is-empty");
    this.parts.root.classList.toggle("is-hu", Boolean(this.isHu));
    this.parts.root.classList.toggle("is-single", stack.slices.length < 2);
    this.parts.slider.max = String(stack.slices.length - 1);
    this.parts.slider.disabled = stack.slices.length < 2;
    this.draw();
  }

  /**
   * Draw a mask over the stack, if the stack holds all of the mask or the mask all of the stack;
   * else nothing is drawn rather than a part. Returns how many slices of the stack it covers.
   */
  setMask(mask) {
    this.mask = mask;
    this.masks = new Map();
    if (mask) this.stack.slices.forEach((slice, n) => {
      const under = maskUnder(mask, slice);
      if (under) this.masks.set(n, { ...under, count: under.labels.reduce((sum, label) => sum + (label ? 1 : 0), 0) });
    });
    const covered = [...this.masks.values()];
    const isWhole = covered.length > 0 && new Set(covered.map(({ place }) => place)).size === covered[0].depth;
    if (mask && covered.length < this.stack.slices.length && !isWhole) {
      this.mask = null;
      this.masks = new Map();
    }
    this.draw();
    return this.masks.size;
  }

  /** Draw boxes, each {corners, text, slice}; `slice` is the number of the slice. */
  setBoxes(boxes) {
    this.boxes = boxes;
    this.draw();
  }

  choose(box) {
    this.chosen = box;
    if (box && box.slice !== null) this.go(box.slice);
  }

  /** Return the number of the slice with most of the mask, null without one. */
  telling() {
    let best = null;
    for (const [n, { count }] of this.masks) if (count > 0 && (best === null || count > this.masks.get(best).count)) best = n;
    return best;
  }

  async pixels(index) {
    const { stack, cache } = this;
    if (!cache.has(index)) {
      cache.set(index, stack.slices[index].read());
      if (cache.size > CACHED_SLICES) cache.delete(cache.keys().next().value);
    }
    return cache.get(index);
  }

  go(index) {
    if (!this.stack) return;
    this.index = Math.max(0, Math.min(this.stack.slices.length - 1, index));
    this.draw();
  }

  setWindow(center, width) {
    const range = this.isHu ? [1, 8000] : [1e-3, 1e7];
    this.window = { center, width: Math.max(range[0], Math.min(range[1], width)) };
    this.draw();
  }

  setOverlay(on) {
    this.overlay = on;
    this.parts.overlay.setAttribute("aria-pressed", String(on));
    this.draw();
  }

  reset() {
    Object.assign(this, { zoom: 1, panX: 0, panY: 0, inverted: Boolean(this.stack && this.stack.inverted) });
    if (this.stack) this.window = { center: this.ownWindow.center, width: this.ownWindow.width };
    this.draw();
  }

  /** Draw in the next frame; calls in between are one. */
  draw() {
    if (this.pending) return;
    this.pending = requestAnimationFrame(async () => {
      this.pending = 0;
      if (!this.stack) return;
      const { stack, index } = this;
      let pixels;
      try {
        pixels = await this.pixels(index);
      } catch {
        this.parts.corner.place.textContent = "This slice cannot be shown.";
        return;
      }
      if (stack === this.stack && index === this.index) this.paint(stack.slices[index], pixels);
    });
  }

  paint(slice, pixels) {
    const { canvas } = this.parts;
    const ratio = window.devicePixelRatio || 1;
    const [width, height] = [Math.round(canvas.clientWidth * ratio), Math.round(canvas.clientHeight * ratio)];
    if (!width || !height) return;
    if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
    const place = placement(slice, width, height, { zoom: this.zoom, panX: this.panX * ratio, panY: this.panY * ratio });
    const found = this.overlay && this.masks.get(this.index);
    compose(this.context, slice, place, {
      image: sliceCanvas(slice, pixels, this.window, this.inverted),
      mask: found && found.count ? maskCanvas(found.labels, slice.width, slice.height, this.opacity) : null,
      boxes: this.overlay ? this.boxes.filter((box) => box.slice === this.index).map((box) => ({ ...box, chosen: box === this.chosen })) : [],
    });
    this.shown = { slice, pixels, place, ratio };
    // For tests and for people with a debugger: where the picture lies on the canvas.
    Object.assign(canvas.dataset, { slice: this.index, left: place.left, top: place.top, right: place.right, down: place.down });
    this.tell(slice);
  }

  tell(slice) {
    const { corner, slider, letters } = this.parts;
    const count = this.stack.slices.length;
    const plane = slice.plane ? `${orientationOf(slice.plane)}, ` : "";
    corner.place.textContent = count > 1 ? `${plane}slice ${this.index + 1} of ${count}` : `${plane}${slice.width} × ${slice.height}`;
    corner.window.textContent = `W ${digits(this.window.width, this.isHu ? 0 : 1)}  L ${digits(this.window.center, this.isHu ? 0 : 1)}${this.isHu ? " HU" : ""}`;
    slider.value = String(this.index);
    slider.setAttribute("aria-valuetext", `slice ${this.index + 1} of ${count}`);
    const [east, west] = slice.plane ? lettersOf(slice.plane.right) : ["", ""];
    const [south, north] = slice.plane ? lettersOf(slice.plane.down) : ["", ""];
    Object.entries({ east, west, south, north }).forEach(([side, letter]) => { letters[side].textContent = letter; });
    const here = this.masks.get(this.index);
    const boxes = this.boxes.filter((box) => box.slice === this.index).length;
    const parts = [];
    if (this.masks.size && !here) parts.push("not part of the mask's volume");
    else if (this.masks.size) parts.push(here.count ? `mask: ${here.count} pixels here` : "no mask on this slice");
    if (this.boxes.length) parts.push(`${boxes} box${boxes === 1 ? "" : "es"} here`);
    corner.finding.textContent = parts.length && !this.overlay ? "overlay off" : parts.join(", ");
    this.drawTrack();
  }

  /** Mark above the slider which slices hold something. */
  drawTrack() {
    const { track } = this.parts;
    const ratio = window.devicePixelRatio || 1;
    Object.assign(track, { width: Math.round(track.clientWidth * ratio), height: Math.round(track.clientHeight * ratio) });
    const context = track.getContext("2d");
    const count = this.stack.slices.length;
    if (count < 2 || !track.width) return;
    // The thumb's middle travels from half its width to half its width before the end.
    const inset = 8 * ratio;
    const at = (n) => inset + (n / (count - 1)) * (track.width - 2 * inset);
    const wide = Math.max(2 * ratio, (track.width - 2 * inset) / count);
    const most = Math.max(1, ...[...this.masks.values()].map(({ count: pixels }) => pixels));
    context.fillStyle = "rgb(255,110,60)";
    for (const [n, { count: pixels }] of this.masks) {
      const tall = pixels ? Math.max(0.25, Math.sqrt(pixels / most)) * track.height : 0;
      context.fillRect(at(n) - wide / 2, track.height - tall, wide, tall);
    }
    context.fillStyle = "#ffd54a";
    for (const { slice } of this.boxes) if (slice !== null) context.fillRect(at(slice) - wide / 2, 0, wide, track.height);
  }

  listen() {
    const { canvas, slider } = this.parts;
    slider.addEventListener("input", () => this.go(Number(slider.value)));
    canvas.addEventListener("wheel", (event) => this.onWheel(event), { passive: false });
    canvas.addEventListener("pointerdown", (event) => this.onDrag(event));
    canvas.addEventListener("pointermove", (event) => this.onHover(event));
    canvas.addEventListener("pointerleave", () => { this.parts.corner.value.textContent = ""; });
    canvas.addEventListener("contextmenu", (event) => event.preventDefault());
    canvas.addEventListener("dblclick", () => this.reset());
    canvas.addEventListener("keydown", (event) => {
      if (!event.ctrlKey && !event.metaKey && !event.altKey && this.onKey(event.key)) event.preventDefault();
    });
  }

  onWheel(event) {
    if (!this.stack) return;
    event.preventDefault();
    if (event.ctrlKey) {
      this.zoomBy(Math.exp(-event.deltaY / 300));
      return;
    }
    // Lines (mouse of old) count more than pixels; touch pads send many small steps.
    this.wheel += event.deltaMode === 1 ? event.deltaY * WHEEL_STEP : event.deltaY;
    const steps = Math.trunc(this.wheel / WHEEL_STEP);
    if (steps) {
      this.wheel -= steps * WHEEL_STEP;
      this.go(this.index + steps);
    }
  }

  zoomBy(factor) {
    this.zoom = Math.max(0.5, Math.min(16, this.zoom * factor));
    this.draw();
  }

  onDrag(event) {
    if (!this.stack) return;
    const { canvas } = this.parts;
    const moves = event.button !== 0 || event.shiftKey;
    const start = { x: event.clientX, y: event.clientY, ...this.window, panX: this.panX, panY: this.panY };
    const speed = Math.max(start.width, this.isHu ? 50 : start.width) / 250;
    canvas.setPointerCapture(event.pointerId);
    const onMove = (move) => {
      const [dx, dy] = [move.clientX - start.x, move.clientY - start.y];
      if (moves) {
        Object.assign(this, { panX: start.panX + dx, panY: start.panY + dy });
        this.draw();
      } else this.setWindow(start.center - dy * speed, start.width + dx * speed);
    };
    canvas.addEventListener("pointermove", onMove);
    const stop = () => canvas.removeEventListener("pointermove", onMove);
    ["pointerup", "pointercancel"].forEach((name) => canvas.addEventListener(name, stop, { once: true }));
  }

  onHover(event) {
    if (!this.shown || !this.stack) return;
    const { slice, pixels, place, ratio } = this.shown;
    const i = Math.floor((event.offsetX * ratio - place.left) / place.right);
    const j = Math.floor((event.offsetY * ratio - place.top) / place.down);
    const inside = i >= 0 && j >= 0 && i < slice.width && j < slice.height;
    const value = inside && pixels.values ? `: ${digits(pixels.values[j * slice.width + i], this.isHu ? 0 : 1)}${this.isHu ? " HU" : ""}` : "";
    this.parts.corner.value.textContent = inside ? `${i}, ${j}${value}` : "";
  }

  /** Act on a key; returns whether it meant anything. */
  onKey(key) {
    if (!this.stack) return false;
    const { center, width } = this.window;
    const actions = {
      ArrowDown: () => this.go(this.index + 1), ArrowUp: () => this.go(this.index - 1),
      ArrowRight: () => this.go(this.index + 1), ArrowLeft: () => this.go(this.index - 1),
      PageDown: () => this.go(this.index + FAR_SLICES), PageUp: () => this.go(this.index - FAR_SLICES),
      Home: () => this.go(0), End: () => this.go(this.stack.slices.length - 1),
      o: () => this.setOverlay(!this.overlay), i: () => { this.inverted = !this.inverted; this.draw(); },
      r: () => this.reset(), f: () => this.toNextFinding(),
      "[": () => this.setWindow(center, width * 0.9), "]": () => this.setWindow(center, width / 0.9),
      ",": () => this.setWindow(center - width * 0.05, width), ".": () => this.setWindow(center + width * 0.05, width),
      "+": () => this.zoomBy(1.25), "=": () => this.zoomBy(1.25), "-": () => this.zoomBy(0.8),
    };
    const preset = /^[1-9]$/.test(key) && this.isHu ? PRESETS[Number(key) - 1] : null;
    if (preset) this.setWindow(preset.center, preset.width);
    else if (Object.hasOwn(actions, key)) actions[key]();
    else return false;
    return true;
  }

  toNextFinding() {
    const slices = new Set(this.boxes.map(({ slice }) => slice).filter((slice) => slice !== null));
    for (const [n, { count }] of this.masks) if (count) slices.add(n);
    const sorted = [...slices].sort((a, b) => a - b);
    if (sorted.length) this.go(sorted.find((n) => n > this.index) ?? sorted[0]);
  }
}
