// DICOM files as stacks of slices to show; pixels are decoded when a slice is looked at.

import { TAGS, itemOf, numbersOf, readElements, shortOf, syntaxName, textOf } from "./dicom_elements.js";
import { cross, dot, isFinite3, length, scaled } from "./geometry.js";
import { Unreadable } from "./unreadable.js";

const GREY = new Set(["MONOCHROME1", "MONOCHROME2"]);
const COLOUR = new Set(["RGB", "YBR_FULL"]);

/** Read one file: {seriesUid, frames, hidden}; `hidden` says why its pixels are not shown. */
export function readDicom(buffer) {
  const file = readElements(buffer);
  const shared = {
    seriesUid: textOf(file, TAGS.seriesUid), sopUid: textOf(file, TAGS.sopUid), modality: textOf(file, TAGS.modality),
  };
  if (!file.isPlain) {
    const hidden = `The pixels are compressed (${syntaxName(file.syntax)}), which this page does not decode.`;
    return { ...shared, frames: [], hidden };
  }
  if (!file.elements.has(TAGS.pixels)) return { ...shared, frames: [], hidden: "The object has no image." };
  const layout = layoutOf(file);
  if (typeof layout === "string") return { ...shared, frames: [], hidden: layout };
  const count = (numbersOf(file, TAGS.frames) || [1])[0];
  const { at, length: stored } = file.elements.get(TAGS.pixels);
  if (!(Number.isInteger(count) && count >= 1 && count <= 100000) || count * layout.frameBytes > Math.min(stored, buffer.byteLength - at)) {
    throw new Unreadable("There are fewer pixels in the file than its header says.");
  }
  const frames = Array.from({ length: count }, (_, n) => frameOf(file, layout, n, at + n * layout.frameBytes, shared, count));
  return { ...shared, frames, hidden: "" };
}

function layoutOf(file) {
  const [rows, columns] = [shortOf(file, TAGS.rows), shortOf(file, TAGS.columns)];
  const allocated = shortOf(file, TAGS.allocated);
  const samples = shortOf(file, TAGS.samples, 1);
  const photometric = textOf(file, TAGS.photometric);
  if (!rows || !columns) throw new Unreadable("The header does not say how large the image is.");
  const known = (GREY.has(photometric) && samples === 1 && [8, 16, 32].includes(allocated))
    || (COLOUR.has(photometric) && samples === 3 && allocated === 8);
  if (!known) return "The pixels are laid out in a way that this page does not show.";
  const bits = shortOf(file, TAGS.stored, allocated);
  return {
    rows, columns, allocated, samples, photometric, bits: bits >= 1 && bits <= allocated ? bits : allocated,
    signed: shortOf(file, TAGS.signed, 0) === 1, planar: shortOf(file, TAGS.planar, 0) === 1,
    frameBytes: rows * columns * samples * (allocated / 8),
  };
}

/** Look a value up for one frame: in its functional group, in the shared one, in the file. */
function lookup(file, number) {
  const groups = [itemOf(file, TAGS.perFrame, number), itemOf(file, TAGS.shared)];
  return (group, tag) => {
    for (const outer of groups) {
      const inner = outer && itemOf(outer, group);
      const found = inner && numbersOf(inner, tag);
      if (found) return found;
    }
    return null;
  };
}

function frameOf(file, layout, number, at, shared, count) {
  const find = lookup(file, number);
  const grouped = file.elements.has(TAGS.perFrame);
  const pick = (group, tag) => find(group, tag) || numbersOf(file, tag);
  const orientation = pick(TAGS.planeOrientation, TAGS.orientation);
  // The one position of a plain file with several frames is that of its first frame at best.
  const position = count > 1 && !grouped ? null : pick(TAGS.planePosition, TAGS.position);
  const spacing = pick(TAGS.measures, TAGS.spacing) || numbersOf(file, TAGS.imagerSpacing);
  const slope = (pick(TAGS.transformation, TAGS.slope) || [1])[0];
  const intercept = (pick(TAGS.transformation, TAGS.intercept) || [0])[0];
  const center = pick(TAGS.voi, TAGS.center);
  const width = pick(TAGS.voi, TAGS.width);
  return {
    ...shared, width: layout.columns, height: layout.rows,
    plane: planeOf(position, orientation, spacing), spacing: spacing && spacing.length === 2 ? spacing : null,
    inverted: layout.photometric === "MONOCHROME1",
    window: center && width && width[0] >= 1 ? { center: center[0], width: width[0] } : null,
    order: (numbersOf(file, TAGS.instance) || [0])[0] * 100000 + number,
    orientation, acquisition: textOf(file, TAGS.acquisition),
    // A file of several frames is a stack by itself.
    kind: [
      shared.seriesUid, layout.rows, layout.columns, textOf(file, TAGS.imageType), textOf(file, TAGS.echo), count > 1 ? shared.sopUid : "",
    ].join("|"),
    read: async () => pixelsOf(file.view.buffer, at, layout, slope, intercept),
  };
}

