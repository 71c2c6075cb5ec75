// Matrix products of linear layers: C[rows, columns] = sum over depth of A[rows, depth] B[depth, columns].
//
// All products run on 32-bit units: one f32, or two bf16 neighbours along the depth (UNIT = 2), which processors with such an
// instruction multiply as a pair. The layers, from the registers outwards (Goto and van de Geijn 2008):
//   - A tile of ROWS x PANEL of C stays in registers over CHUNK units of depth. A step loads NV vectors of B and spreads
//     ROWS units of A for ROWS x NV multiply-adds: 11 loads for 24, so the multipliers never wait. What the tile will write,
//     and a share of what is read next, is fetched while it computes.
//   - B lies in panels: PANEL columns (the last panel: what is left, a multiple of STRIP), one step's vectors next to each
//     other. A chunk of a panel (192 KiB) stays in the second-level cache while tiles go down a block of rows. Weights are packed
//     once a step; another B is packed by each thread that needs it, panel by panel in the first block of rows: threads that
//     share what they pack wait for each other, and on processors with several last-level caches for the lines as well.
//   - A block of A, BLOCK rows a chunk deep (256 KiB), stays there as well while it goes through the panels: it, the next block,
//     fetched meanwhile, and two panels are what that cache holds. A is read as it lies, [rows, depth], where units are
//     neighbours along the depth already. Lies it the other way round, [depth, rows] as in a weight's gradient, the block is
//     packed into strips of STRIP rows.
//   - Threads stand in a grid over C. Every element of C is summed by one thread in one order: the bits depend on nothing else.
// Depth beyond a chunk goes through C where that is f32, else through f32 partial sums of one block by one panel.
//
// Compiled once per instruction set and compute type.
#include "device/cpu.h"
#include "device/cpu_names.h"
#include "device/cpu_vector.h"

#include <assert.h>
#include <omp.h>

enum { UNIT = sizeof(uint32_t) / sizeof(act), STRIP = GANG_CPU_PACK_STRIP, CHUNK = GANG_CPU_PRODUCT_CHUNK };
#ifdef __AVX512F__
enum { ROWS = 8, NV = 3 };
#else
enum { ROWS = 4, NV = STRIP / VL };
#endif
enum { PANEL = NV * VL };
enum { BLOCK = GANG_CPU_PRODUCT_BLOCK };

static int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
static int64_t pad(int64_t columns) { return (columns + STRIP - 1) / STRIP * STRIP; }
static int64_t units_of(int64_t depth) { return (depth + UNIT - 1) / UNIT; }

// What is written past the caches is not ordered by a barrier alone.
static void fence(void) {
#ifdef __AVX512F__
    _mm_sfence();
#endif
}

// ---- A tile in registers -------------------------------------------------------------------------------------------

#if defined(HAVE_BF16_PAIRS)
typedef __m512bh operand;
static inline operand load_units(const uint32_t *from) { return (operand)_mm512_loadu_si512(from); }
static inline operand spread_unit(uint32_t unit) { return (operand)_mm512_set1_epi32((int)unit); }
static inline gang_vf multiply_add(gang_vf acc, operand a, operand b) { return (gang_vf)_mm512_dpbf16_ps((__m512)acc, a, b); }
#elif defined(ACT_BF16)
typedef struct {
    gang_vf low, high;
} operand;
static inline operand split(gang_vu units) { return (operand){(gang_vf)(units << 16), (gang_vf)(units & 0xffff0000)}; }
static inline operand load_units(const uint32_t *from) {
    gang_vu units;
    memcpy(&units, from, sizeof units);
    return split(units);
}
static inline operand spread_unit(uint32_t unit) { return split((gang_vu){0} + unit); }
static inline gang_vf multiply_add(gang_vf acc, operand a, operand b) { return acc + a.low * b.low + a.high * b.high; }
#else
typedef gang_vf operand;
static inline operand load_units(const uint32_t *from) { return *(const gang_vf *)from; }
static inline operand spread_unit(uint32_t unit) { return (gang_vf)((gang_vu){0} + unit); }
static inline gang_vf multiply_add(gang_vf acc, operand a, operand b) { return acc + a * b; }
#endif

