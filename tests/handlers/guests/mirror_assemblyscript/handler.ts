// Emits its payload again, item by item; then the frame's header, as a check of its layout.
import { Cbor, CborReader, Errno, Kind, frame, read } from "./sdk";

const CAPACITY = 8192;
const COPY_TAG = 1;
const HEADER_TAG = 2;
const payload = new StaticArray<u8>(CAPACITY);
const copy = new Cbor(CAPACITY);

function writeItem(kind: Kind, item: CborReader): void {
  if (kind == Kind.INT) copy.int(item.integer);
  else if (kind == Kind.BYTES) copy.bytes(item.bytes());
  else if (kind == Kind.TEXT) copy.text(item.text());
  else if (kind == Kind.ARRAY) copy.array(item.length);
  else if (kind == Kind.MAP) copy.map(item.length);
  else if (kind == Kind.BOOL) copy.bool(item.integer != 0);
  else if (kind == Kind.FLOAT) copy.float(item.real);
  else copy.none();
}

function emitCopy(length: u32): i32 {
  const whole = new CborReader(payload, length);
  if (!whole.skip() || whole.next() != Kind.END) return Errno.INVALID;
  const item = new CborReader(payload, length);
  copy.clear();
  let kind = item.next();
  while (kind > Kind.END) {
    writeItem(kind, item);
    kind = item.next();
  }
  return kind == Kind.MALFORMED ? Errno.INVALID : copy.emit(COPY_TAG);
}

export function handle(): i32 {
  const info = frame();
  if (info === null) return Errno.FRAME;
  const length = read(0, payload);
  if (length < 0) return length;
  const status = emitCopy(length);
  if (status < 0) return status;
  copy.clear().array(6).int(info.seq).int(info.capturedNs).int(info.tag);
  return copy.int(info.width).int(info.height).int(info.length).emit(HEADER_TAG);
}
