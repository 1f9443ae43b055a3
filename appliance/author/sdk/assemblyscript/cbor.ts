/* A bounded CBOR writer and pull reader (RFC 8949). */
import * as abi from "./abi";

const TOO_BIG = -3;
const CBOR_FORMAT = 4;

/** Writes one document. Lengths come first in CBOR: say how many entries a map or an array has, then write them. A buffer
 * that is too small is noticed once, by emit. */
export class Cbor {
  readonly buffer: StaticArray<u8>;
  length: u32 = 0;
  private full: bool = false;

  constructor(capacity: u32) {
    this.buffer = new StaticArray<u8>(capacity);
  }

  /** Begin anew, in the same buffer. */
  clear(): Cbor {
    this.length = 0;
    this.full = false;
    return this;
  }

  /** Emit what was written; TOO_BIG where it did not fit. */
  emit(tag: u32): i32 {
    if (this.full) return TOO_BIG;
    return abi.emit(tag, CBOR_FORMAT, changetype<usize>(this.buffer), this.length);
  }

  /** So many keys and values follow, in turn; the host refuses a map with a key twice. */
  map(pairs: u32): Cbor {
    return this.head(5, pairs);
  }

  /** So many items follow. */
  array(items: u32): Cbor {
    return this.head(4, items);
  }

  text(text: string): Cbor {
    const bytes = String.UTF8.encode(text);
    return this.head(3, bytes.byteLength).raw(changetype<usize>(bytes), bytes.byteLength);
  }

  bytes(bytes: Uint8Array): Cbor {
    return this.head(2, bytes.length).raw(bytes.dataStart, bytes.length);
  }

  int(value: i64): Cbor {
    return value < 0 ? this.head(1, <u64>(-1 - value)) : this.head(0, <u64>value);
  }

  bool(value: bool): Cbor {
    return this.byte(value ? 0xf5 : 0xf4);
  }

  none(): Cbor {
    return this.byte(0xf6);
  }

  /** The shorter of 32 and 64 bits that holds the value exactly. NaN and infinities become null: JSON has neither. */
  float(value: f64): Cbor {
    if (!isFinite(value)) return this.none();
    const narrow = <f32>value;
    if (<f64>narrow == value) return this.wide(0xfa, reinterpret<u32>(narrow), 4);
    return this.wide(0xfb, reinterpret<u64>(value), 8);
  }

  /** Rounded to so many decimal places (0 to 9), so that a reader sees 0.9 and not 0.8999999761581421. */
  decimal(value: f64, places: u32): Cbor {
    let scale = 1.0;
    for (let i: u32 = 0; i < places && i < 9; i++) scale *= 10.0;
    const scaled = value * scale;
    if (scaled > -9e15 && scaled < 9e15) value = <f64>(<i64>(scaled < 0 ? scaled - 0.5 : scaled + 0.5)) / scale;
    return this.float(value);
  }

  private head(major: u8, argument: u64): Cbor {
    const type = <u8>(major << 5);
    if (argument < 24) return this.byte(type | <u8>argument);
    if (argument <= 0xff) return this.wide(type | 24, argument, 1);
    if (argument <= 0xffff) return this.wide(type | 25, argument, 2);
    if (argument <= 0xffffffff) return this.wide(type | 26, argument, 4);
    return this.wide(type | 27, argument, 8);
  }

  /** An initial byte and its argument in `size` bytes, big-endian. */
  private wide(initial: u8, argument: u64, size: u32): Cbor {
    this.byte(initial);
    for (let i: u32 = 0; i < size; i++) this.byte(<u8>(argument >> (8 * (size - 1 - i))));
    return this;
  }

  private byte(value: u8): Cbor {
    if (this.full || this.length >= <u32>this.buffer.length) {
      this.full = true;
      return this;
    }
    unchecked((this.buffer[this.length++] = value));
    return this;
  }

  private raw(from: usize, length: u32): Cbor {
    if (this.full || length > <u32>this.buffer.length - this.length) {
      this.full = true;
      return this;
    }
    memory.copy(changetype<usize>(this.buffer) + this.length, from, length);
    this.length += length;
    return this;
  }
}

