// SPDX-License-Identifier: Apache-2.0
// How kernels/cuda/cublaslt*.c choose and remember algorithms, what they say when something is
// missing, and what the CPU's tests of products do not reach. On the stand-in for cuBLASLt.
#include <sys/stat.h>

#include "blas_on_host.h"
#include "cuda/cublaslt_internal.h"
#include "kernels_check.h"

#define CHOICES(blas) ((pl_blas_choice *)(blas)->memory.records)

static pl_cuda_queue queue;
static pl_cuda_fault fault;
static host_run scratch_owner;

// `measure`: PACELINE_BLAS_MEASURE.
static pl_cuda_blas *start(const char *measure) {
    queue = (pl_cuda_queue){.fault = &fault, .scratch = host_scratch, .owner = &scratch_owner};
    setenv("PACELINE_BLAS_MEASURE", measure, 1);
    blas_syncs = 0;
    return blas_new(&queue);
}

static void stop(pl_cuda_blas *blas) {
    pl_cuda_blas_free(blas);
    pl_free(scratch_owner.scratch);
    scratch_owner.scratch = NULL;
    CHECK_EQ(blas_allocations, 0);
}

// A cache folder of this test's own, empty.
static const char *use_cache(void) {
    static char folder[64];
    snprintf(folder, sizeof folder, "/tmp/test_cuda_blas.XXXXXX");
    if (!mkdtemp(folder)) TEST_FAIL("no folder");
    setenv("XDG_CACHE_HOME", folder, 1);
    return folder;
}

static const char *file_of(const char *folder) {
    static char path[256];
    snprintf(path, sizeof path, "%s/paceline/cublaslt-130100-Stand-in_GPU.txt", folder);
    return path;
}

static void remove_cache(const char *folder) {
    char inner[128];
    (void)unlink(file_of(folder));
    snprintf(inner, sizeof inner, "%s/paceline", folder);
    (void)rmdir(inner);
    if (rmdir(folder) != 0) TEST_FAIL("%s is not empty: a file was left beside", folder);
}

static bool exists(const char *path) {
    struct stat s;
    return stat(path, &s) == 0;
}

static size_t read_all(const char *path, char *out, size_t room) {
    FILE *f = fopen(path, "r");
    if (!f) TEST_FAIL("no %s", path);
    size_t n = fread(out, 1, room - 1, f);
    out[n] = 0;
    fclose(f);
    return n;
}

static void write_all(const char *path, const char *text) {
    FILE *f = fopen(path, "w");
    if (!f) TEST_FAIL("cannot write %s", path);
    fputs(text, f);
    fclose(f);
}

