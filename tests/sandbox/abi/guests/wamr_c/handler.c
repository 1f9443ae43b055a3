/* Classifies each frame by WAMR's older wasi-nn, loading its model in init. Emits the scores as float32. */
#include "appliance.h"
#include "model.h"

#define NN(name) __attribute__((import_module("wasi_nn"), import_name(#name)))

typedef struct { const void *data; uint32_t length; } builder;
typedef struct { const builder *builders; uint32_t count; } builder_array;
typedef struct { const uint32_t *sides; uint32_t rank; } dimensions;
typedef struct { const dimensions *shape; uint32_t type; const void *data; } tensor;

NN(load) int32_t nn_load(const builder_array *builders, uint32_t encoding, uint32_t target, uint32_t *graph);
NN(init_execution_context) int32_t nn_open(uint32_t graph, uint32_t *context);
NN(set_input) int32_t nn_set_input(uint32_t context, uint32_t index, const tensor *input);
NN(compute) int32_t nn_compute(uint32_t context);
NN(get_output) int32_t nn_get_output(uint32_t context, uint32_t index, float *out, uint32_t *count);

enum { TFLITE = 4, CPU = 0, FP32 = 1 };

static uint32_t context;
static uint8_t picture[SIDE * SIDE * 3];
static float input[SIDE * SIDE * 3];
static float scores[CLASSES];
static const uint32_t sides[4] = {1, SIDE, SIDE, 3};

APPLIANCE_EXPORT(init) int32_t init(void) {
  const builder model = {MODEL, sizeof MODEL};
  const builder_array models = {&model, 1};
  uint32_t graph;
  int32_t errno = nn_load(&models, TFLITE, CPU, &graph);
  return errno ? errno : nn_open(graph, &context);
}

APPLIANCE_EXPORT(handle) int32_t handle(void) {
  const dimensions shape = {sides, 4};
  const tensor in = {&shape, FP32, input};
  uint32_t count = CLASSES;
  if (appliance_frame_pixels(NULL, APPLIANCE_RGB, SIDE, SIDE, picture, sizeof picture) != sizeof picture) return 100;
  /* A quarter of a step above the real value of each sample: cutting it off must give the sample again. */
  for (uint32_t i = 0; i < sizeof picture; i++) input[i] = ((float)picture[i] - ZERO_POINT + 0.25f) * SCALE;
  int32_t errno = nn_set_input(context, 0, &in);
  if (!errno) errno = nn_compute(context);
  if (!errno) errno = nn_get_output(context, 0, scores, &count);
  if (errno) return errno;
  return appliance_emit(0x10, APPLIANCE_BYTES, scores, count * sizeof(float));
}
