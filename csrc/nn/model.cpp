#include "nn/model.h"

#include "families/family.h"
#include "locks.h"
#include "log.h"
#include "ops/screen.h"

namespace pcr {

std::unique_ptr<Model> load_model(const std::string & path, bool map, const std::string & device,
                                  const std::string & precision, const std::string & kernels) {
    std::vector<Device> found = find_devices(device);
    if (device == "auto" && (precision != "auto" || kernels != "auto")) {
        found.erase(found.begin(), found.end() - 1);  // which only the CPU has
    }
    for (const Device & one : found) {
        try {
            return std::make_unique<Model>(path, map, one, precision, kernels);
        } catch (const std::exception & error) {
            // What a driver or its library throws is none of ours, or a failed check of ggml's.
            const auto * const ours   = dynamic_cast<const Error *>(&error);
            const pcr_status   status = ours ? ours->status : PCR_ERROR_DEVICE;
            const bool         of_file =
                status != PCR_ERROR_DEVICE && status != PCR_ERROR_MEMORY && status != PCR_ERROR_INTERNAL;
            if (one.is_cpu() || device != "auto" || of_file) {
                throw;
            }
            log(PCR_LOG_WARNING, std::string(error.what()) + "; the next best device is used instead");
        }
    }
    throw Error(PCR_ERROR_DEVICE, "this build has no device");
}

Model::Model(const std::string & path, bool map, const Device & device_, const std::string & precision,
             const std::string & kernels)
    : store(path, map, device_, Arithmetic::choose(device_, precision, kernels)),
      device(store.device),
      arithmetic(store.arithmetic) {
    const Family & family = family_of(store.file, path);
    architecture          = family.architecture;
    name                  = store.file.string("general.name", "");
    family.load(*this);
    if (projector.empty() && encoder.output_dim != decoder.hidden) {
        throw Error(PCR_ERROR_FORMAT, format("the audio tower gives rows of %d values, the decoder reads rows of %d",
                                             encoder.output_dim, decoder.hidden));
    }
    store.fill_device();
    store.file.require_unchanged();
}

Model::~Model() = default;

TimeMarkers::TimeMarkers(const Tokenizer & tokenizer, int32_t seconds, double rows_per_second, int64_t max_positions)
    : every(seconds), apart(static_cast<int64_t>(seconds * rows_per_second)), per_second(rows_per_second) {
    constexpr int64_t most = 1 << 18;  // three days of markers, one a second
    for (int64_t k = 1; apart > 0 && k <= std::min(max_positions / apart, most); k++) {
        const std::vector<int32_t> more = tokenizer.encode(std::to_string(k * every));
        tokens.insert(tokens.end(), more.begin(), more.end());
        ends.push_back(static_cast<int64_t>(tokens.size()));
    }
}

int64_t TimeMarkers::count(int64_t n_rows) const {
    if (empty()) {
        return 0;
    }
    const auto seconds = static_cast<int64_t>(static_cast<double>(n_rows) / per_second);
    return std::min(seconds / every, static_cast<int64_t>(ends.size()));
}

const Screen & Model::screen(Compute & compute) const {
    const std::lock_guard<std::mutex> lock(screens_mutex);
    if (!head_screen) {
        head_screen = std::make_unique<Screen>(make_screen(decoder.head.weight, store.file, compute));
    }
    return *head_screen;
}

}  // namespace pcr