// One product of each kind, checked; all that a measurement could spoil is added to.
static void products(pl_cuda_blas *blas, int64_t m, int64_t k, int64_t n) {
    pl_tensor *x = check_tensor(PL_F32, 2, (int64_t[]){m, k}, 1.0), *wt;
    pl_tensor *w = check_tensor(PL_F32, 2, (int64_t[]){n, k}, 1.0);
    pl_tensor *bias = check_tensor(PL_F32, 1, &n, 1.0), *out, *pre, *want, *want_pre;
    pl_tensor *g = check_tensor(PL_F32, 2, (int64_t[]){m, n}, 1.0);
    pl_tensor *dw = check_tensor(PL_F32, 2, (int64_t[]){n, k}, 1.0), *want_w;
    pl_tensor *db = check_tensor(PL_F32, 1, &n, 1.0), *want_b, *dx, *want_x;
    CHECK_OK(pl_tensor_transpose(w, 0, 1, &wt));
    CHECK_OK(pl_tensor_empty_like(g, PL_F32, &out));
    CHECK_OK(pl_tensor_empty_like(g, PL_F32, &pre));
    CHECK_OK(pl_tensor_empty_like(g, PL_F64, &want));
    CHECK_OK(pl_tensor_empty_like(g, PL_F64, &want_pre));
    CHECK_OK(pl_tensor_empty_like(dw, PL_F64, &want_w));
    CHECK_OK(pl_tensor_empty_like(db, PL_F64, &want_b));
    const pl_kernels *ref = pl_kernels_ref();
    CHECK_OK(pl_cuda_blas_linear(x, w, bias, PL_ACT_GELU_TANH, pre, out, blas));
    CHECK_OK(ref->linear(x, w, bias, PL_ACT_GELU_TANH, want_pre, want));
    check_close("linear", out, want, 1e-5, 1e-5);
    check_close("preact", pre, want_pre, 1e-5, 1e-5);
    CHECK_OK(pl_cuda_blas_matmul(x, wt, true, out, blas));
    CHECK_OK(ref->matmul(x, wt, true, want));
    check_close("matmul", out, want, 1e-5, 1e-5);
    CHECK_OK(ref->copy(dw, want_w));
    CHECK_OK(ref->copy(db, want_b));
    CHECK_OK(pl_cuda_blas_linear_grad(g, x, dw, true, db, true, blas));
    CHECK_OK(ref->linear_grad(g, x, want_w, true, want_b, true));
    check_close("dw", dw, want_w, 1e-5, 1e-5);
    check_close("db", db, want_b, 1e-5, 1e-5);
    CHECK_OK(pl_tensor_empty_like(g, PL_F32, &dx));
    CHECK_OK(pl_tensor_empty_like(g, PL_F64, &want_x));
    CHECK_OK(pl_cuda_blas_linear_grad_gelu(x, wt, g, dx, blas));
    CHECK_OK(ref->linear_grad_gelu(x, wt, g, want_x));
    check_close("dx", dx, want_x, 1e-5, 1e-5);
    pl_tensor *all[] = {x,  w,  wt,       bias,   out,    pre, want,  g,
                        dw, db, want_pre, want_w, want_b, dx,  want_x};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) pl_tensor_release(all[i]);
}

// ---- Choosing and remembering -------------------------------------------------------------------

TEST(a_shape_is_measured_once_and_remembered_on_disk) {
    const char *folder = use_cache();
    pl_cuda_blas *blas = start("auto");
    products(blas, 12, 20, 16);
    CHECK(blas_syncs > 0);
    int count = blas->memory.count;
    CHECK_EQ(count, 6);  // linear and its gradients, fused; a matmul each, the first one shared
    for (int i = 0; i < count; i++) CHECK(CHOICES(blas)[i].measured);
    int syncs = blas_syncs;
    products(blas, 12, 20, 16);
    CHECK_EQ(blas_syncs, syncs);
    pl_blas_choice first[8];
    memcpy(first, CHOICES(blas), (size_t)count * sizeof *first);
    stop(blas);
    CHECK(exists(file_of(folder)));

    blas = start("auto");  // as a new process
    products(blas, 12, 20, 16);
    CHECK_EQ(blas_syncs, 0);
    CHECK_EQ(blas->memory.count, count);
    for (int i = 0; i < count; i++) {
        CHECK(memcmp(&CHOICES(blas)[i], &first[i], sizeof *first) == 0);
    }
    stop(blas);
    remove_cache(folder);
}

TEST(a_damaged_file_counts_as_empty) {
    const char *folder = use_cache();
    pl_cuda_blas *blas = start("auto");
    products(blas, 12, 20, 16);
    stop(blas);
    static char whole[65536], bad[65536];
    size_t n = read_all(file_of(folder), whole, sizeof whole);
    for (int way = 0; way < 5; way++) {
        memcpy(bad, whole, n + 1);
        if (way == 0) bad[n / 2] = 0;                              // cut
        if (way == 1) memcpy(strstr(bad, "end"), "END", 3);        // no last line
        if (way == 2) memcpy(strstr(bad, "130100"), "130200", 6);  // of another library
        if (way == 3) strcat(bad, "more\n");
        if (way == 4) strchr(bad, '\n')[2] = 'x';  // no number
        write_all(file_of(folder), bad);
        blas = start("auto");
        products(blas, 12, 20, 16);
        CHECK(blas_syncs > 0);  // measured again
        stop(blas);
        CHECK(read_all(file_of(folder), bad, sizeof bad) > 100);
        CHECK(strstr(bad, "\nend 6\n") != NULL);
    }
    remove_cache(folder);
}

