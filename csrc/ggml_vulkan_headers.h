// What ggml's Vulkan code needs of VK_EXT_layer_settings, for headers from before it (Debian 12's, Ubuntu 22.04's). Included
// in front of ggml-vulkan.cpp by cmake/ggml.cmake. Systems without the extension skip the structure.
#pragma once

#include <vulkan/vulkan_core.h>

#include <cstdint>
#include <vector>

#if !defined(VK_EXT_layer_settings)
namespace vk {

enum class LayerSettingTypeEXT { eBool32 = 0 };

struct LayerSettingEXT {
    const char *        pLayerName;
    const char *        pSettingName;
    LayerSettingTypeEXT type;
    uint32_t            valueCount;
    const void *        pValues;
};

struct LayerSettingsCreateInfoEXT {
    explicit LayerSettingsCreateInfoEXT(const std::vector<LayerSettingEXT> & settings)
        : settingCount(static_cast<uint32_t>(settings.size())), pSettings(settings.data()) {}

    uint32_t                sType = 1000496000;
    const void *            pNext = nullptr;
    uint32_t                settingCount;
    const LayerSettingEXT * pSettings;
};

}  // namespace vk
#endif
