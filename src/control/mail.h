// mail: messages of any size over a wire link, without waiting: what comes is asked for, what goes is queued. And how the
// control's own messages are packed. Internal to src/control.
#ifndef GANG_CONTROL_MAIL_H
#define GANG_CONTROL_MAIL_H

#include "control/control.h"
#include "wire/wire.h"

enum {
    CONTROL_RANK = 1 << 20,     // the coordinator's rank on the wire; agents follow, workers count from 0
    CONTROL_HEARTBEAT_MS = 100, // on a busy machine we may wake so late, and what one sleeps through is nobody's silence
    CONTROL_DEAD_MS = 5000,     // a link that is silent for so long is lost
    CONTROL_ASK_MS = 1000,      // from asking to SIGTERM
    CONTROL_TERM_MS = 1000,     // from there to SIGKILL
    MAIL_LETTERS = 200,         // that may wait to be sent; their operations stay below what a link can hold
};

// Types of the control's own messages; the caller's are below.
enum gang_mail_type {
    MAIL_READY = GANG_CONTROL_TYPES, // agent: here I am
    MAIL_START,                      // to an agent: argv and workers
    MAIL_LOG,
    MAIL_EXIT,
    MAIL_ENDS,  // agent: it was told to end by somebody else
    MAIL_KILL,  // to an agent: this worker, it does not answer
    MAIL_STOP,  // to an agent or a worker: end
    MAIL_JOIN,  // worker: here I am
    MAIL_LEAVE, // worker: this was all; and the answer to it
};

struct gang_letter;

struct gang_mail {
    struct gang_wire_link *link;
    enum { MAIL_HEADER, MAIL_BODY, MAIL_FULL, MAIL_DEAD } state;
    struct gang_wire_op op;
    uint8_t header[32];
    // The message that is there (MAIL_FULL).
    uint32_t type;
    uint8_t *data; // followed by a 0 byte
    size_t bytes;
    int64_t at_ns, offset_ns; // when it was sent, on our clock; what is added to the peer's clock
    bool offset_known;
    struct gang_letter *first; // that wait to be sent
    int letters;
};

// The link must be new; its memory must stay in place until the wire is closed.
void gang_mail_init(struct gang_mail *mail, struct gang_wire_link *link);
void gang_mail_release(struct gang_mail *mail); // after the wire is closed
// True when a message is there; gang_mail_done makes room for the next.
bool gang_mail_poll(struct gang_mail *mail);
void gang_mail_done(struct gang_mail *mail);
bool gang_mail_room(struct gang_mail *mail); // fewer than MAIL_LETTERS wait
GANG_CHECK_RESULT enum gang_status gang_mail_send(struct gang_mail *mail, uint32_t type, const void *data, size_t bytes);

// Little-endian fields and texts.
void gang_put_u32(struct gang_buffer *buffer, uint32_t value);
void gang_put_u64(struct gang_buffer *buffer, uint64_t value);
void gang_put_text(struct gang_buffer *buffer, const char *text);
struct gang_reader {
    const uint8_t *data;
    size_t left;
    bool bad; // it asked for more than there was, or for a text without an end
};
uint32_t gang_get_u32(struct gang_reader *reader);
uint64_t gang_get_u64(struct gang_reader *reader);
const char *gang_get_text(struct gang_reader *reader); // inside the data; "" when bad

// ---- The secret ----------------------------------------------------------------------------------------------------
//
// A text of hexadecimal digits in a file that exists in memory only, which the wire reads by way of /proc/self/fd.

enum { SECRET_CHARS = 64, SECRET_PATH_BYTES = 32 };
GANG_CHECK_RESULT enum gang_status gang_secret_make(char text[SECRET_CHARS + 1]);
GANG_CHECK_RESULT enum gang_status gang_secret_keep(const char *text, int *fd, char path[SECRET_PATH_BYTES]);

// What a worker finds in its environment: VERSION ADDRESS CLUSTER NUMBER SECRET_FD AGENT_PID.
#define GANG_WORKER_VARIABLE "GANGLINE_WORKER"

// ---- Lines ---------------------------------------------------------------------------------------------------------

enum gang_line { LINE_NONE, LINE_READY, LINE_END };
struct gang_lines {
    int fd; // non-blocking; -1: closed
    char chunk[GANG_CONTROL_LINE_BYTES], line[GANG_CONTROL_LINE_BYTES + 1];
    size_t at, got, length;
    uint64_t taken; // bytes read so far
};
// The next line, in lines->line. At the end the descriptor is closed.
enum gang_line gang_lines_next(struct gang_lines *lines);
enum gang_line gang_lines_rest(struct gang_lines *lines); // closes; what was left without a line end, if anything
// Makes a text one line of printable UTF-8, in place.
void gang_text_clean(char *text);

#endif
