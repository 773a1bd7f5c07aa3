// The page: a picture in, the detector's answer in words. What a network sees of it is made in pixels.js.

import { equalise, render } from "./pixels.js";
import * as ort from "./runtime/ort.wasm.min.mjs";

const MAX_PIXELS = 89_000_000;
const SMALL = 16; // px; below it there is nothing to see
const COARSE = 25; // JPEG quality; no detector is judged on pictures below it
const STRIP = 1024; // rows at once, as some browsers allow no large canvas

ort.env.wasm.numThreads = 1;
ort.env.wasm.wasmPaths = new URL("runtime/", import.meta.url).href;

const element = (id) => document.getElementById(id);
const detectors = (await (await fetch("detectors.json")).json()).map((said) => ({ ...said, session: null }));
let shown = null;

/** Judge a picture's file as `Detector.score` does: {label, probability, verdict, warnings, detector}. */
export async function judge(file) {
  const image = await decode(file);
  const side = Math.min(image.width, image.height);
  const detector = detectors.filter(({ scope }) => scope.min_side <= side).pop() ?? detectors[0];
  detector.session ??= ort.InferenceSession.create(detector.model);
  const session = await detector.session;
  const equal = equalise(image, detector.equalise);
  const feeds = {};
  for (const { name, view, shape } of detector.inputs) {
    const crops = render(equal, view, detector.equalise);
    const pixels = new Uint8Array(crops.length * crops[0].data.length);
    crops.forEach(({ data }, i) => pixels.set(data, i * data.length));
    feeds[name] = new ort.Tensor("uint8", pixels, [1, ...shape]);
  }
  const answers = await session.run(feeds, session.outputNames.filter((name) => ["logit", "distance"].includes(name)));
  const probability = 1 / (1 + Math.exp(-answers.logit.data[0] / detector.temperature));
  const distance = answers.distance?.data[0] ?? 0;
  const warnings = outside(image, await quality(file), distance, detector.scope);
  const sure = probability >= detector.high ? "ai" : probability < detector.low ? "real" : "uncertain";
  return {
    label: probability >= detector.threshold ? "ai" : "real",
    probability,
    verdict: warnings.length ? "uncertain" : sure,
    warnings,
    detector,
  };
}

/** A file's pixels: upright, without colour management, transparency over white. */
async function decode(file) {
  let bitmap;
  try {
    bitmap = await createImageBitmap(file, { colorSpaceConversion: "none", premultiplyAlpha: "none" });
  } catch {
    throw new Error("This is no picture that the browser can read.");
  }
  const { width, height } = bitmap;
  if (width * height > MAX_PIXELS) throw new Error(`${width} × ${height} px is too large.`);
  const data = new Uint8Array(width * height * 3);
  const canvas = new OffscreenCanvas(width, Math.min(height, STRIP));
  const context = canvas.getContext("2d", { willReadFrequently: true });
  for (let top = 0, to = 0; top < height; top += STRIP) {
    const rows = Math.min(STRIP, height - top);
    context.fillStyle = "white";
    context.fillRect(0, 0, width, rows);
    context.drawImage(bitmap, 0, -top);
    const strip = context.getImageData(0, 0, width, rows).data;
    for (let at = 0; at < strip.length; at += 4) {
      data[to++] = strip[at];
      data[to++] = strip[at + 1];
      data[to++] = strip[at + 2];
    }
  }
  bitmap.close();
  return { width, height, data };
}

/** The quality of a JPEG file from its first quantisation table (`images.jpeg_quality`); null of other files. */
async function quality(file) {
  const bytes = new DataView(await file.arrayBuffer());
  if (bytes.byteLength < 4 || bytes.getUint16(0) !== 0xffd8) return null;
  for (let at = 2; at + 4 <= bytes.byteLength && bytes.getUint8(at) === 0xff; ) {
    const marker = bytes.getUint8(at + 1);
    const length = bytes.getUint16(at + 2);
    if (marker === 0xda) break;
    if (marker === 0xdb) {
      const wide = bytes.getUint8(at + 4) >> 4;
      let sum = 0;
      for (let i = 0; i < 64; i++) sum += wide ? bytes.getUint16(at + 5 + 2 * i) : bytes.getUint8(at + 5 + i);
      const scale = (100 * sum) / 64 / 57.625;
      return scale <= 100 ? 100 - scale / 2 : 5000 / scale;
    }
    at += 2 + length;
  }
  return null;
}