// Some rows of one panel over one chunk. Unit k of row r of A: a + r / STRIP * a_strip + r % STRIP * a_row + k * a_unit, in bytes.
struct tiles {
    int64_t rows, columns, units; // columns: those that C has, no more than the panel's
    const char *a;
    int64_t a_strip, a_row, a_unit;
    const uint32_t *b;
    const float *from; // what to add to; NULL: nothing
    int64_t from_stride;
    void *to;
    int64_t to_stride;
    bool to_f32;
    bool past;         // whole lines of results that nobody reads soon go past the caches
    const char *ahead; // what is read next, to be fetched meanwhile: rows of so many bytes
    int64_t ahead_rows, ahead_stride, ahead_bytes;
};

static inline uint32_t load_unit(const char *from) {
    uint32_t unit;
    memcpy(&unit, from, sizeof unit);
    return unit;
}

// One vector of a tile, where it need not be whole or takes part in more than one way.
static void store_vector(const struct tiles *t, int64_t row, int64_t column, gang_vf x) {
    int64_t n = t->columns - column;
    if (n <= 0) return;
    if (t->from) x += load_f32(t->from + row * t->from_stride + column, n);
    if (t->to_f32)
        store_f32((float *)t->to + row * t->to_stride + column, x, n);
    else
        store_act((act *)t->to + row * t->to_stride + column, x, n);
}

// The lines that a tile will write, asked for before it computes.
static inline __attribute__((always_inline)) void fetch_results(const struct tiles *t, int64_t row, const int mr, const int columns) {
    const int64_t size = t->to_f32 ? sizeof(float) : sizeof(act);
    const char *to = (const char *)t->to + row * t->to_stride * size;
    for (int i = 0; i < mr; i++)
        for (int64_t at = 0; at <= columns * size; at += 64) __builtin_prefetch(to + i * t->to_stride * size + at, 1);
}

// A row every few units: evenly over a block of BLOCK rows, so that no load of the product waits behind.
enum { FETCH_EVERY = BLOCK / (ROWS * UNIT) };
static inline void fetch_row(const struct tiles *t, int64_t row) {
    const char *from = t->ahead + row * t->ahead_stride;
    for (int64_t i = 0; i < t->ahead_bytes; i += 64) __builtin_prefetch(from + i, 0, 2);
}

// acc stays in registers: mr and nv are constants after inlining, and the ways to store are whole loops.
#define EACH_VECTOR _Pragma("GCC unroll 8") for (int i = 0; i < mr; i++) _Pragma("GCC unroll 4") for (int j = 0; j < nv; j++)
static inline __attribute__((always_inline)) void tile(const struct tiles *t, int64_t row, const int mr, const int nv) {
    gang_vf acc[ROWS][NV] = {0};
    const char *a = t->a + row / STRIP * t->a_strip + row % STRIP * t->a_row;
    const char *lower = a + ROWS / 2 * t->a_row; // few enough addresses for the registers there are
    const int64_t a_row = t->a_row, a_unit = t->a_unit;
    const uint32_t *b = t->b;
    if (!t->past) fetch_results(t, row, mr, nv * VL);
    int64_t fetched = t->ahead_rows * row / t->rows, fetch_end = t->ahead_rows * (row + mr) / t->rows;
    for (int64_t k = 0; k < t->units;) {
        if (fetched < fetch_end) fetch_row(t, fetched++);
        for (int64_t end = least(k + FETCH_EVERY, t->units); k < end; k++, a += a_unit, lower += a_unit, b += nv * VL) {
            operand column[NV];
#pragma GCC unroll 4
            for (int j = 0; j < nv; j++) column[j] = load_units(b + j * VL);
#pragma GCC unroll 8
            for (int i = 0; i < mr; i++) {
                operand unit = spread_unit(load_unit((i < ROWS / 2 ? a : lower) + i % (ROWS / 2) * a_row));
#pragma GCC unroll 4
                for (int j = 0; j < nv; j++) acc[i][j] = multiply_add(acc[i][j], unit, column[j]);
            }
        }
    }
    bool whole = t->columns >= nv * VL;
    if (whole && t->to_f32 && t->from) {
        const float *from = t->from + row * t->from_stride;
        float *to = (float *)t->to + row * t->to_stride;
        EACH_VECTOR *(gang_vf *)(to + i * t->to_stride + j * VL) = acc[i][j] + *(const gang_vf *)(from + i * t->from_stride + j * VL);
#ifdef __AVX512F__
    } else if (whole && t->past) {
        float *to = (float *)t->to + row * t->to_stride;
        EACH_VECTOR _mm512_stream_ps(to + i * t->to_stride + j * VL, (__m512)acc[i][j]);
#endif
    } else if (whole && t->to_f32) {
        float *to = (float *)t->to + row * t->to_stride;
        EACH_VECTOR *(gang_vf *)(to + i * t->to_stride + j * VL) = acc[i][j];
    } else if (whole && !t->from) {
        act *to = (act *)t->to + row * t->to_stride;
        EACH_VECTOR vector_to_act(to + i * t->to_stride + j * VL, acc[i][j]);
    } else {
        EACH_VECTOR store_vector(t, row + i, j * VL, acc[i][j]);
    }
}

