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
    static const char *const units[] = {" B", " KiB", " MiB", " GiB", " TiB", " PiB"};
    return human(bytes, 1024, units, 6, out);
}

const char *gang_human_count(double count, char *out) {
    static const char *const units[] = {"", " K", " M", " B", " T"};
    return human(count, 1000, units, 5, out);
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
