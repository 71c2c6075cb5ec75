// Choosing the next token.
#include "train/train.h"

#include <math.h>
#include <stdlib.h>

static int heavier(const void *a, const void *b) {
    const struct gang_candidate *x = a, *y = b;
    if (x->weight != y->weight) return x->weight < y->weight ? 1 : -1;
    return x->id - y->id; // ties by id, so that the choice does not depend on the sort
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
    if (sampling->top_p < 1) {
        qsort(work, (size_t)vocab, sizeof *work, heavier);
        double kept = 0, enough = total * sampling->top_p;
        int64_t n = 0;
        while (n < vocab && (n == 0 || kept < enough)) kept += (double)work[n++].weight;
        vocab = n;
        total = kept;
    }
    double left = total * gang_uniform(gang_random_at(sampling->seed, 7, index));
    for (int64_t v = 0; v < vocab; v++) {
        left -= (double)work[v].weight;
        if (left < 0) return work[v].id;
    }
    return work[vocab - 1].id;
}
