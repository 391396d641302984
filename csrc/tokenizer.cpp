#include "tokenizer.h"

#include "error.h"
#include "unicode_ranges.h"

#include <algorithm>
#include <array>
#include <iterator>

namespace pcr {

namespace {

// GPT-2's alphabet: printable Latin-1 bytes stand for themselves, the others for code points from 256 on.
std::array<uint32_t, 256> byte_alphabet() {
    std::array<uint32_t, 256> points{};
    uint32_t                  next = 256;
    for (uint32_t b = 0; b < 256; b++) {
        const bool printable = (b >= 0x21 && b <= 0x7E) || (b >= 0xA1 && b <= 0xAC) || b >= 0xAE;
        points[b]            = printable ? b : next++;
    }
    return points;
}

// The code point at text[at], and its length in bytes. A byte that is no UTF-8 stands for itself.
uint32_t code_point(const std::string & text, size_t at, size_t & length) {
    const auto     byte = [&](size_t i) { return static_cast<uint8_t>(text[i]); };
    const uint32_t lead = byte(at);
    length              = lead < 0x80 ? 1 : lead >> 5 == 6 ? 2 : lead >> 4 == 14 ? 3 : lead >> 3 == 30 ? 4 : 0;
    uint32_t point      = length == 1 ? lead : length == 0 ? 0 : lead & (0x7Fu >> length);
    for (size_t i = 1; i < length; i++) {
        if (at + i >= text.size() || byte(at + i) >> 6 != 2) {
            length = 0;
            break;
        }
        point = point << 6 | (byte(at + i) & 0x3F);
    }
    if (length == 0) {
        length = 1;
        return 0xFFFD;
    }
    return point;
}

template <size_t n> bool in(const Range (&ranges)[n], uint32_t point) {
    const Range * end   = ranges + n;
    const Range * after = std::upper_bound(ranges, end, point, [](uint32_t p, const Range & r) { return p < r.low; });
    return after != ranges && point <= std::prev(after)->high;
}

bool is_letter(uint32_t p) {
    return in(letter_ranges, p);
}
bool is_number(uint32_t p) {
    return in(number_ranges, p);
}
bool is_space(uint32_t p) {
    return in(space_ranges, p);
}
bool is_newline(uint32_t p) {
    return p == '\r' || p == '\n';
}

struct Point {
    uint32_t code;
    size_t   start;  // byte offset
};

// How many points the next word takes: Qwen2's pattern, alternative by alternative
// (?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+
size_t word_length(const std::vector<Point> & points, size_t at) {
    const size_t n     = points.size();
    const auto   code  = [&](size_t i) { return i < n ? points[i].code : 0; };
    const auto   lower = [&](size_t i) {
        const uint32_t c = code(i);
        return c >= 'A' && c <= 'Z' ? c + 32 : c;
    };
    const auto letter  = [&](size_t i) { return i < n && is_letter(code(i)); };
    const auto number  = [&](size_t i) { return i < n && is_number(code(i)); };
    const auto space   = [&](size_t i) { return i < n && is_space(code(i)); };
    const auto newline = [&](size_t i) { return i < n && is_newline(code(i)); };
    const auto other   = [&](size_t i) { return i < n && !space(i) && !letter(i) && !number(i); };

    if (code(at) == '\'') {
        const uint32_t a = lower(at + 1), b = lower(at + 2);
        if (a == 's' || a == 't' || a == 'm' || a == 'd') {
            return 2;
        }
        if ((a == 'r' && b == 'e') || (a == 'v' && b == 'e') || (a == 'l' && b == 'l')) {
            return 3;
        }
    }
    size_t end = at + (!newline(at) && !letter(at) && !number(at) ? 1 : 0);
    if (letter(end)) {
        while (letter(end)) {
            end++;
        }
        return end - at;
    }
    if (number(at)) {
        return 1;
    }
    end = at + (code(at) == ' ' ? 1 : 0);
    if (other(end)) {
        while (other(end)) {
            end++;
        }
        while (newline(end)) {
            end++;
        }
        return end - at;
    }
    // Only white space is left. Up to its last line break, if it has one.
    end = at;
    while (space(end)) {
        end++;
    }
    for (size_t i = end; i > at; i--) {
        if (newline(i - 1)) {
            return i - at;
        }
    }
    // Before a word, one space stays with the word.
    return end < n && end - at > 1 ? end - at - 1 : end - at;
}

uint64_t pair_key(int32_t left, int32_t right) {
    return static_cast<uint64_t>(static_cast<uint32_t>(left)) << 32 | static_cast<uint32_t>(right);
}

}  // namespace

Tokenizer::Tokenizer(std::vector<std::string> tokens, const std::vector<std::string> & merge_lines) {
    const std::array<uint32_t, 256> alphabet = byte_alphabet();
    int16_t                         byte_of[512];
    std::fill(std::begin(byte_of), std::end(byte_of), int16_t(-1));
    for (size_t b = 0; b < 256; b++) {
        byte_of[alphabet[b]] = static_cast<int16_t>(b);
    }
    const auto to_bytes = [&](const std::string & text, size_t from, size_t to) {
        std::string out;
        for (size_t at = from, length; at < to; at += length) {
            const uint32_t point = code_point(text, at, length);
            if (point < 512 && byte_of[point] >= 0) {
                out.push_back(static_cast<char>(byte_of[point]));
            } else {
                out.append(text, at, length);  // outside the alphabet: an added token, written as it is
            }
        }
        return out;
    };

    bytes.resize(tokens.size());
    ids.reserve(tokens.size());
    for (size_t i = 0; i < tokens.size(); i++) {
        bytes[i] = to_bytes(tokens[i], 0, tokens[i].size());
        ids.emplace(bytes[i], static_cast<int32_t>(i));
    }
    for (int b = 0; b < 256; b++) {
        const auto found = ids.find(std::string(1, static_cast<char>(b)));
        byte_ids[b]      = found == ids.end() ? -1 : found->second;
    }
    merges.reserve(merge_lines.size());
    for (size_t rank = 0; rank < merge_lines.size(); rank++) {
        const std::string & line = merge_lines[rank];
        const size_t        gap  = line.find(' ', 1);
        if (gap == std::string::npos) {
            throw Error(PCR_ERROR_FORMAT, format("merge %zu of the tokenizer, '%s', has no space", rank, line.c_str()));
        }
        const std::string left = to_bytes(line, 0, gap), right = to_bytes(line, gap + 1, line.size());
        const auto        a = ids.find(left), b = ids.find(right), both = ids.find(left + right);
        if (a == ids.end() || b == ids.end() || both == ids.end()) {
            throw Error(PCR_ERROR_FORMAT, format("merge %zu of the tokenizer, '%s', names a token that the vocabulary "
                                                 "lacks",
                                                 rank, line.c_str()));
        }
        merges.emplace(pair_key(a->second, b->second), Merge{static_cast<int32_t>(rank), both->second});
    }
}

void Tokenizer::set_special(const std::vector<int32_t> & special) {
    const auto hide = [&](size_t i) {
        const auto found = ids.find(bytes[i]);
        if (found != ids.end() && found->second == static_cast<int32_t>(i)) {
            ids.erase(found);
        }
        bytes[i].clear();
    };
    for (const int32_t id : special) {
        if (id < size()) {
            hide(static_cast<size_t>(id));
        }
    }
    for (size_t i = 0; i < bytes.size(); i++) {
        const std::string & b = bytes[i];
        if (b.size() > 4 && b.compare(0, 2, "<|") == 0 && b.compare(b.size() - 2, 2, "|>") == 0) {
            hide(i);
        }
    }
}

std::vector<int32_t> Tokenizer::encode(const std::string & text) const {
    std::vector<Point> points;
    for (size_t at = 0, length; at < text.size(); at += length) {
        points.push_back({code_point(text, at, length), at});
    }
    std::vector<int32_t> out;
    for (size_t at = 0; at < points.size();) {
        const size_t next = at + word_length(points, at);
        const size_t end  = next < points.size() ? points[next].start : text.size();
        append_word(text.substr(points[at].start, end - points[at].start), out);
        at = next;
    }
    return out;
}

std::vector<int32_t> Tokenizer::word(const std::string & text) const {
    const auto found = ids.find(text);
    return found == ids.end() ? encode(text) : std::vector<int32_t>{found->second};
}

void Tokenizer::append_word(const std::string & word, std::vector<int32_t> & out) const {
    std::vector<int32_t> parts;
    for (const char c : word) {
        const int32_t id = byte_ids[static_cast<uint8_t>(c)];
        if (id < 0) {
            throw Error(PCR_ERROR_FORMAT,
                        format("the vocabulary has no token for the byte 0x%02X", static_cast<uint8_t>(c)));
        }
        parts.push_back(id);
    }
    // Join the pair that was learnt first, again and again. Words are short: a plain search is quickest.
    while (parts.size() > 1) {
        const Merge * best    = nullptr;
        size_t        best_at = 0;
        for (size_t i = 0; i + 1 < parts.size(); i++) {
            const auto found = merges.find(pair_key(parts[i], parts[i + 1]));
            if (found != merges.end() && (!best || found->second.rank < best->rank)) {
                best    = &found->second;
                best_at = i;
            }
        }
        if (!best) {
            break;
        }
        parts[best_at] = best->token;
        parts.erase(parts.begin() + static_cast<std::ptrdiff_t>(best_at) + 1);
    }
    out.insert(out.end(), parts.begin(), parts.end());
}

}  // namespace pcr
