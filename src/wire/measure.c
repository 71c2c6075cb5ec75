// What a link is worth: its round trip, how many streams it takes to fill it, and what messages of each size get of it.
//
// One end serves as rank 0 and expects a rank for each number of streams; the other is all of these ranks, one after the other, and
// asks: so many messages of that size, then an answer. Time is taken by who asks alone, so no clocks need agree.
#include "wire/wire.h"

#include <assert.h>
#include <math.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

enum { CHOICES = 4, IN_FLIGHT = 64, TAG_ASK = 1, TAG_DATA = 2, TAG_ANSWER = 3, ROUND_TRIPS = 30, LOOK_MS = 200 };
static const int stream_choices[CHOICES] = {1, 2, 4, 8};
static const size_t buffer_bytes = (size_t)128 << 20, trial_bytes = 1 << 20;
static const uint64_t most_messages = 1 << 20;
static const int64_t for_ever_ms = 1000000000;
static const double long_message_s = 2, good_enough = 0.95, patience_s = 1;

struct ask {
    uint64_t bytes, messages;
};

static int in_flight(size_t bytes) {
    size_t fit = buffer_bytes / bytes;
    return fit < IN_FLIGHT ? (int)fit : IN_FLIGHT;
}

// `send`, or receive, all messages of one request; the receiver needs a place for each that is on the way.
static enum gang_status move(struct gang_wire_link *link, bool send, const struct ask *ask, uint8_t *data) {
    struct gang_wire_op ops[IN_FLIGHT] = {{0}};
    enum gang_status status = GANG_OK;
    uint64_t posted = 0, places = ask->messages ? (uint64_t)in_flight(ask->bytes) : 1;
    for (uint64_t done = 0; done < ask->messages && !status; done++) {
        for (; posted < ask->messages && posted < done + places && !status; posted++) {
            struct gang_wire_op *op = &ops[posted % places];
            uint8_t *place = data + posted % places * ask->bytes;
            status = send ? gang_wire_send(link, TAG_DATA, 0, place, ask->bytes, op) : gang_wire_recv(link, TAG_DATA, place, ask->bytes, op);
        }
        if (!status) status = gang_wire_wait(&ops[done % places]);
    }
    return status;
}

// ---- Who serves ----------------------------------------------------------------------------------------------------

struct server {
    struct gang_wire *wire;
    struct gang_wire_link *links[CHOICES];
    struct gang_wire_op ops[CHOICES];
    struct ask asks[CHOICES];
    uint8_t *data;
};

static enum gang_status expect(struct server *s, int i) {
    s->ops[i] = (struct gang_wire_op){0};
    return gang_wire_recv(s->links[i], TAG_ASK, &s->asks[i], sizeof s->asks[i], &s->ops[i]);
}

static enum gang_status answer(struct server *s, int i) {
    const struct ask *ask = &s->asks[i];
    struct gang_wire_op op = {0};
    if (ask->messages && (!ask->bytes || ask->bytes > GANG_LINK_MESSAGE_MOST || ask->messages > most_messages))
        return gang_fail(GANG_ERR_PEER, "probe: a request for what is no measurement");
    enum gang_status status = move(s->links[i], false, ask, s->data);
    if (!status) status = gang_wire_send(s->links[i], TAG_ANSWER, 0, "", 1, &op);
    return status ? status : gang_wire_wait(&op);
}

// One prober, from its coming to its leaving, or until *stop. What goes wrong with it ends its visit and nothing else.
static void serve_one(struct server *s, int bell, const volatile int *stop) {
    enum gang_status status = GANG_OK;
    for (int i = 0; i < CHOICES && !status; i++) {
        status = gang_wire_join(s->wire, &(struct gang_wire_link_options){.peer = i + 1, .planes = 1, .streams = stream_choices[i]}, &s->links[i]);
        if (!status) status = expect(s, i);
    }
    while (!status && !*stop) {
        struct pollfd ring = {.fd = bell, .events = POLLIN};
        eventfd_t rung;
        if (poll(&ring, 1, LOOK_MS) == 1) (void)eventfd_read(bell, &rung);
        for (int i = 0; i < CHOICES && !status; i++) {
            if (!gang_wire_done(&s->ops[i])) continue;
            status = gang_wire_wait(&s->ops[i]);
            if (!status) status = answer(s, i);
            if (!status) status = expect(s, i);
        }
    }
}

enum gang_status gang_link_serve(const char *listen, const char *secret_path, void (*listening)(const char *address), const volatile int *stop) {
    struct server s = {0};
    char address[GANG_ADDRESS_TEXT] = "";
    void *data = NULL;
    int bell = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    enum gang_status status = bell < 0 ? gang_fail_os("probe: cannot make an event queue") : gang_big_alloc(buffer_bytes, &data);
    s.data = data;
    while (!status && !*stop) {
        const struct gang_wire_options options = {
            .listen = address[0] ? address : listen, .secret_path = secret_path, .connect_ms = for_ever_ms, .notify = bell};
        status = gang_wire_open(&options, &s.wire);
        if (status) break;
        if (!address[0]) {
            memcpy(address, gang_wire_address(s.wire), strlen(gang_wire_address(s.wire)) + 1);
            listening(address);
        }
        serve_one(&s, bell, stop);
        gang_wire_close(s.wire);
    }
    gang_big_free(data, buffer_bytes);
    if (bell >= 0) close(bell);
    return status;
}

// ---- Who asks ------------------------------------------------------------------------------------------------------

