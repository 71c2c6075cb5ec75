// The pre-tokenizer: patterns that cut text into words. tokenizer.json carries Oniguruma patterns and we run PCRE2, which
// reads the same syntax with few differences: \s is White_Space in Oniguruma (PCRE2 adds U+180E), so it is rewritten, and
// escapes that mean something else or nothing there are refused.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "model/tokenizer_internal.h"

enum { MAX_PATTERN_BYTES = 1 << 16 };

static enum gang_status translate(const char *where, const char *pattern, struct gang_buffer *out) {
    for (const char *p = pattern; *p; p++) {
        if (*p != '\\') {
            gang_buffer_append(out, p, 1);
            continue;
        }
        p++;
        if (*p == 's') {
            gang_buffer_printf(out, "\\p{White_Space}");
        } else if (*p == 'S') {
            gang_buffer_printf(out, "\\P{White_Space}");
        } else if (!*p || strchr("bBCEgGhHkKNOQRwWXyYZ", *p)) {
            return gang_fail(GANG_ERR_UNSUPPORTED, "%s: the pattern uses \\%c, which is not supported", where, *p);
        } else {
            gang_buffer_append(out, p - 1, 2);
        }
    }
    return GANG_OK;
}

enum gang_status gang_pattern_compile(const char *where, const char *pattern, bool literal, pcre2_code **out) {
    struct gang_buffer text = {0};
    enum gang_status status = GANG_OK;
    if (!*pattern || strlen(pattern) > MAX_PATTERN_BYTES) {
        status = gang_fail(GANG_ERR_FORMAT, "%s: the pattern is empty or longer than %d bytes", where, MAX_PATTERN_BYTES);
        goto out;
    }
    if (literal) {
        gang_buffer_append(&text, pattern, strlen(pattern));
    } else {
        status = translate(where, pattern, &text);
        if (status) goto out;
    }
    int code;
    PCRE2_SIZE at;
    uint32_t options = PCRE2_UTF | PCRE2_NEVER_BACKSLASH_C | (literal ? PCRE2_LITERAL : PCRE2_UCP);
    if (literal) options &= ~(uint32_t)PCRE2_NEVER_BACKSLASH_C; // not accepted beside PCRE2_LITERAL
    *out = pcre2_compile((PCRE2_SPTR)text.data, text.len, options, &code, &at, NULL);
    if (!*out) {
        char why[128];
        pcre2_get_error_message(code, (PCRE2_UCHAR *)why, sizeof why);
        status = gang_fail(GANG_ERR_FORMAT, "%s: cannot read the pattern at character %zu: %s", where, at, why);
        goto out;
    }
    pcre2_jit_compile(*out, PCRE2_JIT_COMPLETE); // where there is no JIT, the interpreter serves
out:
    gang_buffer_release(&text);
    return status;
}

static enum gang_status put_space(struct gang_encoder *encoder, int step, const char *text, size_t bytes) {
    bool continued = encoder->continued;
    encoder->continued = false;
    if (continued || text[0] == ' ') return gang_pretokenize(encoder, step + 1, text, bytes);
    // The steps end soon after: only one of them puts a space, so the buffer is not in use.
    encoder->prefixed.len = 0;
    gang_buffer_append(&encoder->prefixed, " ", 1);
    gang_buffer_append(&encoder->prefixed, text, bytes);
    return gang_pretokenize(encoder, step + 1, encoder->prefixed.data, encoder->prefixed.len);
}

// A part of the text that `step` matched or left out goes to the next step.
static enum gang_status pass(struct gang_encoder *encoder, int step, const char *part, size_t bytes, bool matched) {
    const struct gang_step *rule = &encoder->tokenizer->steps[step];
    if (!bytes || (rule->removed && matched != rule->invert)) return GANG_OK;
    return gang_pretokenize(encoder, step + 1, part, bytes);
}

static enum gang_status split(struct gang_encoder *encoder, int step, const char *text, size_t bytes) {
    const pcre2_code *pattern = encoder->tokenizer->steps[step].pattern;
    size_t done = 0; // passed on up to here
    for (size_t at = 0; at < bytes;) {
        int found = pcre2_match(pattern, (PCRE2_SPTR)text, bytes, at, PCRE2_NO_UTF_CHECK, encoder->match, encoder->context);
        if (found == PCRE2_ERROR_NOMATCH) break;
        if (found < 0) {
            char why[128];
            pcre2_get_error_message(found, (PCRE2_UCHAR *)why, sizeof why);
            return gang_fail(GANG_ERR_UNSUPPORTED, "%s: the pre_tokenizer's pattern fails on this text: %s", encoder->tokenizer->path, why);
        }
        // The steps further on use the same match data: take the result out first.
        const PCRE2_SIZE *span = pcre2_get_ovector_pointer(encoder->match);
        size_t from = span[0] < done ? done : span[0], to = span[1] < from ? from : span[1];
        enum gang_status status = pass(encoder, step, text + done, from - done, false);
        if (!status) status = pass(encoder, step, text + from, to - from, true);
        if (status) return status;
        done = to;
        at = to > from ? to : from + (from < bytes ? gang_utf8_char(text + from, bytes - from) : 1);
    }
    return pass(encoder, step, text + done, bytes - done, false);
}

enum gang_status gang_pretokenize(struct gang_encoder *encoder, int step, const char *text, size_t bytes) {
    if (!bytes) return GANG_OK;
    if (step < encoder->tokenizer->step_count)
        return encoder->tokenizer->steps[step].pattern ? split(encoder, step, text, bytes) : put_space(encoder, step, text, bytes);
    gang_bpe_word(encoder->bpe, text, bytes, encoder->out);
    return GANG_OK;
}
