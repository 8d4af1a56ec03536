// The page: what the user gives, and what is shown. Nothing of a stranger becomes HTML.

import { openEngine, webgpuProblem } from './engine.js';
import { InputError, shown } from './errors.js';
import { filesAt, filesOf, openFolder } from './folder.js';
import { cosine, mugScore, rowsOf, softmax } from './scores.js';
import { readFrames } from './video.js';

const MAX_TEXTS = 1000;
const MAX_FILES = 100; // at once
const ROWS = 10; // of a clip's table
const COLOURS = {
  same: 'Colours as in Python.',
  near: "Colours within a few levels of Python's: scores may differ slightly.",
  browser:
    'Colours by the browser, some levels from Python: scores may differ in the third decimal.',
};
const byId = (id) => document.getElementById(id);

/** What is open, for the console and for tests: {folder, engine, clips}. */
export const state = { folder: null, engine: null, clips: [] };

// One thing after the other: a session answers one call at a time.
let last = Promise.resolve();
function inTurn(work) {
  last = last.then(work).catch((error) => {
    say(
      error instanceof InputError ? error.message : `a bug of this page: ${error?.stack ?? error}`,
    );
  });
  return last;
}

/** Fulfilled when nothing is left to do. */
export const idle = () => last;

function say(message) {
  byId('message').textContent = message;
  byId('message').hidden = !message;
}

function element(name, text = '', more = {}) {
  const made = Object.assign(document.createElement(name), more);
  made.textContent = text;
  return made;
}

// What stands on the page is painted before work that keeps the browser busy.
const painted = () =>
  new Promise((done) => {
    requestAnimationFrame(() => setTimeout(done));
  });

async function open(read, name) {
  say('');
  busy(true);
  byId('model').textContent = `Opening ${name}…`;
  await painted();
  await state.engine?.close();
  Object.assign(state, { folder: null, engine: null, clips: [] });
  byId('results').replaceChildren();
  try {
    const folder = await openFolder(read);
    await start(folder, chosenEngine());
    state.folder = folder;
  } catch (error) {
    byId('model').textContent = 'No model is open.';
    if (!(error instanceof InputError)) throw error;
    throw new InputError(`${name}: ${error.message}`);
  }
  const { model, labels, tokenizer } = state.folder;
  byId('model').textContent =
    `${name}: ${model.frames} frames of ${model.image_size}x${model.image_size} pixels, ` +
    `vectors of ${model.embed_dim}, head ${model.head}.` +
    (tokenizer ? '' : ' It has no text tower: only its labels are scored.');
  byId('labels-row').hidden = !labels;
  byId('labels-row').querySelector('span').textContent = labels
    ? `the ${labels.names.length} labels of the folder`
    : '';
  byId('texts').disabled = !tokenizer;
  busy(false);
}

async function start(folder, name) {
  state.engine = null;
  state.engine = await openEngine(name, folder);
  document.documentElement.dataset.engine = name;
}

function busy(yes) {
  byId('files').disabled = yes;
  byId('ask').querySelector('button').disabled = yes;
}

const chosenEngine = () => document.querySelector('[name=engine]:checked').value;

async function offerEngines() {
  const problem = await webgpuProblem();
  for (const radio of document.querySelectorAll('[name=engine]')) {
    radio.disabled = radio.value === 'webgpu' && Boolean(problem);
    radio.checked = radio.value === (problem ? 'wasm' : 'webgpu');
    radio.addEventListener('change', () => inTurn(changeEngine));
  }
  byId('engine-note').textContent = problem
    ? `WebAssembly, because ${problem}.`
    : 'preprocess.onnx, and what WebGPU lacks, runs on WebAssembly.';
}

async function changeEngine() {
  if (!state.folder) return;
  say('');
  busy(true);
  await state.engine?.close();
  await start(state.folder, chosenEngine());
  for (const clip of state.clips) Object.assign(clip, await state.engine.embed(clip.pixels));
  busy(false);
  await score();
}

async function addClips(files) {
  if (!state.engine) throw new InputError('open a model first');
  if (files.length > MAX_FILES)
    throw new InputError(`${files.length} files; at most ${MAX_FILES} at once`);
  say('');
  for (const file of files) {
    const article = element('article');
    article.append(element('h3', shown(file.name, 120)));
    byId('results').prepend(article);
    byId('work').textContent = `Reading ${shown(file.name)}…`;
    await painted();
    try {
      const clip = await readClip(file);
      state.clips.push({ ...clip, article });
      showFrames(article, clip);
    } catch (error) {
      if (!(error instanceof InputError)) throw error;
      article.append(
        element('p', `${shown(file.name)}: ${error.message}`, { className: 'problem' }),
      );
    } finally {
      byId('work').textContent = '';
    }
  }
  await score();
}

async function readClip(file) {
  const { image_size: side, frames } = state.folder.model;
  const found = await readFrames(file, frames, (image) => state.engine.resize(image));
  const pixels = new Uint8Array(frames * side * side * 3);
  found.kept.forEach((image, i) => pixels.set(image, i * side * side * 3));
  return { name: file.name, ...found, pixels, ...(await state.engine.embed(pixels)) };
}

