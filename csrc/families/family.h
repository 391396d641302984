// What differs between families of models: each has a file here that says of which parts its models are put together,
// and under which names their sizes and weights lie in a file.
#pragma once

#include "nn/model.h"

#include <string>

namespace pcr {

struct Family {
    const char * architecture;     // "general.architecture" of its files
    void (*load)(Model & model);   // fills in the model's parts from its file

    // Of families with one architecture the first counts that says yes. None: it takes all of its files.
    bool (*holds)(const GgufFile & file) = nullptr;
};

extern const Family moss_transcribe, moss_diarize, qwen3_aligner, qwen3_asr;

// The family of a file. An Error(PCR_ERROR_UNSUPPORTED) that names the architecture and those that there are.
const Family & family_of(const GgufFile & file, const std::string & path);

}  // namespace pcr
