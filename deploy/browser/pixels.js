// What a network sees of a picture, to the last bit as components/images.py makes it with Pillow and libjpeg: Lanczos
// with averages over blocks first, and the JPEG encoding that every picture goes through.
//
// Pictures are {width, height, data}: Uint8Array, RGB, row by row.

/** The picture after the one encoding that all pictures get: `images.equalise`. */
export function equalise(image, settings) {
  if (!settings || settings.size === "view") return image;
  const { size, side, quality } = settings;
  let left = Math.floor((image.width - side) / 2);
  let top = Math.floor((image.height - side) / 2);
  if (size === "resize" && Math.min(left, top) > 0) return jpeg(render(image, `cover-${side}`)[0], quality);
  if (Math.min(left, top) > 4) {
    left = Math.floor(left / 8) * 8 + 4;
    top = Math.floor(top / 8) * 8 + 4;
  }
  return jpeg(cut(image, left, top, side), quality);
}

/** The square crops of a view, one or several, each saved by itself where the settings say so: `images.render`. */
export function render(image, view, settings) {
  if (settings?.size === "view") return render(image, view).map((square) => jpeg(square, settings.quality));
  const [side, crops] = view.split("-").pop().split("x").map(Number);
  const middle = ({ width, height }) => [Math.floor((width - side) / 2), Math.floor((height - side) / 2)];
  if (view.startsWith("crop-")) {
    const corners = crops ? textured(image, side, crops) : [middle(image)];
    return corners.map(([left, top]) => cut(image, left, top, side));
  }
  if (view.startsWith("cover-")) {
    const scale = side / Math.min(image.width, image.height);
    const [width, height] = [image.width, image.height].map((n) => Math.max(side, toEven(n * scale)));
    const scaled = resize(image, width, height);
    return [cut(scaled, ...middle(scaled), side)];
  }
  return [image.width === side && image.height === side ? image : resize(image, side, side)];
}

/** Pillow's `resize` with Lanczos and a reducing gap of 2. */
export function resize(image, width, height) {
  const across = Math.max(1, Math.trunc(image.width / width / 2));
  const down = Math.max(1, Math.trunc(image.height / height / 2));
  const inside = { width: image.width / across, height: image.height / down };
  let result = across > 1 || down > 1 ? reduce(image, across, down) : image;
  if (result.width !== width || inside.width !== result.width)
    result = resample(result, filter(result.width, inside.width, width), width, result.height, 3, result.width * 3);
  if (result.height !== height || inside.height !== result.height)
    result = resample(result, filter(result.height, inside.height, height), width, height, width * 3, 3, true);
  return result;
}

function reduce({ width, height, data }, across, down) {
  const [wide, high] = [Math.ceil(width / across), Math.ceil(height / down)];
  const out = new Uint8Array(wide * high * 3);
  for (let y = 0, to = 0; y < high; y++) {
    const bottom = Math.min((y + 1) * down, height);
    for (let x = 0; x < wide; x++, to += 3) {
      const right = Math.min((x + 1) * across, width);
      const count = (bottom - y * down) * (right - x * across);
      let red = count >> 1, green = red, blue = red;
      for (let row = y * down; row < bottom; row++)
        for (let at = (row * width + x * across) * 3, end = (row * width + right) * 3; at < end; at += 3) {
          red += data[at];
          green += data[at + 1];
          blue += data[at + 2];
        }
      const factor = Math.floor(Math.fround(2 ** 32 / (256 * count)));
      out[to] = (red * factor) / 2 ** 24;
      out[to + 1] = (green * factor) / 2 ** 24;
      out[to + 2] = (blue * factor) / 2 ** 24;
    }
  }
  return { width: wide, height: high, data: out };
}

/** For each place of the result, where its filter begins and the weights, in 22 bits. */
function filter(size, inside, outside) {
  const scale = Math.fround(inside) / outside;
  const wide = Math.max(scale, 1);
  const taps = [];
  for (let place = 0; place < outside; place++) {
    const centre = (place + 0.5) * scale;
    const first = Math.max(0, Math.trunc(centre - 3 * wide + 0.5));
    const last = Math.min(size, Math.trunc(centre + 3 * wide + 0.5));
    const weights = [];
    for (let at = first; at < last; at++) weights.push(lanczos((at - centre + 0.5) * (1 / wide)));
    const total = weights.reduce((sum, weight) => sum + weight, 0);
    taps.push({ first, weights: Int32Array.from(weights, (weight) => {
      const share = (weight / total) * 2 ** 22;
      return Math.trunc(share < 0 ? share - 0.5 : share + 0.5);
    }) });
  }
  return taps;
}

