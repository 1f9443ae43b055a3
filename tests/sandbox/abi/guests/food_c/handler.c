/* A food classifier in the shape of those of the YoMo and WasmEdge examples: infer(bytes) -> String by wasmedge-bindgen,
 * the crate wasmedge_tensorflow_interface 0.2 with a session for every picture, and println. No function of ours. */
#include <stdint.h>
#include "model.h"

#define EXPORT(name) __attribute__((export_name(name)))
#define LITE(name) __attribute__((import_module("wasmedge_tensorflowlite"), import_name("wasmedge_tensorflowlite_" #name)))
#define IMAGE(name) __attribute__((import_module("wasmedge_image"), import_name("wasmedge_image_" #name)))
#define WASI(name) __attribute__((import_module("wasi_snapshot_preview1"), import_name(#name)))

LITE(create_session) uint64_t lite_create(const void *model, uint32_t length);
LITE(append_input) void lite_append_input(uint64_t session, const char *name, uint32_t name_length, const void *data, uint32_t length);
LITE(run_session) uint32_t lite_run(uint64_t session);
LITE(get_output_tensor) uint64_t lite_output(uint64_t session, const char *name, uint32_t length);
LITE(get_tensor_len) uint32_t lite_length(uint64_t tensor);
LITE(get_tensor_data) void lite_data(uint64_t tensor, void *out);
LITE(delete_session) void lite_delete(uint64_t session);
IMAGE(load_jpg_to_rgb8) uint32_t image_load(const void *jpeg, uint32_t length, uint32_t width, uint32_t height, void *out);
WASI(fd_write) int32_t fd_write(int32_t fd, const void *iovec, int32_t count, uint32_t *written);
WASI(clock_time_get) int32_t clock_time_get(int32_t clock, int64_t precision, uint64_t *time);

typedef struct { uint32_t pointer, length; } slice;
typedef struct { uint32_t pointer, type, length; } value;

enum { STRING = 31 };

static uint8_t heap[4 << 20], *next;
static uint8_t picture[SIDE * SIDE * 3], scores[CLASSES];
static char text[64];
static value result;
static uint8_t returned[9];

EXPORT("allocate") uint8_t *allocate(int32_t size) {
  uint8_t *at = next ? next : heap;
  next = at + (size + 7) / 8 * 8;
  return next <= heap + sizeof heap ? at : (uint8_t *)0;
}

EXPORT("deallocate") void deallocate(uint8_t *pointer, int32_t size) { (void)pointer, (void)size; }

static char *digits(char *at, uint32_t number) {
  if (number > 9) at = digits(at, number / 10);
  *at = (char)('0' + number % 10);
  return at + 1;
}

static char *copied(char *at, const char *from) {
  while (*from) *at++ = *from++;
  return at;
}

static void say(const char *line, uint32_t length) {
  slice iovec = {(uint32_t)line, length};
  uint32_t written;
  fd_write(1, &iovec, 1, &written);
}

static uint8_t *give(uint8_t failed, const void *pointer, uint32_t length) {
  uint32_t words[2] = {(uint32_t)pointer, length};
  returned[0] = failed;
  for (uint32_t i = 0; i < sizeof words; i++) returned[1 + i] = ((uint8_t *)words)[i];
  return returned;
}

EXPORT("infer") uint8_t *infer(const slice *inputs, int32_t count) {
  static const char damaged[] = "this is no picture";
  uint64_t before, after;
  clock_time_get(1, 1, &before);
  next = heap; /* what was allocated for the call before is free again */
  if (count != 1 || image_load((const void *)inputs->pointer, inputs->length, SIDE, SIDE, picture))
    return give(1, damaged, sizeof damaged - 1);
  uint64_t session = lite_create(MODEL, sizeof MODEL);
  lite_append_input(session, INPUT_NAME, sizeof INPUT_NAME - 1, picture, sizeof picture);
  if (!session || lite_run(session)) __builtin_trap();
  uint64_t tensor = lite_output(session, OUTPUT_NAME, sizeof OUTPUT_NAME - 1);
  if (lite_length(tensor) != sizeof scores) __builtin_trap();
  lite_data(tensor, scores);
  lite_delete(session);
  clock_time_get(1, 1, &after);
  if (after < before) __builtin_trap();
  uint32_t best = 0;
  for (uint32_t i = 1; i < CLASSES; i++)
    if (scores[i] > scores[best]) best = i;
  char *end = copied(text, "{\"class\":");
  end = digits(end, best);
  end = copied(end, ",\"score\":");
  end = digits(end, scores[best]);
  end = copied(end, "}");
  say("done\n", 5);
  result = (value){(uint32_t)text, STRING, (uint32_t)(end - text)};
  return give(0, &result, 1);
}
