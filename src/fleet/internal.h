// What coordinator and workers say to one another, and the parts of both. Internal to src/fleet.
#ifndef GANG_FLEET_INTERNAL_H
#define GANG_FLEET_INTERNAL_H

#include "fleet/fleet.h"

#include <jansson.h>

// Bodies are JSON objects.
enum gang_fleet_message {
    FLEET_SETUP = 1, // to a worker: what its device is
    FLEET_MEASURE,   // from it: it measures its device, which takes a while
    FLEET_READY,     // from it: where it listens, what it has, what it measured
    FLEET_ASSIGN,    // to it: its rank, the program, its peers
    FLEET_BUILT,     // from it: everything is in place, with this much memory
    FLEET_GO,        // to it
    FLEET_STEP,      // from it
    FLEET_SAVED,     // from rank 0
    FLEET_STOP,      // to it: end after the step that runs
    FLEET_DONE,      // from it: all is saved; the last step's spans
    FLEET_END,       // to it: nothing more
    FLEET_FAIL,      // from it: why it ends
};

enum { WARM_STEPS = 2 }; // at a run's start, which tell nothing of those behind them

// Reads a body; NULL with an error for what is no object.
GANG_CHECK_RESULT enum gang_status gang_fleet_parse(const void *data, size_t bytes, json_t **out);
double gang_fleet_number(const json_t *object, const char *key);                                                      // 0 if it is not there
GANG_CHECK_RESULT enum gang_status gang_fleet_numbers(const json_t *object, const char *key, int count, double *out); // exactly `count`
json_t *gang_fleet_array(int count, const double *values);
// What a file holds, in 16 digits; "" if it cannot be read. By it hosts see that they have the same one.
void gang_fleet_sum(const char *path, char out[17]);
void gang_fleet_sum_model(const char *path, char out[17]); // of the config.json that a job's `model` means

// ---- Measuring: measure.c ------------------------------------------------------------------------------------------

// Times of this model's layers on the device, at these micro-batch sizes. `shared`: it has a share of a core.
GANG_CHECK_RESULT enum gang_status gang_fleet_measure(const struct gang_config *config, struct gang_device *device, bool shared,
                                                      enum gang_compute message, int64_t length, int count, const int64_t *sizes,
                                                      struct gang_times *out);
// Times are kept in the cache under everything that they depend on, which `about` says in words.
char *gang_fleet_times_path(const char *about, struct gang_arena *arena);
GANG_CHECK_RESULT enum gang_status gang_fleet_times_keep(const char *about, const struct gang_times *times);
bool gang_fleet_times_recall(const char *about, struct gang_times *out);
json_t *gang_fleet_times_json(const struct gang_times *times);
GANG_CHECK_RESULT enum gang_status gang_fleet_times_parse(const json_t *object, struct gang_times *out);

// ---- Where ranks run: place.c --------------------------------------------------------------------------------------

// device[rank] on the pool's line, for the answer's unfolded program: the first of the tp neighbours that are the rank's.
void gang_fleet_devices(const struct gang_pool *pool, const struct gang_answer *answer, int *device);

// The relays that stand in for long links on this machine.
struct gang_fleet_relays {
    int count;
    struct gang_relay *relay[GANG_MAX_LINKS];
    double began;
};
GANG_CHECK_RESULT enum gang_status gang_fleet_relays_open(const struct gang_pool *pool, double slow, struct gang_fleet_relays *out);
void gang_fleet_relays_close(struct gang_fleet_relays *relays);
// The address by which a rank at site `from` reaches `to` at another; through the relays on the way. out[GANG_ADDRESS_TEXT].
GANG_CHECK_RESULT enum gang_status gang_fleet_relays_way(struct gang_fleet_relays *relays, const struct gang_pool *pool, int from_site, int to_site,
                                                         const char *to, char *out);

#endif
