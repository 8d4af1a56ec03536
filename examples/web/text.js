// A text as the model was trained on it: what Python does before it splits the text into tokens
// (stan_infer/text/tokenizer.py). The steps have the names and the order of ftfy 6.3.

import { InputError, shown } from './errors.js';
import { looksLikeMojibake } from './mojibake.js';

/** The rules that a folder's manifest must name. */
export const RULES = [
  'ftfy.fix_text',
  'html.unescape',
  'html.unescape',
  'white space',
  'lower case',
];
const MAX_CHARACTERS = 10_000;
const SPACE = /[\t-\r\x1c-\x20\x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]+/u;

/** The cleaned text. Throws InputError for one that this page cannot clean as Python does. */
export function clean(text) {
  if (Array.from(text).length > MAX_CHARACTERS) {
    throw new InputError(`a text has more than ${MAX_CHARACTERS} characters: this is no caption`);
  }
  const plain = unescapeHtml(unescapeHtml(fixText(text)));
  return plain.split(SPACE).filter(Boolean).join(' ').toLowerCase();
}

function fixText(text) {
  let unescape = true;
  return text
    .toWellFormed()
    .split(/(?<=\n)/)
    .map((line) => {
      unescape &&= !line.includes('<'); // it is HTML then, here and on all lines that follow
      return fixLine(line, unescape);
    })
    .join('');
}

function fixLine(line, unescape) {
  for (;;) {
    const before = line;
    if (unescape) line = line.replace(/&#?[0-9A-Za-z]{1,24};/g, clearEntity);
    if (looksLikeMojibake(line)) {
      throw new InputError(
        `the text "${shown(line, 40)}" looks as if it had been decoded with the wrong character ` +
          'set; Python would try to repair it and this page cannot: write it properly',
      );
    }
    line = line
      .replace(/[\u0132\u0133\u0149\u01c4-\u01cc\u01f1-\u01f3\ufb00-\ufb06]/g, ligature)
      .replace(/[\uff01-\uffef]/g, (c) => c.normalize('NFKC'))
      .replaceAll('\u3000', ' ')
      .replace(/[\u201c-\u201f]/g, '"')
      .replace(/[\u02bc\u2018-\u201b]/g, "'")
      .replace(/\r\n|[\r\u2028\u2029\x85]/g, '\n')
      .replace(/\x1b\[[\p{Nd};]*[a-zA-Z]/gu, '')
      .replace(/[\0-\x08\x0b\x0e-\x1f\x7f\u206a-\u206f\ufeff\ufff9-\ufffc]/g, '')
      .normalize('NFC');
    if (line === before) return line;
  }
}

// ftfy has its own values for two of them.
const ligature = (c) => ({ '\u0149': '\u02bcn', '\ufb05': '\u017ft' })[c] ?? c.normalize('NFKC');

// Only what is surely an entity; also names in capitals where HTML has them in lower case only.
function clearEntity(whole) {
  if (whole[1] === '#') {
    const value = unescapeHtml(whole);
    return value.includes(';') ? whole : value;
  }
  const named = nameValue(whole);
  if (named !== undefined) return named;
  const small = whole.toLowerCase();
  if (whole === small.toUpperCase() && unescapeHtml(whole) === whole) {
    return nameValue(small)?.toUpperCase() ?? whole;
  }
  return whole;
}

// The value of a character reference ("&eacute;", or "&eacute" where HTML knows it so), or
// undefined. The browser's own table is asked, once for each name, and never for a whole text.
const known = new Map();
const reader = globalThis.document?.implementation.createHTMLDocument('').createElement('textarea');
function nameValue(reference) {
  if (!/^&[A-Za-z][A-Za-z0-9]*;?$/.test(reference)) return undefined;
  if (!known.has(reference)) {
    reader.innerHTML = reference;
    const value = reader.textContent;
    // Where only a beginning is known, the rest stays behind it.
    const whole = reference.endsWith(';')
      ? !value.endsWith(';') || value === ';'
      : value.length === 1;
    if (known.size > 10_000) known.clear();
    known.set(reference, whole ? value : undefined);
  }
  return known.get(reference);
}

/** Python's html.unescape. */
function unescapeHtml(text) {
  return text.replace(/&(#[0-9]+;?|#[xX][0-9a-fA-F]+;?|[^\t\n\f <&#;]{1,32};?)/g, (whole, name) => {
    if (name[0] === '#') return character(name.slice(1).replace(';', ''));
    const exact = nameValue(whole);
    if (exact !== undefined) return exact;
    for (let used = name.length - 1; used > 1; used--) {
      // "&notit": the longest known beginning
      const value = nameValue(`&${name.slice(0, used)}`);
      if (value !== undefined) return value + name.slice(used);
    }
    return whole;
  });
}

const WINDOWS_1252 = new TextDecoder('windows-1252');
function character(digits) {
  const hex = /^[xX]/.test(digits);
  const number = hex ? parseInt(digits.slice(1), 16) : parseInt(digits, 10);
  if (number === 0 || (number >= 0xd800 && number <= 0xdfff) || number > 0x10ffff) return '\ufffd';
  if (number === 13) return '\r';
  if (number >= 0x80 && number <= 0x9f) return WINDOWS_1252.decode(new Uint8Array([number]));
  const none = (number & 0xfffe) === 0xfffe || (number >= 0xfdd0 && number <= 0xfdef);
  const control = number < 0x20 && ![9, 10, 12].includes(number);
  return none || control || number === 0x7f || number === 0xb ? '' : String.fromCodePoint(number);
}
