// Arrays of a .npz file as numpy.savez writes it: a ZIP of .npy files that are stored, not packed.

import { InputError, shown } from './errors.js';

const TYPES = { '<f4': Float32Array, '<i4': Int32Array };

/** Map of name to {shape, data}. Throws InputError for anything that numpy.savez does not write. */
export function readNpz(bytes, file) {
  const wrong = (why) =>
    new InputError(`${shown(file)} cannot be read (${why}): export the model again`);
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
  const end = bytes.length - 22; // numpy writes no comment behind it
  if (end < 0 || view.getUint32(end, true) !== 0x06054b50) throw wrong('its end is missing');
  const found = new Map();
  let at = view.getUint32(end + 16, true);
  try {
    for (let left = view.getUint16(end + 10, true); left > 0; left--) {
      if (view.getUint32(at, true) !== 0x02014b50) throw wrong('its list is damaged');
      const [method, size] = [view.getUint16(at + 10, true), view.getUint32(at + 20, true)];
      const [name, extra, note] = [28, 30, 32].map((i) => view.getUint16(at + i, true));
      const begin = view.getUint32(at + 42, true);
      if (method !== 0 || size !== view.getUint32(at + 24, true)) throw wrong('it is packed');
      const key = new TextDecoder().decode(bytes.subarray(at + 46, at + 46 + name));
      const data = begin + 30 + view.getUint16(begin + 26, true) + view.getUint16(begin + 28, true);
      if (data + size > bytes.length) throw wrong('it is cut off');
      found.set(key.replace(/\.npy$/, ''), readNpy(bytes.slice(data, data + size), wrong));
      at += 46 + name + extra + note;
    }
  } catch (error) {
    throw error instanceof RangeError ? wrong('it is damaged') : error;
  }
  return found;
}

function readNpy(bytes, wrong) {
  const view = new DataView(bytes.buffer);
  if (new TextDecoder('latin1').decode(bytes.subarray(1, 6)) !== 'NUMPY' || bytes[6] !== 1) {
    throw wrong('an array is none of numpy');
  }
  const begin = 10 + view.getUint16(8, true);
  const header = new TextDecoder('latin1').decode(bytes.subarray(10, begin));
  const type = TYPES[/'descr': '([^']*)'/.exec(header)?.[1]];
  const shape = /'shape': \(([0-9, ]*)\)/
    .exec(header)?.[1]
    .split(',')
    .filter((x) => x.trim())
    .map(Number);
  if (!type || !shape || !header.includes("'fortran_order': False"))
    throw wrong('an array of another kind');
  const count = shape.reduce((a, b) => a * b, 1);
  if (begin + count * 4 !== bytes.length) throw wrong('an array of another size');
  return { shape, data: new type(bytes.slice(begin).buffer) };
}