function lanczos(x) {
  return -3 <= x && x < 3 ? sinc(x) * sinc(x / 3) : 0;
}

function sinc(x) {
  return x === 0 ? 1 : Math.sin(x * Math.PI) / (x * Math.PI);
}

/** One pass: `step` leads from one tap to the next, `across` from one line of the source to the next. */
function resample({ data }, taps, width, height, step, across, isDown = false) {
  const out = new Uint8Array(width * height * 3);
  for (let y = 0, to = 0; y < height; y++)
    for (let x = 0; x < width; x++, to += 3) {
      const { first, weights } = taps[isDown ? y : x];
      let at = first * step + (isDown ? x : y) * across;
      let red = 2 ** 21, green = red, blue = red;
      for (let i = 0; i < weights.length; i++, at += step) {
        red += data[at] * weights[i];
        green += data[at + 1] * weights[i];
        blue += data[at + 2] * weights[i];
      }
      out[to] = clip(red >> 22);
      out[to + 1] = clip(green >> 22);
      out[to + 2] = clip(blue >> 22);
    }
  return { width, height, data: out };
}

/** A square from a place on, filled by reflection where the picture ends. */
export function cut({ width, height, data }, left, top, side) {
  left = Math.max(0, left);
  top = Math.max(0, top);
  const columns = reflected(Math.min(left + side, width) - left, side);
  const rows = reflected(Math.min(top + side, height) - top, side);
  const out = new Uint8Array(side * side * 3);
  let to = 0;
  for (const y of rows)
    for (const x of columns) {
      const at = ((top + y) * width + left + x) * 3;
      for (let band = 0; band < 3; band++) out[to++] = data[at + band];
    }
  return { width: side, height: side, data: out };
}

function reflected(length, side) {
  const before = Math.floor((side - length) / 2);
  return Array.from({ length: side }, (_, place) => {
    const at = (((place - before) % (2 * length)) + 2 * length) % (2 * length);
    return at < length ? at : 2 * length - 1 - at;
  });
}

/** Where the crops with the most texture begin: `images._textured`. */
function textured({ width, height, data }, side, crops) {
  const grey = new Uint8Array(width * height);
  for (let i = 0; i < grey.length; i++)
    grey[i] = (data[3 * i] * 19595 + data[3 * i + 1] * 38470 + data[3 * i + 2] * 7471 + 32768) >> 16;
  const wide = width + 1;
  const total = new Float64Array(wide * (height + 1));
  for (let y = 1; y <= height; y++)
    for (let x = 1, row = 0; x <= width; x++) {
      const at = (y - 1) * width + x - 1;
      if (x < width) row += Math.abs(grey[at + 1] - grey[at]);
      if (y < height) row += Math.abs(grey[at + width] - grey[at]);
      total[y * wide + x] = total[(y - 1) * wide + x] + row;
    }
  const starts = (length) => {
    const last = Math.max(0, length - side);
    const found = new Set([last]);
    for (let at = 0; at <= last; at += Math.max(1, side >> 1)) found.add(at);
    return [...found].sort((a, b) => a - b);
  };
  const found = [];
  for (const top of starts(height))
    for (const left of starts(width)) {
      const [bottom, right] = [Math.min(top + side, height), Math.min(left + side, width)];
      const sum = (y, x) => total[y * wide + x];
      found.push({ left, top, texture: sum(bottom, right) - sum(top, right) - sum(bottom, left) + sum(top, left) });
    }
  found.sort((a, b) => b.texture - a.texture);
  const chosen = [];
  for (const { left, top } of found) {
    if (chosen.length === crops) break;
    const shared = ([x, y]) => Math.max(0, side - Math.abs(left - x)) * Math.max(0, side - Math.abs(top - y));
    if (chosen.every((other) => shared(other) <= (side * side) / 2)) chosen.push([left, top]);
  }
  return Array.from({ length: crops }, (_, i) => chosen[i % chosen.length]);
}

