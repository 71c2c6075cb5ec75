// The relay of packets: two network interfaces, and what comes in at one goes out at the other when the line says.
//
// Frames come through packet sockets with the kernel's own account of offloading (a virtio header): TCP data of up to 64 KiB in
// one frame, whose packets a network card would make. They stay together as far as that does not show: a frame is cut, as a card
// would, around each packet that something befalls, and into pieces of 50 us of the rate. So a loss is that of one packet, and time
// is as fine as with real ones, at a cost that allows for tens of gigabits.
//
// A frame's bytes lie in a ring from the moment they are read; a parcel is what leaves of it at a time: headers of its own, and a
// part of the frame's data. Parcels leave from two queues, each in the order of time: those in order, and the stragglers.
#include "wire/relay.h"

#include <assert.h>
#include <errno.h>
#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <linux/virtio_net.h>
#include <net/if.h>
#include <netinet/in.h>
#include <netinet/ip.h>
#include <netinet/ip6.h>
#include <netinet/tcp.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

enum {
    VIRTIO_BYTES = sizeof(struct virtio_net_hdr),
    HEADERS_MAX = 160,
    FRAME_MAX = 68 << 10,
    READS_PER_TURN = 64,
    QUEUE_PARCELS = 1 << 16,
    SOCKET_BYTES = 64 << 20
};
static const int64_t straggler_ns = 1000000, second_ns = 1000000000;

enum fate { FATE_NONE, FATE_LOST, FATE_DOUBLED, FATE_REORDERED };

struct frame {
    uint64_t from; // position in the ring
    uint32_t bytes;
    uint32_t headers, segment; // what each packet of it repeats, and the data in each; without TCP 0 and all of it
    int64_t came_ns;
    struct virtio_net_hdr virtio;
};

struct parcel {
    int64_t due_ns;
    uint64_t from; // position in the ring
    uint32_t bytes, wire_bytes, head_bytes;
    uint8_t head[VIRTIO_BYTES + HEADERS_MAX];
};

struct queue {
    struct parcel *parcels;
    uint32_t head, count;
};

struct way {
    int in, out;
    uint8_t *ring;
    uint64_t put, taken; // positions ever
    struct queue queues[2];
    int64_t last_at_ns;
};

struct state {
    int fds[2];
    struct way ways[2];
};

// ---- Frames --------------------------------------------------------------------------------------------------------

static uint16_t get16(const uint8_t *at) { return (uint16_t)(at[0] << 8 | at[1]); }

static void put16(uint8_t *at, uint32_t value) {
    at[0] = (uint8_t)(value >> 8);
    at[1] = (uint8_t)value;
}

static uint16_t fold(uint32_t sum) {
    sum = (sum & 0xffff) + (sum >> 16);
    return (uint16_t)((sum & 0xffff) + (sum >> 16));
}

// Where TCP's data begins, when the checksum is left to the card; 0: this frame stays whole.
static uint32_t tcp_headers(const struct frame *frame, const uint8_t *data) {
    const struct virtio_net_hdr *v = &frame->virtio;
    if (!(v->flags & VIRTIO_NET_HDR_F_NEEDS_CSUM) || v->csum_offset != offsetof(struct tcphdr, th_sum)) return 0;
    uint32_t tcp = v->csum_start, type = frame->bytes > ETH_HLEN ? get16(data + ETH_HLEN - 2) : 0;
    uint32_t ip_bytes = type == ETH_P_IP ? sizeof(struct ip) : type == ETH_P_IPV6 ? sizeof(struct ip6_hdr) : UINT16_MAX;
    if (tcp < ETH_HLEN + ip_bytes || tcp + sizeof(struct tcphdr) > frame->bytes) return 0;
    uint32_t headers = tcp + 4 * (uint32_t)(data[tcp + 12] >> 4);
    return headers <= frame->bytes && headers <= HEADERS_MAX ? headers : 0;
}

