// Zip archives: members of one are read one at a time, and files are packed without compression.

import { Unreadable, bytesOf, unpacked } from "./unreadable.js";

const END_MARK = 0x06054b50;
const ENTRY_MARK = 0x02014b50;
const LOCAL_MARK = 0x04034b50;
const MAX_MEMBERS = 20000;

/** List the files of an archive: [{name, bytes, blob()}], nothing unpacked yet. */
export async function listZip(blob, maxBytes) {
  const { count, start, size } = await endOf(blob);
  if (count > MAX_MEMBERS) throw new Unreadable("The archive has more files than this page looks at.");
  const view = new DataView(await bytesOf(blob.slice(start, start + size)));
  const members = [];
  let total = 0;
  for (let n = 0, at = 0; n < count; n += 1) {
    const entry = entryAt(view, at);
    at = entry.next;
    total += entry.bytes;
    if (total > maxBytes) throw new Unreadable("The archive unpacks to more than this page shows.");
    if (!entry.name.endsWith("/")) members.push({ ...entry, blob: () => contentOf(blob, entry) });
  }
  return members;
}

async function endOf(blob) {
  const from = Math.max(0, blob.size - 65557);
  const view = new DataView(await bytesOf(blob.slice(from)));
  for (let at = view.byteLength - 22; at >= 0; at -= 1) {
    if (view.getUint32(at, true) === END_MARK) {
      const [count, size, start] = [view.getUint16(at + 10, true), view.getUint32(at + 12, true), view.getUint32(at + 16, true)];
      if (count === 0xffff || start === 0xffffffff) throw new Unreadable("Archives of more than 4 GB are not shown here.");
      if (start + size > from + at) break;
      return { count, size, start };
    }
  }
  throw new Unreadable("The archive is damaged: it has no list of its files.");
}

function entryAt(view, at) {
  if (at + 46 > view.byteLength || view.getUint32(at, true) !== ENTRY_MARK) throw new Unreadable("The archive's list of files is damaged.");
  const nameLength = view.getUint16(at + 28, true);
  const name = new TextDecoder().decode(new Uint8Array(view.buffer, at + 46, nameLength));
  return {
    name, flags: view.getUint16(at + 8, true), method: view.getUint16(at + 10, true),
    packedBytes: view.getUint32(at + 20, true), bytes: view.getUint32(at + 24, true), start: view.getUint32(at + 42, true),
    next: at + 46 + nameLength + view.getUint16(at + 30, true) + view.getUint16(at + 32, true),
  };
}

async function contentOf(archive, entry) {
  if (entry.flags & 1) throw new Unreadable("The archive is protected by a password.");
  const head = new DataView(await bytesOf(archive.slice(entry.start, entry.start + 30)));
  if (head.byteLength < 30 || head.getUint32(0, true) !== LOCAL_MARK) throw new Unreadable("The archive is damaged.");
  const from = entry.start + 30 + head.getUint16(26, true) + head.getUint16(28, true);
  const packed = archive.slice(from, from + entry.packedBytes);
  if (packed.size !== entry.packedBytes) throw new Unreadable("The archive ends before its data does.");
  if (entry.method === 0) return packed;
  if (entry.method === 8) return new Blob([await unpacked(packed, "deflate-raw", entry.bytes)]);
  throw new Unreadable("The archive is packed by a method that this page does not read.");
}

/** Pack blobs without compression; names are numbers, for names of files may tell a patient's. */
export async function storedZip(blobs, suffix, onFile = () => {}) {
  if (blobs.length > 65000) throw new Unreadable("These are more files than one archive holds.");
  const parts = [];
  const entries = [];
  let offset = 0;
  for (const [n, blob] of blobs.entries()) {
    const name = new TextEncoder().encode(`${String(n + 1).padStart(5, "0")}${suffix}`);
    const sum = crc32(new Uint8Array(await bytesOf(blob)));
    const head = fields(name, sum, blob.size);
    parts.push(local(head, name), blob);
    entries.push(central(head, name, offset));
    offset += 30 + name.length + blob.size;
    if (offset > 0xf0000000) throw new Unreadable("These files are more than 4 GB together; send them by the command line.");
    onFile(n + 1);
  }
  const size = entries.reduce((sum, entry) => sum + entry.byteLength, 0);
  const end = new DataView(new ArrayBuffer(22));
  end.setUint32(0, END_MARK, true);
  end.setUint16(8, blobs.length, true);
  end.setUint16(10, blobs.length, true);
  end.setUint32(12, size, true);
  end.setUint32(16, offset, true);
  return new Blob([...parts, ...entries, end.buffer], { type: "application/zip" });
}

// What local and central headers share: version 2.0, names in UTF-8, stored, 1 January 1980.
function fields(name, sum, size) {
  const view = new DataView(new ArrayBuffer(26));
  [[0, 20], [2, 0x0800], [4, 0], [6, 0], [8, 0x21], [22, name.length], [24, 0]].forEach(([at, value]) => view.setUint16(at, value, true));
  [[10, sum], [14, size], [18, size]].forEach(([at, value]) => view.setUint32(at, value, true));
  return new Uint8Array(view.buffer);
}

function local(head, name) {
  const out = new Uint8Array(30 + name.length);
  new DataView(out.buffer).setUint32(0, LOCAL_MARK, true);
  out.set(head, 4);
  out.set(name, 30);
  return out;
}

function central(head, name, offset) {
  const out = new Uint8Array(46 + name.length);
  const view = new DataView(out.buffer);
  view.setUint32(0, ENTRY_MARK, true);
  view.setUint16(4, 20, true);
  out.set(head, 6);
  view.setUint32(42, offset, true);
  out.set(name, 46);
  return out;
}

const TABLE = Uint32Array.from({ length: 256 }, (_, n) => {
  let value = n;
  for (let bit = 0; bit < 8; bit += 1) value = value & 1 ? (value >>> 1) ^ 0xedb88320 : value >>> 1;
  return value;
});

export function crc32(bytes) {
  let sum = 0xffffffff;
  for (let n = 0; n < bytes.length; n += 1) sum = (sum >>> 8) ^ TABLE[(sum ^ bytes[n]) & 0xff];
  return (sum ^ 0xffffffff) >>> 0;
}
