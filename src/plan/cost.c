// What a chunk of layers costs: a roofline per operator, exchanges by size and tier, memory by kind.
//
// Every operator of a layer is priced by itself: a product by gang_matmul_seconds, attention at the fused kernel's rate,
// everything else (norms, residual, rotation, activation, casts) by the bytes it moves. A device's own figures come from
// its kind; the constants below hold for all kinds and are named with where they come from.
#include "plan/plan.h"

#include <assert.h>
#include <math.h>
#include <stddef.h>
#include <string.h>

// Bus bandwidth of large NCCL all-reduces: 360 to 370 of 450 GB/s over NVSwitch, 44 to 46 of 50 GB/s over 400 Gbit/s NICs (nccl-tests).
static const double fast_reach = 0.80, nic_reach = 0.88;
// Seconds a hop adds to a ring inside the high-bandwidth domain, and that a kernel's start adds between two kernels of one queue.
static const double fast_latency = 1.5e-6, kernel_gap = 1.5e-6;
// Fraction of its speed that computing loses while an exchange runs beside it: NCCL's kernels hold 16 to 24 of 132 cores and bandwidth.
static const double exchange_steals = 0.12;
// Seconds before a tile's sums run at full speed and after they end: two ways to memory and back, some 0.5 us each under load (our estimate).
static const double tile_start = 1e-6;
// Part of an exchange that goes on in pieces behind its products and does not lengthen the step: smaller products, cores and memory lent to
// the copies take the rest. Asynchronous tensor parallelism gained 8 % (discuss.pytorch.org/t/209487) where we price the exchange at 17 %.
static const double overlap_hides = 0.5;
// Standard deviation of the speed of like devices at products: whiskers 8 % apart are 5.4 of them (arXiv:2208.11035, abstract). A step waits
// for the slowest device.
static const double device_spread = 0.015;
// Backward of fused attention makes the scores again: 5 products for the forward's 2 (FlashAttention-2, arXiv:2307.08691 section 3.1).
static const double attention_backward = 2.5;

// The first generation of fused attention reaches 25 to 40 % of A100's peak where the second reaches 50 to 73 % (same paper, abstract).
static const double first_generation = 0.53;

// Of PCIe's and of a host memory's stated bandwidth what large copies and an update hold: 25 to 26 of 32 GB/s (CUDA's bandwidthTest on
// A100), and 75 to 85 % by STREAM.
static const double host_reach = 0.80;

// Parameters of a bucket of gradients that leaves behind the backward pass, the least and for each member: Megatron-LM's default
// (core/distributed/distributed_data_parallel.py). Buckets go one after another, and each pays the way's latency.
static const double bucket_least = 40e6, bucket_per_member = 1e6;

// Passes whose activations are on the device where they are offloaded: the one that is computed, and one that leaves or comes back. Both may
// go on at once, in opposite directions of the link: what comes back follows, layer by layer, into the room that what leaves gives up.
const double gang_passes_here = 2;

enum { ELEMENT = 2 }; // bytes of an activation or a weight in use; f32: see element_of

static double gradient_element(const struct gang_layout *l) { return l->gradients == GANG_GRADIENTS_BF16 ? 2 : 4; }

static double element_of(const struct gang_task *task) { return task->math == GANG_MATH_F32 ? 4 : ELEMENT; }

double gang_time_sum(const struct gang_time *t) { return t->matmul + t->attention + t->vector + t->tensor + t->expert + t->context + t->gather; }

// ---- Exchanges -----------------------------------------------------------------------------------------------------

double gang_cost_ring_reduce_scatter(int64_t n, double bytes, double bandwidth, double latency) {
    return n < 2 ? 0 : (double)(n - 1) * (bytes / (double)n / bandwidth + latency);
}
double gang_cost_ring_all_reduce(int64_t n, double bytes, double bandwidth, double latency) {
    return 2 * gang_cost_ring_reduce_scatter(n, bytes, bandwidth, latency);
}
double gang_cost_all_to_all(int64_t n, double bytes, double bandwidth, double latency) {
    return n < 2 ? 0 : (double)(n - 1) / (double)n * bytes / bandwidth + latency;
}

// Bandwidth of one device into a group of `members` whose neighbours are `stride` devices apart: the fast network when all lie
// in one domain; otherwise rings that leave the domain by the NICs of the members in it.
struct tier {
    double bandwidth, latency;
    int64_t local; // members inside one fast domain
};

static struct tier tier_of(const struct gang_group *group, int64_t members, int64_t stride) {
    assert(group); // a price that nobody filled
    struct tier tier = {.local = group->fast_domain / stride};
    if (tier.local < 1) tier.local = 1;
    if (tier.local > members) tier.local = members;
    double fast = group->fast_bandwidth * fast_reach;
    if (tier.local == members) {
        tier.bandwidth = fast;
        tier.latency = fast_latency;
        return tier;
    }
    double nic = group->nic_bandwidth * nic_reach;
    // Beyond a leaf switch, its uplinks are shared.
    if (group->leaf_nodes && members * stride > group->leaf_nodes * group->devices) nic /= group->oversubscription;
    tier.bandwidth = gang_smaller(fast, nic * (double)tier.local);
    tier.latency = group->nic_latency / (double)tier.local + fast_latency;
    return tier;
}

// ---- Operators -----------------------------------------------------------------------------------------------------

// The largest of n numbers drawn from a normal distribution, in its standard deviations: the expectation's first terms.
static double largest_of(double n) {
    double width = sqrt(2 * log(n));
    return n < 2 ? 0 : width - (log(log(n)) + log(4 * M_PI)) / (2 * width);
}