function planeOf(position, orientation, spacing) {
  if (!position || !orientation || !spacing || !isFinite3(position) || orientation.length !== 6 || spacing.length !== 2) return null;
  const [row, column] = [orientation.slice(0, 3), orientation.slice(3)];
  const unit = Math.abs(length(row) - 1) < 1e-2 && Math.abs(length(column) - 1) < 1e-2 && Math.abs(dot(row, column)) < 1e-2;
  if (!unit || !spacing.every((value) => value > 0)) return null;
  return { origin: position, right: scaled(row, spacing[1]), down: scaled(column, spacing[0]) };
}

function pixelsOf(buffer, at, layout, slope, intercept) {
  if (layout.samples === 3) return { rgba: rgbaOf(new Uint8Array(buffer, at, layout.frameBytes), layout) };
  const Kind = { 8: Uint8Array, 16: Uint16Array, 32: Uint32Array }[layout.allocated];
  const stored = new Kind(buffer.slice(at, at + layout.frameBytes));
  const values = new Float32Array(stored.length);
  // Bits above those stored may hold an overlay: shifted out, and the sign comes with them.
  const shift = 32 - layout.bits;
  for (let n = 0; n < stored.length; n += 1) {
    const moved = stored[n] << shift;
    values[n] = (layout.signed ? moved >> shift : moved >>> shift) * slope + intercept;
  }
  return { values };
}

function rgbaOf(bytes, { rows, columns, planar, photometric }) {
  const area = rows * columns;
  const out = new Uint8ClampedArray(area * 4);
  for (let n = 0; n < area; n += 1) {
    const at = planar ? [n, area + n, 2 * area + n] : [3 * n, 3 * n + 1, 3 * n + 2];
    const [a, b, c] = [bytes[at[0]], bytes[at[1]] - 128, bytes[at[2]] - 128];
    out.set(photometric === "RGB" ? [bytes[at[0]], bytes[at[1]], bytes[at[2]], 255]
      : [a + 1.402 * c, a - 0.344136 * b - 0.714136 * c, a + 1.772 * b, 255], 4 * n);
  }
  return out;
}

// As the server has them: cosines and millimetres that differ less are the same.
const [SAME_COSINE, SAME_SPACING] = [1e-3, 1e-3];
const MIN_SLICES = 3;

const isClose = (a, b, tolerance) => (a && b ? a.length === b.length && a.every((value, n) => Math.abs(value - b[n]) <= tolerance) : !a && !b);
const isAlike = (a, b) => isClose(a.orientation, b.orientation, SAME_COSINE) && isClose(a.spacing, b.spacing, SAME_SPACING);

/** Group frames of all files into stacks as the server does, each in the order along its normal. */
export function stacksOf(files) {
  const kinds = new Map();
  for (const { file, blob } of files) {
    for (const frame of file.frames) {
      if (!kinds.has(frame.kind)) kinds.set(frame.kind, []);
      const groups = kinds.get(frame.kind);
      const group = groups.find(([first]) => isAlike(first, frame));
      if (group) group.push({ ...frame, blob });
      else groups.push([{ ...frame, blob }]);
    }
  }
  const stacks = [...kinds.values()].flat().flatMap((frames) => passes(frames).map(stackOf));
  return stacks.sort((a, b) => b.slices.length - a.slices.length);
}

/**
 * Split frames that lie alike by their acquisition: each is a pass over the body. Scanners that
 * step and shoot count each step; those tile the body one after the other and stay together.
 */
function passes(frames) {
  const byNumber = new Map();
  for (const frame of frames) byNumber.set(frame.acquisition, [...(byNumber.get(frame.acquisition) || []), frame]);
  const parts = [...byNumber.values()];
  if (parts.length === 1) return parts;
  const { slices } = stackOf(frames);
  const changes = slices.filter((slice, n) => n > 0 && slice.acquisition !== slices[n - 1].acquisition).length;
  const isSteps = Math.min(...parts.map((part) => part.length)) < MIN_SLICES && changes === parts.length - 1;
  return isSteps ? [frames] : parts;
}

function stackOf(frames) {
  const placed = frames.every((frame) => frame.plane);
  const first = frames[0];
  const normal = placed ? cross(first.plane.right, first.plane.down) : null;
  const height = (frame) => (placed ? dot(frame.plane.origin, normal) : frame.order);
  const slices = [...frames].sort((a, b) => height(a) - height(b) || a.order - b.order);
  return { slices, seriesUid: first.seriesUid, modality: first.modality, window: first.window, inverted: first.inverted };
}
