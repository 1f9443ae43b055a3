/* appliance.h - the native handler ABI, version 1. The text of record is docs/handler-abi.md.
 *
 * A handler is one freestanding WebAssembly module. It exports its memory as "memory" and
 *     int32_t handle(void);      called once per frame; 0 = done, anything else = this frame failed
 *     int32_t init(void);        optional, called once after loading; non-zero = refuse to run
 * and imports what it needs of the functions below from the module "appliance". All integers are
 * little-endian, all text is UTF-8 without a terminating zero. Functions that can fail return a
 * negative APPLIANCE_E... code and then have done nothing. What a handler emits takes effect when handle returns 0.
 */
#ifndef APPLIANCE_H
#define APPLIANCE_H

#include <stddef.h>
#include <stdint.h>

#define APPLIANCE_IMPORT(name) __attribute__((import_module("appliance"), import_name(#name)))
#define APPLIANCE_EXPORT(name) __attribute__((export_name(#name)))

enum {
  APPLIANCE_EINVAL = -1,   /* a bad argument: pointer outside memory, unknown format, bad index */
  APPLIANCE_ENOENT = -2,   /* no such model, output, setting, label or key */
  APPLIANCE_ETOOBIG = -3,  /* over a limit, or the buffer is too small */
  APPLIANCE_EDENIED = -4,  /* the manifest does not allow it: a tag */
  APPLIANCE_EMODEL = -5,   /* the model failed, or is not there just now */
  APPLIANCE_EFRAME = -6,   /* there is no frame (in init), it is not a picture, or it cannot be decoded */
};

enum { APPLIANCE_JPEG = 1, APPLIANCE_RGB = 2, APPLIANCE_GRAY = 3, APPLIANCE_CBOR = 4, APPLIANCE_JSON = 5, APPLIANCE_BYTES = 6 };
enum { APPLIANCE_DEBUG = 10, APPLIANCE_INFO = 20, APPLIANCE_WARNING = 30, APPLIANCE_ERROR = 40 };
enum { APPLIANCE_STRETCH = 0, APPLIANCE_LETTERBOX = 1 };
enum { APPLIANCE_U8 = 1, APPLIANCE_I8 = 2, APPLIANCE_I16 = 3, APPLIANCE_I32 = 4, APPLIANCE_I64 = 5, APPLIANCE_F16 = 6, APPLIANCE_F32 = 7, APPLIANCE_F64 = 8, APPLIANCE_BOOL = 9 };

/* 40 bytes */
typedef struct {
  uint64_t seq;         /* @0  number the source gave */
  uint64_t captured_ns; /* @8  wall clock, since 1970 */
  uint32_t tag;         /* @16 */
  uint32_t format;      /* @20 APPLIANCE_JPEG ... */
  uint32_t width;       /* @24 pixels; 0 for data, and for a JPEG that a handler emitted */
  uint32_t height;      /* @28 */
  uint32_t length;      /* @32 bytes of the payload */
  uint32_t reserved;    /* @36 0 */
} appliance_frame;

/* 56 bytes */
typedef struct {
  uint32_t dtype;    /* @0  APPLIANCE_U8 ... */
  uint32_t rank;     /* @4  0..8 */
  uint32_t shape[8]; /* @8  unused dimensions are 0 */
  uint32_t bytes;    /* @40 */
  uint32_t elements; /* @44 */
  float scale;       /* @48 real = scale * (stored - zero_point); 0 = not quantised */
  int32_t zero_point;/* @52 */
} appliance_tensor;

/* 16 bytes; width 0 = the whole picture */
typedef struct {
  int32_t x, y, width, height;
} appliance_crop;

/* The current frame. */
APPLIANCE_IMPORT(frame_info) int32_t appliance_frame_info(appliance_frame *out);
/* Name of the frame's source, at most 64 bytes; returns its length. */
APPLIANCE_IMPORT(frame_source) int32_t appliance_frame_source(char *out, uint32_t capacity);
/* Copy payload bytes from `offset`; returns how many (0 at the end). */
APPLIANCE_IMPORT(frame_read) int32_t appliance_frame_read(uint32_t offset, void *out, uint32_t capacity);
/* Decode and resize (part of) the picture to width x height samples of APPLIANCE_RGB or _GRAY; returns bytes written. crop may be NULL. */
APPLIANCE_IMPORT(frame_pixels) int32_t appliance_frame_pixels(const appliance_crop *crop, uint32_t format, uint32_t width, uint32_t height, void *out, uint32_t capacity);

/* Handle (>= 0) of a model the manifest declares. */
APPLIANCE_IMPORT(model) int32_t appliance_model(const char *name, uint32_t length);
APPLIANCE_IMPORT(model_input) int32_t appliance_model_input(int32_t model, uint32_t index, appliance_tensor *out);
APPLIANCE_IMPORT(model_output) int32_t appliance_model_output(int32_t model, uint32_t index, appliance_tensor *out);
/* Index of the output with this name. */
APPLIANCE_IMPORT(model_output_named) int32_t appliance_model_output_named(int32_t model, const char *name, uint32_t length);
/* Label of a class, counted from 0; returns its length. */
APPLIANCE_IMPORT(model_label) int32_t appliance_model_label(int32_t model, uint32_t index, char *out, uint32_t capacity);
/* Run the model on the current frame; crop may be NULL; fit is APPLIANCE_STRETCH or _LETTERBOX. 0 = outputs are there. */
APPLIANCE_IMPORT(infer_frame) int32_t appliance_infer_frame(int32_t model, const appliance_crop *crop, uint32_t fit);
/* Run the model on a tensor of the guest's own: the bytes of all inputs, one after another in the model's order. */
APPLIANCE_IMPORT(infer_tensor) int32_t appliance_infer_tensor(int32_t model, const void *data, uint32_t length);
/* Raw bytes of output `index` of the last inference of `model` about this frame, from byte `offset`; returns how many. */
APPLIANCE_IMPORT(output_read) int32_t appliance_output_read(int32_t model, uint32_t index, uint32_t offset, void *out, uint32_t capacity);
/* The same as real numbers (dequantised); first element `start`; returns how many floats were written. */
APPLIANCE_IMPORT(output_f32) int32_t appliance_output_f32(int32_t model, uint32_t index, uint32_t start, float *out, uint32_t count);

/* Emit a frame with a tag the manifest allows: APPLIANCE_CBOR, _JSON (both checked by the host), _BYTES or _JPEG. The data is copied. */
APPLIANCE_IMPORT(emit) int32_t appliance_emit(uint32_t tag, uint32_t format, const void *data, uint32_t length);
/* A line in the appliance's log: APPLIANCE_DEBUG ... _ERROR. */
APPLIANCE_IMPORT(log) int32_t appliance_log(uint32_t level, const char *text, uint32_t length);
/* Monotonic nanoseconds since an arbitrary start. */
APPLIANCE_IMPORT(now_ns) int64_t appliance_now_ns(void);
/* A setting from the manifest or the operator; returns its length. */
APPLIANCE_IMPORT(setting) int32_t appliance_setting(const char *key, uint32_t key_length, char *out, uint32_t capacity);
/* Small state that outlives a restart of the handler. A change takes effect when handle returns 0; a value of length 0 deletes. */
APPLIANCE_IMPORT(state_get) int32_t appliance_state_get(const char *key, uint32_t key_length, void *out, uint32_t capacity);
APPLIANCE_IMPORT(state_set) int32_t appliance_state_set(const char *key, uint32_t key_length, const void *value, uint32_t length);

#endif
