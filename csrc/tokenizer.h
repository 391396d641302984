// Byte-level BPE, both ways: GPT-2's byte alphabet and merges, Qwen2's way of cutting text into words.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace pcr {

// A hash that is another one in every process, so that no file can be made of keys that meet in one bucket.
class SeededHash {
public:
    SeededHash();

    size_t operator()(std::string_view text) const;
    size_t operator()(uint64_t key) const;

private:
    uint64_t seed;
};

class Tokenizer {
public:
    Tokenizer()                              = default;
    Tokenizer(Tokenizer &&)                  = default;
    Tokenizer & operator=(Tokenizer &&)      = default;
    Tokenizer(const Tokenizer &)             = delete;  // ids' keys lie in bytes
    Tokenizer & operator=(const Tokenizer &) = delete;

    // tokens and merges ("left right") as GGUF holds them, written in GPT-2's byte alphabet.
    Tokenizer(std::vector<std::string> tokens, const std::vector<std::string> & merges);

    int32_t size() const { return static_cast<int32_t>(bytes.size()); }

    // The token that is written so; -1 where there is none. Control tokens are found until set_special().
    int32_t named(const std::string & text) const;

    // Marks control tokens: they have no bytes, and text never becomes one. Tokens that look like <|...|> are, too.
    void set_special(const std::vector<int32_t> & ids);

    // Gives a token other bytes; text never becomes it.
    void rename(int32_t token, std::string text);

    // Tokens of UTF-8 text (NFC).
    std::vector<int32_t> encode(const std::string & text) const;

    // The one token that is this text, or else its encoding.
    std::vector<int32_t> word(const std::string & text) const;

    // The token's bytes; empty for special tokens.
    const std::string & decode(int32_t token) const { return bytes[static_cast<size_t>(token)]; }

private:
    struct Merge {
        int32_t rank;
        int32_t token;
    };

    // Null where the two never become one token.
    const Merge * merge_of(int32_t left, int32_t right) const;
    void          append_word(std::string_view word, std::vector<int32_t> & out) const;

    std::vector<std::string>                                  bytes;   // of each token
    std::unordered_map<std::string_view, int32_t, SeededHash> ids;     // by bytes, without special tokens
    std::unordered_map<uint64_t, Merge, SeededHash>           merges;  // by (left token, right token)
    int32_t                                                   byte_ids[256] = {};
};

}  // namespace pcr
