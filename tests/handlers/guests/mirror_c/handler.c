/* Emits its payload again, item by item; then the frame's header, as a check of its layout. */
#include "appliance_cbor.h"

_Static_assert(sizeof(appliance_frame) == 40, "layout of the ABI");
_Static_assert(sizeof(appliance_tensor) == 56, "layout of the ABI");
_Static_assert(sizeof(appliance_crop) == 16, "layout of the ABI");
_Static_assert(offsetof(appliance_frame, tag) == 16 && offsetof(appliance_frame, length) == 32, "layout of the ABI");
_Static_assert(offsetof(appliance_tensor, shape) == 8 && offsetof(appliance_tensor, scale) == 48, "layout of the ABI");

enum { CAPACITY = 8192, COPY_TAG = 1, HEADER_TAG = 2 };

static uint8_t payload[CAPACITY], copy[CAPACITY];

static void write_item(appliance_cbor *out, const appliance_cbor_item *item) {
  switch (item->kind) {
    case APPLIANCE_CBOR_INT: appliance_cbor_int(out, item->integer); break;
    case APPLIANCE_CBOR_BYTES: appliance_cbor_bytes(out, item->bytes, item->length); break;
    case APPLIANCE_CBOR_TEXT: appliance_cbor_text(out, (const char *)item->bytes, item->length); break;
    case APPLIANCE_CBOR_ARRAY: appliance_cbor_array(out, item->length); break;
    case APPLIANCE_CBOR_MAP: appliance_cbor_map(out, item->length); break;
    case APPLIANCE_CBOR_BOOL: appliance_cbor_bool(out, (int32_t)item->integer); break;
    case APPLIANCE_CBOR_FLOAT: appliance_cbor_double(out, item->real); break;
    default: appliance_cbor_null(out);
  }
}

static int32_t emit_copy(uint32_t length) {
  appliance_cbor_reader whole = appliance_cbor_from(payload, length);
  if (appliance_cbor_skip(&whole) != 1 || whole.at != whole.end) return APPLIANCE_EINVAL;
  appliance_cbor_reader in = appliance_cbor_from(payload, length);
  appliance_cbor out = appliance_cbor_into(copy, sizeof copy);
  appliance_cbor_item item;
  int32_t status;
  while ((status = appliance_cbor_next(&in, &item)) == 1) write_item(&out, &item);
  return status < 0 ? status : appliance_cbor_emit(&out, COPY_TAG);
}

APPLIANCE_EXPORT(handle) int32_t handle(void) {
  appliance_frame frame;
  int32_t status = appliance_frame_info(&frame);
  if (status < 0) return status;
  int32_t length = appliance_frame_read(0, payload, sizeof payload);
  if (length < 0) return length;
  status = emit_copy((uint32_t)length);
  if (status < 0) return status;

  appliance_cbor out = appliance_cbor_into(copy, sizeof copy);
  appliance_cbor_array(&out, 6);
  appliance_cbor_int(&out, (int64_t)frame.seq);
  appliance_cbor_int(&out, (int64_t)frame.captured_ns);
  appliance_cbor_int(&out, frame.tag);
  appliance_cbor_int(&out, frame.width);
  appliance_cbor_int(&out, frame.height);
  appliance_cbor_int(&out, frame.length);
  return appliance_cbor_emit(&out, HEADER_TAG);
}
