# How ggml is found. In this order:
#   -DPYCRISPASR_GGML_DIR=...         a source tree of ggml
#   vendor/ggml/                      what our own sdist carries
#   -DPYCRISPASR_SYSTEM_GGML=ON       an installed ggml
#   otherwise                         the source below, fetched with pip, checked, and kept in a cache folder
# ggml has no package with its own source; this release of llama-cpp-python carries it.

set(PYCRISPASR_GGML_VERSION 0.25.3)
set(PYCRISPASR_GGML_PACKAGE llama-cpp-python)
set(PYCRISPASR_GGML_PACKAGE_VERSION 0.3.36)
set(PYCRISPASR_GGML_SHA256 832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e)

set(PYCRISPASR_GGML_DIR "" CACHE PATH "Source tree of ggml")
option(PYCRISPASR_SYSTEM_GGML "Use an installed ggml" OFF)
option(PYCRISPASR_CUDA_PACKAGE "Install CUDA's backend into a package of its own: cuda/pyproject.toml" OFF)

# Stores in ${out} a folder with ggml's CMakeLists.txt.
function(pycrispasr_find_ggml out)
    set(vendored "${CMAKE_CURRENT_SOURCE_DIR}/vendor/ggml")
    if(PYCRISPASR_GGML_DIR)
        if(NOT EXISTS "${PYCRISPASR_GGML_DIR}/include/ggml.h")
            message(FATAL_ERROR "PYCRISPASR_GGML_DIR=${PYCRISPASR_GGML_DIR} has no include/ggml.h")
        endif()
        set(source "${PYCRISPASR_GGML_DIR}")
    elseif(EXISTS "${vendored}/CMakeLists.txt")
        set(source "${vendored}")
    else()
        pycrispasr_fetch_ggml(source)
    endif()
    message(STATUS "ggml: ${source}")
    set(${out} "${source}" PARENT_SCOPE)
endfunction()

function(pycrispasr_fetch_ggml out)
    if(DEFINED ENV{PYCRISPASR_CACHE})
        file(TO_CMAKE_PATH "$ENV{PYCRISPASR_CACHE}" cache)
    elseif(DEFINED ENV{XDG_CACHE_HOME})
        file(TO_CMAKE_PATH "$ENV{XDG_CACHE_HOME}/pycrispasr" cache)
    elseif(DEFINED ENV{LOCALAPPDATA})
        file(TO_CMAKE_PATH "$ENV{LOCALAPPDATA}/pycrispasr" cache)
    elseif(DEFINED ENV{HOME})
        file(TO_CMAKE_PATH "$ENV{HOME}/.cache/pycrispasr" cache)
    else()
        set(cache "${CMAKE_CURRENT_BINARY_DIR}/cache")
    endif()
    string(SUBSTRING ${PYCRISPASR_GGML_SHA256} 0 12 digest)
    set(source "${cache}/ggml-${PYCRISPASR_GGML_VERSION}-${digest}")

    # Two builds at once: each unpacks for itself under the lock's protection, the second finds the first one's.
    file(MAKE_DIRECTORY "${cache}")
    file(LOCK "${source}.lock" GUARD FUNCTION TIMEOUT 600)
    if(NOT EXISTS "${source}/CMakeLists.txt")
        find_package(Python 3.10 REQUIRED COMPONENTS Interpreter)
        set(work "${source}.partial")
        file(REMOVE_RECURSE "${work}" "${source}")
        file(MAKE_DIRECTORY "${work}")
        message(STATUS "ggml: fetching the source of ${PYCRISPASR_GGML_PACKAGE} ${PYCRISPASR_GGML_PACKAGE_VERSION}")
        file(WRITE "${work}/requirements.txt"
            "${PYCRISPASR_GGML_PACKAGE}==${PYCRISPASR_GGML_PACKAGE_VERSION} --hash=sha256:${PYCRISPASR_GGML_SHA256}\n")
        # CMAKE_ARGS is meant for this build, not for the other package's metadata step.
        execute_process(
            COMMAND "${CMAKE_COMMAND}" -E env --unset=CMAKE_ARGS --unset=CMAKE_GENERATOR
                "${Python_EXECUTABLE}" -m pip download --quiet --no-deps --require-hashes
                --no-binary ${PYCRISPASR_GGML_PACKAGE} --dest "${work}" --requirement "${work}/requirements.txt"
            RESULT_VARIABLE result OUTPUT_VARIABLE log ERROR_VARIABLE log)
        file(GLOB archive "${work}/*.tar.gz")
        if(NOT result EQUAL 0 OR NOT archive)
            message(FATAL_ERROR
                "ggml's source could not be fetched with pip:\n${log}\n"
                "Without a network, build from our source distribution, which carries ggml, "
                "or name a source tree of ggml ${PYCRISPASR_GGML_VERSION} with -DPYCRISPASR_GGML_DIR=...")
        endif()
        file(SHA256 "${archive}" sha256)
        if(NOT sha256 STREQUAL PYCRISPASR_GGML_SHA256)
            message(FATAL_ERROR "${archive} has SHA-256 ${sha256}, not ${PYCRISPASR_GGML_SHA256}: delete ${work}")
        endif()
        file(ARCHIVE_EXTRACT INPUT "${archive}" DESTINATION "${work}" PATTERNS "*/vendor/llama.cpp/ggml/*")
        file(GLOB unpacked "${work}/*/vendor/llama.cpp/ggml")
        file(RENAME "${unpacked}" "${source}")
        file(REMOVE_RECURSE "${work}")
    endif()
    set(${out} "${source}" PARENT_SCOPE)