// All that pricing a layer needs, worked out once.
struct pricing {
    const struct gang_task *task;
    const struct gang_layout *l;
    const struct gang_group *group;
    const struct gang_kind *kind;
    int tp;
    double M, element, memory; // tokens on one device; bytes of an element; bytes/s
    double stream;             // the part of the residual stream a device holds: 1 or 1 / tp
    double slowest;            // of the group's devices: its time for what the middle one does in 1
};

static struct pricing pricing_of(const struct gang_task *task, const struct gang_layout *l, int tp, int micro_batch, const struct gang_group *group) {
    return (struct pricing){.task = task,
                            .l = l,
                            .group = group,
                            .kind = group->kind,
                            .tp = tp,
                            .M = (double)micro_batch * (double)task->sequence_length / l->cp,
                            .element = element_of(task),
                            .memory = group->kind->memory_bandwidth * group->kind->memory_reach,
                            .stream = l->sequence_parallel ? 1.0 / tp : 1.0,
                            .slowest = 1 + device_spread * largest_of((double)(group->nodes * group->devices))};
}

// Seconds of y[M,N] = x[M,K] W[N,K], whose elements take `written` bytes of memory traffic: roofline with waves and tile edges. A tile's
// result is written when its sum is done, so that time stands beside the sums' (a block is a whole core's; persistent kernels hide some).
static double product_seconds(const struct pricing *p, enum gang_math math, double M, double N, double K, double written) {
    // Tiles that libraries choose from, with the share of the inner loop's speed each keeps.
    static const struct { double m, n, speed; } tiles[] = {{128, 256, 1}, {128, 128, 0.92}, {64, 128, 0.75}};
    double rate = p->kind->peak[math] * p->kind->reach[math] / p->slowest, sums = 2 * M * N * K / rate;
    for (int i = 0; i < 3 && p->kind->cores; i++) {
        double cores = (double)p->kind->cores, waves = ceil(ceil(M / tiles[i].m) * ceil(N / tiles[i].n) / cores);
        double seconds = waves * (cores * tiles[i].m * tiles[i].n * 2 * K / (rate * tiles[i].speed) + tile_start);
        sums = i ? gang_smaller(sums, seconds) : seconds;
    }
    double operands = (math == GANG_MATH_F32 ? 4 : math == GANG_MATH_F8 ? 1 : 2) * (M * K + N * K) / p->memory, result = written * M * N / p->memory;
    return gang_larger(sums, operands) + result + kernel_gap;
}

// A product that is cut by tensor parallelism, and by expert parallelism its rows: forward, and the two of backward.
static void price_matrix(const struct pricing *p, const struct gang_matrix *m, struct gang_chunk_cost *out) {
    double N = (double)m->out, K = (double)m->in, rows = p->M * (double)m->active, copies = 1, result = p->element;
    if (m->cut == GANG_CUT_OUT) N /= p->tp;
    if (m->cut == GANG_CUT_IN) K /= p->tp;
    if (m->expert) { // a grouped product: each expert here sees its part of the rows
        copies = (double)m->stored / p->l->ep;
        rows /= copies;
    }
    out->forward.matmul += copies * product_seconds(p, p->task->math, rows, N, K, result);
    out->input.matmul += copies * product_seconds(p, p->task->math, rows, K, N, result);
    // Where micro-batches are summed on the device, the product adds to what stands there.
    double summed = p->l->zero >= 2 ? p->element : 2 * gradient_element(p->l);
    out->weight.matmul += copies * product_seconds(p, p->task->math, N, K, rows, summed);
    if (p->task->math == GANG_MATH_F8) {
        // Casts: each operand is read in two bytes and written in one, twice (as it is and transposed). Rows that have a scale each are
        // another tensor when transposed: each of the two reads its operand for the largest value first, and weights are cast every time.
        bool rows_scaled = p->l->scaling == GANG_SCALING_ROWS;
        double each = rows_scaled ? 10 : 4;
        out->forward.vector += copies * rows * K * each / p->memory;
        out->input.vector += copies * rows * N * each / p->memory;
        if (rows_scaled) out->forward.vector += copies * N * K * each / p->memory;
    }
}

static void price_attention(const struct pricing *p, struct gang_chunk_cost *out) {
    const struct gang_shape *s = &p->task->shape;
    enum gang_math math = p->task->math == GANG_MATH_F32 ? GANG_MATH_F32 : GANG_MATH_F16;
    // The causal half of 2 T (qk_dim + v_dim) per head and token.
    double flops = p->M * (double)p->task->sequence_length * (double)(s->heads * (s->qk_dim + s->v_dim)) / p->tp;
    double rate = p->kind->peak[math] * p->kind->attention_reach * (p->l->attention == GANG_ATTENTION_FIRST ? first_generation : 1);
    double seconds = flops / rate * p->slowest + kernel_gap;
    if (p->l->attention == GANG_ATTENTION_UNFUSED) {
        // Two batched products over the whole square, and its scores through memory: written, read and written by softmax and by dropout,
        // read again: 13 bytes in two-byte numbers.
        double scores = p->M * (double)p->task->sequence_length * (double)s->heads / p->tp;
        seconds = 2 * flops / (p->kind->peak[math] * p->kind->reach[math]) + 6.5 * p->element * scores / p->memory + 4 * kernel_gap;
        out->forward.attention += seconds;
        out->input.attention += 2 * seconds;
        return;
    }
    out->forward.attention += seconds;
    out->input.attention += attention_backward * seconds;
    if (p->l->cp > 1) { // keys and values go round a ring behind the blocks already there
        double bytes = p->M * (double)(s->kv_heads * (s->qk_dim + s->v_dim)) / p->tp * p->element;
        struct tier tier = tier_of(p->group, p->l->cp, p->tp);
        double ring = (p->l->cp - 1) * (bytes / tier.bandwidth + tier.latency);
        out->forward.context += gang_larger(0, ring - seconds * (p->l->cp - 1) / p->l->cp);
        out->input.context += gang_larger(0, 2 * ring - attention_backward * seconds * (p->l->cp - 1) / p->l->cp);
    }
}

