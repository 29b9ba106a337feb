// What the user dropped: what is sent, and what of it can be shown before an answer is there.

import { readDicom, stacksOf } from "./dicom.js";
import { readNifti, slicesOfNifti } from "./nifti.js";
import { Unreadable, bytesOf, sentenceOf } from "./unreadable.js";
import { listZip, storedZip } from "./zip.js";

// Held in memory at once; what is larger is sent, not shown.
const MAX_SHOWN_BYTES = 1 << 30;
const MAX_IMAGE_PIXELS = 1 << 26;

/** Return what a blob is by its first bytes: zip, dicom, png, jpeg, nifti, or "". */
export async function kindOf(blob) {
  const bytes = new Uint8Array(await bytesOf(blob.slice(0, 132)));
  const view = new DataView(bytes.buffer);
  const text = String.fromCharCode(...bytes);
  if (text.startsWith("PK\x03\x04") || text.startsWith("PK\x05\x06")) return "zip";
  if (text.slice(128, 132) === "DICM") return "dicom";
  if (text.startsWith("\x89PNG")) return "png";
  if (text.startsWith("\xff\xd8\xff")) return "jpeg";
  if (text.startsWith("\x1f\x8b")) return "nifti";
  if (bytes.length >= 4 && [true, false].some((order) => [348, 540].includes(view.getInt32(0, order)))) return "nifti";
  if (bytes.length >= 8 && [2, 8].includes(view.getUint16(0, true))) return "dicom";
  return "";
}

const SUFFIX = { zip: ".zip", dicom: ".dcm", png: ".png", jpeg: ".jpg" };
const WORD = { zip: "zip archive", dicom: "DICOM file", png: "PNG image", jpeg: "JPEG image", nifti: "NIfTI volume" };

/**
 * Take files in.
 *
 * @param {File[]} files what was dropped or chosen.
 * @param {(sentence: string) => void} onStep told of the progress.
 * @returns {Promise<{upload, label, stacks, note}>} `upload` {blob, name}; `stacks` to show, possibly
 *   none, and then `note` says why.
 * @throws {Unreadable} where there is nothing that could be sent.
 */
export async function takeFiles(files, onStep) {
  if (files.length === 0) throw new Unreadable("No file was chosen.");
  if (files.length > 1) return takeMany(files, onStep);
  const [file] = files;
  if (file.size === 0) throw new Unreadable("The file is empty.");
  const kind = await kindOf(file);
  if (!kind) throw new Unreadable("This is none of DICOM, zip, PNG, JPEG or NIfTI.");
  const packed = kind === "nifti" && new Uint8Array(await bytesOf(file.slice(0, 1)))[0] === 0x1f;
  // A neutral name: the one on the user's disk may be a patient's.
  const upload = { blob: file, name: `upload${SUFFIX[kind] || (packed ? ".nii.gz" : ".nii")}` };
  const shown = await guarded(() => shownOf(kind, file, onStep));
  return { upload, label: `1 ${WORD[kind]}`, ...shown };
}

async function takeMany(files, onStep) {
  const kinds = await Promise.all(files.map((file) => (file.size ? kindOf(file) : "")));
  const dicom = files.filter((_, n) => kinds[n] === "dicom");
  if (dicom.length === 0) throw new Unreadable("Of several files only DICOM files go together; choose one of the others.");
  const left = files.length - dicom.length;
  const blob = await storedZip(dicom, ".dcm", (n) => onStep(`Packing ${n} of ${dicom.length} files`));
  const shown = await guarded(() => shownDicom(dicom.map((one) => async () => one), onStep));
  const beside = left ? `; ${left} other file${left > 1 ? "s" : ""} left out` : "";
  return { upload: { blob, name: "upload.zip" }, label: `${dicom.length} DICOM file${dicom.length > 1 ? "s" : ""}${beside}`, ...shown };
}

/** Whatever is wrong with what should be shown, the file itself may still be sent. */
async function guarded(work) {
  try {
    return await work();
  } catch (error) {
    return { stacks: [], note: sentenceOf(error) };
  }
}

async function shownOf(kind, file, onStep) {
  if (kind === "zip") {
    const members = await listZip(file, MAX_SHOWN_BYTES);
    if (members.length === 0) return { stacks: [], note: "The archive is empty." };
    return shownDicom(members.map((member) => () => member.blob()), onStep);
  }
  if (kind === "dicom") return shownDicom([async () => file], onStep);
  if (kind === "nifti") return shownNifti(file);
  return { stacks: [await imageStack(file)], note: "" };
}

async function shownNifti(file) {
  const volume = await readNifti(file, MAX_SHOWN_BYTES);
  const slices = slicesOfNifti(volume).map((slice) => ({ ...slice, blob: file }));
  const note = volume.affine ? "" : "The file does not say how the patient lies; it is shown as stored.";
  return { stacks: [{ slices, seriesUid: "", modality: "", window: null, inverted: false }], note };
}

