# Everything is found in the ordinary way; tools/setup.sh puts llama.cpp into .deps/, which is looked at last, so that a
# system installation (or CMAKE_PREFIX_PATH) wins.
file(GLOB tidal_private_prefix ${PROJECT_SOURCE_DIR}/.deps/lib/python3*/site-packages)
list(APPEND CMAKE_PREFIX_PATH ${tidal_private_prefix})

find_package(OpenMP REQUIRED COMPONENTS CXX)
find_package(Threads REQUIRED)
find_package(fmt REQUIRED)
find_package(nlohmann_json REQUIRED)
find_package(hwy REQUIRED)
find_package(dnnl REQUIRED)
find_package(llama REQUIRED)  # brings ggml::ggml, ggml::ggml-cpu, ggml::ggml-base
if(TIDAL_CLI)
  find_package(CLI11 REQUIRED)
endif()
if(TIDAL_TESTS)
  find_package(GTest REQUIRED)
endif()
if(TIDAL_BENCH)
  find_package(benchmark REQUIRED)
endif()