// Bytes a token moves in norms, residual additions, rotation and the feed-forward activation of one layer's forward pass.
static double vector_bytes(const struct pricing *p, bool moe) {
    const struct gang_shape *s = &p->task->shape;
    double tp = p->tp, C = (double)s->hidden, F = (double)(moe ? s->expert_ffn * s->experts_per_token + s->shared_ffn : s->ffn);
    double norms = 2 * (2 * C + 3 * C) * p->stream; // read and write; the addition reads two and writes one
    double rotation = s->positions ? 0 : 2 * (double)((s->heads + s->kv_heads) * s->qk_dim) / tp;
    double activation = (s->gated ? 3 : 2) * F / tp;
    if (!p->l->fused) {
        // What attention takes and gives is copied into another order. Where no kernel does it as one (RMSNorm, rotation, a gate), norms go
        // through f32 and back (8 bytes more an element than the 4 of one pass) and each operation is a pass of its own.
        double attention = (double)(2 * s->heads * s->v_dim + s->heads * s->qk_dim + s->kv_heads * (s->qk_dim + s->v_dim)) / tp;
        if (s->gated) norms = 2 * (2 * C + 4 * C + 3 * C) * p->stream + 2 * (2 * F / tp + 2 * C * p->stream), activation += 2 * F / tp;
        rotation *= 3;
        norms += 2 * attention;
    }
    // Copies of tokens are put in order for their devices and back, and where a device has several experts for these, gathered over tp.
    double order = s->experts > p->l->ep ? 4 : 0, routing = moe ? (4 * p->stream + order) * C * (double)s->experts_per_token : 0;
    return p->element * (norms + rotation + activation + routing);
}

// An exchange beside products of `seconds`: whole before or after them, or in tp pieces behind them.
static double exposed(const struct pricing *p, double exchange, double seconds) {
    return exchange - (p->l->tp_overlap ? overlap_hides * gang_smaller(exchange, seconds) : 0);
}

static void price_exchanges(const struct pricing *p, bool moe, struct gang_chunk_cost *out) {
    const struct gang_shape *s = &p->task->shape;
    const struct gang_layout *l = p->l;
    if (p->tp > 1) {
        struct tier tier = tier_of(p->group, p->tp, 1);
        double bytes = p->M * (double)s->hidden * p->element;
        // Attention and feed-forward; experts that are cut exchange every copy of a token.
        double copies = moe ? (double)s->experts_per_token : 1;
        double both = gang_cost_ring_all_reduce(p->tp, bytes, tier.bandwidth, tier.latency) +
                      gang_cost_ring_all_reduce(p->tp, copies * bytes, tier.bandwidth, tier.latency);
        out->forward.tensor += exposed(p, both, out->forward.matmul);
        out->input.tensor += exposed(p, both, out->input.matmul);
        // With sequence parallelism the inputs are gathered once more for the weights' gradients, behind the input's product.
        if (l->sequence_parallel) out->weight.tensor += gang_larger(0, both / 2 - out->weight.matmul);
    }
    if (moe && l->ep > 1) {
        struct tier tier = tier_of(p->group, l->ep, p->tp * l->cp);
        double bytes = p->M * (double)(s->experts_per_token * s->hidden) * p->element * p->stream;
        // No ring here: what leaves the domain leaves by the device's own NIC.
        double away = (double)(l->ep - tier.local) / l->ep * bytes / (p->group->nic_bandwidth * nic_reach);
        double near = (double)(tier.local - 1) / l->ep * bytes / (p->group->fast_bandwidth * fast_reach);
        double both = 2 * (gang_larger(away, near) + tier.latency * (double)(l->ep - 1));
        out->forward.expert += both;
        out->input.expert += both;
    }
}

// ---- Memory and parameters -----------------------------------------------------------------------------------------

static double parameters_on_device(const struct pricing *p, bool moe, double *expert) {
    struct gang_matrix matrices[GANG_MAX_MATRICES];
    int n = gang_shape_matrices(&p->task->shape, moe, matrices);
    double sum = 2 * (double)p->task->shape.hidden;
    *expert = 0;
    for (int i = 0; i < n; i++) {
        double count = (double)(matrices[i].stored * matrices[i].out) * (double)matrices[i].in / (matrices[i].cut == GANG_CUT_NONE ? 1 : p->tp);
        if (matrices[i].expert)
            *expert += count / p->l->ep;
        else
            sum += count;
    }
    return sum;
}

// Bytes one layer keeps for the backward pass; fused attention keeps one number a row and head. Korthikanti et al. 2022
// (arXiv:2205.05198) count the same tensors without dropout, with unfused attention beside them.
static double kept_bytes(const struct pricing *p, bool moe, enum gang_recompute recompute) {
    const struct gang_shape *s = &p->task->shape;
    double tp = p->tp, C = (double)s->hidden, F = (double)(moe ? s->expert_ffn * s->experts_per_token + s->shared_ffn : s->ffn);
    double stream = C * p->element * p->stream; // one tensor of the residual stream
    if (recompute == GANG_RECOMPUTE_FULL) return p->M * stream;
    double heads = (double)(s->heads * (s->qk_dim + s->v_dim) + s->kv_heads * (s->qk_dim + s->v_dim)) / tp * p->element;
    double sums = 4.0 * (double)s->heads / tp;
    double up = (s->gated ? 2 : 1) * F / tp * p->element, down = F / tp * p->element;
    double routed = moe ? C * (double)s->experts_per_token * p->element * p->stream : 0;
    double again = 2 * stream + down; // norms' results and the activation's: made again when selective
    if (p->l->attention == GANG_ATTENTION_UNFUSED && recompute == GANG_RECOMPUTE_NONE) // scores, softmax and dropout's mask
        sums += (2 * p->element + 1) * (double)p->task->sequence_length * (double)s->heads / tp;
    // Every second product's result; a compiler does not keep the last one's, which nothing asks for.
    if (recompute == GANG_RECOMPUTE_ALTERNATE) return p->M * ((p->l->fused ? 2 : 3) * stream + (heads + up) / 2 + sums + routed);
    return p->M * (2 * stream + heads + sums + up + routed + (recompute == GANG_RECOMPUTE_SELECTIVE ? 0 : again));
}