// The file says an algorithm that the library does not know for this shape.
TEST(what_the_file_says_is_checked_by_the_library) {
    const char *folder = use_cache();
    pl_cuda_blas *blas = start("auto");
    products(blas, 12, 20, 16);
    stop(blas);
    static char text[65536];
    read_all(file_of(folder), text, sizeof text);
    for (char *at = text; (at = strstr(at, " 414c474f ")) != NULL; at++)
        memcpy(at, " 414c4740 ", 10);
    write_all(file_of(folder), text);
    blas = start("auto");
    products(blas, 12, 20, 16);
    CHECK(blas_syncs > 0);
    stop(blas);
    remove_cache(folder);
}

TEST(several_ranks_read_the_file_and_never_measure) {
    const char *folder = use_cache();
    setenv("WORLD_SIZE", "2", 1);
    setenv("LOCAL_WORLD_SIZE", "2", 1);
    pl_cuda_blas *blas = start("auto");
    products(blas, 12, 20, 16);
    CHECK_EQ(blas_syncs, 0);
    CHECK_EQ(CHOICES(blas)[0].algo.data[1], 0);  // the first proposal
    stop(blas);
    CHECK(!exists(file_of(folder)));

    unsetenv("WORLD_SIZE");
    blas = start("auto");
    products(blas, 12, 20, 16);
    stop(blas);
    static char before[65536], after[65536];
    read_all(file_of(folder), before, sizeof before);
    setenv("WORLD_SIZE", "2", 1);
    blas = start("auto");
    products(blas, 12, 20, 16);
    CHECK_EQ(blas->memory.count, 6);
    CHECK(CHOICES(blas)[0].measured);
    products(blas, 13, 20, 16);  // new here
    CHECK_EQ(blas_syncs, 0);
    stop(blas);
    read_all(file_of(folder), after, sizeof after);
    CHECK_STR_EQ(after, before);

    setenv("WORLD_SIZE", "4", 1);  // two machines: their files may differ
    blas = start("auto");
    products(blas, 12, 20, 16);
    CHECK_EQ(blas_syncs, 0);
    CHECK(!CHOICES(blas)[0].measured);
    stop(blas);
    blas = start("1");
    products(blas, 13, 20, 16);
    CHECK(blas_syncs > 0);
    stop(blas);
    remove_cache(folder);
}

TEST(measuring_can_be_turned_off) {
    const char *folder = use_cache();
    pl_cuda_blas *blas = start("0");
    products(blas, 12, 20, 16);
    CHECK_EQ(blas_syncs, 0);
    stop(blas);
    CHECK(!exists(file_of(folder)));
    remove_cache(folder);
}

TEST(a_folder_that_cannot_be_written_is_no_failure) {
    setenv("XDG_CACHE_HOME", "/proc/nowhere", 1);
    pl_cuda_blas *blas = start("auto");
    products(blas, 12, 20, 16);
    CHECK(blas_syncs > 0);
    stop(blas);
}

// More shapes than there are places: plans are made anew, choices stay.
TEST(plans_are_forgotten_and_choices_are_not) {
    pl_cuda_blas *blas = start("0");
    pl_tensor *out;
    for (int round = 0; round < 2; round++) {
        for (int64_t n = 1; n <= 3000; n++) {
            pl_tensor *a = check_tensor(PL_F32, 2, (int64_t[]){1, 2}, 1.0);
            pl_tensor *b = check_tensor(PL_F32, 2, (int64_t[]){2, n}, 1.0);
            CHECK_OK(pl_tensor_empty(PL_F32, 2, (int64_t[]){1, n}, &out));
            CHECK_OK(pl_cuda_blas_matmul(a, b, false, out, blas));
            double want =
                check_get(a, 0) * check_get(b, n - 1) + check_get(a, 1) * check_get(b, 2 * n - 1);
            CHECK_NEAR(check_get(out, n - 1), want, 1e-6);
            pl_tensor_release(out);
            pl_tensor_release(b);
            pl_tensor_release(a);
        }
        CHECK_EQ(blas->memory.count, 3000);
    }
    CHECK(blas->evicted > 0);
    stop(blas);
}

