/* An external delegate for TFLite that counts instead of accelerating: it proves that a delegate library was
 * loaded with its options and asked to take part in a model, on machines without an accelerator.
 *
 * Each call is a line on standard error. Options:
 *          claim=none (default: takes no node), all (takes every node and computes nothing),
 *          fail=create (refuses, as without a device), prepare (refuses the model), abort (ends the process).
 *
 * The structures repeat the layout of TFLite's public C headers (c/common.h), as far as it is used.
 */
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { OK = 0, ERROR = 1 };

typedef struct {
  int size;
  int data[];
} IntArray;

typedef struct Context Context;
typedef struct Delegate Delegate;

typedef struct {
  void *(*init)(Context *, const char *, size_t);
  void (*free)(Context *, void *);
  int (*prepare)(Context *, void *node);
  int (*invoke)(Context *, void *node);
  const char *(*profiling_string)(const Context *, const void *node);
  int32_t builtin_code;
  const char *custom_name;
  int version;
  void *reserved[6]; /* what newer runtimes have added; all zero means: not used */
} Registration;

struct Context {
  size_t tensors_size;
  int (*get_execution_plan)(Context *, IntArray **);
  void *tensors, *impl;
  void *resize_tensor, *report_error, *add_tensors, *get_node_and_registration;
  int (*replace_nodes)(Context *, Registration, const IntArray *, Delegate *);
};

struct Delegate {
  void *data;
  int (*prepare)(Context *, Delegate *);
  void *copy_from_buffer, *copy_to_buffer, *free_buffer;
  int64_t flags;
  void *opaque_builder;
};

typedef struct {
  Delegate delegate;
  int claims, refuses;
} Counting;

static void note(const char *text) { fprintf(stderr, "INFO: counting: %s\n", text); }

static int kernel_invoke(Context *context, void *node) {
  (void)context, (void)node;
  return OK;
}

static int prepare(Context *context, Delegate *delegate) {
  Counting *self = delegate->data;
  note("prepare");
  if (self->refuses) return ERROR;
  if (!self->claims) return OK;
  IntArray *plan;
  if (context->get_execution_plan(context, &plan) != OK) return ERROR;
  size_t bytes = sizeof(IntArray) + (size_t)plan->size * sizeof(int);
  IntArray *nodes = malloc(bytes); /* the plan itself changes while nodes are replaced */
  if (nodes == NULL) return ERROR;
  memcpy(nodes, plan, bytes);
  Registration kernel = {.invoke = kernel_invoke, .custom_name = "CountingDelegate", .version = 1};
  int status = context->replace_nodes(context, kernel, nodes, delegate);
  free(nodes);
  return status;
}

Delegate *tflite_plugin_create_delegate(char **keys, char **values, size_t count, void (*report)(const char *)) {
  Counting *self = calloc(1, sizeof *self);
  if (self == NULL) return NULL;
  self->delegate.data = self;
  self->delegate.prepare = prepare;
  const char *fail = "";
  for (size_t i = 0; i < count; i++) {
    if (strcmp(keys[i], "claim") == 0) self->claims = strcmp(values[i], "all") == 0;
    if (strcmp(keys[i], "fail") == 0) fail = values[i];
  }
  note("create");
  if (strcmp(fail, "abort") == 0) abort();
  self->refuses = strcmp(fail, "prepare") == 0;
  if (strcmp(fail, "create") == 0) {
    report("no device is plugged in");
    free(self);
    return NULL;
  }
  return &self->delegate;
}

void tflite_plugin_destroy_delegate(Delegate *delegate) {
  if (delegate == NULL) return; /* the Python packages destroy what create refused, too */
  note("destroy");
  free(delegate->data);
}
