/* appliance_kit.h - what nearly every handler writes on top of the ABI: text, settings, labels, the best class. */
#ifndef APPLIANCE_KIT_H
#define APPLIANCE_KIT_H

#include "appliance.h"

/* --- text: built up in a buffer of fixed size, cut where it is full --- */

typedef struct {
  char data[256]; /* a label or a setting that does not fit is treated as not there */
  uint32_t length;
} appliance_text;

static inline void appliance_add(appliance_text *text, const char *bytes, uint32_t length) {
  uint32_t room = sizeof text->data - text->length;
  if (length > room) length = room;
  __builtin_memcpy(text->data + text->length, bytes, length);
  text->length += length;
}

/* Length of a literal that ends in a zero. */
static inline uint32_t appliance_length(const char *literal) {
  uint32_t length = 0;
  while (literal[length]) length++;
  return length;
}

static inline void appliance_add_string(appliance_text *text, const char *literal) {
  appliance_add(text, literal, appliance_length(literal));
}

static inline void appliance_add_int(appliance_text *text, int32_t value) {
  char digits[11];
  uint32_t at = sizeof digits;
  uint32_t rest = value < 0 ? 0U - (uint32_t)value : (uint32_t)value;
  do {
    digits[--at] = (char)('0' + rest % 10);
    rest /= 10;
  } while (rest);
  if (value < 0) digits[--at] = '-';
  appliance_add(text, digits + at, sizeof digits - at);
}

static inline int32_t appliance_same(const appliance_text *a, const appliance_text *b) {
  if (a->length != b->length) return 0;
  for (uint32_t i = 0; i < a->length; i++)
    if (a->data[i] != b->data[i]) return 0;
  return 1;
}

/* --- log --- */

static inline void appliance_say(uint32_t level, const char *literal) {
  appliance_log(level, literal, appliance_length(literal));
}

static inline void appliance_say_text(uint32_t level, const appliance_text *text) {
  appliance_log(level, text->data, text->length);
}

/* --- settings --- */

/* Decimal number (-12, 0.5, .5) as a whole text; 1 = in *out, 0 = it is not one. */
static inline int32_t appliance_parse(const char *text, uint32_t length, float *out) {
  uint32_t at = length && text[0] == '-', digits = 0;
  double value = 0, unit = 1;
  int32_t fraction = 0;
  for (; at < length; at++) {
    if (text[at] == '.' && !fraction) {
      fraction = 1;
    } else if (text[at] >= '0' && text[at] <= '9') {
      value = value * 10 + (text[at] - '0');
      if (fraction) unit *= 10;
      digits++;
    } else {
      return 0;
    }
  }
  if (!digits || digits > 17) return 0;
  *out = (float)((text[0] == '-' ? -value : value) / unit);
  return 1;
}

/* A number among the settings: `fallback` where the setting is absent or empty. Anything that is no number from
 * `low` to `high` is logged and gives APPLIANCE_EINVAL; return that from init, so that the operator learns of it. */
static inline int32_t appliance_number(const char *key, float fallback, int32_t low, int32_t high, float *out) {
  char value[32];
  int32_t length = appliance_setting(key, appliance_length(key), value, sizeof value);
  *out = fallback;
  if (length == 0 || length == APPLIANCE_ENOENT) return 0;
  if (length > 0 && appliance_parse(value, (uint32_t)length, out) && *out >= low && *out <= high) return 0;
  appliance_text line = {.length = 0};
  appliance_add_string(&line, "the setting `");
  appliance_add_string(&line, key);
  appliance_add_string(&line, "` must be a number from ");
  appliance_add_int(&line, low);
  appliance_add_string(&line, " to ");
  appliance_add_int(&line, high);
  appliance_say_text(APPLIANCE_ERROR, &line);
  return APPLIANCE_EINVAL;
}

/* --- models --- */

/* Handle of a model, or a negative code that has been logged. */
static inline int32_t appliance_open(const char *name) {
  int32_t model = appliance_model(name, appliance_length(name));
  if (model < 0) {
    appliance_text line = {.length = 0};
    appliance_add_string(&line, "no model `");
    appliance_add_string(&line, name);
    appliance_add_string(&line, "`: the manifest must declare it");
    appliance_say_text(APPLIANCE_ERROR, &line);
  }
  return model;
}

/* "class N". */
static inline void appliance_class(uint32_t index, appliance_text *out) {
  out->length = 0;
  appliance_add_string(out, "class ");
  appliance_add_int(out, (int32_t)index);
}

/* The label of a class, or "class N" where it has none (or one longer than an appliance_text). */
static inline void appliance_label(int32_t model, uint32_t index, appliance_text *out) {
  int32_t length = appliance_model_label(model, index, out->data, sizeof out->data);
  if (length > 0) out->length = (uint32_t)length;
  else appliance_class(index, out);
}

/* Index of the greatest value, the first of equals; NaN never wins; -1 where there is nothing to choose. */
static inline int32_t appliance_argmax(const float *values, uint32_t count) {
  int32_t best = -1;
  for (uint32_t i = 0; i < count; i++)
    if (values[i] == values[i] && (best < 0 || values[i] > values[best])) best = (int32_t)i;
  return best;
}

#endif