export enum Kind {
  MALFORMED = -1, // or outside what the appliance uses of CBOR: indefinite lengths, tags, integers beyond i64
  END = 0,
  INT = 1, // integer
  BYTES = 2, // start, length
  TEXT = 3, // start, length; text() decodes it
  ARRAY = 4, // length: items that follow
  MAP = 5, // length: pairs that follow
  BOOL = 6, // integer: 0 or 1
  NULL = 7, // also CBOR's undefined
  FLOAT = 8, // real
}

/** Yields one item after the other: `next` says of which kind it is, the fields have it. */
export class CborReader {
  integer: i64 = 0;
  real: f64 = 0;
  start: u32 = 0;
  length: u32 = 0;
  private at: u32 = 0;

  /** Reads the first `end` bytes of `data`. */
  constructor(
    private data: StaticArray<u8>,
    private end: u32,
  ) {}

  next(): Kind {
    if (this.at >= this.end) return Kind.END;
    const initial = this.take(1);
    const major = <u32>(initial >> 5);
    const info = <u32>(initial & 31);
    const size: u32 = info < 24 ? 0 : 1 << (info - 24);
    if (info > 27 || major == 6 || size > this.end - this.at) return Kind.MALFORMED;
    const argument = size ? this.take(size) : <u64>info;
    if (major == 7) return this.simple(info, argument);
    if (major < 2) {
      if (argument > <u64>i64.MAX_VALUE) return Kind.MALFORMED;
      this.integer = major ? -1 - <i64>argument : <i64>argument;
      return Kind.INT;
    }
    // every entry takes at least one byte, so a count beyond the input is a lie
    const rest = <u64>(this.end - this.at);
    if (argument > (major == 5 ? rest / 2 : rest)) return Kind.MALFORMED;
    this.length = <u32>argument;
    if (major < 4) {
      this.start = this.at;
      this.at += this.length;
    }
    return <Kind>major;
  }

  /** The text that was just read. */
  text(): string {
    return String.UTF8.decodeUnsafe(changetype<usize>(this.data) + this.start, this.length);
  }

  /** The bytes that were just read. */
  bytes(): Uint8Array {
    const copy = new Uint8Array(this.length);
    memory.copy(copy.dataStart, changetype<usize>(this.data) + this.start, this.length);
    return copy;
  }

  /** Pass over one whole value; false where it is malformed or not there. */
  skip(): bool {
    let pending: u64 = 1;
    while (pending > 0) {
      const kind = this.next();
      if (kind <= Kind.END) return false;
      pending += kind == Kind.ARRAY ? this.length : kind == Kind.MAP ? 2 * <u64>this.length : 0;
      pending--;
    }
    return true;
  }

  private simple(info: u32, argument: u64): Kind {
    if (info == 20 || info == 21) {
      this.integer = info == 21 ? 1 : 0;
      return Kind.BOOL;
    }
    if (info == 22 || info == 23) return Kind.NULL;
    if (info == 25) this.real = half(<u32>argument);
    else if (info == 26) this.real = reinterpret<f32>(<u32>argument);
    else if (info == 27) this.real = reinterpret<f64>(argument);
    else return Kind.MALFORMED;
    return Kind.FLOAT;
  }

  /** The next bytes as a number, big-endian; the caller knows that they are there. */
  private take(size: u32): u64 {
    let value: u64 = 0;
    for (let i: u32 = 0; i < size; i++) value = (value << 8) | unchecked(this.data[this.at++]);
    return value;
  }
}

function half(bits: u32): f64 {
  const exponent = (bits >> 10) & 31;
  const fraction = bits & 1023;
  const magnitude =
    exponent == 0
      ? <f64>fraction / 16777216.0 // zero and subnormal: fraction * 2^-24
      : <f64>reinterpret<f32>(((exponent == 31 ? 255 : exponent + 112) << 23) | (fraction << 13));
  return bits & 0x8000 ? -magnitude : magnitude;
}
