/* The appliance's native handler ABI for AssemblyScript. What each function promises: docs/handler-abi.md.
 *
 *     import { Cbor, Format, pixels } from "./sdk";
 *     const samples = new StaticArray<u8>(16 * 16);
 *     export function handle(): i32 {
 *       const length = pixels(null, Format.GRAY, 16, 16, samples);
 *       if (length < 0) return length;
 *       return new Cbor(64).map(1).text("first").int(samples[0]).emit(0x20);
 *     }
 *
 * Functions that can fail return a negative Errno, or null where they return an object. Nothing is thrown: what
 * AssemblyScript itself finds wrong (an index out of range) ends up in `abort`, which logs it and traps.
 */
import * as abi from "./abi";

export * from "./cbor";

export enum Errno {
  INVALID = -1, // a bad argument
  NOT_FOUND = -2, // no such model, output, setting, label or key
  TOO_BIG = -3, // over a limit, or the buffer is too small
  DENIED = -4, // the manifest does not allow it: a tag
  MODEL = -5, // the model failed, or is not there just now
  FRAME = -6, // there is no frame (in init), it is not a picture, or it cannot be decoded
}

export enum Format {
  JPEG = 1,
  RGB = 2,
  GRAY = 3,
  CBOR = 4,
  JSON = 5,
  BYTES = 6,
}

export enum Level {
  DEBUG = 10,
  INFO = 20,
  WARNING = 30,
  ERROR = 40,
}

/** How a picture is brought to the size of a model's input. */
export enum Fit {
  STRETCH = 0,
  LETTERBOX = 1,
}

/** A part of the picture, in its pixels; width 0 is the whole picture. */
export class Crop {
  constructor(
    public x: i32,
    public y: i32,
    public width: i32,
    public height: i32,
  ) {}
}

// --- the current frame ---

/** The current frame's header, laid out as the host writes it. */
export class FrameInfo {
  seq: u64 = 0; // number the source gave
  capturedNs: u64 = 0; // wall clock, since 1970
  tag: u32 = 0;
  format: u32 = 0;
  width: u32 = 0; // pixels; 0 for data
  height: u32 = 0;
  length: u32 = 0; // bytes of the payload
  reserved: u32 = 0;
}

/** The frame being handled; null where there is none (in init). */
export function frame(): FrameInfo | null {
  const info = new FrameInfo();
  return abi.frame_info(changetype<usize>(info)) < 0 ? null : info;
}

/** Name of the frame's source; null where there is no frame. */
export function source(): string | null {
  const length = abi.frame_source(scratch, MAX_SCRATCH);
  return length < 0 ? null : String.UTF8.decodeUnsafe(scratch, length);
}

/** Copy payload bytes from `offset`; how many, 0 at the end. */
export function read(offset: u32, out: StaticArray<u8>): i32 {
  return abi.frame_read(offset, changetype<usize>(out), out.length);
}

/** Decode (part of) the picture into width x height samples of Format.RGB or Format.GRAY; bytes written. */
export function pixels(crop: Crop | null, format: Format, width: u32, height: u32, out: StaticArray<u8>): i32 {
  return abi.frame_pixels(changetype<usize>(crop), format, width, height, changetype<usize>(out), out.length);
}

// --- models ---

/** One input or output of a model, laid out as the host writes it. */
export class Tensor {
  dtype: u32 = 0; // 1 u8, 2 i8, 3 i16, 4 i32, 5 i64, 6 f16, 7 f32, 8 f64, 9 bool
  rank: u32 = 0;
  shape0: u32 = 0; // unused dimensions are 0
  shape1: u32 = 0;
  shape2: u32 = 0;
  shape3: u32 = 0;
  shape4: u32 = 0;
  shape5: u32 = 0;
  shape6: u32 = 0;
  shape7: u32 = 0;
  bytes: u32 = 0;
  elements: u32 = 0;
  scale: f32 = 0; // real = scale * (stored - zeroPoint); 0 = not quantised
  zeroPoint: i32 = 0;
}

/** Handle (>= 0) of a model that the manifest names. */
export function model(name: string): i32 {
  const length = toScratch(name);
  return length < 0 ? length : abi.model(scratch, length);
}

export function modelInput(model: i32, index: u32): Tensor | null {
  const tensor = new Tensor();
  return abi.model_input(model, index, changetype<usize>(tensor)) < 0 ? null : tensor;
}

export function modelOutput(model: i32, index: u32): Tensor | null {
  const tensor = new Tensor();
  return abi.model_output(model, index, changetype<usize>(tensor)) < 0 ? null : tensor;
}

/** Index of the output with this name. */
export function outputNamed(model: i32, name: string): i32 {
  const length = toScratch(name);
  return length < 0 ? length : abi.model_output_named(model, scratch, length);
}