// ITU T.81, annex K, as libjpeg takes them for quality 50.
const LUMA = [
  16, 11, 10, 16, 24, 40, 51, 61, 12, 12, 14, 19, 26, 58, 60, 55, 14, 13, 16, 24, 40, 57, 69, 56, 14, 17, 22, 29, 51, 87, 80,
  62, 18, 22, 37, 56, 68, 109, 103, 77, 24, 35, 55, 64, 81, 104, 113, 92, 49, 64, 78, 87, 103, 121, 120, 101, 72, 92, 95, 98,
  112, 100, 103, 99,
];
const CHROMA = [
  17, 18, 24, 47, 99, 99, 99, 99, 18, 21, 26, 66, 99, 99, 99, 99, 24, 26, 56, 99, 99, 99, 99, 99, 47, 66, 99, 99, 99, 99, 99,
  99, ...Array(32).fill(99),
];

/** What is left of a picture in a JPEG file with 4:2:0 chroma as libjpeg writes and reads it, in its own integers. */
export function jpeg({ width, height, data }, quality) {
  const scale = quality < 50 ? Math.floor(5000 / quality) : 200 - 2 * quality;
  const [luma, chroma] = [LUMA, CHROMA].map((table) =>
    table.map((value) => Math.min(255, Math.max(1, Math.floor((value * scale + 50) / 100)))),
  );
  const n = width * height;
  const planes = [new Uint8Array(n), new Uint8Array(n), new Uint8Array(n)];
  for (let i = 0; i < n; i++) {
    const [r, g, b] = [data[3 * i], data[3 * i + 1], data[3 * i + 2]];
    planes[0][i] = (19595 * r + 38470 * g + 7471 * b + 32768) >> 16;
    planes[1][i] = (32768 * b - 11059 * r - 21709 * g + (128 << 16) + 32767) >> 16;
    planes[2][i] = (32768 * r - 27439 * g - 5329 * b + (128 << 16) + 32767) >> 16;
  }
  const y = coded(planes[0], width, height, luma);
  const [wide, high] = [(width + 1) >> 1, (height + 1) >> 1];
  const [cb, cr] = planes.slice(1).map((plane) => {
    const half = halved(plane, width, height);
    return doubled(coded(half.data, half.width, half.height, chroma), half.width, wide, high);
  });
  const out = new Uint8Array(n * 3);
  for (let row = 0, i = 0; row < height; row++)
    for (let column = 0; column < width; column++, i++) {
      const at = row * 2 * wide + column;
      const [u, v] = [cb[at] - 128, cr[at] - 128];
      out[3 * i] = clip(y[i] + ((91881 * v + 32768) >> 16));
      out[3 * i + 1] = clip(y[i] + ((-22554 * u - 46802 * v + 32768) >> 16));
      out[3 * i + 2] = clip(y[i] + ((116130 * u + 32768) >> 16));
    }
  return { width, height, data: out };
}

/** Means over 2 × 2 pixels, whose halves are rounded down and up by turns. */
function halved(plane, width, height) {
  const [wide, high] = [Math.ceil(width / 16) * 8, (height + 1) >> 1];
  const out = new Uint8Array(wide * high);
  for (let y = 0; y < high; y++) {
    const [one, two] = [2 * y * width, Math.min(2 * y + 1, height - 1) * width];
    for (let x = 0; x < wide; x++) {
      const [left, right] = [Math.min(2 * x, width - 1), Math.min(2 * x + 1, width - 1)];
      out[y * wide + x] = (plane[one + left] + plane[one + right] + plane[two + left] + plane[two + right] + 1 + (x & 1)) >> 2;
    }
  }
  return { width: wide, height: high, data: out };
}

/** Twice as high and wide: ¾ of the nearer and ¼ of the farther neighbour. */
function doubled(plane, stride, wide, high) {
  const out = new Uint8Array(4 * wide * high);
  const sums = new Int32Array(wide);
  for (let row = 0; row < 2 * high; row++) {
    const near = row >> 1;
    const far = Math.min(high - 1, Math.max(0, near + (row & 1 ? 1 : -1)));
    for (let x = 0; x < wide; x++) sums[x] = 3 * plane[near * stride + x] + plane[far * stride + x];
    for (let x = 0; x < wide; x++) {
      const to = row * 2 * wide + 2 * x;
      out[to] = (3 * sums[x] + sums[Math.max(0, x - 1)] + 8) >> 4;
      out[to + 1] = (3 * sums[x] + sums[Math.min(wide - 1, x + 1)] + 7) >> 4;
    }
  }
  return out;
}

