// The one error that readers throw: a sentence for the user, without any value of the file.

export class Unreadable extends Error {}

/** Return the sentence to show for any error that a reader met. */
export function sentenceOf(error) {
  if (error instanceof Unreadable) return error.message;
  if (error instanceof RangeError) return "The file ends before its data does, or is too large for this browser.";
  return "The file is damaged and cannot be shown.";
}

/** Read a blob in full, however it was made. */
export async function bytesOf(blob) {
  try {
    return await blob.arrayBuffer();
  } catch {
    throw new Unreadable("The browser could not read the file; it may have been moved or be too large.");
  }
}

/** Unpack a gzip or raw deflate blob; stops as soon as it grows beyond the limit. */
export async function unpacked(blob, format, maxBytes) {
  const reader = blob.stream().pipeThrough(new DecompressionStream(format)).getReader();
  const pieces = [];
  let total = 0;
  for (;;) {
    let step;
    try {
      step = await reader.read();
    } catch {
      throw new Unreadable("The packed data are damaged or incomplete.");
    }
    if (step.done) break;
    total += step.value.byteLength;
    if (total > maxBytes) {
      reader.cancel().catch(() => {});
      throw new Unreadable("The file unpacks to more than this page shows.");
    }
    pieces.push(step.value);
  }
  return bytesOf(new Blob(pieces));
}
