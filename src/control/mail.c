// A message is a header of fixed size on one tag of the link, then its body, if any, on another.
#include "control/mail.h"

#include <assert.h>
#include <endian.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <utf8proc.h>

enum { HEADER_TAG = 1, BODY_TAG = 2, MAGIC = 0x314c4347, VERSION = 1 };

struct gang_header { // as it stands on the wire, little-endian
    uint32_t magic, version, type, zero;
    uint64_t bytes;
    int64_t sent_ns;
};
_Static_assert(sizeof(struct gang_header) == sizeof((struct gang_mail *)0)->header, "a header has 32 bytes");

struct gang_letter {
    struct gang_letter *next;
    struct gang_wire_op ops[2];
    struct gang_header header;
    uint8_t body[];
};

// ---- Receiving -----------------------------------------------------------------------------------------------------

static void expect(struct gang_mail *mail, int state, uint32_t tag, void *data, size_t bytes) {
    mail->state = gang_wire_recv(mail->link, tag, data, bytes, &mail->op) ? MAIL_DEAD : state;
}

void gang_mail_init(struct gang_mail *mail, struct gang_wire_link *link) {
    *mail = (struct gang_mail){.link = link};
    expect(mail, MAIL_HEADER, HEADER_TAG, mail->header, sizeof mail->header);
}

void gang_mail_release(struct gang_mail *mail) {
    for (struct gang_letter *letter = mail->first, *next; letter; letter = next) {
        next = letter->next;
        free(letter);
    }
    free(mail->data);
    *mail = (struct gang_mail){.state = MAIL_DEAD};
}

static enum gang_status read_header(struct gang_mail *mail) {
    struct gang_header header;
    memcpy(&header, mail->header, sizeof header);
    if (le32toh(header.magic) != MAGIC || le32toh(header.version) != VERSION)
        return gang_fail(GANG_ERR_PEER, "control: a message of another version of Gangline: install the same version on all nodes");
    mail->type = le32toh(header.type);
    mail->bytes = le64toh(header.bytes);
    if (mail->bytes > GANG_CONTROL_MESSAGE_BYTES) return gang_fail(GANG_ERR_PEER, "control: a message of %zu bytes: it is damaged", mail->bytes);
    int64_t sent_ns = (int64_t)le64toh((uint64_t)header.sent_ns), offset_ns;
    if (__builtin_sub_overflow(gang_os->now_ns(), sent_ns, &offset_ns)) return gang_fail(GANG_ERR_PEER, "control: a message from no time");
    // The fastest message tells best how far the clocks are apart.
    if (!mail->offset_known || offset_ns < mail->offset_ns) mail->offset_ns = offset_ns;
    mail->offset_known = true;
    mail->at_ns = sent_ns + mail->offset_ns;
    mail->data = malloc(mail->bytes + 1);
    if (!mail->data) return gang_fail(GANG_ERR_MEMORY, "control: no memory for a message of %zu bytes", mail->bytes);
    mail->data[mail->bytes] = 0;
    return GANG_OK;
}

bool gang_mail_poll(struct gang_mail *mail) {
    while (mail->state == MAIL_HEADER || mail->state == MAIL_BODY) {
        if (!gang_wire_done(&mail->op)) return false;
        if (gang_wire_wait(&mail->op) || (mail->state == MAIL_HEADER && read_header(mail))) {
            mail->state = MAIL_DEAD;
        } else if (mail->state == MAIL_BODY || !mail->bytes) {
            mail->state = MAIL_FULL;
        } else {
            expect(mail, MAIL_BODY, BODY_TAG, mail->data, mail->bytes);
        }
    }
    return mail->state == MAIL_FULL;
}

void gang_mail_done(struct gang_mail *mail) {
    assert(mail->state == MAIL_FULL);
    free(mail->data);
    mail->data = NULL;
    expect(mail, MAIL_HEADER, HEADER_TAG, mail->header, sizeof mail->header);
}

// ---- Sending -------------------------------------------------------------------------------------------------------

bool gang_mail_room(struct gang_mail *mail) {
    for (struct gang_letter *letter; (letter = mail->first) && gang_wire_done(&letter->ops[0]) && gang_wire_done(&letter->ops[1]); mail->letters--) {
        mail->first = letter->next;
        free(letter);
    }
    return mail->letters < MAIL_LETTERS;
}

