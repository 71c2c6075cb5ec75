// sum: adding up what the members of a group have sent. Internal to src/wire.
#ifndef GANG_WIRE_SUM_H
#define GANG_WIRE_SUM_H

#include "wire/wire.h"

// to[i] = (((parts[0][i] + parts[1][i]) + parts[2][i]) + ...), in f32, rounded to the type at the end; a NaN is the quiet
// one of that type. With `shards`, the ascending numbers of the parts, the sum goes by the tree over these numbers: parts are
// apart at the highest bit in which any of them differ, and what has a 0 there is summed first, by the same rule, then what has
// a 1, then the two. `to` may be one of the parts. This is the definition; gang_sum gives the same bits faster.
void gang_sum_reference(void *to, const void *const *parts, const int *shards, int count, size_t elements, enum gang_element type);
void gang_sum(void *to, const void *const *parts, const int *shards, int count, size_t elements, enum gang_element type);

#endif