// ---- Shapes -------------------------------------------------------------------------------------

TEST(a_batch_may_be_longer_than_a_grid) {
    pl_cuda_blas *blas = start("0");
    int64_t n = 65537 * 2;  // no divisor between 2 and 65535
    pl_tensor *a = check_tensor(PL_F32, 3, (int64_t[]){n, 1, 2}, 1.0);
    pl_tensor *b = check_tensor(PL_F32, 3, (int64_t[]){n, 2, 1}, 1.0), *out;
    CHECK_OK(pl_tensor_empty(PL_F32, 3, (int64_t[]){n, 1, 1}, &out));
    CHECK_OK(pl_cuda_blas_matmul(a, b, false, out, blas));
    for (int64_t i = 0; i < n; i += 65537 / 3) {
        double want = check_get(a, 2 * i) * check_get(b, 2 * i) +
                      check_get(a, 2 * i + 1) * check_get(b, 2 * i + 1);
        CHECK_NEAR(check_get(out, i), want, 1e-6);
    }
    pl_tensor_release(out);
    pl_tensor_release(b);
    pl_tensor_release(a);
    stop(blas);
}

// What is one call and what is copied, by the calls that the tensors become.
TEST(views_become_calls_without_copies) {
    pl_blas_product p;
    pl_tensor *a = check_tensor(PL_BF16, 4, (int64_t[]){2, 3, 5, 8}, 1.0), *at;
    pl_tensor *w = check_tensor(PL_BF16, 2, (int64_t[]){7, 8}, 1.0), *wt, *we, *out;
    CHECK_OK(pl_tensor_transpose(w, 0, 1, &wt));
    CHECK_OK(pl_tensor_expand(wt, 4, (int64_t[]){2, 3, 8, 7}, &we));
    CHECK_OK(pl_tensor_empty(PL_BF16, 4, (int64_t[]){2, 3, 5, 7}, &out));
    CHECK(pl__blas_readable(a) && pl__blas_readable(we));
    CHECK_OK(pl__blas_product(a, we, false, out, &p));
    CHECK_EQ(p.call.batch, 1);  // one weight for all: rows of one matrix
    CHECK_EQ(p.call.n, 30);
    CHECK(p.ndim == 0 && p.call.transposed_a && !p.call.transposed_b);
    CHECK_OK(pl_tensor_transpose(a, 1, 2, &at));  // (2, 5, 3, 8), as heads of an attention
    pl_tensor *k, *kt, *scores;
    CHECK_OK(pl_tensor_transpose(at, 2, 3, &kt));
    CHECK_OK(pl_tensor_empty(PL_BF16, 4, (int64_t[]){2, 5, 3, 3}, &scores));
    CHECK_OK(pl__blas_product(at, kt, false, scores, &p));
    CHECK(p.call.batch == 5 && p.ndim == 1 && p.outer[0] == 2);
    CHECK(p.call.lda == 40 && p.call.ldb == 40 && p.call.stride_a == 8);
    CHECK_OK(pl_tensor_slice(w, 1, 0, 8, 2, &k));
    CHECK(!pl__blas_readable(k));
    pl_tensor *all[] = {a, at, w, wt, we, out, k, kt, scores};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) pl_tensor_release(all[i]);
}

