// Arenas for bookkeeping, huge-page blocks for tensors, growing byte buffers.
#include "base/base.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum { ALIGNMENT = 64, BLOCK_BYTES = 64 << 10 };

struct gang_arena_block {
    struct gang_arena_block *next;
    size_t size, used;
    _Alignas(ALIGNMENT) char data[];
};

void gang_arena_init(struct gang_arena *arena) { *arena = (struct gang_arena){0}; }

void gang_arena_release(struct gang_arena *arena) {
    for (struct gang_arena_block *block = arena->head, *next; block; block = next) {
        next = block->next;
        free(block);
    }
    *arena = (struct gang_arena){0};
}

void gang_arena_reset(struct gang_arena *arena) {
    struct gang_arena_block *kept = arena->head;
    if (!kept) return;
    arena->head = kept->next;
    gang_arena_release(arena);
    kept->next = NULL;
    kept->used = 0;
    arena->head = kept;
}

void *gang_arena_alloc(struct gang_arena *arena, size_t bytes) {
    assert(bytes < SIZE_MAX / 2);
    size_t need = (bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
    struct gang_arena_block *block = arena->head;
    if (!block || block->size - block->used < need) {
        size_t size = need > BLOCK_BYTES ? need : BLOCK_BYTES;
        block = aligned_alloc(ALIGNMENT, sizeof *block + size);
        assert(block && "out of memory");
        *block = (struct gang_arena_block){.next = arena->head, .size = size};
        arena->head = block;
    }
    void *result = memset(block->data + block->used, 0, need);
    block->used += need;
    arena->used_bytes += need;
    return result;
}

char *gang_arena_strdup(struct gang_arena *arena, const char *text) {
    size_t bytes = strlen(text) + 1;
    return memcpy(gang_arena_alloc(arena, bytes), text, bytes);
}

char *gang_arena_printf(struct gang_arena *arena, const char *format, ...) {
    va_list args, again;
    va_start(args, format);
    va_copy(again, args);
    int len = vsnprintf(NULL, 0, format, args);
    va_end(args);
    assert(len >= 0);
    char *text = gang_arena_alloc(arena, (size_t)len + 1);
    vsnprintf(text, (size_t)len + 1, format, again);
    va_end(again);
    return text;
}

static const size_t huge_page = (size_t)2 << 20;

enum gang_status gang_big_alloc(size_t bytes, void **out) {
    // Over-map by one huge page and trim, so that the block starts on one.
    size_t size = (bytes + huge_page - 1) / huge_page * huge_page;
    char *map = mmap(NULL, size + huge_page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (map == MAP_FAILED) {
        char human[GANG_HUMAN_BYTES];
        return gang_fail(GANG_ERR_MEMORY, "cannot reserve %s of memory: the kernel refused", gang_human_bytes((double)bytes, human));
    }
    size_t head = (huge_page - (uintptr_t)map % huge_page) % huge_page;
    if (head) munmap(map, head);
    munmap(map + head + size, huge_page - head);
    madvise(map + head, size, MADV_HUGEPAGE); // advice: where it is refused, small pages serve
    *out = map + head;
    return GANG_OK;
}

void gang_big_free(void *block, size_t bytes) {
    if (block) munmap(block, (bytes + huge_page - 1) / huge_page * huge_page);
}

void gang_big_forget(const void *from, size_t bytes) {
    size_t page = (size_t)sysconf(_SC_PAGESIZE), skipped = (page - (uintptr_t)from % page) % page;
    if (bytes >= skipped + page) madvise((char *)from + skipped, (bytes - skipped) / page * page, MADV_DONTNEED);
}

static void buffer_reserve(struct gang_buffer *buffer, size_t more) {
    assert(more < SIZE_MAX / 4 && buffer->len < SIZE_MAX / 4);
    size_t need = buffer->len + more + 1;
    if (need <= buffer->cap) return;
    size_t cap = buffer->cap ? buffer->cap : 256;
    while (cap < need) cap *= 2;
    buffer->data = realloc(buffer->data, cap);
    assert(buffer->data && "out of memory");
    buffer->cap = cap;
}

void gang_buffer_append(struct gang_buffer *buffer, const void *data, size_t len) {
    buffer_reserve(buffer, len);
    if (len) memcpy(buffer->data + buffer->len, data, len);
    buffer->len += len;
    buffer->data[buffer->len] = 0;
}

void gang_buffer_printf(struct gang_buffer *buffer, const char *format, ...) {
    va_list args, again;
    va_start(args, format);
    va_copy(again, args);
    int len = vsnprintf(NULL, 0, format, args);
    va_end(args);
    assert(len >= 0);
    buffer_reserve(buffer, (size_t)len);
    vsnprintf(buffer->data + buffer->len, (size_t)len + 1, format, again);
    va_end(again);
    buffer->len += (size_t)len;
}

void gang_buffer_release(struct gang_buffer *buffer) {
    free(buffer->data);
    *buffer = (struct gang_buffer){0};
}
