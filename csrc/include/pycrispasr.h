/* pycrispasr.h - speech to text: the whole C API.
 *
 * Python's cffi reads this header at build time, so it holds plain declarations only; preprocessor lines are dropped.
 *
 * Contract
 *
 *   Status      Every function that can fail returns a pcr_status: PCR_OK or PCR_END (>= 0), or a negative error.
 *               pcr_model_error() and pcr_session_error() give the message of the last error of that handle (of a
 *               loaded model: on this thread), valid until the next call on it. PCR_ERROR_BUSY leaves no message:
 *               pcr_session_error() is then the other thread's.
 *   Handles     A function that makes a handle makes one even when it fails, as sqlite3_open() does, so that its
 *               message can be read; free it as usual. Only PCR_ERROR_MEMORY can leave it NULL.
 *   Exceptions  No C++ exception leaves the library.
 *   Output      Nothing is written to stdout or stderr: messages wait in a queue, see pcr_take_log().
 *   Lifetime    A session keeps what it needs of its model: the two may be freed in any order. Pointers that a getter
 *               returns belong to the handle. Freeing NULL is allowed.
 *   Threads     A model is immutable: any number of threads may read it and make sessions from it. A session belongs
 *               to one thread at a time; a second one that enters it meanwhile gets PCR_ERROR_BUSY and changes
 *               nothing. The exceptions are pcr_session_cancel() and pcr_session_wake(): any thread may call them, at
 *               any time until pcr_session_free().
 *   Memory      Arrays are the caller's. "capacity" counts elements, never bytes; a too small one is
 *               PCR_ERROR_ARGUMENT, and the needed count is stored all the same.
 *   Structs     The first member of a params struct is its size, set by its *_default() function. A struct of another
 *               size is refused, so that a caller built against another version gets an error instead of being misread.
 *   Layout      Matrices are row-major float32: [rows][columns], columns fastest, without padding.
 */
#ifndef PYCRISPASR_H
#define PYCRISPASR_H

#include <stddef.h>
#include <stdint.h>

#if defined(_WIN32)
#  ifdef PCR_BUILD
#    define PCR_API __declspec(dllexport)
#  else
#    define PCR_API __declspec(dllimport)
#  endif
#else
#  define PCR_API __attribute__((visibility("default")))
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* ---- Status -------------------------------------------------------------------------------------------------- */

typedef enum pcr_status {
    PCR_OK = 0,
    /* There is no more: the text is complete, an index is past the last. */
    PCR_END = 1,
    /* A NULL, negative or out-of-range argument, or a call out of order. */
    PCR_ERROR_ARGUMENT = -1,
    /* The file is not there or cannot be read. */
    PCR_ERROR_IO = -2,
    /* The file is no GGUF, or is truncated, contradicts itself, was changed while it was mapped, or has weights whose
     * results are not finite. */
    PCR_ERROR_FORMAT = -3,
    /* A sound file of another architecture, a tensor type that cannot be computed, or work that this device cannot
     * do. */
    PCR_ERROR_UNSUPPORTED = -4,
    /* Audio that is too short, too long or not finite. */
    PCR_ERROR_AUDIO = -5,
    /* There is no such device, or it failed. */
    PCR_ERROR_DEVICE = -6,
    /* An allocation failed. */
    PCR_ERROR_MEMORY = -7,
    /* Another thread is inside this session. */
    PCR_ERROR_BUSY = -8,
    /* pcr_session_cancel() was called. */
    PCR_ERROR_CANCELLED = -9,
    /* A bug in this library; the message says where. */
    PCR_ERROR_INTERNAL = -10
} pcr_status;

/* Version of this header's declarations: changes whenever a struct or a signature does. */
PCR_API int32_t pcr_abi_version(void);

/* Release, e.g. "0.1.0", and that of the ggml inside, e.g. "0.25.3". */
PCR_API const char * pcr_version(void);
PCR_API const char * pcr_ggml_version(void);

/* ---- Log ----------------------------------------------------------------------------------------------------- */

typedef enum pcr_log_level {
    PCR_LOG_DEBUG   = 0,
    PCR_LOG_INFO    = 1,
    PCR_LOG_WARNING = 2,
    PCR_LOG_ERROR   = 3
} pcr_log_level;

