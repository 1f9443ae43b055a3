/* appliance_cbor.h - a bounded CBOR writer and pull reader (RFC 8949) for handlers: header-only, no libc, no heap.
 *
 * Writing: lengths come first in CBOR, so say how many entries a map or array has, then write them.
 *     static uint8_t buffer[256];
 *     appliance_cbor out = appliance_cbor_into(buffer, sizeof buffer);
 *     appliance_cbor_map(&out, 1);
 *     appliance_cbor_string(&out, "label");
 *     appliance_cbor_text(&out, label, label_length);
 *     return appliance_cbor_emit(&out, 0x10);
 * A buffer that is too small is noticed once, by appliance_cbor_emit; no call writes beyond it.
 *
 * Reading: appliance_cbor_next yields one item after the other; appliance_cbor_skip passes over a whole value.
 * Neither reads beyond the input nor recurses, whatever the input holds.
 */
#ifndef APPLIANCE_CBOR_H
#define APPLIANCE_CBOR_H

#include "appliance.h"

/* --- writer --- */

typedef struct {
  uint8_t *data;
  uint32_t capacity;
  uint32_t length; /* bytes written so far */
  uint32_t full;   /* 1 once something did not fit: the document is then incomplete */
} appliance_cbor;

static inline appliance_cbor appliance_cbor_into(void *buffer, uint32_t capacity) {
  appliance_cbor out = {buffer, capacity, 0, 0};
  return out;
}

static inline void appliance_cbor_raw(appliance_cbor *out, const void *bytes, uint32_t length) {
  if (out->full || length > out->capacity - out->length) {
    out->full = 1;
    return;
  }
  __builtin_memcpy(out->data + out->length, bytes, length);
  out->length += length;
}

/* An initial byte and its argument in `size` bytes, big-endian. */
static inline void appliance_cbor_wide(appliance_cbor *out, uint8_t initial, uint64_t argument, uint32_t size) {
  uint8_t bytes[9];
  bytes[0] = initial;
  for (uint32_t i = 0; i < size; i++) bytes[1 + i] = (uint8_t)(argument >> (8 * (size - 1 - i)));
  appliance_cbor_raw(out, bytes, 1 + size);
}

static inline void appliance_cbor_head(appliance_cbor *out, uint32_t major, uint64_t argument) {
  uint8_t type = (uint8_t)(major << 5);
  if (argument < 24) appliance_cbor_wide(out, (uint8_t)(type | argument), 0, 0);
  else if (argument <= 0xFF) appliance_cbor_wide(out, type | 24, argument, 1);
  else if (argument <= 0xFFFF) appliance_cbor_wide(out, type | 25, argument, 2);
  else if (argument <= 0xFFFFFFFF) appliance_cbor_wide(out, type | 26, argument, 4);
  else appliance_cbor_wide(out, type | 27, argument, 8);
}

/* `pairs` keys and values follow, in turn. The host refuses a map with a key twice. */
static inline void appliance_cbor_map(appliance_cbor *out, uint32_t pairs) { appliance_cbor_head(out, 5, pairs); }

static inline void appliance_cbor_array(appliance_cbor *out, uint32_t items) { appliance_cbor_head(out, 4, items); }

static inline void appliance_cbor_int(appliance_cbor *out, int64_t value) {
  if (value < 0) appliance_cbor_head(out, 1, (uint64_t)(-1 - value));
  else appliance_cbor_head(out, 0, (uint64_t)value);
}

static inline void appliance_cbor_bytes(appliance_cbor *out, const void *bytes, uint32_t length) {
  appliance_cbor_head(out, 2, length);
  appliance_cbor_raw(out, bytes, length);
}

/* UTF-8. */
static inline void appliance_cbor_text(appliance_cbor *out, const char *text, uint32_t length) {
  appliance_cbor_head(out, 3, length);
  appliance_cbor_raw(out, text, length);
}

/* A literal that ends in a zero. */
static inline void appliance_cbor_string(appliance_cbor *out, const char *text) {
  uint32_t length = 0;
  while (text[length]) length++;
  appliance_cbor_text(out, text, length);
}

static inline void appliance_cbor_bool(appliance_cbor *out, int32_t value) {
  appliance_cbor_wide(out, value ? 0xF5 : 0xF4, 0, 0);
}

static inline void appliance_cbor_null(appliance_cbor *out) { appliance_cbor_wide(out, 0xF6, 0, 0); }

/* The shorter of 32 and 64 bits that holds the value exactly. NaN and infinities become null: results are
 * published as JSON, which has neither. */
static inline void appliance_cbor_double(appliance_cbor *out, double value) {
  float narrow = (float)value;
  union { float real; uint32_t bits; } half = {narrow};
  union { double real; uint64_t bits; } whole = {value};
  if (value - value != 0.0) appliance_cbor_null(out);
  else if ((double)narrow == value) appliance_cbor_wide(out, 0xFA, half.bits, 4);
  else appliance_cbor_wide(out, 0xFB, whole.bits, 8);
}

static inline void appliance_cbor_float(appliance_cbor *out, float value) { appliance_cbor_double(out, value); }

/* Rounded to so many decimal places (0 to 9), so that a reader sees 0.9 and not 0.8999999761581421. */
static inline void appliance_cbor_decimal(appliance_cbor *out, double value, uint32_t places) {
  double scale = 1.0;
  for (uint32_t i = 0; i < places && i < 9; i++) scale *= 10.0;
  double scaled = value * scale;
  if (scaled > -9e15 && scaled < 9e15) value = (double)(int64_t)(scaled < 0 ? scaled - 0.5 : scaled + 0.5) / scale;
  appliance_cbor_double(out, value);
}