function showFrames(article, { indices, seconds, kept, total, codec, decoder, colours }) {
  const side = state.folder.model.image_size;
  const list = element('ol', '', { className: 'frames' });
  indices.forEach((number, i) => {
    const canvas = element('canvas', '', { width: side, height: side, role: 'img' });
    const when = `${seconds[i].toFixed(2)} s`;
    canvas.setAttribute('aria-label', `frame ${number}, at ${when}`);
    const image = new ImageData(side, side);
    for (let p = 0; p < side * side; p++) {
      image.data.set([...kept[i].subarray(p * 3, p * 3 + 3), 255], p * 4);
    }
    canvas.getContext('2d').putImageData(image, 0, 0);
    const item = element('li');
    item.append(canvas, `${when}, ${number}`);
    list.append(item);
  });
  const facts =
    `${total} frames, counted; ${indices.length} are looked at, as the model sees them: time and ` +
    `number. ${shown(codec)}, decoder: ${decoder}. `;
  article.append(list, element('p', facts + COLOURS[colours], { className: 'soft' }));
}

/** The texts that are asked for: {names, scores}: scores(clip) -> a number for each. */
async function question() {
  const {
    folder: { model, tokenizer, labels },
    engine,
  } = state;
  const mean = model.head === 'mean';
  const typed = tokenizer
    ? byId('texts')
        .value.split('\n')
        .map((t) => t.trim())
        .filter(Boolean)
    : [];
  if (typed.length > MAX_TEXTS) throw new InputError(`${typed.length} texts; at most ${MAX_TEXTS}`);
  const ids = typed.map((text) => tokenizer.fitted(text, model.context_length));
  const rows = (typed.length ? await engine.embedTexts(ids) : []).map(({ text, tokens }, i) => ({
    text,
    tokens: mean ? null : rowsOf(tokens, model.embed_dim),
    kept: ids[i].map((id) => id !== 0),
  }));
  if (labels && byId('labels').checked) {
    const all = rowsOf(
      mean ? labels.embeddings : labels.tokens,
      model.embed_dim * (mean ? 1 : model.context_length),
    );
    all.forEach((row, i) =>
      rows.push(
        mean
          ? { text: row }
          : {
              tokens: rowsOf(row, model.embed_dim),
              kept: Array.from(rowsOf(labels.ids, model.context_length)[i], (id) => id !== 0),
            },
      ),
    );
    typed.push(...labels.names);
  }
  return {
    names: typed,
    scores: ({ video, frames }) => {
      const perFrame = rowsOf(frames, model.embed_dim);
      return rows.map(({ text, tokens, kept }) =>
        mean ? cosine(text, video) : mugScore(tokens, kept, perFrame, model.head, model.mug_tau),
      );
    },
  };
}

async function score() {
  if (!state.engine) return;
  say('');
  const { names, scores } = await question();
  for (const clip of state.clips) {
    clip.scores = scores(clip);
    clip.names = names;
    clip.article.querySelector('table')?.remove();
    if (names.length) clip.article.append(table(clip));
  }
  if (state.clips.length && !names.length) say('write a text, or choose the labels');
}

function table({ names, scores }) {
  const shares = softmax(scores.map((s) => s / state.folder.model.temperature));
  const made = element('table');
  const head = element('tr');
  head.append(...['text', 'score', 'probability'].map((t) => element('th', t, { scope: 'col' })));
  made.append(head);
  const best = names.map((_, i) => i).sort((a, b) => scores[b] - scores[a]);
  for (const i of best.slice(0, ROWS)) {
    const row = element('tr');
    const name = element('td', shown(names[i], 200));
    name.append(element('meter', '', { value: shares[i], ariaHidden: 'true' }));
    row.append(name, element('td', scores[i].toFixed(4)), element('td', shares[i].toFixed(3)));
    made.append(row);
  }
  if (names.length > ROWS)
    made.append(element('caption', `the best ${ROWS} of ${names.length} texts`));
  return made;
}

function listen() {
  const drop = byId('drop');
  byId('files').addEventListener('change', (event) => {
    const files = [...event.target.files];
    event.target.value = '';
    inTurn(() => addClips(files));
  });
  byId('folder').addEventListener('change', ({ target }) => {
    if (target.files.length)
      inTurn(() =>
        open(filesOf(target.files), shown(target.files[0].webkitRelativePath.split('/')[0])),
      );
  });
  byId('ask').addEventListener('submit', (event) => {
    event.preventDefault();
    inTurn(score);
  });
  for (const name of ['dragover', 'dragleave', 'drop']) {
    document.addEventListener(name, (event) => {
      event.preventDefault(); // a file that is dropped beside the field must not replace the page
      drop.classList.toggle('over', name === 'dragover');
      if (name === 'drop' && event.dataTransfer.files.length) {
        const files = [...event.dataTransfer.files];
        inTurn(() => addClips(files));
      }
    });
  }
}

const lacks = [
  [
    !globalThis.isSecureContext,
    'open this page as https:// or from localhost: browsers decode and hash only there',
  ],
  [
    !globalThis.VideoDecoder,
    'this browser has no WebCodecs (VideoDecoder), which the exact frames need',
  ],
  [!globalThis.WebAssembly, 'this browser has no WebAssembly'],
].find(([missing]) => missing);
if (lacks) {
  say(lacks[1]);
} else {
  listen();
  inTurn(offerEngines);
  inTurn(() => open(filesAt(new URL('./model/', document.baseURI)), 'model'));
}
