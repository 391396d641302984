// How much each column of a matrix matters, measured while a model is used.
#pragma once

#include "ggml.h"

#include <cstdint>
#include <string>
#include <vector>

namespace pcr {

// How much each column of a matrix matters: the energy of what it was multiplied with, over all runs. For quantising.
class Importance {
public:
    struct Entry {
        std::string         name;  // of the matrix, as in the file
        std::vector<double> energies;  // sum of squares, per column
        int64_t             rows = 0;  // that were multiplied
    };
    std::vector<Entry> entries;

    // Adds the rows of the other factor of a multiplication that has just run.
    void add(const ggml_tensor * product);

    // True for multiplications with a matrix of the file.
    static bool wants(const ggml_tensor * node);
};

}  // namespace pcr
