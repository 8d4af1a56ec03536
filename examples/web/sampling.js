// Which frames of a video are looked at: stan_infer.sample_indices.

/** The sampling rule that a folder's manifest must name. */
export const RULE = 'round_half_even((n-1)/T*i) + trunc((n-1)/T/2)';

/** Frame numbers from 0, `frames` of them, of a video with `total`. */
export function sampleIndices(total, frames) {
  const segment = (total - 1) / frames;
  return Array.from(
    { length: frames },
    (_, i) => roundHalfEven(segment * i) + Math.trunc(segment / 2),
  );
}

function roundHalfEven(x) {
  const below = Math.floor(x);
  const rest = x - below;
  return below + (rest > 0.5 || (rest === 0.5 && below % 2 === 1) ? 1 : 0);
}
