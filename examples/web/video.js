// The sampled frames of one video file, exactly those that Python takes: frames are numbered from
// the packets of the file, as they are shown, and decoded by WebCodecs. A file whose frames cannot
// be numbered surely is refused with the reason; no <video> element guesses by time.

import {
  ALL_FORMATS,
  BlobSource,
  EncodedPacketSink,
  Input,
} from './node_modules/mediabunny/dist/bundles/mediabunny.min.mjs';
import { shownPart } from './edits.js';
import { InputError, shown } from './errors.js';
import { toRgb } from './pixels.js';
import { sampleIndices } from './sampling.js';

const MAX_BYTES = 4 * 2 ** 30; // of a file
const MAX_FRAMES = 1_000_000;
const MAX_PIXELS = 2 ** 26; // of a frame
const LATE_MS = 30_000; // a decoder that gives nothing for so long hangs
const FORMATS = ALL_FORMATS.filter((format) => !/HLS|playlist/i.test(format.name)); // names files

/**
 * Read the frames of a Blob that sampleIndices takes.
 *
 * take({rgb, width, height}): called for each different frame, one after the other; what it returns
 * is kept. Returns {indices, seconds, total, kept, colours, decoder, codec}: seconds: when each
 * sampled frame is shown, from the first of the file; kept: what take returned for each; colours:
 * the worst of them, see toRgb. Throws InputError.
 */
export async function readFrames(file, frames, take) {
  if (!file.size) throw new InputError('it is empty (0 bytes)');
  if (file.size > MAX_BYTES) throw new InputError(`it is larger than ${MAX_BYTES / 2 ** 30} GiB`);
  const input = new Input({ source: new BlobSource(file), formats: FORMATS });
  try {
    const track = await mainTrack(input);
    const index = await scan(file, input, track);
    const indices = sampleIndices(index.order.length, frames);
    const decoded = await decode(track, index, indices, take);
    const start = index.packets[index.order[0]].timestamp;
    const seconds = indices.map((i) => index.packets[index.order[i]].timestamp - start);
    return { indices, seconds, total: index.order.length, ...decoded };
  } catch (error) {
    if (error instanceof InputError) throw error;
    throw new InputError(`it cannot be read: ${shown(error?.message ?? error, 200)}`);
  } finally {
    input.dispose();
  }
}

async function mainTrack(input) {
  let track;
  try {
    track = await input.getPrimaryVideoTrack();
  } catch {
    throw new InputError(
      'it is no video that this page reads (MP4, MOV, MKV, WebM, MPEG-TS), or it is damaged',
    );
  }
  if (!track) throw new InputError('it holds no video stream');
  const [width, height] = [await track.getCodedWidth(), await track.getCodedHeight()];
  if (width * height > MAX_PIXELS)
    throw new InputError(`frames of ${width}x${height} are too large`);
  return track;
}

// The packets in the order of decoding. order: the packet of every frame, as they are shown; shown:
// the same of all packets, hidden ones too.
async function scan(file, input, track) {
  const sink = new EncodedPacketSink(track);
  const hides = (await track.getCodec()) === 'vp8'; // packets that are only references (RFC 6386)
  const part = /mp4|quicktime/i.test((await input.getFormat()).name)
    ? await shownPart(file, track.id)
    : { from: -Infinity, to: Infinity };
  const unit = await track.getTimeResolution();
  const [from, to] = [part.from, part.to].map((seconds) => Math.round(seconds * unit));
  const packets = [];
  const order = [];
  for await (const packet of sink.packets(undefined, undefined, { metadataOnly: !hides })) {
    const time = Math.round(packet.timestamp * unit);
    const hidden = hides && !(packet.data[0] & 0x10);
    if (!hidden && time >= from && time < to) order.push(packets.length);
    packets.push({ time, timestamp: packet.timestamp, key: packet.type === 'key', packet });
    if (packets.length > MAX_FRAMES) throw new InputError(`it has more than ${MAX_FRAMES} frames`);
  }
  if (!order.length) throw new InputError('it holds no frame');
  const byTime = (a, b) => packets[a].time - packets[b].time;
  order.sort(byTime);
  const unsure = (why) =>
    new InputError(
      `${why}, so that its frames cannot be numbered surely; write it anew, as with ffmpeg`,
    );
  if (order.some((p, i) => i && packets[p].time === packets[order[i - 1]].time)) {
    throw unsure('it has two frames of one time');
  }
  if (!packets[0].key) throw unsure('it does not begin with a key frame');
  if (packets[order[0]].time < packets[0].time) {
    throw unsure('it begins within a group of pictures');
  }
  let latest = -Infinity; // no picture before a key frame is shown after it
  for (const { time, key } of packets) {
    if (key && time <= latest) throw unsure('its times fall back, as in joined recordings');
    latest = Math.max(latest, time);
  }
  const places = packets.map((_, i) => i).sort(byTime);
  places.forEach((packet, place) => Object.assign(packets[packet], { place }));
  return { sink, packets, order, shown: places };
}