static void examine(struct frame *frame, const uint8_t *data) {
    int kind = frame->virtio.gso_type & ~VIRTIO_NET_HDR_GSO_ECN;
    bool many = kind == VIRTIO_NET_HDR_GSO_TCPV4 || kind == VIRTIO_NET_HDR_GSO_TCPV6;
    frame->headers = many || kind == VIRTIO_NET_HDR_GSO_NONE ? tcp_headers(frame, data) : 0;
    frame->segment = frame->headers && many && frame->virtio.gso_size ? frame->virtio.gso_size : frame->bytes - frame->headers;
}

// The headers of the part of the frame's data from `at`, as a card would make them.
static void make_headers(const struct frame *frame, const uint8_t *data, uint32_t at, uint32_t bytes, struct parcel *parcel) {
    struct virtio_net_hdr v = frame->virtio;
    uint8_t *ip = parcel->head + VIRTIO_BYTES + ETH_HLEN, *tcp = parcel->head + VIRTIO_BYTES + v.csum_start;
    uint32_t length_before = frame->bytes - v.csum_start, length = frame->headers - v.csum_start + bytes;
    if (frame->headers) {
        memcpy(parcel->head + VIRTIO_BYTES, data, frame->headers);
        bool v4 = get16(data + ETH_HLEN - 2) == ETH_P_IP;
        if (v4) {
            uint32_t ip_bytes = v.csum_start - ETH_HLEN, sum = 0;
            put16(ip + 2, ip_bytes + length);
            put16(ip + 4, get16(ip + 4) + (frame->segment ? at / frame->segment : 0));
            put16(ip + 10, 0);
            for (uint32_t i = 0; i < ip_bytes; i += 2) sum += get16(ip + i);
            put16(ip + 10, ~(uint32_t)fold(sum));
        } else {
            put16(ip + 4, v.csum_start - ETH_HLEN - sizeof(struct ip6_hdr) + length);
        }
        uint32_t sequence = ((uint32_t)get16(tcp + 4) << 16 | get16(tcp + 6)) + at;
        put16(tcp + 4, sequence >> 16);
        put16(tcp + 6, sequence);
        if (at + bytes + frame->headers < frame->bytes) tcp[13] &= (uint8_t) ~(TH_FIN | TH_PUSH);
        if (at) tcp[13] &= 0x7f;                                                    // CWR
        put16(tcp + 16, fold(get16(tcp + 16) + (uint16_t)~length_before + length)); // of the pseudo-header
        v.hdr_len = (uint16_t)frame->headers;
        if (bytes <= frame->segment) v.gso_type = VIRTIO_NET_HDR_GSO_NONE, v.gso_size = 0;
    }
    memcpy(parcel->head, &v, VIRTIO_BYTES);
    parcel->head_bytes = VIRTIO_BYTES + frame->headers;
}

// ---- In ------------------------------------------------------------------------------------------------------------

static enum fate draw_fate(struct gang_relay *relay) {
    const struct gang_relay_options *o = &relay->options;
    if (o->loss <= 0 && o->doubled <= 0 && o->reordered <= 0) return FATE_NONE;
    double x = gang_relay_draw(relay);
    return x < o->loss ? FATE_LOST : x < o->loss + o->doubled ? FATE_DOUBLED : x < o->loss + o->doubled + o->reordered ? FATE_REORDERED : FATE_NONE;
}

static void push(struct queue *queue, const struct parcel *parcel) { queue->parcels[(queue->head + queue->count++) % QUEUE_PARCELS] = *parcel; }

static uint32_t packets_in(const struct frame *frame, uint32_t bytes) {
    return bytes > frame->segment ? (bytes + frame->segment - 1) / frame->segment : 1;
}

