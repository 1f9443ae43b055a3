/* motion: compares each picture, as 160 x 120 samples of gray, with a background that follows slowly.
 *
 * The picture is judged in cells of 8 x 8 samples, so that the noise of single pixels does not count. What stays
 * where it came to rest becomes background after some dozen frames. The background lives in memory only: after a
 * restart the first picture is the background.
 */
#include "appliance_cbor.h"
#include "appliance_kit.h"

enum {
  RESULT_TAG = 0x13,
  WIDTH = 160,
  HEIGHT = 120,
  CELL = 8,
  COLUMNS = WIDTH / CELL,
  ROWS = HEIGHT / CELL,
  CONTRAST = 24,    /* of 255: a sample this far from its background has changed */
  CELL_CHANGED = 8, /* of 64 samples */
  ADAPT = 4,        /* the background moves 1/16 of the way each frame */
  SOURCES = 4,      /* backgrounds kept; a further camera takes the place of the one unseen for longest */
};

typedef struct {
  char source[64];
  uint32_t length; /* of the name; 0 = free */
  uint64_t seen;   /* frame at which it was used last */
  uint16_t samples[WIDTH * HEIGHT]; /* 256 times the gray level */
} background;

typedef struct {
  uint32_t cells, left, top, right, bottom; /* changed cells, and the box around them; right and bottom exclusive */
} change;

static float threshold;
static uint64_t frames;
static uint8_t picture[WIDTH * HEIGHT];
static background backgrounds[SOURCES];

APPLIANCE_EXPORT(init) int32_t init(void) { return appliance_number("threshold", 0.01F, 0, 1, &threshold); }

static int32_t is_source(const background *b, const char *source, uint32_t length) {
  if (b->length != length) return 0;
  for (uint32_t i = 0; i < length; i++)
    if (b->source[i] != source[i]) return 0;
  return 1;
}

/* The background of this source; for a new one, the picture itself. */
static background *background_of(const char *source, uint32_t length) {
  background *oldest = &backgrounds[0];
  for (uint32_t i = 0; i < SOURCES; i++) {
    if (is_source(&backgrounds[i], source, length)) return &backgrounds[i];
    if (backgrounds[i].seen < oldest->seen) oldest = &backgrounds[i];
  }
  __builtin_memcpy(oldest->source, source, length);
  oldest->length = length;
  for (uint32_t i = 0; i < WIDTH * HEIGHT; i++) oldest->samples[i] = (uint16_t)(picture[i] << 8);
  return oldest;
}

/* Compares one row of samples with its background, which then moves towards it; counts what changed in each cell. */
static void compare_row(const uint8_t *now, uint16_t *before, uint32_t *changed) {
  for (uint32_t column = 0; column < COLUMNS; column++) {
    uint32_t count = 0;
    for (uint32_t i = 0; i < CELL; i++) {
      int32_t difference = (*now++ << 8) - *before;
      count += difference > CONTRAST << 8 || difference < -(CONTRAST << 8);
      *before = (uint16_t)(*before + difference / (1 << ADAPT));
      before++;
    }
    changed[column] += count;
  }
}

static void add_cell(change *all, uint32_t column, uint32_t row) {
  if (all->cells++ == 0) {
    all->left = column;
    all->top = row;
    all->right = all->bottom = 0;
  }
  if (column < all->left) all->left = column;
  if (column >= all->right) all->right = column + 1;
  all->bottom = row + 1; /* rows come in order */
}

static change compare(background *b) {
  change all = {0, 0, 0, 0, 0};
  for (uint32_t row = 0; row < ROWS; row++) {
    uint32_t changed[COLUMNS] = {0};
    for (uint32_t y = row * CELL; y < (row + 1) * CELL; y++)
      compare_row(&picture[y * WIDTH], &b->samples[y * WIDTH], changed);
    for (uint32_t column = 0; column < COLUMNS; column++)
      if (changed[column] >= CELL_CHANGED) add_cell(&all, column, row);
  }
  return all;
}

static int32_t emit(const change *all, const appliance_frame *frame) {
  uint8_t buffer[64];
  float fraction = (float)all->cells / (float)(COLUMNS * ROWS);
  appliance_cbor out = appliance_cbor_into(buffer, sizeof buffer);
  appliance_cbor_map(&out, 3);
  appliance_cbor_string(&out, "moving");
  appliance_cbor_bool(&out, all->cells > 0 && fraction >= threshold);
  appliance_cbor_string(&out, "fraction");
  appliance_cbor_decimal(&out, fraction, 4);
  appliance_cbor_string(&out, "box");
  if (all->cells == 0) {
    appliance_cbor_null(&out);
  } else {
    appliance_cbor_array(&out, 4);
    appliance_cbor_int(&out, (int64_t)all->left * frame->width / COLUMNS);
    appliance_cbor_int(&out, (int64_t)all->top * frame->height / ROWS);
    appliance_cbor_int(&out, (int64_t)all->right * frame->width / COLUMNS);
    appliance_cbor_int(&out, (int64_t)all->bottom * frame->height / ROWS);
  }
  return appliance_cbor_emit(&out, RESULT_TAG);
}

APPLIANCE_EXPORT(handle) int32_t handle(void) {
  appliance_frame frame;
  char source[64];
  int32_t status = appliance_frame_info(&frame);
  if (status == 0 && frame.width == 0) status = APPLIANCE_EFRAME; /* of unknown size: no box could be told */
  if (status < 0) return status;
  int32_t length = appliance_frame_source(source, sizeof source);
  if (length < 0) return length;
  status = appliance_frame_pixels(NULL, APPLIANCE_GRAY, WIDTH, HEIGHT, picture, sizeof picture);
  if (status < 0) return status;
  background *b = background_of(source, (uint32_t)length);
  b->seen = ++frames;
  change all = compare(b);
  return emit(&all, &frame);
}