endfunction()

# Copies ggml's sources into vendor/ggml/, for our sdist.
function(pycrispasr_vendor_ggml source)
    set(vendored "${CMAKE_CURRENT_SOURCE_DIR}/vendor/ggml")
    if(NOT source STREQUAL vendored)
        file(REMOVE_RECURSE "${vendored}")
        file(COPY "${source}/" DESTINATION "${vendored}")
    endif()
endfunction()

# Makes the target "ggml", with the backends that the GGML_* options name: static, or in a portable build one library for
# each backend and each kind of CPU, of which csrc/device/backends.cpp picks at run time. PYCRISPASR_BACKENDS lists those.
macro(pycrispasr_add_ggml)
    set(PYCRISPASR_ORIGIN "$ORIGIN")  # where a library looks for those that lie beside it
    if(APPLE)
        set(PYCRISPASR_ORIGIN "@loader_path")
    endif()
    set(PYCRISPASR_CUDA_LIBRARIES "$ORIGIN/../nvidia/cu13/lib")  # nvidia-cuda-runtime and nvidia-cublas, beside this package
    set(PYCRISPASR_BACKENDS "")
    if(PYCRISPASR_SYSTEM_GGML)
        find_package(ggml REQUIRED)
        if(NOT TARGET ggml)
            add_library(ggml ALIAS ggml::ggml)
        endif()
    else()
        pycrispasr_find_ggml(ggml_source)
        # Threads of ggml's own pool can be parked and counted; OpenMP's cannot, and would be one more library to ship.
        set(GGML_OPENMP OFF CACHE BOOL "")
        set(GGML_LLAMAFILE ON CACHE BOOL "")
        set(GGML_CCACHE OFF CACHE BOOL "")
        # Without it nothing needs NVIDIA's driver to load: a machine that has none is told so, and runs on the CPU.
        set(GGML_CUDA_NO_VMM ON CACHE BOOL "")
        set(BUILD_SHARED_LIBS OFF)
        if(PYCRISPASR_PORTABLE)
            set(BUILD_SHARED_LIBS ON)
            set(GGML_BACKEND_DL ON)
            if(NOT DEFINED GGML_CPU_ALL_VARIANTS)
                set(GGML_CPU_ALL_VARIANTS ON)
            endif()
            set(GGML_NATIVE OFF)
            set(GGML_BLAS OFF)
            pycrispasr_rename_ggml("${ggml_source}")
            # Beside each other, as they will be installed.
            set(CMAKE_LIBRARY_OUTPUT_DIRECTORY "${CMAKE_CURRENT_BINARY_DIR}/lib")
            set(CMAKE_RUNTIME_OUTPUT_DIRECTORY "${CMAKE_CURRENT_BINARY_DIR}/lib")
        endif()
        add_subdirectory("${ggml_source}" ggml EXCLUDE_FROM_ALL)
        if(PYCRISPASR_PORTABLE)
            foreach(backend IN LISTS GGML_AVAILABLE_BACKENDS)  # from the cache: may hold an earlier build's
                if(TARGET ${backend})
                    list(APPEND PYCRISPASR_BACKENDS ${backend})
                endif()
            endforeach()
            pycrispasr_ship_ggml()
        endif()
        # A failed check inside ggml becomes an exception of ours (csrc/log.cpp), which must pass through its C code.
        set(wait "${CMAKE_CURRENT_SOURCE_DIR}/csrc/ggml_wait.h")
        pycrispasr_rewrite_base("${ggml_source}")
        set(cpu_targets ggml-cpu ${PYCRISPASR_BACKENDS})
        list(FILTER cpu_targets INCLUDE REGEX "^ggml-cpu")
        foreach(target IN LISTS cpu_targets)
            if(NOT TARGET ${target})
                continue()
            endif()
            pycrispasr_rewrite_cpu(${target} "${ggml_source}")
            if(WIN32)
                target_link_libraries(${target} PRIVATE synchronization)
            endif()
            if(MSVC)
                target_compile_options(${target} PRIVATE $<$<COMPILE_LANGUAGE:C>:/FI${wait}>)
            else()
                target_compile_options(${target} PRIVATE $<$<COMPILE_LANGUAGE:C>:-include${wait}> -w)
                target_compile_options(${target} PRIVATE $<$<COMPILE_LANGUAGE:C>:-fexceptions>)
            endif()
        endforeach()
        if(NOT MSVC)
            target_compile_options(ggml-base PRIVATE $<$<COMPILE_LANGUAGE:C>:-fexceptions> -w)
            if(TARGET ggml-vulkan)
                set_source_files_properties("${ggml_source}/src/ggml-vulkan/ggml-vulkan.cpp"
                    TARGET_DIRECTORY ggml-vulkan PROPERTIES COMPILE_OPTIONS
                    "-include;${CMAKE_CURRENT_SOURCE_DIR}/csrc/ggml_vulkan_headers.h;-w")
            endif()
        endif()
    endif()
