// SPDX-License-Identifier: Apache-2.0
// The table of functions that a device fills in, with the contract of each.
//
// Rules for all: outputs are allocated by the caller and never overlap an input unless the comment
// says "may be in place"; shapes and dtypes are already checked by ops/, so a kernel fails only
// for want of memory or of its library; floating-point results accumulate in fp32 (fp64 for fp64)
// and are rounded once; a result depends on inputs only, never on the number of threads (every
// reduction has a fixed order); NaN and Inf travel as IEEE says. "rows" means contiguous in the
// last dimension. A scratch buffer is pl_alloc'ed and freed inside. Kernels run without the GIL.
#ifndef PL_KERNELS_H
#define PL_KERNELS_H

#include "base/base.h"
#include "tensor/tensor.h"

// clang-format off
#define PL_UNARY_MAP(X)                                                                          \
    X(NEG, "neg") X(ABS, "abs") X(SIGN, "sign") X(EXP, "exp") X(LOG, "log") X(SQRT, "sqrt")      \
    X(RSQRT, "rsqrt") X(RECIPROCAL, "reciprocal") X(SQUARE, "square") X(SIN, "sin")              \
    X(COS, "cos") X(TANH, "tanh") X(SIGMOID, "sigmoid") X(RELU, "relu") X(GELU, "gelu")          \
    X(GELU_TANH, "gelu_tanh") X(SILU, "silu") X(ERF, "erf") X(FLOOR, "floor") X(CEIL, "ceil")    \
    X(ROUND, "round") X(LOGICAL_NOT, "logical_not") X(ISNAN, "isnan") X(ISFINITE, "isfinite")

// Gradient helpers take g first: RELU_GRAD, TANH_GRAD and SIGMOID_GRAD the output y second, the
// others the input x.
#define PL_BINARY_MAP(X)                                                                         \
    X(ADD, "add") X(SUB, "sub") X(MUL, "mul") X(DIV, "div") X(POW, "pow")                        \
    X(MAXIMUM, "maximum") X(MINIMUM, "minimum") X(REMAINDER, "remainder")                        \
    X(FLOOR_DIVIDE, "floor_divide") X(EQ, "eq") X(NE, "ne") X(LT, "lt") X(LE, "le") X(GT, "gt")  \
    X(GE, "ge") X(LOGICAL_AND, "logical_and") X(LOGICAL_OR, "logical_or")                        \
    X(LOGICAL_XOR, "logical_xor") X(RELU_GRAD, "relu_grad") X(TANH_GRAD, "tanh_grad")            \
    X(SIGMOID_GRAD, "sigmoid_grad") X(GELU_GRAD, "gelu_grad")                                    \
    X(GELU_TANH_GRAD, "gelu_tanh_grad") X(SILU_GRAD, "silu_grad")

#define PL_REDUCE_MAP(X) \
    X(SUM, "sum") X(MEAN, "mean") X(PROD, "prod") X(MAX, "max") X(MIN, "min") \
    X(ANY, "any") X(ALL, "all")
// clang-format on

#define X(name, text) PL_UNARY_##name,
typedef enum pl_unary { PL_UNARY_MAP(X) PL_UNARY_COUNT } pl_unary;
#undef X
#define X(name, text) PL_BINARY_##name,
typedef enum pl_binary { PL_BINARY_MAP(X) PL_BINARY_COUNT } pl_binary;
#undef X
#define X(name, text) PL_REDUCE_##name,
typedef enum pl_reduce { PL_REDUCE_MAP(X) PL_REDUCE_COUNT } pl_reduce;
#undef X

typedef enum pl_activation {
    PL_ACT_NONE,
    PL_ACT_RELU,
    PL_ACT_GELU,
    PL_ACT_GELU_TANH
} pl_activation;

// A norm over the last dimension of (M, N), contiguous throughout, with the sum that stands before
// it in a model: sum = x + residual, rounded; out = norm(sum). Layer norm: (sum - mean) * rstd * w
// + b; RMS norm: sum * rstd * w with rstd = 1 / sqrt(mean(sum^2) + eps).
typedef struct pl_row_norm_args {
    bool rms;
    double eps;
    const pl_tensor *x;         // of sum's dtype, or of a half type beside a sum in f32
    const pl_tensor *residual;  // of sum's dtype; NULL: the norm of x
    pl_tensor *sum;             // NULL without residual
    const pl_tensor *w, *b;     // (N) or NULL, f32 or sum's dtype; b NULL for RMS
    pl_tensor *out;             // of sum's dtype
    pl_tensor *mean, *rstd;     // (M), f32 (f64 for f64); mean NULL for RMS
} pl_row_norm_args;

