#include "draft.h"

#include <algorithm>

namespace pcr {

namespace {

constexpr size_t draft_search = 8;  // tokens before and behind the expected one, where a wrong draft may be right again

// So many tokens and turns are a loop.
constexpr int32_t loop_period = 64;  // tokens of the longest phrase that is looked for
constexpr int32_t loop_tokens = 24;
constexpr int32_t loop_turns  = 6;

}  // namespace

void Draft::start(std::vector<int32_t> expected, size_t at_once) {
    tokens       = at_once > 1 ? std::move(expected) : std::vector<int32_t>{};
    at           = 0;
    accepted_run = at_once;  // until it is wrong
    on           = !tokens.empty();
}

std::vector<int32_t> Draft::ahead(size_t max_tokens) const {
    const size_t left  = tokens.size() - std::min(tokens.size(), at);
    const size_t count = std::min({left, max_tokens, 2 * accepted_run + 1});
    const auto   from  = tokens.begin() + static_cast<std::ptrdiff_t>(std::min(tokens.size(), at));
    return {from, from + static_cast<std::ptrdiff_t>(count)};
}

bool Draft::accept(int32_t token) {
    const auto matches  = [&](size_t j) { return j < tokens.size() && tokens[j] == token; };
    const bool expected = on && matches(at);
    if (expected) {
        at++;
        accepted_run++;
        return true;
    }
    // The nearest place where it says this token; else another one may stand in the place of this one.
    const size_t wrong = at++;
    accepted_run       = 0;
    on                 = false;
    for (size_t d = 0; d <= draft_search && !on; d++) {
        if (matches(wrong + d) || (d <= wrong && matches(wrong - d))) {
            at = (matches(wrong + d) ? wrong + d : wrong - d) + 1;
            on = true;
        }
    }
    return false;
}

bool LoopGuard::add(int32_t token) {
    tokens.push_back(token);
    runs.resize(loop_period, 0);
    const size_t n     = tokens.size();
    bool         loops = false;
    for (int32_t p = 1; p <= loop_period && static_cast<size_t>(p) < n; p++) {
        int32_t & run = runs[static_cast<size_t>(p) - 1];
        run           = tokens[n - 1 - static_cast<size_t>(p)] == token ? run + 1 : 0;
        loops         = loops || run + p >= std::max(loop_tokens, loop_turns * p);
    }
    return loops;
}

}  // namespace pcr
