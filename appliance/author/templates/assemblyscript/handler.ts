// {{name}}: how bright each picture is, from 0 to 1, and whether that is dark.
import { Cbor, Errno, Format, numberSetting, pixels } from "./sdk";

const samples = new StaticArray<u8>(16 * 16);
let dark: f64 = 0;

/** Once, before the first frame: what is wrong with a setting is said now. */
export function init(): i32 {
  dark = numberSetting("dark", 0.2, 0, 1);
  return isNaN(dark) ? Errno.INVALID : 0;
}

/** For every frame. */
export function handle(): i32 {
  // the host decodes and shrinks the picture: natively, and once for all handlers
  const length = pixels(null, Format.GRAY, 16, 16, samples);
  if (length < 0) return length; // this frame failed; the code says why

  let sum = 0;
  for (let i = 0; i < length; i++) sum += samples[i];
  const brightness = <f64>sum / (255.0 * <f64>length);

  const out = new Cbor(64);
  out.map(2);
  out.text("brightness").decimal(brightness, 3);
  out.text("dark").bool(brightness < dark);
  return out.emit(0x20);
}