typedef struct pl_row_norm_grad_args {
    bool rms;
    const pl_tensor *g, *x;  // (M, N) of one dtype; x is what was normed
    const pl_tensor *w, *mean, *rstd;
    pl_tensor *dx, *dw, *db;  // each may be NULL; of x's dtype, dw and db of a half type also f32
    bool accumulate_x, accumulate_w, accumulate_b;  // += instead of =
} pl_row_norm_grad_args;

// One step of SGD, Adam or AdamW over one run of n elements. Formulas are PyTorch's.
typedef struct pl_adam_args {
    double lr, beta1, beta2, eps, weight_decay;
    double bias1, bias2;  // 1 - beta^step
    double grad_scale;    // the gradient is multiplied by this first (unscale and clip)
    bool decoupled;       // AdamW: p *= 1 - lr * weight_decay; Adam: g += weight_decay * p
    bool maximize;
    int *nonfinite;       // NULL, or set to 1 when a gradient is NaN or infinite; else left alone
    const double *scale;  // of lists (Note [lists]): NULL, or where grad_scale's other factor is
    pl_dtype low;         // of lists: of the copies that runs ask for, bf16 or f16
} pl_adam_args;
typedef struct pl_sgd_args {
    double lr, momentum, dampening, weight_decay, grad_scale;
    bool nesterov, maximize, first;  // first: the momentum buffer is set to g, not averaged in
    int *nonfinite;                  // these three as in pl_adam_args
    const double *scale;
    pl_dtype low;
} pl_sgd_args;

// Note [lists]: on a GPU a launch takes longer than the update of most parameters, and a number
// that the host wants to know makes it wait. So its table has kernels that pass over many runs at
// once, and read and write such numbers where they lie: a factor for the gradients (`scale`), which
// runs had NaN or Inf (`nonfinite`, then an array). They give the bits of the kernels for one run;
// a step may also write what it has made of an fp32 parameter in a half type (`low`), which
// autocast would have to read it again for. The CPU has none of it: a call costs it nothing.
typedef struct pl_run {
    pl_dtype dtype;
    int index;    // its place in the arrays that a call writes
    int64_t n;    // elements
    void *at[4];  // parameter, gradient, then moments or momentum; of unscale and norm the gradient
    void *low;    // NULL, or where a step writes the parameter in args->low; dtype is fp32
} pl_run;
typedef struct pl_unscale_args {
    double factor;
    const double *scale;  // NULL: 1
    int *nonfinite;       // NULL: nobody asks
} pl_unscale_args;
// What is written may be NULL. due: elements count as multiplied by it, a power of two.
typedef struct pl_norm_args {
    bool inf;  // the largest magnitude, else the 2-norm
    double due;
    double *each;  // per run: the sum of squares, or the largest magnitude
    double *norm;
    float *norm_f32;
    // min(1, max_norm / (norm + 1e-6)), or NaN; 1 where the norm is not finite and keep_nonfinite.
    double *factor, max_norm;
    bool keep_nonfinite;
} pl_norm_args;
typedef struct pl_list_kernels {
    pl_status (*adam)(const pl_adam_args *args, int count, const pl_run *runs);
    pl_status (*sgd)(const pl_sgd_args *args, int count, const pl_run *runs);
    pl_status (*unscale)(const pl_unscale_args *args, int count, const pl_run *runs);
    // count is 1 or more.
    pl_status (*norm)(const pl_norm_args *args, int count, const pl_run *runs);
} pl_list_kernels;

typedef struct pl_attention_args {
    double scale;
    bool causal;  // key j is seen by query i when j <= i (top-left aligned, as PyTorch)
    // NULL, or bool (true: seen) or additive float; expanded to (B, H, T, S).
    const pl_tensor *mask;
    // Dropout of the probabilities: element ((b*H + h)*T + i)*S + j of the stream decides, as in
    // dropout().
    double dropout_p;
    uint64_t seed, offset;
} pl_attention_args;