TEST(tf32_only_where_it_was_asked_for) {
    pl_cuda_blas *blas = start("0");
    pl_tensor *a = check_tensor(PL_F32, 2, (int64_t[]){1, 1}, 1.0), *out;
    CHECK_OK(pl_tensor_empty(PL_F32, 2, (int64_t[]){1, 1}, &out));
    check_set(a, 0, 1.0 + 0x1p-12);
    for (int allow = 0; allow < 3; allow++) {
        pl_cuda_blas_allow_tf32(allow == 1);
        CHECK_OK(pl_cuda_blas_matmul(a, a, false, out, blas));
        CHECK_EQ(check_get(out, 0) == 1.0, allow == 1);
    }
    pl_tensor_release(out);
    pl_tensor_release(a);
    stop(blas);
}

// ---- What is missing ----------------------------------------------------------------------------

// One product by the library that PACELINE_CUBLASLT names; `part` of its failure, NULL: none.
static void one_product(const char *part) {
    pl_tensor *a = check_tensor(PL_F32, 2, (int64_t[]){2, 2}, 1.0), *out;
    CHECK_OK(pl_tensor_empty(PL_F32, 2, (int64_t[]){2, 2}, &out));
    pl_cuda_blas *blas = start("0");
    for (int i = 0; i < 2; i++) {
        if (part) {
            CHECK_FAILS(pl_cuda_blas_matmul(a, a, false, out, blas), PL_EDEVICE, part);
            CHECK(strstr(pl_error_message(), "expected") != NULL);
            CHECK_STR_EQ(pl__blas_library_text(), "not loaded");
        } else {
            CHECK_OK(pl_cuda_blas_matmul(a, a, false, out, blas));
        }
    }
    pl_tensor_release(out);
    pl_tensor_release(a);
    stop(blas);
}

TEST(a_missing_library_is_one_sentence) {
    setenv("PACELINE_CUBLASLT", "/nowhere/libcublasLt.so.13", 1);
    one_product("/nowhere/libcublasLt.so.13");
    setenv("PACELINE_CUBLASLT", TEST_CUBLASLT, 1);
    one_product(NULL);  // a failure is not for ever
    CHECK(strstr(pl__blas_library_text(), "cuBLASLt 13.1.0 (") != NULL);
}

TEST(another_library_is_refused) {
    setenv("PACELINE_CUBLASLT", "libm.so.6", 1);
    one_product("got no cublasLtGetVersion in libm.so.6");
    one_product("pip install 'paceline[cuda13]'");
}

TEST(another_version_is_refused) {
    setenv("VCUDA_CUBLASLT_VERSION", "120103", 1);
    one_product("got version 12.1 in ");
}

TEST(what_the_library_cannot_do_is_said) {
    pl_cuda_blas *blas = start("0");
    pl_tensor *a = check_tensor(PL_F32, 2, (int64_t[]){2, 2}, 1.0), *out;
    CHECK_OK(pl_tensor_empty(PL_F32, 2, (int64_t[]){2, 2}, &out));
    setenv("VCUDA_CUBLASLT_ONLY", "nothing", 1);
    CHECK_FAILS(pl_cuda_blas_matmul(a, a, false, out, blas), PL_EDEVICE,
                "no algorithm for a product of float32, 2 x 2 x 2");
    pl_tensor huge = *a;
    huge.shape[0] = (int64_t)1 << 31;
    pl_tensor big = *out;
    big.shape[0] = huge.shape[0];
    CHECK_FAILS(pl_cuda_blas_matmul(&huge, a, false, &big, blas), PL_ENOSUP, "too large");
    pl_tensor_release(out);
    pl_tensor_release(a);
    stop(blas);
}

