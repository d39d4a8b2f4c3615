# libllama-common, llama.cpp's library of what its programs share: chat templates (Jinja) among it. It belongs to one
# version of llama.cpp, so it is taken only from where `llama` was found, with its headers beside llama.h.
#   LlamaCommon_FOUND, LlamaCommon::LlamaCommon
include(FindPackageHandleStandardArgs)
if(TARGET llama)
  get_target_property(_llama_library llama LOCATION)
  cmake_path(GET _llama_library PARENT_PATH _llama_folder)
  cmake_path(GET _llama_folder PARENT_PATH _llama_prefix)
  find_library(LlamaCommon_LIBRARY llama-common PATHS ${_llama_folder} NO_DEFAULT_PATH)
  find_path(LlamaCommon_INCLUDE_DIR jinja/runtime.h PATHS ${_llama_prefix}/include NO_DEFAULT_PATH
            PATH_SUFFIXES llama-common llama.cpp/common)
endif()
mark_as_advanced(LlamaCommon_LIBRARY LlamaCommon_INCLUDE_DIR)
find_package_handle_standard_args(LlamaCommon REQUIRED_VARS LlamaCommon_LIBRARY LlamaCommon_INCLUDE_DIR)
if(LlamaCommon_FOUND AND NOT TARGET LlamaCommon::LlamaCommon)
  # It is installed without a run path, so that whatever links it must bring what it needs itself, used or not.
  get_target_property(_llama_ggml ggml::ggml LOCATION)
  get_target_property(_llama_ggml_base ggml::ggml-base LOCATION)
  add_library(LlamaCommon::LlamaCommon UNKNOWN IMPORTED)
  set_target_properties(LlamaCommon::LlamaCommon PROPERTIES
                        IMPORTED_LOCATION ${LlamaCommon_LIBRARY}
                        INTERFACE_INCLUDE_DIRECTORIES ${LlamaCommon_INCLUDE_DIR}
                        INTERFACE_LINK_LIBRARIES
                        "llama;-Wl,--push-state,--no-as-needed,${_llama_ggml},${_llama_ggml_base},--pop-state")
endif()