// ---- A layer, the ends, a chunk ------------------------------------------------------------------------------------

static void scale_time(struct gang_time *to, const struct gang_time *from, double by) {
    double *a = (double *)to;
    const double *b = (const double *)from;
    for (size_t i = 0; i < sizeof *to / sizeof *a; i++) a[i] += by * b[i];
}

// What is made again is made in the input's half.
static void make_again(const struct pricing *p, enum gang_recompute recompute, double vector, struct gang_chunk_cost *out) {
    struct gang_time forward = out->forward;
    if (recompute == GANG_RECOMPUTE_SELECTIVE || recompute == GANG_RECOMPUTE_ALTERNATE) out->input.vector += vector;
    if (recompute == GANG_RECOMPUTE_SELECTIVE && p->l->attention == GANG_ATTENTION_UNFUSED) out->input.attention += forward.attention;
    if (recompute == GANG_RECOMPUTE_ALTERNATE) {
        out->input.matmul += forward.matmul / 2;
        out->input.tensor += forward.tensor / 2; // what was scattered is kept, what was gathered is not
    }
    if (recompute == GANG_RECOMPUTE_FULL) scale_time(&out->input, &forward, 1);
}

// out[recompute][moe]
static void price_layer(const struct pricing *p, bool moe, struct gang_chunk_cost (*out)[2]) {
    struct gang_chunk_cost cost = {.layers = 1};
    struct gang_matrix matrices[GANG_MAX_MATRICES];
    int n = gang_shape_matrices(&p->task->shape, moe, matrices);
    double expert = 0;
    for (int i = 0; i < n; i++) price_matrix(p, &matrices[i], &cost);
    price_attention(p, &cost);
    double vector = p->M * vector_bytes(p, moe) / p->memory + 6 * kernel_gap;
    cost.forward.vector += vector;
    cost.input.vector += 2 * vector; // reads what the forward wrote, and its gradient
    price_exchanges(p, moe, &cost);
    cost.parameters = parameters_on_device(p, moe, &expert) + expert;
    cost.expert_parameters = expert;
    for (int recompute = 0; recompute < GANG_RECOMPUTES; recompute++) {
        out[recompute][moe] = cost;
        make_again(p, recompute, vector, &out[recompute][moe]);
        out[recompute][moe].activation_bytes = kept_bytes(p, moe, recompute);
    }
}

// The embedding on the first chunk, the head and the loss on the last.
static void price_ends(const struct pricing *p, struct gang_chunk_cost *first, struct gang_chunk_cost *last) {
    const struct gang_shape *s = &p->task->shape;
    double C = (double)s->hidden, V = (double)s->vocab / p->tp, stream = p->M * C * p->element * p->stream;
    *first = (struct gang_chunk_cost){.parameters = V * C + (double)s->positions * C};
    first->forward.vector = 2 * stream / p->memory;
    first->weight.vector = 3 * stream / p->memory;
    enum gang_math math = p->task->math == GANG_MATH_F32 ? GANG_MATH_F32 : GANG_MATH_F16;
    *last = (struct gang_chunk_cost){.parameters = C + V * C, .activation_bytes = stream + p->M * V * 4};
    last->forward.matmul = product_seconds(p, math, p->M, V, C, p->element);
    last->input.matmul = product_seconds(p, math, p->M, C, V, p->element);
    last->weight.matmul = product_seconds(p, math, V, C, p->M, p->element);
    // Logits are made f32, read for the sum, and become their own gradient; every step by itself where nothing is fused.
    last->forward.vector = p->M * V * (p->l->fused ? 10 : 22) / p->memory;
    last->input.vector = p->M * V * (p->l->fused ? 6 : 18) / p->memory;
    if (p->tp > 1) {
        struct tier tier = tier_of(p->group, p->tp, 1);
        double both = gang_cost_ring_all_reduce(p->tp, p->M * C * p->element, tier.bandwidth, tier.latency);
        last->forward.tensor = both / 2;
        last->input.tensor = both / 2;
    }
}

// Bytes of weights, gradients and optimizer on one device: mixed precision keeps 2 + 4 + 12 a parameter (ZeRO,
// arXiv:1910.02054, with gradients summed in f32), f32 keeps 4 + 4 + 8.
static void weigh(const struct gang_task *task, const struct gang_layout *l, struct gang_chunk_cost *out) {
    bool mixed = task->math != GANG_MATH_F32;
    int zero = l->zero;
    // An expert's copies are fewer by ep, and so are those that share its state.
    double width = (double)l->dp * l->cp, sharded = (out->parameters + out->expert_parameters * (l->ep - 1)) / width;
    // With all sharded (FSDP) the optimizer's f32 weights are the only ones kept: what is gathered is made of them.
    out->parameter_bytes = ((zero < 3 ? out->parameters : mixed ? 0 : sharded) + out->copied_parameters) * (mixed ? 2 : 4);
    out->gradient_bytes = ((zero >= 2 ? sharded : out->parameters) + out->copied_parameters) * gradient_element(l);
    out->optimizer_bytes = (zero >= 1 ? sharded : out->parameters) * (mixed ? 12 : 8);
}