static inline __attribute__((always_inline)) void tiles_of(const struct tiles *t, const int nv) {
    int64_t row = 0;
    for (; row + ROWS <= t->rows; row += ROWS) tile(t, row, ROWS, nv);
    for (; row < t->rows; row++) tile(t, row, 1, nv);
}

// Not inlined: they need all registers for themselves.
static __attribute__((noinline)) void tiles_whole(const struct tiles *t) { tiles_of(t, NV); }
#ifdef __AVX512F__
static __attribute__((noinline)) void tiles_two(const struct tiles *t) { tiles_of(t, 2); }
static __attribute__((noinline)) void tiles_one(const struct tiles *t) { tiles_of(t, 1); }
#endif

// `width` of the panel is a multiple of STRIP.
static void tiles_run(const struct tiles *t, int64_t width) {
    if (width == PANEL) tiles_whole(t);
#ifdef __AVX512F__
    if (width == 2 * STRIP) tiles_two(t);
    if (width == STRIP) tiles_one(t);
#endif
}

// ---- Operands into panels ------------------------------------------------------------------------------------------

// VL units of one row of elements, or of two.
static inline void put_units(uint32_t *to, const act *row, const act *next) {
#ifdef ACT_BF16
    gang_vu units = bf16_to_bits(row) | bf16_to_bits(next) << 16;
#else
    (void)next;
    gang_vu units = (gang_vu) * (const gang_vf *)row;
#endif
    memcpy(to, &units, sizeof units);
}

// The same for a row that ends after n units, or that has none behind it (next NULL).
static void put_last_units(uint32_t *to, int64_t width, const act *row, const act *next, int64_t n) {
    memset(to, 0, (size_t)width * sizeof *to);
    for (int64_t c = 0; c < n; c++) {
        memcpy(to + c, row + c, sizeof *row);
        if (next) memcpy((char *)(to + c) + sizeof *next, next + c, sizeof *next);
    }
}

// Units [u, u + STEPS) of the matrix from[depth, columns], into panels of `panel` columns and `units` units. A few units at a time:
// what they read stays in the first-level cache from panel to panel, and what they write is one stream per panel.
enum { STEPS = 4, AHEAD = 8 };
static inline __attribute__((always_inline)) void pack_steps(uint32_t *to, const int64_t panel, int64_t units, int64_t u, const act *from,
                                                             int64_t stride, int64_t depth, int64_t columns) {
    int64_t last = least(u + STEPS, units);
    for (int64_t base = 0; base < columns; base += panel) {
        int64_t width = least(panel, pad(columns - base));
        for (int64_t k = u; k < last; k++) {
            const act *row = from + k * UNIT * stride + base, *next = row + (UNIT - 1) * stride;
            uint32_t *at = to + base * units + k * width;
            for (int64_t c = 0; c < width; c += 64 / (int64_t)sizeof(act)) {
                __builtin_prefetch(row + c + AHEAD * UNIT * stride);
                if (UNIT == 2) __builtin_prefetch(next + c + AHEAD * UNIT * stride);
            }
            bool pair = (k + 1) * UNIT <= depth;
            if (pair && width == panel && columns - base >= panel)
                for (int64_t c = 0; c < panel; c += VL) put_units(at + c, row + c, next + c);
            else
                put_last_units(at, width, row, pair && UNIT == 2 ? next : NULL, least(width, columns - base));
        }
    }
}