// Packets of the frame that travel together.
static void send_on(struct gang_relay *relay, int side, const struct frame *frame, uint32_t at, uint32_t bytes, enum fate fate) {
    struct way *way = &((struct state *)relay->state)->ways[side];
    uint32_t packets = packets_in(frame, bytes);
    struct queue *queue = &way->queues[fate == FATE_REORDERED];
    if (gang_relay_full(relay, side, frame->came_ns)) {
        relay->report.overflowed += packets;
        return;
    }
    if (queue->count + 2 > QUEUE_PARCELS) {
        relay->report.missed += packets;
        return;
    }
    struct parcel parcel = {.from = frame->from + frame->headers + at, .bytes = bytes, .wire_bytes = bytes + packets * frame->headers};
    parcel.due_ns = gang_relay_stamp(relay, side, parcel.wire_bytes, frame->came_ns, &way->last_at_ns);
    relay->report.lost += fate == FATE_LOST;
    if (fate == FATE_LOST) return;
    uint8_t *data = way->ring + frame->from % relay->ring_bytes;
    if (frame->headers) gang_relay_flip(relay, data + frame->headers + at, bytes);
    make_headers(frame, data, at, bytes, &parcel);
    way->put = parcel.from + bytes; // what comes after the last packet that is kept is room again
    if (fate == FATE_REORDERED) parcel.due_ns += straggler_ns;
    push(queue, &parcel);
    if (fate == FATE_DOUBLED) push(queue, &parcel);
    relay->report.doubled += fate == FATE_DOUBLED;
    relay->report.reordered += fate == FATE_REORDERED;
}

static void cut_up(struct gang_relay *relay, int side, const struct frame *frame) {
    uint32_t data = frame->bytes - frame->headers, together = 0, at = 0;
    do {
        uint32_t n = frame->segment < data - at ? frame->segment : data - at;
        enum fate fate = draw_fate(relay);
        bool alone = fate || !n; // n is 0 when there is nothing but headers
        if (together && (alone || together + n > relay->piece_bytes)) {
            send_on(relay, side, frame, at - together, together, FATE_NONE);
            together = 0;
        }
        if (alone)
            send_on(relay, side, frame, at, n, fate);
        else
            together += n;
        at += n;
    } while (at < data);
    if (together) send_on(relay, side, frame, data - together, together, FATE_NONE);
}

// When the kernel had the frame, by the clock of gang_os: the relay's own slowness is no distance.
static int64_t came_ns(struct msghdr *message, int64_t now_ns) {
    struct timespec now, came;
    struct cmsghdr *note = CMSG_FIRSTHDR(message);
    if (!note || note->cmsg_type != SO_TIMESTAMPNS) return now_ns;
    memcpy(&came, CMSG_DATA(note), sizeof came);
    clock_gettime(CLOCK_REALTIME, &now);
    int64_t ago = (now.tv_sec - came.tv_sec) * second_ns + now.tv_nsec - came.tv_nsec;
    return ago > 0 && ago < second_ns ? now_ns - ago : now_ns;
}

// Where a frame fits in one piece; NULL: nowhere.
static uint8_t *make_room(const struct gang_relay *relay, struct way *way) {
    uint64_t left = relay->ring_bytes - way->put % relay->ring_bytes;
    if (left < FRAME_MAX) way->put += left;
    return way->put + FRAME_MAX - way->taken <= relay->ring_bytes ? way->ring + way->put % relay->ring_bytes : NULL;
}

static void take_in(struct gang_relay *relay, int side, bool blocked) {
    struct way *way = &((struct state *)relay->state)->ways[side];
    for (int i = 0; i < READS_PER_TURN; i++) {
        struct frame frame = {0};
        uint8_t *room = make_room(relay, way), notes[CMSG_SPACE(sizeof(struct timespec))];
        struct iovec iov[2] = {{&frame.virtio, VIRTIO_BYTES}, {room, room ? FRAME_MAX : 0}};
        struct msghdr message = {.msg_iov = iov, .msg_iovlen = 2, .msg_control = notes, .msg_controllen = sizeof notes};
        ssize_t n = recvmsg(way->in, &message, 0);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) return; // nothing there, or the interface is down
        if (n < VIRTIO_BYTES + ETH_HLEN || message.msg_flags & MSG_TRUNC) {
            relay->report.missed++;
            continue;
        }
        frame.from = way->put;
        frame.bytes = (uint32_t)n - VIRTIO_BYTES;
        frame.came_ns = came_ns(&message, gang_os->now_ns());
        examine(&frame, room);
        uint32_t packets = packets_in(&frame, frame.bytes - frame.headers);
        relay->report.packets += packets;
        if (blocked) {
            relay->report.blocked += packets;
            continue;
        }
        cut_up(relay, side, &frame);
    }
}

