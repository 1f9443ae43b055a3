/* Classifies each frame as guests of the crate wasmedge_tensorflow_interface 0.2 do: the host decodes the JPEG, and a
 * session is created for every frame, from a model of the guest's own. Emits the raw scores. */
#include "appliance.h"
#include "model.h"

#define LITE(name) __attribute__((import_module("wasmedge_tensorflowlite"), import_name("wasmedge_tensorflowlite_" #name)))
#define IMAGE(name) __attribute__((import_module("wasmedge_image"), import_name("wasmedge_image_" #name)))
#define TF(name) __attribute__((import_module("wasmedge_tensorflow"), import_name("wasmedge_tensorflow_" #name)))

LITE(create_session) uint64_t lite_create(const void *model, uint32_t length);
LITE(append_input) void lite_append_input(uint64_t session, const char *name, uint32_t name_length, const void *data, uint32_t length);
LITE(run_session) uint32_t lite_run(uint64_t session);
LITE(get_output_tensor) uint64_t lite_output(uint64_t session, const char *name, uint32_t length);
LITE(get_tensor_len) uint32_t lite_length(uint64_t tensor);
LITE(get_tensor_data) void lite_data(uint64_t tensor, void *out);
LITE(delete_session) void lite_delete(uint64_t session);
IMAGE(load_jpg_to_rgb8) uint32_t image_load(const void *jpeg, uint32_t length, uint32_t width, uint32_t height, void *out);
TF(create_session) uint64_t tf_create(const void *model, uint32_t length);

static volatile int is_tensorflow; /* the crate decides it when it runs, so both must resolve */
static uint8_t frame[1 << 20];
static uint8_t picture[SIDE * SIDE * 3];
static uint8_t scores[CLASSES];

APPLIANCE_EXPORT(handle) int32_t handle(void) {
  int32_t length = appliance_frame_read(0, frame, sizeof frame);
  if (length < 0) return length;
  if (image_load(frame, (uint32_t)length, SIDE, SIDE, picture)) return 101;
  uint64_t session = is_tensorflow ? tf_create(MODEL, sizeof MODEL) : lite_create(MODEL, sizeof MODEL);
  if (!session) return 102;
  lite_append_input(session, "nothing of the kind", 19, picture, sizeof picture);
  lite_append_input(session, INPUT_NAME, sizeof INPUT_NAME - 1, picture, sizeof picture);
  if (lite_run(session)) return 103;
  uint64_t tensor = lite_output(session, OUTPUT_NAME, sizeof OUTPUT_NAME - 1);
  if (lite_length(tensor) != sizeof scores) return 104;
  lite_data(tensor, scores);
  lite_delete(session);
  return appliance_emit(0x10, APPLIANCE_BYTES, scores, sizeof scores);
}
