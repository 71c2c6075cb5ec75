// The optimizer's step of what a network owns, and the packed weights after it.
#include "train/net.h"

#include <assert.h>
#include <math.h>

double gang_net_sum_squares(struct gang_net *net, int64_t offset, int64_t elements) {
    assert(offset >= 0 && elements >= 0 && offset + elements <= net->model->elements);
    return net->device->k->sum_squares(net->device, net->gradients + offset, elements);
}

void gang_net_adamw(struct gang_net *net, int range, const struct gang_update *u, double norm) {
    assert(range >= 0 && range < net->shape.owned_count);
    struct gang_device *d = net->device;
    const struct gang_model *m = net->model;
    const struct gang_range *owned = &net->shape.owned[range];
    struct gang_adamw o = {
        .rate = (float)u->rate,
        .beta1 = (float)u->beta1,
        .beta2 = (float)u->beta2,
        .epsilon = (float)u->epsilon,
        .correct1 = (float)(1 - pow(u->beta1, (double)u->step)),
        .correct2 = (float)(1 - pow(u->beta2, (double)u->step)),
        .gradient_scale = u->clip > 0 && norm > u->clip ? (float)(u->clip / norm) : 1,
    };
    int64_t moments = -owned->offset; // from an element's place to that of its moments
    for (int i = 0; i < range; i++) moments += net->shape.owned[i].elements;
    for (int i = 0; i < m->count;) {
        // Neighbours with the same decay go in one pass; the gaps between them stay 0.
        bool is_norm = gang_tensor_is_norm(&m->tensors[i]);
        int64_t from = m->tensors[i].offset;
        while (i < m->count && gang_tensor_is_norm(&m->tensors[i]) == is_norm) i++;
        int64_t to = i < m->count ? m->tensors[i].offset : m->elements;
        if (from < owned->offset) from = owned->offset;
        if (to > owned->offset + owned->elements) to = owned->offset + owned->elements;
        if (from >= to) continue;
        o.decay = is_norm ? 0 : (float)u->decay;
        d->k->adamw(d, net->parameters + from, net->moments[0] + moments + from, net->moments[1] + moments + from, net->gradients + from, to - from,
                    &o);
    }
}

void gang_net_refresh_bucket(struct gang_net *net, int bucket) {
    assert(bucket >= 0 && bucket < net->bucket_count);
    struct gang_device *d = net->device;
    const struct gang_net_bucket *b = &net->buckets[bucket];
    const struct gang_tensor *head = net->head_tensor;
    if (b->layer >= 0) {
        const struct layer *l = &net->layers[b->layer];
        d->k->linear_refresh(d, l->qkv, net->parameters + l->q->offset);
        d->k->linear_refresh(d, l->o, net->parameters + l->o_tensor->offset);
        d->k->linear_refresh(d, l->gate_up, net->parameters + l->gate->offset);
        d->k->linear_refresh(d, l->down, net->parameters + l->down_tensor->offset);
    } else if (head && head->offset >= b->offset && head->offset < b->offset + b->elements) {
        d->k->linear_refresh(d, net->head, net->parameters + head->offset);
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