// Note [numbers of kernels]: what a kernel gives beside tensors (a sum of squares, a count, a flag)
// it writes to the memory of the tensors' device, so that the caller chooses when to wait for it:
// pl_numbers (tensor.h) reads many at once.
typedef struct pl_kernels {
    const char *name;  // "cpu", "ref", "cuda"

    // Elementwise. x, a, b, cond, out have one shape (strides of 0 where expanded); any strides.
    // unary: out has x's dtype (LOGICAL_NOT, ISNAN, ISFINITE: bool). Transcendental ones only for
    // floating dtypes. May be in place (same data and strides).
    pl_status (*unary)(pl_unary op, const pl_tensor *x, pl_tensor *out);
    // a and b have one dtype, or one is bf16/f16 and the other f32 with f32 out; out has the common
    // dtype, comparisons and logical ones bool. Integer division by zero fails with PL_EINVAL. May
    // be in place in a or b. A device's takes one of them as a 0-d number of the CPU, expanded.
    pl_status (*binary)(pl_binary op, const pl_tensor *a, const pl_tensor *b, pl_tensor *out);
    pl_status (*where)(const pl_tensor *cond, const pl_tensor *a, const pl_tensor *b,
                       pl_tensor *out);
    // Any dtype to any dtype, any strides; float to integer truncates, to bool is != 0. No overlap.
    pl_status (*copy)(const pl_tensor *src, pl_tensor *dst);
    // out = factor * x, with accumulate out += factor * x in one pass. x, out contiguous, of one
    // floating dtype; factor one f32 (f64 for f64) where they lie. Without accumulate may be in
    // place, and a factor of 1 then costs nothing on the CPU.
    pl_status (*scale)(const pl_tensor *x, const pl_tensor *factor, bool accumulate,
                       pl_tensor *out);
    pl_status (*fill)(pl_tensor *dst, double value);                 // floating dtypes
    pl_status (*fill_int)(pl_tensor *dst, int64_t value);            // integer dtypes and bool
    pl_status (*arange)(pl_tensor *out, double start, double step);  // out 1-d contiguous

    // Reductions. bit d of `dims` set: dimension d of x is reduced. out is contiguous and has x's
    // shape with size 1 at reduced dimensions. dtype of out: SUM, PROD: x's (ops casts bool and
    // integers to i64 first); MEAN: floating; MAX, MIN: x's, NaN wins; ANY, ALL: bool.
    pl_status (*reduce)(pl_reduce op, const pl_tensor *x, uint32_t dims, pl_tensor *out);
    // out i64, x's shape with size 1 at dim; the first of equals; NaN wins.
    pl_status (*argreduce)(bool max, const pl_tensor *x, int dim, pl_tensor *out);
    pl_status (*cumsum)(const pl_tensor *x, int dim, pl_tensor *out);  // out contiguous
    // Stable sort along the last dimension; x rows, values and indices (i64) contiguous.
    pl_status (*sort)(const pl_tensor *x, bool descending, pl_tensor *values, pl_tensor *indices);
    // Sum of squares in fp64 of a contiguous buffer: fixed order, whatever the thread count. On the
    // CPU the sum of each block of PL_SQUARES_BLOCK elements, added up by pl_sum_pairwise. *out
    // lies where x does: see Note [numbers of kernels].
    pl_status (*sum_squares)(const pl_tensor *x, double *out);

    // Products. a (.., M, K), b (.., K, N), out (.., M, N): ndim 2 or more, equal batch dimensions
    // (stride 0 where expanded); in a and b one of the last two strides is 1 or the kernel copies;
    // out has its last stride 1. Dtypes: a and b equal, floating; out the same, or f32 where a is
    // bf16/f16. accumulate: out += a b, else out = a b. K = 0 gives zeros.
    pl_status (*matmul)(const pl_tensor *a, const pl_tensor *b, bool accumulate, pl_tensor *out);
    // out = act(x w^T + bias). x (M, K) rows, w (N, K) rows, bias (N) or NULL (dtype w's or f32),
    // out (M, N) contiguous. preact: NULL, or (M, N) that receives x w^T + bias in out's dtype.
    pl_status (*linear)(const pl_tensor *x, const pl_tensor *w, const pl_tensor *bias,
                        pl_activation act, pl_tensor *preact, pl_tensor *out);

    // Whether linear takes this w in f32 with x in bf16, and matmul such a w as its b, and rounds
    // it as it reads, faster than a copy would be made. NULL: never.
    bool (*linear_rounds)(const pl_tensor *x, const pl_tensor *w);
    // Gradients of linear's weight and bias: dw (N, K) = g^T x and db (N) = the sum of g's rows,
    // each
    // += where it says accumulate. g (M, N), x (M, K) rows of one dtype; dw and db contiguous, of
    // that dtype or f32.
    pl_status (*linear_grad)(const pl_tensor *g, const pl_tensor *x, pl_tensor *dw,
                             bool accumulate_w, pl_tensor *db, bool accumulate_b);
    // The gradient of linear's input and on through GELU (by tanh), of which that was the result:
    // dx (M, K) = (g w) * gelu_tanh'(x). g (M, N) rows and w (N, K) of one dtype, x contiguous, dx
    // like x; x of g's dtype or f32. NULL: no faster than matmul and then binary.
    pl_status (*linear_grad_gelu)(const pl_tensor *g, const pl_tensor *w, const pl_tensor *x,
                                  pl_tensor *dx);

    // Layer norm or RMS norm over the last dimension, and its gradient.
    pl_status (*norm)(const pl_row_norm_args *args);
    pl_status (*norm_grad)(const pl_row_norm_grad_args *args);

    // Softmax over the last dimension; x, out, g, y, dx contiguous. log: log-softmax.
    pl_status (*softmax)(bool log, const pl_tensor *x, pl_tensor *out);
    pl_status (*softmax_grad)(bool log, const pl_tensor *g, const pl_tensor *y, pl_tensor *dx);

    // Cross-entropy of rows: logits (M, C) rows, target (M) i64 in [0, C) or ignore_index (else
    // PL_EINDEX naming the value and C). weight: NULL or (C) f32/f64 like losses. losses (M) and
    // lse (M): f32 (f64 for f64); an ignored row's loss is 0. With label smoothing e the row's loss
    // is (1-e) * w[t] * nll + e/C * sum_c w[c] * nll_c, as PyTorch.
    pl_status (*cross_entropy)(const pl_tensor *logits, const pl_tensor *target,
                               const pl_tensor *weight, int64_t ignore_index,
                               double label_smoothing, pl_tensor *losses, pl_tensor *lse);
    // dlogits = d(sum_i g[i] * losses[i]) / dlogits. g (M) f32/f64, or a 0-d/expanded one. logits
    // and dlogits contiguous; dlogits may be logits (in place).
    pl_status (*cross_entropy_grad)(const pl_tensor *g, const pl_tensor *logits,
                                    const pl_tensor *target, const pl_tensor *weight,
                                    const pl_tensor *lse, int64_t ignore_index,
                                    double label_smoothing, pl_tensor *dlogits);
    // Both while the row is in the cache: losses (NULL: not wanted), and logits become dlogits. g
    // NULL: ones.
    pl_status (*cross_entropy_fused)(const pl_tensor *g, pl_tensor *logits, const pl_tensor *target,
                                     const pl_tensor *weight, int64_t ignore_index,
                                     double label_smoothing, pl_tensor *losses);

    // Rows of a table. x (N, D) rows, index (M) i64 contiguous in [-N, N) (else PL_EINDEX naming
    // value and N), out (M, D) contiguous. Embedding, index_select, x[index].
    pl_status (*take)(const pl_tensor *x, const pl_tensor *index, pl_tensor *out);
    // dx (N, D) contiguous += rows of g (M, D) at index (dx = instead of += when !accumulate);
    // equal indices are added in the order of rows. skip: an index not added (padding_idx), or -1.
    pl_status (*take_grad)(const pl_tensor *g, const pl_tensor *index, int64_t skip,
                           bool accumulate, pl_tensor *dx);
    // out[..i..] = x[..index[..i..]..] along dim, as torch.gather; any strides.
    pl_status (*gather)(const pl_tensor *x, int dim, const pl_tensor *index, pl_tensor *out);
    // dx (contiguous, zeroed by the caller) += g at index along dim, in index order.
    pl_status (*scatter_add)(const pl_tensor *g, int dim, const pl_tensor *index, pl_tensor *dx);
    // Number of true (nonzero) elements (*out where x lies); then their row-major coordinates, out
    // (count, ndim) i64.
    pl_status (*count_nonzero)(const pl_tensor *x, int64_t *out);
    pl_status (*nonzero)(const pl_tensor *x, pl_tensor *out);

    // Random. out contiguous. Element i uses word i % 4 of Philox block offset + i / 4 (uniform,
    // randint, dropout: one word per element; normals and 8-byte dtypes: ref/random.c, which is
    // the definition); the caller reserves the blocks: pl_random_blocks().
    pl_status (*uniform)(pl_tensor *out, double lo, double hi, uint64_t seed, uint64_t offset);
    pl_status (*normal)(pl_tensor *out, double mean, double std, uint64_t seed, uint64_t offset);
    pl_status (*randint)(pl_tensor *out, int64_t lo, int64_t hi, uint64_t seed, uint64_t offset);
    // out = keep(i) ? x / (1 - p) : 0, keep(i) when the uniform of element i is >= p. The gradient
    // is the same call on g. x, out contiguous; may be in place.
    pl_status (*dropout)(const pl_tensor *x, double p, uint64_t seed, uint64_t offset,
                         pl_tensor *out);

    // x (M, 2N) contiguous: gate, then up; out (M, N) contiguous = silu(gate) * up. The gradient
    // dx is like x and may be x; g (M, N) contiguous. Of one dtype.
    pl_status (*swiglu)(const pl_tensor *x, pl_tensor *out);
    pl_status (*swiglu_grad)(const pl_tensor *g, const pl_tensor *x, pl_tensor *dx);
    // Rotary embedding: x (B, T, H, D), D even, any strides; out like it, any strides, may be it.
    // cosine, sine (P, D / 2) contiguous, f32 (f64 for f64), first + T <= P. With c and s of row
    // first + t, element i < D/2 of a head and its partner j = i + D/2 become x[i] c - x[j] s and
    // x[j] c + x[i] s; back: by -s (the gradient).
    pl_status (*rotary)(const pl_tensor *x, const pl_tensor *cosine, const pl_tensor *sine,
                        int64_t first, bool back, pl_tensor *out);

    // Attention: q (B, H, T, D), k, v (B, H / G, S, D), head h reads their head h / G: last stride
    // 1, other strides any (so a view of a packed qkv needs no copy); out (B, H, T, D) last stride
    // 1; lse (B, H, T) f32 (f64 for f64), the log of each row's sum of exponentials. Tiled: memory
    // beyond the outputs is O(threads * tile * (T + D)). A row that sees nothing gives zeros.
    pl_status (*attention)(const pl_tensor *q, const pl_tensor *k, const pl_tensor *v,
                           const pl_attention_args *args, pl_tensor *out, pl_tensor *lse);
    // dq, dk, dv: last stride 1, written (not added to); dk and dv have q's number of heads: each
    // query head's part, which the caller adds up by groups of G.
    pl_status (*attention_grad)(const pl_tensor *g, const pl_tensor *q, const pl_tensor *k,
                                const pl_tensor *v, const pl_tensor *out, const pl_tensor *lse,
                                const pl_attention_args *args, pl_tensor *dq, pl_tensor *dk,
                                pl_tensor *dv);

    // Optimizers over runs of n elements of one floating dtype (p, g; moments the same dtype as p).
    // *nonfinite lies where they do; NULL where nobody asks.
    pl_status (*adam)(const pl_adam_args *args, pl_dtype dt, int64_t n, void *p, const void *g,
                      void *m, void *v);
    pl_status (*sgd)(const pl_sgd_args *args, pl_dtype dt, int64_t n, void *p, const void *g,
                     void *momentum);  // momentum may be NULL when args->momentum == 0
    // g *= factor over a run of n elements, in one pass; *nonfinite = 1 when an element was NaN or
    // infinite before, else it is left alone. A factor of 1 writes nothing.
    pl_status (*unscale)(pl_dtype dt, int64_t n, void *g, double factor, int *nonfinite);
    const pl_list_kernels *lists;  // Note [lists]; NULL on the CPU
} pl_kernels;

#define PL_SQUARES_BLOCK 16384
static inline double pl_sum_pairwise(const double *v, int64_t n) {
    return n == 1 ? v[0] : pl_sum_pairwise(v, n / 2) + pl_sum_pairwise(v + n / 2, n - n / 2);
}

const pl_kernels *pl_kernels_cpu(void);
const pl_kernels *pl_kernels_ref(void);
// The table for tensors on the CPU: "cpu" unless a test chose "ref".
const pl_kernels *pl_kernels_active(void);
// The table of a device that is open.
const pl_kernels *pl_kernels_on(pl_device d);
pl_status pl_kernels_use(const char *name) PL_MUST_USE;

// How many Philox blocks a random kernel draws for n elements of dtype dt.
uint64_t pl_random_blocks(pl_dtype dt, int64_t n, bool normal);

// Where oneDNN is: a path, or NULL for the SONAME. Opened at the first product that wants it;
// without it the blocked loops of this project serve only when PACELINE_ONEDNN=0 was built, else
// the product fails with one sentence that says what is missing and how to get it.
void pl_cpu_set_dnnl_path(const char *path);
const char *pl_cpu_matmul_library(
    void);  // "oneDNN 3.2.0 (/path)", "blocked loops", or "not loaded"

#endif
