/* detect: the objects in the picture, from an SSD detector that ends in TFLite_Detection_PostProcess.
 *
 * Such a model has four outputs: boxes [1, N, 4] as top, left, bottom, right from 0 to 1, classes [1, N],
 * scores [1, N] (falling) and the count [1]. The picture is stretched to the model's input, so 0 to 1 is the
 * whole frame in both directions.
 */
#include "appliance_cbor.h"
#include "appliance_kit.h"

enum { RESULT_TAG = 0x12, MAX_OBJECTS = 100, OUTPUTS = 4 };

static int32_t model;
static uint32_t boxes_at, classes_at, scores_at, count_at; /* indices of the outputs */
static uint32_t places;                                    /* N, at most MAX_OBJECTS */
static float threshold;
static uint32_t most;
static float boxes[MAX_OBJECTS * 4], classes[MAX_OBJECTS], scores[MAX_OBJECTS];
static uint8_t buffer[MAX_OBJECTS * (sizeof(appliance_text) + 64) + 16];

/* Finds the outputs by their shape. Classes and scores look alike: they follow the boxes in this order in
 * TensorFlow 1's models; where the first output is not the boxes (TensorFlow 2) the scores come first. */
static int32_t find_outputs(void) {
  uint32_t lists[OUTPUTS], found = 0, seen = 0;
  for (uint32_t i = 0; i < OUTPUTS; i++) {
    appliance_tensor output;
    int32_t status = appliance_model_output(model, i, &output);
    if (status < 0) return status;
    if (output.rank == 3 && output.shape[2] == 4) {
      boxes_at = i;
      places = output.shape[1];
      seen |= 1;
    } else if (output.elements == 1) {
      count_at = i;
      seen |= 2;
    } else {
      lists[found++] = i;
    }
  }
  if (seen != 3 || found != 2 || places == 0) return APPLIANCE_EINVAL;
  if (places > MAX_OBJECTS) places = MAX_OBJECTS;
  classes_at = lists[boxes_at == 0 ? 0 : 1];
  scores_at = lists[boxes_at == 0 ? 1 : 0];
  return 0;
}

APPLIANCE_EXPORT(init) int32_t init(void) {
  float number;
  int32_t status = appliance_number("threshold", 0.4F, 0, 1, &threshold);
  if (status == 0) status = appliance_number("max", 20, 1, MAX_OBJECTS, &number);
  if (status < 0) return status;
  most = (uint32_t)number;
  model = appliance_open("model");
  if (model < 0) return model;
  status = find_outputs();
  if (status < 0)
    appliance_say(APPLIANCE_ERROR, "the model must end in TFLite_Detection_PostProcess: boxes, classes, scores, count");
  return status;
}

static int32_t read_output(uint32_t index, float *out, uint32_t count) {
  int32_t status = appliance_output_f32(model, index, 0, out, count);
  return status < 0 ? status : (uint32_t)status == count ? 0 : APPLIANCE_EMODEL;
}

static int32_t infer(uint32_t *count) {
  float valid;
  int32_t status = appliance_infer_frame(model, NULL, APPLIANCE_STRETCH);
  if (status == 0) status = read_output(boxes_at, boxes, places * 4);
  if (status == 0) status = read_output(classes_at, classes, places);
  if (status == 0) status = read_output(scores_at, scores, places);
  if (status == 0) status = read_output(count_at, &valid, 1);
  *count = status == 0 && valid > 0 ? (valid < (float)places ? (uint32_t)valid : places) : 0;
  return status;
}

/* A share of a side in whole pixels, never outside it. */
static int32_t to_pixels(float share, uint32_t side) {
  if (!(share > 0)) return 0; /* also NaN */
  return share < 1 ? (int32_t)(share * (float)side + 0.5F) : (int32_t)side;
}

static void write_object(appliance_cbor *out, uint32_t i, const appliance_frame *frame) {
  appliance_text label;
  const float *box = &boxes[i * 4];
  appliance_label(model, classes[i] > 0 ? (uint32_t)(classes[i] + 0.5F) : 0, &label);
  appliance_cbor_map(out, 3);
  appliance_cbor_string(out, "label");
  appliance_cbor_text(out, label.data, label.length);
  appliance_cbor_string(out, "score");
  appliance_cbor_decimal(out, scores[i], 4);
  appliance_cbor_string(out, "box");
  appliance_cbor_array(out, 4);
  appliance_cbor_int(out, to_pixels(box[1], frame->width));
  appliance_cbor_int(out, to_pixels(box[0], frame->height));
  appliance_cbor_int(out, to_pixels(box[3], frame->width));
  appliance_cbor_int(out, to_pixels(box[2], frame->height));
}

/* Moves the indices of what is worth telling to the front; returns how many. */
static uint32_t choose(uint32_t count, uint32_t *chosen) {
  uint32_t found = 0;
  for (uint32_t i = 0; i < count && found < most; i++)
    if (scores[i] >= threshold) chosen[found++] = i;
  return found;
}

APPLIANCE_EXPORT(handle) int32_t handle(void) {
  static uint32_t chosen[MAX_OBJECTS];
  appliance_frame frame;
  uint32_t count;
  int32_t status = appliance_frame_info(&frame);
  if (status == 0 && frame.width == 0) status = APPLIANCE_EFRAME; /* of unknown size: no box could be told */
  if (status == 0) status = infer(&count);
  if (status < 0) return status;

  uint32_t found = choose(count, chosen);
  appliance_cbor out = appliance_cbor_into(buffer, sizeof buffer);
  appliance_cbor_map(&out, 1);
  appliance_cbor_string(&out, "objects");
  appliance_cbor_array(&out, found);
  for (uint32_t i = 0; i < found; i++) write_object(&out, chosen[i], &frame);
  return appliance_cbor_emit(&out, RESULT_TAG);
}