struct prober {
    struct gang_wire *wires[CHOICES];
    struct gang_wire_link *links[CHOICES];
    uint8_t *data;
    double rtt_s, seconds; // per figure
};

// From the call until the answer is here.
static enum gang_status ask_once(struct prober *p, int choice, size_t bytes, uint64_t messages, double *took) {
    struct gang_wire_link *link = p->links[choice];
    struct gang_wire_op ask_op = {0}, answer_op = {0};
    const struct ask ask = {bytes, messages};
    uint8_t reply;
    double start = gang_seconds();
    enum gang_status status = gang_wire_recv(link, TAG_ANSWER, &reply, 1, &answer_op);
    if (!status) status = gang_wire_send(link, TAG_ASK, 0, &ask, sizeof ask, &ask_op);
    if (!status) status = move(link, true, &ask, p->data);
    if (!status) status = gang_wire_wait(&answer_op);
    if (!status) status = gang_wire_wait(&ask_op);
    *took = gang_seconds() - start;
    return status;
}

// Bytes per second of messages of one size, in as many as the time allows; the answer's way back is no part of it.
static enum gang_status rate_of(struct prober *p, int choice, size_t bytes, double *rate) {
    uint64_t messages = 1;
    for (;;) {
        double took;
        enum gang_status status = ask_once(p, choice, bytes, messages, &took);
        if (status) return status;
        double there = took - p->rtt_s / 2;
        *rate = (double)messages * (double)bytes / (there > took / 2 ? there : took / 2);
        if (took >= p->seconds || messages == most_messages) return GANG_OK;
        // At first mostly the round trip is measured: a step of eight at most.
        double more = ceil(1.2 * p->seconds / took), next = (double)messages * (more < 8 ? more : 8);
        messages = next < (double)most_messages ? (uint64_t)next : most_messages;
    }
}

static enum gang_status come_near(struct prober *p, int choice, const char *to, const char *secret_path) {
    const struct gang_wire_options options = {.rank = choice + 1, .listen = "127.0.0.1:0", .secret_path = secret_path};
    const struct gang_wire_plane plane = {.remote = to};
    const struct gang_wire_link_options link = {.peer = 0, .planes = 1, .streams = stream_choices[choice], .plane = &plane};
    enum gang_status status = gang_wire_open(&options, &p->wires[choice]);
    return status ? status : gang_wire_join(p->wires[choice], &link, &p->links[choice]);
}

// To the one who asked before, the server is faithful until it sees it gone: asks again for a while.
static enum gang_status get_in(struct prober *p, const char *to, const char *secret_path) {
    double since = gang_seconds(), took;
    for (;;) {
        enum gang_status status = come_near(p, 0, to, secret_path);
        if (!status) status = ask_once(p, 0, 0, 0, &took);
        if (status != GANG_ERR_PEER || gang_seconds() - since > patience_s) return status;
        gang_wire_close(p->wires[0]);
        p->wires[0] = NULL;
        gang_sleep_until(gang_seconds() + 0.02);
    }
}

// The fewest streams that come near the best.
static enum gang_status choose_streams(struct prober *p, const char *to, const char *secret_path, struct gang_link_profile *out, int *best) {
    double rates[CHOICES], most = 0, took;
    enum gang_status status = GANG_OK;
    out->rtt_s = INFINITY;
    for (int i = 0; i < CHOICES && !status; i++) {
        status = i ? come_near(p, i, to, secret_path) : get_in(p, to, secret_path);
        for (int k = 0; k < ROUND_TRIPS && !status; k++) {
            status = ask_once(p, i, 0, 0, &took);
            if (!status && took < out->rtt_s) out->rtt_s = took;
        }
        p->rtt_s = out->rtt_s;
        if (!status) status = rate_of(p, i, trial_bytes, &rates[i]);
        if (!status && rates[i] > most) most = rates[i];
    }
    for (*best = 0; !status && rates[*best] < good_enough * most;) ++*best;
    out->streams = stream_choices[*best];
    return status;
}

enum gang_status gang_link_measure(const char *to, const char *secret_path, double seconds, struct gang_link_profile *out) {
    struct prober p = {.seconds = seconds};
    void *data = NULL;
    int best = 0;
    *out = (struct gang_link_profile){0};
    enum gang_status status = gang_big_alloc(buffer_bytes, &data);
    p.data = data;
    if (!status) status = choose_streams(&p, to, secret_path, out, &best);
    for (size_t bytes = GANG_LINK_MESSAGE_LEAST; bytes <= GANG_LINK_MESSAGE_MOST && !status; bytes *= 4) {
        // Over a slow link the largest would take minutes and say nothing new.
        if (out->bytes_per_s > 0 && (double)bytes / out->bytes_per_s > long_message_s) break;
        struct gang_link_rate *rate = &out->rates[out->count];
        rate->message_bytes = bytes;
        status = rate_of(&p, best, bytes, &rate->bytes_per_s);
        out->count++;
        if (rate->bytes_per_s > out->bytes_per_s) out->bytes_per_s = rate->bytes_per_s;
    }
    char why[GANG_ERROR_BYTES] = "";
    if (status == GANG_ERR_PEER) snprintf(why, sizeof why, "%s", gang_error());
    for (int i = 0; i < CHOICES; i++) gang_wire_close(p.wires[i]);
    gang_big_free(data, buffer_bytes);
    if (!why[0]) return status;
    return gang_fail(status, "probe: link to %s: %s: see that 'gangline probe --serve' runs there, free and with the same secret", to, why);
}