// Runs [first, last] of packets that hold the wanted ones and begin with a key packet.
function runs(packets, wanted) {
  const found = [];
  for (const packet of [...wanted].sort((a, b) => a - b)) {
    let start = packet;
    // Frames shown before a key frame may build on the group before it.
    while (start > 0 && !(packets[start].key && packets[start].time <= packets[packet].time))
      start--;
    while (found.length && start <= found.at(-1)[1] + 1) start = Math.min(start, found.pop()[0]);
    found.push([start, packet]);
  }
  return found;
}

async function decode(track, index, indices, take) {
  const { config, decoder } = await usableConfig(track);
  const stated = await track.getColorSpace();
  const turn = { rotation: await track.getRotation(), flip: await track.getFlip() };
  const colours = new Set();
  const kept = new Map(); // by the packet of a frame
  const wanted = new Set(indices.map((i) => index.order[i]));
  const keep = async (packet, frame) => {
    const image = await toRgb(frame, stated, turn);
    colours.add(image.colours);
    kept.set(packet, await take(image));
  };
  for (const [first, end] of runs(index.packets, wanted)) {
    try {
      await decodeRun(config, index, [first, end], wanted, keep);
    } catch (error) {
      // What is marked as a key frame may still need pictures before it.
      if (!first) throw error;
      await decodeRun(config, index, [0, end], wanted, keep);
    }
  }
  const missing = indices.find((i) => !kept.has(index.order[i]));
  if (missing !== undefined) throw new InputError(`frame ${missing} of it does not decode`);
  return {
    kept: indices.map((i) => kept.get(index.order[i])),
    colours: ['browser', 'near', 'same'].find((word) => colours.has(word)),
    decoder,
    codec: config.codec,
  };
}

async function decodeRun(config, { sink, packets, shown: places }, [first, end], wanted, keep) {
  let failure = null;
  let last = -1;
  let kept = Promise.resolve();
  const fail = (error) => {
    failure ??= error instanceof InputError ? error : undecodable(error);
  };
  const output = (frame) => {
    const place = frame.timestamp / 1000; // of all packets, as they are shown
    if (place <= last) fail(new InputError('its frames do not come in the order of their times'));
    last = place;
    if (failure || !wanted.has(places[place])) return frame.close();
    kept = kept
      .then(() => keep(places[place], frame))
      .catch(fail)
      .finally(() => frame.close());
  };
  const decoder = new VideoDecoder({ output, error: fail });
  try {
    decoder.configure(config);
    let packet = first
      ? await sink.getNextPacket(packets[first - 1].packet)
      : await sink.getFirstPacket();
    for (let i = first; i <= end && packet && !failure; i++) {
      const type = i === first ? 'key' : packet.type;
      const timestamp = packets[i].place * 1000;
      decoder.decode(new EncodedVideoChunk({ type, timestamp, data: packet.data }));
      while (decoder.decodeQueueSize > 16 && !failure) await dequeued(decoder);
      packet = await sink.getNextPacket(packet);
    }
    if (!failure) await Promise.race([decoder.flush().catch(fail), late()]);
    await kept;
    if (failure) throw failure;
  } catch (error) {
    throw failure ?? error;
  } finally {
    if (decoder.state !== 'closed') decoder.close();
  }
}

const undecodable = (error) =>
  new InputError(`the browser cannot decode it: ${shown(error?.message ?? error, 200)}`);

const dequeued = (decoder) =>
  Promise.race([
    new Promise((done) => decoder.addEventListener('dequeue', done, { once: true })),
    late(),
  ]);

const late = () =>
  new Promise((_, refuse) => {
    setTimeout(() => refuse(new InputError("the browser's decoder does not answer")), LATE_MS);
  });

// The software decoder first: it shows the samples of its frames, and does not depend on the GPU.
async function usableConfig(track) {
  const config = await track.getDecoderConfig();
  if (!config) throw new InputError('its codec is not known to this page');
  for (const [hardwareAcceleration, decoder] of [
    ['prefer-software', 'software'],
    ['no-preference', "the browser's choice"],
  ]) {
    const full = { ...config, hardwareAcceleration };
    if ((await VideoDecoder.isConfigSupported(full)).supported) return { config: full, decoder };
  }
  throw new InputError(
    `this browser does not decode ${shown(config.codec)}; re-encode it as H.264`,
  );
}
