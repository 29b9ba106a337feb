// NIfTI-1, one file, packed or not: as images to show, and as the server's masks.

import { Unreadable, bytesOf, unpacked } from "./unreadable.js";
import { add, columnOf, dominantAxis, cross, flippedXY, inverted, scaled } from "./geometry.js";

const KINDS = {
  2: [Uint8Array, "getUint8"], 4: [Int16Array, "getInt16"], 8: [Int32Array, "getInt32"],
  16: [Float32Array, "getFloat32"], 64: [Float64Array, "getFloat64"], 256: [Int8Array, "getInt8"],
  512: [Uint16Array, "getUint16"], 768: [Uint32Array, "getUint32"],
};
const MM_PER_UNIT = { 0: 1, 1: 1000, 2: 1, 3: 0.001 };

/** Read a .nii or .nii.gz blob: {shape, affine (LPS) or null, plane(k)}. */
export async function readNifti(blob, maxBytes) {
  const mark = new Uint8Array(await bytesOf(blob.slice(0, 2)));
  const packed = mark[0] === 0x1f && mark[1] === 0x8b;
  if (!packed && blob.size > maxBytes) throw new Unreadable("The file is larger than what this page shows.");
  return parsed(packed ? await unpacked(blob, "gzip", maxBytes) : await bytesOf(blob));
}

function parsed(buffer) {
  if (buffer.byteLength < 352) throw new Unreadable("The NIfTI header is incomplete.");
  const view = new DataView(buffer);
  const little = [true, false].find((order) => view.getInt32(0, order) === 348);
  if (little === undefined) {
    const second = [true, false].some((order) => view.getInt32(0, order) === 540);
    throw new Unreadable(second ? "NIfTI-2 files are not shown here; the server may read them."
      : "The file does not begin with a NIfTI header.");
  }
  if (view.getUint8(344) !== 0x6e || view.getUint8(345) !== 0x2b) throw new Unreadable("The NIfTI header and its data lie in two files.");
  const sides = shapeOf(view, little);
  const kind = KINDS[view.getInt16(70, little)];
  if (!kind) throw new Unreadable("The voxels are of a type that this page does not show.");
  const offset = view.getFloat32(108, little);
  const count = sides[0] * sides[1] * sides[2];
  if (!(offset >= 348) || offset + count * kind[0].BYTES_PER_ELEMENT > buffer.byteLength) {
    throw new Unreadable("The NIfTI file ends before its data does.");
  }
  const scale = [112, 116].map((at) => view.getFloat32(at, little));
  const [slope, inter] = Number.isFinite(scale[0]) && scale[0] !== 0 ? [scale[0], Number.isFinite(scale[1]) ? scale[1] : 0] : [1, 0];
  const affine = affineOf(view, little);
  const planeOf = (k) => values(buffer, Math.trunc(offset), kind, little, sides, k, slope, inter);
  return { shape: sides, affine, planeOf };
}

function shapeOf(view, little) {
  const dims = Array.from({ length: 8 }, (_, n) => view.getInt16(40 + 2 * n, little));
  if (dims[0] < 2 || dims[0] > 7) throw new Unreadable("The NIfTI header has no usable size.");
  const sides = [1, 2, 3].map((axis) => (axis <= dims[0] ? dims[axis] : 1));
  if (sides.some((side) => side < 1)) throw new Unreadable("The NIfTI header has no usable size.");
  if (dims.slice(4, dims[0] + 1).some((side) => side > 1)) throw new Unreadable("The file holds several volumes, not one.");
  return sides;
}

/** Return one slice as float32; slope and intercept applied. */
function values(buffer, offset, [Kind, getter], little, [width, height], k, slope, inter) {
  const count = width * height;
  const start = offset + k * count * Kind.BYTES_PER_ELEMENT;
  const out = new Float32Array(count);
  if (little || Kind.BYTES_PER_ELEMENT === 1) {
    // The offset need not be a multiple of the element's size: a copy always is.
    const stored = new Kind(buffer.slice(start, start + count * Kind.BYTES_PER_ELEMENT));
    for (let n = 0; n < count; n += 1) out[n] = stored[n] * slope + inter;
    return out;
  }
  const view = new DataView(buffer, start);
  for (let n = 0; n < count; n += 1) out[n] = view[getter](n * Kind.BYTES_PER_ELEMENT) * slope + inter;
  return out;
}