void gang_price_fill(const struct gang_task *task, const struct gang_layout *l, int tp, int micro_batch, const struct gang_group *group,
                     struct gang_price *out) {
    struct pricing p = pricing_of(task, l, tp, micro_batch, group);
    *out = (struct gang_price){.group = group, .tp = tp};
    if (task->shape.dense_layers || !task->shape.experts) price_layer(&p, false, out->layer);
    if (task->shape.experts) price_layer(&p, true, out->layer);
    price_ends(&p, &out->first, &out->last);
    if (group->kind->times) gang_price_measured(group->kind->times, l, micro_batch, out);
}

void gang_prices_fill(const struct gang_task *task, const struct gang_pool *pool, const struct gang_layout *l, struct gang_arena *arena,
                      struct gang_prices *out) {
    int widths[GANG_MAX_STAGES], groups = pool->group_count;
    *out = (struct gang_prices){.groups = groups};
    for (int s = 0; s < l->width_count || !s; s++) {
        int row = 0;
        while (row < out->rows && widths[row] != gang_tp_of(l, s)) row++;
        if (row == out->rows) widths[out->rows++] = gang_tp_of(l, s);
    }
    for (int i = 0; i < l->size_count || !i; i++) {
        struct gang_price *prices = gang_arena_alloc(arena, (size_t)(out->rows * groups) * sizeof *prices);
        for (int at = 0; at < out->rows * groups; at++)
            gang_price_fill(task, l, widths[at / groups], gang_layout_size(l, i), pool->groups[at % groups], &prices[at]);
        out->at[i] = prices;
    }
}

const struct gang_price *gang_prices_of(const struct gang_prices *prices, const struct gang_layout *l, const struct gang_class *class, int stage) {
    const struct gang_price *price = &prices->at[l->size_count ? class->kind : 0][class->groups[stage]];
    int row = 0;
    while (price->tp != gang_tp_of(l, stage) && ++row < prices->rows) price += prices->groups;
    assert(row < prices->rows);
    return price;
}

// All that adds up stands in front: three times, then bytes and parameters.
enum { ADDED = offsetof(struct gang_chunk_cost, copied_parameters) / sizeof(double) };

static void add_cost(struct gang_chunk_cost *to, const struct gang_chunk_cost *from, double n) {
    double *a = (double *)to;
    const double *b = (const double *)from;
    for (int i = 0; i < ADDED; i++) a[i] += n * b[i];
}

// What sharding exchanges in every micro-batch for n layers: gradients (zero=2), and weights for each pass (zero=3), beside the neighbours'
// computing. What is longer than the computing shows; what is hidden still steals from it.
static void add_sharding(const struct gang_layout *l, const struct gang_price *price, const struct gang_chunk_cost *layer, double n,
                         struct gang_chunk_cost *out) {
    if (l->zero < 2 || l->dp < 2) return;
    const struct gang_group *group = price->group;
    struct tier tier = tier_of(group, l->dp, l->place == GANG_PLACE_REPLICAS ? gang_cells_devices(l, 0, l->pp) : (int64_t)price->tp * l->cp);
    double hops = tier.latency * (l->dp - 1), part = (double)(l->dp - 1) / l->dp; // rings (NCCL before 2.23)
    double gather = part * layer->parameters * ELEMENT / tier.bandwidth + hops;
    double reduce = part * layer->parameters * gradient_element(l) / tier.bandwidth + hops;
    // Through memory: weights arrive, go on, and are copied to where the products read them; gradients are copied out in the type they
    // are summed in, and every sum reads two and writes one.
    double per_byte = layer->parameters / (group->kind->memory_bandwidth * group->kind->memory_reach);
    double arrive = 4 * ELEMENT * per_byte, leave = (ELEMENT + 4 * gradient_element(l)) * per_byte;
    double forward = gang_time_sum(&layer->forward), backward = gang_time_sum(&layer->input) + gang_time_sum(&layer->weight);
    if (l->zero < 3) gather = arrive = 0;
    out->forward.gather += n * (arrive + gang_larger(gather * exchange_steals, gather - forward));
    out->input.gather += n * (arrive + leave + gang_larger((gather + reduce) * exchange_steals, gather + reduce - backward));
}

void gang_price_chunk(const struct gang_task *task, const struct gang_layout *l, const struct gang_price *price, enum gang_recompute recompute,
                      int64_t dense, int64_t moe, bool first, bool last, struct gang_chunk_cost *out) {
    const struct gang_chunk_cost *layer = price->layer[recompute];
    double *sums = (double *)out;
    const double *all = (const double *)&layer[0];
    for (int i = 0; i < ADDED; i++) sums[i] = (double)dense * all[i];
    out->copied_parameters = out->host_bytes = out->copy_seconds = 0;
    out->layers = (int)(dense + moe);
    if (moe) add_cost(out, &layer[1], (double)moe);
    if (dense) add_sharding(l, price, &layer[0], (double)dense, out);
    if (moe) add_sharding(l, price, &layer[1], (double)moe, out);
    if (first) add_cost(out, &price->first, 1);
    if (last) add_cost(out, &price->last, 1);
    if (last && task->shape.tied) { // on one stage a tied head is the embedding; on another it is a copy, updated by the first stage
        double head = (double)task->shape.vocab / price->tp * (double)task->shape.hidden;
        out->parameters -= head;
        out->copied_parameters = first ? 0 : head;
    }
    weigh(task, l, out);
}

// A device's part of what its node's memory reads and writes a second.
static double host_bandwidth(const struct gang_group *group) { return group->host_bandwidth / (double)group->devices * host_reach; }

double gang_copy_seconds(const struct gang_group *group, double bytes) {
    return bytes / gang_smaller(group->kind->host_link * host_reach, host_bandwidth(group));
}

