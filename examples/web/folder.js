// An exported folder, which may come from a stranger: sizes are bounded before anything is read,
// names lead nowhere else, and every file's hash is compared before it is used.

import { InputError, shown } from './errors.js';
import { readNpz } from './npz.js';
import { RULE } from './sampling.js';
import { RULES } from './text.js';
import { Tokenizer } from './tokenizer.js';

const MIB = 2 ** 20;
const MAX_LABELS = 100_000;
// Most bytes of a file by what it is for: WebAssembly has 4 GiB for everything.
const MOST = { graph: 1536 * MIB, preprocess: MIB, small: 16 * MIB, arrays: 256 * MIB };
const ROLES = ['preprocess', 'video', 'text'];

/** A function (name, most) -> bytes that reads files below an address of this site. */
export const filesAt = (address) => async (name, most) => {
  const answer = await fetch(new URL(encodeURIComponent(name), address));
  if (!answer.ok) throw new InputError(`${shown(name)} is not there (${answer.status})`);
  const parts = [];
  let size = 0;
  for await (const part of chunks(answer.body)) {
    size += part.length;
    if (size > most) throw new InputError(`${shown(name)} has more than ${most} bytes`);
    parts.push(part);
  }
  return new Uint8Array(await new Blob(parts).arrayBuffer());
};

/** The same for a folder that was chosen in an <input webkitdirectory>. */
export const filesOf = (list) => async (name, most) => {
  const file = Array.from(list).find(
    (f) => f.webkitRelativePath.split('/').slice(1).join('/') === name,
  );
  if (!file) throw new InputError(`${shown(name)} is not there`);
  if (file.size > most) throw new InputError(`${shown(name)} has more than ${most} bytes`);
  return new Uint8Array(await file.arrayBuffer());
};

// Safari cannot iterate a stream.
async function* chunks(stream) {
  const reader = stream.getReader();
  for (let part; !(part = await reader.read()).done;) yield part.value;
}

/**
 * Read a folder. Returns {model, graphs, tokenizer, labels}: model: of the manifest; graphs: by
 * role {bytes, data, batch, frames}; tokenizer: null without a text tower; labels: null or {names,
 * embeddings} or, with a Mug head, {names, tokens, ids}. Throws InputError.
 */
export async function openFolder(read) {
  const manifest = parsed(await read('manifest.json', MIB), 'manifest.json');
  const model = checkedModel(manifest);
  const file = async (name, most) => {
    const entry =
      /^[A-Za-z0-9][A-Za-z0-9._-]{0,80}$/.test(name) && Object.hasOwn(manifest.files, name)
        ? manifest.files[name]
        : null;
    if (!entry) throw new InputError(`manifest.json does not list the file "${shown(name)}"`);
    if (!(entry.bytes <= most)) {
      throw new InputError(`${name} has ${shown(entry.bytes)} bytes; this page takes ${most}`);
    }
    const bytes = await read(name, entry.bytes);
    const digest = new Uint8Array(await crypto.subtle.digest('SHA-256', bytes));
    const hash = Array.from(digest, (b) => b.toString(16).padStart(2, '0')).join('');
    if (bytes.length !== entry.bytes || hash !== entry.sha256) {
      throw new InputError(`${name} is not the file of manifest.json: fetch the folder again`);
    }
    return bytes;
  };
  const graphs = {};
  for (const graph of manifest.graphs) {
    if (!ROLES.includes(graph?.role)) continue; // "score" is computed here
    if (graphs[graph.role]) throw new InputError(`manifest.json has two graphs for ${graph.role}`);
    graphs[graph.role] = await readGraph(graph, file);
  }
  checkGraphs(graphs, model);
  const tokenizer = graphs.text
    ? new Tokenizer(parsed(await file('tokenizer.json', MOST.small), 'tokenizer.json'))
    : null;
  return { model, graphs, tokenizer, labels: await readLabels(manifest.labels, model, file) };
}

function parsed(bytes, name) {
  try {
    return JSON.parse(new TextDecoder('utf-8', { fatal: true }).decode(bytes));
  } catch (error) {
    throw new InputError(`${name} is no JSON (${shown(error.message)}): export the model again`);
  }
}

