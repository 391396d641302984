// Pure logic of decoding a text: the speculative draft, and the guard against loops.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace pcr {

// The previous hypothesis, verified in batches (speculative decoding): its tokens go through the decoder many at a time,
// and are accepted as far as the decoder would have chosen them itself. Where it chose another one, the draft is followed
// again from where the two agree.
class Draft {
public:
    // at_once: tokens that are verified in one batch, at most; with 1 there is no draft.
    void start(std::vector<int32_t> expected, size_t at_once);

    // True while the text follows it.
    bool active() const { return on; }

    // Where its next token stands.
    size_t position() const { return at; }

    // The tokens to verify next, at most so many: few after it was wrong, and more the longer it is right.
    std::vector<int32_t> ahead(size_t max_tokens) const;

    // The decoder has chosen this token. True where it is the expected one.
    bool accept(int32_t token);

private:
    std::vector<int32_t> tokens;
    size_t               at           = 0;
    size_t               accepted_run = 0;  // tokens that it has foreseen since it was last wrong
    bool                 on           = false;
};

// Tells when a text's last tokens are one phrase again and again: it does not end by itself then.
class LoopGuard {
public:
    // Takes the next token. True where the text loops.
    bool add(int32_t token);

private:
    std::vector<int32_t> tokens;
    std::vector<int32_t> runs;  // [p]: how many of the last tokens equal those p + 1 places before them
};

}  // namespace pcr
