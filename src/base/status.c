// Error text per thread, and the log.
#include "base/base.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

static _Thread_local char error_text[GANG_ERROR_BYTES];

void gang_error_set(const char *format, ...) {
    // Arguments may point into error_text itself (a caller that adds context), so format aside first.
    char text[GANG_ERROR_BYTES];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    // Text quoted from a file may hold terminal escapes and line ends: a message is one harmless line.
    for (char *p = text; *p; p++)
        if ((unsigned char)*p < 0x20 || *p == 0x7f) *p = ' ';
    memcpy(error_text, text, sizeof text);
}

void gang_error_set_os(const char *format, ...) {
    int code = errno;
    char text[GANG_ERROR_BYTES];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    gang_error_set("%s: %s", text, strerror(code));
}

const char *gang_error(void) { return error_text; }

static gang_log_sink *log_sink;

void gang_log_to(gang_log_sink *sink) { log_sink = sink; }

void gang_log(enum gang_log_level level, const char *format, ...) {
    if (!log_sink) return;
    char text[GANG_ERROR_BYTES];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    log_sink(level, text);
}
