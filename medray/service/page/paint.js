// Drawing: grey values through a window, mask labels as colour, boxes as lines.

// Told apart also by eyes that do not see red and green apart (after Okabe and Ito).
export const LABEL_COLOURS = [[255, 110, 60], [86, 180, 233], [240, 228, 66], [0, 190, 140], [204, 121, 167], [230, 159, 0]];
export const BOX_COLOUR = "#ffd54a";
export const CHOSEN_COLOUR = "#ffffff";

export const colourOf = (label) => LABEL_COLOURS[(label - 1) % LABEL_COLOURS.length];

/** Return a slice's pixels as a canvas of its own size. */
export function sliceCanvas(slice, pixels, { center, width }, inverted) {
  const canvas = new OffscreenCanvas(slice.width, slice.height);
  const context = canvas.getContext("2d");
  const image = context.createImageData(slice.width, slice.height);
  const out = image.data;
  const low = center - width / 2;
  const factor = 255 / width;
  if (pixels.values) {
    const words = new Uint32Array(out.buffer);
    for (let n = 0; n < words.length; n += 1) {
      const grey = Math.max(0, Math.min(255, (pixels.values[n] - low) * factor));
      const shade = inverted ? 255 - (grey | 0) : grey | 0;
      words[n] = 0xff000000 | (shade << 16) | (shade << 8) | shade;
    }
  } else {
    for (let n = 0; n < out.length; n += 1) {
      const shade = n % 4 === 3 ? 255 : (pixels.rgba[n] - low) * factor;
      out[n] = inverted && n % 4 !== 3 ? 255 - shade : shade;
    }
  }
  context.putImageData(image, 0, 0);
  return canvas;
}

/** Return a mask's labels as a canvas: filled lightly, the rim opaque. */
export function maskCanvas(labels, width, height, opacity) {
  const canvas = new OffscreenCanvas(width, height);
  const context = canvas.getContext("2d");
  const image = context.createImageData(width, height);
  for (let j = 0, n = 0; j < height; j += 1) {
    for (let i = 0; i < width; i += 1, n += 1) {
      const label = labels[n];
      if (!label) continue;
      const rim = i === 0 || j === 0 || i === width - 1 || j === height - 1 || labels[n - 1] !== label
        || labels[n + 1] !== label || labels[n - width] !== label || labels[n + width] !== label;
      const [red, green, blue] = colourOf(label);
      image.data.set([red, green, blue, 255 * (rim ? Math.min(1, opacity + 0.45) : opacity)], 4 * n);
    }
  }
  context.putImageData(image, 0, 0);
  return canvas;
}

/** Return the size of one pixel on the screen: right and down, their ratio the patient's. */
export function pixelAspect(slice) {
  const length = (step) => Math.sqrt(step[0] ** 2 + step[1] ** 2 + step[2] ** 2);
  const [down, right] = slice.plane ? [length(slice.plane.down), length(slice.plane.right)] : slice.spacing || [1, 1];
  return down > 0 && right > 0 ? [right, down] : [1, 1];
}

/** Return where a slice lies on a canvas: {left, top, right, down}, the last two per pixel. */
export function placement(slice, canvasWidth, canvasHeight, { zoom, panX, panY }) {
  const [right, down] = pixelAspect(slice);
  const fit = Math.min(canvasWidth / (slice.width * right), canvasHeight / (slice.height * down));
  const scale = fit * zoom;
  return {
    left: (canvasWidth - slice.width * right * scale) / 2 + panX, top: (canvasHeight - slice.height * down * scale) / 2 + panY,
    right: right * scale, down: down * scale,
  };
}

/** Draw layers onto the shown canvas. */
export function compose(context, slice, place, layers) {
  const { canvas } = context;
  context.fillStyle = "#000";
  context.fillRect(0, 0, canvas.width, canvas.height);
  const [width, height] = [slice.width * place.right, slice.height * place.down];
  // Large pixels are shown as pixels: nobody should measure in what was made up between them.
  context.imageSmoothingEnabled = place.right < 6;
  context.imageSmoothingQuality = "high";
  context.drawImage(layers.image, place.left, place.top, width, height);
  if (layers.mask) {
    context.imageSmoothingEnabled = false;
    context.drawImage(layers.mask, place.left, place.top, width, height);
  }
  for (const box of layers.boxes) drawBox(context, box, place);
}

function drawBox(context, { corners, text, chosen }, place) {
  const [x1, y1, x2, y2] = corners;
  const [left, top] = [place.left + x1 * place.right, place.top + y1 * place.down];
  const [width, height] = [(x2 - x1) * place.right, (y2 - y1) * place.down];
  const line = Math.max(1.5, Math.min(context.canvas.width, context.canvas.height) / 400);
  context.lineWidth = line * 2.2;
  context.strokeStyle = "rgba(0,0,0,0.65)";
  context.strokeRect(left, top, width, height);
  context.lineWidth = line;
  context.strokeStyle = chosen ? CHOSEN_COLOUR : BOX_COLOUR;
  context.strokeRect(left, top, width, height);
  const size = Math.round(line * 9);
  context.font = `600 ${size}px system-ui, sans-serif`;
  const wide = context.measureText(text).width + size * 0.7;
  const above = top > size * 1.6;
  const labelTop = above ? top - size * 1.5 : top;
  context.fillStyle = "rgba(0,0,0,0.7)";
  context.fillRect(left, labelTop, wide, size * 1.45);
  context.fillStyle = chosen ? CHOSEN_COLOUR : BOX_COLOUR;
  context.fillText(text, left + size * 0.35, labelTop + size * 1.08);
}

/** Return a window that shows most of a slice: from its 1st to its 99th percentile. */
export function windowOf(values) {
  const sample = [];
  const step = Math.max(1, Math.floor(values.length / 20000));
  for (let n = 0; n < values.length; n += step) if (Number.isFinite(values[n])) sample.push(values[n]);
  sample.sort((a, b) => a - b);
  if (sample.length === 0) return { center: 0, width: 1 };
  const [low, high] = [0.01, 0.99].map((share) => sample[Math.round(share * (sample.length - 1))]);
  return { center: (low + high) / 2, width: Math.max(high - low, 1e-3) };
}