/** Return the affine to LPS mm: sform, else qform, else null (nifti1.h, methods 3 and 2). */
function affineOf(view, little) {
  const float = (at) => view.getFloat32(at, little);
  const unit = MM_PER_UNIT[view.getUint8(123) & 7];
  let ras = null;
  if (view.getInt16(254, little) > 0) {
    ras = [0, 1, 2].map((row) => [0, 1, 2, 3].map((n) => float(280 + 16 * row + 4 * n)));
  } else if (view.getInt16(252, little) > 0) {
    ras = fromQuaternion(float);
  }
  if (!ras || !unit || !ras.flat().every(Number.isFinite)) return null;
  const lps = flippedXY(ras.map((row) => scaled(row, unit)));
  return inverted(lps) ? lps : null;
}

function fromQuaternion(float) {
  const [b, c, d] = [256, 260, 264].map(float);
  const a = Math.sqrt(Math.max(0, 1 - (b * b + c * c + d * d)));
  const qfac = float(76) < 0 ? -1 : 1;
  const spacing = [float(80), float(84), float(88) * qfac];
  const turn = [
    [a * a + b * b - c * c - d * d, 2 * (b * c - a * d), 2 * (b * d + a * c)],
    [2 * (b * c + a * d), a * a + c * c - b * b - d * d, 2 * (c * d - a * b)],
    [2 * (b * d - a * c), 2 * (c * d + a * b), a * a + d * d - b * b - c * c],
  ];
  return turn.map((row, n) => [...row.map((value, axis) => value * spacing[axis]), float(268 + 4 * n)]);
}

/** Read the server's mask: whole labels, with what is needed to look a place up. */
export async function readMask(blob, maxBytes) {
  const { shape, affine, planeOf } = await readNifti(blob, maxBytes);
  if (!affine) throw new Unreadable("The mask does not say where it lies, so it is not drawn.");
  const area = shape[0] * shape[1];
  const labels = new Uint8Array(area * shape[2]);
  const present = new Set();
  for (let k = 0; k < shape[2]; k += 1) {
    const plane = planeOf(k);
    for (let n = 0; n < area; n += 1) {
      // Any value but 0 is inside, also one that does not fit a byte.
      const label = plane[n] === 0 ? 0 : Math.min(255, Math.max(1, Math.round(plane[n])));
      if (label) present.add(label);
      labels[k * area + n] = label;
    }
  }
  return { shape, affine, toIndex: inverted(affine), labels, present: [...present].sort((a, b) => a - b) };
}

// Which patient axis goes right and which down on the screen, and in which sense, in LPS:
// patient's left on the screen's right, front or head on top.
const SCREEN = [[[1, 1], [2, -1]], [[0, 1], [2, -1]], [[0, 1], [1, 1]]];

/** Return the slices of a volume as a radiologist holds them, nothing resampled. */
export function slicesOfNifti({ shape, affine, planeOf }) {
  const turn = affine ? screenTurn(affine) : { swap: false, flipRight: false, flipDown: false };
  const [across, along] = turn.swap ? [shape[1], shape[0]] : [shape[0], shape[1]];
  return Array.from({ length: shape[2] }, (_, k) => ({
    width: across, height: along, sopUid: "",
    plane: affine ? turnedPlane(affine, k, turn, across, along) : null,
    read: async () => ({ values: turned(planeOf(k), shape[0], across, along, turn) }),
  }));
}

function screenTurn(affine) {
  const [i, j] = [columnOf(affine, 0), columnOf(affine, 1)];
  const [horizontal, vertical] = SCREEN[dominantAxis(cross(i, j))];
  const swap = dominantAxis(i) === vertical[0] && dominantAxis(j) !== vertical[0];
  const [right, down] = swap ? [j, i] : [i, j];
  return {
    swap,
    flipRight: right[horizontal[0]] * horizontal[1] < 0,
    flipDown: down[vertical[0]] * vertical[1] < 0,
  };
}

function turnedPlane(affine, k, { swap, flipRight, flipDown }, across, along) {
  let [right, down] = swap ? [columnOf(affine, 1), columnOf(affine, 0)] : [columnOf(affine, 0), columnOf(affine, 1)];
  let origin = add(columnOf(affine, 3), scaled(columnOf(affine, 2), k));
  if (flipRight) [origin, right] = [add(origin, scaled(right, across - 1)), scaled(right, -1)];
  if (flipDown) [origin, down] = [add(origin, scaled(down, along - 1)), scaled(down, -1)];
  return { origin, right, down };
}

function turned(plane, width, across, along, { swap, flipRight, flipDown }) {
  if (!swap && !flipRight && !flipDown) return plane;
  const out = new Float32Array(plane.length);
  for (let y = 0, n = 0; y < along; y += 1) {
    const v = flipDown ? along - 1 - y : y;
    for (let x = 0; x < across; x += 1, n += 1) {
      const u = flipRight ? across - 1 - x : x;
      out[n] = swap ? plane[u * width + v] : plane[v * width + u];
    }
  }
  return out;
}
