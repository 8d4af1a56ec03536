// A decoded frame as RGB, as Python gives it (stan_infer/video/rgb.py): the arithmetic of FFmpeg's
// converter, in 16 bits. Where the browser does not show a frame's samples, it converts itself.

// For red by V, blue by U, green by U and V, times 65536, by WebCodecs' names of matrices. All that
// is not given or not known counts as BT.601, as in Python.
const BT601 = [104597, 132201, 25675, 53279];
const MATRICES = {
  bt709: [117489, 138438, 13975, 34925],
  'bt2020-ncl': [110013, 140363, 12277, 42626],
};

/**
 * {rgb, width, height, colours} of a VideoFrame. colours: "same" as in Python to the level; "near":
 * some levels off, where Python's converter interpolates; "browser": converted by the browser, as
 * it does not show the frame's samples.
 *
 * stated: what the file says of colours, {matrix, fullRange}. rotation: clockwise, 0 to 270; flip:
 * mirrored left to right after that.
 */
export async function toRgb(frame, stated, { rotation, flip }) {
  const { width, height } = frame.visibleRect;
  const planes = await readPlanes(frame);
  const rgb = planes ? convert(planes, width, height, stated) : await browsersRgb(frame);
  return {
    ...turned({ rgb, width, height }, rotation, flip),
    colours: !planes ? 'browser' : isSame(planes, width, height, stated) ? 'same' : 'near',
  };
}

async function browsersRgb(frame) {
  const rgba = new Uint8Array(frame.allocationSize({ format: 'RGBA' }));
  await frame.copyTo(rgba, { format: 'RGBA' });
  return rgba.filter((_, i) => i % 4 < 3);
}

// y, u, v: {data, stride}. step: samples from one of U to the next; wide, high: pixels of one.
async function readPlanes(frame) {
  const found = /^(I420|I422|I444|NV12)A?(P10|P12)?$/.exec(frame.format ?? '');
  if (!found) return null;
  const bytes = new Uint8Array(frame.allocationSize());
  const layout = await frame.copyTo(bytes);
  const bits = Number(found[2]?.slice(1) ?? 8);
  const [y, u, v] = layout.map(({ offset, stride }) =>
    bits > 8
      ? { data: new Uint16Array(bytes.buffer, offset), stride: stride / 2 }
      : { data: bytes.subarray(offset), stride },
  );
  if (found[1] === 'NV12') {
    const second = { data: u.data.subarray(1), stride: u.stride };
    return { y, u, v: second, step: 2, bits, wide: 2, high: 2 };
  }
  const [wide, high] = { I420: [2, 2], I422: [2, 1], I444: [1, 1] }[found[1]];
  return { y, u, v, step: 1, bits, wide, high };
}

const isSame = ({ bits, wide, high }, width, height, { matrix }) =>
  bits === 8 && (matrix === 'rgb' || (wide === 2 && width % 2 === 0 && height % high === 0));

function convert({ y, u, v, step, bits, wide, high }, width, height, { matrix, fullRange }) {
  const rgb = new Uint8ClampedArray(width * height * 3);
  const paint = matrix === 'rgb' ? paintRgb : painter(matrix, fullRange);
  // Columns of colour are repeated; how rows are spread depends on the format, as in FFmpeg.
  const plain = high === 1 || (bits === 8 && height % 2 === 0);
  const rows = plain ? (row) => [Math.floor(row / high), Math.floor(row / high)] : spread(height);
  for (let row = 0, at = 0; row < height; row++) {
    const [upper, lower] = rows(row);
    for (let column = 0; column < width; column++, at += 3) {
      const place = Math.floor(column / wide) * step;
      const [a, b] = [upper * u.stride + place, lower * u.stride + place];
      // In eighths of a level, so that more than 8 bits count.
      const light = (y.data[row * y.stride + column] * 8) >> (bits - 8);
      const du = (((u.data[a] + u.data[b]) * 4) >> (bits - 8)) - 1024;
      const dv = (((v.data[a] + v.data[b]) * 4) >> (bits - 8)) - 1024;
      paint(rgb, at, light, du, dv);
    }
  }
  return rgb;
}

// The planes of "rgb" are green, blue and red.
function paintRgb(rgb, at, green, blue, red) {
  rgb[at] = (red + 1024) >> 3;
  rgb[at + 1] = green >> 3;
  rgb[at + 2] = (blue + 1024) >> 3;
}

function painter(matrix, fullRange) {
  const black = fullRange ? 0 : 16 * 8;
  const range = fullRange ? 65536 : Math.floor((65536 * 255) / 219);
  const given = MATRICES[matrix] ?? BT601;
  const weights = fullRange ? given.map((c) => Math.floor((c * 224) / 255)) : given;
  // 13 bits of fraction; a product keeps its upper 16 of 32 bits.
  const [cy, cr, cb, cu, cv] = [range, ...weights].map((c) => Math.round(c / 8));
  return (rgb, at, l, du, dv) => {
    const light = ((l - black) * cy) >> 16;
    rgb[at] = light + ((dv * cr) >> 16);
    rgb[at + 1] = light + ((du * -cu) >> 16) + ((dv * -cv) >> 16);
    rgb[at + 2] = light + ((du * cb) >> 16);
  };
}

// The two rows of colour whose mean a line takes: the nearest one alone where it is near enough
// (stan_infer/video/rgb.py, _neighbours).
function spread(height) {
  const count = Math.ceil(height / 2);
  const step = Math.floor(((count << 16) + Math.floor(height / 2)) / height);
  return (row) => {
    const place = ((row * 2 + 1) * step) / 2 / 65536 - 0.5;
    let upper = Math.floor(place);
    const whole = place - upper > 0.998;
    if (whole) upper++;
    let two = Math.round((place - Math.floor(place)) * 4096) >= 2048 && !whole;
    if (upper < 0) two = false;
    else if (upper >= count - 1) two = true;
    upper = Math.min(Math.max(upper, 0), Math.max(count - 2, 0));
    return [upper, Math.min(upper + (two ? 1 : 0), count - 1)];
  };
}

function turned(image, rotation, flip) {
  if (!rotation && !flip) return image;
  const { rgb, width, height } = image;
  const aside = rotation % 180 !== 0;
  const [w, h] = aside ? [height, width] : [width, height];
  const result = new Uint8ClampedArray(rgb.length);
  for (let row = 0; row < h; row++) {
    for (let column = 0; column < w; column++) {
      const x = flip ? w - 1 - column : column;
      const [fromX, fromY] = {
        0: [x, row],
        90: [row, height - 1 - x],
        180: [width - 1 - x, height - 1 - row],
        270: [width - 1 - row, x],
      }[rotation];
      const from = (fromY * width + fromX) * 3;
      result.set(rgb.subarray(from, from + 3), (row * w + column) * 3);
    }
  }
  return { rgb: result, width: w, height: h };
}
