// cuBLASLt as far as the product calls it, over this process's memory: beside `cuda.cpp`, whose
// queue its products go through. CUBLASLT_FAULT=shape has it know no algorithm.
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

extern "C" {

// Of `cuda.cpp`: runs now, or when the graph that is being captured does.
int driver_do(void (*work)(const void *), const void *data, size_t bytes);

enum { OK = 0, NOT_SUPPORTED = 15 };
enum Type { F32 = 0, F16 = 2, BF16 = 14 };

struct Layout {
  int type;
  uint64_t rows, cols;
  int64_t stride;
};
struct Product {
  int transposed, epilogue;
  const void *bias;
};
struct Work {
  Product product;
  Layout a, b, c;
  const void *x, *y, *residual;
  void *z;
  float beta;
};

static float get(const void *p, int type, int64_t at) {
  if (type == F32) return ((const float *)p)[at];
  uint16_t bits = ((const uint16_t *)p)[at];
  if (type == F16) {
    _Float16 x;
    return memcpy(&x, &bits, 2), (float)x;
  }
  uint32_t wide = (uint32_t)bits << 16;
  float x;
  return memcpy(&x, &wide, 4), x;
}
static void put(void *p, int type, int64_t at, float x) {
  if (type == F32) {
    ((float *)p)[at] = x;
  } else if (type == F16) {
    _Float16 y = (_Float16)x;
    memcpy((uint16_t *)p + at, &y, 2);
  } else {
    uint32_t bits;
    memcpy(&bits, &x, 4);
    ((uint16_t *)p)[at] = (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
  }
}

static void multiply(const void *data) {
  const Work &w = *(const Work *)data;
  for (uint64_t col = 0; col < w.c.cols; col++)
    for (uint64_t row = 0; row < w.c.rows; row++) {
      float sum = 0;
      for (uint64_t i = 0; i < w.a.rows; i++)
        sum += get(w.x, w.a.type, row * w.a.stride + i) * get(w.y, w.b.type, col * w.b.stride + i);
      int64_t at = col * w.c.stride + row;
      if (w.beta != 0) sum += w.beta * get(w.residual, w.c.type, at);
      if (w.product.epilogue == 4) sum += get(w.product.bias, w.a.type, row);
      put(w.z, w.c.type, at, sum);
    }
}

int cublasLtCreate(void **handle) { return *handle = malloc(1), OK; }
int cublasLtDestroy(void *handle) { return free(handle), OK; }
int cublasLtMatrixLayoutCreate(Layout **layout, int type, uint64_t rows, uint64_t cols,
                               int64_t ld) {
  return *layout = new Layout{type, rows, cols, ld}, OK;
}
int cublasLtMatrixLayoutDestroy(Layout *layout) { return delete layout, OK; }
int cublasLtMatmulDescCreate(Product **product, int, int) { return *product = new Product{}, OK; }
int cublasLtMatmulDescDestroy(Product *product) { return delete product, OK; }
int cublasLtMatmulDescSetAttribute(Product *product, int which, const void *value, size_t bytes) {
  switch (which) {
    case 3: return memcpy(&product->transposed, value, bytes), OK;
    case 7: return memcpy(&product->epilogue, value, bytes), OK;
    case 8: return memcpy(&product->bias, value, bytes), OK;
  }
  return NOT_SUPPORTED;
}
int cublasLtMatmulPreferenceCreate(void **wish) { return *wish = malloc(1), OK; }
int cublasLtMatmulPreferenceDestroy(void *wish) { return free(wish), OK; }
int cublasLtMatmulPreferenceSetAttribute(void *, int, const void *, size_t) { return OK; }
int cublasLtMatmulAlgoGetHeuristic(void *, Product *product, Layout *a, Layout *b, Layout *c,
                                   Layout *, void *, int, void *found, int *count) {
  const char *fault = getenv("CUBLASLT_FAULT");
  bool fits = product->transposed == 1 && a->rows == b->rows && a->cols == c->rows &&
              b->cols == c->cols && (uint64_t)a->stride >= a->rows && a->type == b->type;
  memset(found, 0, 64 + 8 + 4 + 4 + 16);
  return *count = fits && !(fault && !strcmp(fault, "shape")), OK;
}
int cublasLtMatmul(void *, Product *product, const float *, const void *a, Layout *of_a,
                   const void *b, Layout *of_b, const float *beta, const void *c, Layout *of_c,
                   void *d, Layout *, const void *, void *workspace, size_t, void *) {
  if (!workspace) return NOT_SUPPORTED;
  Work work = {*product, *of_a, *of_b, *of_c, a, b, c, d, *beta};
  return driver_do(multiply, &work, sizeof work);
}

}  // extern "C"
