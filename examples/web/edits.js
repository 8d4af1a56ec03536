// The edit list of an MP4 or MOV: which part of its video is shown. Mediabunny reads its beginning
// only; FFmpeg, and so Python, also leaves out what lies behind its end.

import { InputError } from './errors.js';

const MAX_INDEX = 256 * 2 ** 20; // bytes of "moov", which lists every frame

/** {from, to} in seconds as Mediabunny counts them: frames outside are not shown. */
export async function shownPart(file, trackId) {
  const all = { from: -Infinity, to: Infinity };
  const index = await findIndex(file);
  if (!index) return all;
  const [header] = boxes(index, 'mvhd');
  if (!header) return all;
  const scale = header.getUint32(header.getUint8(0) === 1 ? 20 : 12);
  for (const track of boxes(index, 'trak')) {
    const [head] = boxes(track, 'tkhd');
    if (!head || head.getUint32(head.getUint8(0) === 1 ? 20 : 12) !== trackId) continue;
    const [edits] = boxes(track, 'edts');
    const [list] = edits ? boxes(edits, 'elst') : [];
    return list ? partOf(list, scale) : all;
  }
  return all;
}

function partOf(list, scale) {
  const wide = list.getUint8(0) === 1;
  const count = list.getUint32(4);
  let from = 0;
  let found = null;
  for (let i = 0; i < count; i++) {
    const at = 8 + i * (wide ? 20 : 12);
    const duration = wide ? Number(list.getBigUint64(at)) : list.getUint32(at);
    const media = wide ? Number(list.getBigInt64(at + 8)) : list.getInt32(at + 4);
    const rate = list.getInt32(at + (wide ? 16 : 8)) / 65536;
    if (media === -1 && !found) {
      from += duration / scale; // nothing is shown at first
    } else if (found || rate !== 1) {
      throw new InputError(
        'its edit list puts several parts together or changes their speed, so that this page ' +
          'cannot know which frames are shown; write it anew, for example with ffmpeg',
      );
    } else {
      found = { from, to: duration ? from + duration / scale : Infinity };
    }
  }
  return found ?? { from: -Infinity, to: Infinity };
}

async function findIndex(file) {
  for (let at = 0; at + 8 <= file.size;) {
    const head = new DataView(await file.slice(at, at + 16).arrayBuffer());
    const { size, begin } = measure(head, 0, file.size - at);
    if (size < begin) return null;
    if (nameAt(head, 0) === 'moov') {
      if (size > MAX_INDEX) throw new InputError('its list of frames is too large for this page');
      return new DataView(await file.slice(at + begin, at + size).arrayBuffer());
    }
    at += size;
  }
  return null;
}

/** The contents of the boxes of one name that lie directly in a box. */
function boxes(inside, name) {
  const found = [];
  for (let at = 0; at + 8 <= inside.byteLength;) {
    const { size, begin } = measure(inside, at, inside.byteLength - at);
    if (size < begin || at + size > inside.byteLength) break;
    if (nameAt(inside, at) === name) {
      found.push(new DataView(inside.buffer, inside.byteOffset + at + begin, size - begin));
    }
    at += size;
  }
  return found;
}

function measure(view, at, rest) {
  const size = view.getUint32(at);
  if (size === 0) return { size: rest, begin: 8 };
  if (size === 1 && at + 16 <= view.byteLength) {
    return { size: Number(view.getBigUint64(at + 8)), begin: 16 };
  }
  return { size, begin: 8 };
}

const nameAt = (view, at) => String.fromCharCode(...[4, 5, 6, 7].map((i) => view.getUint8(at + i)));
