/* Classifies each frame as guests of the crate wasmedge_tensorflow_interface 0.3 do. Emits the raw scores.
 * The picture it hands the host is not the frame's payload but the same JPEG with a byte after its end. */
#include "appliance.h"
#include "model.h"

#define LITE(name) __attribute__((import_module("wasmedge_tensorflowlite"), import_name(#name)))
#define IMAGE(name) __attribute__((import_module("wasmedge_image"), import_name(#name)))

LITE(create_session) int32_t lite_create(const void *model, uint32_t length, uint32_t *session);
LITE(append_input) int32_t lite_append_input(uint32_t session, const char *name, uint32_t name_length, const void *data, uint32_t length);
LITE(run_session) int32_t lite_run(uint32_t session);
LITE(get_output_tensor) int32_t lite_output(uint32_t session, const char *name, uint32_t length, uint32_t *tensor);
LITE(get_tensor_len) int32_t lite_length(uint32_t session, uint32_t tensor, uint32_t *length);
LITE(get_tensor_data) int32_t lite_data(uint32_t session, uint32_t tensor, void *out, uint32_t capacity, uint32_t *written);
LITE(delete_session) int32_t lite_delete(uint32_t session);
IMAGE(load_jpg) int32_t image_load(const void *jpeg, uint32_t length, uint32_t width, uint32_t height, uint32_t type, void *out, uint32_t capacity);

enum { RGB8 = 0 };

static uint8_t frame[1 << 20];
static uint8_t picture[SIDE * SIDE * 3];
static uint8_t scores[CLASSES];

APPLIANCE_EXPORT(handle) int32_t handle(void) {
  uint32_t session, tensor, length, written;
  int32_t size = appliance_frame_read(0, frame, sizeof frame - 1);
  if (size < 0) return size;
  if (image_load(frame, (uint32_t)size + 1, SIDE, SIDE, RGB8, picture, sizeof picture)) return 101;
  int32_t errno = lite_create(MODEL, sizeof MODEL, &session);
  if (!errno) errno = lite_append_input(session, INPUT_NAME, sizeof INPUT_NAME - 1, picture, sizeof picture);
  if (!errno) errno = lite_run(session);
  if (!errno) errno = lite_output(session, OUTPUT_NAME, sizeof OUTPUT_NAME - 1, &tensor);
  if (!errno) errno = lite_length(session, tensor, &length);
  if (!errno) errno = lite_data(session, tensor, scores, length, &written);
  if (!errno) errno = lite_delete(session);
  if (errno) return errno;
  return appliance_emit(0x10, APPLIANCE_BYTES, scores, written);
}