// A square of STRIP rows, seen as elements or as units.
union square {
    uint32_t units[STRIP][STRIP];
    act rows[STRIP][STRIP * UNIT];
};

// Units [u, u + count) of STRIP columns into a matrix of panels of that many columns and units; `past` the caches.
static inline void put_strip(uint32_t *matrix, const union square *s, int64_t column, int64_t columns, int64_t u, int64_t count, int64_t units,
                             bool past) {
    int64_t base = column / PANEL * PANEL, width = least(PANEL, pad(columns) - base);
    uint32_t *to = matrix + base * units + u * width + column - base;
#ifdef __AVX512F__
    for (int64_t i = 0; past && i < count; i++) _mm512_stream_si512((__m512i *)(to + i * width), _mm512_loadu_si512(s->units[i]));
    if (past) return;
#endif
    (void)past;
    for (int64_t i = 0; i < count; i++) memcpy(to + i * width, s->units[i], sizeof s->units[i]);
}

// The same for rows that hold a column each.
static void turn_into(uint32_t *matrix, const union square *s, int64_t column, int64_t columns, int64_t u, int64_t units, bool past) {
    union square turned;
    turn_square(turned.units[0], STRIP, s->units[0], STRIP);
    put_strip(matrix, &turned, column, columns, u, least(STRIP, units - u), units, past);
}

// A panel of a plain B, over all its depth.
static void pack_panel(const struct gang_cpu_product *p, uint32_t *to, int64_t column, int64_t columns) {
    const int64_t units = units_of(p->depth);
    if (p->b_form == GANG_CPU_B_ROWS) {
        for (int64_t u = 0; u < units; u += STEPS) pack_steps(to, PANEL, units, u, (const act *)p->b + column, p->b_stride, p->depth, columns);
        return;
    }
    for (int64_t c = 0; c < columns; c += STRIP)
        for (int64_t u = 0; u < units; u += STRIP) {
            union square s = {{{0}}};
            const act *from = (const act *)p->b + (column + c) * p->b_stride + u * UNIT;
            for (int64_t r = 0; r < least(STRIP, columns - c); r++)
                memcpy(s.rows[r], from + r * p->b_stride, (size_t)least(STRIP * UNIT, p->depth - u * UNIT) * sizeof *from);
            turn_into(to, &s, c, columns, u, units, false);
        }
}

// ---- The product ---------------------------------------------------------------------------------------------------

// A thread's part of C, and where it packs: a block of A, columns of B.
struct part {
    int64_t row, row_end, column, column_end;
    uint32_t *a, *b;
};