/* Messages of this library and of ggml wait in a bounded queue (the oldest are dropped) until they are taken, so that C
 * never calls into the host language. Stores the next message in text (NUL-terminated, cut to capacity) and its level.
 * PCR_END when none is waiting. Any thread. */
PCR_API pcr_status pcr_take_log(pcr_log_level * level, char * text, size_t capacity);

/* Messages below this level are not queued. Default: PCR_LOG_WARNING. Any thread. */
PCR_API void pcr_set_log_level(pcr_log_level level);

/* ---- Devices ------------------------------------------------------------------------------------------------- */

typedef struct pcr_device_info {
    size_t size;
    /* "cpu", "cuda:0", ...: what pcr_model_params.device takes. */
    const char * name;
    /* The maker's name of it. */
    const char * description;
    /* For a CPU: the instruction sets in use, separated by spaces. */
    const char * features;
    /* Bytes. */
    uint64_t memory_free;
    uint64_t memory_total;
} pcr_device_info;

/* In the order in which "auto" tries them: graphics cards, the CPU, and then processors' built-in graphics, which
 * "auto" does not take. */
PCR_API int32_t    pcr_device_count(void);
PCR_API pcr_status pcr_device_get(int32_t index, pcr_device_info * info);

/* Kinds of devices beside the CPU, there or not. */
typedef struct pcr_backend_info {
    size_t size;
    /* "cuda", "metal", "vulkan": what the names of its devices begin with. */
    const char * name;
    /* 1: this library contains it, or it is installed beside it. */
    int32_t compiled;
    /* Why no device of this kind is there, and what to do; "" if one is. */
    const char * missing;
} pcr_backend_info;

/* PCR_END past the last. */
PCR_API pcr_status pcr_backend_get(int32_t index, pcr_backend_info * info);

/* Physical cores that this process may use: its affinity and its container's quota are counted, slow cores beside fast
 * ones are not. At least 1; the default of threads. */
PCR_API int32_t pcr_usable_cores(void);

/* What it would be on a Linux machine whose /proc and /sys lie in the folder root, for a process that may run on the CPUs
 * allowed, a list such as "0-3,8". To test these rules on any machine. */
PCR_API int32_t pcr_usable_cores_of(const char * root, const char * allowed);

/* ---- Model --------------------------------------------------------------------------------------------------- */

typedef struct pcr_model   pcr_model;
typedef struct pcr_session pcr_session;

typedef struct pcr_model_params {
    size_t size;
    /* A name from pcr_device_get(); "cuda", "metal" or "vulkan" for the first of these; or "auto": the first that
     * starts and has the memory, with a warning in the log for each that does not. The CPU when precision or kernels
     * is not "auto". */
    const char * device;
    /* What products with the file's matrices are computed in. "f32": nothing is rounded. "bf16": both factors are
     * rounded to BF16, sums stay in F32. "auto": BF16 where the processor has fast instructions for it, else F32.
     * Quantised matrices are multiplied in 8-bit integers where that is faster, and for single tokens always, unless
     * "f32" is asked for. */
    const char * precision;
    /* "auto"; one of pcr_kernels_name(); "ggml": ggml's products instead of ours, to compare; or "operations": ggml's
     * operations only, as on a GPU. */
    const char * kernels;
    /* 1: the file is mapped, and must stay as it is while the model is open: PCR_ERROR_FORMAT once it was cut short or
     * written to. So that the former does not end the process, a handler of SIGBUS is installed, which passes all other
     * faults on to the one before it. 0: it is read into memory of this process's own. */
    int32_t map;
} pcr_model_params;

PCR_API void pcr_model_params_default(pcr_model_params * params);

/* Opens a GGUF file (path in UTF-8) and checks all of it. params may be NULL. */
PCR_API pcr_status   pcr_model_load(const char * path, const pcr_model_params * params, pcr_model ** model);
PCR_API void         pcr_model_free(pcr_model * model);
PCR_API const char * pcr_model_error(const pcr_model * model);