async function shownDicom(sources, onStep) {
  const files = [];
  const hidden = new Map();
  const count = (sentence) => hidden.set(sentence, (hidden.get(sentence) || 0) + 1);
  let total = 0;
  for (const [n, source] of sources.entries()) {
    if (n % 16 === 0) onStep(`Reading ${n + 1} of ${sources.length} files`);
    try {
      const blob = await source();
      total += blob.size;
      if (total > MAX_SHOWN_BYTES) return { stacks: [], note: "These are more images than this page shows; they are sent as they are." };
      if ((await kindOf(blob)) !== "dicom") continue;
      const file = readDicom(await bytesOf(blob));
      files.push({ file, blob });
      if (file.hidden) count(file.hidden);
    } catch (error) {
      count(sentenceOf(error));
    }
  }
  const stacks = stacksOf(files);
  const said = [...hidden].map(([sentence, n]) => (sources.length > 1 ? `${n} of ${sources.length} files: ${sentence}` : sentence));
  if (files.length === 0 && said.length === 0) said.push("No DICOM file is among these; nothing can be shown before the server has answered.");
  return { stacks, note: said.join(" ") };
}

/** Read a PNG or JPEG as a stack of one slice; grey ones can be windowed. */
export async function imageStack(blob) {
  let bitmap;
  try {
    bitmap = await createImageBitmap(await asStored(blob), { premultiplyAlpha: "none", colorSpaceConversion: "none" });
  } catch {
    throw new Unreadable("The image is damaged and cannot be shown.");
  }
  const { width, height } = bitmap;
  if (width * height > MAX_IMAGE_PIXELS) throw new Unreadable("The image is larger than what this page shows.");
  const canvas = new OffscreenCanvas(width, height);
  const context = canvas.getContext("2d");
  context.drawImage(bitmap, 0, 0);
  bitmap.close();
  const rgba = context.getImageData(0, 0, width, height).data;
  const grey = greyOf(rgba);
  const slice = { width, height, plane: null, spacing: null, sopUid: "", blob, read: async () => (grey ? { values: grey } : { rgba }) };
  return { slices: [slice], seriesUid: "", modality: "", window: { center: 127.5, width: 255 }, inverted: false, isPicture: true };
}

/**
 * Return a JPEG without its EXIF segments: boxes are in the stored pixels, and browsers turn a
 * picture as its camera was held, whatever they are asked for.
 */
async function asStored(blob) {
  const view = new DataView(await bytesOf(blob));
  if (view.byteLength < 4 || view.getUint16(0) !== 0xffd8) return blob;
  const kept = [blob.slice(0, 2)];
  let at = 2;
  while (at + 4 <= view.byteLength && view.getUint8(at) === 0xff && view.getUint8(at + 1) !== 0xda) {
    const next = at + 2 + view.getUint16(at + 2);
    if (view.getUint8(at + 1) !== 0xe1) kept.push(blob.slice(at, next));
    at = next;
  }
  return new Blob([...kept, blob.slice(at)], { type: "image/jpeg" });
}

function greyOf(rgba) {
  const values = new Float32Array(rgba.length / 4);
  for (let n = 0; n < values.length; n += 1) {
    if (rgba[4 * n] !== rgba[4 * n + 1] || rgba[4 * n] !== rgba[4 * n + 2]) return null;
    values[n] = rgba[4 * n];
  }
  return values;
}

/** Pack the files of one series by itself; null where the page does not know which they are. */
export async function uploadOfSeries(stacks, seriesUid) {
  if (!seriesUid) return null;
  const blobs = new Set(stacks.filter((stack) => stack.seriesUid === seriesUid).flatMap((stack) => stack.slices.map((slice) => slice.blob)));
  if (blobs.size === 0) return null;
  return { blob: await storedZip([...blobs], ".dcm"), name: "upload.zip" };
}

/** Return all files of a drop, folders included. */
export async function droppedFiles(transfer) {
  const entries = [...transfer.items].map((item) => item.webkitGetAsEntry && item.webkitGetAsEntry()).filter(Boolean);
  if (!entries.some((entry) => entry.isDirectory)) return [...transfer.files];
  const files = [];
  for (const entry of entries) await collect(entry, files);
  return files;
}

async function collect(entry, files) {
  if (entry.isFile) {
    files.push(await new Promise((resolve, reject) => entry.file(resolve, reject)));
    return;
  }
  const reader = entry.createReader();
  for (;;) {
    const batch = await new Promise((resolve, reject) => reader.readEntries(resolve, reject));
    if (batch.length === 0) return;
    for (const inner of batch) await collect(inner, files);
  }
}
