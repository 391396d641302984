#!/usr/bin/env bash
# Builds with Vulkan and runs the GPU tests on Mesa's software driver, lavapipe: no GPU needed. On Debian or Ubuntu, as root
# where packages are missing. Extra arguments go to pytest; another driver's device is chosen with GGML_VK_VISIBLE_DEVICES.
# Mesa 22.3, which Debian 12 has, crashes when a graph's memory grows; 25.0 from its backports does not.
set -euo pipefail
cd "$(dirname "$0")/.."

packages=(mesa-vulkan-drivers libvulkan-dev glslc spirv-headers)
mesa_is_old() {
    dpkg --compare-versions "$(dpkg-query -Wf '${Version}' mesa-vulkan-drivers 2> /dev/null || echo 0)" lt 23
}
if ! dpkg -s "${packages[@]}" > /dev/null 2>&1 || mesa_is_old; then
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${packages[@]}"
fi
if mesa_is_old; then
    codename=$(sed -n 's/^VERSION_CODENAME=//p' /etc/os-release)
    mirror=$(apt-get indextargets --format '$(REPO_URI)' "Codename: $codename" 'Created-By: Packages' | sed -n 1p)
    [ -n "$mirror" ] || { echo "install Mesa 23 or newer first" >&2; exit 1; }
    echo "deb $mirror $codename-backports main" > /etc/apt/sources.list.d/pycrispasr-backports.list
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends -t "*-backports" mesa-vulkan-drivers
fi

environment=build/venv-vulkan
[ -x $environment/bin/python ] || python3 -m venv $environment
export PATH="$PWD/$environment/bin:$PATH" PIP_DISABLE_PIP_VERSION_CHECK=1
pip install --quiet scikit-build-core cffi cmake ninja
CMAKE_ARGS="${CMAKE_ARGS:-} -DGGML_VULKAN=ON" pip install --quiet --no-build-isolation -e '.[test]' -Cbuild-dir=build/vulkan

# ggml leaves out drivers that compute on the CPU unless they are named.
export GGML_VK_VISIBLE_DEVICES=${GGML_VK_VISIBLE_DEVICES:-0}
pycrispasr devices
pytest -m gpu tests/test_gpu.py "$@"