/* The model's sizes, by the field's own names. */
typedef struct pcr_model_info {
    size_t size;
    /* general.architecture: "moss_transcribe", "qwen3asr". */
    const char * architecture;
    /* general.name, or "". */
    const char * name;
    /* Where it runs. */
    const char * device;
    /* Audio samples per second: 16000. */
    int32_t sample_rate;
    /* Samples per log-mel frame: 160. */
    int32_t hop_length;
    int32_t n_mels;
    /* Log-mel frames per chunk, 2 * n_window, and audio rows per full chunk. */
    int32_t chunk_frames;
    int32_t chunk_rows;
    /* Audio rows that attend to each other. */
    int32_t window_rows;
    int32_t encoder_layers;
    int32_t encoder_d_model;
    /* Channels of the encoder's convolutions. */
    int32_t encoder_channels;
    /* Columns of an encoder row. */
    int32_t encoder_output;
    int32_t llm_layers;
    /* Query heads of each layer. */
    int32_t llm_heads;
    /* Columns of an adapter row and of an embedding. */
    int32_t llm_hidden;
    /* Width of each layer's gated MLP. */
    int32_t llm_ffn;
    int32_t llm_vocab;
    int32_t llm_max_positions;
    /* The first of the tokens that end a text. */
    int32_t  eos_token;
    uint64_t file_bytes;
    /* Bytes of the tensors in use. */
    uint64_t weight_bytes;
    /* Bytes that one row of the KV cache takes. */
    uint64_t kv_bytes_per_token;
    /* Number of weights. */
    uint64_t parameters;
    /* Bins of time that pcr_session_align() tells, and milliseconds of each; 0: the model aligns no text. */
    int32_t align_bins;
    int32_t align_bin_ms;
} pcr_model_info;

PCR_API pcr_status pcr_model_get_info(const pcr_model * model, pcr_model_info * info);

/* Number of log-mel frames of n_samples samples, with the silence that short clips of some models are padded with, and
 * of audio rows of n_frames frames. */
PCR_API int64_t pcr_frame_count(const pcr_model * model, int64_t n_samples);
PCR_API int64_t pcr_row_count(const pcr_model * model, int64_t n_frames);

/* The token's bytes, not NUL-terminated: they can hold any byte and end inside a UTF-8 character. Special tokens such
 * as <|im_end|> have none. Stores the count in *length; NULL for an id outside the vocabulary. */
PCR_API const char * pcr_token_bytes(const pcr_model * model, int32_t token, size_t * length);

/* Byte-level BPE of UTF-8 text (NFC, as Qwen's tokenizer expects), without special tokens. */
PCR_API pcr_status pcr_tokenize(const pcr_model * model, const char * text, size_t length, int32_t * tokens,
                                size_t capacity, size_t * count);

/* ---- Session: audio in, tokens out ---------------------------------------------------------------------------- */

typedef struct pcr_session_params {
    size_t size;
    /* 0: pcr_usable_cores(). */
    int32_t threads;
    /* The text is cut there, with pcr_result.truncated set. Default 512. */
    int32_t max_new_tokens;
    /* Clips that are held at once, each with a KV cache. Default 1. */
    int32_t sequences;
    /* 1: collect what pcr_importance() gives, at a cost in speed. Default 0. */
    int32_t importance;
    /* Heads of the decoder whose attention pcr_session_attention() gives: a layer and a query head for each, both
     * from 0. Copied. On a CPU only. Default NULL, 0: nothing is computed for them. */
    const int32_t * heads;
    int32_t         n_heads;
} pcr_session_params;

PCR_API void pcr_session_params_default(pcr_session_params * params);

PCR_API pcr_status   pcr_session_new(pcr_model * model, const pcr_session_params * params, pcr_session ** session);
PCR_API void         pcr_session_free(pcr_session * session);
PCR_API const char * pcr_session_error(const pcr_session * session);

typedef struct pcr_token {
    size_t  size;
    int32_t id;
    /* Softmax of the logits at this token, 0 to 1. */
    float probability;
} pcr_token;

/* A session holds params.sequences clips, numbered from 0, whose texts are decoded side by side: one reading of the
 * weights serves all. What a clip's text is does not depend on the others. */