/* Emit what was written; APPLIANCE_ETOOBIG where the buffer was too small, otherwise as appliance_emit. */
static inline int32_t appliance_cbor_emit(const appliance_cbor *out, uint32_t tag) {
  if (out->full) return APPLIANCE_ETOOBIG;
  return appliance_emit(tag, APPLIANCE_CBOR, out->data, out->length);
}

/* --- reader --- */

typedef struct {
  const uint8_t *at;
  const uint8_t *end;
} appliance_cbor_reader;

enum {
  APPLIANCE_CBOR_INT,   /* integer */
  APPLIANCE_CBOR_BYTES, /* bytes, length */
  APPLIANCE_CBOR_TEXT,  /* bytes, length; whether it is UTF-8 is not checked */
  APPLIANCE_CBOR_ARRAY, /* length: items that follow */
  APPLIANCE_CBOR_MAP,   /* length: pairs that follow */
  APPLIANCE_CBOR_BOOL,  /* integer: 0 or 1 */
  APPLIANCE_CBOR_NULL,  /* null, also CBOR's undefined */
  APPLIANCE_CBOR_FLOAT, /* real */
};

typedef struct {
  uint32_t kind;
  uint32_t length;
  const uint8_t *bytes; /* points into the input */
  int64_t integer;
  double real;
} appliance_cbor_item;

static inline appliance_cbor_reader appliance_cbor_from(const void *data, uint32_t length) {
  appliance_cbor_reader in = {data, (const uint8_t *)data + length};
  return in;
}

static inline double appliance_cbor_half(uint32_t bits) {
  uint32_t exponent = (bits >> 10) & 31, fraction = bits & 1023;
  union { uint32_t bits; float real; } value;
  if (exponent == 0) { /* zero and subnormal: fraction * 2^-24 */
    value.real = (float)fraction / 16777216.0F;
  } else {
    value.bits = (exponent == 31 ? 255U << 23 : (exponent + 112) << 23) | fraction << 13;
  }
  return bits & 0x8000 ? -value.real : value.real;
}

/* Major type 7: false, true, null and floats. */
static inline int32_t appliance_cbor_simple(uint32_t info, uint64_t argument, appliance_cbor_item *item) {
  union { uint32_t bits; float real; } narrow = {(uint32_t)argument};
  union { uint64_t bits; double real; } wide = {argument};
  item->kind = APPLIANCE_CBOR_FLOAT;
  if (info == 20 || info == 21) {
    item->kind = APPLIANCE_CBOR_BOOL;
    item->integer = info == 21;
  } else if (info == 22 || info == 23) {
    item->kind = APPLIANCE_CBOR_NULL;
  } else if (info == 25) {
    item->real = appliance_cbor_half((uint32_t)argument);
  } else if (info == 26) {
    item->real = narrow.real;
  } else if (info == 27) {
    item->real = wide.real;
  } else {
    return APPLIANCE_EINVAL;
  }
  return 1;
}

/* The next item: 1 = it is in *item, 0 = end of input, APPLIANCE_EINVAL = malformed, or outside what the
 * appliance uses of CBOR: indefinite lengths, tags, integers beyond int64. After a text or byte string the
 * reader stands behind it; after a map or array it stands at the first entry. */
static inline int32_t appliance_cbor_next(appliance_cbor_reader *in, appliance_cbor_item *item) {
  appliance_cbor_item empty = {0, 0, 0, 0, 0};
  *item = empty;
  if (in->at >= in->end) return 0;
  uint32_t major = *in->at >> 5, info = *in->at & 31;
  uint32_t size = info < 24 ? 0 : 1U << (info - 24);
  if (info > 27 || size > (uint32_t)(in->end - in->at) - 1) return APPLIANCE_EINVAL;
  in->at++;
  uint64_t argument = size ? 0 : info;
  for (uint32_t i = 0; i < size; i++) argument = argument << 8 | *in->at++;
  if (major == 7) return appliance_cbor_simple(info, argument, item);
  if (major == 6) return APPLIANCE_EINVAL;
  if (major < 2) {
    if (argument > INT64_MAX) return APPLIANCE_EINVAL;
    item->kind = APPLIANCE_CBOR_INT;
    item->integer = major ? -1 - (int64_t)argument : (int64_t)argument;
    return 1;
  }
  /* Every entry takes at least one byte, so a count beyond the input is a lie. */
  uint64_t rest = (uint64_t)(in->end - in->at);
  if (argument > (major == 5 ? rest / 2 : rest)) return APPLIANCE_EINVAL;
  item->kind = APPLIANCE_CBOR_BYTES + (major - 2);
  item->length = (uint32_t)argument;
  if (major < 4) {
    item->bytes = in->at;
    in->at += argument;
  }
  return 1;
}

/* Pass over one whole value: 1, or APPLIANCE_EINVAL where there is none or it is malformed or cut short. */
static inline int32_t appliance_cbor_skip(appliance_cbor_reader *in) {
  for (uint64_t pending = 1; pending; pending--) {
    appliance_cbor_item item;
    if (appliance_cbor_next(in, &item) != 1) return APPLIANCE_EINVAL;
    if (item.kind == APPLIANCE_CBOR_ARRAY) pending += item.length;
    if (item.kind == APPLIANCE_CBOR_MAP) pending += 2ULL * item.length;
  }
  return 1;
}

/* True where a text item reads as the literal. */
static inline int32_t appliance_cbor_is(const appliance_cbor_item *item, const char *literal) {
  if (item->kind != APPLIANCE_CBOR_TEXT) return 0;
  uint32_t i = 0;
  while (i < item->length && literal[i] && item->bytes[i] == (uint8_t)literal[i]) i++;
  return i == item->length && !literal[i];
}

#endif
