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
    enum gang_quantity kind;
    const char *name;
    double scale;
};

static const struct unit units[] = {
    {GANG_TIME, "ns", 1e-9},      {GANG_TIME, "us", 1e-6},      {GANG_TIME, "ms", 1e-3},       {GANG_TIME, "s", 1},
    {GANG_TIME, "min", 60},       {GANG_TIME, "h", 3600},       {GANG_RATE, "bps", 1.0 / 8},   {GANG_RATE, "kbps", 1e3 / 8},
    {GANG_RATE, "Mbps", 1e6 / 8}, {GANG_RATE, "Gbps", 1e9 / 8}, {GANG_RATE, "Tbps", 1e12 / 8}, {GANG_RATE, "B/s", 1},
    {GANG_RATE, "kB/s", 1e3},     {GANG_RATE, "MB/s", 1e6},     {GANG_RATE, "GB/s", 1e9},      {GANG_RATE, "TB/s", 1e12},
    {GANG_BYTES, "B", 1},         {GANG_BYTES, "kB", 1e3},      {GANG_BYTES, "MB", 1e6},       {GANG_BYTES, "GB", 1e9},
    {GANG_BYTES, "TB", 1e12},     {GANG_BYTES, "KiB", 0x1p10},  {GANG_BYTES, "MiB", 0x1p20},   {GANG_BYTES, "GiB", 0x1p30},
    {GANG_BYTES, "TiB", 0x1p40},  {GANG_LENGTH, "m", 1},        {GANG_LENGTH, "km", 1e3},
};
enum { UNITS = sizeof units / sizeof *units, NUMBER_CHARS = 64, NAMES_CHARS = 128 };

static enum gang_status not_a_quantity(const char *what, const char *text, enum gang_quantity kind) {
    char names[NAMES_CHARS] = "";
    for (int i = 0; i < UNITS; i++)
        if (units[i].kind == kind) snprintf(names + strlen(names), sizeof names - strlen(names), " %s", units[i].name);
    return gang_fail(GANG_ERR_INPUT, "%s: '%s' is not a number with a unit: expected one of%s", what, text, names);
}

enum gang_status gang_parse_quantity(const char *what, const char *text, enum gang_quantity kind, double min, double max, double *out) {
    // The unit is the longest tail that names one; "5e3 ms" and "5e-3s" keep their exponents.
    size_t digits = strspn(text, "+-.0123456789");
    if (text[digits] == 'e' && strspn(text + digits + 1, "+-0123456789")) digits += 1 + strspn(text + digits + 1, "+-0123456789");
    const char *unit = text + digits + strspn(text + digits, " ");
    char number[NUMBER_CHARS];
    if (!digits || digits >= sizeof number) return not_a_quantity(what, text, kind);
    memcpy(number, text, digits);
    number[digits] = 0;
    double value;
    enum gang_status status = gang_parse_real(what, number, -1e300, 1e300, &value);
    if (status) return status;
    int i = 0;
    while (i < UNITS && (units[i].kind != kind || strcmp(units[i].name, unit) != 0)) i++;
    if (i == UNITS && !(value == 0 && !*unit)) return not_a_quantity(what, text, kind);
    value *= i < UNITS ? units[i].scale : 1;
    if (value < min || value > max) return gang_fail(GANG_ERR_INPUT, "%s: '%s' is out of range", what, text);
    *out = value;
    return GANG_OK;
}

static const char *human(double value, double step, const char *const *names, int unit_count, char *out) {
    int unit = 0;
    while (fabs(value) >= step && unit + 1 < unit_count) {
        value /= step;
        unit++;
    }
    int digits = unit == 0 || value >= 100 ? 0 : value >= 10 ? 1 : 2;
    snprintf(out, GANG_HUMAN_BYTES, "%.*f%s", digits, value, names[unit]);
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