typedef struct pcr_clip_params {
    size_t size;
    /* As for the session. Default 512. */
    int32_t max_new_tokens;
    /* 1: keep what pcr_session_attention() gives, for the session's heads. Default 0. */
    int32_t attention;
    /* The English name of the language that is spoken, as the model writes it ("French"), in UTF-8. The text then begins
     * with what is said; otherwise the model may write the language first. Default NULL: the model finds out.
     * PCR_ERROR_UNSUPPORTED for a model that takes none. Read by the call only. */
    const char * language;
    /* What the audio may be about: names, terms, free text, in UTF-8 (NFC). Special tokens in it are taken for text.
     * Default NULL. PCR_ERROR_UNSUPPORTED for a model that takes none. Read by the call only. */
    const char * context;
} pcr_clip_params;

PCR_API void pcr_clip_params_default(pcr_clip_params * params);

/* The prompt around n_rows audio rows, whose places hold -1: with the time markers that some models have among them, and
 * a clip's language and context. params may be NULL. */
PCR_API pcr_status pcr_clip_prompt(const pcr_model * model, const pcr_clip_params * params, int64_t n_rows,
                                   int32_t * tokens, size_t capacity, size_t * count);

/* Begins another clip, and forgets the one before and its text. params: NULL for the session's max_new_tokens, and the
 * attention of its heads if it has any. Every clip of a new session has begun that way. */
PCR_API pcr_status pcr_session_begin(pcr_session * session, int32_t sequence, const pcr_clip_params * params);

/* Appends mono samples at 16 kHz to a clip, nominally in [-1, 1]. Any count. PCR_ERROR_AUDIO for a sample that is not
 * finite: then none of this call's samples is taken. The text does not depend on how the samples were divided. */
PCR_API pcr_status pcr_session_feed(pcr_session * session, int32_t sequence, const float * samples, int64_t n_samples);

/* No more samples will come. n_samples: where the clip ends, at most what was fed; the samples behind are forgotten, as
 * if they had never been fed. Negative: all. PCR_ERROR_AUDIO when there are too few or too many for this model. */
PCR_API pcr_status pcr_session_end(pcr_session * session, int32_t sequence, int64_t n_samples);

/* Encodes a block of a clip's audio, of at most max_windows windows (8 s each), and has the decoder read it: as soon as
 * more than a window was fed, and all of it once the audio has ended. PCR_END: nothing is left to do. */
PCR_API pcr_status pcr_session_advance(pcr_session * session, int32_t sequence, int32_t max_windows);

/* A hypothesis: from one to the other, pcr_session_advance(), _run(), _take() and _next() see the clip as if its audio
 * ended here, and pcr_session_feed() and _end() are refused. It does not change what comes later, but it costs work: what
 * it keeps of the hypothesis before it costs little, and so does what the final text keeps of the last one. It may be
 * ended before its text is complete: the tokens are then those decoded so far, and what the hypothesis before expects
 * behind them. *count: the tokens, of which no more than capacity are stored; none for too little audio. */
PCR_API pcr_status pcr_session_begin_hypothesis(pcr_session * session, int32_t sequence);
PCR_API pcr_status pcr_session_end_hypothesis(pcr_session * session, int32_t sequence, pcr_token * tokens,
                                              size_t capacity, size_t * count);

/* Decodes these count different clips, all of whose audio has been worked on, until the text of one of them is
 * complete, pcr_session_wake() is called, or so many seconds have passed; at least a token for each. */
PCR_API pcr_status pcr_session_run(pcr_session * session, const int32_t * sequences, int32_t count, double seconds);

/* The tokens of a clip that were not taken yet, at most capacity of them. PCR_END: its text is complete, and these are
 * its last tokens. */
PCR_API pcr_status pcr_session_take(pcr_session * session, int32_t sequence, pcr_token * tokens, size_t capacity,
                                    size_t * count);

/* All in one, a token at a time: the next token of each of count different clips, tokens[i].id -1 where the text is
 * complete. PCR_END when all of them are. Before pcr_session_end(): PCR_ERROR_ARGUMENT. After PCR_ERROR_CANCELLED the
 * tokens given so far stand, and only pcr_session_reset() goes on. */