// The rows of `t`, from `row` on, in one panel: columns of C from `column` to no further than `end`. Chunk by chunk; two bf16 make
// a unit only within a row of A: the last element of an odd depth becomes a chunk by itself.
static void panel_run(const struct gang_cpu_product *p, struct tiles t, int64_t row, const uint32_t *b, int64_t column, int64_t end) {
    const int64_t units = units_of(p->depth), last = !p->a_turned && p->depth % UNIT, at = row * p->columns + column;
    float partial[BLOCK * PANEL], *c = p->c_f32 ? (float *)p->c + at : NULL;
    uint32_t ends[BLOCK];
    t.columns = least(PANEL, end - column);
    for (int64_t k = 0; k < units; k += t.units, t.a += t.units * t.a_unit) {
        t.units = least(CHUNK, units - k - last);
        if (!t.units) {
            for (int64_t r = 0; r < t.rows; r++) ends[r] = ((const uint16_t *)p->a)[(row + r) * p->a_stride + p->depth - 1];
            t.units = 1, t.a = (const char *)ends, t.a_row = sizeof *ends, t.a_strip = STRIP * t.a_row;
        }
        t.b = b + k * pad(t.columns);
        bool through = !c && k + t.units < units; // C cannot take a partial sum
        t.from = !k && !p->add ? NULL : c ? c : partial;
        t.from_stride = c ? p->columns : PANEL;
        t.to = through ? (void *)partial : c ? (void *)c : (act *)p->c + at;
        t.to_stride = through ? PANEL : p->columns;
        t.to_f32 = through || c;
        // Gradients and logits: the next to read them comes late.
        t.past = !t.from && c && (p->a_turned || UNIT == 2) && ((uintptr_t)c | (uintptr_t)p->columns * sizeof *c) % 64 == 0;
        tiles_run(&t, pad(t.columns));
    }
}

// `bytes` of each row [from, to) of a matrix, for the tiles to fetch while they compute.
static void fetch_later(struct tiles *t, const act *matrix, int64_t stride, int64_t from, int64_t to, int64_t columns) {
    t->ahead = (const char *)(matrix + from * stride);
    t->ahead_rows = to - from;
    t->ahead_stride = stride * (int64_t)sizeof *matrix;
    t->ahead_bytes = columns * (int64_t)sizeof *matrix;
}

// A block of rows in columns [column, end), of which `b` holds the panels. A turned A is packed before, and in a part's first block
// each panel of a plain B. While tiles compute they fetch what is packed next: the next panel, or a share of the next block.
static void block_run(const struct gang_cpu_product *p, const struct part *part, int64_t row, int64_t column, int64_t end) {
    const int64_t units = units_of(p->depth), next = least(BLOCK, part->row_end - row - BLOCK), size = sizeof(act);
    const act *a = (const act *)p->a + (p->a_turned ? row : row * p->a_stride);
    const bool plain = p->b_form != GANG_CPU_B_PACKED, packs = plain && row == part->row;
    const uint32_t *b = plain ? part->b : p->b;
    struct tiles t = {.rows = least(BLOCK, part->row_end - row)};
    if (p->a_turned) {
        for (int64_t u = 0; u < units; u += STEPS) pack_steps(part->a, STRIP, units, u, a, p->a_stride, p->depth, t.rows);
        t.a = (const char *)part->a, t.a_row = sizeof *part->a, t.a_unit = STRIP * t.a_row, t.a_strip = units * t.a_unit;
    } else {
        t.a = (const char *)a, t.a_row = p->a_stride * size, t.a_unit = sizeof(uint32_t), t.a_strip = STRIP * t.a_row;
    }
    for (int64_t at = column; at < end; at += PANEL) {
        int64_t behind = least(at + PANEL, end);
        t.ahead_rows = 0;
        if (packs) pack_panel(p, part->b + (at - column) * units, at, behind - at);
        if (packs && p->b_form == GANG_CPU_B_ROWS)
            fetch_later(&t, (const act *)p->b + behind, p->b_stride, 0, p->depth, least(PANEL, end - behind));
        else if (p->a_turned && next > 0)
            fetch_later(&t, a + BLOCK, p->a_stride, p->depth * (at - column) / (end - column), p->depth * (behind - column) / (end - column), next);
        panel_run(p, t, row, b + (at - column) * units, at, end);
    }
}

static void part_run(const struct gang_cpu_product *p, const struct part *part) {
    const int64_t fits = (int64_t)CHUNK * GANG_CPU_PRODUCT_COLUMNS / units_of(p->depth) / PANEL * PANEL;
    assert(fits && "a panel of a plain operand must fit");
    for (int64_t column = part->column, end; column < part->column_end; column = end) {
        end = p->b_form == GANG_CPU_B_PACKED ? part->column_end : least(column + fits, part->column_end);
        for (int64_t row = part->row; row < part->row_end; row += BLOCK) block_run(p, part, row, column, end);
    }
}

