// base: what every other directory stands on. Errors, memory, the operating system, files, numbers, hashes, YAML and JSON.
//
// Everything here may be called from any thread unless it says otherwise. Pointers that a function returns inside an
// arena live as long as the arena.
#ifndef GANG_BASE_H
#define GANG_BASE_H

#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/socket.h>
#include <sys/types.h>

// ---- Status and error text -----------------------------------------------------------------------------------------

enum gang_status {
    GANG_OK = 0,
    GANG_ERR_INPUT,       // what the user gave is wrong: a value, a path, a combination
    GANG_ERR_FORMAT,      // a file's content is damaged or hostile
    GANG_ERR_UNSUPPORTED, // well-formed, but asks for something Gangline does not do
    GANG_ERR_OS,          // a system call failed
    GANG_ERR_MEMORY,      // does not fit
    GANG_ERR_STOPPED,     // the user asked for an end
    GANG_ERR_PEER,        // another rank died, fell silent or broke the protocol
};

#define GANG_CHECK_RESULT __attribute__((warn_unused_result))
#define GANG_PRINTF(f, a) __attribute__((format(printf, f, a)))

enum { GANG_ERROR_BYTES = 1024 };

// Records "what failed: why: what to do" for this thread and gives `status`. Called by whoever detects the error first;
// callers above pass the status on untouched. Macros, so that compilers see which status comes back.
#define gang_fail(status, ...) (gang_error_set(__VA_ARGS__), (status))
// Like gang_fail with GANG_ERR_OS; appends ": " and the text of errno.
#define gang_fail_os(...) (gang_error_set_os(__VA_ARGS__), GANG_ERR_OS)

GANG_PRINTF(1, 2) void gang_error_set(const char *format, ...);
GANG_PRINTF(1, 2) void gang_error_set_os(const char *format, ...);

// The text recorded last on this thread; "" when none.
const char *gang_error(void);

// ---- Arena ---------------------------------------------------------------------------------------------------------

// A growing arena: one lifetime, freed at once. Memory is zeroed. Not thread-safe.
struct gang_arena {
    struct gang_arena_block *head;
    size_t used_bytes; // handed out so far
};

void gang_arena_init(struct gang_arena *arena);
void gang_arena_release(struct gang_arena *arena);
void gang_arena_reset(struct gang_arena *arena); // empties it, keeps the block it allocated last

// Never returns NULL: running out of memory for bookkeeping ends the process by assert. Alignment 64.
void *gang_arena_alloc(struct gang_arena *arena, size_t bytes);
char *gang_arena_strdup(struct gang_arena *arena, const char *text);
GANG_PRINTF(2, 3) char *gang_arena_printf(struct gang_arena *arena, const char *format, ...);

// One block of zeroed memory of many GiB for tensors, on huge pages where the kernel has them; aligned to 2 MiB.
// GANG_ERR_MEMORY when the kernel refuses. Free with gang_big_free and the same size.
GANG_CHECK_RESULT enum gang_status gang_big_alloc(size_t bytes, void **out);
void gang_big_free(void *block, size_t bytes);
void gang_big_forget(const void *from, size_t bytes); // gives a part's whole pages back, of a mapped file too; they read as at first

// Growing byte buffer; heap. A zeroed struct is an empty buffer. `data` is always followed by a 0 byte once non-NULL.
struct gang_buffer {
    char *data;
    size_t len, cap;
};

void gang_buffer_append(struct gang_buffer *buffer, const void *data, size_t len);
GANG_PRINTF(2, 3) void gang_buffer_printf(struct gang_buffer *buffer, const char *format, ...);
void gang_buffer_release(struct gang_buffer *buffer);

// ---- The operating system, replaceable -----------------------------------------------------------------------------

// Each entry behaves like the POSIX call of its name (-1 and errno). Tests replace `gang_os` by a table with faults.
struct gang_os {
    int (*open)(const char *path, int flags, int mode);
    int (*close)(int fd);
    ssize_t (*pread)(int fd, void *data, size_t bytes, off_t at);
    ssize_t (*write)(int fd, const void *data, size_t bytes);
    int (*fsync)(int fd);
    int (*rename)(const char *from, const char *to);
    int (*unlink)(const char *path);
    int (*mkdir)(const char *path, int mode);
    int64_t (*now_ns)(void);  // monotonic
    int64_t (*wall_ns)(void); // since 1970, as whoever set this host's clock sees it
};

