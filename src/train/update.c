// The optimizer's step of what a network owns, and the packed weights after it.
#include "train/net.h"

#include <assert.h>
#include <math.h>

double gang_net_sum_squares(struct gang_net *net, int64_t offset, int64_t elements) {
    assert(offset >= 0 && elements >= 0 && offset + elements <= net->model->elements);
    return net->device->k->sum_squares(net->device, net->gradients + offset, elements);
}

// AdamW on elements [from, to) that are no whole weights; `moments`: from an element's place to that of its moments.
static void step_plain(struct gang_net *net, int64_t from, int64_t to, int64_t moments, struct gang_adamw o) {
    const struct gang_model *m = net->model;
    const float decay = o.decay;
    for (int i = 0; i < m->count && from < to;) {
        // Neighbours with the same decay go in one pass; the gaps between them stay 0.
        bool is_norm = gang_tensor_is_norm(&m->tensors[i]);
        while (i < m->count && gang_tensor_is_norm(&m->tensors[i]) == is_norm) i++;
        int64_t end = i < m->count && m->tensors[i].offset < to ? m->tensors[i].offset : to;
        if (end <= from) continue;
        o.decay = is_norm ? 0 : decay;
        net->device->k->adamw(net->device, net->parameters + from, net->moments[0] + moments + from, net->moments[1] + moments + from,
                              net->gradients + from, end - from, &o);
        from = end;
    }
}

void gang_net_adamw(struct gang_net *net, int range, const struct gang_update *u, double norm) {
    assert(range >= 0 && range < net->shape.owned_count);
    const struct gang_adamw o = {
        .rate = (float)u->rate,
        .beta1 = (float)u->beta1,
        .beta2 = (float)u->beta2,
        .epsilon = (float)u->epsilon,
        .decay = (float)u->decay,
        .correct1 = (float)(1 - pow(u->beta1, (double)u->step)),
        .correct2 = (float)(1 - pow(u->beta2, (double)u->step)),
        .gradient_scale = u->clip > 0 && norm > u->clip ? (float)(u->clip / norm) : 1,
    };
    int64_t at = net->shape.owned[range].offset, end = at + net->shape.owned[range].elements, moments = -at;
    for (int i = 0; i < range; i++) moments += net->shape.owned[i].elements;
    for (struct weight *w = net->weights; w < net->weights + net->weight_count; w++) {
        if (w->offset < at || w->offset + w->elements > end) continue;
        step_plain(net, at, w->offset, moments, o);
        at = w->offset + w->elements;
        net->device->k->linear_update(net->device, *w->linear, net->parameters + w->offset, net->moments[0] + moments + w->offset,
                                      net->moments[1] + moments + w->offset, net->gradients + w->offset, &o);
        w->packed = true;
    }
    step_plain(net, at, end, moments, o);
}

void gang_net_refresh_bucket(struct gang_net *net, int bucket) {
    assert(bucket >= 0 && bucket < net->bucket_count);
    const struct gang_net_bucket *b = &net->buckets[bucket];
    for (struct weight *w = net->weights; w < net->weights + net->weight_count; w++) {
        if (w->offset < b->offset || w->offset >= b->offset + b->elements) continue;
        if (!w->packed) net->device->k->linear_refresh(net->device, *w->linear, net->parameters + w->offset);
        w->packed = false;
    }
}

void gang_net_take(struct gang_net *net, int from, int to) {
    const struct gang_model *m = net->model;
    int64_t begin = m->tensors[from].offset, end = to < m->count ? m->tensors[to].offset : m->elements;
    for (struct weight *w = net->weights; w < net->weights + net->weight_count; w++) {
        if (w->offset < begin || w->offset >= end) continue;
        net->device->k->linear_refresh(net->device, *w->linear, net->parameters + w->offset);
        if (w->passes) gang_big_forget(net->parameters + w->offset, (size_t)w->elements * sizeof(float));
    }
}

void gang_net_refresh(struct gang_net *net) {
    for (int i = 0; i < net->bucket_count; i++) gang_net_refresh_bucket(net, i);
}

double gang_net_update(struct gang_net *net, const struct gang_update *update) {
    assert(net->shape.owned_count == 1 && net->shape.owned[0].elements == net->model->elements);
    double norm = sqrt(gang_net_sum_squares(net, 0, net->model->elements));
    gang_net_adamw(net, 0, update, norm);
    gang_net_refresh(net);
    return norm;
}