endmacro()

# Replaces a place of ggml's source that must be there.
function(pycrispasr_replace before after)
    string(FIND "${text}" "${before}" found)
    if(found EQUAL -1)
        message(FATAL_ERROR "a source of ggml is not as in ${PYCRISPASR_GGML_VERSION}: it lacks\n${before}")
    endif()
    string(REPLACE "${before}" "${after}" text "${text}")
    set(text "${text}" PARENT_SCOPE)
endfunction()

# Has a target compile a copy of one of its files, which is written from ${text}.
function(pycrispasr_use_copy target file text)
    get_filename_component(name "${file}" NAME)
    get_filename_component(folder "${file}" DIRECTORY)
    set(copy "${CMAKE_CURRENT_BINARY_DIR}/ggml-sources/${name}")
    file(CONFIGURE OUTPUT "${copy}" CONTENT "@text@" @ONLY)
    get_target_property(sources ${target} SOURCES)
    string(REPLACE "." "\\." pattern "${name}")
    list(TRANSFORM sources REPLACE "^(.*/)?${pattern}$" "${copy}")
    set_target_properties(${target} PROPERTIES SOURCES "${sources}")
    target_include_directories(${target} PRIVATE "${folder}")
endfunction()

# Copies of ggml-cpu's files for one target of them. Threads sleep at the end of a node when it takes long: csrc/ggml_wait.h.
# A thread that cannot be started, and memory that is lacking, are no reason to end the process.
function(pycrispasr_rewrite_cpu target source)
    file(READ "${source}/src/ggml-cpu/ggml-cpu.c" text)
    pycrispasr_replace("    int n_passed = atomic_load_explicit(&tp->n_barrier_passed, memory_order_relaxed);\n"
        "    int n_passed = atomic_load_explicit(&tp->n_barrier_passed, memory_order_relaxed);
    const int crowded = pcr_arrive(&tp->waiting, n_passed);\n")
    pycrispasr_replace("    while (atomic_load_explicit(&tp->n_barrier_passed, memory_order_relaxed) == n_passed) {
        ggml_thread_cpu_relax();
    }\n"
        "    pcr_wait(&tp->n_barrier_passed, n_passed, &tp->waiting, crowded);\n")
    pycrispasr_replace("        atomic_fetch_add_explicit(&tp->n_barrier_passed, 1, memory_order_seq_cst);\n"
        "        atomic_fetch_add_explicit(&tp->n_barrier_passed, 1, memory_order_seq_cst);
        pcr_wake(&tp->n_barrier_passed, &tp->waiting);\n")
    pycrispasr_replace("    atomic_int GGML_CACHE_ALIGN n_barrier_passed;\n"
        "    atomic_int GGML_CACHE_ALIGN n_barrier_passed;\n    struct pcr_waiting waiting;\n")
    pycrispasr_replace("        threadpool->n_barrier_passed = 0;\n"
        "        threadpool->n_barrier_passed = 0;\n        pcr_start_waiting(&threadpool->waiting);\n")
    pycrispasr_replace("ggml_graph_compute_secondary_thread, &workers[j]);
        GGML_ASSERT(rc == 0);\n"
        "ggml_graph_compute_secondary_thread, &workers[j]);
        if (rc != 0) {
            threadpool->n_threads = j;
            ggml_threadpool_free(threadpool);
            return NULL;
        }\n")
    pycrispasr_use_copy(${target} "${source}/src/ggml-cpu/ggml-cpu.c" "${text}")

    file(READ "${source}/src/ggml-cpu/ggml-cpu.cpp" text)
    pycrispasr_replace("cpu_ctx->work_data = new uint8_t[cplan.work_size];"
        "cpu_ctx->work_data = new (std::nothrow) uint8_t[cplan.work_size];")
    pycrispasr_replace("#include \"ggml-cpu.h\"\n" "#include \"ggml-cpu.h\"\n#include <new>\n")
    pycrispasr_use_copy(${target} "${source}/src/ggml-cpu/ggml-cpu.cpp" "${text}")
endfunction()

# Copies of ggml-base's files whose memory is that of csrc/ggml_memory.h.
function(pycrispasr_rewrite_base source)
    set(header "${CMAKE_CURRENT_SOURCE_DIR}/csrc/ggml_memory.h")
    foreach(name IN ITEMS ggml.c ggml-alloc.c ggml-backend.cpp)
        file(READ "${source}/src/${name}" text)
        if(name STREQUAL "ggml-backend.cpp")
            pycrispasr_replace("    ggml_backend_buffer_t buffer = new ggml_backend_buffer {"
                "    void * memory = malloc(sizeof(ggml_backend_buffer));
    if (memory == NULL) {
        return NULL;
    }
    ggml_backend_buffer_t buffer = new (memory) ggml_backend_buffer {")
            pycrispasr_replace("    delete buffer;\n" "    free(buffer);\n")
            set(text "#include <new>\n${text}")
        endif()
        string(REGEX REPLACE "([^A-Za-z0-9_.>])(malloc|calloc|realloc|free)\\(" "\\1pycrispasr_memory_\\2(" text "${text}")
        string(REGEX REPLACE "([^A-Za-z0-9_])posix_memalign\\(" "\\1pycrispasr_memory_memalign(" text "${text}")
        set(text "#include \"${header}\"\n${text}")
        pycrispasr_use_copy(ggml-base "${source}/src/${name}" "${text}")
    endforeach()
    target_sources(ggml-base PRIVATE "${CMAKE_CURRENT_SOURCE_DIR}/csrc/ggml_memory.c")
endfunction()

# Gives every function that ggml's libraries export a name of our own, in all sources: another ggml that was loaded into
# the process with its names made global would come before ours otherwise, whatever ours is linked with.
function(pycrispasr_rename_ggml source)
    set(lines "")
    file(GLOB headers "${source}/include/*.h" "${source}/src/*.h")
    foreach(header IN LISTS headers)
        file(READ "${header}" text)
        string(REGEX MATCHALL "GGML_API[^;({}]*[ *][a-z][A-Za-z0-9_]* *[(]" declared "${text}")
        foreach(declaration IN LISTS declared)
            string(REGEX REPLACE ".*[ *]([a-z][A-Za-z0-9_]*) *[(]$" "\\1" name "${declaration}")
            list(APPEND lines "#define ${name} pycrispasr_${name}")
        endforeach()
    endforeach()
    list(REMOVE_DUPLICATES lines)
    list(SORT lines)
    list(JOIN lines "\n" lines)
    set(names "${CMAKE_CURRENT_BINARY_DIR}/ggml_names.h")
    file(CONFIGURE OUTPUT "${names}" CONTENT "${lines}\n" @ONLY)
    add_compile_options("$<$<NOT:$<COMPILE_LANGUAGE:ASM>>:$<IF:$<BOOL:${MSVC}>,/FI,-include>${names}>")
endfunction()

# Libraries that lie beside ours, under names of their own, and export only what we call.
function(pycrispasr_ship_ggml)
    set(prefix "lib")
    if(WIN32)
        set(prefix "")
    endif()
    foreach(target ggml ggml-base ${PYCRISPASR_BACKENDS})
        string(REPLACE "ggml-cpu" "cpu" name "${target}")
        set_target_properties(${target} PROPERTIES
            OUTPUT_NAME "pycrispasr-${name}"
            PREFIX "${prefix}"
            INSTALL_RPATH "${PYCRISPASR_ORIGIN}")
        set(folder pycrispasr)
        if(target STREQUAL "ggml-cuda")
            if(PYCRISPASR_CUDA_PACKAGE)
                set(folder pycrispasr_cuda)
                set_property(TARGET ${target} PROPERTY OUTPUT_NAME "pycrispasr-ggml-cuda-${PROJECT_VERSION}")
            endif()
            set_target_properties(${target} PROPERTIES
                INSTALL_RPATH "${PYCRISPASR_ORIGIN}/../pycrispasr:${PYCRISPASR_CUDA_LIBRARIES}")
        endif()
        set_property(TARGET ${target} PROPERTY VERSION)
        set_property(TARGET ${target} PROPERTY SOVERSION)
        set(exports "${CMAKE_CURRENT_SOURCE_DIR}/cmake/exports_ggml.map")
        if(target IN_LIST PYCRISPASR_BACKENDS)
            set(exports "${CMAKE_CURRENT_SOURCE_DIR}/cmake/exports_backend.map")
        endif()
        if(UNIX AND NOT APPLE)
            target_link_options(${target} PRIVATE "-Wl,--version-script=${exports}")
        endif()
        target_sources(${target} PRIVATE "${CMAKE_CURRENT_SOURCE_DIR}/csrc/process_exit.cpp")
        if(SKBUILD)
            install(TARGETS ${target} COMPONENT ${target} LIBRARY DESTINATION ${folder} RUNTIME DESTINATION ${folder})
        endif()
    endforeach()
endfunction()