extern const struct gang_os gang_os_real;
extern const struct gang_os *gang_os; // set before threads start; points to gang_os_real by default

static inline double gang_seconds(void) { return (double)gang_os->now_ns() * 1e-9; }
// Returns at this time of gang_seconds, or at once if it has passed.
void gang_sleep_until(double seconds);

// ---- Sockets (TCP) -------------------------------------------------------------------------------------------------

struct gang_address {
    struct sockaddr_storage storage;
    socklen_t bytes;
};
enum { GANG_ADDRESS_TEXT = 80 };

// "host:port", "[v6]:port"; asks the resolver, so it may block. Port 0 lets the kernel pick when listening.
GANG_CHECK_RESULT enum gang_status gang_address_resolve(const char *what, const char *text, struct gang_address *out);
bool gang_address_is_loopback(const struct gang_address *address);
struct gang_address gang_address_with_port(const struct gang_address *address, uint16_t port);
// This host's own address for what goes to `remote`, with port 0; nothing is sent.
GANG_CHECK_RESULT enum gang_status gang_address_towards(const struct gang_address *remote, struct gang_address *out);
const char *gang_address_text(const struct gang_address *address, char out[GANG_ADDRESS_TEXT]);

// All sockets are non-blocking and close on exec. The caller closes them.
GANG_CHECK_RESULT enum gang_status gang_socket_listen(const struct gang_address *address, int *fd);
GANG_CHECK_RESULT enum gang_status gang_socket_address(int fd, struct gang_address *out); // its own, with the port that the kernel picked
// Starts to connect, from `local` unless NULL; writable when done, gang_socket_error then says how it went.
GANG_CHECK_RESULT enum gang_status gang_socket_connect(const struct gang_address *local, const struct gang_address *remote, int *fd);
int gang_socket_error(int fd);                           // an errno, 0 when connected
int gang_socket_accept(int listener);                    // -1 and errno
void gang_socket_no_delay(int fd);                       // small frames leave at once
void gang_socket_unsent(int fd, size_t bytes);           // takes no more while so much waits to be sent; 0: the system says
void gang_socket_wake_at(int fd, size_t bytes);          // readable from so many bytes on, or at the end
void gang_socket_buffers(int fd, size_t bytes);          // both ways, beyond the system's limit where we may
bool gang_socket_congestion(int fd, const char *name);   // false: the kernel has it not, or we may not
bool gang_socket_congested_by(int fd, const char *name); // whether this is what the socket uses

// ---- Processes of one machine ---------------------------------------------------------------------------------------

// Unix sockets by a name that lives in the kernel, in this network namespace, and dies with its listener. Non-blocking; accept with
// gang_socket_accept. Passing a descriptor sends one byte along with it.
GANG_CHECK_RESULT enum gang_status gang_local_listen(const char *name, int *fd);
GANG_CHECK_RESULT enum gang_status gang_local_connect(const char *name, int *fd); // at once or not at all
bool gang_local_same_user(int fd);                                                // the other end's process is of our user
bool gang_local_pass(int fd, int passed);                                         // false: errno
int gang_local_take(int fd);                                                      // -1 and errno; EPROTO when none came along
// Memory to be shared, zeroed, of a size that nobody can change. -1: the kernel refuses.
int gang_shared_new(size_t bytes);
void *gang_shared_map(int fd, size_t bytes); // NULL: it is not such memory, or not of this size
// Sleeps while the word has this value, for at most so long; wakes all who do, in whatever process.
void gang_shared_sleep(const uint32_t *word, uint32_t value, int64_t most_ns);
void gang_shared_wake(const uint32_t *word);
void gang_shared_unmap(void *map, size_t bytes);

// ---- Files ---------------------------------------------------------------------------------------------------------

// Whole file into memory (heap, data[len] == 0; free with gang_buffer_release). Refuses more than `max_bytes`.
GANG_CHECK_RESULT enum gang_status gang_file_read(const char *path, size_t max_bytes, struct gang_buffer *out);

// Reads exactly `bytes` at offset `at`; a file that ends earlier is GANG_ERR_FORMAT. `path` is for messages.
GANG_CHECK_RESULT enum gang_status gang_file_pread(int fd, const char *path, void *data, size_t bytes, int64_t at);

