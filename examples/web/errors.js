/** Something that the user gave and can mend: its message is shown as it is, in one line. */
export class InputError extends Error {}

// Not the joiner that emoji are made with.
const HARMFUL = /(?:(?!\u200d)[\p{C}\p{Z}])+/gu;

/** A stranger's words to be shown: one line without controls, not too long. */
export const shown = (text, most = 80) =>
  Array.from(String(text).replace(HARMFUL, ' ').trim()).slice(0, most).join('');
