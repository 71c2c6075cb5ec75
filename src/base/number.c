// Numbers from text and for people, random numbers that are pure functions, hashes.
#include "base/base.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

// strtoll and strtod skip leading space and read more notations than a person means (hexadecimal, inf, nan).
static bool is_decimal(const char *text) { return *text && text[strspn(text, "+-.0123456789eE")] == 0; }

enum gang_status gang_parse_int(const char *what, const char *text, int64_t min, int64_t max, int64_t *out) {
    char *end = NULL;
    errno = 0;
    long long value = strtoll(text, &end, 10);
    const char *problem = !is_decimal(text) || *end ? "is not a whole number" : errno || value < min || value > max ? "is out of range" : NULL;
    if (problem) return gang_fail(GANG_ERR_INPUT, "%s: '%s' %s: expected %lld to %lld", what, text, problem, (long long)min, (long long)max);
    *out = value;
    return GANG_OK;
}

enum gang_status gang_parse_real(const char *what, const char *text, double min, double max, double *out) {
    char *end = NULL;
    double value = strtod(text, &end);
    const char *problem = !is_decimal(text) || *end ? "is not a number" : !isfinite(value) || value < min || value > max ? "is out of range" : NULL;
    if (problem) return gang_fail(GANG_ERR_INPUT, "%s: '%s' %s: expected %g to %g", what, text, problem, min, max);
    *out = value;
    return GANG_OK;
}

struct unit {
    const char *name;
    double factor; // to the base unit
};

struct unit_family {
    const char *example;
    struct unit units[20];
};

static const struct unit_family unit_families[] = {
    [GANG_UNIT_BYTES] = {"80GiB or 512MB",
                         {{"B", 1},
                          {"KB", 1e3},
                          {"kB", 1e3},
                          {"MB", 1e6},
                          {"GB", 1e9},
                          {"TB", 1e12},
                          {"KiB", 0x1p10},
                          {"MiB", 0x1p20},
                          {"GiB", 0x1p30},
                          {"TiB", 0x1p40}}},
    [GANG_UNIT_RATE] = {"200Gbps (bits) or 3.35TB/s (bytes)",
                        {{"bps", 0.125},
                         {"Kbps", 125},
                         {"kbps", 125},
                         {"Mbps", 125e3},
                         {"Gbps", 125e6},
                         {"Tbps", 125e9},
                         {"B/s", 1},
                         {"KB/s", 1e3},
                         {"kB/s", 1e3},
                         {"MB/s", 1e6},
                         {"GB/s", 1e9},
                         {"TB/s", 1e12}}},
    [GANG_UNIT_FLOPS] = {"989TFLOPS", {{"FLOPS", 1}, {"GFLOPS", 1e9}, {"TFLOPS", 1e12}, {"PFLOPS", 1e15}}},
    [GANG_UNIT_TIME] = {"5ms", {{"ns", 1e-9}, {"us", 1e-6}, {"ms", 1e-3}, {"s", 1}, {"min", 60}, {"h", 3600}, {"d", 86400}}},
    [GANG_UNIT_LENGTH] = {"300km", {{"m", 1}, {"km", 1e3}}},
};

enum gang_status gang_parse_quantity(const char *what, const char *text, enum gang_unit unit, double min, double max, double *out) {
    enum { NUMBER = 40 };
    const struct unit_family *family = &unit_families[unit];
    // An exponent is part of the number only before a digit: 1e3km, but not 5EB.
    size_t digits = strspn(text, "+-.0123456789");
    if (text[digits] == 'e' && text[digits + 1] && strchr("+-0123456789", text[digits + 1])) digits += 1 + strspn(text + digits + 1, "+-0123456789");
    const char *name = text + digits + strspn(text + digits, " ");
    const struct unit *found = family->units;
    while (found->name && strcmp(found->name, name) != 0) found++;
    if (!digits || digits >= NUMBER || !found->name)
        return gang_fail(GANG_ERR_INPUT, "%s: '%s' is not a number with a unit of its kind: expected for example %s", what, text, family->example);
    char number[NUMBER];
    memcpy(number, text, digits);
    number[digits] = 0;
    double value = 0;
    enum gang_status status = gang_parse_real(what, number, -1e300, 1e300, &value);
    if (status) return status;
    value *= found->factor;
    if (value < min || value > max)
        return gang_fail(GANG_ERR_INPUT, "%s: '%s' is out of range: expected %g to %g %s", what, text, min / found->factor, max / found->factor,
                         found->name);
    *out = value;
    return GANG_OK;
}

static const char *human(double value, double step, const char *const *units, int unit_count, char *out) {
    int unit = 0;
    while (fabs(value) >= step && unit + 1 < unit_count) {
        value /= step;
        unit++;
    }
    int digits = unit == 0 || value >= 100 ? 0 : value >= 10 ? 1 : 2;
    snprintf(out, GANG_HUMAN_BYTES, "%.*f%s", digits, value, units[unit]);
    return out;
}

const char *gang_human_bytes(double bytes, char *out) {
    static const char *const names[] = {" B", " KiB", " MiB", " GiB", " TiB", " PiB"};
    return human(bytes, 1024, names, 6, out);
}

const char *gang_human_count(double count, char *out) {
    static const char *const names[] = {"", " K", " M", " B", " T"};
    return human(count, 1000, names, 5, out);
}

const char *gang_human_seconds(double seconds, char *out) {
    if (seconds < 60) {
        snprintf(out, GANG_HUMAN_BYTES, "%.0f s", seconds);
    } else if (seconds < 3600) {
        snprintf(out, GANG_HUMAN_BYTES, "%d min %02d s", (int)seconds / 60, (int)seconds % 60);
    } else {
        double hours = seconds / 3600;
        snprintf(out, GANG_HUMAN_BYTES, hours < 48 ? "%.1f h" : "%.0f h", hours);
    }
    return out;
}

// splitmix64's finaliser (Steele, Lea, Flood 2014), chained over the three inputs.
static uint64_t mix(uint64_t x) {
    x += 0x9e3779b97f4a7c15u;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    return x ^ (x >> 31);
}

uint64_t gang_random_at(uint64_t seed, uint64_t stream, uint64_t index) { return mix(mix(mix(seed) ^ stream) ^ index); }

double gang_normal_at(uint64_t seed, uint64_t stream, uint64_t index) {
    // Box-Muller; 1 - u keeps the logarithm finite.
    double u = gang_uniform(gang_random_at(seed, stream, 2 * index));
    double v = gang_uniform(gang_random_at(seed, stream, 2 * index + 1));
    return sqrt(-2 * log(1 - u)) * cos(6.283185307179586 * v);
}

uint64_t gang_hash(const void *data, size_t bytes, uint64_t seed) { return XXH3_64bits_withSeed(data, bytes, seed); }
