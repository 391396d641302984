// libFuzzer's mutations for model files: the file is read into its parts, some of them are changed, and it is written
// again with counts, lengths and offsets that fit, now and then but one. What is no GGUF is mutated as bytes.
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <vector>

extern "C" size_t LLVMFuzzerMutate(uint8_t * data, size_t size, size_t max_size);

namespace {

using Random = std::minstd_rand;

constexpr uint32_t string_type = 8, array_type = 9, n_value_types = 13;

struct Value {
    std::string              key;
    uint32_t                 type      = 0;
    uint32_t                 item_type = 0;  // of an array
    std::vector<std::string> items;          // bytes of the value, or of an array's; a string's without its length
};

struct Tensor {
    std::string           name;
    std::vector<uint64_t> shape;
    uint32_t              type   = 0;
    uint64_t              offset = 0;
    std::string           content;
};

struct File {
    uint32_t            version = 0;
    std::vector<Value>  values;
    std::vector<Tensor> tensors;
};

size_t value_size(uint32_t type) {
    static const size_t sizes[n_value_types] = {1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8};
    return type < n_value_types ? sizes[type] : 0;
}

// Bytes of a matrix of ggml's types by number; 0 for one that these files do not have.
uint64_t tensor_size(uint32_t type, const std::vector<uint64_t> & shape) {
    static const uint32_t blocks[][3] = {{0, 1, 4},      {1, 1, 2},      {2, 32, 18},   {3, 32, 20},    {6, 32, 22},
                                         {7, 32, 24},    {8, 32, 34},    {10, 256, 84}, {11, 256, 110}, {12, 256, 144},
                                         {13, 256, 176}, {14, 256, 210}, {30, 1, 2}};
    for (const auto & [number, length, bytes] : blocks) {
        if (number == type) {
            uint64_t count = 1;
            for (const uint64_t n : shape) {
                count = n > 0 && count > (uint64_t(1) << 32) / n ? 0 : count * n;
            }
            return count / length * bytes;
        }
    }
    return 0;
}

struct Reader {
    const uint8_t * data;
    size_t          size;
    size_t          at = 0;
    bool            ok = true;

    std::string bytes(uint64_t count) {
        ok = ok && count <= size - at;
        if (!ok) {
            return {};
        }
        at += static_cast<size_t>(count);
        return {reinterpret_cast<const char *>(data) + at - count, static_cast<size_t>(count)};
    }
    template <typename T> T number() {
        T                 value{};
        const std::string content = bytes(sizeof(T));
        if (ok) {
            std::memcpy(&value, content.data(), sizeof(T));
        }
        return value;
    }
    std::string text() { return bytes(number<uint64_t>()); }
    std::string value(uint32_t type) {
        ok = ok && (type == string_type || value_size(type) > 0);
        return type == string_type ? text() : bytes(value_size(type));
    }
};

constexpr size_t alignment = 32;

bool parse(const uint8_t * data, size_t size, File & file) {
    Reader in{data, size};
    if (in.bytes(4) != "GGUF") {
        return false;
    }
    file.version             = in.number<uint32_t>();
    const uint64_t n_tensors = in.number<uint64_t>(), n_values = in.number<uint64_t>();
    for (uint64_t i = 0; i < n_values && in.ok; i++) {
        Value value;
        value.key  = in.text();
        value.type = in.number<uint32_t>();
        if (value.type == array_type) {
            value.item_type      = in.number<uint32_t>();
            const uint64_t count = in.number<uint64_t>();
            for (uint64_t k = 0; k < count && in.ok; k++) {
                value.items.push_back(in.value(value.item_type));
            }
        } else {
            value.items.push_back(in.value(value.type));
        }
        file.values.push_back(value);
    }
    for (uint64_t i = 0; i < n_tensors && in.ok; i++) {
        Tensor tensor;
        tensor.name         = in.text();
        const uint32_t rank = in.number<uint32_t>();
        for (uint32_t k = 0; k < rank && in.ok; k++) {
            tensor.shape.push_back(in.number<uint64_t>());
        }
        tensor.type   = in.number<uint32_t>();
        tensor.offset = in.number<uint64_t>();
        file.tensors.push_back(tensor);
    }
    if (!in.ok) {
        return false;
    }
    const size_t start = (in.at + alignment - 1) / alignment * alignment;
    for (Tensor & tensor : file.tensors) {
        const uint64_t count = tensor_size(tensor.type, tensor.shape);
        if (start <= size && tensor.offset <= size - start && count <= size - start - tensor.offset) {
            tensor.content.assign(reinterpret_cast<const char *>(data) + start + tensor.offset,
                                  static_cast<size_t>(count));
        }
    }
    return true;
}

struct Writer {
    std::string         out;
    std::vector<size_t> places;  // of counts, lengths, types and offsets