// ---- Out -----------------------------------------------------------------------------------------------------------

static struct parcel *first_of(const struct queue *queue) { return queue->count ? &queue->parcels[queue->head] : NULL; }

// The queue whose first parcel leaves next; NULL: there is none.
static struct queue *next_of(struct way *way) {
    struct parcel *a = first_of(&way->queues[0]), *b = first_of(&way->queues[1]);
    if (!a && !b) return NULL;
    return !b || (a && a->due_ns <= b->due_ns) ? &way->queues[0] : &way->queues[1];
}

// Returns when the next one is due.
static int64_t let_out(struct gang_relay *relay, int side, int64_t now_ns) {
    struct way *way = &((struct state *)relay->state)->ways[side];
    struct queue *queue;
    while ((queue = next_of(way)) != NULL) {
        struct parcel *parcel = first_of(queue);
        if (parcel->due_ns > now_ns) return parcel->due_ns;
        struct iovec iov[2] = {{parcel->head, parcel->head_bytes}, {way->ring + parcel->from % relay->ring_bytes, parcel->bytes}};
        ssize_t n = writev(way->out, iov, parcel->bytes ? 2 : 1);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0 && (errno == EAGAIN || errno == ENOBUFS)) return now_ns + gang_relay_step_ns;
        relay->report.missed += n < 0; // the interface is down
        if (n > 0) relay->report.bytes[side] += parcel->wire_bytes;
        gang_relay_left(relay, parcel->due_ns, now_ns);
        queue->head = (queue->head + 1) % QUEUE_PARCELS;
        queue->count--;
    }
    return gang_relay_never_ns;
}

// What no parcel needs any more is room again; what has run empty begins anew, so that memory is what was ever on the way.
static void free_ring(struct way *way) {
    way->taken = way->put;
    for (int i = 0; i < 2; i++) {
        struct parcel *first = first_of(&way->queues[i]);
        if (!first)
            way->queues[i].head = 0;
        else if (first->from < way->taken)
            way->taken = first->from;
    }
    if (!way->queues[0].count && !way->queues[1].count) way->taken = way->put = 0;
}

static int64_t turn(struct gang_relay *relay, int64_t now_ns) {
    struct state *state = relay->state;
    int64_t next = gang_relay_never_ns, until;
    bool blocked = gang_relay_blocked(relay, now_ns, &until);
    for (int side = 0; side < 2; side++) {
        take_in(relay, side, blocked);
        int64_t due = let_out(relay, side, gang_os->now_ns());
        free_ring(&state->ways[side]);
        next = due < next ? due : next;
    }
    return next < now_ns + gang_relay_step_ns ? now_ns + gang_relay_step_ns : next;
}

static void event(struct gang_relay *relay, void *source, uint32_t events) {
    (void)relay, (void)source, (void)events; // a turn looks at both interfaces
}

// ---- Open and close ------------------------------------------------------------------------------------------------

static enum gang_status check_interface(int fd, const char *name) {
    struct ifreq request = {0};
    if (strlen(name) >= IFNAMSIZ || !if_nametoindex(name))
        return gang_fail(GANG_ERR_INPUT, "relay: no network interface '%s' here: 'ip link' lists them", name);
    memcpy(request.ifr_name, name, strlen(name));
    if (ioctl(fd, SIOCGIFFLAGS, &request)) return gang_fail_os("relay: interface %s: cannot read its state", name);
    if (!(request.ifr_flags & IFF_UP)) return gang_fail(GANG_ERR_INPUT, "relay: interface %s is down: 'ip link set %s up' first", name, name);
    return GANG_OK;
}

