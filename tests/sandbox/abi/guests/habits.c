// Does what its first argument says: the habits, good and bad, of programs from anywhere.
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static int runs;

static int fail(void) {
    fprintf(stderr, "looking for luck\nno luck\n");
    return 3;
}

static int flood(void) {
    static char block[1 << 16];
    memset(block, 'x', sizeof block);
    for (int i = 0; i < 1600; i++) fwrite(block, 1, sizeof block, stdout);
    return 0;
}

static int mutter(void) {
    for (int i = 0; i < 10000; i++) fprintf(stderr, "line %d\n", i);
    puts("done");
    return 0;
}

static int escape(void) {
    const char *paths[] = {"../../etc/passwd", "/../etc/passwd", "/etc/passwd", "labels.txt/../../etc/passwd",
                           "/proc/self/environ", "..",  "new.txt", "/labels.txt", "./labels.txt", "labels.txt"};
    printf("{");
    for (unsigned i = 0; i < sizeof paths / sizeof *paths; i++) {
        int wanted = !strcmp(paths[i], "new.txt") ? O_WRONLY | O_CREAT : O_RDONLY;
        printf("%s\"%s\": %s", i ? ", " : "", paths[i], open(paths[i], wanted, 0600) >= 0 ? "true" : "false");
    }
    printf("}\n");
    return 0;
}

static int hoard(void) {
    char *much = malloc(8 << 20);
    if (!much) return 4;
    memset(much, 1, 8 << 20);
    printf("%d\n", ++runs);
    return 0;
}

static int list(void) {
    DIR *directory = opendir("/");
    struct dirent *entry;
    if (!directory) return 5;
    while ((entry = readdir(directory))) printf("%s\n", entry->d_name);
    return 0;
}

static int nap(void) {
    struct timespec before, after, hour = {3600, 0};
    clock_gettime(CLOCK_MONOTONIC, &before);
    if (nanosleep(&hour, NULL)) return 6;
    clock_gettime(CLOCK_MONOTONIC, &after);
    printf("%d\n", after.tv_sec - before.tv_sec >= 3600);
    return 0;
}

static int chance(void) {
    unsigned long long number;
    getentropy(&number, sizeof number);
    printf("%llu\n", number);
    return 0;
}

static int copy(const char *path) {
    static char data[1 << 16];
    int file = open(path, O_RDONLY);
    ssize_t length;
    if (file < 0) {
        perror(path);
        return 7;
    }
    while ((length = read(file, data, sizeof data)) > 0) write(1, data, length);
    return 0;
}

int main(int argc, char **argv) {
    const char *habit = argc > 1 ? argv[1] : "";
    if (!strcmp(habit, "fail")) return fail();
    if (!strcmp(habit, "flood")) return flood();
    if (!strcmp(habit, "mutter")) return mutter();
    if (!strcmp(habit, "escape")) return escape();
    if (!strcmp(habit, "hoard")) return hoard();
    if (!strcmp(habit, "list")) return list();
    if (!strcmp(habit, "nap")) return nap();
    if (!strcmp(habit, "chance")) return chance();
    if (!strcmp(habit, "trap")) {
        fprintf(stderr, "cannot go on");
        __builtin_trap();
    }
    if (!strcmp(habit, "copy")) return copy(argv[2]);
    if (!strcmp(habit, "arguments")) {
        printf("[");
        for (int i = 2; i < argc; i++) printf("%s\"%s\"", i > 2 ? ", " : "", argv[i]);
        puts("]");
    }
    return 0;
}
