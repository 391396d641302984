#include "families/family.h"

namespace pcr {

const Family & family_of(const GgufFile & file, const std::string & path) {
    const Family * const families[] = {&moss_transcribe, &qwen3_aligner, &qwen3_asr, &moss_diarize};
    const std::string    found      = file.string("general.architecture", "");
    std::string          known;
    for (const Family * family : families) {
        if (found == family->architecture && (!family->holds || family->holds(file))) {
            return *family;
        }
        if (!family->holds) {
            known += (known.empty() ? "'" : ", '") + std::string(family->architecture) + "'";
        }
    }
    throw Error(PCR_ERROR_UNSUPPORTED,
                "'" + path + "' holds a model of architecture '" + found + "': this runtime runs " + known);
}

}  // namespace pcr
