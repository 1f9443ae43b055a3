/* Classifies each frame by wasi-nn with a model of its own, loaded anew for every frame. Emits the raw scores. */
#include "appliance.h"
#include "model.h"

#define NN(name) __attribute__((import_module("wasi_ephemeral_nn"), import_name(#name)))

typedef struct { const void *data; uint32_t length; } builder;
typedef struct { const uint32_t *sides; uint32_t rank; uint8_t type; const void *data; uint32_t length; } tensor;

NN(load) int32_t nn_load(const builder *builders, uint32_t count, uint32_t encoding, uint32_t target, uint32_t *graph);
NN(init_execution_context) int32_t nn_open(uint32_t graph, uint32_t *context);
NN(set_input) int32_t nn_set_input(uint32_t context, uint32_t index, const tensor *input);
NN(compute) int32_t nn_compute(uint32_t context);
NN(get_output) int32_t nn_get_output(uint32_t context, uint32_t index, void *out, uint32_t capacity, uint32_t *written);

enum { TFLITE = 4, TPU = 2, U8 = 2 };

static uint8_t picture[SIDE * SIDE * 3];
static uint8_t scores[CLASSES];
static const uint32_t sides[4] = {1, SIDE, SIDE, 3};

APPLIANCE_EXPORT(handle) int32_t handle(void) {
  const builder model = {MODEL, sizeof MODEL};
  const tensor input = {sides, 4, U8, picture, sizeof picture};
  uint32_t graph, context, written;
  if (appliance_frame_pixels(NULL, APPLIANCE_RGB, SIDE, SIDE, picture, sizeof picture) != sizeof picture) return 100;
  int32_t errno = nn_load(&model, 1, TFLITE, TPU, &graph);
  if (!errno) errno = nn_open(graph, &context);
  if (!errno) errno = nn_set_input(context, 0, &input);
  if (!errno) errno = nn_compute(context);
  if (!errno) errno = nn_get_output(context, 0, scores, sizeof scores, &written);
  if (errno) return errno;
  return appliance_emit(0x10, APPLIANCE_BYTES, scores, written);
}
