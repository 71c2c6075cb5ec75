// Arrays one after another over a link, each posted long before its turn, so that together they take their bytes' time and a
// round trip, not a round trip each. What is under way is the wire's until it is done: a stream is closed, which waits.
#include "rank/internal.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>

static struct gang_streamed *item_of(struct gang_stream *s, int64_t i) { return &s->items[i % GANG_STREAM_AHEAD]; }

// Of the oldest under way.
static enum gang_status end_first(struct gang_stream *s) {
    struct gang_streamed *item = item_of(s, s->first++);
    enum gang_status status = gang_wire_wait(&item->op);
    s->held -= item->own ? item->bytes : 0;
    free(item->own);
    return status;
}

static bool has_room(const struct gang_stream *s, size_t bytes) {
    return s->next == s->first || (s->next - s->first < GANG_STREAM_AHEAD && s->held + bytes <= GANG_STREAM_AHEAD_BYTES);
}

static enum gang_status post_receives(struct gang_stream *s) {
    enum gang_status status = GANG_OK;
    while (s->next < s->count && has_room(s, s->sizes[s->next]) && !status) {
        struct gang_streamed *item = item_of(s, s->next);
        *item = (struct gang_streamed){.own = malloc(s->sizes[s->next] + 1), .bytes = s->sizes[s->next]};
        assert(item->own && "out of memory");
        status = gang_wire_recv(s->link, TAG_SAVE, item->own, item->bytes, &item->op);
        if (status)
            free(item->own);
        else
            s->held += item->bytes, s->next++;
    }
    return status;
}

void gang_stream_init(struct gang_stream *s, struct gang_wire_link *link) { *s = (struct gang_stream){.link = link}; }

enum gang_status gang_stream_expect(struct gang_stream *s, const size_t *sizes, int64_t count) {
    s->sizes = sizes;
    s->count = count;
    return post_receives(s);
}

enum gang_status gang_stream_take(struct gang_stream *s, float **out) {
    enum gang_status status = s->taken ? end_first(s) : GANG_OK;
    s->taken = false;
    if (!status) status = post_receives(s);
    if (status) return status;
    assert(s->first < s->next && "more than was expected");
    s->taken = true;
    *out = item_of(s, s->first)->own;
    return gang_wire_wait(&item_of(s, s->first)->op);
}

enum gang_status gang_stream_give(struct gang_stream *s, const float *data, size_t bytes, float *own) {
    enum gang_status status = GANG_OK;
    while (!has_room(s, own ? bytes : 0) && !status) status = end_first(s);
    struct gang_streamed *item = item_of(s, s->next);
    *item = (struct gang_streamed){.own = own, .bytes = bytes};
    if (!status) status = gang_wire_send(s->link, TAG_SAVE, PRIORITY_SAVE, data, bytes, &item->op);
    if (status)
        free(own);
    else
        s->held += own ? bytes : 0, s->next++;
    return status;
}

enum gang_status gang_stream_close(struct gang_stream *s, enum gang_status before) {
    char error[GANG_ERROR_BYTES];
    snprintf(error, sizeof error, "%s", before ? gang_error() : "");
    while (s->first < s->next) {
        enum gang_status status = end_first(s);
        if (!status || before) continue;
        before = status;
        snprintf(error, sizeof error, "%s", gang_error());
    }
    if (before) gang_error_set("%s", error);
    return before;
}
