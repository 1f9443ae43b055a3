/* {{name}}: how bright each picture is, from 0 to 1, and whether that is dark. */
#include "appliance_cbor.h"
#include "appliance_kit.h"

static float dark;

/* Once, before the first frame: what is wrong with a setting is said now. */
APPLIANCE_EXPORT(init) int32_t init(void) { return appliance_number("dark", 0.2F, 0, 1, &dark); }

/* For every frame. */
APPLIANCE_EXPORT(handle) int32_t handle(void) {
  uint8_t samples[16 * 16]; /* the host decodes and shrinks the picture: natively, and once for all handlers */
  int32_t length = appliance_frame_pixels(NULL, APPLIANCE_GRAY, 16, 16, samples, sizeof samples);
  if (length < 0) return length; /* this frame failed; the code says why */

  uint32_t sum = 0;
  for (int32_t i = 0; i < length; i++) sum += samples[i];
  float brightness = (float)sum / (255.0F * (float)length);

  uint8_t buffer[64];
  appliance_cbor out = appliance_cbor_into(buffer, sizeof buffer);
  appliance_cbor_map(&out, 2);
  appliance_cbor_string(&out, "brightness");
  appliance_cbor_decimal(&out, brightness, 3);
  appliance_cbor_string(&out, "dark");
  appliance_cbor_bool(&out, brightness < dark);
  return appliance_cbor_emit(&out, 0x20);
}
