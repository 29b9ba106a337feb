// The data elements of one DICOM file, little endian; pixels stay where they are.

import { Unreadable } from "./unreadable.js";

export const TAGS = {
  syntax: 0x00020010, imageType: 0x00080008, sopUid: 0x00080018, modality: 0x00080060, seriesUid: 0x0020000e,
  acquisition: 0x00200012, echo: 0x00180086, position: 0x00200032, orientation: 0x00200037, instance: 0x00200013,
  samples: 0x00280002, photometric: 0x00280004, planar: 0x00280006, frames: 0x00280008, rows: 0x00280010,
  columns: 0x00280011, spacing: 0x00280030, imagerSpacing: 0x00181164, allocated: 0x00280100, stored: 0x00280101,
  signed: 0x00280103, center: 0x00281050, width: 0x00281051, intercept: 0x00281052, slope: 0x00281053,
  shared: 0x52009229, perFrame: 0x52009230, planePosition: 0x00209113, planeOrientation: 0x00209116,
  measures: 0x00289110, transformation: 0x00289145, voi: 0x00289132, pixels: 0x7fe00010,
};
// In implicit VR nothing else says that these hold items.
const SEQUENCES = new Set([TAGS.shared, TAGS.perFrame, TAGS.planePosition, TAGS.planeOrientation, TAGS.measures, TAGS.transformation, TAGS.voi]);
const LONG = new Set(["OB", "OD", "OF", "OL", "OV", "OW", "SQ", "SV", "UC", "UN", "UR", "UT", "UV"]);
const ITEM = 0xfffee000;
const ITEM_END = 0xfffee00d;
const SEQUENCE_END = 0xfffee0dd;
const UNDEFINED = 0xffffffff;
const MAX_DEPTH = 16;
const IMPLICIT = "1.2.840.10008.1.2";
const READABLE = new Set([IMPLICIT, "1.2.840.10008.1.2.1"]);
const NAMES = [
  [/\.4\.50$/, "JPEG"], [/\.4\.51$/, "JPEG, 12 bit"], [/\.4\.(57|70)$/, "JPEG lossless"], [/\.4\.8[01]$/, "JPEG-LS"],
  [/\.4\.(9[0123])$/, "JPEG 2000"], [/\.4\.20[123]$/, "high-throughput JPEG 2000"], [/\.2\.5$/, "RLE"],
  [/\.2\.1\.99$/, "deflated"], [/\.2\.2$/, "big-endian"], [/\.4\.10\d/, "video"],
];

/** Return a plain name of a transfer syntax. */
export const syntaxName = (uid) => (NAMES.find(([pattern]) => pattern.test(uid)) || [0, "an unknown way"])[1];

/** Read a file: {elements, syntax, isPlain, buffer}. Elements map a tag to {at, length, vr} or {items}. */
export function readElements(buffer) {
  const reader = { view: new DataView(buffer), implicit: false };
  const hasMark = buffer.byteLength > 132 && latin(reader.view, 128, 4) === "DICM";
  let at = hasMark ? 132 : 0;
  let syntax = "";
  if (hasMark) {
    const meta = metaOf(reader, at);
    at = meta.next;
    syntax = textOf({ view: reader.view, elements: meta.elements }, TAGS.syntax);
    reader.implicit = syntax === IMPLICIT;
  } else {
    if (buffer.byteLength < 8 || ![2, 8].includes(reader.view.getUint16(0, true))) throw new Unreadable("The file is not DICOM.");
    reader.implicit = !/^[A-Z]{2}$/.test(latin(reader.view, 4, 2));
    syntax = reader.implicit ? IMPLICIT : "1.2.840.10008.1.2.1";
  }
  // Big endian and deflated data cannot be walked; every other syntax has an explicit, plain header.
  if (/\.1\.2\.2$|\.1\.2\.1\.99$/.test(syntax)) return { view: reader.view, elements: new Map(), syntax, isPlain: false };
  const { elements } = dataset(reader, at, buffer.byteLength, 0);
  return { view: reader.view, elements, syntax, isPlain: READABLE.has(syntax) };
}