enum gang_status gang_mail_send(struct gang_mail *mail, uint32_t type, const void *data, size_t bytes) {
    if (bytes > GANG_CONTROL_MESSAGE_BYTES)
        return gang_fail(GANG_ERR_INPUT, "control: a message of %zu bytes: at most %d", bytes, GANG_CONTROL_MESSAGE_BYTES);
    if (mail->state == MAIL_DEAD) return gang_fail(GANG_ERR_PEER, "control: the other side is gone");
    if (!gang_mail_room(mail)) return gang_fail(GANG_ERR_PEER, "control: %d messages wait and the other side takes none", MAIL_LETTERS);
    struct gang_letter *letter = calloc(1, sizeof *letter + bytes), **last = &mail->first;
    if (!letter) return gang_fail(GANG_ERR_MEMORY, "control: no memory for a message of %zu bytes", bytes);
    letter->header = (struct gang_header){.magic = htole32(MAGIC),
                                          .version = htole32(VERSION),
                                          .type = htole32(type),
                                          .bytes = htole64(bytes),
                                          .sent_ns = (int64_t)htole64((uint64_t)gang_os->now_ns())};
    if (bytes) memcpy(letter->body, data, bytes);
    enum gang_status status = gang_wire_send(mail->link, HEADER_TAG, 0, &letter->header, sizeof letter->header, &letter->ops[0]);
    letter->ops[1] = letter->ops[0];
    letter->ops[1].done = true;
    if (status) {
        free(letter);
        return status;
    }
    if (bytes) status = gang_wire_send(mail->link, BODY_TAG, 0, letter->body, bytes, &letter->ops[1]);
    if (status) letter->ops[1].done = true; // the link has died between the two; the letter lives as long as its header
    while (*last) last = &(*last)->next;
    *last = letter;
    mail->letters++;
    return status;
}

// ---- Packing -------------------------------------------------------------------------------------------------------

void gang_put_u32(struct gang_buffer *buffer, uint32_t value) {
    value = htole32(value);
    gang_buffer_append(buffer, &value, sizeof value);
}

void gang_put_u64(struct gang_buffer *buffer, uint64_t value) {
    value = htole64(value);
    gang_buffer_append(buffer, &value, sizeof value);
}

void gang_put_text(struct gang_buffer *buffer, const char *text) { gang_buffer_append(buffer, text, strlen(text) + 1); }

static bool take(struct gang_reader *reader, void *out, size_t bytes) {
    if (reader->bad || reader->left < bytes) {
        reader->bad = true;
        return false;
    }
    memcpy(out, reader->data, bytes);
    reader->data += bytes;
    reader->left -= bytes;
    return true;
}

uint32_t gang_get_u32(struct gang_reader *reader) {
    uint32_t value = 0;
    return take(reader, &value, sizeof value) ? le32toh(value) : 0;
}

uint64_t gang_get_u64(struct gang_reader *reader) {
    uint64_t value = 0;
    return take(reader, &value, sizeof value) ? le64toh(value) : 0;
}

const char *gang_get_text(struct gang_reader *reader) {
    const char *text = (const char *)reader->data;
    const char *end = reader->bad || !reader->left ? NULL : memchr(text, 0, reader->left);
    if (!end) {
        reader->bad = true;
        return "";
    }
    reader->left -= (size_t)(end + 1 - text);
    reader->data += end + 1 - text;
    return text;
}

// ---- Lines ---------------------------------------------------------------------------------------------------------

static enum gang_line line_ends(struct gang_lines *lines) {
    if (lines->length && lines->line[lines->length - 1] == '\r') lines->length--;
    lines->line[lines->length] = 0;
    lines->length = 0;
    return LINE_READY;
}

enum gang_line gang_lines_next(struct gang_lines *lines) {
    while (lines->fd >= 0) {
        while (lines->at < lines->got) {
            char byte = lines->chunk[lines->at++];
            if (byte == '\n') return line_ends(lines);
            if (lines->length < GANG_CONTROL_LINE_BYTES) lines->line[lines->length++] = byte ? byte : ' ';
        }
        ssize_t n = read(lines->fd, lines->chunk, sizeof lines->chunk);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) return LINE_NONE;
        lines->at = 0;
        lines->got = n > 0 ? (size_t)n : 0;
        lines->taken += lines->got;
        if (n > 0) continue;
        close(lines->fd);
        lines->fd = -1;
        if (lines->length) return line_ends(lines);
    }
    return LINE_END;
}

enum gang_line gang_lines_rest(struct gang_lines *lines) {
    if (lines->fd >= 0) close(lines->fd);
    lines->fd = -1;
    return lines->length ? line_ends(lines) : LINE_END;
}

void gang_text_clean(char *text) {
    utf8proc_uint8_t *p = (utf8proc_uint8_t *)text;
    for (utf8proc_int32_t point; *p;) {
        utf8proc_ssize_t n = utf8proc_iterate(p, -1, &point);
        bool control = point < 0x20 || (point >= 0x7f && point < 0xa0);
        // Also what turns the direction of writing: a log must not show other than it says.
        bool turns = (point >= 0x202a && point <= 0x202e) || (point >= 0x2066 && point <= 0x2069) || point == 0x2028 || point == 0x2029;
        if (n < 1) {
            *p++ = '?';
        } else if (control || turns) {
            memset(p, point == '\t' || point == '\r' ? ' ' : '?', (size_t)n);
            p += n;
        } else {
            p += n;
        }
    }
}