PCR_API pcr_status pcr_session_next(pcr_session * session, const int32_t * sequences, int32_t count,
                                    pcr_token * tokens);

typedef struct pcr_place {
    size_t size;
    /* Of time, from 0: the place lies at bin * pcr_model_info.align_bin_ms. */
    int32_t bin;
    /* Softmax of the classifier at this bin, 0 to 1. */
    float probability;
} pcr_place;

/* When the words of a known text were said, by a model that tells that (pcr_model_info.align_bins), and writes no text of
 * its own: PCR_ERROR_UNSUPPORTED for others, and from pcr_session_end() for this one. The clip of the sequence is forgotten.
 * samples: all of the audio, mono at 16 kHz. tokens: those of the text, and -1 at each place whose time is asked for; the
 * model was trained with two behind each word, where it begins and where it ends. places: in the order of the text, not
 * always in that of time. *n_places: their number, also where that is more than capacity, which is PCR_ERROR_ARGUMENT and
 * no work is done. PCR_ERROR_AUDIO when audio and text are too long for one pass. */
PCR_API pcr_status pcr_session_align(pcr_session * session, int32_t sequence, const float * samples, int64_t n_samples,
                                     const int32_t * tokens, size_t n_tokens, pcr_place * places, size_t capacity,
                                     size_t * n_places);

/* Makes the pcr_session_run() that is running, or else the next one, return after a token of each clip. Any thread. */
PCR_API void pcr_session_wake(pcr_session * session);

/* Makes the call that is running in this session, or else the next one, return PCR_ERROR_CANCELLED soon. Any thread. */
PCR_API void pcr_session_cancel(pcr_session * session);

/* Forgets every clip and a cancellation; keeps the buffers. */
PCR_API pcr_status pcr_session_reset(pcr_session * session);

typedef struct pcr_result {
    size_t  size;
    int64_t n_samples;
    /* Log-mel frames. */
    int64_t n_frames;
    /* Audio rows. */
    int64_t n_rows;
    /* The prompt with its audio rows. */
    int64_t n_prompt_tokens;
    /* Tokens given. */
    int64_t n_tokens;
    /* 1: the model said that the text is complete. */
    int32_t ended;
    /* 1: max_new_tokens or the context was reached first. */
    int32_t truncated;
    /* 1: decoding stopped in a phrase that came again and again. */
    int32_t looped;
    /* Seconds of work per stage. */
    double log_mel;
    double encoder;
    double adapter;
    double prefill;
    double decode;
    /* All stages, for text before the audio's end; windows that stay encoded are counted there. */
    double hypotheses;
} pcr_result;

/* Bytes of the session's caches and buffers, which grow with what is asked of it. 0 while another thread is inside. */
PCR_API uint64_t pcr_session_memory(pcr_session * session);

/* What has been done so far for a clip. Time that a batch took is divided among its clips. */
PCR_API pcr_status pcr_session_result(pcr_session * session, int32_t sequence, pcr_result * result);

/* How params.heads attended to the audio in the steps that chose a clip's tokens: weights [n_steps][n_heads][n_rows],
 * n_rows as in pcr_result, columns in the order of the audio. Step i chose token i, from the position before it; where
 * the text has ended, or was cut, one more step chose the end. A step's weights for a head are a part of its softmax:
 * together with those of the prompt and of the text, which are left out, they add up to 1. Steps may be more than the
 * tokens that pcr_session_next() has given. capacity: of weights, in floats; 0 asks only for *n_steps. */
PCR_API pcr_status pcr_session_attention(pcr_session * session, int32_t sequence, float * weights, size_t capacity,
                                         int64_t * n_steps);

/* ---- The stages one by one, for comparison with a reference ------------------------------------------------------
 * They use the session's threads and buffers and forget the audio and text fed to it. */

/* Log-mel of a whole clip, normalized: [n_frames][n_mels], n_frames = pcr_frame_count(n_samples). */
PCR_API pcr_status pcr_log_mel(pcr_session * session, const float * samples, int64_t n_samples, float * mel,
                               size_t capacity, int64_t * n_frames);

