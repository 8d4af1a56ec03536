// CLIP's byte-level BPE from a folder's tokenizer.json: the ids that stan_infer.tokenize gives.

import { InputError, shown } from './errors.js';
import { clean } from './text.js';

const START = 49406;
const END = 49407;
const MERGES = 48894;
const SPECIAL = new Map([
  ['<|startoftext|>', START],
  ['<|endoftext|>', END],
]);
const PATTERN =
  "<\\|[sſ]tartoftext\\|>|<\\|endoftext\\|>|'[sſ]|'t|'re|'ve|'m|'ll|'d|[\\p{L}]+|[\\p{N}]" +
  '|[^\\s\\p{L}\\p{N}\\x{345}]+';
const PIECES = new RegExp(PATTERN.replace('\\x{345}', '\\u0345'), 'gu');

export class Tokenizer {
  #merges = new Map(); // key of two ids -> the id of both; of two merges the smaller id goes first
  #bytes = new Map(); // byte -> id
  #words = new Map(); // a piece -> its ids

  /** content: a parsed tokenizer.json. Throws InputError unless it is one as export writes it. */
  constructor(content) {
    const wrong = (why) =>
      new InputError(`tokenizer.json is not as export writes it (${why}): export the model again`);
    const { model, pre_tokenizer: before, normalizer, added_tokens: added } = content ?? {};
    if (
      model?.type !== 'BPE' ||
      model.end_of_word_suffix !== '</w>' ||
      normalizer !== null ||
      before?.pretokenizers?.[0]?.pattern?.Regex !== PATTERN ||
      added?.length !== 0
    ) {
      throw wrong('its rules are others');
    }
    if (!Array.isArray(model.merges) || model.merges.length !== MERGES)
      throw wrong(`it has other than ${MERGES} merges`);
    const ids = new Map(); // of every token: bytes, bytes that end a word, merges, special ones
    for (const end of ['', '</w>'])
      for (const [, symbol] of symbols()) ids.set(symbol + end, ids.size);
    for (const [byte, symbol] of symbols()) this.#bytes.set(byte, ids.get(symbol));
    model.merges.forEach((merge, rank) => {
      const [a, b, ...more] =
        typeof merge === 'string' ? merge.split(' ') : Array.from(merge ?? []);
      if (more.length || !ids.has(a) || !ids.has(b)) throw wrong(`merge ${rank} joins no tokens`);
      ids.set(a + b, 512 + rank);
      this.#merges.set(key(ids.get(a), ids.get(b)), 512 + rank);
    });
    for (const [word, id] of SPECIAL) ids.set(word, id);
    const given = Object.entries(model.vocab ?? {});
    const other = given.find(([word, id]) => ids.get(word) !== id);
    if (given.length !== ids.size || other)
      throw wrong(`the id of ${shown(other?.[0])} is another`);
  }

  /** All ids of a text, with the start and the end token. Throws InputError (see text.clean). */
  encode(text) {
    const ids = [START];
    for (const [piece] of clean(text).matchAll(PIECES)) {
      ids.push(...(SPECIAL.has(piece) ? [SPECIAL.get(piece)] : this.#word(piece)));
    }
    return [...ids, END];
  }

  /** As encode, in `length` ids: filled up with 0, or cut and ended with the end token. */
  fitted(text, length) {
    const ids = this.encode(text);
    if (ids.length > length) return [...ids.slice(0, length - 1), END];
    return [...ids, ...Array(length - ids.length).fill(0)];
  }

  #word(piece) {
    if (this.#words.has(piece)) return this.#words.get(piece);
    const parts = Array.from(new TextEncoder().encode(piece), (byte) => this.#bytes.get(byte));
    parts[parts.length - 1] += 256; // the byte that ends a word
    for (;;) {
      let best = Infinity;
      const pairs = parts.map((id, i) => this.#merges.get(key(id, parts[i + 1])) ?? Infinity);
      for (const id of pairs) best = Math.min(best, id);
      if (best === Infinity) break;
      let kept = 0;
      for (let i = 0; i < parts.length; i++) {
        parts[kept++] = pairs[i] === best ? best : parts[i];
        if (pairs[i] === best) i++;
      }
      parts.length = kept;
    }
    if (this.#words.size > 10_000) this.#words.clear();
    this.#words.set(piece, parts);
    return parts;
  }
}

const key = (left, right) => left * 65536 + right; // NaN where there is no right one

// GPT-2's printable character for every byte, in CLIP's order.
function symbols() {
  const printable = (b) => (b > 32 && b < 127) || (b > 160 && b !== 173);
  const bytes = Array.from({ length: 256 }, (_, b) => b);
  return [
    ...bytes.filter(printable).map((b) => [b, String.fromCharCode(b)]),
    ...bytes.filter((b) => !printable(b)).map((b, i) => [b, String.fromCharCode(256 + i)]),
  ];
}