/** A plane after its blocks' coefficients were rounded to multiples of a table. */
function coded(plane, width, height, table) {
  const out = new Uint8Array(width * height);
  const block = new Int32Array(64);
  for (let top = 0; top < height; top += 8)
    for (let left = 0; left < width; left += 8) {
      for (let i = 0; i < 64; i++) {
        const [y, x] = [Math.min(top + (i >> 3), height - 1), Math.min(left + (i & 7), width - 1)];
        block[i] = plane[y * width + x] - 128;
      }
      forward(block);
      for (let i = 0; i < 64; i++) {
        const step = 8 * table[i];
        const size = Math.floor((Math.abs(block[i]) + (step >> 1)) / step) * table[i];
        block[i] = block[i] < 0 ? -size : size;
      }
      backward(block);
      for (let i = 0; i < 64; i++) {
        const [y, x] = [top + (i >> 3), left + (i & 7)];
        if (y < height && x < width) out[y * width + x] = clip(block[i] + 128);
      }
    }
  return out;
}

const descaled = (value, bits) => (value + (1 << (bits - 1))) >> bits;

/** The odd half of both transforms (Loeffler, Ligtenberg & Moschytz 1989), in 13 bits. */
function odd(a, b, c, d) {
  const z5 = (a + c + b + d) * 9633;
  const [z1, z2] = [(a + d) * -7373, (b + c) * -20995];
  const [z3, z4] = [(a + c) * -16069 + z5, (b + d) * -3196 + z5];
  return [a * 2446 + z1 + z3, b * 16819 + z2 + z4, c * 25172 + z2 + z3, d * 12299 + z1 + z4];
}

/** The discrete cosine transform, 8 times as large. */
function forward(block) {
  for (const [step, next, first, bits] of [[1, 8, (x) => x << 2, 11], [8, 1, (x) => descaled(x, 2), 15]])
    for (let line = 0; line < 8; line++) {
      const at = (i) => line * next + i * step;
      const [a, b, c, d] = [0, 1, 2, 3].map((i) => block[at(i)] + block[at(7 - i)]);
      const outer = odd(...[3, 2, 1, 0].map((i) => block[at(i)] - block[at(7 - i)]));
      const z = (b - c + a - d) * 4433;
      block[at(0)] = first(a + d + b + c);
      block[at(4)] = first(a + d - b - c);
      block[at(2)] = descaled(z + (a - d) * 6270, bits);
      block[at(6)] = descaled(z - (b - c) * 15137, bits);
      [7, 5, 3, 1].forEach((i, place) => (block[at(i)] = descaled(outer[place], bits)));
    }
}

/** Its inverse. */
function backward(block) {
  for (const [step, next, bits] of [[8, 1, 11], [1, 8, 18]])
    for (let line = 0; line < 8; line++) {
      const at = (i) => line * next + i * step;
      const [x0, x2, x4, x6] = [0, 2, 4, 6].map((i) => block[at(i)]);
      const z = (x2 + x6) * 4433;
      const [inner, outer] = [z - x6 * 15137, z + x2 * 6270];
      const [sum, difference] = [(x0 + x4) * 8192, (x0 - x4) * 8192];
      const even = [sum + outer, difference + inner, difference - inner, sum - outer];
      const odds = odd(...[7, 5, 3, 1].map((i) => block[at(i)])).reverse();
      for (let i = 0; i < 4; i++) {
        block[at(i)] = descaled(even[i] + odds[i], bits);
        block[at(7 - i)] = descaled(even[i] - odds[i], bits);
      }
    }
}

function clip(value) {
  return value < 0 ? 0 : value > 255 ? 255 : value;
}

/** As Python rounds: halves to even. */
function toEven(value) {
  const low = Math.floor(value);
  return value - low === 0.5 ? low + (low & 1) : Math.round(value);
}