// Dense layers of a chunk: all of them, or those of the first that are dense although others have experts.
int64_t gang_chunk_dense(const struct gang_task *task, const struct gang_layout *l, int chunk) {
    int64_t n = l->layers[chunk], left = task->shape.dense_layers;
    if (!task->shape.experts) return n;
    for (int c = 0; c < chunk && left > 0; c++) left -= l->layers[c];
    return left < 0 ? 0 : left > n ? n : left;
}

bool gang_stage_repeats(const struct gang_task *task, const struct gang_layout *l, int stage) {
    if (stage < 2 || stage > l->pp - 2 || gang_of_stage(&l->recompute, stage) != gang_of_stage(&l->recompute, stage - 1) ||
        gang_of_stage(&l->offload, stage) != gang_of_stage(&l->offload, stage - 1) || gang_tp_of(l, stage) != gang_tp_of(l, stage - 1))
        return false;
    for (int c = stage; c < l->layer_count; c += l->pp)
        if (l->layers[c] != l->layers[c - 1] || gang_chunk_dense(task, l, c) != gang_chunk_dense(task, l, c - 1)) return false;
    return true;
}

bool gang_chunk_repeats(const struct gang_task *task, const struct gang_layout *l, int chunk) {
    int before = chunk - l->pp;
    return before > 0 && chunk < l->layer_count - 1 && l->layers[chunk] == l->layers[before] &&
           gang_chunk_dense(task, l, chunk) == gang_chunk_dense(task, l, before);
}

void gang_chunk_of(const struct gang_task *task, const struct gang_layout *l, const struct gang_price *price, int chunk,
                   struct gang_chunk_cost *out) {
    int64_t n = l->layers[chunk], dense = gang_chunk_dense(task, l, chunk);
    gang_price_chunk(task, l, price, gang_of_stage(&l->recompute, chunk % l->pp), dense, n - dense, chunk == 0, chunk == l->layer_count - 1, out);
    int offload = gang_of_stage(&l->offload, chunk % l->pp);
    if (offload & GANG_OFFLOAD_ACTIVATIONS) out->copy_seconds = gang_copy_seconds(price->group, out->activation_bytes);
    if (!(offload & GANG_OFFLOAD_OPTIMIZER)) return;
    out->host_bytes = out->optimizer_bytes;
    out->optimizer_bytes = 0;
}

// ---- Exchanges of gradients and weights ----------------------------------------------------------------------------

// Whether the replicas of a stage lie in more than one site, and how many of them each link's far side counts.
static int sites_of(const struct gang_pool *pool, const struct gang_placement *placement, int stage, int64_t members[GANG_MAX_SITES]) {
    int sites = 0;
    memset(members, 0, GANG_MAX_SITES * sizeof *members);
    for (int c = 0; c < placement->class_count; c++) {
        int site = pool->groups[placement->classes[c].groups[stage]]->site;
        sites += members[site] == 0;
        members[site] += placement->classes[c].replicas;
    }
    return sites;
}

void gang_ways_of(const struct gang_pool *pool, const struct gang_layout *l, const struct gang_placement *placement, int stage,
                  struct gang_ways *out) {
    int64_t members[GANG_MAX_SITES], stride = l->place == GANG_PLACE_REPLICAS ? gang_cells_devices(l, 0, l->pp) / l->cp : gang_tp_of(l, stage);
    int sites = sites_of(pool, placement, stage, members);
    out->members = (double)((int64_t)l->dp * l->cp);
    out->lanes = gang_tp_of(l, stage);
    out->bandwidth = INFINITY;
    out->latency = out->nic_share = out->delay = 0;
    out->links = 0;
    for (int c = 0; c < placement->class_count; c++) {
        const struct gang_group *group = pool->groups[placement->classes[c].groups[stage]];
        int64_t here = members[group->site] * l->cp;
        struct tier tier = tier_of(group, here, stride);
        out->bandwidth = gang_smaller(out->bandwidth, tier.bandwidth);
        // Trees over nodes: hops grow with the logarithm (NCCL).
        out->latency = gang_larger(out->latency,
                                   tier.latency * (double)(tier.local - 1) + 2 * group->nic_latency * log2((double)here / (double)tier.local));
        if (here > tier.local) out->nic_share = gang_larger(out->nic_share, (double)(here - 1) / (double)here / (double)tier.local);
    }
    // Sites on a line in the file's order; each crossing carries the site's sum once in each direction.
    for (int s = 0, before = -1; s < pool->sites.count && sites > 1; s++) {
        if (!members[s]) continue;
        const struct gang_route *route = before < 0 ? NULL : gang_pool_route(pool, before, s);
        for (int i = 0; route && i < route->count; i++) out->link[out->links++] = route->links[i];
        if (route) out->delay += route->delay;
        before = s;
    }
}

// One direction of a hierarchical exchange: scatter inside each site, the shards once around over the long links, gather.
// `bytes`: of one member's device. Over a link goes, for every device of a cell, its whole buffer once per neighbour on the ring of sites.
static void exchange_price(const struct gang_pool *pool, const struct gang_layout *l, const struct gang_ways *ways, double parameters, double element,
                           int passes, struct gang_exchange *out) {
    double bytes = parameters * element, crossing = 0, over = passes / 2.0 * bytes * ways->lanes;
    double buckets = l->dp_overlap ? gang_larger(ceil(parameters / gang_larger(bucket_least, bucket_per_member * ways->members)), 1) : 1;
    out->bytes = bytes;
    if (ways->members < 2 || bytes <= 0) return;
    out->nic_bytes = passes * bytes * ways->nic_share;
    for (int i = 0; i < ways->links; i++) {
        out->link_bytes[ways->link[i]] += over;
        crossing += over / gang_pool_link(pool, ways->link[i])->bandwidth;
    }
    out->latency = ways->latency + passes * ways->delay;
    out->fast_seconds = passes * bytes * (ways->members - 1) / ways->members / ways->bandwidth + buckets * out->latency;
    // Behind the backward pass one bucket crosses while the next is summed inside; whole, one comes after the other.
    if (!l->dp_overlap) out->fast_seconds += crossing;
}

