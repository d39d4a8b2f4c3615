# Everything is found in the ordinary way. tools/setup.sh puts llama.cpp into .deps/, which comes after what the user
# names (CMAKE_PREFIX_PATH, llama_ROOT) and before the system's folders.
file(GLOB tidal_private_prefix ${PROJECT_SOURCE_DIR}/.deps/lib/python3*/site-packages)

find_package(OpenMP REQUIRED COMPONENTS CXX)
find_package(Threads REQUIRED)
find_package(fmt REQUIRED)
find_package(hwy REQUIRED)
if(TIDAL_ATTENTION_ONLY)
  return()
endif()
find_package(nlohmann_json REQUIRED)
find_package(dnnl REQUIRED)
find_path(TIDAL_XXHASH xxhash.h REQUIRED)  # a header alone
find_package(llama REQUIRED HINTS ${tidal_private_prefix})  # brings ggml::ggml, ggml::ggml-cpu, ggml::ggml-base
find_package(LlamaCommon MODULE)  # Jinja; without it, chat prompts are libllama's own text for a template's kind
if(NOT LlamaCommon_FOUND)
  message(WARNING "libllama-common with its headers is not beside libllama: chat templates are not rendered, prompts are "
                  "libllama's own text for the template's kind")
endif()
if(TIDAL_CLI)
  find_package(CLI11 REQUIRED)
endif()
if(TIDAL_SERVER OR TIDAL_FUZZ)
  find_package(Boost 1.74 REQUIRED)  # headers alone: Asio and Beast
endif()
if(TIDAL_TESTS)
  find_package(GTest REQUIRED)
endif()
if(TIDAL_BENCH)
  find_package(benchmark REQUIRED)
endif()
