// The graphs of a folder in ONNX Runtime Web.

import { InputError, shown } from './errors.js';

const DIST = new URL('./node_modules/onnxruntime-web/dist/', import.meta.url);
const RUNTIMES = { wasm: 'ort.wasm.min.mjs', webgpu: 'ort.webgpu.min.mjs' };
const TEXTS_AT_ONCE = 64;

/** Why WebGPU cannot be used here, or nothing. */
export async function webgpuProblem() {
  if (!navigator.gpu) return 'this browser has no WebGPU';
  const adapter = await navigator.gpu.requestAdapter().catch(() => null);
  return adapter ? '' : 'this browser finds no GPU for WebGPU';
}

/**
 * Open a folder's graphs. name: "wasm" or "webgpu"; another one is never taken in its place. Only
 * preprocess.onnx always runs on WebAssembly: it works on bytes. Throws InputError.
 */
export async function openEngine(name, { graphs, model }) {
  const sessions = {};
  for (const [role, graph] of Object.entries(graphs)) {
    const provider = role === 'preprocess' ? 'wasm' : name;
    const ort = await runtime(provider);
    try {
      const options = { executionProviders: [provider], externalData: graph.data };
      sessions[role] = [ort, await ort.InferenceSession.create(graph.bytes, options)];
    } catch (error) {
      const advice = provider === 'webgpu' ? '; choose WebAssembly' : '';
      throw new InputError(
        `${role}.onnx does not open: ${shown(error.message ?? error, 200)}${advice}`,
      );
    }
  }
  return new Engine(name, sessions, graphs, model);
}

// The one for WebGPU has few operations for WebAssembly, so each engine has its own.
async function runtime(provider) {
  const ort = await import(new URL(RUNTIMES[provider], DIST));
  Object.assign(ort.env.wasm, { numThreads: 1, wasmPaths: DIST.href });
  ort.env.logLevel = 'error';
  return ort;
}

class Engine {
  #sessions;
  #graphs;
  #model;

  constructor(name, sessions, graphs, model) {
    [this.name, this.#sessions, this.#graphs, this.#model] = [name, sessions, graphs, model];
  }

  /** Resize and crop an RGB image -> Uint8Array [S, S, 3]. */
  async resize({ rgb, width, height }) {
    const side = this.#model.image_size;
    const frames = new Uint8Array(rgb.buffer, rgb.byteOffset, rgb.length);
    const { pixels } = await this.#run('preprocess', 'uint8', { frames }, [1, height, width, 3]);
    return pixels.data.length === side * side * 3 ? pixels.data : wrongSize('preprocess');
  }

  /** Pixels of one clip, Uint8Array [T, S, S, 3] -> {video [E], frames [T, E]} Float32Array. */
  async embed(video) {
    const { image_size: side, frames, embed_dim: width } = this.#model;
    const found = await this.#run('video', 'uint8', { video }, [1, frames, side, side, 3]);
    const [clip, perFrame] = [found.video_embeds?.data, found.frame_embeds?.data];
    if (clip?.length !== width || perFrame?.length !== frames * width) wrongSize('video');
    return { video: Float32Array.from(clip), frames: Float32Array.from(perFrame) };
  }

  /** Rows of token ids -> one {text [E], tokens [L, E]} for each. */
  async embedTexts(rows) {
    const [least, most] = this.#graphs.text.batch;
    const { context_length: length, embed_dim: width } = this.#model;
    const found = [];
    const step = Math.max(least, Math.min(most, TEXTS_AT_ONCE));
    for (let at = 0; at < rows.length; at += step) {
      const part = rows.slice(at, at + step);
      while (part.length < least) part.push(rows.at(-1)); // a graph with a fixed batch wants all
      const ids = Int32Array.from(part.flat());
      const answer = await this.#run('text', 'int32', { input_ids: ids }, [part.length, length]);
      const [texts, tokens] = [answer.text_embeds?.data, answer.token_embeds?.data];
      if (texts?.length !== part.length * width) wrongSize('text');
      for (let i = 0; i < Math.min(step, rows.length - at); i++) {
        found.push({
          text: Float32Array.from(texts.slice(i * width, (i + 1) * width)),
          tokens:
            tokens && Float32Array.from(tokens.slice(i * length * width, (i + 1) * length * width)),
        });
      }
    }
    return found;
  }

  /** Free the memory of all graphs. */
  async close() {
    for (const [, session] of Object.values(this.#sessions)) await session.release();
  }

  async #run(role, type, inputs, shape) {
    const [[name, data]] = Object.entries(inputs);
    const [ort, session] = this.#sessions[role];
    try {
      return await session.run({ [name]: new ort.Tensor(type, data, shape) });
    } catch (error) {
      throw new InputError(`${role}.onnx does not run: ${shown(error?.message ?? error, 200)}`);
    }
  }
}

function wrongSize(role) {
  throw new InputError(
    `${role}.onnx gives other sizes than manifest.json says: export the model again`,
  );
}
