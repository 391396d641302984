#include "tokenizer.h"

#include "error.h"
#include "unicode_ranges.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <iterator>
#include <queue>
#include <random>
#include <tuple>
#include <utility>

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

// A product of 128 bits, its halves folded together.
uint64_t mix(uint64_t a, uint64_t b) {
    const uint64_t low_a = a & 0xffffffffu, high_a = a >> 32, low_b = b & 0xffffffffu, high_b = b >> 32;
    const uint64_t middle = high_a * low_b + (low_a * low_b >> 32), other = low_a * high_b + (middle & 0xffffffffu);
    return (a * b) ^ (high_a * high_b + (middle >> 32) + (other >> 32));
}

}  // namespace

SeededHash::SeededHash() {
    static const uint64_t chosen = [] {
        std::random_device device;
        return static_cast<uint64_t>(device()) << 32 | device();
    }();
    seed = chosen;
}

size_t SeededHash::operator()(uint64_t key) const {
    return static_cast<size_t>(mix(key ^ seed, 0x9e3779b97f4a7c15u ^ (seed << 1)));
}

size_t SeededHash::operator()(std::string_view text) const {
    uint64_t hash = seed ^ text.size();
    for (size_t at = 0; at < text.size(); at += 8) {
        uint64_t piece = 0;
        std::memcpy(&piece, text.data() + at, std::min<size_t>(8, text.size() - at));
        hash = mix(hash ^ piece, 0x9e3779b97f4a7c15u ^ (seed << 1));
    }
    return static_cast<size_t>(hash);
}

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

    for (std::string & token : tokens) {
        token = to_bytes(token, 0, token.size());
    }
    bytes = std::move(tokens);
    ids.reserve(bytes.size());
    for (size_t i = 0; i < bytes.size(); i++) {
        ids.emplace(bytes[i], static_cast<int32_t>(i));
    }
    for (int b = 0; b < 256; b++) {
        const char byte  = static_cast<char>(b);
        const auto found = ids.find(std::string_view(&byte, 1));
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
    for (const int32_t id : special) {
        if (id < size()) {
            rename(id, "");
        }
    }
    for (size_t i = 0; i < bytes.size(); i++) {
        const std::string & b = bytes[i];
        if (b.size() > 4 && b.compare(0, 2, "<|") == 0 && b.compare(b.size() - 2, 2, "|>") == 0) {
            rename(static_cast<int32_t>(i), "");
        }
    }
}

void Tokenizer::rename(int32_t token, std::string text) {
    std::string & content = bytes[static_cast<size_t>(token)];
    const auto    found   = ids.find(content);
    if (found != ids.end() && found->second == token) {
        ids.erase(found);  // its key lies in the content
    }
    content = std::move(text);
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
        append_word(std::string_view(text).substr(points[at].start, end - points[at].start), out);
        at = next;
    }
    return out;
}

int32_t Tokenizer::named(const std::string & text) const {
    const auto found = ids.find(text);
    return found == ids.end() ? -1 : found->second;
}

std::vector<int32_t> Tokenizer::word(const std::string & text) const {
    const int32_t token = named(text);
    return token < 0 ? encode(text) : std::vector<int32_t>{token};
}

const Tokenizer::Merge * Tokenizer::merge_of(int32_t left, int32_t right) const {
    const auto found = merges.find(pair_key(left, right));
    return found == merges.end() ? nullptr : &found->second;
}

void Tokenizer::append_word(std::string_view word, std::vector<int32_t> & out) const {
    struct Part {
        int32_t token;     // -1: it was joined to the part before
        size_t  previous;  // none: beyond all parts
        size_t  next;
    };
    // Two neighbours that can be joined, as they were when they were found.
    struct Pair {
        int32_t rank;
        size_t  left;
        int32_t left_token, right_token, joined;

        // Of std::priority_queue: the pair that was learnt first comes last, of equal ones the first in the word.
        bool operator<(const Pair & other) const { return std::tie(rank, left) > std::tie(other.rank, other.left); }
    };
    std::vector<Part>         parts(word.size());
    std::priority_queue<Pair> pairs;

    const auto find = [&](size_t left) {
        const size_t right = left < parts.size() ? parts[left].next : parts.size();
        if (right >= parts.size()) {
            return;
        }
        if (const Merge * merge = merge_of(parts[left].token, parts[right].token)) {
            pairs.push({merge->rank, left, parts[left].token, parts[right].token, merge->token});
        }
    };
    for (size_t i = 0; i < word.size(); i++) {
        const auto byte = static_cast<uint8_t>(word[i]);
        if (byte_ids[byte] < 0) {
            throw Error(PCR_ERROR_FORMAT, format("the vocabulary has no token for the byte 0x%02X", byte));
        }
        parts[i] = {byte_ids[byte], i == 0 ? parts.size() : i - 1, i + 1};
    }
    for (size_t i = 0; i + 1 < parts.size(); i++) {
        find(i);
    }
    while (!pairs.empty()) {
        const Pair pair = pairs.top();
        pairs.pop();
        Part & left = parts[pair.left];
        if (left.token != pair.left_token || left.next >= parts.size() || parts[left.next].token != pair.right_token) {
            continue;  // one of them was joined to another one since
        }
        parts[left.next].token = -1;
        left.token             = pair.joined;
        left.next              = parts[left.next].next;
        if (left.next < parts.size()) {
            parts[left.next].previous = pair.left;
        }
        find(left.previous);
        find(pair.left);
    }
    for (size_t i = 0; i < parts.size(); i = parts[i].next) {
        out.push_back(parts[i].token);
    }
}

}  // namespace pcr