    template <typename T> void number(T value) {
        places.push_back(out.size());
        out.append(reinterpret_cast<const char *>(&value), sizeof(T));
    }
    void text(const std::string & content) {
        number<uint64_t>(content.size());
        out += content;
    }
    void value(uint32_t type, const std::string & content) {
        if (type == string_type) {
            text(content);
        } else {
            std::string bytes = content;
            bytes.resize(value_size(type));
            out += bytes;
        }
    }
    void pad() { out.resize((out.size() + alignment - 1) / alignment * alignment); }
};

Writer write(const File & file) {
    Writer w;
    w.out = "GGUF";
    w.number<uint32_t>(file.version);
    w.number<uint64_t>(file.tensors.size());
    w.number<uint64_t>(file.values.size());
    for (const Value & value : file.values) {
        w.text(value.key);
        w.number<uint32_t>(value.type);
        if (value.type == array_type) {
            w.number<uint32_t>(value.item_type);
            w.number<uint64_t>(value.items.size());
        }
        for (const std::string & item : value.items) {
            w.value(value.type == array_type ? value.item_type : value.type, item);
        }
    }
    for (const Tensor & tensor : file.tensors) {
        w.text(tensor.name);
        w.number<uint32_t>(static_cast<uint32_t>(tensor.shape.size()));
        for (const uint64_t n : tensor.shape) {
            w.number<uint64_t>(n);
        }
        w.number<uint32_t>(tensor.type);
        w.number<uint64_t>(tensor.offset);
    }
    w.pad();
    for (const Tensor & tensor : file.tensors) {
        w.out += tensor.content;
        w.pad();
    }
    return w;
}

// Offsets and contents that fit the shapes.
void lay_out(File & file, size_t max_size) {
    uint64_t at = 0;
    for (Tensor & tensor : file.tensors) {
        const uint64_t count = tensor_size(tensor.type, tensor.shape);
        tensor.offset        = at;
        if (count <= max_size) {
            const std::string old = tensor.content;
            tensor.content.resize(static_cast<size_t>(count));
            for (size_t i = old.size(); i < tensor.content.size() && !old.empty(); i++) {
                tensor.content[i] = old[i % old.size()];
            }
        }
        at += (tensor.content.size() + alignment - 1) / alignment * alignment;
    }
}

template <typename T> T & one_of(std::vector<T> & all, Random & random) {
    return all[random() % all.size()];
}

uint64_t odd_number(Random & random, uint64_t old) {
    switch (random() % 10) {
        case 0: return 0;
        case 1: return old + 1;
        case 2: return old - 1;
        case 3: return old * 2;
        case 4: return old / 2;
        case 5: return std::numeric_limits<uint64_t>::max() >> random() % 64;
        case 6: return uint64_t(1) << random() % 64;
        case 7: return ~old;
        default: return random() % 64;
    }
}

void mutate_text(std::string & text, Random & random) {
    const size_t size = text.size(), most = size + 1 + random() % 16;
    text.resize(most);
    text.resize(LLVMFuzzerMutate(reinterpret_cast<uint8_t *>(&text[0]), size, most));
}

void mutate_value(Value & value, std::vector<Value> & all, Random & random) {
    if (value.type == array_type && !value.items.empty()) {
        switch (random() % 6) {
            case 0: std::swap(one_of(value.items, random), one_of(value.items, random)); return;
            case 1: value.items.push_back(one_of(value.items, random)); return;
            case 2:
                value.items.erase(value.items.begin() + static_cast<std::ptrdiff_t>(random() % value.items.size()));
                return;
            case 3: one_of(value.items, random) = one_of(value.items, random); return;
            case 4: value.items.resize(random() % (value.items.size() + 1)); return;
            default: mutate_text(one_of(value.items, random), random); return;
        }
    }
    if (value.items.empty()) {
        value.items.emplace_back();
    }
    std::string & content = value.items.front();
    if (value.type == string_type || random() % 4 == 0) {
        mutate_text(content, random);
    } else if (random() % 4 == 0) {
        const Value & other = one_of(all, random);
        content             = other.items.empty() ? "" : other.items.front();
    } else {
        uint64_t number = 0;
        std::memcpy(&number, content.data(), std::min(content.size(), sizeof(number)));
        number = odd_number(random, number);
        content.assign(reinterpret_cast<const char *>(&number), sizeof(number));
    }
}

// Writes numbers that no weight should have, or that stand at the ends of what a format can hold.
void mutate_weights(std::string & content, Random & random) {
    static const uint32_t floats[] = {0x7FC00000, 0x7F800000, 0xFF800000, 0x7F7FFFFF, 0x00000001, 0x80000000,
                                      0x7C007C00, 0xFC00FC00, 0x7E007E00, 0x7BFF7BFF, 0xFFFFFFFF, 0};
    if (content.size() < sizeof(uint32_t)) {
        return;
    }
    const uint32_t value = floats[random() % std::size(floats)];
    const size_t   first = random() % content.size() / 4 * 4;
    const size_t   end   = random() % 2 ? first + 4 : content.size();
    for (size_t at = first; at + 4 <= std::min(end, content.size()); at += 4) {
        std::memcpy(&content[at], &value, sizeof(value));
    }
}

void mutate_tensor(Tensor & tensor, File & file, Random & random) {
    static const uint32_t types[] = {0, 1, 2, 3, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 24, 30, 39, 4, 255};
    switch (random() % 9) {
        case 0: tensor.type = types[random() % std::size(types)]; break;
        case 1:
        case 2:
            if (!tensor.shape.empty()) {
                uint64_t & n = one_of(tensor.shape, random);
                n            = odd_number(random, n);
            }
            break;
        case 3: tensor.shape.push_back(odd_number(random, 1)); break;
        case 4: tensor.shape.resize(random() % (tensor.shape.size() + 1)); break;
        case 5: tensor.offset = odd_number(random, tensor.offset); break;
        case 6: std::swap(tensor.name, one_of(file.tensors, random).name); break;
        case 7: mutate_text(tensor.name, random); break;
        default: mutate_weights(tensor.content, random);
    }
}

// Another size for the whole model: the metadata and the shapes that have one number get another.
void resize_model(File & file, Random & random) {
    std::vector<uint64_t> sizes;
    for (const Tensor & tensor : file.tensors) {
        sizes.insert(sizes.end(), tensor.shape.begin(), tensor.shape.end());
    }
    if (sizes.empty()) {
        return;
    }
    const uint64_t old = one_of(sizes, random), now = random() % 2 ? odd_number(random, old) : 32 * (1 + random() % 9);
    for (Tensor & tensor : file.tensors) {
        std::replace(tensor.shape.begin(), tensor.shape.end(), old, now);
    }
    for (Value & value : file.values) {
        uint32_t number = 0;
        if (value.type != string_type && value.items.size() == 1 && value.items.front().size() >= sizeof(number)) {
            std::memcpy(&number, value.items.front().data(), sizeof(number));
            if (number == old) {
                number = static_cast<uint32_t>(now);
                value.items.front().assign(reinterpret_cast<const char *>(&number), sizeof(number));
            }
        }
    }
}

void mutate(File & file, Random & random) {
    if (file.values.empty() || file.tensors.empty()) {
        return;
    }
    Value &  value  = one_of(file.values, random);
    Tensor & tensor = one_of(file.tensors, random);
    switch (random() % 16) {
        case 0: file.values.push_back(Value(value)); break;
        case 1: file.values.erase(file.values.begin() + (&value - file.values.data())); break;
        case 2: file.tensors.push_back(Tensor(tensor)); break;
        case 3: file.tensors.erase(file.tensors.begin() + (&tensor - file.tensors.data())); break;
        case 4: std::swap(value.key, one_of(file.values, random).key); break;
        case 5: mutate_text(value.key, random); break;
        case 6: (value.type == array_type ? value.item_type : value.type) = random() % (n_value_types + 1); break;
        case 7: resize_model(file, random); break;
        case 8: mutate_weights(tensor.content, random); break;
        case 9: mutate_text(tensor.content, random); break;
        case 10:
        case 11:
        case 12: mutate_tensor(tensor, file, random); break;
        default: mutate_value(value, file.values, random);
    }
}

}  // namespace