void gang_chunk_exchange(const struct gang_task *task, const struct gang_pool *pool, const struct gang_layout *l, const struct gang_ways *ways,
                         double parameters, struct gang_exchange *reduce, struct gang_exchange *gather) {
    *reduce = *gather = (struct gang_exchange){0};
    if (l->zero >= 3) return;
    if (l->zero < 2) exchange_price(pool, l, ways, parameters, gradient_element(l), l->zero ? 1 : 2, reduce);
    if (l->zero) exchange_price(pool, l, ways, parameters, task->gathers_f32 ? 4 : element_of(task), 1, gather);
}

double gang_exchange_seconds(const struct gang_pool *pool, const struct gang_exchange *x, double sharers) {
    double seconds = x->fast_seconds;
    for (int l = 0; l < pool->links.count; l++)
        if (x->link_bytes[l] > 0) seconds = gang_larger(seconds, x->link_bytes[l] * sharers / gang_pool_link(pool, l)->bandwidth);
    return seconds;
}

// Devices on the line from the first of one stage's cell to the last of the other's, in the replica where that is most.
static int64_t span_of(const struct gang_layout *l, int a, int b) {
    int low = a < b ? a : b, high = a < b ? b : a;
    int64_t first = gang_cell_devices(l, low), last = gang_cell_devices(l, high), between = gang_cells_devices(l, low, high);
    return (l->place == GANG_PLACE_REPLICAS ? between : l->dp * between + (last > first ? (l->dp - 1) * (last - first) : 0)) + last;
}

// A message is the residual stream of a micro-batch, once, in parts: every device of a cell sends or takes as large a one (scatter/gather,
// Narayanan et al. 2021, arXiv:2104.04473 section 4.1; with sequence parallelism these are its own rows). Where one cell is wider, each device
// of the narrower talks to as many of the wider as the widths' quotient, and its own link bounds the rate: parts are cut where both
// sides' rows begin, so nothing is exchanged beside the transfer. Without sequence parallelism each cell then has the whole from its
// parts over its own fast network, which is not priced, whatever the widths.
void gang_hop_between(const struct gang_pool *pool, const struct gang_layout *l, const struct gang_placement *placement, int class_index,
                      int from_stage, int to_stage, struct gang_hop *out) {
    const int *groups = placement->classes[class_index].groups;
    const struct gang_group *from = pool->groups[groups[from_stage]], *to = pool->groups[groups[to_stage]];
    double senders = (double)gang_cell_devices(l, from_stage), receivers = (double)gang_cell_devices(l, to_stage);
    *out = (struct gang_hop){.route = gang_pool_route(pool, from->site, to->site)};
    out->fast = groups[from_stage] == groups[to_stage] && span_of(l, from_stage, to_stage) <= from->fast_domain;
    if (out->fast) {
        out->bandwidth = gang_smaller(senders, receivers) * from->fast_bandwidth * fast_reach;
        out->delay = fast_latency;
        return;
    }
    out->bandwidth = gang_smaller(senders * from->nic_bandwidth, receivers * to->nic_bandwidth) * nic_reach;
    out->delay = gang_larger(from->nic_latency, to->nic_latency) + out->route->delay;
}

double gang_message_bytes(const struct gang_task *task, int micro_batch) {
    return (double)micro_batch * (double)task->sequence_length * (double)task->shape.hidden * element_of(task);
}

// ---- All of it -----------------------------------------------------------------------------------------------------

double gang_optimizer_seconds(const struct gang_task *task, const struct gang_layout *l, const struct gang_group *group, double device_bytes,
                              double host_bytes) {
    // AdamW reads and writes two moments and the master, reads the gradient, writes the weight in use: 28 to 30 bytes a parameter,
    // for each of which the state takes 12 (8 in f32).
    const double of_parameter = task->math == GANG_MATH_F32 ? 8 : 12, moved = 30;
    const struct gang_kind *kind = group->kind;
    double here = device_bytes / of_parameter, there = host_bytes / of_parameter;
    double seconds = here * moved / (kind->memory_bandwidth * kind->memory_reach) + 20 * kernel_gap;
    if (kind->times) seconds = here * kind->times->optimizer;
    if (!(there > 0)) return seconds;
    // One after another: gradients to the host, the update by this device's part of the node, weights back.
    double link = kind->host_link * host_reach;
    return seconds + there * (gradient_element(l) + element_of(task)) / link + there * moved / host_bandwidth(group);
}

static void fill_stage(const struct gang_task *task, const struct gang_pool *pool, const struct gang_layout *l, const struct gang_class *class,
                       const struct gang_price *price, int c, int s, struct gang_costs *out) {
    const struct gang_group *group = pool->groups[class->groups[s]];
    double fixed = 0, state = 0, host = 0, largest = 0;
    int cell = c * out->stages + s;
    for (int chunk = s; chunk < out->chunks; chunk += l->pp) {
        struct gang_chunk_cost *cost = &out->chunk[c * out->chunks + chunk];
        gang_chunk_of(task, l, price, chunk, cost);
        fixed += cost->parameter_bytes + cost->gradient_bytes + cost->optimizer_bytes;
        state += cost->optimizer_bytes;
        host += cost->host_bytes;
        largest = gang_larger(largest, cost->activation_bytes);
    }
    out->stays[cell] = gang_of_stage(&l->offload, s) & GANG_OFFLOAD_ACTIVATIONS ? gang_passes_here * largest : INFINITY;
    out->optimizer_seconds[cell] = gang_optimizer_seconds(task, l, group, state, host);
    out->fixed_bytes[cell] = fixed;
    out->device_bytes[cell] = group->kind->memory_bytes;
    out->host_limit[cell] = group->host_memory / (double)group->devices;
}

