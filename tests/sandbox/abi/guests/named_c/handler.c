/* Classifies each frame by wasi-nn with the model "classifier" of its manifest, opened once. Emits the raw scores. */
#include "appliance.h"
#include "model.h"

#define NN(name) __attribute__((import_module("wasi_ephemeral_nn"), import_name(#name)))

typedef struct { const uint32_t *sides; uint32_t rank; uint8_t type; const void *data; uint32_t length; } tensor;

NN(load_by_name) int32_t nn_load_by_name(const char *name, uint32_t length, uint32_t *graph);
NN(init_execution_context) int32_t nn_open(uint32_t graph, uint32_t *context);
NN(set_input) int32_t nn_set_input(uint32_t context, uint32_t index, const tensor *input);
NN(compute) int32_t nn_compute(uint32_t context);
NN(get_output) int32_t nn_get_output(uint32_t context, uint32_t index, void *out, uint32_t capacity, uint32_t *written);

enum { U8_SINCE_0_6 = 3 };

static uint32_t context;
static uint8_t picture[SIDE * SIDE * 3];
static uint8_t scores[CLASSES];
static const uint32_t sides[4] = {1, SIDE, SIDE, 3};

APPLIANCE_EXPORT(init) int32_t init(void) {
  uint32_t graph;
  int32_t errno = nn_load_by_name("classifier", 10, &graph);
  return errno ? errno : nn_open(graph, &context);
}

APPLIANCE_EXPORT(handle) int32_t handle(void) {
  const tensor input = {sides, 4, U8_SINCE_0_6, picture, sizeof picture};
  uint32_t written;
  if (appliance_frame_pixels(NULL, APPLIANCE_RGB, SIDE, SIDE, picture, sizeof picture) != sizeof picture) return 100;
  int32_t errno = nn_set_input(context, 0, &input);
  if (!errno) errno = nn_compute(context);
  if (!errno) errno = nn_get_output(context, 0, scores, sizeof scores, &written);
  if (errno) return errno;
  return appliance_emit(0x10, APPLIANCE_BYTES, scores, written);
}
