// Opening a device by the name of its kind.
#include "device/device.h"
#include "device/cpu.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_THREADS = 1024 };

enum gang_status gang_device_open(const struct gang_device_options *options, struct gang_device **out) {
    *out = NULL;
    if (options->threads < 0 || options->threads > MAX_THREADS)
        return gang_fail(GANG_ERR_INPUT, "device: %d threads: expected 0 (all cores) to %d", options->threads, MAX_THREADS);
    struct gang_device *device = calloc(1, sizeof *device);
    assert(device && "out of memory");
    device->compute = options->compute;
    device->threads = options->threads ? options->threads : gang_cpu_count();
    enum gang_status status = GANG_OK;
    if (!strcmp(options->kind, "cpu")) {
        status = gang_cpu_open(device, options->instructions);
    } else if (!strcmp(options->kind, "ref")) {
        gang_ref_open(device);
    } else {
        status = gang_fail(GANG_ERR_INPUT, "device: kind '%s' is not known: expected cpu or ref", options->kind);
    }
    if (status) {
        free(device);
        return status;
    }
    *out = device;
    return GANG_OK;
}

void gang_device_close(struct gang_device *device) {
    if (!device) return;
    if (device->own) gang_cpu_close(device);
    free(device);
}

size_t gang_device_act_bytes(const struct gang_device *device) { return device->compute == GANG_COMPUTE_BF16 ? 2 : 4; }

size_t gang_device_scratch_bytes(const struct gang_device *device, const struct gang_attention *shape, int64_t columns) {
    size_t attention = gang_cpu_attention_bytes(shape), sums = (size_t)columns * sizeof(float);
    return (size_t)device->threads * (attention > sums ? attention : sums);
}