void gang_costs_fill(const struct gang_task *task, const struct gang_pool *pool, const struct gang_layout *l, const struct gang_placement *placement,
                     struct gang_arena *arena, struct gang_costs *out) {
    *out = (struct gang_costs){.classes = placement->class_count, .chunks = l->layer_count, .stages = l->pp, .class = placement->classes};
    size_t cells = (size_t)out->classes * (size_t)out->stages;
    out->chunk = gang_arena_alloc(arena, (size_t)out->classes * (size_t)out->chunks * sizeof *out->chunk);
    out->reduce = gang_arena_alloc(arena, (size_t)out->chunks * sizeof *out->reduce);
    out->gather = gang_arena_alloc(arena, (size_t)out->chunks * sizeof *out->gather);
    out->optimizer_seconds = gang_arena_alloc(arena, cells * sizeof(double));
    out->fixed_bytes = gang_arena_alloc(arena, cells * sizeof(double));
    out->device_bytes = gang_arena_alloc(arena, cells * sizeof(double));
    out->host_limit = gang_arena_alloc(arena, cells * sizeof(double));
    out->stays = gang_arena_alloc(arena, cells * sizeof(double));
    out->copy_bytes = task->shape.tied && l->pp > 1 ? 4 * (double)task->shape.vocab * (double)task->shape.hidden : 0;
    out->message_bytes = gang_arena_alloc(arena, (size_t)out->classes * sizeof *out->message_bytes);
    struct gang_prices prices;
    gang_prices_fill(task, pool, l, arena, &prices);
    for (int c = 0; c < out->classes; c++) {
        const struct gang_class *class = &placement->classes[c];
        out->message_bytes[c] = gang_message_bytes(task, class->micro_batch);
        for (int s = 0; s < out->stages; s++) fill_stage(task, pool, l, class, gang_prices_of(&prices, l, class, s), c, s, out);
    }
    for (int stage = 0; stage < l->pp; stage++) {
        struct gang_ways ways;
        gang_ways_of(pool, l, placement, stage, &ways);
        for (int chunk = stage; chunk < out->chunks; chunk += l->pp)
            gang_chunk_exchange(task, pool, l, &ways, gang_costs_chunk(out, 0, chunk)->parameters, &out->reduce[chunk], &out->gather[chunk]);
    }
}

double gang_buffer_bytes(const struct gang_task *task, const struct gang_layout *l, int width, int micro_batch, enum gang_recompute recompute,
                         double layer_parameters) {
    const struct gang_shape *shape = &task->shape;
    double tokens = (double)micro_batch * (double)task->sequence_length / l->cp, e = element_of(task), tp = width, C = (double)shape->hidden;
    double F = (double)(shape->experts ? shape->expert_ffn * shape->experts_per_token + shape->shared_ffn : shape->ffn) / tp * (shape->gated ? 3 : 2);
    double stream = l->sequence_parallel ? C / tp : C, gathered = l->sequence_parallel && width > 1 ? C : 0;
    // The inputs of both halves of a layer, gathered whole over tp, and the gradient of one; with full recomputation the layer made again.
    double layer = tokens * e * (4 * stream + 3 * gathered + F);
    if (recompute == GANG_RECOMPUTE_FULL) layer += tokens * e * (4 * stream + 4 * C / tp + F);
    // Beside the logits that are kept stand their two-byte form, their gradient and its two-byte form; PyTorch's own loss keeps the gradient
    // of its two steps apart, and over tp one copy more.
    double logits = tokens * ((double)shape->vocab / tp * (l->zero >= 3 && width > 1 ? 12 : 8) + e * (2 * stream + gathered));
    double bytes = gang_larger(layer, logits);
    if (l->pp > 1) bytes += 4 * tokens * C * e / tp;
    // Two layers' weights are gathered at a time, and the ends', which FSDP's outermost unit holds, all the while.
    if (l->zero >= 3) bytes += (2 * layer_parameters + (double)((l->pp > 1 || shape->tied ? 1 : 2) * shape->vocab) * C / tp) * ELEMENT;
    return bytes;
}

void gang_memory_of(const struct gang_task *task, const struct gang_layout *l, const struct gang_costs *costs, int class_index, int stage,
                    const struct gang_held *held, struct gang_memory_use *out) {
    int cell = class_index * costs->stages + stage;
    *out = (struct gang_memory_use){
        .activations = held->device, .host_activations = held->host, .limit = costs->device_bytes[cell], .host_limit = costs->host_limit[cell]};
    double largest = 0;
    for (int chunk = stage; chunk < costs->chunks; chunk += costs->stages) {
        const struct gang_chunk_cost *cost = gang_costs_chunk(costs, class_index, chunk);
        out->weights += cost->parameter_bytes;
        out->gradients += cost->gradient_bytes;
        out->optimizer += cost->optimizer_bytes;
        out->host_optimizer += cost->host_bytes;
        if (cost->layers) largest = gang_larger(largest, cost->parameters / cost->layers);
    }
    enum gang_recompute recompute = (enum gang_recompute)gang_of_stage(&l->recompute, stage);
    out->buffers = gang_buffer_bytes(task, l, gang_tp_of(l, stage), costs->class[class_index].micro_batch, recompute, largest);
    out->total = out->weights + out->gradients + out->optimizer + out->activations + out->buffers;
    out->host = out->host_optimizer + out->host_activations;
}