function metaOf(reader, start) {
  const elements = new Map();
  let at = start;
  while (at + 8 <= reader.view.byteLength && reader.view.getUint16(at, true) === 2) {
    const head = headAt(reader, at);
    elements.set(head.tag, { at: head.body, length: head.length, vr: head.vr });
    at = head.body + head.length;
  }
  return { elements, next: at };
}

const latin = (view, at, count) => String.fromCharCode(...new Uint8Array(view.buffer, at, count));

function headAt({ view, implicit }, at) {
  const tag = ((view.getUint16(at, true) << 16) | view.getUint16(at + 2, true)) >>> 0;
  if (implicit || tag >>> 16 === 0xfffe) return { tag, vr: "", length: view.getUint32(at + 4, true), body: at + 8 };
  const vr = latin(view, at + 4, 2);
  if (!/^[A-Z]{2}$/.test(vr)) throw new Unreadable("The DICOM header is damaged.");
  if (LONG.has(vr)) return { tag, vr, length: view.getUint32(at + 8, true), body: at + 12 };
  return { tag, vr, length: view.getUint16(at + 6, true), body: at + 8 };
}

function dataset(reader, start, end, depth) {
  if (depth > MAX_DEPTH) throw new Unreadable("The header is nested too deeply.");
  const elements = new Map();
  let at = start;
  while (at + 8 <= end) {
    const { tag, vr, length, body } = headAt(reader, at);
    if (tag === ITEM_END) return { elements, next: body };
    if (tag === TAGS.pixels) {
      elements.set(tag, { at: body, length, vr });
      if (depth === 0) break;
    }
    if (vr === "SQ" || length === UNDEFINED || (reader.implicit && SEQUENCES.has(tag))) {
      // Unknown VR of undefined length holds implicit items (PS3.5 6.2.2).
      const inner = vr === "UN" ? { ...reader, implicit: true } : reader;
      const sequence = items(inner, body, length === UNDEFINED ? end : within(body + length, end), length === UNDEFINED, depth + 1);
      elements.set(tag, { items: sequence.list });
      at = length === UNDEFINED ? sequence.next : body + length;
    } else {
      elements.set(tag, { at: body, length, vr });
      at = within(body + length, end);
    }
  }
  return { elements, next: at };
}

function within(at, end) {
  if (at > end) throw new Unreadable("The DICOM file ends before its data does.");
  return at;
}

function items(reader, start, end, untilMark, depth) {
  const list = [];
  let at = start;
  while (at + 8 <= end) {
    const { tag, length, body } = headAt(reader, at);
    if (tag === SEQUENCE_END) return { list, next: body };
    if (tag !== ITEM) throw new Unreadable("The DICOM header is damaged.");
    const stop = length === UNDEFINED ? end : within(body + length, end);
    const inner = dataset(reader, body, stop, depth);
    list.push(inner.elements);
    at = length === UNDEFINED ? inner.next : stop;
  }
  if (untilMark) throw new Unreadable("The DICOM file ends before its data does.");
  return { list, next: at };
}

/** Return an element's text without padding, "" where there is none. */
export function textOf({ view, elements }, tag) {
  const element = elements.get(tag);
  if (!element || element.items || element.length > 4096) return "";
  const size = Math.max(0, Math.min(element.length, view.byteLength - element.at));
  return latin(view, element.at, size).replace(/[\0 ]+$/, "").trim();
}

/** Return an element's numbers; null where it is absent, malformed or not finite. */
export function numbersOf(file, tag) {
  const text = textOf(file, tag);
  if (!text) return null;
  const found = text.split("\\").map((part) => (part.trim() === "" ? NaN : Number(part)));
  return found.every((value) => Number.isFinite(value) && Math.abs(value) < 1e12) ? found : null;
}

/** Return an unsigned 16-bit element, or the default. */
export function shortOf({ view, elements }, tag, otherwise = null) {
  const element = elements.get(tag);
  return element && !element.items && element.length >= 2 ? view.getUint16(element.at, true) : otherwise;
}

/** Return the first item of a sequence as a file of its own, null where there is none. */
export function itemOf({ view, elements }, tag, number = 0) {
  const element = elements.get(tag);
  const item = element && element.items && element.items[number];
  return item ? { view, elements: item } : null;
}
