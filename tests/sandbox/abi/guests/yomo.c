// A stream function of YoMo v1, with wasi-libc, as its users compile them: 0x33 in upper case goes out as 0x34.
#include <ctype.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define IMPORT(name) __attribute__((import_module("env"), import_name(name)))
#define EXPORT(name) __attribute__((export_name(name)))

IMPORT("yomo_observe_datatag") void observe(uint32_t tag);
IMPORT("yomo_context_tag") uint32_t context_tag(void);
IMPORT("yomo_context_data_size") size_t data_size(void);
IMPORT("yomo_context_data") size_t data_get(char *to, size_t capacity);
IMPORT("yomo_write") int32_t yomo_write(uint32_t tag, const char *data, size_t length);

EXPORT("yomo_observe_datatags") void observe_datatags(void) { observe(0x33); }

EXPORT("yomo_init") uint32_t init(void) {
    printf("size %zu, tag %u, write %d\n", data_size(), context_tag(), yomo_write(0x34, "early", 5));
    return 0;
}

EXPORT("yomo_handler") void handler(void) {
    size_t length = data_size();
    char *data = malloc(length + 1);
    if (data_get(data, length - 1) != length || data_get(data, length) != length) abort();
    if (data_get((char *)0xfffffff0, length) != 0) abort();
    printf("tag %#x: ", context_tag()); // the line goes on
    printf("%zu bytes\n", length);
    for (size_t i = 0; i < length; i++) data[i] = toupper((unsigned char)data[i]);
    int written = yomo_write(0x34, data, length);
    int denied = yomo_write(0x99, data, length);
    int outside = yomo_write(0x34, (const char *)0xfffffff0, 100);
    fprintf(stderr, "%d %d %d\n", written, denied, outside);
    free(data);
}