extern "C" size_t LLVMFuzzerCustomMutator(uint8_t * data, size_t size, size_t max_size, unsigned int seed) {
    Random random(seed);
    File   file;
    if (random() % 32 == 0 || !parse(data, size, file)) {
        return LLVMFuzzerMutate(data, size, max_size);
    }
    for (uint32_t left = 1 + random() % 3; left > 0; left--) {
        mutate(file, random);
    }
    if (random() % 4 != 0) {
        lay_out(file, max_size);
    }
    Writer written = write(file);
    if (random() % 8 == 0) {
        const size_t   place  = one_of(written.places, random);
        const uint64_t number = odd_number(random, static_cast<uint8_t>(written.out[place]));
        std::memcpy(&written.out[place], &number,
                    std::min(written.out.size() - place, sizeof(uint32_t) << random() % 2));
    }
    if (random() % 16 == 0) {
        written.out.resize(random() % (written.out.size() + 1));
    }
    if (written.out.size() > max_size) {
        return LLVMFuzzerMutate(data, size, max_size);
    }
    std::memcpy(data, written.out.data(), written.out.size());
    return written.out.size();
}

// The first file with some metadata and tensors of the second.
extern "C" size_t LLVMFuzzerCustomCrossOver(const uint8_t * data1, size_t size1, const uint8_t * data2, size_t size2,
                                            uint8_t * out, size_t max_size, unsigned int seed) {
    Random random(seed);
    File   file, other;
    if (!parse(data1, size1, file) || !parse(data2, size2, other)) {
        return 0;
    }
    for (Value & value : file.values) {
        for (const Value & one : other.values) {
            if (one.key == value.key && random() % 4 == 0) {
                value = one;
            }
        }
    }
    for (Tensor & tensor : file.tensors) {
        for (const Tensor & one : other.tensors) {
            if (one.name == tensor.name && random() % 4 == 0) {
                tensor = one;
            }
        }
    }
    lay_out(file, max_size);
    const std::string written = write(file).out;
    if (written.size() > max_size) {
        return 0;
    }
    std::memcpy(out, written.data(), written.size());
    return written.size();
}
