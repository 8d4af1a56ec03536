// Scores of one clip, as stan_infer/scores.py computes them. Rows are Float32Array.

/** Cosine of two vectors; NaN where one is zero. */
export const cosine = (a, b) => dot(a, b) / Math.sqrt(dot(a, a) * dot(b, b));

/** Cut a flat array into rows. */
export const rowsOf = (data, width) =>
  Array.from({ length: data.length / width }, (_, i) => data.subarray(i * width, (i + 1) * width));

/** Mug score of tokens (rows; kept: false for padding) with frames (rows). head: see a manifest. */
export function mugScore(tokens, kept, frames, head, tau) {
  const simple = head === 'mug';
  const rows = tokens
    .map((row, i) => ({ row: unit(row), kept: kept[i] }))
    .filter((t) => t.kept || !simple);
  const units = frames.map(unit);
  const d = rows.map(({ row }) => units.map((frame) => tau * dot(row, frame)));
  const seen = d.map((line, i) => line.map((x) => (rows[i].kept ? x : 0))); // for the weights
  const perToken = d.map((line, i) => dot(softmax(seen[i]), line));
  const perFrame = units.map((_, t) =>
    dot(
      softmax(
        seen.map((line) => line[t]),
        true,
      ),
      d.map((line) => line[t]),
    ),
  );
  const [p, q] = [softmax(perToken, true), softmax(perFrame)];
  if (simple) return (dot(p, perToken) + dot(q, perFrame)) / 2 / tau;
  return (
    dot(
      p,
      d.map((line) => dot(line, q)),
    ) / tau
  );
}

/** Shares of 1 by exp. skipZeros: entries that are exactly 0 get none. */
export function softmax(values, skipZeros = false) {
  const given = values.map((x) => (skipZeros && x === 0 ? -Infinity : x));
  const top = Math.max(...given);
  const powers = given.map((x) => Math.exp(x - top));
  const sum = powers.reduce((a, b) => a + b, 0);
  return powers.map((x) => x / sum);
}

const unit = (row) => {
  const length = Math.max(Math.sqrt(dot(row, row)), 1e-6);
  return Array.from(row, (x) => x / length);
};

function dot(a, b) {
  let sum = 0;
  for (let i = 0; i < a.length; i++) sum += a[i] * b[i];
  return sum;
}
