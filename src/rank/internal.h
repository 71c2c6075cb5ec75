// The parts of a rank to one another. Internal to src/rank.
#ifndef GANG_RANK_INTERNAL_H
#define GANG_RANK_INTERNAL_H

#include "rank/cell.h"

enum gang_rank_tag {
    TAG_ACTIVATION,
    TAG_GRADIENT,
    TAG_TIED_GRADIENT,
    TAG_TIED_WEIGHTS,
    TAG_SAVE,
    TAG_STAGE_GROUP = 16,
    TAG_REPLICA_GROUP = 32,
    TAG_CELL_GROUP = 48,
    TAG_LANE_GROUPS = 64 // the stage's others
};

// ---- Messages: channel.c -------------------------------------------------------------------------------------------

// A message as one device has it. Where the peer's cell is as wide as this one it goes to or comes from the device with the same tp_index.
// With rows of the stream on each device, the narrower cell's has in one piece what several of the wider have; otherwise all have the whole
// of it, which goes out from one of the wider and from the narrower to all of them.
struct gang_parts {
    int first, count;     // devices of the peer's cell; 0: this device sends nothing
    size_t bytes, stride; // of a part; from one part's beginning to the next one's
};

// One way of messages to or from a peer, of one kind. Message n of the run is entry n % count of the sender's order; it
// lies in slot n % slots on the sending side, and on the receiving side in whatever slot was free when it was posted.
struct gang_channel {
    struct gang_parts parts;
    struct gang_wire_link **links; // [parts]
    uint32_t tag;
    bool sends;
    int peer, gradient, count, slots;
    int64_t micro_batches;
    int *index; // [chunks, micro-batches] entry of a message, -1: not of this channel
    size_t bytes;
    char *memory;             // [slots, bytes]
    struct gang_wire_op *ops; // [slots, parts]
    // Receiving: slot of an entry that is posted, else -1; slots that are free; the next to be posted.
    int *slot_of, *free;
    int free_count;
    int64_t next;
};

// Finds the channel's messages in the sender's program; false if there are none. Allocates nothing but tables.
bool gang_channel_init(struct gang_channel *channel, const struct gang_program *program, int sender, int receiver, int gradient, bool sends,
                       size_t bytes, const struct gang_parts *parts, struct gang_arena *arena);
static inline size_t gang_channel_memory(const struct gang_channel *channel) { return (size_t)channel->slots * channel->bytes; }
// Where the message is to be written, once its slot is free; `step` counts from 0.
GANG_CHECK_RESULT enum gang_status gang_channel_room(struct gang_channel *channel, int64_t step, int chunk, int micro, void **out);
GANG_CHECK_RESULT enum gang_status gang_channel_send(struct gang_channel *channel, int64_t step, int chunk, int micro);
// Waits for the message; it stays until it is released.
GANG_CHECK_RESULT enum gang_status gang_channel_take(struct gang_channel *channel, int chunk, int micro, const void **out);
GANG_CHECK_RESULT enum gang_status gang_channel_release(struct gang_channel *channel, int chunk, int micro);
// Posts as many receives as there are free slots.
GANG_CHECK_RESULT enum gang_status gang_channel_post(struct gang_channel *channel);

// Where one stage is the whole model its chunks hand each other what a pass leaves: the activation of chunk c to c + 1, the gradient of
// chunk c to c - 1, each in a slot that the program's order gives it beforehand.
struct gang_handoff {
    int64_t micro_batches, chunks;
    int16_t *slot_of; // [gradient, chunks, micro-batches] by the chunk that makes it
    int slots;
    size_t bytes;
    char *memory; // [slots, bytes]
};

void gang_handoff_init(struct gang_handoff *handoff, const struct gang_rank_program *program, int chunks, int64_t micro_batches, size_t bytes,
                       struct gang_arena *arena);
void *gang_handoff_at(const struct gang_handoff *handoff, bool gradient, int chunk, int micro);

// ---- The lane: lane.c ----------------------------------------------------------------------------------------------

// Buckets exchanged with the replicas of the stage: in every step each bucket's gradients once they are ready; after the update,
// if sharded, each bucket's weights. They are started in the order of the buckets, weights in the opposite one: the same on all
// members whatever their programs look like, since collectives match by order. A group works on one exchange at a time, and over a long
// way each begins and ends with a wait for it: there the buckets take turns over two groups: while one waits the other has the way.
enum gang_lane_phase { LANE_REDUCE, LANE_GATHER, LANE_PHASES };
enum { LANE_WAYS = 2 };

struct gang_lane {
    int ways; // groups; 0: no other replica
    struct gang_comm *groups[LANE_WAYS];
    const struct gang_cell *cell;
    bool sharded;
    int next[LANE_PHASES];                    // how many are started, in the phase's order
    bool *ready[LANE_PHASES];                 // [buckets]
    struct gang_collective *ops[LANE_PHASES]; // [buckets]
};

// The lane's groups are there already.
void gang_lane_init(struct gang_lane *lane, const struct gang_cell *cell, bool sharded, struct gang_arena *arena);
void gang_lane_begin(struct gang_lane *lane, enum gang_lane_phase phase); // none is ready
// The bucket is ready: starts it, unless one before it is not, and those behind that waited for it.
GANG_CHECK_RESULT enum gang_status gang_lane_post(struct gang_lane *lane, enum gang_lane_phase phase, int bucket);
GANG_CHECK_RESULT enum gang_status gang_lane_wait(struct gang_lane *lane, enum gang_lane_phase phase, int bucket);