// What threads pack grows with the sides of their parts: the grid with the shortest sides.
static struct part part_of(const struct gang_cpu_product *p, int64_t thread, int64_t threads) {
    int64_t down = (p->rows + ROWS - 1) / ROWS, across = (p->columns + STRIP - 1) / STRIP, high = threads;
    for (int64_t n = 1; n < threads && p->b_form != GANG_CPU_B_PACKED; n++)
        if (threads % n == 0 && p->rows / n + p->columns / (threads / n) < p->rows / high + p->columns / (threads / high)) high = n;
    int64_t wide = threads / high, i = thread / wide, j = thread % wide;
    uint32_t *own = p->own + thread * GANG_CPU_PRODUCT_OWN;
    return (struct part){.row = down * i / high * ROWS,
                         .row_end = least(down * (i + 1) / high * ROWS, p->rows),
                         .column = across * j / wide * STRIP,
                         .column_end = least(across * (j + 1) / wide * STRIP, p->columns),
                         .a = own,
                         .b = own + CHUNK * BLOCK};
}

void CPU_NAME(gang_cpu_multiply)(struct gang_device *device, const struct gang_cpu_product *p) {
#pragma omp parallel num_threads(device->threads)
    {
        struct part part = part_of(p, omp_get_thread_num(), omp_get_num_threads());
        // What is packed is packed for a chunk at a time, where C can take a partial sum.
        int64_t step = p->b_form != GANG_CPU_B_PACKED && p->c_f32 ? CHUNK * UNIT : p->depth;
        for (int64_t k = 0; k < p->depth; k += step) {
            struct gang_cpu_product chunk = *p;
            chunk.depth = least(step, p->depth - k);
            chunk.a = (const act *)p->a + (p->a_turned ? k * p->a_stride : k);
            chunk.b = p->b_form == GANG_CPU_B_TURNED || !k ? (const act *)p->b + k : (const act *)p->b + k * p->b_stride;
            chunk.add = p->add || k;
            part_run(&chunk, &part);
        }
        fence();
    }
}

// ---- Weights -------------------------------------------------------------------------------------------------------

// Rows [o, o + STRIP) and columns [i, i + STRIP * UNIT) of the masters into both packed forms.
static void pack_tile(uint32_t *forward, uint32_t *input, const float *master, int64_t o, int64_t i, int64_t out, int64_t in) {
    union square s = {{{0}}}, pairs;
    for (int64_t r = 0; r < least(STRIP, out - o); r++)
        for (int64_t c = 0; c < STRIP * UNIT && i + c < in; c += VL)
            store_act(&s.rows[r][c], load_f32(master + (o + r) * in + i + c, in - i - c), VL);
    turn_into(forward, &s, o, out, i / UNIT, units_of(in), true);
#ifdef ACT_BF16
    for (int64_t c = 0; c < STRIP * UNIT && i + c < in; c += STRIP) {
        for (int64_t u = 0; u < STRIP / UNIT; u++)
            for (int64_t j = 0; j < STRIP; j++) pairs.units[u][j] = s.rows[2 * u][c + j] | (uint32_t)s.rows[2 * u + 1][c + j] << 16;
        put_strip(input, &pairs, i + c, in, o / UNIT, least(STRIP / UNIT, units_of(out) - o / UNIT), units_of(out), true);
    }
#else
    (void)input, (void)pairs;
#endif
}

// A strip of rows is stepped as the one stream it is, and packed while it is in the cache.
void CPU_NAME(gang_cpu_pack_weight)(struct gang_device *device, void *forward, void *input, float *master, const struct gang_cpu_step *step,
                                    int64_t out, int64_t in) {
#pragma omp parallel num_threads(device->threads)
    {
#pragma omp for schedule(static) nowait
        for (int64_t o = 0; o < out; o += STRIP) {
            if (step) CPU_NAME(gang_cpu_adamw)(master, step, o * in, least(STRIP, out - o) * in);
            for (int64_t i = 0; i < in; i += STRIP * UNIT) pack_tile(forward, input, master, o, i, out, in);
        }
        fence();
    }
}
