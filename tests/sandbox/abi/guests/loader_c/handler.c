/* Loads what each frame brings as a model by wasi-nn, runs it, and emits the errno of every step, then the output.
 * A frame: u32 element type, u32 bytes of the input, u32 elements of the input, the input, the model. */
#include "appliance.h"

#define NN(name) __attribute__((import_module("wasi_ephemeral_nn"), import_name(#name)))

typedef struct { const void *data; uint32_t length; } builder;
typedef struct { const uint32_t *sides; uint32_t rank; uint8_t type; const void *data; uint32_t length; } tensor;

NN(load) int32_t nn_load(const builder *builders, uint32_t count, uint32_t encoding, uint32_t target, uint32_t *graph);
NN(init_execution_context) int32_t nn_open(uint32_t graph, uint32_t *context);
NN(set_input) int32_t nn_set_input(uint32_t context, uint32_t index, const tensor *input);
NN(compute) int32_t nn_compute(uint32_t context);
NN(get_output) int32_t nn_get_output(uint32_t context, uint32_t index, void *out, uint32_t capacity, uint32_t *written);

enum { AUTODETECT = 5, STEPS = 5 };

static uint32_t frame[1 << 20];
static uint32_t report[STEPS + 1024];

APPLIANCE_EXPORT(handle) int32_t handle(void) {
  int32_t size = appliance_frame_read(0, frame, sizeof frame);
  if (size < 12) return 100;
  const uint32_t bytes = frame[1];
  const uint8_t *data = (const uint8_t *)&frame[3];
  const builder model = {data + bytes, (uint32_t)size - 12 - bytes};
  const tensor input = {&frame[2], 1, (uint8_t)frame[0], data, bytes};
  uint32_t graph = 0, context = 0, written = 0;
  report[0] = (uint32_t)nn_load(&model, 1, AUTODETECT, 0, &graph);
  report[1] = (uint32_t)nn_open(graph, &context);
  report[2] = (uint32_t)nn_set_input(context, 0, &input);
  report[3] = (uint32_t)nn_compute(context);
  report[4] = (uint32_t)nn_get_output(context, 0, &report[STEPS], sizeof report - STEPS * 4, &written);
  return appliance_emit(0x10, APPLIANCE_BYTES, report, STEPS * 4 + written);
}