function checkedModel(manifest) {
  const { model, preprocess, text, schema } = manifest ?? {};
  const same = (a, b) => JSON.stringify(a) === JSON.stringify(b);
  const whole = (key, least, most) =>
    Number.isInteger(model[key]) && model[key] >= least && model[key] <= most;
  const checks = {
    schema: typeof schema === 'string' && schema.split('.')[0] === '1',
    model:
      model &&
      whole('frames', 1, 64) &&
      whole('image_size', 1, 4096) &&
      whole('embed_dim', 1, 16384) &&
      whole('context_length', 3, 77) &&
      ['mean', 'mug', 'mug_frame_token'].includes(model.head) &&
      model.temperature > 0 &&
      model.mug_tau > 0,
    'preprocess (export with --input uint8)':
      preprocess?.input_dtype === 'uint8' &&
      preprocess.layout === 'BTHWC' &&
      preprocess.color === 'RGB',
    'preprocess.crop': preprocess?.crop === 'center',
    'preprocess.sampling':
      preprocess?.sampling?.rule === RULE && preprocess.sampling.frames === model?.frames,
    text:
      !text || (same(text.clean, RULES) && text.truncation === 'keep-eot' && text.padding === 0),
    files: manifest?.files && typeof manifest.files === 'object',
    graphs: Array.isArray(manifest?.graphs) && manifest.graphs.length <= 16,
  };
  const wrong = Object.keys(checks).find((name) => !checks[name]);
  if (wrong) throw new InputError(`manifest.json: ${wrong} is not what this page knows`);
  return model;
}

async function readGraph(graph, file) {
  const most = graph.role === 'preprocess' ? MOST.preprocess : MOST.graph;
  const data = [];
  for (const name of listOf(graph.external_data)) {
    if (data.length || name !== `${graph.file}.data`) {
      throw new InputError(`manifest.json: weights of ${shown(graph.file)} lie in ${shown(name)}`);
    }
    data.push({ path: name, data: await file(name, most) });
  }
  const [low, high] = listOf(graph.dims?.batch ?? graph.dims?.n);
  return {
    bytes: await file(graph.file, most),
    data,
    batch: [low, high],
    frames: listOf(graph.dims?.frames),
  };
}

const listOf = (value) => (Array.isArray(value) ? value : []);

function checkGraphs(graphs, model) {
  const within = ([low, high], value) => low <= value && value <= high;
  for (const role of ['preprocess', 'video']) {
    if (!graphs[role])
      throw new InputError(`the folder has no graph for ${role}: export the model again`);
    if (!within(graphs[role].batch, 1))
      throw new InputError(`${role}.onnx takes no single clip or frame`);
  }
  if (!within(graphs.video.frames, model.frames)) {
    throw new InputError(`video.onnx does not take the model's ${model.frames} frames`);
  }
  const [low, high] = graphs.text?.batch ?? [1, 1];
  if (!(low >= 1 && low <= 4096 && low <= high))
    throw new InputError('text.onnx: its batch is wrong');
}

async function readLabels(entry, model, file) {
  if (!entry) return null;
  const text = new TextDecoder().decode(await file(entry.file, MOST.small));
  const names = text.split('\n').slice(0, -1);
  if (!names.length || names.length > MAX_LABELS) {
    throw new InputError(
      `${entry.file} has ${names.length} labels; allowed are 1 to ${MAX_LABELS}`,
    );
  }
  const arrays = readNpz(await file(entry.embeddings, MOST.arrays), entry.embeddings);
  const array = (name, type, ...shape) => {
    const found = arrays.get(name);
    if (found?.data instanceof type && String(found.shape) === String(shape)) return found.data;
    throw new InputError(
      `${entry.embeddings}: ${name} is not what the ${names.length} labels need`,
    );
  };
  const [n, width, length] = [names.length, model.embed_dim, model.context_length];
  if (model.head === 'mean')
    return { names, embeddings: array('embeddings', Float32Array, n, width) };
  return {
    names,
    tokens: array('token_embeds', Float32Array, n, length, width),
    ids: array('input_ids', Int32Array, n, length),
  };
}
