// Which backend a command runs on.
#pragma once

#include <CLI/CLI.hpp>
#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "backend/backend.h"
#include "cli/options/cache_options.h"

namespace tidal {

struct BackendOptions {
  std::string backend = "auto";
  std::optional<int> gpu_layers;  ///< as llama.cpp's -ngl; negative: all
  std::string weights = "auto";   ///< what the cuda backend makes of them: auto, bf16
  CacheOptions cache;
};

/// Adds --backend, --n-gpu-layers, --weights and those of the cache. `options` must outlive the parsing.
void add_backend_options(CLI::App& app, BackendOptions& options);
/// What -ngl, -np, -nkvo, -ctk and -ctv are called where the parser knows no short flags of several letters.
void spell_out_short_flags(int argc, char** argv);

/// The backend that the flags name. `layers` gives the model's layers where they count; a model file has them, too.
/// Throws Error for an unknown name, layers on both sides, and flags that contradict each other; those of the cache
/// included, kv_type().
std::unique_ptr<Backend> open_backend(const BackendOptions& options, int threads, const std::function<int()>& layers);
std::unique_ptr<Backend> open_backend(const BackendOptions& options, int threads, const std::string& model);

}  // namespace tidal