/** In which ways a picture is outside of what the detector was judged on. */
function outside({ width, height }, coarse, distance, scope) {
  const side = Math.min(width, height);
  const size = `${width} × ${height} px`;
  const reasons = [];
  if (side < SMALL) reasons.push(`${size} is too small to judge`);
  else if (side < scope.min_side || side > (scope.max_side ?? side)) {
    const upper = scope.max_side ? ` to ${scope.max_side}` : " or more";
    reasons.push(`${size}: this detector was judged on pictures of ${scope.min_side}${upper} px`);
  }
  if (coarse !== null && coarse < COARSE) reasons.push(`JPEG quality ${coarse.toFixed(0)} is too low to judge`);
  if (distance > 1) reasons.push("unlike the pictures that this detector was judged on");
  return reasons;
}

async function show(file) {
  const answer = element("answer");
  answer.className = "";
  answer.replaceChildren(made("p", "Looking …", "quiet"));
  await new Promise((painted) => setTimeout(painted, 20));
  try {
    const row = await judge(file);
    answer.className = row.verdict;
    answer.replaceChildren(...said(file, row));
  } catch (error) {
    answer.replaceChildren(made("p", error.message, "problem"));
  }
}

function said(file, { probability, verdict, warnings, detector }) {
  const sentence = made("p", "Probability that it is AI-generated: ");
  const number = made("data", `${Math.round(100 * probability)}%`);
  number.value = probability;
  sentence.append(number);
  const why = warnings.length
    ? `This picture is outside of what the detector can judge: ${warnings.join("; ")}.`
    : verdict === "uncertain"
      ? "The score lies in the band where the detector is wrong too often to say."
      : "The score lies outside of the uncertain band. That is a hint and no proof.";
  const ends = made("div", "", "ends");
  ends.setAttribute("aria-hidden", "true");
  ends.append(...["not AI", "uncertain", "AI"].map((text) => made("span", text)));
  const picture = made("img");
  if (shown) URL.revokeObjectURL(shown);
  picture.src = shown = URL.createObjectURL(file);
  picture.alt = "The picture that was judged";
  return [made("h2", capital(detector.words[verdict])), sentence, scale(probability, detector), ends, made("p", why), picture];
}

function scale(probability, { low, high }) {
  const svg = drawn("svg", { viewBox: "0 0 100 6", preserveAspectRatio: "none", role: "img" });
  svg.setAttribute("aria-label", `Below ${percent(low)} not AI-generated, from ${percent(high)} on AI-generated`);
  svg.append(
    drawn("rect", { class: "real", x: 0, width: 100 * low, height: 6 }),
    drawn("rect", { class: "band", x: 100 * low, width: 100 * (high - low), height: 6 }),
    drawn("rect", { class: "ai", x: 100 * high, width: 100 * (1 - high), height: 6 }),
    drawn("rect", { class: "mark", x: Math.min(99, 100 * probability) - 0.3, y: -1, width: 0.8, height: 8 }),
  );
  return svg;
}

const capital = (text) => text[0].toUpperCase() + text.slice(1);

const percent = (share) => `${Math.round(100 * share)}%`;

function made(tag, text = "", className = "") {
  const node = document.createElement(tag);
  node.textContent = text;
  node.className = className;
  return node;
}

function drawn(tag, attributes) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  return node;
}

const drop = element("drop");
element("file").addEventListener("change", ({ target }) => {
  if (target.files.length) show(target.files[0]);
});
document.addEventListener("paste", ({ clipboardData }) => {
  if (clipboardData.files.length) show(clipboardData.files[0]);
});
for (const [type, over] of [["dragover", true], ["dragleave", false], ["drop", false]])
  drop.addEventListener(type, (event) => {
    event.preventDefault();
    drop.classList.toggle("over", over);
    if (type === "drop" && event.dataTransfer.files.length) show(event.dataTransfer.files[0]);
  });

for (const { version, about } of detectors)
  element("about").append(made("p", `Version ${version}. ${about.replaceAll("`", "")}`));
element("file").disabled = false;
element("answer").replaceChildren(made("p", "No picture yet.", "quiet"));