// ---- Cells: net_cell.c, stand_in.c ---------------------------------------------------------------------------------

// The network's memory without opening it; then the network. `owned` of the cell is filled in between.
void gang_net_cell_init(struct gang_cell *cell, struct gang_arena *arena, struct gang_net_shape *shape, const struct gang_net_chunk *chunks);
GANG_CHECK_RESULT enum gang_status gang_net_cell_open(struct gang_cell *cell, const struct gang_net_shape *shape);
void gang_stand_in_init(struct gang_cell *cell, struct gang_arena *arena);
GANG_CHECK_RESULT enum gang_status gang_stand_in_open(struct gang_cell *cell, struct gang_arena *arena);

// ---- What a save moves: stream.c -----------------------------------------------------------------------------------

enum { GANG_STREAM_AHEAD = 64, GANG_STREAM_AHEAD_BYTES = 32 << 20, PRIORITY_SAVE = 2 };

struct gang_streamed {
    struct gang_wire_op op;
    void *own; // buffer that goes when it is done; NULL: somebody else's
    size_t bytes;
};

// One way over a link, under TAG_SAVE. At most so many arrays are under way, and of buffers of the stream's own so many bytes, but
// always one. Stays in place until it is closed.
struct gang_stream {
    struct gang_wire_link *link;
    const size_t *sizes; // [count] of all that will come; the caller's
    int64_t count;
    int64_t first, next; // under way
    size_t held;
    bool taken; // the first is in the caller's hands
    struct gang_streamed items[GANG_STREAM_AHEAD];
};

void gang_stream_init(struct gang_stream *stream, struct gang_wire_link *link);
// Receiving: says what will come, and posts the first of it.
GANG_CHECK_RESULT enum gang_status gang_stream_expect(struct gang_stream *stream, const size_t *sizes, int64_t count);
// The next one, which stays until the call after this.
GANG_CHECK_RESULT enum gang_status gang_stream_take(struct gang_stream *stream, float **out);
// Sending: `data` stays as it is until the stream is closed. `own` (or NULL) is its buffer, which the stream frees.
GANG_CHECK_RESULT enum gang_status gang_stream_give(struct gang_stream *stream, const float *data, size_t bytes, float *own);
// Waits for all that is under way. Returns `before` with its text where that is an error, otherwise the stream's first.
GANG_CHECK_RESULT enum gang_status gang_stream_close(struct gang_stream *stream, enum gang_status before);

// ---- The rank ------------------------------------------------------------------------------------------------------

enum { RANK_CHANNELS = 8 };

struct gang_rank {
    struct gang_rank_options options;
    struct gang_arena arena;
    struct gang_cell cell;
    struct gang_net_shape shape;
    const struct gang_rank_program *program;
    int stages, stage, replica, chunks;         // chunks: of the program
    int64_t batch, micro_batches, first_sample; // of this replica: B; in a step its micro-batches, its first sample
    int64_t samples;                            // of all replicas in a step
    int16_t *slots;                             // [instructions] activation slot of compute instructions
    int channel_count;
    struct gang_channel channels[RANK_CHANNELS];
    struct gang_handoff handoff; // of one stage
    void *messages;              // all channels' memory, or the handoff's
    size_t message_memory;
    int32_t *tokens;                                            // [B, T + 1]
    struct gang_comm *stage_group, *replica_group, *cell_group; // NULL: alone; the first is also the lane's first
    struct gang_net_cell exchange;                              // inside the cell
    enum gang_status exchange_status;
    double exchange_seconds; // of the pass that runs
    struct gang_lane lane;
    enum gang_status post_status; // of buckets posted in the pass that runs
    bool gather_due;
    // The tied embedding between the first stage and the last.
    bool tied_first, tied_last;
    int64_t tied_offset; // of the embedding in the flat array
    size_t tied_elements;
    int tied_bucket; // that holds it; -1: none
    float *tied_sum; // first stage: the last one's gradient comes here
    struct gang_wire_op tied_gradient, tied_weights;
    bool tied_weights_due;  // last stage: a receive is posted, first stage: weights are to be sent
    int64_t tied_backwards; // last stage: micro-batches of the last chunk that are done
    // The step that runs.
    int64_t step; // from 0
    double loss, began, busy;
    bool *chunk_fresh; // [chunks of the stage] its weights are here
    struct gang_span *spans;
    size_t span_count;
    bool streaming; // the next backward is its chunk's last
};

// What a replica of this stage updates, ascending; returns the number of ranges. `out` holds one for each bucket.
int gang_rank_owned(const struct gang_rank *rank, int replica, struct gang_range *out);
// Brings the weights that other replicas have updated, so that all hold all.
GANG_CHECK_RESULT enum gang_status gang_rank_settle(struct gang_rank *rank);
GANG_CHECK_RESULT enum gang_status gang_rank_restore(struct gang_rank *rank, const char *dir);
// To the device of another cell with this one's tp_index: another replica's of this stage, or of a stage as wide, or from first to first.
// To another of this cell.
struct gang_wire_link *gang_rank_link(const struct gang_rank *rank, int replica, int stage);
struct gang_wire_link *gang_rank_cell_link(const struct gang_rank *rank, int tp_index);

#endif
