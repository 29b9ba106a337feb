// Places in the patient. Inside the page everything is LPS millimetres, as in the server.
//
// An affine is three rows of four numbers, (i, j, k, 1) to (x, y, z). A plane is where one shown
// slice lies: {origin, right, down}, the centre of pixel (0, 0) and the steps of one pixel.

export const add = (a, b) => a.map((value, axis) => value + b[axis]);
export const scaled = (a, factor) => a.map((value) => value * factor);
export const dot = (a, b) => a[0] * b[0] + a[1] * b[1] + a[2] * b[2];
export const length = (a) => Math.sqrt(dot(a, a));
export const cross = (a, b) => [
  a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0],
];
export const isFinite3 = (a) => a.length === 3 && a.every(Number.isFinite);

/** Return column 0, 1 or 2 of an affine, or its offset (3). */
export const columnOf = (affine, number) => affine.map((row) => row[number]);

/** Turn the x and y rows of an affine: RAS to LPS and back. */
export const flippedXY = (affine) => affine.map((row, axis) => (axis < 2 ? row.map((v) => -v) : row));

export const transformed = (affine, point) =>
  affine.map((row) => row[0] * point[0] + row[1] * point[1] + row[2] * point[2] + row[3]);

/** Return the inverse of an affine, null where it has none. */
export function inverted(affine) {
  const [a, b, c] = [0, 1, 2].map((number) => columnOf(affine, number));
  const volume = dot(a, cross(b, c));
  if (!Number.isFinite(volume) || Math.abs(volume) < 1e-12) return null;
  const rows = [cross(b, c), cross(c, a), cross(a, b)].map((row) => scaled(row, 1 / volume));
  const offset = columnOf(affine, 3);
  return rows.map((row) => [...row, -dot(row, offset)]);
}

const NAMES = [["L", "R"], ["P", "A"], ["H", "F"]];

/** Return the letter of the direction that a step goes to, and of its opposite. */
export function lettersOf(step) {
  const axis = dominantAxis(step);
  const [plus, minus] = NAMES[axis];
  return step[axis] > 0 ? [plus, minus] : [minus, plus];
}

export function dominantAxis(step) {
  const sizes = step.map(Math.abs);
  return sizes.indexOf(Math.max(...sizes));
}

/** Return axial, coronal or sagittal, by the direction that the slices are stacked in. */
export const orientationOf = (plane) =>
  ["sagittal", "coronal", "axial"][dominantAxis(cross(plane.right, plane.down))];

// A tenth of a voxel at any corner: two grids that agree better are one grid.
const SAME_GRID_VOXELS = 0.1;

/**
 * Find a shown slice in a mask's grid, by physical position alone.
 *
 * @returns {{start: number, right: number, down: number, slice: number, depth: number}|null} index
 *   of the mask voxel under pixel (0, 0), the index steps to the right and down, which slice of how
 *   many; null where the slice is no slice of the mask's grid.
 */
export function placeInMask(mask, slice) {
  if (!mask.toIndex || !slice.plane) return null;
  const { origin, right, down } = slice.plane;
  const at = transformed(mask.toIndex, origin);
  const steps = [right, down].map((step) => {
    const exact = mask.toIndex.map((row) => dot(row, step));
    return { exact, whole: exact.map(Math.round) };
  });
  const axes = steps.map(({ whole }) => whole.findIndex((value) => value !== 0));
  const isUnit = steps.every(({ whole }) => whole.reduce((sum, v) => sum + Math.abs(v), 0) === 1);
  if (!isUnit || axes[0] === axes[1]) return null;
  const sides = [slice.width, slice.height];
  if (axes.some((axis, n) => mask.shape[axis] !== sides[n])) return null;
  const start = at.map(Math.round);
  if (!cornersAgree(at, start, steps, sides)) return null;
  const ends = start.map((v, axis) => v + sides.reduce((sum, side, n) => sum + (side - 1) * steps[n].whole[axis], 0));
  if ([start, ends].some((point) => point.some((v, axis) => v < 0 || v >= mask.shape[axis]))) return null;
  const strides = [1, mask.shape[0], mask.shape[0] * mask.shape[1]];
  return {
    start: dot(start, strides), right: dot(steps[0].whole, strides), down: dot(steps[1].whole, strides),
    slice: start[3 - axes[0] - axes[1]], depth: mask.shape[3 - axes[0] - axes[1]],
  };
}

function cornersAgree(at, start, steps, [width, height]) {
  return [[0, 0], [width - 1, 0], [0, height - 1], [width - 1, height - 1]].every(([i, j]) =>
    at.every((value, axis) => {
      const exact = value + i * steps[0].exact[axis] + j * steps[1].exact[axis];
      const whole = start[axis] + i * steps[0].whole[axis] + j * steps[1].whole[axis];
      return Math.abs(exact - whole) <= SAME_GRID_VOXELS;
    }));
}

/**
 * Return the mask's labels under a slice, row by row, and which slice of the mask that is; null
 * where the slice lies in another grid.
 */
export function maskUnder(mask, slice) {
  const place = placeInMask(mask, slice);
  if (!place) return null;
  const labels = new Uint8Array(slice.width * slice.height);
  for (let j = 0, n = 0; j < slice.height; j += 1) {
    let index = place.start + j * place.down;
    for (let i = 0; i < slice.width; i += 1, n += 1, index += place.right) labels[n] = mask.labels[index];
  }
  return { labels, place: place.slice, depth: place.depth };
}
