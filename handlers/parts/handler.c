/* parts: which kind of part the picture shows, with the score of every kind. */
#include "appliance_cbor.h"
#include "appliance_kit.h"

enum { RESULT_TAG = 0x10, MAX_CLASSES = 32 };

static int32_t model;
static uint32_t classes;
static appliance_text labels[MAX_CLASSES];
static float scores[MAX_CLASSES];
static uint8_t buffer[(MAX_CLASSES + 2) * (sizeof(appliance_text) + 16)];

static int32_t appears_before(uint32_t index) {
  for (uint32_t i = 0; i < index; i++)
    if (appliance_same(&labels[i], &labels[index])) return 1;
  return 0;
}

/* Labels are the keys of `scores`, so each must be there once: a second one of the same name gives way. */
static void read_labels(void) {
  for (uint32_t i = 0; i < classes; i++) {
    appliance_label(model, i, &labels[i]);
    if (appears_before(i)) appliance_class(i, &labels[i]);
  }
}

APPLIANCE_EXPORT(init) int32_t init(void) {
  appliance_tensor output;
  model = appliance_open("parts");
  if (model < 0) return model;
  int32_t status = appliance_model_output(model, 0, &output);
  if (status < 0) return status;
  if (output.elements == 0 || output.elements > MAX_CLASSES) {
    appliance_say(APPLIANCE_ERROR, "the model must be a classifier of 1 to 32 classes");
    return APPLIANCE_EINVAL;
  }
  classes = output.elements;
  read_labels();
  return 0;
}

APPLIANCE_EXPORT(handle) int32_t handle(void) {
  int32_t status = appliance_infer_frame(model, NULL, APPLIANCE_STRETCH);
  if (status < 0) return status;
  status = appliance_output_f32(model, 0, 0, scores, classes);
  if (status < 0) return status;
  int32_t best = appliance_argmax(scores, (uint32_t)status);
  if ((uint32_t)status != classes || best < 0) return APPLIANCE_EMODEL;

  appliance_cbor out = appliance_cbor_into(buffer, sizeof buffer);
  appliance_cbor_map(&out, 3);
  appliance_cbor_string(&out, "label");
  appliance_cbor_text(&out, labels[best].data, labels[best].length);
  appliance_cbor_string(&out, "score");
  appliance_cbor_decimal(&out, scores[best], 4);
  appliance_cbor_string(&out, "scores");
  appliance_cbor_map(&out, classes);
  for (uint32_t i = 0; i < classes; i++) {
    appliance_cbor_text(&out, labels[i].data, labels[i].length);
    appliance_cbor_decimal(&out, scores[i], 4);
  }
  return appliance_cbor_emit(&out, RESULT_TAG);
}
