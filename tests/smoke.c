/* The library by itself, for systems that no Python is at hand for: prints the CPU's features and the text of a
 * recording.
 *
 *     smoke MODEL.gguf AUDIO.wav      (16 kHz, mono, 16 bits)
 */
#include "pycrispasr.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int failed(const char * what, pcr_status status, const char * why) {
    char          text[2048];
    pcr_log_level level;
    while (pcr_take_log(&level, text, sizeof(text)) == PCR_OK) {
        fprintf(stderr, "log: %s\n", text);
    }
    fprintf(stderr, "%s: status %d: %s\n", what, (int)status, why ? why : "");
    return 1;
}

/* Stores the samples' count; NULL when the file is not what it should be. */
static float * read_wav(const char * path, int64_t * count) {
    unsigned char head[44];
    float *       samples = NULL;
    FILE *        file    = fopen(path, "rb");
    *count                = 0;
    if (file && fread(head, 1, sizeof(head), file) == sizeof(head) && memcmp(head + 36, "data", 4) == 0 &&
        head[22] == 1 && head[24] == 0x80 && head[25] == 0x3e && head[34] == 16) {
        const size_t bytes = head[40] | (size_t)head[41] << 8 | (size_t)head[42] << 16 | (size_t)head[43] << 24;
        samples            = malloc((bytes / 2 + 1) * sizeof(float));
        for (int low, high;
             samples && (low = fgetc(file)) != EOF && (high = fgetc(file)) != EOF && *count < (int64_t)(bytes / 2);
             ++*count) {
            samples[*count] = (float)(int16_t)(low | high << 8) / 32768.0f;
        }
    }
    if (file) {
        fclose(file);
    }
    return samples;
}

int main(int argc, char ** argv) {
    if (argc != 3) {
        fprintf(stderr, "usage: smoke MODEL.gguf AUDIO.wav\n");
        return 2;
    }
    for (int32_t i = 0; i < pcr_device_count(); i++) {
        pcr_device_info device = {.size = sizeof(device)};
        if (pcr_device_get(i, &device) == PCR_OK) {
            fprintf(stderr, "%s: %s: %s\n", device.name, device.description, device.features);
        }
    }
    int64_t       n_samples = 0;
    float * const samples   = read_wav(argv[2], &n_samples);
    if (!samples || n_samples == 0) {
        return failed(argv[2], PCR_ERROR_AUDIO, "not a 16 kHz mono WAV file of 16 bits");
    }
    pcr_model *   model   = NULL;
    pcr_session * session = NULL;
    pcr_status    status  = pcr_model_load(argv[1], NULL, &model);
    if (status < 0) {
        return failed(argv[1], status, pcr_model_error(model));
    }
    status = pcr_session_new(model, NULL, &session);
    if (status >= 0) {
        status = pcr_session_feed(session, 0, samples, n_samples);
    }
    if (status >= 0) {
        status = pcr_session_end(session, 0, -1);
    }
    const int32_t sequence = 0;
    int           first    = 1;
    pcr_token     token    = {.size = sizeof(token)};
    while (status >= 0 && (status = pcr_session_next(session, &sequence, 1, &token)) == PCR_OK) {
        size_t       length = 0;
        const char * bytes  = pcr_token_bytes(model, token.id, &length);
        if (bytes && first && length > 0 && *bytes == ' ') { /* words bring the space before them */
            bytes++;
            length--;
        }
        first = 0;
        fwrite(bytes, 1, bytes ? length : 0, stdout);
        fflush(stdout);
    }
    if (status < 0) {
        return failed(argv[2], status, pcr_session_error(session));
    }
    putchar('\n');
    pcr_session_free(session);
    pcr_model_free(model);
    free(samples);
    return 0;
}