// Some libraries propose algorithms for an epilogue and refuse the call: not supported, or invalid.
TEST(an_epilogue_that_is_refused_when_it_is_called_is_done_apart) {
    const char *folder = use_cache();
    static const char *const statuses[] = {"15", "7"};
    for (int i = 0; i < 4; i++) {
        setenv("VCUDA_CUBLASLT_REFUSES", statuses[i % 2], 1);
        pl_cuda_blas *blas = start(i < 2 ? "0" : "1");
        products(blas, 12, 20, 16);
        products(blas, 12, 20, 16);
        int refused = 0;
        for (int k = 0; k < PL_BLAS_PLANS; k++) {
            const pl_blas_plan *p = &blas->plans[k];
            bool plain = p->choice.call.epilogue == PL_LT_EPILOGUE_DEFAULT;
            if (p->desc) CHECK_EQ(p->choice.possible, plain);
            if (p->desc && !plain) refused++;
        }
        CHECK_EQ(refused, 3);
        stop(blas);
    }
    remove_cache(folder);
}

static int allocations_left;
static pl_status scarce_alloc(size_t nbytes, const char *tag, void **out) {
    if (allocations_left-- <= 0) return pl_fail(PL_ENOMEM, "[%s] no memory", tag);
    return blas_alloc(nbytes, tag, out);
}

// What is added to is measured in other memory: without it nothing is, and nothing kept on disk.
TEST(a_choice_that_could_not_be_measured_is_not_kept) {
    const char *folder = use_cache();
    pl_tensor *a = check_tensor(PL_F32, 2, (int64_t[]){4, 4}, 1.0), *out;
    CHECK_OK(pl_tensor_zeros(PL_F32, 2, a->shape, &out));
    pl_cuda_blas *blas = start("1");
    blas->args.alloc = scarce_alloc;
    allocations_left = 1;  // the workspace
    CHECK_OK(pl_cuda_blas_matmul(a, a, true, out, blas));
    CHECK_EQ(blas->memory.count, 1);
    CHECK(CHOICES(blas)[0].possible && !CHOICES(blas)[0].measured);
    CHECK(!exists(file_of(folder)));
    stop(blas);
    pl_tensor_release(out);
    pl_tensor_release(a);
    remove_cache(folder);
}

// Each of the device's allocations fails once; nothing leaks, and later all is well.
TEST(memory_may_be_missing_anywhere) {
    pl_tensor *x = check_strided(PL_BF16, 2, (int64_t[]){6, 8}, CHECK_STEPPED);
    pl_tensor *w = check_strided(PL_BF16, 2, (int64_t[]){4, 8}, CHECK_STEPPED), *out, *dw, *db;
    pl_tensor *bias = check_tensor(PL_F32, 1, (int64_t[]){4}, 1.0), *dx;
    CHECK_OK(pl_tensor_empty(PL_BF16, 2, (int64_t[]){6, 4}, &out));
    CHECK_OK(pl_tensor_empty(PL_BF16, 2, (int64_t[]){6, 8}, &dx));
    CHECK_OK(pl_tensor_zeros(PL_F32, 2, (int64_t[]){4, 8}, &dw));
    CHECK_OK(pl_tensor_zeros(PL_F32, 1, (int64_t[]){4}, &db));
    pl_status forward = PL_ENOMEM, backward = PL_ENOMEM;
    int n = 0;
    for (; forward != PL_OK || backward != PL_OK; n++) {
        CHECK(n < 20);
        pl_cuda_blas *blas = start("0");
        blas->args.alloc = scarce_alloc;
        allocations_left = n;
        forward = pl_cuda_blas_linear(x, w, bias, PL_ACT_RELU, NULL, out, blas);
        if (forward != PL_OK) CHECK_EQ(forward, PL_ENOMEM);
        allocations_left = n;
        backward = pl_cuda_blas_linear_grad(out, x, dw, true, db, true, blas);
        if (backward != PL_OK) CHECK_EQ(backward, PL_ENOMEM);
        allocations_left = n;
        pl_status through = pl_cuda_blas_linear_grad_gelu(out, w, x, dx, blas);
        if (through != PL_OK) CHECK_EQ(through, PL_ENOMEM);
        if (backward == PL_OK) backward = through;
        stop(blas);
    }
    CHECK(n > 3);
    pl_tensor *all[] = {x, w, out, dw, db, bias, dx};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) pl_tensor_release(all[i]);
}