/* Encoder rows of a whole clip's log-mel frames [n_frames][n_mels]. n_layers < 0: all of it, [rows][encoder_output].
 * n_layers >= 0: the rows after so many transformer layers, [rows][encoder_d_model], of which several may be joined to
 * one audio row behind them; 0 is the conv stem with positions. */
PCR_API pcr_status pcr_encode(pcr_session * session, const float * mel, int64_t n_frames, int32_t n_layers,
                              float * rows, size_t capacity, int64_t * n_rows);

/* Adapter: [rows][encoder_output] -> [rows][llm_hidden]; a copy where the model has none. */
PCR_API pcr_status pcr_adapt(pcr_session * session, const float * rows, int64_t n_rows, float * out, size_t capacity);

/* Token embeddings: [count][llm_hidden]. */
PCR_API pcr_status pcr_embed(pcr_session * session, const int32_t * tokens, int64_t count, float * out,
                             size_t capacity);

/* Appends n_rows embeddings to one sequence's KV cache at position n_past (0 forgets what it holds; otherwise at most
 * what it holds) and gives, for the last row: n_layers < 0: the logits [llm_vocab]; n_layers >= 0: that row after so
 * many layers [llm_hidden], leaving the later layers' cache undefined. */
PCR_API pcr_status pcr_decode(pcr_session * session, int32_t sequence, const float * embeddings, int64_t n_rows,
                              int64_t n_past, int32_t n_layers, float * out, size_t capacity);

/* Appends one token to each of count different sequences, as one batch. Logits: [count][llm_vocab]. */
PCR_API pcr_status pcr_decode_step(pcr_session * session, const int32_t * sequences, const int32_t * tokens,
                                   int32_t count, float * logits, size_t capacity);

/* ---- Kernels ------------------------------------------------------------------------------------------------- */

/* Names of the kernels that this processor runs, "generic" first and the fastest last; NULL past the last. */
PCR_API const char * pcr_kernels_name(int32_t index);

/* One product by itself, to test and to measure: out [n_rows][n_out] = rows [n_rows][n_in] times the transpose of a
 * matrix [n_out][n_in] of a type. precision and kernels: see pcr_model_params. each: 1: row by row, as for single
 * tokens; 0: all rows at once, as for audio. repeats >= 1 runs, the fastest of which took *seconds. An error's text
 * is cut to message [message_capacity]; message may be NULL. */
PCR_API pcr_status pcr_product(const char * kernels, const char * precision, int32_t each, const char * type,
                               const void * matrix, int64_t n_out, int64_t n_in, const float * rows, int64_t n_rows,
                               float * out, int32_t threads, int32_t repeats, double * seconds, char * message,
                               size_t message_capacity);

/* What computes such a product, and in what: "avx2, 8-bit integers", "avx512_bf16, BF16", or "ggml". The text, or an
 * error's, is cut to [capacity]. */
PCR_API pcr_status pcr_product_kernels(const char * kernels, const char * precision, int32_t each, const char * type,
                                       int64_t n_in, char * text, size_t capacity);

/* ---- Matrix types, for making model files ------------------------------------------------------------------------
 * Types by ggml's names, in any case: "f32", "f16", "bf16", "q8_0", "q4_k", ... */

/* Bytes of a row of so many values; 0 for a type that is not known or a length that its blocks do not divide. */
PCR_API size_t pcr_row_bytes(const char * type, int64_t row_length);

/* What a session made with params.importance has collected about the index-th matrix that was multiplied with: its
 * name, the energy of each input column (the sum of its squares over n_rows rows), which sessions add up over all
 * their audio. PCR_END past the last. The pointers hold until the session's next call. */
PCR_API pcr_status pcr_importance(pcr_session * session, int64_t index, const char ** name, const double ** energies,
                                  int64_t * n_columns, int64_t * n_rows);

/* Converts a matrix [n_rows][row_length] of one type to another, on so many threads (0: all cores). importance, unless
 * NULL, weighs the columns [row_length] when rounding. On failure the reason is in message (cut to capacity). */
PCR_API pcr_status pcr_convert_rows(const char * from, const void * source, const char * to, void * target,
                                    int64_t n_rows, int64_t row_length, const float * importance, int32_t threads,
                                    char * message, size_t capacity);

#ifdef __cplusplus
}
#endif

#endif
