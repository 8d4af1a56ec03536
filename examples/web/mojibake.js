// Whether a text looks as if it had been decoded with the wrong character set ("cafÃ©"). Python
// repairs such texts; the page asks for them to be written properly.
// The characters and the patterns are those of ftfy 6.3 (badness.py; Robyn Speer; Apache-2.0).

const kinds = {
  common: '\u00A0\u00AD·´\u2013\u2014\u2015…’',
  c1: '\u0080-\u009F',
  bad: '¦¤¨¬¯¸ƒ\u02C6\u02C7\u02D8\u02DB\u02DC†‡‰⌐◊\uFFFDªº',
  law: '¶§',
  money: '¢£¥₧€',
  open: '¡«¿©\u0384\u0385‘‚“„•‹\uF8FF',
  close: '®»\u02DD”›™',
  number: '²³¹±¼½¾×µ÷⁄∂∆∏∑√∞∩∫≈≠≡≤≥№',
  faces: 'Ò-ÖÙ-Üò-öø-üŐŌŪŲ°',
  Upper: 'À-ÑØÜÝĂĀĄĆČĎĐĘĚĒĖĞĢİĪĶĹĽŁĻŃŇŅŒŘŚŞŠŢŤŮŰŸŹŻŽҐ',
  lower: 'ßà-ñăąāćčďđęěēėğģįīķĺľłļœŕśşšťüźżžґﬁﬂ',
  UpperPlain: 'ÞΑ-ΩΆΈΉΊΌΎΏΪΫЁ-Я',
  lowerPlain: 'α-ωάέήίΰа-џ',
  box: '│┌┐┘├┤┬┼═-╬▀▄█▌▐░▒▓',
};

const { common, c1, bad, law, money, open, close, number, faces } = kinds;
const { Upper, lower, UpperPlain, lowerPlain, box } = kinds;

const patterns = [
  String.raw`[${c1}]`,
  String.raw`[${bad}${lower}${Upper}${box}${open}${close}${money}${number}${law}][${bad}]`,
  String.raw`[a-zA-Z][${lowerPlain}${UpperPlain}][${bad}]`,
  String.raw`[${bad}][${lower}${Upper}${box}${open}${close}${money}${number}${law}]`,
  String.raw`[${lower}${lowerPlain}${box}${close}${money}${number}][${Upper}]`,
  String.raw`[${box}${close}${money}${number}][${lower}]`,
  String.raw`[${lower}${box}${close}][${money}]`,
  String.raw`\s[${Upper}][${money}]`,
  String.raw`[${Upper}${box}][${number}${law}]`,
  String.raw`[${lower}${Upper}${box}${money}${close}][${open}][${number}]`,
  String.raw`[${lower}${Upper}${money}${number}${box}${law}][${close}][${open}]`,
  String.raw`[${money}${number}${box}][${open}]`,
  String.raw`[a-z][${Upper}][${open}${money}]`,
  String.raw`[${box}][${faces}]`,
  String.raw`[${lower}${Upper}${money}${number}${open}${close}${law}][${box}]`,
  String.raw`[${box}][${close}]`,
  String.raw`[${lower}${Upper}][${open}${close}][\p{L}\p{N}_]`,
  String.raw`[Œœ][^A-Za-z]`,
  String.raw`[${Upper}]°`,
  String.raw`[ÂÃÎÐ][€œŠš¢£Ÿž\u00A0\u00AD®©°·»${open}${close}\u2013\u2014´]`,
  String.raw`×[²³]`,
  String.raw`[ØÙ][${common}${money}${bad}${number}${open}ŸŠ®°µ»][ØÙ][${common}${money}${bad}${number}${open}ŸŠ®°µ»]`,
  String.raw`à[²µ¹¼½¾]`,
  String.raw`√[±∂†≠®™´≤≥¥µø]`,
  String.raw`≈[°¢]`,
  String.raw`‚Ä[ìîïòôúùû†°¢π]`,
  String.raw`‚[âó][àä°ê]`,
  String.raw`вЂ`,
  String.raw`[ВГРС][${c1}${bad}${open}${close}${money}°µ][ВГРС]`,
  String.raw`ГўВЂВ.[A-Za-z ]`,
  String.raw`Ã[\u00A0¡]`,
  String.raw`[a-z]\s?[ÃÂ][ ]`,
  String.raw`^[ÃÂ][ ]`,
  String.raw`[a-z.,?!${close}]Â[ ${open}${close}]`,
  String.raw`β€[™\u00A0Ά\u00AD®°]`,
  String.raw`[ΒΓΞΟ][${c1}${bad}${open}${close}${money}°][ΒΓΞΟ]`,
  String.raw`ā€`,
];

const improbable = new RegExp(patterns.join('|'), 'u');

/** Whether Python's ftfy would try to repair the encoding of this text. */
export const looksLikeMojibake = (text) => improbable.test(text);
