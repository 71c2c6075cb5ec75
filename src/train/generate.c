// Choosing the next token.
#include "train/train.h"

#include <math.h>

// A total order: ties go by id, so that the choice is the same everywhere.
static bool heavier(const struct gang_candidate *a, const struct gang_candidate *b) {
    return a->weight != b->weight ? a->weight > b->weight : a->id < b->id;
}

static void swap(struct gang_candidate *a, struct gang_candidate *b) {
    struct gang_candidate kept = *a;
    *a = *b;
    *b = kept;
}

// Brings the fewest heaviest candidates whose weights sum to `enough` to the front; returns how many and their sum. Quickselect:
// a sort of the whole vocabulary would take longer than the model does.
static int64_t nucleus(struct gang_candidate *c, int64_t n, double enough, double *sum) {
    int64_t from = 0, to = n; // those before `from` are in, those at and behind `to` are out
    *sum = 0;
    while (from < to) {
        double left = 0;
        int64_t middle = from;
        swap(&c[(from + to) / 2], &c[to - 1]);
        for (int64_t i = from; i < to - 1; i++) {
            if (!heavier(&c[i], &c[to - 1])) continue;
            left += (double)c[i].weight;
            swap(&c[i], &c[middle++]);
        }
        swap(&c[middle], &c[to - 1]);
        if (*sum + left >= enough && middle > 0) {
            to = middle;
        } else {
            *sum += left + (double)c[middle].weight;
            from = middle + 1;
            if (*sum >= enough) break;
        }
    }
    return from;
}

static int32_t greatest(const float *logits, int64_t vocab) {
    int32_t best = 0;
    for (int64_t v = 1; v < vocab; v++)
        if (logits[v] > logits[best]) best = (int32_t)v;
    return best;
}

// Nucleus sampling (Holtzman et al. 2020): the fewest most likely tokens whose probabilities sum to top_p.
int32_t gang_sample(const float *logits, int64_t vocab, const struct gang_sampling *sampling, uint64_t index, struct gang_candidate *work) {
    int32_t best = greatest(logits, vocab);
    if (sampling->temperature <= 0) return best;
    double total = 0;
    for (int64_t v = 0; v < vocab; v++) {
        work[v] = (struct gang_candidate){.weight = expf((logits[v] - logits[best]) / (float)sampling->temperature), .id = (int32_t)v};
        total += (double)work[v].weight;
    }
    if (sampling->top_p < 1) vocab = nucleus(work, vocab, total * sampling->top_p, &total);
    double left = total * gang_uniform(gang_random_at(sampling->seed, 7, index));
    for (int64_t v = 0; v < vocab; v++) {
        left -= (double)work[v].weight;
        if (left < 0) return work[v].id;
    }
    return work[vocab - 1].id;
}
