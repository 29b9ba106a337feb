// Plain words for what the server says in codes.

const TASKS = {
  lung_detection: "Lung tumours, boxes on CT and PET slices",
  lung_classification: "Lung tumour type, from a CT volume",
  breast_roi: "Breast region, box on a mammogram",
  breast_classification: "Breast cancer score, from mammograms",
  pneumonia_detection: "Lung opacities, boxes on a chest radiograph",
  pancreas_segmentation: "Pancreas, mask on a CT volume",
  pancreas_classification: "Pancreas lesion score, from a CT volume",
};

const FLAGS = {
  mask_empty: "The mask is empty: nothing was found.",
  tilt: "The scanner's gantry was tilted.",
  tilt_resampled: "The gantry was tilted; the slices were resampled to a straight grid.",
  geometry_unverified: "The files do not say where the slices lie.",
  "completeness=partial": "Slices seem to be missing from the series.",
  "completeness=unknown": "Whether the series is complete cannot be told.",
  modality_differs: "The file's modality is none of the training images'.",
  colour_differs: "The image is in colour and the training images are grey, or the reverse.",
  image_kind_unknown: "The file does not say its modality, so that was not compared.",
  contrast_differs: "Contrast agent: by the header or the brightness of soft tissue, the scan is unlike the training scans.",
  intensity_differs: "The values are unlike the training images': other units, another rescale, an inversion or another kind of image.",
  anatomy_differs: "Bright and dark lie elsewhere than in the training images: another body part, a flip or another crop.",
  noise_differs: "The image is far noisier or smoother than the training images.",
  content_empty: "The image has one value only, or hardly any other.",
  slice_thickness_differs: "The slices lie closer or farther than in the training images.",
  spacing_differs: "The pixels in the plane are smaller or larger than the training images'.",
  field_of_view_differs: "The image covers less or more than the training images do.",
};

/** Return a code as words: `slice_thickness` as "Slice thickness". */
export function worded(code) {
  const words = String(code).replaceAll(/[_=:]+/g, " ").trim();
  return words ? words[0].toUpperCase() + words.slice(1) : "";
}

export const taskWords = (task) => TASKS[task] || worded(task || "");

let reasons = {};

/** Fetch what each reason code means and how it is mended; without it codes are shown as words. */
export async function loadReasons() {
  try {
    const answer = await fetch("page/reasons.json");
    if (answer.ok) reasons = await answer.json();
  } catch { /* words will do */ }
}

/** Return {meaning, mend} of a reason code, empty texts where unknown. */
export const reasonWords = (code) => (Object.hasOwn(reasons, code) ? reasons[code] : { meaning: "", mend: "" });

export function flagWords(flag) {
  const code = String(flag);
  if (Object.hasOwn(FLAGS, code)) return FLAGS[code];
  return reasonWords(code).meaning || `${worded(code)}.`;
}

const FORMS = {
  "application/json": "JSON", "image/png": "PNG picture", "application/gzip": "NIfTI mask", "application/dicom": "DICOM SEG",
  dicom: "DICOM", zip: "zip of DICOM", png: "PNG", jpeg: "JPEG", nifti: "NIfTI", nrrd: "NRRD", mha: "MHA",
};

/** Return any JSON value as a short line; media types by their names. */
export function lineOf(value) {
  if (value === null || value === undefined) return "";
  if (Array.isArray(value)) return value.map(lineOf).filter(Boolean).join(", ");
  if (typeof value === "object") return Object.entries(value).map(([name, inner]) => `${worded(name).toLowerCase()} ${lineOf(inner)}`).join(", ");
  if (typeof value === "number") return Number.isInteger(value) ? String(value) : String(Number(value.toPrecision(3)));
  return Object.hasOwn(FORMS, value) ? FORMS[value] : String(value);
}

export const STATUS = {
  complete: { mark: "✓", word: "Complete", says: "All images were used." },
  partial: { mark: "◐", word: "Partial", says: "Some images could not be used; the answer is of the others only." },
  refused: { mark: "✕", word: "Refused", says: "No answer was given for these images. This is not a negative finding." },
};

/** Return a number with a fitting count of digits, a dash where there is none. */
export function digits(value, places = 3) {
  if (typeof value !== "number" || !Number.isFinite(value)) return "–";
  return value.toFixed(places);
}

export function sizeWords(bytes) {
  if (bytes < 1e6) return `${Math.max(1, Math.round(bytes / 1e3))} KB`;
  return bytes < 1e9 ? `${(bytes / 1e6).toFixed(1)} MB` : `${(bytes / 1e9).toFixed(2)} GB`;
}