// Read-only mapping of a whole file. An empty file maps to data == NULL, bytes == 0.
struct gang_map {
    const uint8_t *data;
    size_t bytes;
};
GANG_CHECK_RESULT enum gang_status gang_map_open(const char *path, struct gang_map *out);
void gang_map_close(struct gang_map *map);

// A file that appears whole or not at all: written as PATH.tmp, published by fsync, rename, fsync of the directory.
// A zeroed struct is closed. After an error call gang_out_discard; it is harmless after publish and when closed.
struct gang_out {
    char *path, *tmp; // heap, owned
    int fd;           // valid while path is set
    char *data;       // write-behind buffer
    size_t len;
};
GANG_CHECK_RESULT enum gang_status gang_out_open(struct gang_out *out, const char *path);
GANG_CHECK_RESULT enum gang_status gang_out_write(struct gang_out *out, const void *data, size_t bytes);
GANG_CHECK_RESULT enum gang_status gang_out_publish(struct gang_out *out);
void gang_out_discard(struct gang_out *out);

// gang_out_* for content that is in memory already.
GANG_CHECK_RESULT enum gang_status gang_file_publish(const char *path, const void *data, size_t bytes);

// mkdir -p. An existing directory is success.
GANG_CHECK_RESULT enum gang_status gang_mkdirs(const char *path);
// fsync of a directory, so that renames inside it are durable.
GANG_CHECK_RESULT enum gang_status gang_dir_sync(const char *path);
// rm -r of a directory that Gangline itself made; never follows symbolic links. A missing one is success.
GANG_CHECK_RESULT enum gang_status gang_dir_remove(const char *path);
bool gang_path_is_dir(const char *path);
bool gang_path_exists(const char *path);
// From the root, without links and dots; the file must exist.
GANG_CHECK_RESULT enum gang_status gang_path_absolute(const char *path, struct gang_arena *arena, char **out);

// ---- Numbers -------------------------------------------------------------------------------------------------------

// The whole of `text` must be the number; ERR_INPUT names `what` and the text otherwise. Underscores are not accepted.
GANG_CHECK_RESULT enum gang_status gang_parse_int(const char *what, const char *text, int64_t min, int64_t max, int64_t *out);
GANG_CHECK_RESULT enum gang_status gang_parse_real(const char *what, const char *text, double min, double max, double *out);

// A number with a unit right behind it (a space between is fine). Limits and result are in the base unit.
enum gang_unit { GANG_UNIT_BYTES, GANG_UNIT_RATE, GANG_UNIT_FLOPS, GANG_UNIT_TIME, GANG_UNIT_LENGTH };
GANG_CHECK_RESULT enum gang_status gang_parse_quantity(const char *what, const char *text, enum gang_unit unit, double min, double max, double *out);

// "12.3 GiB", "1.2 M": for people. `out` holds at least GANG_HUMAN_BYTES.
enum { GANG_HUMAN_BYTES = 32 };
const char *gang_human_bytes(double bytes, char *out);
const char *gang_human_count(double count, char *out);
const char *gang_human_seconds(double seconds, char *out);

// ---- Random and hashes ---------------------------------------------------------------------------------------------

// A pure function of (seed, stream, index): 64 uniform bits. The base of all reproducible choices.
uint64_t gang_random_at(uint64_t seed, uint64_t stream, uint64_t index);
// Uniform in [0, 1) from 64 bits; standard normal from two draws at (seed, stream, index).
// The larger and the smaller of two numbers that are none of them NaN: what fmax and fmin, which are calls, give.
static inline double gang_larger(double a, double b) { return a > b ? a : b; }
static inline double gang_smaller(double a, double b) { return a < b ? a : b; }
static inline double gang_uniform(uint64_t bits) { return (double)(bits >> 11) * 0x1.0p-53; }
double gang_normal_at(uint64_t seed, uint64_t stream, uint64_t index);

uint64_t gang_hash(const void *data, size_t bytes, uint64_t seed); // XXH3

// ---- Log -----------------------------------------------------------------------------------------------------------

