/* classify: the best classes of any classifier with one output of scores, quantised or not. */
#include "appliance_cbor.h"
#include "appliance_kit.h"

enum { RESULT_TAG = 0x11, MAX_CLASSES = 4096, MAX_TOP = 32 };

static int32_t model;
static uint32_t classes, top;
static float threshold;
static float scores[MAX_CLASSES];
static uint32_t best[MAX_TOP]; /* classes, best first */
static uint8_t buffer[(MAX_TOP + 2) * (sizeof(appliance_text) + 32)];

static int32_t read_settings(void) {
  float number;
  int32_t status = appliance_number("top", 3, 1, MAX_TOP, &number);
  top = (uint32_t)number;
  if (status == 0) status = appliance_number("threshold", -__builtin_inff(), -1000000, 1000000, &threshold);
  return status;
}

APPLIANCE_EXPORT(init) int32_t init(void) {
  appliance_tensor output;
  int32_t status = read_settings();
  if (status < 0) return status;
  model = appliance_open("model");
  if (model < 0) return model;
  status = appliance_model_output(model, 0, &output);
  if (status < 0) return status;
  if (output.elements == 0 || output.elements > MAX_CLASSES) {
    appliance_say(APPLIANCE_ERROR, "the model must be a classifier of 1 to 4096 classes");
    return APPLIANCE_EINVAL;
  }
  classes = output.elements;
  if (top > classes) top = classes;
  return 0;
}

/* Fills `best` with the classes that reach the threshold, at most `top`, by insertion: nearly every class loses
 * against the last place at once. Of equal scores the lower class comes first; NaN never enters. */
static uint32_t rank(void) {
  uint32_t found = 0;
  for (uint32_t i = 0; i < classes; i++) {
    if (!(scores[i] >= threshold) || (found == top && !(scores[i] > scores[best[top - 1]]))) continue;
    uint32_t place = found < top ? found++ : top - 1;
    for (; place > 0 && scores[i] > scores[best[place - 1]]; place--) best[place] = best[place - 1];
    best[place] = i;
  }
  return found;
}

/* "label" and "score" of one class. */
static void write_class(appliance_cbor *out, uint32_t index) {
  appliance_text label;
  appliance_label(model, index, &label);
  appliance_cbor_string(out, "label");
  appliance_cbor_text(out, label.data, label.length);
  appliance_cbor_string(out, "score");
  appliance_cbor_decimal(out, scores[index], 4);
}

APPLIANCE_EXPORT(handle) int32_t handle(void) {
  int32_t status = appliance_infer_frame(model, NULL, APPLIANCE_STRETCH);
  if (status < 0) return status;
  status = appliance_output_f32(model, 0, 0, scores, classes);
  if (status < 0) return status;
  int32_t winner = appliance_argmax(scores, classes);
  if ((uint32_t)status != classes || winner < 0) return APPLIANCE_EMODEL;

  uint32_t found = rank();
  appliance_cbor out = appliance_cbor_into(buffer, sizeof buffer);
  appliance_cbor_map(&out, 3);
  if (found) {
    write_class(&out, best[0]);
  } else {
    appliance_cbor_string(&out, "label");
    appliance_cbor_null(&out);
    appliance_cbor_string(&out, "score");
    appliance_cbor_decimal(&out, scores[winner], 4);
  }
  appliance_cbor_string(&out, "top");
  appliance_cbor_array(&out, found);
  for (uint32_t i = 0; i < found; i++) {
    appliance_cbor_map(&out, 2);
    write_class(&out, best[i]);
  }
  return appliance_cbor_emit(&out, RESULT_TAG);
}
