// A program as any is: opens the picture named on its command line and a file of labels, and prints what it found.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static unsigned u16(const unsigned char *at) { return at[0] | at[1] << 8; }
static unsigned u32(const unsigned char *at) { return u16(at) | u16(at + 2) << 16; }

static int lines_of(const char *path) {
    FILE *file = fopen(path, "r");
    char line[256];
    int count = 0;
    if (!file) {
        perror(path);
        exit(1);
    }
    while (fgets(line, sizeof line, file)) count++;
    fclose(file);
    return count;
}

int main(int argc, char **argv) {
    if (argc < 2) {
        fprintf(stderr, "usage: describe PICTURE [SOURCE]\n");
        return 2;
    }
    FILE *file = fopen(argv[1], "rb");
    if (!file) {
        perror(argv[1]);
        return 1;
    }
    fseek(file, 0, SEEK_END);
    long size = ftell(file);
    rewind(file);
    unsigned char *data = malloc(size);
    if (fread(data, 1, size, file) != (size_t)size) return 1;
    unsigned width, height, stride, offset, red;
    if (!memcmp(data, "BM", 2)) {
        offset = u32(data + 10), width = u32(data + 18), height = u32(data + 22);
        stride = (3 * width + 3) / 4 * 4, red = 2;
    } else {
        int used;
        if (sscanf((char *)data, "P6 %u %u 255%n", &width, &height, &used) != 2) return 1;
        offset = used + 1, stride = 3 * width, red = 0;
    }
    double sums[3] = {0, 0, 0};
    for (unsigned y = 0; y < height; y++)
        for (unsigned x = 0; x < width; x++)
            for (unsigned c = 0; c < 3; c++) sums[red ? 2 - c : c] += data[offset + y * stride + 3 * x + c];
    printf("{\"width\": %u, \"height\": %u, \"bytes\": %ld, \"mean\": [", width, height, size);
    for (int c = 0; c < 3; c++) printf(c ? ", %.2f" : "%.2f", sums[c] / width / height);
    printf("], \"labels\": %d, \"source\": \"%s\"}\n", lines_of("labels.txt"), argc > 2 ? argv[2] : "");
    return 0;
}