enum gang_log_level { GANG_LOG_INFO, GANG_LOG_WARNING };
// Lines go to the sink that src/cmd installs; without one they are dropped. One line a call, no newline.
typedef void gang_log_sink(enum gang_log_level level, const char *line);
void gang_log_to(gang_log_sink *sink);
GANG_PRINTF(2, 3) void gang_log(enum gang_log_level level, const char *format, ...);

// ---- YAML by schema ------------------------------------------------------------------------------------------------

enum gang_field_kind {
    GANG_FIELD_STRING,  // char * in the arena
    GANG_FIELD_STRINGS, // struct gang_strings: a scalar or a sequence of scalars
    GANG_FIELD_INT,     // int64_t
    GANG_FIELD_REAL,    // double
    GANG_FIELD_BOOL,    // bool
    GANG_FIELD_ENUM,    // int: the index in `detail`'s choices
    // Numbers that carry a unit; double, in the base unit.
    GANG_FIELD_BYTES,  // bytes: 80GiB, 512MB
    GANG_FIELD_RATE,   // bytes per second: 200Gbps (bits), 3.35TB/s (bytes)
    GANG_FIELD_FLOPS,  // FLOP per second: 989TFLOPS
    GANG_FIELD_TIME,   // seconds: 5ms, 20us
    GANG_FIELD_LENGTH, // metres: 300km
    // Nested mappings by the struct gang_schema in `detail`.
    GANG_FIELD_MAPPINGS, // struct gang_list: a sequence of mappings
};

struct gang_strings {
    int count;
    char **items;
};

// A sequence of mappings, each bound to a struct of schema->bytes that begins with a struct gang_place.
struct gang_list {
    int count;
    void *items;
};

// Where a mapping stands in its file, for messages about what its fields mean together.
struct gang_place {
    int line, column;
};

// One line of a schema. A field with neither `fallback` nor a value in the file is an error: it is required.
struct gang_field {
    const char *name;
    enum gang_field_kind kind;
    size_t offset;        // of the member in the bound struct
    const char *fallback; // text of the default, parsed like the file's; NULL: required
    double min, max;      // for INT, REAL and numbers with units (in the base unit), inclusive
    const void *detail;   // for ENUM const char *const [], ends with NULL; for MAPPINGS struct gang_schema
    const char *help;     // one line, for --help and the guide
};

struct gang_schema {
    const struct gang_field *fields;
    size_t count;
    size_t bytes; // of the struct that a mapping is bound to
};

// Reads a YAML mapping into `out` by `fields` (`count` of them). Unknown, doubled, ill-typed, out-of-range and missing
// fields are GANG_ERR_INPUT with "FILE:LINE: field: what is wrong: what was expected". Strings live in `arena`.
GANG_CHECK_RESULT enum gang_status gang_yaml_bind(const char *path, const struct gang_field *fields, size_t count, void *out,
                                                  struct gang_arena *arena);

// The same for files of nested mappings: the struct begins with a struct gang_place, and messages begin with
// "FILE:LINE:COLUMN: field". `text` NULL: read from `path`; otherwise `path` is only the name in messages.
GANG_CHECK_RESULT enum gang_status gang_yaml_bind_nested(const char *path, const struct gang_buffer *text, const struct gang_schema *schema,
                                                         void *out, struct gang_arena *arena);

// ---- CSV -----------------------------------------------------------------------------------------------------------

// A table with a header line (RFC 4180: quotes, doubled quotes inside, line ends in quotes). Every row has as many fields as
// the header; text lives in the arena.
struct gang_csv {
    int columns, rows;
    char **names; // [columns]
    char **cells; // [rows, columns]
    int *lines;   // [rows] where each begins
};
// GANG_ERR_INPUT names file and line of what is no table; at most 64 columns and `max_bytes`.
GANG_CHECK_RESULT enum gang_status gang_csv_read(const char *path, size_t max_bytes, struct gang_arena *arena, struct gang_csv *out);
// The cell of the column of this name; NULL without such a column.
const char *gang_csv_cell(const struct gang_csv *table, int row, const char *column);

// ---- JSON ----------------------------------------------------------------------------------------------------------

// Reads a JSON file of at most `max_bytes` (jansson value, caller decrefs). Errors carry file, line and column.
struct json_t;
GANG_CHECK_RESULT enum gang_status gang_json_read(const char *path, size_t max_bytes, struct json_t **out);

#endif