/** Label of a class, counted from 0; null where it has none. */
export function label(model: i32, index: u32): string | null {
  const length = abi.model_label(model, index, scratch, MAX_SCRATCH);
  return length < 0 ? null : String.UTF8.decodeUnsafe(scratch, length);
}

/** Run the model on (part of) the current frame; 0: its outputs are there. */
export function inferFrame(model: i32, crop: Crop | null, fit: Fit): i32 {
  return abi.infer_frame(model, changetype<usize>(crop), fit);
}

/** Run the model on the bytes of all its inputs, one after another. */
export function inferTensor(model: i32, data: StaticArray<u8>): i32 {
  return abi.infer_tensor(model, changetype<usize>(data), data.length);
}

/** Raw bytes of an output from byte `offset`; how many. */
export function outputRead(model: i32, index: u32, offset: u32, out: StaticArray<u8>): i32 {
  return abi.output_read(model, index, offset, changetype<usize>(out), out.length);
}

/** An output as real numbers from element `start`; how many. */
export function outputF32(model: i32, index: u32, start: u32, out: StaticArray<f32>): i32 {
  return abi.output_f32(model, index, start, changetype<usize>(out), out.length);
}

// --- results, settings, state ---

/** Emit bytes about the current frame, with a tag that the manifest allows. For CBOR: `Cbor.emit`. */
export function emit(tag: u32, format: Format, data: StaticArray<u8>, length: u32 = data.length): i32 {
  return length > <u32>data.length ? Errno.INVALID : abi.emit(tag, format, changetype<usize>(data), length);
}

/** A line in the appliance's log. */
export function log(level: Level, line: string): i32 {
  const text = String.UTF8.encode(line);
  return abi.log(level, changetype<usize>(text), text.byteLength);
}

/** Monotonic nanoseconds since an arbitrary start. */
export function nowNs(): i64 {
  return abi.now_ns();
}

/** A setting from the manifest or the operator; null where there is none of that name. */
export function setting(key: string): string | null {
  const bytes = String.UTF8.encode(key);
  const length = abi.setting(changetype<usize>(bytes), bytes.byteLength, scratch, MAX_SCRATCH);
  return length < 0 ? null : String.UTF8.decodeUnsafe(scratch, length);
}

/** A setting that is a number from `low` to `high`; `fallback` where it is not set or empty. NaN, with a line in the log,
 * where it is anything else: return Errno.INVALID from init then. */
export function numberSetting(key: string, fallback: f64, low: f64, high: f64): f64 {
  const text = setting(key);
  if (text === null || text.length == 0) return fallback;
  const value = isDecimal(text) ? parseFloat(text) : NaN;
  if (value >= low && value <= high) return value;
  log(Level.ERROR, `the setting \`${key}\` must be a number from ${low} to ${high}`);
  return NaN;
}

/** The value of a key of the state, which outlives a restart; null where there is none. */
export function stateGet(key: string): Uint8Array | null {
  const bytes = String.UTF8.encode(key);
  const length = abi.state_get(changetype<usize>(bytes), bytes.byteLength, scratch, MAX_SCRATCH);
  if (length < 0) return null;
  const value = new Uint8Array(length);
  memory.copy(value.dataStart, scratch, length);
  return value;
}

/** Set a key; an empty value deletes it. It takes effect when handle returns 0. */
export function stateSet(key: string, value: Uint8Array): i32 {
  const bytes = String.UTF8.encode(key);
  return abi.state_set(changetype<usize>(bytes), bytes.byteLength, value.dataStart, value.length);
}

/** What AssemblyScript calls when it finds something wrong (`use` in asconfig.json): a line in the log, and a trap. */
export function abort(message: string | null, file: string | null, line: u32, column: u32): void {
  log(Level.ERROR, `${message ? message : "aborted"} at ${file ? file : "?"}:${line}:${column}`);
  unreachable();
}

// --- within ---

const MAX_SCRATCH: u32 = 4096; // as long as a setting or a value of the state may be
const scratch: usize = memory.data(MAX_SCRATCH);

/** UTF-8 in the scratch area; its length, or TOO_BIG. */
function toScratch(text: string): i32 {
  const length = String.UTF8.byteLength(text);
  if (<u32>length > MAX_SCRATCH) return Errno.TOO_BIG;
  return <i32>String.UTF8.encodeUnsafe(changetype<usize>(text), text.length, scratch);
}

/** Digits with perhaps a sign and a point: what parseFloat does not look at, it leaves out. */
function isDecimal(text: string): bool {
  let digits = 0,
    points = 0;
  for (let i = 0; i < text.length; i++) {
    const code = text.charCodeAt(i);
    if (code >= 48 && code <= 57) digits++;
    else if (code == 46) points++;
    else if (i > 0 || (code != 43 && code != 45)) return false;
  }
  return digits > 0 && points <= 1;
}