static enum gang_status open_interface(const char *name, int *out) {
    static const int on = 1, bytes = SOCKET_BYTES;
    int fd = *out = socket(AF_PACKET, SOCK_RAW | SOCK_NONBLOCK | SOCK_CLOEXEC, 0); // deaf until bound
    if (fd < 0 && errno == EPERM)
        return gang_fail(GANG_ERR_INPUT,
                         "relay: packets need root (CAP_NET_RAW and CAP_NET_ADMIN): start it with sudo, or relay connections: listen and to");
    if (fd < 0) return gang_fail_os("relay: cannot open a packet socket, which needs CONFIG_PACKET in the kernel; connections need it not");
    enum gang_status status = check_interface(fd, name);
    if (status) return status;
    struct packet_mreq all = {.mr_ifindex = (int)if_nametoindex(name), .mr_type = PACKET_MR_PROMISC};
    struct sockaddr_ll address = {.sll_family = AF_PACKET, .sll_protocol = htons(ETH_P_ALL), .sll_ifindex = all.mr_ifindex};
    if (setsockopt(fd, SOL_PACKET, PACKET_VNET_HDR, &on, sizeof on) || setsockopt(fd, SOL_PACKET, PACKET_IGNORE_OUTGOING, &on, sizeof on))
        return gang_fail_os("relay: interface %s: the kernel's packet sockets are too old (Linux 4.20 has what is needed)", name);
    if (setsockopt(fd, SOL_SOCKET, SO_RCVBUFFORCE, &bytes, sizeof bytes) || setsockopt(fd, SOL_SOCKET, SO_SNDBUFFORCE, &bytes, sizeof bytes) ||
        setsockopt(fd, SOL_SOCKET, SO_TIMESTAMPNS, &on, sizeof on) || setsockopt(fd, SOL_PACKET, PACKET_ADD_MEMBERSHIP, &all, sizeof all) ||
        bind(fd, (const struct sockaddr *)&address, sizeof address))
        return gang_fail_os("relay: interface %s: cannot take its packets: root (CAP_NET_ADMIN) is needed", name);
    return GANG_OK;
}

static enum gang_status open_packets(struct gang_relay *relay) {
    const char *const *between = relay->options.between;
    struct state *state = relay->state = calloc(1, sizeof *state);
    assert(state && "out of memory");
    state->fds[0] = state->fds[1] = -1;
    if (!strcmp(between[0], between[1])) return gang_fail(GANG_ERR_INPUT, "relay: between %s and itself: two interfaces are needed", between[0]);
    enum gang_status status = open_interface(between[0], &state->fds[0]);
    if (!status) status = open_interface(between[1], &state->fds[1]);
    for (int side = 0; side < 2 && !status; side++) {
        struct way *way = &state->ways[side];
        void *blocks[3] = {NULL, NULL, NULL};
        status = gang_big_alloc(relay->ring_bytes, &blocks[2]);
        for (int i = 0; i < 2 && !status; i++) status = gang_big_alloc(QUEUE_PARCELS * sizeof(struct parcel), &blocks[i]);
        *way = (struct way){
            .in = state->fds[side], .out = state->fds[!side], .ring = blocks[2], .queues = {{.parcels = blocks[0]}, {.parcels = blocks[1]}}};
        if (!status && !gang_relay_watch(relay, way->in, EPOLLIN, state)) status = gang_fail_os("relay: cannot watch a packet socket");
    }
    return status;
}

static void count_missed(struct gang_relay *relay) {
    struct state *state = relay->state;
    for (int i = 0; i < 2; i++) {
        struct tpacket_stats stats; // since they were read last
        socklen_t bytes = sizeof stats;
        if (!getsockopt(state->fds[i], SOL_PACKET, PACKET_STATISTICS, &stats, &bytes)) relay->report.missed += stats.tp_drops;
    }
}

static void close_packets(struct gang_relay *relay) {
    struct state *state = relay->state;
    for (int side = 0; side < 2; side++) {
        struct way *way = &state->ways[side];
        if (state->fds[side] >= 0) close(state->fds[side]);
        gang_big_free(way->ring, relay->ring_bytes);
        for (int i = 0; i < 2; i++) gang_big_free(way->queues[i].parcels, QUEUE_PARCELS * sizeof(struct parcel));
    }
    free(state);
}

const struct gang_relay_kind gang_relay_packets = {
    .queue_least_ns = 2000000, .queue_rtts = 1, .open = open_packets, .event = event, .turn = turn, .report = count_missed, .close = close_packets};
